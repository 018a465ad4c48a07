/* Pool bench: what a parallel run costs besides its tasks. build/bench/pool [THREADS]
 *
 * Runs of one empty task a thread, one after the other (threads spin) and after a pause longer than
 * they spin (they sleep: one system call wakes them, and nobody waits for who comes late). Clock
 * time; the shortest and the middle one, for on a busy machine the others count other processes. */
#include "kernels/pool.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define RUNS  20000
#define PAUSE 100e3 /* nanoseconds */

static double now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void nothing(void *context, uint32_t task, uint32_t thread)
{
    (void)context, (void)task, (void)thread;
}

static void measure(krn_pool *pool, const char *name, int runs, double pause_ns)
{
    static double times[RUNS];
    uint32_t tasks = krn_pool_threads(pool);
    for (int i = 0; i < runs; i++) {
        double before = now_ns();
        while (pause_ns > 0 && now_ns() - before < pause_ns)
            continue;
        before = now_ns();
        krn_pool_run(pool, tasks, nothing, NULL);
        times[i] = now_ns() - before;
    }
    qsort(times, (size_t)runs, sizeof times[0], by_value);
    printf("%-24s %8.0f ns shortest %8.0f ns middle\n", name, times[0], times[runs / 2]);
}

int main(int argc, char **argv)
{
    krn_pool *pool = NULL;
    sl_err err;
    int threads = argc > 1 ? atoi(argv[1]) : 2;
    if (!sl_is_ok(krn_pool_create(threads, &pool, &err))) {
        fprintf(stderr, "pool bench: %s\n", err.text);
        return 1;
    }
    measure(NULL, "1 thread (and the clock)", RUNS, 0);
    printf("%u threads\n", krn_pool_threads(pool));
    measure(pool, "one after the other", RUNS, 0);
    measure(pool, "after a pause", RUNS / 10, PAUSE);
    krn_pool_destroy(pool);
    return 0;
}
