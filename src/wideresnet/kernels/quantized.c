/* Convolutions of 8-bit maps for inference on a CPU, fused with the addition of a shortcut and with the normalization,
 * activation and quantization that follow.
 *
 * Maps are unsigned bytes, channels last: (B, H, W, C), C a multiple of 16. Products are of 16-bit integers and are
 * summed in 32 bits, exactly: weights are quantized such that no sum can overflow. Everything is a matrix product of
 * units (tiles, or single outputs for 1x1) by channels, for one or more frequencies:
 *   - 3x3, stride 1: Winograd's F(4x4, 3x3) as in winograd.c, whose input transform is exact in integers; 36
 *     frequencies.
 *   - 3x3, stride 2: four outputs in a row see nine inputs. The even ones meet the two outer weights, which is F(4, 2);
 *     the odd ones meet the middle weight. That makes 9 multiplications instead of 12, in two dimensions 81 instead of
 *     144.
 *   - 1x1: one frequency, no transform. Results are the same bits for any number of threads.
 */
#include <stdatomic.h>

#include "convs.h"
#include "pool.h"
#include "quantized.h"

typedef byte bytes16 __attribute__((vector_size(16), aligned(1), may_alias));

/* WIDE: channels that are transformed at once. LINE: channels in a cache line, of which one prefetch is enough. */
#if defined(__AVX512BW__) && defined(__AVX512VL__)
enum { WIDE = 32 };
#else
enum { WIDE = 16 };
#endif
enum { LINE = 64 };
typedef short shorts __attribute__((vector_size(2 * WIDE), aligned(2), may_alias));
typedef int pair __attribute__((may_alias)); /* two 16-bit integers */
typedef ivec pairs __attribute__((aligned(4), may_alias));

/* sum + the two products of each lane's pairs. Both products and all sums fit in 32 bits. */
INLINE ivec add_products(ivec sum, ivec a, ivec b) {
#if defined(__AVX512VNNI__)
    return (ivec)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif defined(__AVX512BW__)
    return sum + (ivec)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__) && !defined(__AVX512F__)
    return sum + (ivec)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__) && !defined(__AVX__)
    return sum + (ivec)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
    return sum + (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}

/* C (mr, NB) = rescale * A (mr, K) B (K, NB). Rows of A are K apart and those of C NB; B holds pairs of rows,
 * interleaved. A cache line of `next` is asked for per pair. */
INLINE void product(int mr, long K, const short *A, const short *B, const short *next, const float *rescale, float *C) {
    ivec sum[MR][NV];
    for (int r = 0; r < mr; r++)
        for (int v = 0; v < NV; v++) sum[r][v] = (ivec){0};
#pragma GCC unroll 2
    for (long k = 0; k < K; k += 2) {
        ivec b[NV];
        for (int v = 0; v < NV; v++) b[v] = *(const pairs *)(B + k * NB + 2 * v * VL);
        __builtin_prefetch((const char *)next + k / 2 * LINE, 0, 2);
        for (int r = 0; r < mr; r++) {
            ivec a = (ivec){0} + *(const pair *)(A + r * K + k);
            for (int v = 0; v < NV; v++) sum[r][v] = add_products(sum[r][v], a, b[v]);
        }
    }
    for (int r = 0; r < mr; r++)
        for (int v = 0; v < NV; v++)
            STORE(C + r * NB + v * VL, __builtin_convertvector(sum[r][v], vec) * LOAD(rescale + v * VL));
}

/* A panel of products. Meanwhile `next`, the weights of another, comes from memory to the second-level cache, a half at
 * a time. Not inlined: as a separate function its innermost loop fits in the registers. */
static __attribute__((noinline)) void panel(long num, long K, const short *A, const short *B, const short *next,
                                            const float *rescale, float *C) {
    const short *half = next + K / 2 * NB;
    long t = 0;
    for (; t + MR <= num; t += MR, next = next == half ? B : half)
        product(MR, K, A + t * K, B, next, rescale, C + t * NB);
    for (; t + 4 <= num; t += 4, next = half) product(4, K, A + t * K, B, next, rescale, C + t * NB);
    if (t + 2 <= num) product(2, K, A + t * K, B, next, rescale, C + t * NB), t += 2, next = half;
    if (t < num) product(1, K, A + t * K, B, next, rescale, C + t * NB);
}

