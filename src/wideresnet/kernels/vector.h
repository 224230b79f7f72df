/* Vectors of floats as wide as the processor's, in the language that GCC and Clang share. */
#include <stdlib.h>
#include <string.h>

/* Lanes of a vector; MR rows and NV vectors of a matrix product are held in registers. */
#if defined(__AVX512F__)
enum { VL = 16, MR = 12, NV = 2 };
#elif defined(__AVX__)
enum { VL = 8, MR = 6, NV = 2 };
#else
enum { VL = 4, MR = 6, NV = 4 };
#endif
enum { NB = NV * VL, NF = 36 };

typedef float vec __attribute__((vector_size(4 * VL), aligned(4), may_alias));
typedef int ivec __attribute__((vector_size(4 * VL)));
#define INLINE static inline __attribute__((always_inline))
#define LOAD(p) (*(const vec *)(p))
#define STORE(p, v) (*(vec *)(p) = (v))

INLINE vec all(float s) { return s - (vec){0}; }
/* v, or 0 where z is not above 0; what is not a number stays so. */
INLINE vec where_positive(vec z, vec v) { return (vec)((ivec)v & ~(z <= 0)); }
INLINE vec relu(vec v) { return where_positive(v, v); }
/* Adds to the sums of n numbers and of their squares what is known of them around a point near their mean. */
INLINE void move_sums(double point, long n, double sum, double second, double *total, double *total_second) {
    *total += sum + n * point;
    *total_second += second + point * (2 * sum + n * point);
}
INLINE long up(long n, long to) { return (n + to - 1) / to * to; }
INLINE long least(long a, long b) { return a < b ? a : b; }
