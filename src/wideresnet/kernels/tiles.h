/* What the kernels that work on tiles have in common: see winograd.c. */
#include "vector.h"

/* Memory of the calling thread for so many floats, NULL without; it grows and is kept. */
float *wrn_scratch(long num);

/* Bytes of weights that no cache keeps until the next block of tiles, so that blocks had better be large: WRN-28-10's
 * last layers have 28 MiB in 16 bits and 56 in fp32, and a processor's third level about 32. */
enum { NO_CACHE = 24 << 20 };

typedef struct { long B, H, W, C; } Shape;
INLINE long tiles_down(Shape s) { return (s.H + 3) / 4; }
INLINE long tiles_across(Shape s) { return (s.W + 3) / 4; }
INLINE long num_tiles(Shape s) { return s.B * tiles_down(s) * tiles_across(s); }

typedef struct { long image, top, left; } Place;
INLINE Place place(Shape s, long tile) {
    long across = tiles_across(s), down = tiles_down(s);
    return (Place){tile / across / down, tile / across % down * 4, tile % across * 4};
}

INLINE void output_1d(const vec m[6], vec y[4]) { /* A^T */
    vec s1 = m[1] + m[2], d1 = m[1] - m[2], s2 = m[3] + m[4], d2 = m[3] - m[4];
    y[0] = m[0] + s1 + s2;
    y[1] = d1 + 2 * d2;
    y[2] = s1 + 4 * s2;
    y[3] = d1 + 8 * d2 + m[5];
}
