/* The gradient of a convolution's weights, by Winograd's algorithm if they are 3x3: see winograd.c.
 *
 * The inputs and the gradients of the outputs of a tile are transformed. For each frequency a matrix product sums, over
 * tiles, what each input channel contributes to each output channel; frequencies with the same weights share a sum. The
 * sums are transformed back. For 1x1 a tile is one position.
 */
#include <stdatomic.h>

#include "pool.h"
#include "winograd.h"

/* Transform the gradients of a tile's 4x4 outputs, for channels first..last, into panels of NB channels. */
INLINE void gradient_tile(Kind kind, const float *g, Shape s, Place p, long first, long last, float *D, long stride_f,
                          long stride_c) {
    int points = num_points(kind);
    long origin = ((p.image * s.H + p.top) * s.W + p.left) * s.C;
    int i1 = (int)min(4, s.H - p.top), j1 = (int)min(4, s.W - p.left);
    for (long c = first; c < last; c += VL) {
        vec rows[9][4];
        for (int j = 0; j < 4; j++) {
            vec d[4], v[9];
            for (int i = 0; i < 4; i++) {
                d[i] = c < s.C && i < i1 && j < j1 ? LOAD(g + origin + (i * s.W + j) * s.C + c) : (vec){0};
                PREFETCH(g, origin + (i * s.W + j + 4) * s.C + c);
            }
            if (kind == PLAIN) gradient_1d(d, v);
            else strided_gradient_1d(d, v);
            for (int i = 0; i < points; i++) rows[i][j] = v[i];
        }
        for (int i = 0; i < points; i++) {
            vec v[9];
            if (kind == PLAIN) gradient_1d(rows[i], v);
            else strided_gradient_1d(rows[i], v);
            for (int j = 0; j < points; j++)
                STORE(D + (i * points + j) * stride_f + (c - first) / NB * stride_c + (c - first) % NB, v[j]);
        }
    }
}

/* What the parts of the gradient share: arguments of wrn_conv_weight_gradient, `num_parts` shares of the tiles and
 * slices of panels of the output channels. */
typedef struct {
    const float *x, *g, *a, *b;
    float *dw, *sums;
    Kind kind;
    Shape s, result;
    long stride, tiles, share, num_parts, panels, slice, num_slices, block;
    atomic_int failed;
} Gradient;

/* Floats of V and D, with distances between frequencies that are no power of two. */
INLINE long scratch_of_part(Kind kind, long in, long slice, long block) {
    return num_points(kind) * num_points(kind) * (block * (in + slice * NB) + 32);
}

/* The same as transforming 3x3 tiles, for positions of a 1x1 convolution: the inputs, activated, to V and gradients to
 * D, in the same layout. */
static void copy_positions(const Gradient *m, long first, long num, long first_channel, long last_channel, float *V,
                           float *D) {
    const float *a = m->a, *b = m->b;
    Shape s = m->s, result = m->result;
    long column = first % result.W, row = first / result.W % result.H, image = first / result.W / result.H;
    for (long t = 0; t < num; t++) {
        const float *x = m->x + ((image * s.H + row * m->stride) * s.W + column * m->stride) * s.C;
        for (long c = 0; c < s.C; c += VL)
            STORE(V + c / 16 * 16 * m->block + t * 16 + c % 16,
                  a ? relu(LOAD(x + c) * LOAD(a + c) + LOAD(b + c)) : LOAD(x + c));
        const float *g = m->g + (first + t) * result.C;
        for (long c = first_channel; c < last_channel; c += VL)
            STORE(D + (c - first_channel) / NB * NB * m->block + t * NB + (c - first_channel) % NB,
                  c < result.C ? LOAD(g + c) : (vec){0});
        if (++column == result.W) column = 0, row++;
        if (row == result.H) row = 0, image++;
    }
}

INLINE void sum_part(Kind kind, const Gradient *m, long part, long first_panel, float *V) {
    const float *x = m->x, *a = m->a, *b = m->b;
    Shape s = m->s;
    int points = num_points(kind);
    long in = s.C, block = m->block, size_f = in * m->panels * NB;
    long v_f = block * in + 16, d_f = block * m->slice * NB + 16;
    float *D = V + points * points * v_f, *sums = m->sums + part * num_weights(kind) * size_f;
    long last_panel = min(first_panel + m->slice, m->panels), end = min((part + 1) * m->share, m->tiles);
    for (long first = part * m->share; first < end; first += block) {
        long num = min(block, end - first);
        if (kind == POINTWISE) copy_positions(m, first, num, first_panel * NB, last_panel * NB, V, D);
        for (long t = 0; kind != POINTWISE && t < num; t++) {
            Place p = place(m->result, first + t);
            if (a) input_tile(kind, x, s, p, a, b, V + t * 16, v_f, 16 * block);
            else input_tile(kind, x, s, p, NULL, NULL, V + t * 16, v_f, 16 * block);
            gradient_tile(kind, m->g, m->result, p, first_panel * NB, last_panel * NB, D + t * NB, d_f, block * NB);
        }
        for (int f = 0; f < points * points; f++) {
            int add = first > part * m->share || f / points > 5 || f % points > 5; /* or a frequency of the same weights */
            for (long n = first_panel; n < last_panel; n++)
                for (long k = 0; k < in; k += 16) {
                    const float *A = V + f * v_f + k * block;
                    const float *panel = D + f * d_f + (n - first_panel) * block * NB;
                    float *sum = sums + weight_of(kind, f) * size_f + (n * in + k) * NB;
                    for (int r = 0; r + MR <= 16; r += MR) product(MR, NV, add, num, A + r, 1, 16, panel, sum + r * NB, NB);
                    int r = 16 - 16 % MR;
                    product(16 % MR, NV, add, num, A + r, 1, 16, panel, sum + r * NB, NB);
                }
        }
    }
}

