/* The backward pass of a convolution in one sweep: the gradients of its input and of its weights.
 *
 * The gradient of the input is a convolution of the output's gradient, by tiles: see winograd.c. It is linear in the
 * weights. The gradient of the weights is the transpose of that linear map, applied to the activated input: tiles of the
 * input are transformed by the transpose of what turns products into outputs. For each frequency a matrix product sums,
 * over tiles, what each output channel contributes to each input channel. So both gradients start from the same
 * transformed tiles while these are in the cache, and each map is read from memory once. Frequencies with the same
 * weights share a sum; the sums are transformed back. For 1x1 a tile is one position.
 */
#include <stdatomic.h>

#include "outputs.h"
#include "pool.h"

/* Transform a tile of the activated input, at the places of output_tile's results, for a panel of channels from n. */
INLINE void activation_tile(Kind kind, const float *x, Shape s, Place p, const float *a, const float *b, long n,
                            float *D, long stride_f) {
    int points = num_points(kind), size = kind == SPREAD ? 8 : 4;
    long top = p.top * (size / 4), left = p.left * (size / 4);
    int height = (int)min(size, s.H - top), width = (int)min(size, s.W - left), wide = (int)min(NB, s.C - n);
    for (int c = 0; c < NB; c += VL) {
        vec rows[9][8];
        vec scale = a && c < wide ? LOAD(a + n + c) : (vec){0}, shift = a && c < wide ? LOAD(b + n + c) : (vec){0};
        for (int j = 0; j < size; j++) {
            vec d[8], v[9];
            for (int i = 0; i < size; i++) {
                long at = ((p.image * s.H + top + i) * s.W + left + j) * s.C + n + c;
                d[i] = i < height && j < width && c < wide ? LOAD(x + at) : (vec){0};
                PREFETCH(x, at + size * s.C);
                if (a && i < height && j < width) d[i] = relu(d[i] * scale + shift);
            }
            if (kind == PLAIN) gradient_1d(d, v);
            else spread_gradient_1d(d, v);
            for (int i = 0; i < points; i++) rows[i][j] = v[i];
        }
        for (int i = 0; i < points; i++) {
            vec v[9];
            if (kind == PLAIN) gradient_1d(rows[i], v);
            else spread_gradient_1d(rows[i], v);
            for (int j = 0; j < points; j++) STORE(D + (i * points + j) * stride_f + c, v[j]);
        }
    }
}

/* What the parts share: arguments of wrn_conv_backward, `num_parts` shares of the tiles, and slices of panels of the
 * input channels. */
typedef struct {
    const float *x, *g, *a, *b, *U;
    float *dw, *sums;
    double *partial;
    Kind kind;
    Shape s, result;
    Outputs to;
    int is_large; /* whether no cache keeps a map */
    long stride, tiles, share, num_parts, panels, slice, num_slices, block;
    atomic_int failed;
} Backward;

/* Floats of V, D and M, with distances between frequencies that are no power of two. */
INLINE long scratch_of_part(Kind kind, long out, long block) {
    return num_points(kind) * num_points(kind) * (block * (out + 2 * NB) + 48);
}

/* The same as transforming a tile of 3x3, for `num` positions of a 1x1 convolution from number `first`. */
static void copy_gradients(const Backward *m, long first, long num, float *V) {
    for (long t = 0; t < num; t++)
        for (long k = 0; k < m->result.C; k += VL)
            STORE(V + k / 16 * 16 * m->block + t * 16 + k % 16, LOAD(m->g + (first + t) * m->result.C + k));
}

static void copy_activations(const Backward *m, long first, long num, long n, float *D) {
    Shape s = m->s, result = m->result;
    long column = first % result.W, row = first / result.W % result.H, image = first / result.W / result.H;
    for (long t = 0; t < num; t++) {
        const float *x = m->x + ((image * s.H + row * m->stride) * s.W + column * m->stride) * s.C + n;
        for (long c = 0; c < NB; c += VL) {
            vec v = c < s.C - n ? LOAD(x + c) : (vec){0};
            if (m->a && c < s.C - n) v = relu(v * LOAD(m->a + n + c) + LOAD(m->b + n + c));
            STORE(D + t * NB + c, v);
        }
        if (++column == result.W) column = 0, row++;
        if (row == result.H) row = 0, image++;
    }
}

/* For nv vectors of columns. */
INLINE void rows_of_sums(int nv, int add, long num, long K, const float *V, long panel, const float *D, float *sums) {
    for (long k = 0; k < K; k += 16, V += panel, sums += 16 * NB) {
        for (int r = 0; r + MR <= 16; r += MR) product(MR, nv, add, num, V + r, 1, 16, 256, D, sums + r * NB);
        product(16 % MR, nv, add, num, V + 16 - 16 % MR, 1, 16, 256, D, sums + (16 - 16 % MR) * NB);
    }
}

