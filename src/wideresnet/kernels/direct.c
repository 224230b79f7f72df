/* Convolutions of 8-bit maps by the definition, with weights of 8 bits.
 *
 * The alternative to the tiles of quantized.c, with the same fusions, where weights are read for few outputs: they take
 * a byte each. Transformed to 36 frequencies of 16 bits they take eight times as many, and a layer of few outputs waits
 * for them longer than it computes. It is one matrix product of bytes by signed bytes, summed in 32 bits, exactly;
 * processors multiply and add four such products per lane in one instruction (VNNI of x86, I8MM of Arm). Inputs are read
 * where they lie: an output knows where the channels of each of its positions begin, and outside of the map there are
 * zeros. Results are the same bits for any number of threads.
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

/* Where the channels of the positions begin that a few outputs see. */
enum { MAX_TAPS = 9, LINE = 64 };
typedef const byte *Row[MR];

/* C (mr, NB) = rescale * A (mr, K) B (K, NB), where K counts taps, then channels. B holds groups of four rows,
 * interleaved. */
INLINE void product(int mr, long taps, long channels, const Row *rows, const sbyte *B, const float *rescale, float *C) {
    ivec sum[MR][NV];
    for (int r = 0; r < mr; r++)
        for (int v = 0; v < NV; v++) sum[r][v] = (ivec){0};
    do { /* not `for`: it could run zero times, for which compilers keep the sums in memory */
        Row at;
        for (int r = 0; r < mr; r++) at[r] = (*rows)[r];
        long k = 0;
#pragma GCC unroll 2
        do {
            ivec b[NV];
            for (int v = 0; v < NV; v++) b[v] = *(const quads *)(B + 4 * v * VL);
            for (int r = 0; r < mr; r++) {
                ivec a = (ivec){0} + *(const quad *)(at[r] + k);
                for (int v = 0; v < NV; v++) sum[r][v] = add_products(sum[r][v], a, b[v]);
            }
            B += 4 * NB;
        } while ((k += 4) < channels);
        rows++;
    } while (--taps);
    for (int r = 0; r < mr; r++)
        for (int v = 0; v < NV; v++)
            STORE(C + r * NB + v * VL, __builtin_convertvector(sum[r][v], vec) * LOAD(rescale + v * VL));
}

/* What the parts share: a part is a block of outputs and a slice of the output channels, which are N with padding.
 * group: channels whose weights stay in the second-level cache. */
typedef struct {
    const byte *x;
    const sbyte *w;
    const float *rescale;
    Result result;
    Shape s, y;
    long kernel, stride, num, N, block, slice, num_slices, group;
    atomic_int failed;
} Conv;

/* The products of a panel with `num` outputs: MR, 4, 2 or 1. Not inlined: as a separate function its innermost loop fits
 * in the registers. */
static __attribute__((noinline)) void strip(long num, const Conv *c, const Row *rows, long n, float *M) {
    long taps = c->kernel * c->kernel, channels = c->s.C;
    const sbyte *B = c->w + n * taps * channels;
    const float *rescale = c->rescale + n;
    if (num == MR) product(MR, taps, channels, rows, B, rescale, M);
    else if (num == 4) product(4, taps, channels, rows, B, rescale, M);
    else if (num == 2) product(2, taps, channels, rows, B, rescale, M);
    else product(1, taps, channels, rows, B, rescale, M);
}

/* Find the inputs of `num` outputs. */
static void look_up(const Conv *c, long first, long num, const byte *zeros, Row rows[MAX_TAPS]) {
    Shape s = c->s, y = c->y;
    long kernel = c->kernel;
    if (kernel == 1 && c->stride == 1) {
        for (long r = 0; r < num; r++) rows[0][r] = c->x + (first + r) * s.C;
        return;
    }
    long image = first / y.W / y.H, down = first / y.W % y.H, across = first % y.W;
    for (long r = 0; r < num; r++) {
        long top = down * c->stride - kernel / 2, left = across * c->stride - kernel / 2;
        for (long i = 0; i < kernel; i++) {
            const byte *line = top + i < 0 || top + i >= s.H ? NULL : c->x + (image * s.H + top + i) * s.W * s.C;
            for (long j = 0; j < kernel; j++) {
                int inside = line && left + j >= 0 && left + j < s.W;
                rows[i * kernel + j][r] = inside ? line + (left + j) * s.C : zeros;
            }
        }
        if (++across == y.W) across = 0, down++;
        if (down == y.H) down = 0, image++;
    }
}

