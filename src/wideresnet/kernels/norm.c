/* Batch normalization and ReLU that are not fused into a convolution: around convolutions that PyTorch computes, and
 * whatever needs the statistics of the whole batch first.
 *
 * Maps are float, channels last: `num` positions of `C` channels, a multiple of 16. Sums are taken per block of
 * positions and added in order, so that they do not depend on the number of threads.
 */
#include <math.h>

#include "pool.h"
#include "vector.h"

enum { BLOCK = 512 }; /* positions: few enough for float sums, many enough to share among threads */
enum { GRAIN = 4 };   /* blocks that a thread takes at once */

/* Positions that a thread takes at once, of C channels each: at least 32 KiB of a map. */
INLINE long positions(long num, long C, int threads) { return grain_of(num, 8192 / C + 1, threads); }

/* Arguments of a function below, for the threads that share its loop. */
typedef struct {
    const float *x, *g, *add, *scale, *shift, *mean, *factor;
    float *result, *partial;
    long num, C;
} Maps;

static void add_up(const float *partial, long num_blocks, long width, double *sums) {
    memset(sums, 0, sizeof(double) * width);
    for (long blk = 0; blk < num_blocks; blk++)
        for (long c = 0; c < width; c++) sums[c] += partial[blk * width + c];
}

/* Each block sums differences from the mean of its first positions, which is its `point`: see move_sums. */
static void statistics_of_blocks(void *job, long first, long last) {
    const Maps *m = job;
    const float *x = m->x;
    long num = m->num, C = m->C;
    for (long blk = first; blk < last; blk++) {
        float *part = m->partial + blk * 3 * C, *point = part + 2 * C;
        long start = blk * BLOCK, end = min(start + BLOCK, num), few = min(16, end - start);
        for (long n = start; n < start + few; n++)
            for (long c = 0; c < C; c += VL)
                STORE(point + c, LOAD(point + c) + LOAD(x + n * C + c) * (1.f / few));
        for (long n = start; n < end; n++)
            for (long c = 0; c < C; c += VL) {
                vec far = LOAD(x + n * C + c) - LOAD(point + c);
                STORE(part + c, LOAD(part + c) + far);
                STORE(part + C + c, LOAD(part + C + c) + far * far);
            }
    }
}

/* sums (2, C): of x and of its square. */
int wrn_statistics(const float *x, long num, long C, double *sums, int threads) {
    long num_blocks = (num + BLOCK - 1) / BLOCK;
    float *partial = calloc(num_blocks * 3 * C, sizeof(float));
    if (!partial) return 1;
    Maps maps = {.x = x, .partial = partial, .num = num, .C = C};
    in_parallel(threads, num_blocks, GRAIN, statistics_of_blocks, &maps);
    memset(sums, 0, sizeof(double) * 2 * C);
    for (long blk = 0; blk < num_blocks; blk++) {
        const float *part = partial + blk * 3 * C, *point = part + 2 * C;
        long count = min(BLOCK, num - blk * BLOCK);
        for (long c = 0; c < C; c++) move_sums(point[c], count, part[c], part[C + c], sums + c, sums + C + c);
    }
    free(partial);
    return 0;
}

/* From the sums of x and of its square: mean and 1 / standard deviation of the batch, and scale and shift such that
 * scale x + shift is the normalized x. Updates the running statistics, whose variance is the unbiased one, as PyTorch.
 */
void wrn_normalize(const double *sums, long num, long C, const float *gamma, const float *beta, float eps,
                   float momentum, float *running_mean, float *running_var, float *mean, float *rstd, float *scale,
                   float *shift) {
    for (long c = 0; c < C; c++) {
        double m = sums[c] / num, var = sums[C + c] / num - m * m;
        if (var < 0) var = 0; /* by rounding */
        double r = 1 / sqrt(var + eps);
        mean[c] = (float)m;
        rstd[c] = (float)r;
        scale[c] = (float)(gamma[c] * r);
        shift[c] = (float)(beta[c] - m * gamma[c] * r);
        running_mean[c] = (float)(running_mean[c] + momentum * (m - running_mean[c]));
        running_var[c] = (float)(running_var[c] + momentum * (var * num / (num - 1) - running_var[c]));
    }
}

