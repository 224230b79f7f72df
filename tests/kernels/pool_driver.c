/* Drives the pool of threads alone, natively and under ThreadSanitizer: exit code 0 if every loop ran each index once. */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "pool.h"

/* Stands for pthread_create in a pool that cannot start a thread. */
int start_nothing(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument) {
    return (void)thread, (void)attributes, (void)run, (void)argument, EAGAIN;
}

enum { MOST = 5000 };
typedef struct { int seen[MOST]; } Job;

static void mark(void *job, long first, long last) {
    for (long i = first; i < last; i++) ((Job *)job)->seen[i]++;
}

static void loops(int seed, int rounds) {
    Job *job = calloc(1, sizeof(Job));
    for (int round = 0; round < rounds; round++) {
        int threads = 1 + (seed + round) % 7;
        long num = (seed + 37 * round) % MOST, grain = 1 + round % 13;
        for (long i = 0; i < num; i++) job->seen[i] = 0;
        in_parallel(threads, num, grain, mark, job);
        for (long i = 0; i < num; i++)
            if (job->seen[i] != 1) printf("index %ld of %ld ran %d times\n", i, num, job->seen[i]), exit(1);
        if (round % 200 == 0) usleep(2000); /* long enough for the threads to fall asleep */
    }
    free(job);
}

static void *caller(void *seed) {
    loops(*(int *)seed, 2000);
    return NULL;
}

int main(int num_arguments, char **arguments) {
    int seeds[3] = {1, 2, 3};
    pthread_t callers[3];
    loops(0, 2000);
    for (int i = 0; i < 3; i++) pthread_create(&callers[i], NULL, caller, &seeds[i]);
    for (int i = 0; num_arguments > 1 && atoi(arguments[1]) > i; i++) { /* forks while others compute */
        pid_t child = fork();
        if (child == 0) {
            loops(i, 300);
            _exit(0);
        }
        int status = 1;
        if (child < 0 || waitpid(child, &status, 0) != child || status != 0) return printf("the child failed\n"), 1;
    }
    for (int i = 0; i < 3; i++) pthread_join(callers[i], NULL);
    return 0; /* while the threads of the pool spin */
}