/* ---- inputs ------------------------------------------------------------------------------------------------------ */

/* Load WIDE channels of a position, or the `left` that remain; nothing behind them is read. */
INLINE shorts load_bytes(const byte *at, long left) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    __mmask32 there = left < WIDE ? (1u << left) - 1 : ~0u;
    return (shorts)_mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(there, at));
#else
    (void)left;
    return __builtin_convertvector(*(const bytes16 *)at, shorts);
#endif
}

INLINE void input_1d(const shorts d[6], shorts v[6]) { /* B^T; from bytes, below 2^15 in two dimensions too */
    shorts even = d[4] - (d[2] << 2), odd = d[3] - (d[1] << 2), e2 = d[4] - d[2], o = d[3] - d[1], o2 = o + o;
    v[0] = ((d[0] - d[2]) << 2) + e2;
    v[1] = even + odd;
    v[2] = even - odd;
    v[3] = e2 + o2;
    v[4] = e2 - o2;
    v[5] = d[5] - d[3] - (o2 + o2);
}

INLINE void strided_input_1d(const shorts d[9], shorts v[9]) {
    shorts far = d[6] - d[2];
    v[0] = far - (d[4] - d[0]) - (d[4] - d[0]);
    v[1] = far - d[4] - d[2];
    v[2] = d[6] + d[2] + d[2] - d[4] - d[4] - d[4];
    v[3] = far;
    v[4] = d[8] - d[4] - far - far;
    for (int i = 0; i < 4; i++) v[5 + i] = d[2 * i + 1];
}

/* Transform the inputs of a tile, `points` squared; frequency f of channel c goes to V[f stride_f + c]. */
INLINE void input_tile(int points, const byte *x, Shape s, Place p, const byte *zeros, short *V, long stride_f) {
    const byte *at[9][9];
    for (int i = 0; i < points; i++)
        for (int j = 0; j < points; j++) {
            long step = points == 9 ? 2 : 1, row = p.top * step + i - 1, column = p.left * step + j - 1;
            int inside = row >= 0 && row < s.H && column >= 0 && column < s.W;
            at[i][j] = inside ? x + ((p.image * s.H + row) * s.W + column) * s.C : zeros;
        }
    for (long c = 0; c < s.C; c += WIDE) {
        shorts rows[9][9], d[9], v[9];
        for (int j = 0; j < points; j++) {
            for (int i = 0; i < points; i++) {
                d[i] = load_bytes(at[i][j] + c, s.C - c);
                if (c % LINE == 0) PREFETCH(at[i][j], c + (points == 9 ? 8 : 4) * s.C);
            }
            if (points == 6) input_1d(d, v);
            else strided_input_1d(d, v);
            for (int i = 0; i < points; i++) rows[i][j] = v[i];
        }
        for (int i = 0; i < points; i++) {
            if (points == 6) input_1d(rows[i], v);
            else strided_input_1d(rows[i], v);
            for (int j = 0; j < points; j++) *(shorts *)(V + (i * points + j) * stride_f + c) = v[j];
        }
    }
}

/* Widen the channels of one position. */
INLINE void input_position(const byte *x, long C, short *V) {
    for (long c = 0; c < C; c += WIDE) *(shorts *)(V + c) = load_bytes(x + c, C - c);
}

/* ---- outputs ------------------------------------------------------------------------------------------------------ */

INLINE void strided_output_1d(const vec m[9], vec y[4]) {
    vec sum = m[1] + m[2], difference = m[1] - m[2];
    y[0] = m[0] + sum + m[3] + m[5];
    y[1] = difference + 2 * m[3] + m[6];
    y[2] = sum + 4 * m[3] + m[7];
    y[3] = difference + 8 * m[3] + m[4] + m[8];
}

