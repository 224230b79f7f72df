/* Runs the parts of a loop on several threads: see pool.c. */

/* The part first..last - 1 of a loop, whose arguments are in `job`. */
typedef void Part(void *job, long first, long last);

/* Run 0..num - 1 on at most `threads` threads, the caller's included, in parts of `grain`; returns when all is done.
 * Which thread runs a part is open. The parts may also come as one. */
__attribute__((visibility("hidden"))) void in_parallel(int threads, long num, long grain, Part *run, void *job);

/* A grain such that each thread has about four parts, but none is smaller than `least`. */
static inline long grain_of(long num, long least, int threads) {
    long quarter = num / (4L * threads) + 1;
    return quarter > least ? quarter : least;
}
