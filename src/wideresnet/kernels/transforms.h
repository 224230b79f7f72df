/* The one-dimensional transforms of Winograd's algorithm, on the vectors of vector.h.
 *
 * Y = A^T ((G w) * (B^T d)), with common subexpressions shared. In two dimensions each is applied to the columns of a
 * tile and then to its rows. The gradient with respect to the weights is G^T ((A g) * (B^T d)), summed over tiles. */

/* ---- F(4, 3) ----------------------------------------------------------------------------------------------------- */

INLINE void input_1d(const vec d[6], vec v[6]) { /* B^T */
    vec even = d[4] - 4 * d[2], odd = d[3] - 4 * d[1], e2 = d[4] - d[2], o2 = 2 * (d[3] - d[1]);
    v[0] = 4 * d[0] - 5 * d[2] + d[4];
    v[1] = even + odd;
    v[2] = even - odd;
    v[3] = e2 + o2;
    v[4] = e2 - o2;
    v[5] = 4 * d[1] - 5 * d[3] + d[5];
}

INLINE void gradient_1d(const vec g[4], vec v[6]) { /* A */
    vec even = g[0] + g[2], odd = g[1] + g[3], even2 = g[0] + 4 * g[2], odd2 = 2 * g[1] + 8 * g[3];
    v[0] = g[0];
    v[1] = even + odd;
    v[2] = even - odd;
    v[3] = even2 + odd2;
    v[4] = even2 - odd2;
    v[5] = g[3];
}

INLINE void weight_1d(const vec w[3], vec u[6]) { /* G */
    vec even = w[0] + w[2], half = w[0] * (1 / 24.f) + w[2] * (1 / 6.f), odd = w[1] * (1 / 12.f);
    u[0] = w[0] * (1 / 4.f);
    u[1] = (even + w[1]) * (-1 / 6.f);
    u[2] = (even - w[1]) * (-1 / 6.f);
    u[3] = half + odd;
    u[4] = half - odd;
    u[5] = w[2];
}

INLINE void weight_gradient_1d(const vec u[6], vec w[3]) { /* G^T */
    vec s1 = u[1] + u[2], d1 = u[1] - u[2], s2 = u[3] + u[4], d2 = u[3] - u[4];
    w[0] = u[0] * (1 / 4.f) - s1 * (1 / 6.f) + s2 * (1 / 24.f);
    w[1] = d2 * (1 / 12.f) - d1 * (1 / 6.f);
    w[2] = s2 * (1 / 6.f) - s1 * (1 / 6.f) + u[5];
}

/* ---- stride 2 ---------------------------------------------------------------------------------------------------- */

/* Four outputs in a row see nine inputs. The even ones meet the two outer weights, which is F(4, 2): the Toom-Cook
 * construction with the points 0, 1, -1, 2 and infinity. The odd ones meet the middle weight, four times the same. So
 * there are 9 multiplications instead of 12, by 6 different weights: number 5 is the middle one.
 *
 * The gradient with respect to the input, "spread", is of the same kind: eight of its elements in a row see five
 * gradients of outputs. The odd ones are F(4, 2) of the outer weights, exchanged; the even ones have the middle one. */

INLINE void pair_input_1d(vec d0, vec d1, vec d2, vec d3, vec d4, vec v[5]) { /* B^T of F(4, 2) */
    vec far = d3 - d1;
    v[0] = far - 2 * (d2 - d0);
    v[1] = far - d2 - d1;
    v[2] = d3 + 2 * d1 - 3 * d2;
    v[3] = far;
    v[4] = d4 - d2 - 2 * far;
}

INLINE void pair_output_1d(const vec m[5], vec y[4]) { /* A^T of F(4, 2) */
    vec sum = m[1] + m[2], difference = m[1] - m[2];
    y[0] = m[0] + sum + m[3];
    y[1] = difference + 2 * m[3];
    y[2] = sum + 4 * m[3];
    y[3] = difference + 8 * m[3] + m[4];
}

INLINE void strided_input_1d(const vec d[9], vec v[9]) {
    pair_input_1d(d[0], d[2], d[4], d[6], d[8], v);
    for (int i = 0; i < 4; i++) v[5 + i] = d[2 * i + 1];
}

INLINE void strided_output_1d(const vec m[9], vec y[4]) {
    pair_output_1d(m, y);
    for (int i = 0; i < 4; i++) y[i] += m[5 + i];
}

INLINE void spread_input_1d(const vec d[5], vec v[9]) {
    pair_input_1d(d[0], d[1], d[2], d[3], d[4], v);
    for (int i = 0; i < 4; i++) v[5 + i] = d[i];
}

INLINE void spread_output_1d(const vec m[9], vec y[8]) {
    vec odd[4];
    pair_output_1d(m, odd);
    for (int i = 0; i < 4; i++) y[2 * i] = m[5 + i], y[2 * i + 1] = odd[i];
}

INLINE void strided_weight_1d(const vec w[3], vec u[6]) { /* G */
    u[0] = w[0] * (1 / 2.f);
    u[1] = (w[0] + w[2]) * (-1 / 2.f);
    u[2] = (w[2] - w[0]) * (1 / 6.f);
    u[3] = w[0] * (1 / 6.f) + w[2] * (1 / 3.f);
    u[4] = w[2];
    u[5] = w[1];
}

INLINE void strided_gradient_1d(const vec g[4], vec v[9]) { /* A */
    vec even = g[0] + g[2], odd = g[1] + g[3];
    v[0] = g[0];
    v[1] = even + odd;
    v[2] = even - odd;
    v[3] = g[0] + 4 * g[2] + 2 * (g[1] + 4 * g[3]);
    v[4] = g[3];
    for (int i = 0; i < 4; i++) v[5 + i] = g[i];
}

INLINE void spread_gradient_1d(const vec g[8], vec v[9]) { /* A of spread_output_1d */
    vec even = g[1] + g[5], odd = g[3] + g[7];
    v[0] = g[1];
    v[1] = even + odd;
    v[2] = even - odd;
    v[3] = g[1] + 4 * g[5] + 2 * (g[3] + 4 * g[7]);
    v[4] = g[7];
    for (int i = 0; i < 4; i++) v[5 + i] = g[2 * i];
}

INLINE void strided_weight_gradient_1d(const vec u[6], vec w[3]) { /* G^T */
    vec part = (u[3] - u[2]) * (1 / 6.f);
    w[0] = (u[0] - u[1]) * (1 / 2.f) + part;
    w[1] = u[5];
    w[2] = u[4] - u[1] * (1 / 2.f) + u[3] * (1 / 2.f) - part;
}
