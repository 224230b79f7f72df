/* Vectors of floats as wide as the processor allows, in the vector extensions that GCC and Clang share. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* VL: lanes of a vector. A matrix product keeps a tile of MR rows by NV vectors in registers: the largest that leaves
 * registers for its operands: 12 x 2 of 32 with AVX-512, 6 x 2 of 16 with AVX, 6 x 4 of the 32 of Arm. */
#if defined(__AVX512F__)
enum { VL = 16, MR = 12, NV = 2 };
#elif defined(__AVX__)
enum { VL = 8, MR = 6, NV = 2 };
#else
enum { VL = 4, MR = 6, NV = 4 };
#endif
enum { NB = NV * VL, NF = 36 }; /* NB: columns of that tile, called a panel. NF: frequencies of F(4x4, 3x3). */

typedef float vec __attribute__((vector_size(4 * VL), aligned(4), may_alias));
typedef int ivec __attribute__((vector_size(4 * VL)));
#define INLINE static inline __attribute__((always_inline))
#define LOAD(p) (*(const vec *)(p))
#define STORE(p, v) (*(vec *)(p) = (v))

/* Ask for the cache line of p[i], which may lie outside the array; C has such addresses as integers only. */
#define PREFETCH(p, i) __builtin_prefetch((const void *)((uintptr_t)(p) + (uintptr_t)(i) * sizeof *(p)))
#define PREFETCH_TO_WRITE(p, i) __builtin_prefetch((const void *)((uintptr_t)(p) + (uintptr_t)(i) * sizeof *(p)), 1)

INLINE vec all(float s) { return s - (vec){0}; }
/* v where z > 0, else 0. The comparison is negated so that NaN in z lets v through: NaN must reach the loss. */
INLINE vec where_positive(vec z, vec v) { return (vec)((ivec)v & ~(z <= 0)); }
INLINE vec relu(vec v) { return where_positive(v, v); }
/* Add n numbers to a sum and a sum of squares, given the sums of their differences from `point` and of the squared
 * differences. If the point is near their mean, the differences are small and float sums of them keep their precision. */
INLINE void move_sums(double point, long n, double sum, double second, double *total, double *total_second) {
    *total += sum + n * point;
    *total_second += second + point * (2 * sum + n * point);
}
INLINE long round_up(long n, long to) { return (n + to - 1) / to * to; }
INLINE long min(long a, long b) { return a < b ? a : b; }
