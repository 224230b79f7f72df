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
#include "winograd.h"

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

/* C (num, nv VL) = A (num, K) B (K, nv VL), in strips of MR rows, then of 4, 2 and 1. */
INLINE void strip(int nv, long num, long K, const float *A, const float *B, float *C, long ldc) {
    long t = 0;
    for (; t + MR <= num; t += MR) product(MR, nv, 0, K, A + t * K, K, 1, B, C + t * ldc, ldc);
    for (; t + 4 <= num; t += 4) product(4, nv, 0, K, A + t * K, K, 1, B, C + t * ldc, ldc);
    if (t + 2 <= num) product(2, nv, 0, K, A + t * K, K, 1, B, C + t * ldc, ldc), t += 2;
    if (t < num) product(1, nv, 0, K, A + t * K, K, 1, B, C + t * ldc, ldc);
}

/* C (num, N) = A (num, K) B (K, N), panel by panel; half of the last one may be padding, which is left out. */
static __attribute__((noinline)) void multiply(long num, long K, long N, const float *A, const float *B, float *C,
                                               long ldc) {
    long n = 0;
    for (; n + NB <= N; n += NB) strip(NV, num, K, A, B + n * K, C + n, ldc);
    if (n < N) strip(NV / 2, num, K, A, B + n * K, C + n, ldc);
}

/* Sums over some positions of VL channels. In a forward pass: of value - point and of its square. In a backward pass,
 * with a gate: of the gradient and of its product with (input of the gate) - point. */
typedef struct { vec point, first, second; } Sums;

/* The mean of a tile's outputs from its products, for VL channels from c. A sum over outputs needs one transform a row. */
INLINE vec tile_mean(Kind kind, const float *M, long stride_f, Shape s, Place p, long c, const float *add) {
    int points = num_points(kind), height = (int)min(4, s.H - p.top), width = (int)min(4, s.W - p.left);
    vec columns[9], o[4], sum = {0};
    for (int j = 0; j < points; j++) {
        vec m[9];
        for (int i = 0; i < points; i++) m[i] = LOAD(M + (i * points + j) * stride_f);
        if (kind == PLAIN) output_1d(m, o);
        else strided_output_1d(m, o);
        columns[j] = o[0];
        for (int i = 1; i < height; i++) columns[j] += o[i];
    }
    if (kind == PLAIN) output_1d(columns, o);
    else strided_output_1d(columns, o);
    for (int j = 0; j < width; j++) sum += o[j];
    for (int i = 0; add && i < height; i++)
        for (int j = 0; j < width; j++) sum += LOAD(add + ((p.image * s.H + p.top + i) * s.W + p.left + j) * s.C + c);
    return sum * (1.f / (height * width));
}

/* The backward pass of an activation: gradients survive where scale input + shift > 0. Or, without input, a forward pass
 * if `rectifies`: relu(result + shift). */
typedef struct { const float *input; vec scale, shift; int rectifies; } Gate;

/* Finish an output: gate it, sum it and write it, for VL channels at y[at]; the next one in this place is `next` off. */
INLINE void finish(vec value, long at, long next, Gate gate, Sums *sums, float *y) {
    if (gate.input) {
        vec input = LOAD(gate.input + at);
        PREFETCH(gate.input, at + next);
        value = where_positive(input * gate.scale + gate.shift, value);
        sums->first += value;
        sums->second += value * (input - sums->point);
    } else if (sums) {
        vec far = value - sums->point;
        sums->first += far;
        sums->second += far * far;
    } else if (gate.rectifies) {
        value = relu(value + gate.shift);
    }
    STORE(y + at, value);
    PREFETCH_TO_WRITE(y, at + next);
}

/* Transform the products of a tile back to its outputs, for VL channels from c; then add, gate and sum them. The tile is
 * at p in the result, or for SPREAD in the input, whose shape `add` has then. */
INLINE void output_tile(Kind kind, const float *M, long stride_f, Shape s, Place p, long c, const float *add, Gate gate,
                        Sums *sums, float *y) {
    int points = num_points(kind), size = kind == SPREAD ? 8 : 4;
    vec rows[8][9];
    for (int j = 0; j < points; j++) {
        vec m[9], o[8];
        for (int i = 0; i < points; i++) m[i] = LOAD(M + (i * points + j) * stride_f);
        if (kind == PLAIN) output_1d(m, o);
        else if (kind == STRIDED) strided_output_1d(m, o);
        else spread_output_1d(m, o);
        for (int i = 0; i < size; i++) rows[i][j] = o[i];
    }
    long top = kind == SPREAD ? 2 * p.top : p.top, left = kind == SPREAD ? 2 * p.left : p.left;
    int height = (int)min(size, s.H - top), width = (int)min(size, s.W - left);
    for (int i = 0; i < height; i++) {
        vec o[8];
        if (kind == PLAIN) output_1d(rows[i], o);
        else if (kind == STRIDED) strided_output_1d(rows[i], o);
        else spread_output_1d(rows[i], o);
        long at = ((p.image * s.H + top + i) * s.W + left) * s.C + c;
        for (int j = 0; j < width; j++, at += s.C) {
            if (add && kind != SPREAD) {
                o[j] += LOAD(add + at);
                PREFETCH(add, at + 4 * s.C);
            } else if (add && i % 2 == 0 && j % 2 == 0) {
                long H = (s.H + 1) / 2, W = (s.W + 1) / 2;
                o[j] += LOAD(add + ((p.image * H + p.top + i / 2) * W + p.left + j / 2) * s.C + c);
            }
            finish(o[j], at, size * s.C, gate, sums, y);
        }
    }
}

