/* Common to the convolutions of winograd.c and to the gradient of their weights. */
#include "tiles.h"
#include "transforms.h"

/* ---- matrix product: C (mr, NB) = or += A (mr, K) B (K, NB); rows of A are `lda` apart, columns `step` ----------- */

INLINE void product(int mr, int add, long K, const float *A, long lda, long step, const float *B, float *C, long ldc) {
    vec sum[MR][NV];
    for (int r = 0; r < mr; r++)
        for (int v = 0; v < NV; v++) sum[r][v] = add ? LOAD(C + r * ldc + v * VL) : (vec){0};
    for (long k = 0; k < K; k++) {
        vec b[NV];
        for (int v = 0; v < NV; v++) b[v] = LOAD(B + k * NB + v * VL);
        for (int r = 0; r < mr; r++) {
            vec a = all(A[r * lda + k * step]);
            for (int v = 0; v < NV; v++) sum[r][v] += a * b[v];
        }
    }
    for (int r = 0; r < mr; r++)
        for (int v = 0; v < NV; v++) STORE(C + r * ldc + v * VL, sum[r][v]);
}

/* ---- tiles ------------------------------------------------------------------------------------------------------- */

/* Tiles per block. Both scratch maps (36 numbers per tile and channel) fit in 320 KiB, well inside most second-level
 * caches. But a block has at least 48 tiles, so that reading the weights again for each block costs little next to the
 * products. If the weights come from memory each time (see NO_CACHE), blocks are as large as allowed. */
enum { MAX_BLOCK = 192, SUMMED = 48 };
INLINE long block_tiles(long channels, long num_weights, long tiles) {
    long fit = (320 << 10) / (4 * NF * channels), enough = 4 * num_weights < NO_CACHE ? 48 : MAX_BLOCK;
    long block = round_up(min(fit > enough ? fit : enough, MAX_BLOCK - MR), MR);
    return min(block, round_up(tiles, MR));
}

/* Transform the inputs of a tile: 6x6 with a border of zeros, first relu(a x + b) if a is given.
 * Frequency f of channel c goes to V[f stride_f + c / 16 stride_c + c % 16]. */
INLINE void input_tile(const float *x, Shape s, long tile, const float *a, const float *b, float *V, long stride_f,
                       long stride_c) {
    Place p = place(s, tile);
    long origin = ((p.image * s.H + p.top - 1) * s.W + p.left - 1) * s.C; /* may lie before the map */
    int i0 = p.top == 0, j0 = p.left == 0, i1 = (int)min(6, s.H - p.top + 1), j1 = (int)min(6, s.W - p.left + 1);
    for (long c = 0; c < s.C; c += VL) {
        vec rows[6][6];
        vec scale = a ? LOAD(a + c) : (vec){0}, shift = a ? LOAD(b + c) : (vec){0};
        for (int j = 0; j < 6; j++) {
            vec d[6];
            for (int i = 0; i < 6; i++) {
                if (i < i0 || i >= i1 || j < j0 || j >= j1) {
                    d[i] = (vec){0};
                } else {
                    d[i] = LOAD(x + origin + (i * s.W + j) * s.C + c);
                    if (j > 1) PREFETCH(x, origin + (i * s.W + j + 4) * s.C + c);
                    if (a) d[i] = relu(d[i] * scale + shift);
                }
            }
            vec v[6];
            input_1d(d, v);
            for (int i = 0; i < 6; i++) rows[i][j] = v[i];
        }
        for (int i = 0; i < 6; i++) {
            vec v[6];
            input_1d(rows[i], v);
            for (int j = 0; j < 6; j++) STORE(V + (i * 6 + j) * stride_f + c / 16 * stride_c + c % 16, v[j]);
        }
    }
}
