/* Drives the convolutions of small random layers, natively, under sanitizers or on an emulated processor: exit code 0 if
 * all agree with the definition, for several threads. Memory has exactly the sizes that are documented. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "convs.h"

long wrn_panel(void);
long wrn_weight_size(int kernel, long in, long out);
int wrn_conv_backward(const float *x, const float *g, long B, long H, long W, long in, long out, int kernel, int stride,
                      const float *a, const float *b, const float *center, const float *U, const float *add, float *dx,
                      double *sums, float *dw, int threads);
void wrn_transform_weight(const float *w, int kernel, int stride, long in, long out, int backwards, float *U, int threads);

static unsigned state = 1;
static unsigned draw(unsigned below) { return (state = state * 1664525u + 1013904223u) / 65536u % below; }
static float real(void) { return (float)draw(20001) / 10000.f - 1.f; }

static void *memory(long num, long size) {
    void *found = malloc(num * size);
    if (!found) exit(2);
    return found;
}
static float *reals(long num) {
    float *found = memory(num, sizeof(float));
    for (long i = 0; i < num; i++) found[i] = real();
    return found;
}

typedef struct { long B, H, W, in, out, kernel, stride, h, w; } Layer;

static Layer draw_layer(void) {
    Layer l = {1 + draw(4), 1 + draw(13), 1 + draw(13), 16 * (1 + draw(4)), 16 * (1 + draw(4)), draw(3) ? 3 : 1,
               1 + draw(2), 0, 0};
    l.h = (l.H + l.stride - 1) / l.stride, l.w = (l.W + l.stride - 1) / l.stride;
    return l;
}

/* sum over the kernel of x w at an output; x (B, H, W, in), w (out, kernel, kernel, in) */
static double at(Layer l, long output, long channel, double (*x)(long), double (*w)(long)) {
    long image = output / l.w / l.h, top = output / l.w % l.h * l.stride, left = output % l.w * l.stride;
    double sum = 0;
    for (long i = 0; i < l.kernel; i++)
        for (long j = 0; j < l.kernel; j++) {
            long row = top + i - l.kernel / 2, column = left + j - l.kernel / 2;
            if (row < 0 || row >= l.H || column < 0 || column >= l.W) continue;
            for (long k = 0; k < l.in; k++)
                sum += x(((image * l.H + row) * l.W + column) * l.in + k)
                       * w(((channel * l.kernel + i) * l.kernel + j) * l.in + k);
        }
    return sum;
}

static void compare(const char *what, Layer l, double found, double wanted, double tolerance) {
    if (fabs(found - wanted) <= tolerance) return;
    printf("%s %ldx%ldx%ldx%ld to %ld, kernel %ld, stride %ld: %g instead of %g\n", what, l.B, l.H, l.W, l.in, l.out,
           l.kernel, l.stride, found, wanted);
    exit(1);
}

/* ---- 8 bits ------------------------------------------------------------------------------------------------------- */

static unsigned char *q;
static signed char *weights;
static double byte_at(long i) { return q[i]; }
static double weight_at(long i) { return weights[i]; }

/* Numbers that are exact as the upper 16 bits of floats, as floats or as these bits. */
static void *sums_of(float *exact, long num, int halves) {
    unsigned short *found = memory(num, sizeof(float));
    for (long i = 0; i < num; i++) {
        unsigned bits = 0;
        exact[i] = (float)((int)draw(255) - 127);
        memcpy(&bits, exact + i, sizeof bits);
        if (halves) found[i] = (unsigned short)(bits >> 16);
        else memcpy((float *)found + i, exact + i, sizeof *exact);
    }
    return found;
}

static float sum_at(const void *sums, long i, int halves) {
    float found;
    unsigned bits = halves ? (unsigned)((const unsigned short *)sums)[i] << 16 : ((const unsigned *)sums)[i];
    memcpy(&found, &bits, sizeof found);
    return found;
}

