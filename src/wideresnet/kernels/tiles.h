/* Common to the kernels that work on tiles: see winograd.c. */
#include "vector.h"

/* Scratch memory of the calling thread for `num` floats, or NULL. It grows and is reused by later calls; 0 returns what
 * there is. */
float *wrn_scratch(long num);

/* Bytes of transformed weights that no cache keeps until the next block of tiles, so that blocks should be large. The
 * last layers of WRN-28-10 have 28 MiB in 16 bits and 56 in fp32; a third-level cache has about 32. */
enum { NO_CACHE = 24 << 20 };

typedef struct { long B, H, W, C; } Shape; /* of a map */
INLINE long tiles_down(Shape s) { return (s.H + 3) / 4; }
INLINE long tiles_across(Shape s) { return (s.W + 3) / 4; }
INLINE long num_tiles(Shape s) { return s.B * tiles_down(s) * tiles_across(s); }

typedef struct { long image, top, left; } Place; /* of a tile's first output */
INLINE Place place(Shape s, long tile) {
    long across = tiles_across(s), down = tiles_down(s);
    return (Place){tile / across / down, tile / across % down * 4, tile % across * 4};
}

/* Whether no cache keeps a map until the next operation reads it. */
INLINE int is_large(Shape s) { return 4 * s.B * s.H * s.W * s.C > NO_CACHE; }

/* Ask for the channels from..to - 1 of a tile of `size` x `size` positions in a map of `scale` times the resolution of p.
 * This is for times of computing, when memory is idle; its latency is more than what prefetching the next tile hides. */
INLINE void fetch_tile(const float *map, Shape s, int scale, Place p, int size, long from, long to) {
    long top = scale * p.top, left = scale * p.left;
    int height = (int)min(size, s.H - top), width = (int)min(size, s.W - left);
    for (int i = 0; i < height; i++)
        for (int j = 0; j < width; j++)
            for (long c = from; c < to; c += 16)
                __builtin_prefetch(map + ((p.image * s.H + top + i) * s.W + left + j) * s.C + c, 0, 2);
}

INLINE void output_1d(const vec m[6], vec y[4]) { /* A^T */
    vec s1 = m[1] + m[2], d1 = m[1] - m[2], s2 = m[3] + m[4], d2 = m[3] - m[4];
    y[0] = m[0] + s1 + s2;
    y[1] = d1 + 2 * d2;
    y[2] = s1 + 4 * s2;
    y[3] = d1 + 8 * d2 + m[5];
}