static void sum_parts(void *job, long first, long last) {
    Gradient *m = job;
    long in = m->s.C, used = m->num_parts * num_weights(m->kind) * in * m->panels * NB;
    long own = scratch_of_part(m->kind, in, m->slice, m->block);
    float *V = wrn_scratch(0) == m->sums ? m->sums + used : wrn_scratch(own);
    if (!V) m->failed = 1;
    for (long at = first; V && at < last; at++) {
        long part = at / m->num_slices, panel = at % m->num_slices * m->slice;
        if (m->kind == PLAIN) sum_part(PLAIN, m, part, panel, V);
        else if (m->kind == STRIDED) sum_part(STRIDED, m, part, panel, V);
        else sum_part(POINTWISE, m, part, panel, V);
    }
}

/* Add up the parts, at `at` in each of them. */
INLINE vec total(const Gradient *m, long size, long at) {
    vec u = LOAD(m->sums + at);
    for (long part = 1; part < m->num_parts; part++) u += LOAD(m->sums + part * size + at);
    return u;
}

/* Add up the parts and transform back, for 16 input channels and VL output channels at a time. They are collected in a
 * small block before they are written, since their places in dw are far apart. */
INLINE void transform_part(Kind kind, const Gradient *m, long first, long last) {
    int points = kind == POINTWISE ? 1 : 6, side = kind == POINTWISE ? 1 : 3, taps = side * side;
    long in = m->s.C, size_f = in * m->panels * NB, size = points * points * size_f;
    for (long at = first; at < last; at++) {
        long n = at / (in / 16) * VL, k0 = at % (in / 16) * 16;
        float turned[VL][9][16];
        for (long k = k0; k < k0 + 16; k++) {
            long from = (n / NB * in + k) * NB + n % NB;
            vec rows[3][6];
            for (int j = 0; j < points; j++) {
                vec u[6], w[3];
                for (int i = 0; i < points; i++) u[i] = total(m, size, (i * points + j) * size_f + from);
                if (kind == PLAIN) weight_gradient_1d(u, w);
                else if (kind == STRIDED) strided_weight_gradient_1d(u, w);
                else w[0] = u[0];
                for (int i = 0; i < side; i++) rows[i][j] = w[i];
            }
            for (int i = 0; i < side; i++) {
                vec w[3];
                if (kind == PLAIN) weight_gradient_1d(rows[i], w);
                else if (kind == STRIDED) strided_weight_gradient_1d(rows[i], w);
                else w[0] = rows[0][0];
                for (int j = 0; j < side; j++)
                    for (int l = 0; l < VL; l++) turned[l][i * side + j][k - k0] = w[j][l];
            }
        }
        for (int l = 0; l < VL; l++)
            for (int tap = 0; tap < taps; tap++)
                memcpy(m->dw + ((n + l) * taps + tap) * in + k0, turned[l][tap], sizeof turned[l][tap]);
    }
}

static void transform_gradients(void *job, long first, long last) {
    const Gradient *m = job;
    if (m->kind == PLAIN) transform_part(PLAIN, m, first, last);
    else if (m->kind == STRIDED) transform_part(STRIDED, m, first, last);
    else transform_part(POINTWISE, m, first, last);
}

/* dw (out, kernel, kernel, in), from the convolution's input x (B, H, W, in), normalized and activated if a is given,
 * and the gradient g of its output. Threads share the tiles, each part with separate sums, and share the output channels
 * too if there would be too many sums. The sums of the parts are added in order. Returns 0, or 1 if memory runs out. */
int wrn_conv_weight_gradient(const float *x, const float *g, long B, long H, long W, long in, long out, int kernel,
                             int stride, const float *a, const float *b, float *dw, int threads) {
    Kind kind = kind_of(kernel, stride);
    Shape s = {B, H, W, in}, result = {B, (H + stride - 1) / stride, (W + stride - 1) / stride, out};
    long tiles = kind == POINTWISE ? B * result.H * result.W : num_tiles(result);
    long panels = round_up(out, NB) / NB, size = num_weights(kind) * in * panels * NB;
    /* one part if its sums take 48 MiB or more (640 x 640 channels: 59): adding up two costs more than sharing saves */
    long parts = min(4 * size < 1 << 20 ? 4 * threads : threads, 1 + (48 << 20) / (4 * size));
    parts = min(parts, round_up(tiles, 8) / 8);
    long share = (tiles + parts - 1) / parts;
    parts = (tiles + share - 1) / share; /* so that no part is without tiles, whose sums nobody would set */
    long slices = min((threads + parts - 1) / parts, panels), slice = (panels + slices - 1) / slices;
    slices = (panels + slice - 1) / slice;
    long block = min(2 * block_tiles(kind, in + slice * NB, size, tiles), round_up(share, 2));
    /* the caller's own V and D follow */
    float *sums = wrn_scratch(parts * size + scratch_of_part(kind, in, slice, block));
    if (!sums) return 1;
    Gradient job = {x, g, a, b, dw, sums, kind, s, result, stride, tiles, share, parts, panels, slice, slices, block, 0};
    in_parallel(threads, parts * slices, 1, sum_parts, &job);
    if (job.failed) return 1;
    in_parallel(threads, out / VL * (in / 16), grain_of(out / VL * (in / 16), 4, threads), transform_gradients, &job);
    return 0;
}
