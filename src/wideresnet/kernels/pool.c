/* A pool of threads for the loops of the kernels.
 *
 * A loop is divided into parts, a few per thread. Every thread that has nothing to do takes the next part until none is
 * left: one atomic word, the ticket, holds how many are. So the caller waits for parts that another thread has begun,
 * and never for a thread that the system has not scheduled: on a busy machine it runs most parts itself. The teams of
 * OpenMP, which this replaces, meet at the end of each loop, where the slowest one to be scheduled is waited for.
 *
 * Threads wait for the next loop by spinning for a moment, since it often follows within microseconds, then asleep: the
 * threads of PyTorch need the same cores. They start when they are first needed, block all signals, which are for the
 * threads of the program, and end with the process. A second caller at the same time, a machine that starts no thread,
 * and the child of a fork, which has none of them at first, compute alone what they cannot share.
 *
 * Source: self-scheduling by a shared counter is "chunk scheduling" of Kruskal & Weiss 1985 (IEEE TSE 11(10)).
 */
#include "pool.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <time.h>

enum { SPIN_US = 200, MOST = 1024 };

/* The one loop that runs. It is written while no part can be taken, and read by who has taken one. */
static struct { Part *run; void *job; long num, grain; uint32_t parts; } loop;
static _Atomic uint64_t ticket; /* threads that may take part << 32 | parts left */
static _Atomic uint32_t done;   /* parts that are finished */
static atomic_int num_asleep, caller_asleep;

static pthread_mutex_t one_caller = PTHREAD_MUTEX_INITIALIZER, sleep_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t work = PTHREAD_COND_INITIALIZER, finished = PTHREAD_COND_INITIALIZER;
static uintptr_t num_threads = 1, most_threads = MOST; /* with the caller; most_threads falls if one does not start */

static int has_work(uintptr_t thread) {
    uint64_t now = atomic_load(&ticket);
    return (uint32_t)now && thread < now >> 32;
}

static int is_finished(uintptr_t thread) {
    (void)thread;
    return atomic_load(&done) == loop.parts;
}

/* Take a part and run it; returns 0 if none is left. */
static int take(uintptr_t thread) {
    uint64_t now = atomic_load(&ticket);
    do {
        if (!(uint32_t)now || thread >= now >> 32) return 0;
    } while (!atomic_compare_exchange_weak(&ticket, &now, now - 1));
    uint32_t parts = loop.parts; /* the caller may prepare the next loop as soon as this part counts as done */
    long first = (long)(parts - (uint32_t)now) * loop.grain, last = first + loop.grain;
    loop.run(loop.job, first, last < loop.num ? last : loop.num);
    if (atomic_fetch_add(&done, 1) + 1 == parts && atomic_load(&caller_asleep)) {
        pthread_mutex_lock(&sleep_lock);
        pthread_cond_signal(&finished);
        pthread_mutex_unlock(&sleep_lock);
    }
    return 1;
}

static long now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000L + now.tv_nsec / 1000;
}

/* Spin until the condition holds; returns 0 if it does not within SPIN_US. */
static int spin(int (*holds)(uintptr_t), uintptr_t thread) {
    for (long end = now_us() + SPIN_US; now_us() < end;)
        for (int i = 0; i < 16; i++) {
            if (holds(thread)) return 1;
#if defined(__x86_64__) || defined(__i386__)
            __builtin_ia32_pause();
#elif defined(__aarch64__)
            __asm__ volatile("isb"); /* "yield" does nothing on most processors */
#endif
        }
    return 0;
}

/* Sleep until the condition holds, or sooner. Whoever makes it hold then looks at `asleep`: one of the two sees the
 * other, as all of these atomic operations have one order. */
static void doze(int (*holds)(uintptr_t), uintptr_t thread, atomic_int *asleep, pthread_cond_t *wake) {
    pthread_mutex_lock(&sleep_lock);
    atomic_fetch_add(asleep, 1);
    if (!holds(thread)) pthread_cond_wait(wake, &sleep_lock);
    atomic_fetch_sub(asleep, 1);
    pthread_mutex_unlock(&sleep_lock);
}

static void *serve(void *thread) {
    for (;;) /* who wakes too late for a loop spins again, to be there for the next one */
        if (!take((uintptr_t)thread) && !spin(has_work, (uintptr_t)thread))
            doze(has_work, (uintptr_t)thread, &num_asleep, &work);
    return NULL;
}

static void before_fork(void) {
    pthread_mutex_lock(&one_caller);
    pthread_mutex_lock(&sleep_lock);
}

static void after_fork(void) {
    pthread_mutex_unlock(&sleep_lock);
    pthread_mutex_unlock(&one_caller);
}

static void in_child(void) { /* only the thread that forked is left */
    num_threads = 1;
    num_asleep = caller_asleep = 0;
    pthread_cond_init(&work, NULL);
    pthread_cond_init(&finished, NULL);
    after_fork();
}

static void watch_forks(void) { pthread_atfork(before_fork, after_fork, in_child); }

/* Start threads until there are `wanted`, or none starts any more. */
static void start_threads(uintptr_t wanted) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch_forks);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (pthread_t started; num_threads < wanted; num_threads++) {
        if (pthread_create(&started, NULL, serve, (void *)num_threads)) {
            most_threads = num_threads;
            break;
        }
        pthread_detach(started);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void in_parallel(int threads, long num, long grain, Part *run, void *job) {
    if (threads < 2 || num <= grain || pthread_mutex_trylock(&one_caller)) {
        run(job, 0, num);
        return;
    }
    uintptr_t wanted = (uintptr_t)threads < most_threads ? (uintptr_t)threads : most_threads;
    if (num_threads < wanted) start_threads(wanted);
    loop.run = run, loop.job = job, loop.num = num, loop.grain = grain;
    loop.parts = (uint32_t)((num + grain - 1) / grain);
    atomic_store(&done, 0);
    atomic_store(&ticket, (uint64_t)threads << 32 | loop.parts);
    if (atomic_load(&num_asleep)) {
        pthread_mutex_lock(&sleep_lock);
        pthread_cond_broadcast(&work);
        pthread_mutex_unlock(&sleep_lock);
    }
    while (take(0)) {}
    while (!is_finished(0) && !spin(is_finished, 0)) doze(is_finished, 0, &caller_asleep, &finished);
    pthread_mutex_unlock(&one_caller);
}
