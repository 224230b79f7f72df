/* A network in evaluation mode as one call: a list of operations over maps that lie in one piece of memory.
 *
 * Lists are made by engines/program.py. Between two operations only the next one is looked up, so that a network of forty
 * layers takes no longer than its layers. The first operation is the stem and the last one the head; both compute an
 * image by itself, so that its logits are the same bits in any batch.
 */
#include <math.h>
#include <stdatomic.h>

#include "convs.h"
#include "pool.h"
#include "quantized.h"

enum Kind { STEM, POOLED_STEM, CONV, QUANTIZED, DIRECT, HEAD };

/* An operation on `num` images from `first` on. H, W, in: of the map that it reads. kernel: its side. stride: by which the
 * resolution falls, that of pooling included. Maps are places in the arena, in bytes, -1 for none.
 * bias: of the classifier; elsewhere ReLU follows it: relu(result + what is added + bias). scale, shift: the
 * normalization before a CONV and in the HEAD; the quantization after the others. Each may be NULL. rescale: of 8-bit
 * weights. halves: whether what is added, the values, and what the HEAD reads have 16 bits: see quantized.h. */
typedef struct {
    long kind, first, num, kernel, H, W, in, out, stride, reads, adds, values, bytes, halves;
    const void *weight;
    const float *rescale, *bias, *scale, *shift;
} Op;

typedef struct { const float *at; long image, channel, row, column; } Images; /* and the distances between neighbors */

/* ---- head: normalization and ReLU, mean over all positions, classifier ------------------------------------------------ */

typedef struct { const Op *op; const char *x; float *logits; atomic_int failed; } Head;

static void classify_images(void *job, long first, long last) {
    Head *head = job;
    const Op *op = head->op;
    long C = op->in, num = op->H * op->W, halves = op->halves;
    float *mean = wrn_scratch(C);
    if (!mean) {
        head->failed = 1;
        return;
    }
    for (long at = first; at < last; at++) {
        const char *x = head->x + at * num * C * (halves ? sizeof(half) : sizeof(float));
        for (long c = 0; c < C; c += VL) {
            vec sum = {0};
            for (long n = 0; n < num; n++) {
                vec value = load_sum(x, halves, n * C + c);
                sum += op->scale ? relu(value * LOAD(op->scale + c) + LOAD(op->shift + c)) : value;
            }
            STORE(mean + c, sum * (1.f / num));
        }
        for (long label = 0; label < op->out; label++) {
            const float *w = (const float *)op->weight + label * C;
            vec sum = {0};
            for (long c = 0; c < C; c += VL) sum += LOAD(mean + c) * LOAD(w + c);
            float logit = op->bias ? op->bias[label] : 0;
            for (int l = 0; l < VL; l++) logit += sum[l];
            head->logits[at * op->out + label] = logit;
        }
    }
}

/* Quantization would turn NaN into numbers. So the logits of an image that is not finite are NaN. */
static void mark_lost(Images images, long B, const Op *stem, float *logits, long num_classes) {
    for (long image = 0; image < B; image++) {
        unsigned lost = 0, bits;
        for (long c = 0; c < stem->in; c++)
            for (long i = 0; i < stem->H; i++) {
                const float *x = images.at + image * images.image + c * images.channel + i * images.row;
                for (long j = 0; j < stem->W; j++) { /* the largest exponent is that of what is not finite */
                    memcpy(&bits, x + j * images.column, sizeof bits);
                    lost |= (bits >> 23 & 255) == 255;
                }
            }
        for (long label = 0; lost && label < num_classes; label++) logits[image * num_classes + label] = NAN;
    }
}

/* ---- the network ---------------------------------------------------------------------------------------------------- */

/* Logits (B, classes) of images: (B, in, H, W), whose neighbors are `strides` floats apart. Returns 0, or 1 if memory
 * runs out. */
int wrn_run(const Op *ops, long num, const float *x, const long *strides, long B, float *logits, char *arena,
            int threads) {
    Images images = {x, strides[0], strides[1], strides[2], strides[3]};
    int failed = 0, in_bytes = 0;
    for (const Op *op = ops; op < ops + num && !failed; op++) {
        const void *reads = op->reads < 0 ? NULL : arena + op->reads;
        const void *add = op->adds < 0 ? NULL : arena + op->adds;
        void *values = op->values < 0 ? NULL : arena + op->values;
        byte *bytes = op->bytes < 0 ? NULL : (byte *)(arena + op->bytes);
        switch ((enum Kind)op->kind) {
        case STEM:
        case POOLED_STEM: {
            int pooled = op->kind == POOLED_STEM;
            failed = wrn_stem(x + op->first * strides[0], strides, op->num, op->H, op->W, op->in, op->out, op->kernel,
                              pooled ? op->stride / 2 : op->stride, pooled, op->weight, op->bias, op->scale, op->shift,
                              values, bytes, (int)op->halves, threads);
            break;
        }
        case CONV:
            failed = wrn_conv(reads, op->num, op->H, op->W, op->in, op->out, (int)op->kernel, (int)op->stride, op->scale,
                              op->shift, op->weight, add, op->bias, values, NULL, threads);
            break;
        case QUANTIZED:
            failed = wrn_quantized_conv(reads, op->num, op->H, op->W, op->in, op->out, op->kernel, op->stride, op->weight,
                                        op->rescale, add, op->bias, op->scale, op->shift, values, bytes, (int)op->halves,
                                        threads);
            in_bytes = 1;
            break;
        case DIRECT:
            failed = wrn_direct_conv(reads, op->num, op->H, op->W, op->in, op->out, op->kernel, op->stride, op->weight,
                                     op->rescale, add, op->bias, op->scale, op->shift, values, bytes, (int)op->halves,
                                     threads);
            in_bytes = 1;
            break;
        case HEAD: {
            Head head = {op, reads, logits + op->first * op->out, 0};
            in_parallel(threads, op->num, 1, classify_images, &head);
            failed = head.failed;
        }
        }
    }
    if (in_bytes && !failed) mark_lost(images, B, ops, logits, ops[num - 1].out);
    return failed;
}
