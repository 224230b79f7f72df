/* Common to the convolutions of winograd.c and to the gradient of their weights. */
#include "tiles.h"
#include "transforms.h"

/* ---- matrix product: C (mr, nv VL) = or += A (mr, K) B (K, nv VL) ------------------------------------------------ */

/* Rows of A are `lda` apart, columns `step`; 16 columns are a panel, and panels are `next` apart. Rows of B, the left part
 * of another panel, and of C are NB apart. */
INLINE void product(int mr, int nv, int add, long K, const float *A, long lda, long step, long next, const float *B,
                    float *C) {
    vec sum[MR][NV];
    for (int r = 0; r < mr; r++)
        for (int v = 0; v < nv; v++) sum[r][v] = (vec){0};
    for (; K > 0; K -= 16, A += next)
        for (long k = 0; k < min(16, K); k++, B += NB) {
            vec b[NV];
            for (int v = 0; v < nv; v++) b[v] = LOAD(B + v * VL);
            for (int r = 0; r < mr; r++) {
                vec a = all(A[r * lda + k * step]);
                for (int v = 0; v < nv; v++) sum[r][v] += a * b[v];
            }
        }
    for (int r = 0; r < mr; r++)
        for (int v = 0; v < nv; v++) /* added at the end: a sum of few sums of few products rounds less */
            STORE(C + r * NB + v * VL, sum[r][v] + (add ? LOAD(C + r * NB + v * VL) : (vec){0}));
}

/* C (num, NB) = A (num, K) B (K, NB), or its left half if N, the number of columns that are no padding, is less. A is in
 * panels of 16 columns that are `next` apart. */
__attribute__((visibility("hidden"))) void multiply(long num, long K, long N, const float *A, long next, const float *B,
                                                    float *C);

/* ---- kinds of convolution ---------------------------------------------------------------------------------------- */

/* PLAIN: 3x3 with stride 1. STRIDED: 3x3 with stride 2. SPREAD: the gradient of STRIDED with respect to its input, which
 * is a convolution that doubles the resolution. POINTWISE: 1x1. A kind is a constant wherever it is in an inner loop. */
typedef enum { PLAIN, STRIDED, SPREAD, POINTWISE } Kind;

/* Numbers that a row of a tile is transformed to; their square is the number of frequencies. */
INLINE int num_points(Kind kind) { return kind == POINTWISE ? 1 : kind == PLAIN ? 6 : 9; }

/* Different weights per pair of channels, and which of them belong to frequency f: see transforms.h. */
INLINE int num_weights(Kind kind) { return kind == POINTWISE ? 1 : NF; }
INLINE int weight_of(Kind kind, int f) { return kind < STRIDED ? f : (int)(min(f / 9, 5) * 6 + min(f % 9, 5)); }

INLINE Kind kind_of(int kernel, int stride) { return kernel == 1 ? POINTWISE : stride == 1 ? PLAIN : STRIDED; }

/* ---- tiles ------------------------------------------------------------------------------------------------------- */

/* Tiles per block. Both scratch maps (36 or 81 numbers per tile and channel) fit in 320 KiB, well inside most
 * second-level caches. But a block has at least 48 tiles, or 24 with the 81 numbers, which share weights, so that
 * reading the weights again for each block costs little next to the products. If the weights come from memory each time
 * (see NO_CACHE), blocks are as large as allowed. */
enum { MAX_BLOCK = 192 };
INLINE long block_tiles(Kind kind, long channels, long size, long tiles) {
    long num_f = num_points(kind) * num_points(kind), few = num_f > NF ? 24 : 48;
    long fit = (320 << 10) / (4 * num_f * channels), enough = 4 * size < NO_CACHE ? few : MAX_BLOCK;
    long block = round_up(min(fit > enough ? fit : enough, MAX_BLOCK - MR), MR);
    return min(block, round_up(tiles, MR));
}

/* Transform the inputs of a tile: 6x6, 9x9 or 5x5 with a border of zeros, first relu(a x + b) if a is given. The tile
 * is at p in the result, or for SPREAD in the input, which is the smaller map.
 * Frequency f of channel c goes to V[f stride_f + c / 16 stride_c + c % 16]. */
INLINE void input_tile(Kind kind, const float *x, Shape s, Place p, const float *a, const float *b, float *V,
                       long stride_f, long stride_c) {
    int points = num_points(kind), seen = kind == SPREAD ? 5 : points, border = kind != SPREAD;
    long step = kind == STRIDED ? 2 : 1, top = step * p.top - border, left = step * p.left - border;
    long origin = ((p.image * s.H + top) * s.W + left) * s.C; /* may lie before the map */
    int i0 = top < 0, j0 = left < 0, i1 = (int)min(seen, s.H - top), j1 = (int)min(seen, s.W - left);
    for (long c = 0; c < s.C; c += VL) {
        vec rows[9][9];
        vec scale = a ? LOAD(a + c) : (vec){0}, shift = a ? LOAD(b + c) : (vec){0};
        for (int j = 0; j < seen; j++) {
            vec d[9], v[9];
            for (int i = 0; i < seen; i++) {
                if (i < i0 || i >= i1 || j < j0 || j >= j1) {
                    d[i] = (vec){0};
                } else {
                    d[i] = LOAD(x + origin + (i * s.W + j) * s.C + c);
                    if (j >= seen - 4 * step) PREFETCH(x, origin + (i * s.W + j + 4 * step) * s.C + c);
                    if (a) d[i] = relu(d[i] * scale + shift);
                }
            }
            if (kind == PLAIN) input_1d(d, v);
            else if (kind == STRIDED) strided_input_1d(d, v);
            else spread_input_1d(d, v);
            for (int i = 0; i < points; i++) rows[i][j] = v[i];
        }
        for (int i = 0; i < points; i++) {
            vec v[9];
            if (kind == PLAIN) input_1d(rows[i], v);
            else if (kind == STRIDED) strided_input_1d(rows[i], v);
            else spread_input_1d(rows[i], v);
            for (int j = 0; j < points; j++) STORE(V + (i * points + j) * stride_f + c / 16 * stride_c + c % 16, v[j]);
        }
    }
}