/* sums (K, NB) = V^T D, or += if `add`, over `num` tiles; or only the left half, as multiply. */
static __attribute__((noinline)) void correlate(int add, long num, long K, long N, const float *V, long panel,
                                                const float *D, float *sums) {
    if (N >= NB) rows_of_sums(NV, add, num, K, V, panel, D, sums);
    else rows_of_sums(NV / 2, add, num, K, V, panel, D, sums);
}

/* Ask for share f of num_f of what a block of tiles needs next, while it multiplies for a panel of channels from n: x of
 * the next panel, or of the next block, and as much of that block's g; and the results, if they come from memory. */
static __attribute__((noinline)) void fetch_next(Kind kind, const Backward *m, long first, long num, long end, long n,
                                                 long n0, long n1, int f, int num_f) {
    Shape s = m->s, result = m->result;
    int scale = kind == SPREAD ? 2 : 1, is_last = n + NB >= n1;
    long next = is_last ? n0 : n + NB, panels = (n1 - n0 + NB - 1) / NB, share = round_up(result.C / panels, 16);
    long from = (n - n0) / NB * share, to = min(from + share, result.C);
    for (long t = first + f * num / num_f; t < first + (f + 1) * num / num_f; t++) {
        Place p = place(result, t), later = place(result, min(t + num, m->tiles - 1)), of_x = is_last ? later : p;
        if (m->U && m->is_large) fetch_tile(m->to.y, s, scale, p, 4 * scale, n, min(n + NB, s.C));
        if (t + num < end) fetch_tile(m->g, result, 1, later, 4, from, to);
        if (t + num < end || !is_last) fetch_tile(m->x, s, scale, of_x, 4 * scale, next, min(next + NB, s.C));
    }
}

INLINE void sweep_part(Kind kind, const Backward *m, long part, long first_panel, float *V) {
    Shape s = m->s, result = m->result;
    int points = num_points(kind), num_f = points * points;
    long K = result.C, block = m->block, size_f = K * m->panels * NB, v_f = block * K + 16, d_f = block * NB + 16;
    float *D = V + num_f * v_f, *M = D + num_f * d_f, *sums = m->sums + part * num_weights(kind) * size_f;
    long begin = part * m->share, end = min(begin + m->share, m->tiles);
    long last = min((first_panel + m->slice) * NB, s.C);
    for (long first = begin; first < end; first += block) {
        long num = min(block, end - first), blk = part * ((m->share + block - 1) / block) + (first - begin) / block;
        if (kind == POINTWISE) copy_gradients(m, first, num, V);
        for (long t = 0; kind != POINTWISE && t < num; t++)
            input_tile(kind, m->g, result, place(result, first + t), NULL, NULL, V + t * 16, v_f, 16 * block);
        for (long n = first_panel * NB; n < last; n += NB) {
            if (kind == POINTWISE) copy_activations(m, first, num, n, D);
            for (long t = 0; kind != POINTWISE && t < num; t++)
                activation_tile(kind, m->x, s, place(result, first + t), m->a, m->b, n, D + t * NB, d_f);
            for (int f = 0; f < num_f; f++) {
                long at = weight_of(kind, f) * size_f + n * K;
                int add = first > begin || f / points > 5 || f % points > 5; /* or a frequency of the same weights */
                correlate(add, num, K, s.C - n, V + f * v_f, 16 * block, D + f * d_f, sums + at);
                if (m->U) multiply(num, K, s.C - n, V + f * v_f, 16 * block, m->U + at, M + f * d_f);
                if (kind != POINTWISE) fetch_next(kind, m, first, num, end, n, first_panel * NB, last, f, num_f);
            }
            double *of_block = m->partial ? m->partial + blk * 2 * s.C : NULL;
            if (m->U && kind == POINTWISE) output_positions(&m->to, M, num, first, n, of_block);
            else if (m->U) output_panel(kind, &m->to, M, d_f, first, num, n, of_block);
        }
    }
}

static void sweep_parts(void *job, long first, long last) {
    Backward *m = job;
    long used = m->num_parts * num_weights(m->kind) * m->result.C * m->panels * NB;
    long own = scratch_of_part(m->kind, m->result.C, m->block);
    float *V = wrn_scratch(0) == m->sums ? m->sums + used : wrn_scratch(own); /* the caller's begins with the sums */
    if (!V) m->failed = 1;
    for (long at = first; V && at < last; at++) {
        long part = at / m->num_slices, panel = at % m->num_slices * m->slice;
        if (m->kind == PLAIN) sweep_part(PLAIN, m, part, panel, V);
        else if (m->kind == SPREAD) sweep_part(SPREAD, m, part, panel, V);
        else sweep_part(POINTWISE, m, part, panel, V);
    }
}

/* Add up the parts, at `at` in each of them. */
INLINE vec total(const Backward *m, long size, long at) {
    vec u = LOAD(m->sums + at);
    for (long part = 1; part < m->num_parts; part++) u += LOAD(m->sums + part * size + at);
    return u;
}

/* Add up the parts and transform back, for one output channel and a panel of input channels at a time. The weights of
 * the sweep are rotated by 180 degrees. */