/* Transform the products of a tile back to its outputs, for channels from..to; s is the shape of the result. */
INLINE void output_tile(int points, const float *M, long stride_f, Shape s, Place p, long from, long to, Result r) {
    int height = (int)min(4, s.H - p.top), width = (int)min(4, s.W - p.left);
    for (long c = from; c < to; c += VL) {
        vec rows[4][9];
        for (int j = 0; j < points; j++) {
            vec m[9], o[4];
            for (int i = 0; i < points; i++) m[i] = LOAD(M + (i * points + j) * stride_f + c - from);
            if (points == 6) output_1d(m, o);
            else strided_output_1d(m, o);
            for (int i = 0; i < 4; i++) rows[i][j] = o[i];
        }
        for (int i = 0; i < height; i++) {
            vec o[4];
            if (points == 6) output_1d(rows[i], o);
            else strided_output_1d(rows[i], o);
            long at = ((p.image * s.H + p.top + i) * s.W + p.left) * s.C + c;
            fetch(r, 4, at + 4 * s.C, s.C);
            if (width == 4) put(r, o, 4, at, s.C, c);
            else
                for (int j = 0; j < width; j++) put(r, o + j, 1, at + j * s.C, s.C, c);
        }
    }
}

/* ---- convolution ------------------------------------------------------------------------------------------------- */

enum { MAX_UNITS = 192, MANY_INPUTS = 4 << 20 }; /* the latter in bytes */

long wrn_panel(void) { return NB; }

/* What the parts of a convolution share. A part is a block of units and a slice of the output channels, which are N with
 * their padding. Products of `group` channels are turned back to outputs together. */
typedef struct {
    const byte *x;
    const short *U;
    const float *rescale;
    Result result;
    Shape s, y;
    long stride, units, N, block, slice, num_slices, group;
    int points;
    atomic_int failed;
} Conv;

/* Transform the inputs of `num` units. Not inlined, as the next function: alone they have enough registers. */
static __attribute__((noinline)) void transform(const Conv *c, long first, long num, const byte *zeros, short *V,
                                                long v_f) {
    const byte *x = c->x;
    Shape s = c->s, y = c->y;
    int points = c->points;
    for (long unit = first; unit < first + num; unit++, V += s.C) {
        long row = unit / y.W % y.H * c->stride, column = unit % y.W * c->stride;
        if (points == 6) input_tile(6, x, s, place(y, unit), zeros, V, v_f);
        else if (points == 9) input_tile(9, x, s, place(y, unit), zeros, V, v_f);
        else input_position(x + ((unit / y.W / y.H * s.H + row) * s.W + column) * s.C, s.C, V);
    }
}

/* Turn the products of `num` units back to outputs: those of a panel, the channels from n on. */
INLINE void write_panel(const Conv *c, Result result, const float *M, long m_f, long first, long num, long n) {
    Shape y = c->y;
    int points = c->points;
    long last = min(n + NB, y.C);
    for (long unit = first; unit < first + num; unit++, M += NB)
        if (points == 6) output_tile(6, M, m_f, y, place(y, unit), n, last, result);
        else if (points == 9) output_tile(9, M, m_f, y, place(y, unit), n, last, result);
        else
            for (long k = n; k < last; k += VL) {
                vec v[4] = {LOAD(M + k - n)};
                put(result, v, 1, unit * y.C + k, y.C, k);
            }
}

static __attribute__((noinline)) void turn_back(const Conv *c, const float *M, long m_f, long first, long num, long n) {
    Result result = c->result;
    switch (form_of(result)) {
    case BYTES: write_panel(c, in_form(result, BYTES), M, m_f, first, num, n); break;
    case FLOATS: write_panel(c, in_form(result, FLOATS), M, m_f, first, num, n); break;
    case HALVES: write_panel(c, in_form(result, HALVES), M, m_f, first, num, n);
    }
}

