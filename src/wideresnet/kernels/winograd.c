/* 3x3 and 1x1 convolutions of stride 1 and 2, fused with the normalization and activation before them and with the
 * addition and statistics after them: the blocks of a Wide ResNet on a CPU, in training and in inference.
 *
 * Maps are float, channels last: (B, H, W, C), C a multiple of 16. A 3x3 convolution of stride 1 is computed by
 * Winograd's F(4x4, 3x3). The map is cut into tiles of 4x4 outputs, which see 6x6 inputs. Each tile is transformed into
 * 36 numbers per channel, here called frequencies. For each frequency a matrix product mixes the channels. The products
 * are transformed back. This takes 36 multiplications per input and output channel; the definition takes 144.
 *
 * With stride 2, 4x4 outputs see 9x9 inputs and have 81 frequencies, again instead of 144: see transforms.h. A 1x1
 * convolution is one matrix product of positions by channels.
 *
 * Tiles are processed in blocks that fit in the second-level cache. The rows of a tile are far apart in memory, in a
 * pattern that hardware prefetchers do not recognize, so the next tile is prefetched explicitly. Results depend on the
 * number of threads only by rounding, and not at all on which thread computed what.
 *
 * Source of the algorithm and its matrices: Lavin & Gray 2015 (arXiv 1509.09308), section 4.3.
 */
#include <stdatomic.h>

#include "convs.h"
#include "pool.h"
#include "outputs.h"

/* ---- weights ----------------------------------------------------------------------------------------------------- */

/* Floats of transformed weights: those of a 3x3 convolution of either stride are 36 matrices. */
long wrn_weight_size(int kernel, long in, long out) { return num_weights(kind_of(kernel, 1)) * in * round_up(out, NB); }

typedef struct {
    const float *w;
    float *U;
    long in, K, N, size_f;
    int backwards;
    Kind kind;
} Weight;

/* Parts of wrn_transform_weight: one input channel and VL output channels at a time. */
INLINE void transform_part(Kind kind, const Weight m, long first, long last) {
    for (long at = first; at < last; at++) {
        long n = at / m.K * VL, k = at % m.K;
        vec rows[6][3];
        for (int j = 0; j < 3; j++) {
            vec d[3] = {0}, u[6];
            for (int i = 0; i < 3; i++) {
                int tap = i * 3 + j;
                if (n >= m.N) break;
                if (m.backwards) d[i] = LOAD(m.w + (k * 9 + 8 - tap) * m.in + n);
                else
                    for (int l = 0; l < VL; l++) d[i][l] = m.w[((n + l) * 9 + tap) * m.in + k];
            }
            if (kind == PLAIN) weight_1d(d, u);
            else strided_weight_1d(d, u);
            for (int i = 0; i < 6; i++) rows[i][j] = u[i];
        }
        for (int i = 0; i < 6; i++) {
            vec u[6];
            if (kind == PLAIN) weight_1d(rows[i], u);
            else strided_weight_1d(rows[i], u);
            for (int j = 0; j < 6; j++)
                STORE(m.U + (i * 6 + j) * m.size_f + (n / NB * m.K + k) * NB + n % NB, u[j]);
        }
    }
}

/* The same for 1x1 convolutions, whose weights are only brought into order. */
INLINE void pack_part(const Weight m, long first, long last) {
    for (long at = first; at < last; at++) {
        long n = at / m.K * VL, k = at % m.K;
        vec u = {0};
        if (n < m.N && m.backwards) u = LOAD(m.w + k * m.in + n);
        for (int l = 0; n < m.N && !m.backwards && l < VL; l++) u[l] = m.w[(n + l) * m.in + k];
        STORE(m.U + (n / NB * m.K + k) * NB + n % NB, u);
    }
}

static void transform_weights(void *job, long first, long last) {
    const Weight m = *(const Weight *)job;
    if (m.kind == PLAIN) transform_part(PLAIN, m, first, last);
    else if (m.kind == STRIDED) transform_part(STRIDED, m, first, last);
    else pack_part(m, first, last);
}

/* Transform weights w (out, kernel, kernel, in) to U[f][n / NB][k][n % NB], so that a product reads a panel in order.
 * With `backwards`, U is for the gradient with respect to the input: a convolution from `out` to `in` channels whose
 * kernel is rotated by 180 degrees. */
