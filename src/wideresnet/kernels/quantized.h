/* Common to the convolutions that read or write 8-bit maps: how results are stored, as values and as bytes. */
#include "tiles.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

typedef unsigned char byte;

/* Where results go: result + add, or relu(result + add + bias) if there is a bias, to `values`; scale times that + shift,
 * clipped to 0..255 and truncated, to `bytes`. add and values hold floats, or `halves`: the upper 16 bits of floats. */
typedef struct {
    const void *add;
    const float *bias, *scale, *shift;
    void *values;
    byte *bytes;
    int halves;
} Result;

/* What a Result has: bytes alone, or sums too. Where compilers know it, writing results takes fewer tests, which are 2 to
 * 5 % of a layer. */
enum Form { BYTES, FLOATS, HALVES };

INLINE enum Form form_of(Result r) { return !r.add && !r.bias && !r.values ? BYTES : r.halves ? HALVES : FLOATS; }

INLINE Result in_form(Result r, enum Form form) {
    if (form == BYTES) r.add = NULL, r.bias = NULL, r.values = NULL;
    r.halves = form == HALVES;
    return r;
}

typedef unsigned short half;
typedef half halfvec __attribute__((vector_size(2 * VL), aligned(2), may_alias));
typedef unsigned uvec __attribute__((vector_size(4 * VL)));

INLINE vec load_sum(const void *map, int halves, long i) {
    if (!halves) return LOAD((const float *)map + i);
    return (vec)(__builtin_convertvector(*(const halfvec *)((const half *)map + i), uvec) << 16);
}

INLINE void store_sum(void *map, int halves, long i, vec v) {
    if (!halves) STORE((float *)map + i, v);
    else *(halfvec *)((half *)map + i) = __builtin_convertvector(((uvec)v + 0x8000) >> 16, halfvec); /* rounded */
}

/* Clip, truncate and store `num` vectors, at most 4, at addresses `step` apart. */
INLINE void to_bytes(const vec v[4], int num, byte *at, long step) {
#if defined(__AVX512BW__)
    for (int j = 0; j < num; j++) { /* what exceeds an int becomes the largest one; NaN becomes 0 */
        __m512i whole = _mm512_cvttps_epu32(_mm512_max_ps((__m512)v[j], (__m512)all(0)));
        _mm_storeu_si128((__m128i *)(at + j * step), _mm512_cvtusepi32_epi8(whole));
    }
#elif defined(__AVX2__) && !defined(__AVX512F__)
    __m256i w[4]; /* packing saturates; what exceeds an int is clipped first */
    for (int j = 0; j < 4; j++) w[j] = _mm256_cvttps_epi32(_mm256_min_ps((__m256)v[j < num ? j : 0], (__m256)all(255)));
    __m256i all4 = _mm256_packus_epi16(_mm256_packs_epi32(w[0], w[1]), _mm256_packs_epi32(w[2], w[3]));
    all4 = _mm256_permutevar8x32_epi32(all4, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    __m128i low = _mm256_castsi256_si128(all4), high = _mm256_extracti128_si256(all4, 1);
    _mm_storel_epi64((__m128i *)at, low);
    if (num > 1) _mm_storeh_pd((double *)(at + step), (__m128d)low);
    if (num > 2) _mm_storel_epi64((__m128i *)(at + 2 * step), high);
    if (num > 3) _mm_storeh_pd((double *)(at + 3 * step), (__m128d)high);
#else
    for (int j = 0; j < num; j++) {
        vec value = relu(v[j]);
        ivec over = value > 255;
        ivec whole = __builtin_convertvector((vec)(((ivec)value & ~over) | ((ivec)all(255) & over)), ivec);
        for (int l = 0; l < VL; l++) at[j * step + l] = (byte)whole[l];
    }
#endif
}

/* Ask for the memory of `num` adjacent outputs that will be written soon: a line of each. */
INLINE void fetch(Result r, int num, long at, long step) {
    long size = r.halves ? sizeof(half) : sizeof(float);
    if (r.add)
        for (int j = 0; j < num; j++) PREFETCH((const char *)r.add, (at + j * step) * size);
    if (r.values)
        for (int j = 0; j < num; j++) PREFETCH_TO_WRITE((const char *)r.values, (at + j * step) * size);
}

/* Write `num` adjacent outputs, at most 4, of VL channels from c: the first at `at`, the others `step` apart. What v
 * holds is overwritten. */
INLINE void put(Result r, vec v[4], int num, long at, long step, long c) {
    if (r.add)
        for (int j = 0; j < num; j++) v[j] += load_sum(r.add, r.halves, at + j * step);
    if (r.bias) {
        vec bias = LOAD(r.bias + c);
        for (int j = 0; j < num; j++) v[j] = relu(v[j] + bias);
    }
    if (r.values)
        for (int j = 0; j < num; j++) store_sum(r.values, r.halves, at + j * step, v[j]);
    if (r.bytes) {
        vec scale = LOAD(r.scale + c), shift = LOAD(r.shift + c);
        for (int j = 0; j < num; j++) v[j] = v[j] * scale + shift;
        to_bytes(v, num, r.bytes + at, step);
    }
}