static void conv_parts(void *job, long first_part, long last_part) {
    Conv *c = job;
    const short *U = c->U;
    const float *rescale = c->rescale;
    int num_f = c->points * c->points;
    long in = c->s.C, out = c->y.C, N = c->N, slice = c->slice;
    long v_f = c->block * in + 32, m_f = c->block * c->group + 16;
    float *M = wrn_scratch(num_f * m_f + num_f * v_f / 2 + in);
    if (!M) {
        c->failed = 1;
        return;
    }
    short *V = (short *)(M + num_f * m_f);
    byte *zeros = memset(V + num_f * v_f, 0, in);
    for (long part = first_part, filled = -1; part < last_part; part++) {
        long blk = part / c->num_slices, first = blk * c->block, num = min(c->block, c->units - first);
        long from = part % c->num_slices * slice, to = min(from + slice, N);
        if (blk != filled) transform(c, first, num, zeros, V, v_f);
        filled = blk;
        for (long begin = from; begin < to; begin += c->group) {
            long end = min(begin + c->group, to), ahead = end - begin > NB ? num_f : 1;
            for (int f = 0; f < num_f; f++)
                for (long n = begin; n < end; n += NB) {
                    const short *B = U + (n * num_f + f * NB) * in, *next = B + ahead * NB * in;
                    panel(num, in, V + f * v_f, B, next, rescale + f * N + n, M + f * m_f + (n - begin) * c->block);
                }
            for (long n = begin; n < min(end, out); n += NB)
                turn_back(c, M + (n - begin) * c->block, m_f, first, num, n);
        }
    }
}

/* Convolve x with a border of zeros. `values` receives conv(x) + add, `bytes` the same quantized; both through
 * relu(... + bias) if there is a bias (out).
 *
 * x: (B, H, W, in). kernel: 3 or 1. stride: 1 or 2. U: weights, [n / NB][f][k / 2][n % NB][k % 2]. rescale: [f][n], the
 * value of one unit of the products. n is padded to a multiple of NB. add, values: (B, H', W', out) or NULL; they may be
 * the same memory; of 16 bits each if `halves`, see Result. bytes: of the same shape or NULL, with scale and shift (out).
 * Returns 0, or 1 if memory runs out. */
int wrn_quantized_conv(const byte *x, long B, long H, long W, long in, long out, long kernel, long stride,
                       const short *U, const float *rescale, const void *add, const float *bias, const float *scale,
                       const float *shift, void *values, byte *bytes, int halves, int threads) {
    int points = kernel == 1 ? 1 : stride == 1 ? 6 : 9, num_f = points * points;
    Shape s = {B, H, W, in}, y = {B, (H + stride - 1) / stride, (W + stride - 1) / stride, out};
    long units = points > 1 ? num_tiles(y) : B * y.H * y.W, N = round_up(out, NB);
    long size = num_f * (sizeof(short) * in + sizeof(float) * NB), block = (320 << 10) / size / MR * MR;
    long enough = (long)sizeof(short) * num_f * in * N < NO_CACHE ? 48 : MAX_UNITS;
    block = min(block > enough ? block : enough, MAX_UNITS);
    long even = (units + threads - 1) / threads; /* a few units are divided evenly among the threads */
    if (even < block) block = even > 24 ? even : 24;
    long num_blocks = (units + block - 1) / block;
    if (block > 24 && num_blocks < 4 * threads) num_blocks = round_up(num_blocks, threads);
    block = (units + num_blocks - 1) / num_blocks, num_blocks = (units + block - 1) / block;
    /* and if there are fewer blocks than threads, by channel too */
    long slices = num_blocks < threads ? min((threads + num_blocks - 1) / num_blocks, N / NB) : 1;
    long slice = (N / NB + slices - 1) / slices * NB;
    slices = (N + slice - 1) / slice;
    /* a panel at a time, so that products stay in the second-level cache, unless inputs are too many to be read again */
    long group = (long)sizeof(short) * num_f * in * block > MANY_INPUTS ? slice : NB;
    Conv conv = {x, U, rescale, {add, bias, scale, shift, values, bytes, halves}, s, y, stride, units, N, block, slice,
                 slices, group, points, 0};
    in_parallel(threads, num_blocks * slices, 1, conv_parts, &conv);
    return conv.failed;
}
