/* Convolutions of 8-bit maps by the definition, with weights of 8 bits.
 *
 * The alternative to the tiles of quantized.c, with the same fusions, where weights are read for few outputs: they take
 * a byte each. Transformed to 36 frequencies of 16 bits they take eight times as many, and a layer of few outputs waits
 * for them longer than it computes. The inputs of an output, at most 9 positions of K / 9 channels, are copied to a row
 * of scratch. The rest is one matrix product of bytes by signed bytes, summed in 32 bits, exactly; processors multiply
 * and add four such products per lane in one instruction (VNNI of x86, I8MM of Arm). Results are the same bits for any
 * number of threads.
 */
#include <stdatomic.h>

#include "convs.h"
#include "pool.h"
#include "quantized.h"

#if defined(__ARM_FEATURE_MATMUL_INT8)
#include <arm_neon.h>
#endif

typedef signed char sbyte;
typedef int quad __attribute__((may_alias)); /* four bytes */
typedef ivec quads __attribute__((aligned(4), may_alias));

/* Whether this processor has the instruction. Without it the tiles are faster. */
_Bool wrn_direct_is_fast(void) {
#if defined(__AVX512VNNI__) || (defined(__AVXVNNI__) && !defined(__AVX512F__)) || defined(__ARM_FEATURE_MATMUL_INT8)
    return 1;
#else
    return 0;
#endif
}

/* sum + the four products of each lane: unsigned bytes a by signed bytes b. */
INLINE ivec add_products(ivec sum, ivec a, ivec b) {
#if defined(__AVX512VNNI__)
    return (ivec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif defined(__AVXVNNI__) && !defined(__AVX512F__)
    return (ivec)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)a, (__m256i)b);
#elif defined(__ARM_FEATURE_MATMUL_INT8)
    return (ivec)vusdotq_s32((int32x4_t)sum, (uint8x16_t)a, (int8x16_t)b);
#else
    for (int shift = 0; shift < 32; shift += 8) sum += (a >> shift & 255) * (b << (24 - shift) >> 24);
    return sum;
#endif
}

/* C (mr, NB) = rescale * A (mr, K) B (K, NB). B holds groups of four rows, interleaved. */
INLINE void product(int mr, long K, const byte *A, const sbyte *B, const float *rescale, float *C) {
    ivec sum[MR][NV];
    for (int r = 0; r < mr; r++)
        for (int v = 0; v < NV; v++) sum[r][v] = (ivec){0};
#pragma GCC unroll 2
    for (long k = 0; k < K; k += 4) {
        ivec b[NV];
        for (int v = 0; v < NV; v++) b[v] = *(const quads *)(B + k * NB + 4 * v * VL);
        for (int r = 0; r < mr; r++) {
            ivec a = (ivec){0} + *(const quad *)(A + r * K + k);
            for (int v = 0; v < NV; v++) sum[r][v] = add_products(sum[r][v], a, b[v]);
        }
    }
    for (int r = 0; r < mr; r++)
        for (int v = 0; v < NV; v++)
            STORE(C + r * NB + v * VL, __builtin_convertvector(sum[r][v], vec) * LOAD(rescale + v * VL));
}

/* The products of at most MR outputs. Not inlined: as a separate function its innermost loop fits in the registers. */
static __attribute__((noinline)) void strip(long num, long K, const byte *A, const sbyte *B, const float *rescale,
                                            float *C) {
    long t = 0;
    if (num == MR) product(MR, K, A, B, rescale, C), t = MR;
    for (; t + 4 <= num; t += 4) product(4, K, A + t * K, B, rescale, C + t * NB);
    if (t + 2 <= num) product(2, K, A + t * K, B, rescale, C + t * NB), t += 2;
    if (t < num) product(1, K, A + t * K, B, rescale, C + t * NB);
}

/* What the parts share: a part is a block of outputs and a slice of the output channels, which are N with padding. */
typedef struct {
    const byte *x;
    const sbyte *w;
    const float *rescale;
    Result result;
    Shape s, y;
    long kernel, stride, num, N, block, slice, num_slices;
    atomic_int failed;
} Conv;

INLINE void copy(byte *to, const byte *from, long num) { /* a multiple of 16 */
    long k = 0;
    for (; k + 64 <= num; k += 64) memcpy(to + k, from + k, 64);
    for (; k < num; k += 16) memcpy(to + k, from + k, 16);
}

