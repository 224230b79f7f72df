/* Scratch memory of a thread: grows, and is kept until the thread ends. Huge pages mean fewer TLB misses. */
#include <pthread.h>

#include "tiles.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

enum { HUGE_PAGE = 1 << 21 };
static __thread float *scratch_memory;
static __thread long scratch_size;
static pthread_key_t scratch_key; /* its destructor frees the scratch when the thread ends */
static pthread_once_t scratch_once = PTHREAD_ONCE_INIT;

static void make_scratch_key(void) { pthread_key_create(&scratch_key, free); }

float *wrn_scratch(long num) {
    if (num > scratch_size) {
        free(scratch_memory);
        scratch_memory = aligned_alloc(HUGE_PAGE, round_up(4 * num, HUGE_PAGE));
#ifdef MADV_HUGEPAGE
        if (scratch_memory) madvise(scratch_memory, round_up(4 * num, HUGE_PAGE), MADV_HUGEPAGE);
#endif
        scratch_size = scratch_memory ? num : 0;
        pthread_once(&scratch_once, make_scratch_key);
        pthread_setspecific(scratch_key, scratch_memory);
    }
    return scratch_memory;
}