void wrn_transform_weight(const float *w, int kernel, int stride, long in, long out, int backwards, float *U,
                          int threads) {
    long K = backwards ? out : in, N = backwards ? in : out, num = round_up(N, NB) / VL * K;
    Weight weight = {w, U, in, K, N, K * round_up(N, NB), backwards, kind_of(kernel, stride)};
    in_parallel(threads, num, grain_of(num, 64, threads), transform_weights, &weight);
}

/* ---- convolution ------------------------------------------------------------------------------------------------- */

/* For nv vectors of columns: in strips of MR rows, then of 4, 2 and 1. */
INLINE void strip(int nv, long num, long K, const float *A, long next, const float *B, float *C) {
    long t = 0;
    for (; t + MR <= num; t += MR) product(MR, nv, 0, K, A + t * 16, 16, 1, next, B, C + t * NB);
    for (; t + 4 <= num; t += 4) product(4, nv, 0, K, A + t * 16, 16, 1, next, B, C + t * NB);
    if (t + 2 <= num) product(2, nv, 0, K, A + t * 16, 16, 1, next, B, C + t * NB), t += 2;
    if (t < num) product(1, nv, 0, K, A + t * 16, 16, 1, next, B, C + t * NB);
}

void multiply(long num, long K, long N, const float *A, long next, const float *B, float *C) {
    if (N >= NB) strip(NV, num, K, A, next, B, C);
    else strip(NV / 2, num, K, A, next, B, C);
}

/* What the parts of a convolution share: arguments of wrn_conv, and its division into blocks of tiles and slices of the
 * output channels. Tiles are of 4x4 positions of the smaller map; for 1x1 a tile is one position of the result. */
typedef struct {
    const float *x, *a, *b, *U;
    double *partial;
    Kind kind;
    Shape s;
    Outputs to;
    long stride, tiles, N, block, slice, num_slices;
    atomic_int failed;
} Conv;

/* Ask for what tiles first..end - 1 of a block need next, while it multiplies: what they are added to, x of as many tiles
 * of the next block, if `more`; and the results, if they come from memory. */
static __attribute__((noinline)) void fetch_next(Kind kind, const Conv *conv, long first, long end, long from, long to,
                                                 int more) {
    const Outputs *out = &conv->to;
    int step = kind == STRIDED ? 2 : 1;
    for (long t = first; t < end; t++) {
        Place p = place(out->smaller, t), later = place(out->smaller, min(t + conv->block, conv->tiles - 1));
        if (out->add) fetch_tile(out->add, out->result, 1, p, 4, from, to);
        if (is_large(out->result)) fetch_tile(out->y, out->result, 1, p, 4, from, to);
        if (more) fetch_tile(conv->x, conv->s, step, later, 4 * step, 0, conv->s.C);
    }
}

INLINE void conv_part(Kind kind, const Conv *conv, long first, long from, float *V, long v_f, float *M, long m_f,
                      double *part, int more) {
    const float *x = conv->x, *a = conv->a, *b = conv->b;
    Shape s = conv->s;
    long in = s.C, size_f = in * conv->N, panel = 16 * conv->block;
    long num = min(conv->block, conv->tiles - first), last = min(from + conv->slice, conv->to.result.C);
    int num_f = num_points(kind) * num_points(kind);
    for (long t = 0; t < num; t++) {
        Place p = place(conv->to.smaller, first + t);
        if (a) input_tile(kind, x, s, p, a, b, V + t * 16, v_f, panel);
        else input_tile(kind, x, s, p, NULL, NULL, V + t * 16, v_f, panel);
    }
    for (int f = 0; f < num_f; f++) {
        for (long n = from; n < last; n += NB)
            multiply(num, in, last - n, V + f * v_f, panel, conv->U + weight_of(kind, f) * size_f + n * in,
                     M + ((n - from) / NB * num_f + f) * m_f);
        fetch_next(kind, conv, first + f * num / num_f, first + (f + 1) * num / num_f, from, last, more);
    }
    for (long n = from; n < last; n += NB)
        output_panel(kind, &conv->to, M + (n - from) / NB * num_f * m_f, m_f, first, num, n, part);
}

