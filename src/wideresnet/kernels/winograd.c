/* 3x3 convolutions of stride 1 by Winograd's F(4x4, 3x3), fused with the normalization and activation before them and
 * with the addition and statistics after them: the blocks of a Wide ResNet on a CPU, in training and in inference.
 *
 * Maps are float, channels last: (B, H, W, C), C a multiple of 16. A map is cut into tiles of 4x4 outputs, which see
 * 6x6 inputs. Each tile is transformed into 36 numbers per channel, here called frequencies. For each frequency a
 * matrix product mixes the channels. The products are transformed back. This takes 36 multiplications per input and
 * output channel; the definition takes 144.
 *
 * Tiles are processed in blocks that fit in the second-level cache. The rows of a tile are far apart in memory, in a
 * pattern that hardware prefetchers do not recognize, so the next tile is prefetched explicitly. Results depend on the
 * number of threads only by rounding, and not at all on which thread computed what.
 *
 * Source of the algorithm and its matrices: Lavin & Gray 2015 (arXiv 1509.09308), section 4.3.
 */
#include <stdatomic.h>

#include "pool.h"
#include "winograd.h"

/* ---- weights ----------------------------------------------------------------------------------------------------- */

long wrn_weight_size(long in, long out) { return NF * in * round_up(out, NB); }

typedef struct {
    const float *w;
    float *U;
    long in, K, N, size_f;
    int backwards;
} Weight;

/* Parts of wrn_transform_weight: one input channel and VL output channels at a time. */
static void transform_weights(void *job, long first, long last) {
    const Weight m = *(const Weight *)job;
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
            weight_1d(d, u);
            for (int i = 0; i < 6; i++) rows[i][j] = u[i];
        }
        for (int i = 0; i < 6; i++) {
            vec u[6];
            weight_1d(rows[i], u);
            for (int j = 0; j < 6; j++)
                STORE(m.U + (i * 6 + j) * m.size_f + (n / NB * m.K + k) * NB + n % NB, u[j]);
        }
    }
}

/* Transform weights w (out, 3, 3, in) to U[f][n / NB][k][n % NB], so that a product reads a panel in order. With
 * `backwards`, U is for the gradient with respect to the input: a convolution from `out` to `in` channels whose kernel
 * is rotated by 180 degrees. */
void wrn_transform_weight(const float *w, long in, long out, int backwards, float *U, int threads) {
    long K = backwards ? out : in, N = backwards ? in : out, num = round_up(N, NB) / VL * K;
    Weight weight = {w, U, in, K, N, K * round_up(N, NB), backwards};
    in_parallel(threads, num, grain_of(num, 64, threads), transform_weights, &weight);
}

/* ---- convolution ------------------------------------------------------------------------------------------------- */

/* C (num, NB) = A (num, K) B (K, NB), in strips of MR rows, then of 4, 2 and 1. */
INLINE void strip(long num, long K, const float *A, const float *B, float *C, long ldc) {
    long t = 0;
    for (; t + MR <= num; t += MR) product(MR, 0, K, A + t * K, K, 1, B, C + t * ldc, ldc);
    for (; t + 4 <= num; t += 4) product(4, 0, K, A + t * K, K, 1, B, C + t * ldc, ldc);
    if (t + 2 <= num) product(2, 0, K, A + t * K, K, 1, B, C + t * ldc, ldc), t += 2;
    if (t < num) product(1, 0, K, A + t * K, K, 1, B, C + t * ldc, ldc);
}

/* Sums over some positions of VL channels. In a forward pass: of value - point and of its square. In a backward pass,
 * with a gate: of the gradient and of its product with (input of the gate) - point. */
typedef struct { vec point, first, second; } Sums;

