/* How products become the outputs of a convolution: transformed back, added to, gated, summed and written. */
#include "winograd.h"

/* Sums over some positions of VL channels. In a forward pass: of value - point and of its square. In a backward pass,
 * with a gate: of the gradient and of its product with (input of the gate) - point. */
typedef struct { vec point, first, second; } Sums;

/* The mean of a tile's outputs from its products, for VL channels from c. A sum over outputs needs one transform a row. */
INLINE vec tile_mean(Kind kind, const float *M, long stride_f, Shape s, Place p, long c, const float *add) {
    int points = num_points(kind), height = (int)min(4, s.H - p.top), width = (int)min(4, s.W - p.left);
    vec columns[9], o[4], sum = {0};
    for (int j = 0; j < points; j++) {
        vec m[9];
        for (int i = 0; i < points; i++) m[i] = LOAD(M + (i * points + j) * stride_f);
        if (kind == PLAIN) output_1d(m, o);
        else strided_output_1d(m, o);
        columns[j] = o[0];
        for (int i = 1; i < height; i++) columns[j] += o[i];
    }
    if (kind == PLAIN) output_1d(columns, o);
    else strided_output_1d(columns, o);
    for (int j = 0; j < width; j++) sum += o[j];
    for (int i = 0; add && i < height; i++)
        for (int j = 0; j < width; j++) sum += LOAD(add + ((p.image * s.H + p.top + i) * s.W + p.left + j) * s.C + c);
    return sum * (1.f / (height * width));
}

/* The backward pass of an activation: gradients survive where scale input + shift > 0. Or, without input, a forward pass
 * if `rectifies`: relu(result + shift). */
typedef struct { const float *input; vec scale, shift; int rectifies; } Gate;

/* What becomes of products: added to `add`, gated by `gate` and written to y, each NULL or like the result. With gate_b
 * alone, y is relu(result + gate_b). The tiles are those of `smaller`, which is the result or, for SPREAD, the map that it
 * is made from. */
typedef struct {
    const float *add, *gate, *gate_a, *gate_b, *center;
    float *y;
    Shape result, smaller;
} Outputs;

/* Start the sums of VL channels from c. */
INLINE Sums around(const Outputs *to, long c) { return (Sums){to->gate ? LOAD(to->center + c) : (vec){0}, {0}, {0}}; }

INLINE Gate through(const Outputs *to, long c) {
    const float *gate = to->gate, *shift = to->gate_b;
    return (Gate){gate, gate ? LOAD(to->gate_a + c) : (vec){0}, shift ? LOAD(shift + c) : (vec){0}, !gate && shift};
}

/* Add sums over `num` outputs to those of a block, (2, channels). */
INLINE void keep_sums(const Outputs *to, Sums sums, long num, long c, double *part) {
    for (int l = 0; l < VL; l++)
        move_sums(to->gate ? 0 : sums.point[l], num, sums.first[l], sums.second[l], part + c + l,
                  part + to->result.C + c + l);
}

/* Finish an output: gate it, sum it and write it, for VL channels at y[at]; the next one in this place is `next` off. */
INLINE void finish(vec value, long at, long next, Gate gate, Sums *sums, float *y) {
    if (gate.input) {
        vec input = LOAD(gate.input + at);
        PREFETCH(gate.input, at + next);
        value = where_positive(input * gate.scale + gate.shift, value);
        sums->first += value;
        sums->second += value * (input - sums->point);
    } else if (sums) {
        vec far = value - sums->point;
        sums->first += far;
        sums->second += far * far;
    } else if (gate.rectifies) {
        value = relu(value + gate.shift);
    }
    STORE(y + at, value);
    PREFETCH_TO_WRITE(y, at + next);
}

/* Transform the products of a tile back to its outputs, for VL channels from c; then add, gate and sum them. The tile is
 * at p in the result, or for SPREAD in the input, whose shape `add` has then. */