static void direct(Layer l, int threads) {
    long panel = wrn_panel(), N = (l.out + panel - 1) / panel * panel, K = l.kernel * l.kernel * l.in;
    long size = l.B * l.H * l.W * l.in, num = l.B * l.h * l.w * l.out;
    q = memory(size, 1), weights = memory(l.out * K, 1);
    for (long i = 0; i < size; i++) q[i] = (unsigned char)draw(256);
    for (long i = 0; i < l.out * K; i++) weights[i] = (signed char)((int)draw(255) - 127);
    signed char *packed = memory(N * K, 1);
    for (long n = 0; n < N; n++)
        for (long k = 0; k < K; k++)
            packed[n / panel * panel * K + k / 4 * 4 * panel + n % panel * 4 + k % 4] = n < l.out ? weights[n * K + k] : 0;
    int halves = (int)draw(2), alone = draw(4) == 0;
    float *rescale = memory(N, sizeof(float)), *values = memory(num, sizeof(float)), *exact = reals(num);
    void *add = sums_of(exact, num, halves);
    float *scale = memory(l.out, sizeof(float)), *shift = memory(l.out, sizeof(float));
    float *bias = draw(2) ? NULL : reals(l.out);
    for (long n = 0; n < N; n++) rescale[n] = 1;
    for (long n = 0; n < l.out; n++) scale[n] = 1.f / 4096, shift[n] = 100.5f;
    unsigned char *bytes = memory(num, 1);
    if (wrn_direct_conv(q, l.B, l.H, l.W, l.in, l.out, l.kernel, l.stride, packed, rescale, alone ? NULL : add,
                        alone ? NULL : bias, scale, shift, alone ? NULL : values, bytes, halves, threads))
        exit(2);
    for (long i = 0; i < num; i++) {
        double wanted = at(l, i / l.out, i % l.out, byte_at, weight_at) + (alone ? 0 : exact[i]);
        if (bias && !alone) wanted = fmax(wanted + bias[i % l.out], 0);
        if (!alone) compare("direct", l, sum_at(values, i, halves), wanted, (halves ? 4e-3 : 1e-6) * fabs(wanted) + 1e-6);
        double whole = floor(fmin(fmax(wanted / 4096. + 100.5, 0), 255.5));
        compare("bytes", l, bytes[i], fmin(whole, 255), 1); /* one, as the kernel rounds once less */
    }
    free(q), free(weights), free(packed), free(rescale), free(values), free(add), free(scale), free(shift), free(bytes);
    free(bias), free(exact);
}

/* Tiles: the same bits for any number of threads. What they should be is a test in Python. */
static void tiles(Layer l, int threads) {
    long panel = wrn_panel(), N = (l.out + panel - 1) / panel * panel, num = l.B * l.h * l.w * l.out;
    long points = l.kernel == 1 ? 1 : l.stride == 1 ? 6 : 9, size = l.B * l.H * l.W * l.in;
    unsigned char *x = memory(size, 1), *bytes[2] = {memory(num, 1), memory(num, 1)};
    short *U = memory(points * points * N * l.in, sizeof(short));
    float *rescale = reals(points * points * N), *scale = reals(l.out), *shift = reals(l.out);
    float *bias = draw(2) ? NULL : reals(l.out);
    float *values[2] = {reals(num), memory(num, sizeof(float))};
    int halves = (int)draw(2), alone = draw(4) == 0;
    memcpy(values[1], values[0], num * sizeof(float)); /* what is added lies where the result goes */
    for (long i = 0; i < size; i++) x[i] = (unsigned char)draw(256);
    for (long i = 0; i < points * points * N * l.in; i++) U[i] = (short)((int)draw(201) - 100);
    for (int i = 0; i < 2; i++)
        if (wrn_quantized_conv(x, l.B, l.H, l.W, l.in, l.out, l.kernel, l.stride, U, rescale,
                               alone ? NULL : values[i], alone ? NULL : bias, scale, shift, alone ? NULL : values[i],
                               bytes[i], halves, i ? threads : 1))
            exit(2);
    compare("tiles", l, memcmp(values[0], values[1], num * sizeof(float)) || memcmp(bytes[0], bytes[1], num), 0, 0);
    free(x), free(bytes[0]), free(bytes[1]), free(U), free(rescale), free(scale), free(shift), free(values[0]);
    free(values[1]), free(bias);
}