/* Like conv_part for 1x1 convolutions. */
static void position_part(const Conv *conv, long first, long from, float *V, float *M, double *part) {
    const float *x = conv->x, *a = conv->a, *b = conv->b;
    Shape s = conv->s, result = conv->to.result;
    long in = s.C, stride = conv->stride, panel = 16 * conv->block, num = min(conv->block, conv->tiles - first);
    long last = min(from + conv->slice, result.C);
    long column = first % result.W, row = first / result.W % result.H, image = first / result.W / result.H;
    for (long t = 0; t < num; t++) {
        const float *at = x + ((image * s.H + row * stride) * s.W + column * stride) * in;
        for (long k = 0; k < in; k += VL)
            STORE(V + k / 16 * panel + t * 16 + k % 16,
                  a ? relu(LOAD(at + k) * LOAD(a + k) + LOAD(b + k)) : LOAD(at + k));
        if (++column == result.W) column = 0, row++;
        if (row == result.H) row = 0, image++;
    }
    for (long n = from; n < last; n += NB) {
        multiply(num, in, last - n, V, panel, conv->U + n * in, M);
        output_positions(&conv->to, M, num, first, n, part);
    }
}

static void conv_parts(void *job, long first, long last) {
    Conv *conv = job;
    long v_f = conv->block * conv->s.C + 16, m_f = conv->block * NB + 16, panels = conv->slice / NB;
    long num_f = num_points(conv->kind) * num_points(conv->kind);
    float *V = wrn_scratch(num_f * (v_f + panels * m_f)), *M = V + num_f * v_f;
    if (!V) conv->failed = 1;
    for (long at = first; V && at < last; at++) {
        long blk = at / conv->num_slices, from = at % conv->num_slices * conv->slice, tile = blk * conv->block;
        int more = at + 1 < last && (at + 1) / conv->num_slices > blk;
        double *part = conv->partial ? conv->partial + blk * 2 * conv->to.result.C : NULL;
        if (conv->kind == PLAIN) conv_part(PLAIN, conv, tile, from, V, v_f, M, m_f, part, more);
        else if (conv->kind == STRIDED) conv_part(STRIDED, conv, tile, from, V, v_f, M, m_f, part, more);
        else position_part(conv, tile, from, V, M, part);
    }
}

/* y (B, H', W', out) = conv(relu(a x + b)) + add, for a 3x3 or 1x1 convolution of stride 1 or 2; H' = ceil(H / stride).
 *
 * a, b: (in), or NULL for no normalization and activation. add: like y, or NULL. sums (2, out), unless NULL, are those
 * of y and of its square. With bias (out), and without sums, y is relu(y + bias): a normalization that was folded into U,
 * and its activation. Returns 0, or 1 if memory runs out. */
int wrn_conv(const float *x, long B, long H, long W, long in, long out, int kernel, int stride, const float *a,
             const float *b, const float *U, const float *add, const float *bias, float *y, double *sums, int threads) {
    Kind kind = kind_of(kernel, stride);
    Shape s = {B, H, W, in}, result = {B, (H + stride - 1) / stride, (W + stride - 1) / stride, out};
    long tiles = kind == POINTWISE ? B * result.H * result.W : num_tiles(result), panels = round_up(out, NB) / NB;
    long block = block_tiles(kind, in + panels * NB, num_weights(kind) * in * panels * NB, tiles);
    long even = round_up((tiles + threads - 1) / threads, 4); /* a few tiles are divided evenly among the threads */
    if (even < block) block = even > 24 ? even : min(24, round_up(tiles, MR));
    long num_blocks = (tiles + block - 1) / block;
    /* and if there are fewer blocks than threads, by channel too */
    long slices = num_blocks < threads ? min((threads + num_blocks - 1) / num_blocks, panels) : 1;
    long slice = (panels + slices - 1) / slices * NB;
    slices = (panels * NB + slice - 1) / slice;
    double *partial = sums ? calloc(num_blocks * 2 * out, sizeof(double)) : NULL;
    if (sums && !partial) return 1;
    Outputs to = {add, NULL, NULL, bias, NULL, y, result, result};
    Conv conv = {x, a, b, U, partial, kind, s, to, stride, tiles, panels * NB, block, slice, slices, 0};
    /* of many blocks a thread takes some in a row, so that it knows which comes next */
    in_parallel(threads, num_blocks * slices, min(4, 1 + num_blocks / (16L * threads)), conv_parts, &conv);
    if (sums && !conv.failed) add_sums(partial, num_blocks, 2 * out, sums);
    free(partial);
    return conv.failed;
}
