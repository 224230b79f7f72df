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
static long block_tiles(long channels, long num_weights, long tiles) {
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

/* ---- weights ----------------------------------------------------------------------------------------------------- */

long wrn_weight_size(long in, long out) { return NF * in * round_up(out, NB); }

/* Transform weights w (out, 3, 3, in) to U[f][n / NB][k][n % NB], so that a product reads a panel in order. With
 * `backwards`, U is for the gradient with respect to the input: a convolution from `out` to `in` channels whose kernel
 * is rotated by 180 degrees. */
void wrn_transform_weight(const float *w, long in, long out, int backwards, float *U, int threads) {
    long K = backwards ? out : in, N = backwards ? in : out, size_f = K * round_up(N, NB);
#pragma omp parallel for num_threads(threads) collapse(2)
    for (long n = 0; n < round_up(N, NB); n += VL)
        for (long k = 0; k < K; k++) {
            vec rows[6][3];
            for (int j = 0; j < 3; j++) {
                vec d[3] = {0}, u[6];
                for (int i = 0; i < 3; i++) {
                    int tap = i * 3 + j;
                    if (n >= N) break;
                    if (backwards) d[i] = LOAD(w + (k * 9 + 8 - tap) * in + n);
                    else
                        for (int l = 0; l < VL; l++) d[i][l] = w[((n + l) * 9 + tap) * in + k];
                }
                weight_1d(d, u);
                for (int i = 0; i < 6; i++) rows[i][j] = u[i];
            }
            for (int i = 0; i < 6; i++) {
                vec u[6];
                weight_1d(rows[i], u);
                for (int j = 0; j < 6; j++)
                    STORE(U + (i * 6 + j) * size_f + (n / NB * K + k) * NB + n % NB, u[j]);
            }
        }
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
    long tiles = num_tiles(s), panels = round_up(out, NB) / NB, size_f = in * panels * NB;
    long block = block_tiles(in + panels * NB, NF * size_f, tiles);
    long even = round_up((tiles + threads - 1) / threads, 4); /* a few tiles are divided evenly among the threads */
    if (even < block) block = even > 24 ? even : min(24, round_up(tiles, MR));
    long num_blocks = (tiles + block - 1) / block;
    /* and if there are fewer blocks than threads, by channel too */
    long slices = num_blocks < threads ? min((threads + num_blocks - 1) / num_blocks, panels) : 1;
    long slice = (panels + slices - 1) / slices * NB, v_f = block * in + 16, m_f = block * slice + 16;
    double *partial = sums ? calloc(num_blocks * 2 * out, sizeof(double)) : NULL;
    if (sums && !partial) return 1;
    int failed = 0;
#pragma omp parallel for num_threads(threads) schedule(dynamic) collapse(2) reduction(| : failed)
    for (long blk = 0; blk < num_blocks; blk++)
        for (long from = 0; from < panels * NB; from += slice) {
            float *V = wrn_scratch(NF * (v_f + m_f));
            if (!V) {
                failed = 1;
                continue;
            }
            float *M = V + NF * v_f;
            long first = blk * block, num = min(block, tiles - first), to = min(from + slice, panels * NB);
            Place places[MAX_BLOCK];
            long counts[MAX_BLOCK / SUMMED] = {0}; /* outputs in each group of SUMMED tiles */
            for (long t = 0; t < num; t++) {
                places[t] = place(s, first + t);
                counts[t / SUMMED] += min(4, H - places[t].top) * min(4, W - places[t].left);
                if (a) input_tile(x, s, first + t, a, b, V + t * in, v_f, 16);
                else input_tile(x, s, first + t, NULL, NULL, V + t * in, v_f, 16);
            }
            for (int f = 0; f < NF; f++)
                for (long n = from; n < to; n += NB)
                    strip(num, in, V + f * v_f, U + f * size_f + n * in, M + f * m_f + n - from, slice);
            double *part = sums ? partial + blk * 2 * out : NULL;
            Shape result = {B, H, W, out};
            for (long c = from; c < min(to, out); c += VL) {
                Sums around = {gate ? LOAD(center + c) : (vec){0}, {0}, {0}};
                Gate through = {gate, gate ? LOAD(gate_a + c) : (vec){0}, gate ? LOAD(gate_b + c) : (vec){0}};
                long seen = 0;
                for (long t0 = 0; t0 < num; t0 += SUMMED) { /* float sums of so few numbers keep their precision */
                    if (sums && !gate) { /* the point is near the mean: see move_sums */
                        if (!seen) around.point = tile_mean(M + c - from, m_f, result, places[0], c, add);
                        for (int l = 0; seen && l < VL; l++) around.point[l] = (float)(part[c + l] / seen);
                    }
                    around.first = around.second = (vec){0};
                    for (long t = t0; t < min(t0 + SUMMED, num); t++) {
                        output_tile(M + t * slice + c - from, m_f, result, places[t], c, add, through,
                                    sums ? &around : NULL, y);
                    }
                    for (int l = 0; sums && l < VL; l++)
                        move_sums(gate ? 0 : around.point[l], counts[t0 / SUMMED], around.first[l], around.second[l],
                                  part + c + l, part + out + c + l);
                    seen += counts[t0 / SUMMED];
                }
            }
        }
    if (sums && !failed) {
        memset(sums, 0, sizeof(double) * 2 * out);
        for (long blk = 0; blk < num_blocks; blk++)
            for (long c = 0; c < 2 * out; c++) sums[c] += partial[blk * 2 * out + c];
    }
    free(partial);
    return failed;
}

/* ---- gradient of the weights ------------------------------------------------------------------------------------- */

/* dw (out, 3, 3, in), from the convolution's input x, normalized and activated if a is given, and the gradient g of its
 * output. Threads share the tiles, each part with separate sums, and share the output channels too if there would be
 * too many sums. The sums of the parts are added in order. Returns 0, or 1 if memory runs out. */
int wrn_conv_weight_gradient(const float *x, const float *g, long B, long H, long W, long in, long out, const float *a,
                             const float *b, float *dw, int threads) {
    Shape s = {B, H, W, in};
    long tiles = num_tiles(s), panels = round_up(out, NB) / NB, size_f = in * panels * NB, size = NF * size_f;
    /* one part if its sums take 48 MiB or more (640 x 640 channels: 59): adding up two costs more than sharing saves */
    long parts = min(4 * size < 1 << 20 ? 4 * threads : threads, 1 + (48 << 20) / (4 * size));
    parts = min(parts, round_up(tiles, 8) / 8);
    long share = (tiles + parts - 1) / parts;
    parts = (tiles + share - 1) / share; /* so that no part is without tiles, whose sums nobody would set */
    long slices = min((threads + parts - 1) / parts, panels), slice = (panels + slices - 1) / slices;
    long block = min(2 * block_tiles(in + slice * NB, size, tiles), round_up(share, 2));
    long v_f = block * in + 16, d_f = block * slice * NB + 16;
    float *sums = wrn_scratch(parts * size + NF * (v_f + d_f)); /* the calling thread's own V and D follow */
    if (!sums) return 1;
    int failed = 0;
#pragma omp parallel for num_threads(threads) schedule(dynamic) collapse(2) reduction(| : failed)
    for (long part = 0; part < parts; part++)
        for (long first_panel = 0; first_panel < panels; first_panel += slice) {
            float *V = sums == wrn_scratch(0) ? sums + parts * size : wrn_scratch(NF * (v_f + d_f));
            if (!V) {
                failed = 1;
                continue;
            }
            float *D = V + NF * v_f;
            long last_panel = min(first_panel + slice, panels), end = min((part + 1) * share, tiles);
            for (long first = part * share; first < end; first += block) {
                long num = min(block, end - first);
                for (long t = 0; t < num; t++) {
                    if (a) input_tile(x, s, first + t, a, b, V + t * 16, v_f, 16 * block);
                    else input_tile(x, s, first + t, NULL, NULL, V + t * 16, v_f, 16 * block);
                    gradient_tile(g, (Shape){B, H, W, out}, first + t, first_panel * NB, last_panel * NB, D + t * NB,
                                  d_f, block * NB);
                }
                int add = first > part * share;
                for (int f = 0; f < NF; f++)
                    for (long n = first_panel; n < last_panel; n++)
                        for (long k = 0; k < in; k += 16) {
                            const float *A = V + f * v_f + k * block;
                            const float *panel = D + f * d_f + (n - first_panel) * block * NB;
                            float *sum = sums + part * size + f * size_f + (n * in + k) * NB;
                            for (int r = 0; r + MR <= 16; r += MR)
                                product(MR, add, num, A + r, 1, 16, panel, sum + r * NB, NB);
                            int r = 16 - 16 % MR;
                            product(16 % MR, add, num, A + r, 1, 16, panel, sum + r * NB, NB);
                        }
            }
        }
    if (failed) return 1;
#pragma omp parallel for num_threads(threads)
    for (long n = 0; n < out; n += VL)
        for (long k = 0; k < in; k++) {
            vec rows[3][6];
            for (int j = 0; j < 6; j++) {
                vec u[6], w[3];
                for (int i = 0; i < 6; i++) {
                    const float *sum = sums + (i * 6 + j) * size_f + (n / NB * in + k) * NB + n % NB;
                    u[i] = LOAD(sum);
                    for (long part = 1; part < parts; part++) u[i] += LOAD(sum + part * size);
                }
                weight_gradient_1d(u, w);
                for (int i = 0; i < 3; i++) rows[i][j] = w[i];
            }
            for (int i = 0; i < 3; i++) {
                vec w[3];
                weight_gradient_1d(rows[i], w);
                for (int j = 0; j < 3; j++)
                    for (int l = 0; l < VL; l++) dw[((n + l) * 9 + i * 3 + j) * in + k] = w[j][l];
            }
        }
    return 0;
}