/* Write the outputs first..first + num - 1 from their products, for a panel of channels from n. */
INLINE void write_panel(Result result, const float *M, long first, long num, long n, long out) {
    for (long k = n; k < min(n + NB, out); k += VL, M += VL) {
        long j = 0;
        for (vec v[4]; j + 4 <= num; j += 4) {
            for (int i = 0; i < 4; i++) v[i] = LOAD(M + (j + i) * NB);
            put(result, v, 4, (first + j) * out + k, out, k);
        }
        for (vec v[4]; j < num; j++) {
            v[0] = LOAD(M + j * NB);
            put(result, v, 1, (first + j) * out + k, out, k);
        }
    }
}

INLINE void run_parts(Conv *c, Result result, long first_part, long last_part) {
    long out = c->y.C, line = LINE / (result.halves ? sizeof(half) : sizeof(float));
    byte *zeros = (byte *)wrn_scratch(c->s.C / 4);
    if (!zeros) {
        c->failed = 1;
        return;
    }
    memset(zeros, 0, c->s.C);
    for (long part = first_part; part < last_part; part++) {
        long first = part / c->num_slices * c->block, last = min(first + c->block, c->num);
        long from = part % c->num_slices * c->slice, to = min(from + c->slice, c->N);
        for (long begin = from; begin < to; begin += c->group)
            for (long t = first, num; t < last; t += num) {
                Row rows[MAX_TAPS];
                _Alignas(LINE) float M[MR * NB];
                num = last - t >= MR ? MR : last - t >= 4 ? 4 : last - t >= 2 ? 2 : 1;
                look_up(c, t, num, zeros, rows);
                for (long n = begin; n < min(begin + c->group, to); n += NB) {
                    for (long k = n; k < min(n + NB, out); k += line) fetch(result, num, t * out + k, out);
                    strip(num, c, (const Row *)rows, n, M);
                    write_panel(result, M, t, num, n, out);
                }
            }
    }
}

static void conv_parts(void *job, long first, long last) {
    Conv *c = job;
    switch (form_of(c->result)) {
    case BYTES: run_parts(c, in_form(c->result, BYTES), first, last); break;
    case FLOATS: run_parts(c, in_form(c->result, FLOATS), first, last); break;
    case HALVES: run_parts(c, in_form(c->result, HALVES), first, last);
    }
}

enum { INPUTS = 384 << 10, WEIGHTS = 384 << 10 }; /* bytes of a block and of a group: they stay in a second-level cache */

/* Convolve x with a border of zeros, as wrn_quantized_conv does.
 *
 * kernel: 3 or 1. w: weights, [n / NB][k / 4][n % NB][k % 4], where k counts positions, then channels. rescale: [n].
 * Returns 0, or 1 if memory runs out. */
int wrn_direct_conv(const byte *x, long B, long H, long W, long in, long out, long kernel, long stride, const sbyte *w,
                    const float *rescale, const void *add, const float *bias, const float *scale, const float *shift,
                    void *values, byte *bytes, int halves, int threads) {
    Shape s = {B, H, W, in}, y = {B, (H + stride - 1) / stride, (W + stride - 1) / stride, out};
    long num = B * y.H * y.W, N = round_up(out, NB), K = kernel * kernel * in;
    long group = WEIGHTS / K / NB * NB;
    group = min(group > NB ? group : NB, N);
    /* A block is read once for each group of channels. */
    long fit = group == N ? 8 * MR : INPUTS / in, block = min(fit > MR ? fit / MR * MR : MR, num), slices = 1;
    long num_blocks = (num + block - 1) / block;
    if (N > num) { /* weights are more than inputs: they are read once */
        slices = min((threads + num_blocks - 1) / num_blocks, N / NB);
    } else if (num_blocks < 4 * threads) { /* few blocks are divided evenly */
        num_blocks = round_up(num_blocks, threads);
        block = round_up((num + num_blocks - 1) / num_blocks, 4), num_blocks = (num + block - 1) / block;
    }
    long slice = (N / NB + slices - 1) / slices * NB;
    slices = (N + slice - 1) / slice;
    Conv conv = {x, w, rescale, {add, bias, scale, shift, values, bytes, halves}, s, y, kernel, stride, num, N, block,
                 slice, slices, group, 0};
    in_parallel(threads, num_blocks * slices, 1, conv_parts, &conv);
    return conv.failed;
}