/* ---- fp32 --------------------------------------------------------------------------------------------------------- */

static float *active, *kernel;
static double active_at(long i) { return active[i]; }
static double kernel_at(long i) { return kernel[i]; }

static void fp32(Layer l, int threads) {
    long size = l.B * l.H * l.W * l.in, num = l.B * l.h * l.w * l.out, taps = l.kernel * l.kernel;
    float *x = reals(size), *a = reals(l.in), *b = reals(l.in), *add = reals(num), *y = memory(num, sizeof(float));
    active = memory(size, sizeof(float)), kernel = reals(l.out * taps * l.in);
    for (long i = 0; i < size; i++) active[i] = fmaxf(a[i % l.in] * x[i] + b[i % l.in], 0);
    float *U = memory(wrn_weight_size((int)l.kernel, l.in, l.out), sizeof(float));
    wrn_transform_weight(kernel, (int)l.kernel, (int)l.stride, l.in, l.out, 0, U, threads);
    double *sums = memory(2 * l.out, sizeof(double)), *wanted = calloc(2 * l.out, sizeof(double));
    if (wrn_conv(x, l.B, l.H, l.W, l.in, l.out, (int)l.kernel, (int)l.stride, a, b, U, add, NULL, y, sums, threads))
        exit(2);
    for (long i = 0; i < num; i++) {
        compare("fp32", l, y[i], at(l, i / l.out, i % l.out, active_at, kernel_at) + add[i], 2e-4);
        wanted[i % l.out] += y[i], wanted[l.out + i % l.out] += (double)y[i] * y[i];
    }
    for (long i = 0; i < 2 * l.out; i++) compare("sums", l, sums[i], wanted[i], 1e-5 * (fabs(wanted[i]) + num / l.out));
    free(x), free(a), free(b), free(add), free(y), free(active), free(kernel), free(U), free(sums), free(wanted);
}

/* relu(convolution + what is added + bias), where what is added lies where the result goes. */
static void folded(Layer l, int threads) {
    l.B = 1;
    long size = l.B * l.H * l.W * l.in, num = l.B * l.h * l.w * l.out;
    float *add = reals(num), *y = memory(num, sizeof(float)), *bias = reals(l.out);
    memcpy(y, add, num * sizeof(float));
    active = reals(size), kernel = reals(l.out * l.kernel * l.kernel * l.in);
    float *U = memory(wrn_weight_size((int)l.kernel, l.in, l.out), sizeof(float));
    wrn_transform_weight(kernel, (int)l.kernel, (int)l.stride, l.in, l.out, 0, U, threads);
    if (wrn_conv(active, l.B, l.H, l.W, l.in, l.out, (int)l.kernel, (int)l.stride, NULL, NULL, U, y, bias, y, NULL,
                 threads))
        exit(2);
    for (long i = 0; i < num; i++)
        compare("folded", l, y[i], fmax(at(l, i / l.out, i % l.out, active_at, kernel_at) + add[i] + bias[i % l.out], 0),
                3e-4);
    free(add), free(y), free(bias), free(active), free(kernel), free(U);
}