INLINE void transform_part(Kind kind, const Backward *m, long first, long last) {
    int points = kind == POINTWISE ? 1 : 6, side = kind == POINTWISE ? 1 : 3, taps = side * side;
    long K = m->result.C, in = m->s.C, size_f = K * m->panels * NB, size = points * points * size_f;
    for (long at = first; at < last; at++) {
        long n = at / K * NB, k = at % K;
        for (long c = 0; c < NB && n + c < in; c += VL) {
            vec rows[3][6];
            for (int j = 0; j < points; j++) {
                vec u[6], w[3];
                for (int i = 0; i < points; i++) u[i] = total(m, size, (i * points + j) * size_f + at * NB + c);
                if (kind == PLAIN) weight_gradient_1d(u, w);
                else if (kind == SPREAD) strided_weight_gradient_1d(u, w);
                else w[0] = u[0];
                for (int i = 0; i < side; i++) rows[i][j] = w[i];
            }
            for (int i = 0; i < side; i++) {
                vec w[3];
                if (kind == PLAIN) weight_gradient_1d(rows[i], w);
                else if (kind == SPREAD) strided_weight_gradient_1d(rows[i], w);
                else w[0] = rows[0][0];
                for (int j = 0; j < side; j++) STORE(m->dw + (k * taps + taps - 1 - i * side - j) * in + n + c, w[j]);
            }
        }
    }
}

static void transform_sums(void *job, long first, long last) {
    const Backward *m = job;
    if (m->kind == PLAIN) transform_part(PLAIN, m, first, last);
    else if (m->kind == SPREAD) transform_part(SPREAD, m, first, last);
    else transform_part(POINTWISE, m, first, last);
}

/* From the gradient g (B, H', W', out) of y = conv(relu(a x + b)): dw (out, kernel, kernel, in). With U, the weights
 * transformed backwards, also dx (B, H, W, in): the gradient of the activation plus `add`, zeroed where the activation
 * is zero, and sums (2, in): of dx and of dx (x - center). Without a and b there is no activation and sums is NULL.
 *
 * add: like dx, or for 3x3 and stride 2 (B, H', W', in): it is added to the positions that a 1x1 convolution of stride 2
 * sees. U must be NULL for 1x1 and stride 2.
 *
 * Threads share the tiles, each part with separate sums for dw, and share the input channels too if there would be too
 * many sums. The sums of the parts are added in order. Returns 0, or 1 if memory runs out. */
int wrn_conv_backward(const float *x, const float *g, long B, long H, long W, long in, long out, int kernel, int stride,
                      const float *a, const float *b, const float *center, const float *U, const float *add, float *dx,
                      double *sums, float *dw, int threads) {
    Kind kind = kernel == 1 ? POINTWISE : stride == 1 ? PLAIN : SPREAD;
    Shape s = {B, H, W, in}, result = {B, (H + stride - 1) / stride, (W + stride - 1) / stride, out};
    long tiles = kind == POINTWISE ? B * result.H * result.W : num_tiles(result);
    long panels = round_up(in, NB) / NB, size = num_weights(kind) * out * panels * NB;
    /* one part if its sums take 48 MiB or more (640 x 640 channels: 59): adding up two costs more than sharing saves */
    long parts = min(4 * size < 1 << 20 ? 4 * threads : threads, 1 + (48 << 20) / (4 * size));
    parts = min(parts, round_up(tiles, 8) / 8);
    long share = (tiles + parts - 1) / parts;
    parts = (tiles + share - 1) / share; /* so that no part is without tiles, whose sums nobody would set */
    long slices = min((threads + parts - 1) / parts, panels), slice = (panels + slices - 1) / slices;
    slices = (panels + slice - 1) / slice;
    /* larger blocks for more channels: sums and weights are read again for each block */
    long few = kind == SPREAD ? 24 : 48, block = 4 * size < 2 << 20 ? few : 4 * size < NO_CACHE ? 2 * few : 128;
    block = min(block, round_up(share, 2));
    double *partial = sums ? calloc(parts * ((share + block - 1) / block) * 2 * in, sizeof(double)) : NULL;
    /* the caller's own V, D and M follow */
    float *weights = wrn_scratch(parts * size + scratch_of_part(kind, out, block));
    if (!weights || (sums && !partial)) {
        free(partial);
        return 1;
    }
    Outputs to = {add, a ? x : NULL, a, b, center, dx, s, result};
    Backward job = {x, g, a, b, U, dw, weights, partial, kind, s, result, to, is_large(s), stride, tiles, share, parts,
                    panels, slice, slices, block, 0};
    in_parallel(threads, parts * slices, 1, sweep_parts, &job);
    if (sums && !job.failed) add_sums(partial, parts * ((share + block - 1) / block), 2 * in, sums);
    free(partial);
    if (job.failed) return 1;
    in_parallel(threads, out * panels, grain_of(out * panels, 16, threads), transform_sums, &job);
    return 0;
}