/* Copy the inputs of `num` outputs, row after row: position after position, zeros outside the map. */
static void gather(const Conv *c, long first, long num, byte *row) {
    Shape s = c->s, y = c->y;
    long kernel = c->kernel, image = first / y.W / y.H, down = first / y.W % y.H, across = first % y.W;
    for (; num > 0; num--) {
        long top = down * c->stride - kernel / 2, left = across * c->stride - kernel / 2;
        for (long i = top; i < top + kernel; i++, row += kernel * s.C) {
            const byte *from = c->x + (image * s.H + i) * s.W * s.C;
            if (i < 0 || i >= s.H) memset(row, 0, kernel * s.C);
            else if (left >= 0 && left + kernel <= s.W) copy(row, from + left * s.C, kernel * s.C);
            else
                for (long j = 0; j < kernel; j++)
                    if (left + j < 0 || left + j >= s.W) memset(row + j * s.C, 0, s.C);
                    else copy(row + j * s.C, from + (left + j) * s.C, s.C);
        }
        if (++across == y.W) across = 0, down++;
        if (down == y.H) down = 0, image++;
    }
}

static void conv_parts(void *job, long first_part, long last_part) {
    Conv *c = job;
    long K = c->kernel * c->kernel * c->s.C, out = c->y.C;
    _Bool as_they_lie = c->kernel == 1 && c->stride == 1;
    float M[MR * NB];
    byte *copies = as_they_lie ? NULL : (byte *)wrn_scratch(c->block * K / 4);
    if (!as_they_lie && !copies) {
        c->failed = 1;
        return;
    }
    for (long part = first_part, filled = -1; part < last_part; part++) {
        long blk = part / c->num_slices, first = blk * c->block, num = min(c->block, c->num - first);
        long from = part % c->num_slices * c->slice, to = min(from + c->slice, c->N);
        if (!as_they_lie && blk != filled) gather(c, first, num, copies);
        filled = blk;
        const byte *rows = as_they_lie ? c->x + first * K : copies;
        for (long n = from; n < to; n += NB)
            for (long t = 0; t < num; t += MR) {
                long some = min(MR, num - t);
                strip(some, K, rows + t * K, c->w + n * K, c->rescale + n, M);
                for (long j = 0; j < some; j += 4)
                    for (long k = n; k < min(n + NB, out); k += VL) {
                        vec v[4];
                        int few = (int)min(4, some - j);
                        for (int i = 0; i < few; i++) v[i] = LOAD(M + (j + i) * NB + k - n);
                        put(c->result, v, few, (first + t + j) * out + k, out, k);
                    }
            }
    }
}

enum { INPUTS = 512 << 10 }; /* bytes of inputs of a block, which stay in the second-level cache */

/* Convolve x with a border of zeros, as wrn_quantized_conv does.
 *
 * kernel: 3 or 1. w: weights, [n / NB][k / 4][n % NB][k % 4], where k counts positions, then channels. rescale: [n].
 * Returns 0, or 1 if memory runs out. */
int wrn_direct_conv(const byte *x, long B, long H, long W, long in, long out, long kernel, long stride, const sbyte *w,
                    const float *rescale, const float *add, const float *scale, const float *shift, float *values,
                    byte *bytes, int threads) {
    Shape s = {B, H, W, in}, y = {B, (H + stride - 1) / stride, (W + stride - 1) / stride, out};
    long num = B * y.H * y.W, N = round_up(out, NB), K = kernel * kernel * in;
    long fit = INPUTS / K / MR * MR, block = min(fit > MR ? fit : MR, num), num_blocks = (num + block - 1) / block;
    if (num_blocks > 1 && num_blocks < 4 * threads) { /* few blocks are divided evenly */
        num_blocks = round_up(num_blocks, threads);
        block = round_up((num + num_blocks - 1) / num_blocks, MR), num_blocks = (num + block - 1) / block;
    }
    /* fewer blocks than threads are divided by channel: weights are more than inputs here, and are read once */
    long slices = num_blocks < threads ? min((threads + num_blocks - 1) / num_blocks, N / NB) : 1;
    long slice = (N / NB + slices - 1) / slices * NB;
    slices = (N + slice - 1) / slice;
    Conv conv = {x, w, rescale, {add, scale, shift, values, bytes}, s, y, kernel, stride, num, N, block, slice, slices, 0};
    in_parallel(threads, num_blocks * slices, 1, conv_parts, &conv);
    return conv.failed;
}