/* The mean of a tile's outputs from its products, for VL channels from c. A sum over outputs needs one transform a row. */
INLINE vec tile_mean(const float *M, long stride_f, Shape s, Place p, long c, const float *add) {
    int height = (int)min(4, s.H - p.top), width = (int)min(4, s.W - p.left);
    vec columns[6], o[4], sum = {0};
    for (int j = 0; j < 6; j++) {
        vec m[6];
        for (int i = 0; i < 6; i++) m[i] = LOAD(M + (i * 6 + j) * stride_f);
        output_1d(m, o);
        columns[j] = o[0];
        for (int i = 1; i < height; i++) columns[j] += o[i];
    }
    output_1d(columns, o);
    for (int j = 0; j < width; j++) sum += o[j];
    for (int i = 0; add && i < height; i++)
        for (int j = 0; j < width; j++) sum += LOAD(add + ((p.image * s.H + p.top + i) * s.W + p.left + j) * s.C + c);
    return sum * (1.f / (height * width));
}

/* The backward pass of an activation: gradients survive where scale input + shift > 0. */
typedef struct { const float *input; vec scale, shift; } Gate;

/* Transform the products of a tile back to its outputs, for VL channels from c; then add, gate and sum them. */
INLINE void output_tile(const float *M, long stride_f, Shape s, Place p, long c, const float *add, Gate gate,
                        Sums *sums, float *y) {
    vec rows[4][6];
    for (int j = 0; j < 6; j++) {
        vec m[6], o[4];
        for (int i = 0; i < 6; i++) m[i] = LOAD(M + (i * 6 + j) * stride_f);
        output_1d(m, o);
        for (int i = 0; i < 4; i++) rows[i][j] = o[i];
    }
    int height = (int)min(4, s.H - p.top), width = (int)min(4, s.W - p.left);
    for (int i = 0; i < height; i++) {
        vec o[4];
        output_1d(rows[i], o);
        long at = ((p.image * s.H + p.top + i) * s.W + p.left) * s.C + c;
        for (int j = 0; j < width; j++, at += s.C) {
            vec value = o[j];
            if (add) {
                value += LOAD(add + at);
                PREFETCH(add, at + 4 * s.C);
            }
            if (gate.input) {
                vec input = LOAD(gate.input + at);
                PREFETCH(gate.input, at + 4 * s.C);
                value = where_positive(input * gate.scale + gate.shift, value);
                sums->first += value;
                sums->second += value * (input - sums->point);
            } else if (sums) {
                vec far = value - sums->point;
                sums->first += far;
                sums->second += far * far;
            }
            STORE(y + at, value);
            PREFETCH_TO_WRITE(y, at + 4 * s.C);
        }
    }
}

/* What the parts of a convolution share: arguments of wrn_conv, and its division into blocks of tiles and slices of the
 * output channels. */
typedef struct {
    const float *x, *a, *b, *U, *add, *gate, *gate_a, *gate_b, *center;
    float *y;
    double *partial;
    Shape s, result;
    long tiles, N, block, slice, num_slices;
    atomic_int failed;
} Conv;

static void conv_part(const Conv *conv, long first, long from, float *V, long v_f, float *M, long m_f, double *part) {
    const float *x = conv->x, *a = conv->a, *b = conv->b, *gate = conv->gate;
    Shape s = conv->s, result = conv->result;
    long in = s.C, out = result.C, slice = conv->slice, size_f = in * conv->N;
    long num = min(conv->block, conv->tiles - first), to = min(from + slice, conv->N);
    Place places[MAX_BLOCK];
    long counts[MAX_BLOCK / SUMMED] = {0}; /* outputs in each group of SUMMED tiles */
    for (long t = 0; t < num; t++) {
        places[t] = place(s, first + t);
        counts[t / SUMMED] += min(4, s.H - places[t].top) * min(4, s.W - places[t].left);
        if (a) input_tile(x, s, first + t, a, b, V + t * in, v_f, 16);
        else input_tile(x, s, first + t, NULL, NULL, V + t * in, v_f, 16);
    }
    for (int f = 0; f < NF; f++)
        for (long n = from; n < to; n += NB)
            strip(num, in, V + f * v_f, conv->U + f * size_f + n * in, M + f * m_f + n - from, slice);
    for (long c = from; c < min(to, out); c += VL) {
        Sums around = {gate ? LOAD(conv->center + c) : (vec){0}, {0}, {0}};
        Gate through = {gate, gate ? LOAD(conv->gate_a + c) : (vec){0}, gate ? LOAD(conv->gate_b + c) : (vec){0}};
        long seen = 0;
        for (long t0 = 0; t0 < num; t0 += SUMMED) { /* float sums of so few numbers keep their precision */
            if (part && !gate) { /* the point is near the mean: see move_sums */
                if (!seen) around.point = tile_mean(M + c - from, m_f, result, places[0], c, conv->add);
                for (int l = 0; seen && l < VL; l++) around.point[l] = (float)(part[c + l] / seen);
            }
            around.first = around.second = (vec){0};
            for (long t = t0; t < min(t0 + SUMMED, num); t++)
                output_tile(M + t * slice + c - from, m_f, result, places[t], c, conv->add, through,
                            part ? &around : NULL, conv->y);
            for (int l = 0; part && l < VL; l++)
                move_sums(gate ? 0 : around.point[l], counts[t0 / SUMMED], around.first[l], around.second[l],
                          part + c + l, part + out + c + l);
            seen += counts[t0 / SUMMED];
        }
    }
}