INLINE void output_tile(Kind kind, const float *M, long stride_f, Shape s, Place p, long c, const float *add, Gate gate,
                        Sums *sums, float *y) {
    int points = num_points(kind), size = kind == SPREAD ? 8 : 4;
    vec rows[8][9];
    for (int j = 0; j < points; j++) {
        vec m[9], o[8];
        for (int i = 0; i < points; i++) m[i] = LOAD(M + (i * points + j) * stride_f);
        if (kind == PLAIN) output_1d(m, o);
        else if (kind == STRIDED) strided_output_1d(m, o);
        else spread_output_1d(m, o);
        for (int i = 0; i < size; i++) rows[i][j] = o[i];
    }
    long top = kind == SPREAD ? 2 * p.top : p.top, left = kind == SPREAD ? 2 * p.left : p.left;
    int height = (int)min(size, s.H - top), width = (int)min(size, s.W - left);
    for (int i = 0; i < height; i++) {
        vec o[8];
        if (kind == PLAIN) output_1d(rows[i], o);
        else if (kind == STRIDED) strided_output_1d(rows[i], o);
        else spread_output_1d(rows[i], o);
        long at = ((p.image * s.H + top + i) * s.W + left) * s.C + c;
        for (int j = 0; j < width; j++, at += s.C) {
            if (add && kind != SPREAD) {
                o[j] += LOAD(add + at);
                PREFETCH(add, at + 4 * s.C);
            } else if (add && i % 2 == 0 && j % 2 == 0) {
                long H = (s.H + 1) / 2, W = (s.W + 1) / 2;
                o[j] += LOAD(add + ((p.image * H + p.top + i / 2) * W + p.left + j / 2) * s.C + c);
            }
            finish(o[j], at, size * s.C, gate, sums, y);
        }
    }
}

enum { SUMMED = 48 }; /* tiles whose outputs are summed in float; sums of so few numbers keep their precision */

/* Finish the outputs of tiles first..first + num - 1 from their products M[f m_f + tile NB], for a panel of channels from
 * n. Their sums are added to `part`, unless that is NULL. */
INLINE void output_panel(Kind kind, const Outputs *to, const float *M, long m_f, long first, long num, long n,
                         double *part) {
    const float *add = to->add;
    float *y = to->y;
    Shape result = to->result, smaller = to->smaller;
    int wide = (int)(min(NB, result.C - n) / VL), scale = kind == SPREAD ? 2 : 1;
    long seen = 0;
    for (long t0 = 0; t0 < num; t0 += SUMMED / scale / scale) {
        long t1 = min(t0 + SUMMED / scale / scale, num), count = 0;
        Sums sums[NV];
        Gate gated[NV];
        for (int v = 0; v < wide; v++) {
            long c = n + v * VL;
            sums[v] = around(to, c);
            gated[v] = through(to, c);
            if (!part || to->gate) continue; /* else the point is near the mean: see move_sums */
            if (!seen) sums[v].point = tile_mean(kind, M + v * VL, m_f, result, place(smaller, first), c, add);
            for (int l = 0; seen && l < VL; l++) sums[v].point[l] = (float)(part[c + l] / seen);
        }
        for (long t = t0; t < t1; t++) {
            Place p = place(smaller, first + t);
            count += min(4 * scale, result.H - scale * p.top) * min(4 * scale, result.W - scale * p.left);
            for (int v = 0; v < wide; v++)
                output_tile(kind, M + t * NB + v * VL, m_f, result, p, n + v * VL, add, gated[v],
                            part ? &sums[v] : NULL, y);
        }
        for (int v = 0; part && v < wide; v++) keep_sums(to, sums[v], count, n + v * VL, part);
        seen += count;
    }
}

/* Finish a panel of channels from c of `num` positions: of M (num, NB), and from number `first` of the result. */
INLINE void output_positions(const Outputs *to, const float *M, long num, long first, long c, double *part) {
    const float *add = to->add;
    long C = to->result.C, few = min(16, num);
    int wide = (int)(min(NB, C - c) / VL);
    Sums sums[NV];
    Gate gated[NV];
    for (int v = 0; v < wide; v++) {
        long n = c + v * VL;
        sums[v] = around(to, n);
        gated[v] = through(to, n);
        for (long t = 0; part && !to->gate && t < few; t++) {
            sums[v].point += LOAD(M + t * NB + v * VL) * (1.f / few);
            if (add) sums[v].point += LOAD(add + (first + t) * C + n) * (1.f / few);
        }
    }
    for (long t = 0; t < num; t++)
        for (int v = 0; v < wide; v++) {
            long at = (first + t) * C + c + v * VL;
            vec value = LOAD(M + t * NB + v * VL);
            if (add) value += LOAD(add + at);
            finish(value, at, C, gated[v], part ? &sums[v] : NULL, to->y);
        }
    for (int v = 0; part && v < wide; v++) keep_sums(to, sums[v], num, c + v * VL, part);
}

/* sums (width) = the sums of all blocks, in order. */
static inline void add_sums(const double *partial, long num_blocks, long width, double *sums) {
    memset(sums, 0, sizeof(double) * width);
    for (long blk = 0; blk < num_blocks; blk++)
        for (long c = 0; c < width; c++) sums[c] += partial[blk * width + c];
}
