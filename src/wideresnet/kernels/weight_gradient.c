/* The gradient of a 3x3 convolution's weights by Winograd's algorithm: see winograd.c.
 *
 * The inputs and the gradients of the outputs of a tile are transformed. For each frequency a matrix product sums, over
 * tiles, what each input channel contributes to each output channel. The sums are transformed back.
 */
#include <stdatomic.h>

#include "pool.h"
#include "winograd.h"

/* Transform the gradients of a tile's 4x4 outputs, for channels first..last, into panels of NB channels. */
INLINE void gradient_tile(const float *g, Shape s, long tile, long first, long last, float *D, long stride_f,
                          long stride_c) {
    Place p = place(s, tile);
    long origin = ((p.image * s.H + p.top) * s.W + p.left) * s.C;
    int i1 = (int)min(4, s.H - p.top), j1 = (int)min(4, s.W - p.left);
    for (long c = first; c < last; c += VL) {
        vec rows[6][4];
        for (int j = 0; j < 4; j++) {
            vec d[4], v[6];
            for (int i = 0; i < 4; i++) {
                d[i] = c < s.C && i < i1 && j < j1 ? LOAD(g + origin + (i * s.W + j) * s.C + c) : (vec){0};
                PREFETCH(g, origin + (i * s.W + j + 4) * s.C + c);
            }
            gradient_1d(d, v);
            for (int i = 0; i < 6; i++) rows[i][j] = v[i];
        }
        for (int i = 0; i < 6; i++) {
            vec v[6];
            gradient_1d(rows[i], v);
            for (int j = 0; j < 6; j++)
                STORE(D + (i * 6 + j) * stride_f + (c - first) / NB * stride_c + (c - first) % NB, v[j]);
        }
    }
}

/* What the parts of the gradient share: arguments of wrn_conv_weight_gradient, `num_parts` shares of the tiles and
 * slices of panels of the output channels. */
typedef struct {
    const float *x, *g, *a, *b;
    float *dw, *sums;
    Shape s, result;
    long tiles, share, num_parts, panels, slice, num_slices, block;
    atomic_int failed;
} Gradient;

/* Floats of V and D, with distances between frequencies that are no power of two. */
INLINE long scratch_of_part(long in, long slice, long block) { return NF * (block * (in + slice * NB) + 32); }

static void sum_part(const Gradient *m, long part, long first_panel, float *V) {
    const float *x = m->x, *a = m->a, *b = m->b;
    Shape s = m->s;
    long in = s.C, block = m->block, size_f = in * m->panels * NB;
    long v_f = block * in + 16, d_f = block * m->slice * NB + 16;
    float *D = V + NF * v_f, *sums = m->sums + part * NF * size_f;
    long last_panel = min(first_panel + m->slice, m->panels), end = min((part + 1) * m->share, m->tiles);
    for (long first = part * m->share; first < end; first += block) {
        long num = min(block, end - first);
        for (long t = 0; t < num; t++) {
            if (a) input_tile(PLAIN, x, s, place(s, first + t), a, b, V + t * 16, v_f, 16 * block);
            else input_tile(PLAIN, x, s, place(s, first + t), NULL, NULL, V + t * 16, v_f, 16 * block);
            gradient_tile(m->g, m->result, first + t, first_panel * NB, last_panel * NB, D + t * NB, d_f, block * NB);
        }
        int add = first > part * m->share;
        for (int f = 0; f < NF; f++)
            for (long n = first_panel; n < last_panel; n++)
                for (long k = 0; k < in; k += 16) {
                    const float *A = V + f * v_f + k * block;
                    const float *panel = D + f * d_f + (n - first_panel) * block * NB;
                    float *sum = sums + f * size_f + (n * in + k) * NB;
                    for (int r = 0; r + MR <= 16; r += MR) product(MR, add, num, A + r, 1, 16, panel, sum + r * NB, NB);
                    int r = 16 - 16 % MR;
                    product(16 % MR, add, num, A + r, 1, 16, panel, sum + r * NB, NB);
                }
    }
}

static void sum_parts(void *job, long first, long last) {
    Gradient *m = job;
    long in = m->s.C, used = m->num_parts * NF * in * m->panels * NB;
    int is_caller = m->sums == wrn_scratch(0); /* whose V and D follow the sums */
    float *V = is_caller ? m->sums + used : wrn_scratch(scratch_of_part(in, m->slice, m->block));
    if (!V) m->failed = 1;
    for (long at = first; V && at < last; at++)
        sum_part(m, at / m->num_slices, at % m->num_slices * m->slice, V);
}

/* Add up the parts and transform back, for one input channel and VL output channels at a time. */
static void transform_gradients(void *job, long first, long last) {
    const Gradient *m = job;
    long in = m->s.C, size_f = in * m->panels * NB;
    for (long at = first; at < last; at++) {
        long n = at / in * VL, k = at % in;
        vec rows[3][6];
        for (int j = 0; j < 6; j++) {
            vec u[6], w[3];
            for (int i = 0; i < 6; i++) {
                const float *sum = m->sums + (i * 6 + j) * size_f + (n / NB * in + k) * NB + n % NB;
                u[i] = LOAD(sum);
                for (long part = 1; part < m->num_parts; part++) u[i] += LOAD(sum + part * NF * size_f);
            }
            weight_gradient_1d(u, w);
            for (int i = 0; i < 3; i++) rows[i][j] = w[i];
        }
        for (int i = 0; i < 3; i++) {
            vec w[3];
            weight_gradient_1d(rows[i], w);
            for (int j = 0; j < 3; j++)
                for (int l = 0; l < VL; l++) m->dw[((n + l) * 9 + i * 3 + j) * in + k] = w[j][l];
        }
    }
}

/* dw (out, 3, 3, in), from the convolution's input x, normalized and activated if a is given, and the gradient g of its
 * output. Threads share the tiles, each part with separate sums, and share the output channels too if there would be
 * too many sums. The sums of the parts are added in order. Returns 0, or 1 if memory runs out. */
int wrn_conv_weight_gradient(const float *x, const float *g, long B, long H, long W, long in, long out, const float *a,
                             const float *b, float *dw, int threads) {
    Shape s = {B, H, W, in};
    long tiles = num_tiles(s), panels = round_up(out, NB) / NB, size = NF * in * panels * NB;
    /* one part if its sums take 48 MiB or more (640 x 640 channels: 59): adding up two costs more than sharing saves */
    long parts = min(4 * size < 1 << 20 ? 4 * threads : threads, 1 + (48 << 20) / (4 * size));
    parts = min(parts, round_up(tiles, 8) / 8);
    long share = (tiles + parts - 1) / parts;
    parts = (tiles + share - 1) / share; /* so that no part is without tiles, whose sums nobody would set */
    long slices = min((threads + parts - 1) / parts, panels), slice = (panels + slices - 1) / slices;
    slices = (panels + slice - 1) / slice;
    long block = min(2 * block_tiles(PLAIN, in + slice * NB, size, tiles), round_up(share, 2));
    float *sums = wrn_scratch(parts * size + scratch_of_part(in, slice, block)); /* the caller's own V and D follow */
    if (!sums) return 1;
    Gradient job = {x, g, a, b, dw, sums, s, {B, H, W, out}, tiles, share, parts, panels, slice, slices, block, 0};
    in_parallel(threads, parts * slices, 1, sum_parts, &job);
    if (job.failed) return 1;
    in_parallel(threads, out / VL * in, grain_of(out / VL * in, 64, threads), transform_gradients, &job);
    return 0;
}