static void activate_positions(void *job, long first, long last) {
    const Maps m = *(const Maps *)job;
    for (long n = first; n < last; n++)
        for (long c = 0; c < m.C; c += VL)
            STORE(m.result + n * m.C + c, relu(LOAD(m.x + n * m.C + c) * LOAD(m.scale + c) + LOAD(m.shift + c)));
}

/* y = relu(scale x + shift) */
void wrn_activate(const float *x, long num, long C, const float *scale, const float *shift, float *y, int threads) {
    Maps maps = {.x = x, .scale = scale, .shift = shift, .result = y, .C = C};
    in_parallel(threads, num, positions(num, C, threads), activate_positions, &maps);
}

static void gate_blocks(void *job, long first, long last) {
    const Maps *m = job;
    const float *x = m->x, *scale = m->scale, *shift = m->shift, *mean = m->mean;
    float *g = m->result;
    long C = m->C;
    for (long blk = first; blk < last; blk++) {
        float *part = m->partial + blk * 2 * C;
        memset(part, 0, sizeof(float) * 2 * C);
        for (long n = blk * BLOCK; n < min((blk + 1) * BLOCK, m->num); n++)
            for (long c = 0; c < C; c += VL) {
                vec input = LOAD(x + n * C + c);
                vec value = where_positive(input * LOAD(scale + c) + LOAD(shift + c), LOAD(g + n * C + c));
                STORE(g + n * C + c, value);
                STORE(part + c, LOAD(part + c) + value);
                STORE(part + C + c, LOAD(part + C + c) + value * (input - LOAD(mean + c)));
            }
    }
}

/* Backward pass of wrn_activate: zeroes g in place where y was zero. sums (2, C): of g and of its products with x -
 * mean, which the backward pass of the normalization needs. */
int wrn_activate_backward(float *g, const float *x, long num, long C, const float *scale, const float *shift,
                          const float *mean, double *sums, int threads) {
    long num_blocks = (num + BLOCK - 1) / BLOCK;
    float *partial = malloc(sizeof(float) * num_blocks * 2 * C);
    if (!partial) return 1;
    Maps maps = {x, NULL, NULL, scale, shift, mean, NULL, g, partial, num, C};
    in_parallel(threads, num_blocks, GRAIN, gate_blocks, &maps);
    add_up(partial, num_blocks, 2 * C, sums);
    free(partial);
    return 0;
}

static void backpropagate_positions(void *job, long first, long last) {
    const Maps m = *(const Maps *)job;
    for (long n = first; n < last; n++)
        for (long c = 0; c < m.C; c += VL) {
            long at = n * m.C + c;
            vec value = LOAD(m.factor + c) * LOAD(m.g + at)
                        + LOAD(m.factor + m.C + c) * (LOAD(m.x + at) - LOAD(m.mean + c)) + LOAD(m.factor + 2 * m.C + c);
            if (m.add) value += LOAD(m.add + at);
            STORE(m.result + at, value);
        }
}

/* Backward pass of the normalization, from the results of wrn_activate_backward: the gradients with respect to x (plus
 * `add`, if given), gamma and beta. dx may be the memory of g. `factor` is scratch (3, C).
 *
 * The statistics may be of more positions than these, `count` of them: of those in other processes, too. `total` are the
 * sums over all of them; the gradients of gamma and beta come from `sums`, the part of these positions.
 *
 * With n = count, r = rstd and xhat = (x - mean) r, batch normalization has
 * dx = gamma r (g - mean(g) - xhat mean(g xhat)), which is g, x - mean and 1, each times a factor per channel. */
void wrn_normalize_backward(const float *g, const float *x, const float *add, const double *sums, const double *total,
                            long num, long count, long C, const float *gamma, const float *mean, const float *rstd,
                            float *factor, float *dx, float *dgamma, float *dbeta, int threads) {
    for (long c = 0; c < C; c++) {
        double r = rstd[c];
        dgamma[c] = (float)(sums[C + c] * r);
        dbeta[c] = (float)sums[c];
        factor[c] = (float)(gamma[c] * r);
        factor[C + c] = (float)(-gamma[c] * r * r * (total[C + c] * r) / count);
        factor[2 * C + c] = (float)(-gamma[c] * r * total[c] / count);
    }
    Maps maps = {.x = x, .g = g, .add = add, .mean = mean, .factor = factor, .result = dx, .C = C};
    in_parallel(threads, num, positions(num, C, threads), backpropagate_positions, &maps);
}