/* What the parts of a convolution share: arguments of wrn_conv, and its division into blocks of tiles and slices of the
 * output channels. Tiles are of 4x4 positions of the smaller map; for 1x1 a tile is one position of the result. */
typedef struct {
    const float *x, *a, *b, *U, *add, *gate, *gate_a, *gate_b, *center;
    float *y;
    double *partial;
    Kind kind;
    Shape s, result, smaller;
    long stride, tiles, N, block, slice, num_slices;
    atomic_int failed;
} Conv;

/* Start the sums of VL channels from c. */
INLINE Sums around(const Conv *conv, long c) {
    return (Sums){conv->gate ? LOAD(conv->center + c) : (vec){0}, {0}, {0}};
}

INLINE Gate through(const Conv *conv, long c) {
    const float *gate = conv->gate, *shift = conv->gate_b;
    return (Gate){gate, gate ? LOAD(conv->gate_a + c) : (vec){0}, shift ? LOAD(shift + c) : (vec){0}, !gate && shift};
}

/* Add sums over `num` outputs to those of a block, (2, out). */
INLINE void keep_sums(const Conv *conv, Sums sums, long num, long c, double *part) {
    for (int l = 0; l < VL; l++)
        move_sums(conv->gate ? 0 : sums.point[l], num, sums.first[l], sums.second[l], part + c + l,
                  part + conv->result.C + c + l);
}

INLINE void conv_part(Kind kind, const Conv *conv, long first, long from, float *V, long v_f, float *M, long m_f,
                      double *part) {
    const float *x = conv->x, *a = conv->a, *b = conv->b, *gate = conv->gate;
    Shape s = conv->s, result = conv->result, smaller = conv->smaller;
    long in = s.C, out = result.C, slice = conv->slice, size_f = in * conv->N;
    long num = min(conv->block, conv->tiles - first), to = min(from + slice, out);
    int num_f = num_points(kind) * num_points(kind), scale = kind == SPREAD ? 2 : 1, group = SUMMED / scale / scale;
    Place places[MAX_BLOCK];
    long counts[MAX_BLOCK / (SUMMED / 4)] = {0}; /* outputs in each group of tiles that is summed in float */
    for (long t = 0; t < num; t++) {
        Place p = places[t] = place(smaller, first + t);
        counts[t / group] +=
            min(4 * scale, result.H - scale * p.top) * min(4 * scale, result.W - scale * p.left);
        if (a) input_tile(kind, x, s, p, a, b, V + t * in, v_f, 16);
        else input_tile(kind, x, s, p, NULL, NULL, V + t * in, v_f, 16);
    }
    for (int f = 0; f < num_f; f++)
        multiply(num, in, to - from, V + f * v_f, conv->U + weight_of(kind, f) * size_f + from * in, M + f * m_f,
                 slice);
    for (long c = from; c < to; c += VL) {
        Sums sums = around(conv, c);
        Gate gated = through(conv, c);
        long seen = 0;
        for (long t0 = 0; t0 < num; t0 += group) { /* float sums of so few numbers keep their precision */
            if (part && !gate) { /* the point is near the mean: see move_sums */
                if (!seen) sums.point = tile_mean(kind, M + c - from, m_f, result, places[0], c, conv->add);
                for (int l = 0; seen && l < VL; l++) sums.point[l] = (float)(part[c + l] / seen);
            }
            sums.first = sums.second = (vec){0};
            for (long t = t0; t < min(t0 + group, num); t++)
                output_tile(kind, M + t * slice + c - from, m_f, result, places[t], c, conv->add, gated,
                            part ? &sums : NULL, conv->y);
            if (part) keep_sums(conv, sums, counts[t0 / group], c, part);
            seen += counts[t0 / group];
        }
    }
}

/* Finish `wide` vectors of channels from c of `num` positions: of M, and from number `first` of the result. */
INLINE void output_positions(int wide, const Conv *conv, const float *M, long num, long first, long c, double *part) {
    const float *add = conv->add, *gate = conv->gate;
    long C = conv->result.C, slice = conv->slice, few = min(16, num);
    Sums sums[4];
    Gate gated[4];
    for (int v = 0; v < wide; v++) {
        long n = c + v * VL;
        sums[v] = around(conv, n);
        gated[v] = through(conv, n);
        for (long t = 0; part && !gate && t < few; t++) {
            sums[v].point += LOAD(M + t * slice + v * VL) * (1.f / few);
            if (add) sums[v].point += LOAD(add + (first + t) * C + n) * (1.f / few);
        }
    }
    for (long t = 0; t < num; t++)
        for (int v = 0; v < wide; v++) {
            long at = (first + t) * C + c + v * VL;
            vec value = LOAD(M + t * slice + v * VL);
            if (add) value += LOAD(add + at);
            finish(value, at, C, gated[v], part ? &sums[v] : NULL, conv->y);
        }
    for (int v = 0; part && v < wide; v++) keep_sums(conv, sums[v], num, c + v * VL, part);
}

