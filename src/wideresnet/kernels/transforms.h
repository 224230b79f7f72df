/* The one-dimensional transforms of Winograd's F(4x4, 3x3), on the vectors of vector.h.
 *
 * Y = A^T ((G w) * (B^T d)), with common subexpressions shared. In two dimensions each is applied to the columns of a
 * tile and then to its rows. The gradient with respect to the weights is G^T ((A g) * (B^T d)), summed over tiles. */

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
