/* The first convolution of a network, fused with what follows it: in networks for ImageNet the bias that a folded
 * normalization leaves, ReLU, and max pooling of 3x3 with stride 2.
 *
 * Images have one to a few channels and may lie in memory in any order, so vectors run over the output channels: eight
 * outputs in a row share each vector of weights, and each input is a scalar. Rows of the convolution live in scratch
 * memory. Pooling reads three of them, the last of which is also the first one of the next row of the result; so the
 * convolution's map, the largest of such a network, is never written. An image is computed by itself: its bits are the
 * same in any batch.
 */
#include <stdatomic.h>

#include "convs.h"
#include "pool.h"
#include "quantized.h"

enum { ACROSS = 8, WINDOW = 3 }; /* outputs that share weights in registers; rows and columns that pooling reads */

typedef struct {
    const float *x, *w, *bias;
    long image, channel, row, column; /* distances between neighbors in x */
    long in, H, W, kernel, stride, out_H, out_W; /* out_H, out_W: of the convolution */
    long rows, columns, out; /* of the result */
    int pooled;
    Result result;
    atomic_int failed;
} Stem;

/* One row of the convolution: y (round_up(out_W, ACROSS), out). lines: scratch for the inputs of a row. */
INLINE void conv_row(int stride, const Stem *s, long image, long row, float *lines, float *y) {
    long k = s->kernel, border = k / 2, wide = round_up(s->out_W, ACROSS) * stride + k;
    for (long c = 0; c < s->in; c++)
        for (long i = 0; i < k; i++) { /* with their borders of zeros */
            float *line = memset(lines + (c * k + i) * wide, 0, sizeof(float) * wide);
            long from = row * stride + i - border;
            const float *x = s->x + image * s->image + c * s->channel + from * s->row;
            for (long j = 0; from >= 0 && from < s->H && j < s->W; j++) line[border + j] = x[j * s->column];
        }
    for (long left = 0; left < s->out_W; left += ACROSS)
        for (long n = 0; n < s->out; n += VL) {
            const float *w = s->w + n;
            vec sum[ACROSS];
            for (int p = 0; p < ACROSS; p++) sum[p] = (vec){0};
            for (long c = 0; c < s->in * k; c++)
                for (long j = 0; j < k; j++, w += s->out)
                    for (int p = 0; p < ACROSS; p++)
                        sum[p] += all(lines[c * wide + (left + p) * stride + j]) * LOAD(w);
            for (int p = 0; p < ACROSS; p++) {
                if (s->bias) sum[p] = relu(sum[p] + LOAD(s->bias + n));
                STORE(y + (left + p) * s->out + n, sum[p]);
            }
        }
}

/* The larger of two, NaN if one is. */
INLINE vec larger(vec a, vec b) {
    ivec second = ~(b <= a) & (a == a);
    return (vec)(((ivec)b & second) | ((ivec)a & ~second));
}

/* The result at a row and column, for VL channels from n, of rows of the convolution that are kept by number. */
INLINE vec pool(const Stem *s, float *const kept[WINDOW], long row, long column, long n) {
    if (!s->pooled) return LOAD(kept[row % WINDOW] + column * s->out + n);
    vec most = LOAD(kept[2 * row % WINDOW] + 2 * column * s->out + n);
    for (long i = 2 * row - 1; i <= min(2 * row + 1, s->out_H - 1); i++)
        for (long j = 2 * column - 1; i >= 0 && j <= min(2 * column + 1, s->out_W - 1); j++)
            if (j >= 0) most = larger(most, LOAD(kept[i % WINDOW] + j * s->out + n));
    return most;
}

static void stem_rows(void *job, long first, long last) {
    Stem *s = job;
    long row_size = round_up(s->out_W, ACROSS) * s->out;
    float *lines = wrn_scratch(WINDOW * row_size + s->in * s->kernel * (round_up(s->out_W, ACROSS) * s->stride + s->kernel));
    if (!lines) {
        s->failed = 1;
        return;
    }
    float *kept[WINDOW];
    long numbers[WINDOW] = {-1, -1, -1}; /* of these rows, counted over all images */
    for (int i = 0; i < WINDOW; i++, lines += row_size) kept[i] = lines;
    for (long at = first; at < last; at++) {
        long image = at / s->rows, row = at % s->rows;
        long from = s->pooled ? 2 * row - (row > 0) : row, to = s->pooled ? min(2 * row + 1, s->out_H - 1) : row;
        for (long i = from; i <= to; i++) {
            if (numbers[i % WINDOW] == image * s->out_H + i) continue;
            numbers[i % WINDOW] = image * s->out_H + i;
            if (s->stride == 1) conv_row(1, s, image, i, lines, kept[i % WINDOW]);
            else conv_row(2, s, image, i, lines, kept[i % WINDOW]);
        }
        for (long column = 0; column < s->columns; column += 4)
            for (long n = 0; n < s->out; n += VL) {
                vec v[4];
                int num = (int)min(4, s->columns - column);
                for (int j = 0; j < num; j++) v[j] = pool(s, kept, row, column + j, n);
                put(s->result, v, num, (at * s->columns + column) * s->out + n, s->out, n);
            }
    }
}

/* The result of a square convolution of stride 1 or 2 with a border of zeros; relu(result + bias) if bias is given; then
 * pooled, if wanted, with a border that never is the largest.
 *
 * x: (B, in, H, W), whose neighbors are `strides` floats apart. w: (in, kernel, kernel, out), out a multiple of 16.
 * bias: (out) or NULL. values, bytes, scale, shift: as of wrn_quantized_conv; (B, H', W', out), where H' is H / stride,
 * and half of that if pooled, both rounded up. Returns 0, or 1 if memory runs out. */
int wrn_stem(const float *x, const long *strides, long B, long H, long W, long in, long out, long kernel, long stride,
             int pooled, const float *w, const float *bias, const float *scale, const float *shift, void *values,
             byte *bytes, int halves, int threads) {
    long out_H = (H + stride - 1) / stride, out_W = (W + stride - 1) / stride;
    long rows = pooled ? (out_H + 1) / 2 : out_H, columns = pooled ? (out_W + 1) / 2 : out_W;
    Stem stem = {x, w, bias, strides[0], strides[1], strides[2], strides[3], in, H, W, kernel, stride, out_H, out_W, rows,
                 columns, out, pooled, {NULL, NULL, scale, shift, values, bytes, halves}, 0};
    long grain = (B * rows + 4L * threads - 1) / (4L * threads); /* four parts a thread, as even as possible */
    in_parallel(threads, B * rows, grain > 4 ? grain : 4, stem_rows, &stem);
    return stem.failed;
}