static void conv_parts(void *job, long first, long last) {
    Conv *conv = job;
    long v_f = conv->block * conv->s.C + 16, m_f = conv->block * conv->slice + 16;
    float *V = wrn_scratch(NF * (v_f + m_f));
    if (!V) conv->failed = 1;
    for (long at = first; V && at < last; at++) {
        long blk = at / conv->num_slices, from = at % conv->num_slices * conv->slice;
        double *part = conv->partial ? conv->partial + blk * 2 * conv->result.C : NULL;
        conv_part(conv, blk * conv->block, from, V, v_f, V + NF * v_f, m_f, part);
    }
}

/* y (B, H, W, out) = conv(relu(a x + b)) + add.
 *
 * a, b: (in), or NULL for no normalization and activation. add: like y, or NULL. With `gate` (like y), y is a gradient
 * on its way through the backward pass of relu(gate_a gate + gate_b): it is zeroed where that was zero, and sums (2,
 * out) are those of y and of y (gate - center). Without, sums, unless NULL, are those of y and of its square. Returns
 * 0, or 1 if memory runs out. */
int wrn_conv(const float *x, long B, long H, long W, long in, long out, const float *a, const float *b, const float *U,
             const float *add, const float *gate, const float *gate_a, const float *gate_b, const float *center,
             float *y, double *sums, int threads) {
    Shape s = {B, H, W, in};
    long tiles = num_tiles(s), panels = round_up(out, NB) / NB;
    long block = block_tiles(in + panels * NB, NF * in * panels * NB, tiles);
    long even = round_up((tiles + threads - 1) / threads, 4); /* a few tiles are divided evenly among the threads */
    if (even < block) block = even > 24 ? even : min(24, round_up(tiles, MR));
    long num_blocks = (tiles + block - 1) / block;
    /* and if there are fewer blocks than threads, by channel too */
    long slices = num_blocks < threads ? min((threads + num_blocks - 1) / num_blocks, panels) : 1;
    long slice = (panels + slices - 1) / slices * NB;
    slices = (panels * NB + slice - 1) / slice;
    double *partial = sums ? calloc(num_blocks * 2 * out, sizeof(double)) : NULL;
    if (sums && !partial) return 1;
    Conv conv = {x, a, b, U, add, gate, gate_a, gate_b, center, y, partial, s, {B, H, W, out}, tiles, panels * NB,
                 block, slice, slices, 0};
    in_parallel(threads, num_blocks * slices, 1, conv_parts, &conv);
    if (sums && !conv.failed) {
        memset(sums, 0, sizeof(double) * 2 * out);
        for (long blk = 0; blk < num_blocks; blk++)
            for (long c = 0; c < 2 * out; c++) sums[c] += partial[blk * 2 * out + c];
    }
    free(partial);
    return conv.failed;
}