/* Like conv_part for 1x1 convolutions. */
static void position_part(const Conv *conv, long first, long from, float *V, float *M, double *part) {
    const float *x = conv->x, *a = conv->a, *b = conv->b;
    Shape s = conv->s, result = conv->result;
    long in = s.C, stride = conv->stride, num = min(conv->block, conv->tiles - first);
    long to = min(from + conv->slice, result.C), c = from;
    long column = first % result.W, row = first / result.W % result.H, image = first / result.W / result.H;
    if (stride == 1 && !a) V = (float *)x + first * in; /* only read */
    else
        for (long t = 0; t < num; t++) {
            const float *at = x + ((image * s.H + row * stride) * s.W + column * stride) * in;
            for (long k = 0; k < in; k += VL)
                STORE(V + t * in + k, a ? relu(LOAD(at + k) * LOAD(a + k) + LOAD(b + k)) : LOAD(at + k));
            if (++column == result.W) column = 0, row++;
            if (row == result.H) row = 0, image++;
        }
    multiply(num, in, to - from, V, conv->U + from * in, M, conv->slice);
    for (; c + 4 * VL <= to; c += 4 * VL) output_positions(4, conv, M + c - from, num, first, c, part);
    for (; c < to; c += VL) output_positions(1, conv, M + c - from, num, first, c, part);
}

static void conv_parts(void *job, long first, long last) {
    Conv *conv = job;
    long v_f = conv->block * conv->s.C + 16, m_f = conv->block * conv->slice + 16;
    long num_f = num_points(conv->kind) * num_points(conv->kind);
    float *V = wrn_scratch(num_f * (v_f + m_f)), *M = V + num_f * v_f;
    if (!V) conv->failed = 1;
    for (long at = first; V && at < last; at++) {
        long blk = at / conv->num_slices, from = at % conv->num_slices * conv->slice, tile = blk * conv->block;
        double *part = conv->partial ? conv->partial + blk * 2 * conv->result.C : NULL;
        if (conv->kind == PLAIN) conv_part(PLAIN, conv, tile, from, V, v_f, M, m_f, part);
        else if (conv->kind == STRIDED) conv_part(STRIDED, conv, tile, from, V, v_f, M, m_f, part);
        else if (conv->kind == SPREAD) conv_part(SPREAD, conv, tile, from, V, v_f, M, m_f, part);
        else position_part(conv, tile, from, V, M, part);
    }
}

/* y (B, H', W', out) = conv(relu(a x + b)) + add, for a 3x3 or 1x1 convolution of stride 1 or 2; H' = ceil(H / stride).
 *
 * a, b: (in), or NULL for no normalization and activation. add: like y, or NULL. With `gate` (like y), y is a gradient
 * on its way through the backward pass of relu(gate_a gate + gate_b): it is zeroed where that was zero, and sums (2,
 * out) are those of y and of y (gate - center). Without, sums, unless NULL, are those of y and of its square. With gate_b
 * (out) alone, without gate and sums, y is relu(y + gate_b): a normalization that was folded into U, and its activation.
 *
 * With `spread`, for 3x3 and stride 2: the gradient with respect to the input. x is then (B, H', W', in), y (B, H, W,
 * out), and add (B, H', W', out): it is added to the positions of y that a 1x1 convolution of stride 2 sees.
 * Returns 0, or 1 if memory runs out. */
int wrn_conv(const float *x, long B, long H, long W, long in, long out, int kernel, int stride, int spread,
             const float *a, const float *b, const float *U, const float *add, const float *gate, const float *gate_a,
             const float *gate_b, const float *center, float *y, double *sums, int threads) {
    Kind kind = spread ? SPREAD : kind_of(kernel, stride);
    Shape larger = {B, H, W, spread ? out : in};
    Shape smaller = {B, (H + stride - 1) / stride, (W + stride - 1) / stride, spread ? in : out};
    long tiles = kind == POINTWISE ? B * smaller.H * smaller.W : num_tiles(smaller), panels = round_up(out, NB) / NB;
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
    Conv conv = {x, a, b, U, add, gate, gate_a, gate_b, center, y, partial, kind, spread ? smaller : larger,
                 spread ? larger : smaller, smaller, stride, tiles, panels * NB, block, slice, slices, 0};
    in_parallel(threads, num_blocks * slices, 1, conv_parts, &conv);
    if (sums && !conv.failed) {
        memset(sums, 0, sizeof(double) * 2 * out);
        for (long blk = 0; blk < num_blocks; blk++)
            for (long c = 0; c < 2 * out; c++) sums[c] += partial[blk * 2 * out + c];
    }
    free(partial);
    return conv.failed;
}