/* Stems of all kernels and strides, of images of 1 to 3 channels that lie channel by channel. */
static void stem(Layer l, int threads) {
    l.B = 1 + draw(2), l.in = 1 + draw(3), l.out = 16, l.kernel = 1 + 2 * draw(4);
    int pooled = (int)draw(2);
    long rows = pooled ? (l.h + 1) / 2 : l.h, columns = pooled ? (l.w + 1) / 2 : l.w, taps = l.kernel * l.kernel;
    long size = l.B * l.H * l.W * l.in, num = l.B * rows * columns * l.out, strides[4] = {l.in * l.H * l.W, l.H * l.W, l.W, 1};
    float *x = reals(size), *w = memory(l.in * taps * l.out, sizeof(float)), *bias = reals(l.out);
    float *y = memory(num, sizeof(float));
    active = memory(size, sizeof(float)), kernel = reals(l.out * taps * l.in);
    for (long i = 0; i < size; i++)
        active[i] = x[(i / l.in / l.W / l.H * l.in + i % l.in) * l.H * l.W + i / l.in % (l.W * l.H)];
    for (long i = 0; i < l.out * taps * l.in; i++)
        w[(i % l.in * taps + i / l.in % taps) * l.out + i / l.in / taps] = kernel[i];
    if (wrn_stem(x, strides, l.B, l.H, l.W, l.in, l.out, l.kernel, l.stride, pooled, w, bias, NULL, NULL, y, NULL, 0, threads))
        exit(2);
    for (long i = 0; i < num; i++) {
        long n = i % l.out, column = i / l.out % columns, row = i / l.out / columns % rows, image = i / l.out / columns / rows;
        double most = -1;
        for (long r = pooled ? 2 * row - 1 : row; r <= (pooled ? 2 * row + 1 : row); r++)
            for (long c = pooled ? 2 * column - 1 : column; c <= (pooled ? 2 * column + 1 : column); c++)
                if (r >= 0 && r < l.h && c >= 0 && c < l.w)
                    most = fmax(most, fmax(at(l, (image * l.h + r) * l.w + c, n, active_at, kernel_at) + bias[n], 0));
        compare("stem", l, y[i], most, 1e-4);
    }
    free(x), free(w), free(bias), free(y), free(active), free(kernel);
}

/* The gradients of a layer's weights and, but for 1x1 with stride 2, of its input, gated by relu(a x + b). */
static void backward(Layer l, int threads) {
    long size = l.B * l.H * l.W * l.in, num = l.B * l.h * l.w * l.out, k = l.kernel, taps = k * k;
    float *x = reals(size), *a = reals(l.in), *b = reals(l.in), *center = reals(l.in), *g = reals(num);
    float *w = reals(l.out * taps * l.in), *dw = memory(l.out * taps * l.in, sizeof(float));
    float *dx = memory(size, sizeof(float)), *U = memory(wrn_weight_size((int)k, l.out, l.in), sizeof(float));
    double *wanted_dw = calloc(l.out * taps * l.in, sizeof(double)), *wanted_dx = calloc(size, sizeof(double));
    double *sums = memory(2 * l.in, sizeof(double));
    for (long i = 0; i < num; i++) /* each output spreads its gradient */
        for (long tap = 0; tap < taps; tap++) {
            long output = i / l.out, image = output / l.w / l.h;
            long row = output / l.w % l.h * l.stride + tap / k - k / 2, column = output % l.w * l.stride + tap % k - k / 2;
            if (row < 0 || row >= l.H || column < 0 || column >= l.W) continue;
            for (long c = 0; c < l.in; c++) {
                long from = ((image * l.H + row) * l.W + column) * l.in + c, weight = (i % l.out * taps + tap) * l.in + c;
                float z = a[c] * x[from] + b[c];
                wanted_dw[weight] += (double)g[i] * fmaxf(z, 0);
                wanted_dx[from] += z > 0 ? (double)g[i] * w[weight] : 0;
            }
        }
    int whole = k == 3 || l.stride == 1;
    wrn_transform_weight(w, (int)k, (int)l.stride, l.in, l.out, 1, U, threads);
    if (wrn_conv_backward(x, g, l.B, l.H, l.W, l.in, l.out, (int)k, (int)l.stride, a, b, center, whole ? U : NULL, NULL, dx,
                          whole ? sums : NULL, dw, threads))
        exit(2);
    for (long i = 0; i < l.out * taps * l.in; i++) compare("weights", l, dw[i], wanted_dw[i], 3e-4);
    for (long i = 0; whole && i < size; i++) compare("input", l, dx[i], wanted_dx[i], 3e-4);
    free(x), free(a), free(b), free(center), free(g), free(w), free(dw), free(dx), free(U), free(wanted_dw);
    free(wanted_dx), free(sums);
}

int main(int count, char **arguments) {
    int rounds = count > 1 ? atoi(arguments[1]) : 100;
    for (int round = 0; round < rounds; round++) {
        Layer l = draw_layer();
        int threads = 1 + (int)draw(4);
        direct(l, threads);
        tiles(l, threads);
        fp32(l, threads);
        backward(l, threads);
        folded(l, threads);
        stem(l, threads);
    }
    return 0;
}
