/* The kernels' thread pool.
 *
 * Owns its threads. A run is published in three steps so that a late thread can never take a task
 * of a newer run with an older run's fields: the claim word is blocked, the fields are written,
 * then the claim word opens with the run's number. A task is taken by a compare-and-swap on the
 * whole word (run number, next task), which fails if anything changed since the fields were read.
 * The caller waits for tasks, not for threads: a thread that never woke costs nothing. */
#include "kernels/cpu/variant.h"

#include "base/alloc.h"
#include "base/numa.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

#define CLAIM_BLOCKED 0xFFFFFFFFu
/* About 10 us: longer than the serial gaps inside a layer, short enough to leave the core to other
 * processes between steps. */
#define SPIN_ROUNDS 400

typedef struct pool_thread {
    pthread_t handle;
    krn_pool *pool;
    uint32_t index;
} pool_thread;

struct krn_pool {
    uint32_t thread_count;
    uint32_t thread_count_wanted;
    sl_numa numa;
    uint8_t pad0[64];       /* padding keeps the words that different threads write apart */
    _Atomic uint64_t claim; /* run number << 32 | next task */
    uint8_t pad1[64];
    _Atomic uint32_t done; /* finished tasks of the run; futex of the caller */
    _Atomic uint32_t caller_waits;
    uint8_t pad2[64];
    _Atomic uint32_t wake; /* futex of the threads */
    _Atomic uint32_t sleepers;
    _Atomic bool stop;
    uint8_t pad3[64];
    _Atomic uint32_t task_count;
    _Atomic(krn_task_fn) run;
    _Atomic(void *) context;
    pool_thread threads[];
};

static void futex_wait(_Atomic uint32_t *word, uint32_t seen)
{
    (void)syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word, int count)
{
    (void)syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
}

static void pause_briefly(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    atomic_thread_fence(memory_order_seq_cst);
#endif
}

/* Takes and runs one task; false: none to take. */
static bool run_one(krn_pool *pool, uint32_t thread)
{
    uint64_t claim = atomic_load_explicit(&pool->claim, memory_order_acquire);
    for (;;) {
        uint32_t task = (uint32_t)claim;
        /* acquire: a field of a newer run seen here makes the exchange below fail. */
        uint32_t count = atomic_load_explicit(&pool->task_count, memory_order_acquire);
        krn_task_fn run = atomic_load_explicit(&pool->run, memory_order_acquire);
        void *context = atomic_load_explicit(&pool->context, memory_order_acquire);
        if (task == CLAIM_BLOCKED || task >= count)
            return false;
        if (!atomic_compare_exchange_weak_explicit(&pool->claim, &claim, claim + 1,
                                                   memory_order_acq_rel, memory_order_acquire))
            continue;
        run(context, task, thread);
        atomic_fetch_add(&pool->done, 1);
        /* seq_cst on both words: either the caller sees the count or we see it waiting. */
        if (atomic_load(&pool->caller_waits))
            futex_wake(&pool->done, 1);
        return true;
    }
}

static void *thread_main(void *argument)
{
    pool_thread *self = argument;
    krn_pool *pool = self->pool;
    int idle = 0;
    sl_numa_pin(&pool->numa, self->index, pool->thread_count_wanted);
    while (!atomic_load_explicit(&pool->stop, memory_order_acquire)) {
        uint32_t seen = atomic_load(&pool->wake);
        if (run_one(pool, self->index)) {
            idle = 0;
            continue;
        }
        if (++idle < SPIN_ROUNDS) {
            pause_briefly();
            continue;
        }
        atomic_fetch_add(&pool->sleepers, 1);
        /* `seen` was read before the last look for a task: a run published since changed it. */
        futex_wait(&pool->wake, seen);
        atomic_fetch_sub(&pool->sleepers, 1);
        idle = 0;
    }
    return NULL;
}

static int usable_cores(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        return CPU_COUNT(&set);
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? (int)online : 1;
}

sl_status krn_pool_create(int threads, krn_pool **out_pool, sl_err *err)
{
    if (threads == 0)
        threads = usable_cores();
    if (threads < 0)
        return sl_fail(err, SL_INVALID, "threads: %d is negative", threads);
    if (threads > KRN_POOL_THREADS_MAX)
        threads = KRN_POOL_THREADS_MAX;
    krn_pool *pool =
        sl_alloc(1, sizeof(krn_pool) + (size_t)threads * sizeof(pool_thread), "kernel pool");
    pool->thread_count = 1;
    pool->thread_count_wanted = (uint32_t)threads;
    sl_numa_here(&pool->numa);
    atomic_store(&pool->claim, CLAIM_BLOCKED);
    for (int i = 1; i < threads; i++) {
        pool_thread *thread = &pool->threads[i];
        thread->pool = pool;
        thread->index = (uint32_t)i;
        int rc = pthread_create(&thread->handle, NULL, thread_main, thread);
        if (rc != 0) {
            krn_pool_destroy(pool);
            return sl_fail(err, SL_NO_MEMORY, "cannot start kernel thread %d of %d: error %d", i,
                           threads, rc);
        }
        pool->thread_count++;
    }
    *out_pool = pool;
    return sl_ok();
}

void krn_pool_destroy(krn_pool *pool)
{
    if (pool == NULL)
        return;
    atomic_store(&pool->stop, true);
    atomic_fetch_add(&pool->wake, 1);
    futex_wake(&pool->wake, (int)pool->thread_count);
    for (uint32_t i = 1; i < pool->thread_count; i++)
        pthread_join(pool->threads[i].handle, NULL);
    sl_free(pool);
}

uint32_t krn_pool_threads(const krn_pool *pool)
{
    return pool == NULL ? 1 : pool->thread_count;
}

static void wait_done(krn_pool *pool, uint32_t count)
{
    for (int i = 0; i < SPIN_ROUNDS; i++) {
        if (atomic_load_explicit(&pool->done, memory_order_acquire) == count)
            return;
        pause_briefly();
    }
    atomic_store(&pool->caller_waits, 1);
    for (;;) {
        uint32_t done = atomic_load(&pool->done);
        if (done == count)
            break;
        futex_wait(&pool->done, done);
    }
    atomic_store(&pool->caller_waits, 0);
}

void krn_pool_run(krn_pool *pool, uint32_t task_count, krn_task_fn run, void *context)
{
    if (pool == NULL || pool->thread_count == 1 || task_count < 2) {
        for (uint32_t i = 0; i < task_count; i++)
            run(context, i, 0);
        return;
    }
    uint64_t number = (atomic_load_explicit(&pool->claim, memory_order_relaxed) >> 32) + 1;
    atomic_store_explicit(&pool->claim, number << 32 | CLAIM_BLOCKED, memory_order_seq_cst);
    atomic_store_explicit(&pool->done, 0, memory_order_release);
    atomic_store_explicit(&pool->task_count, task_count, memory_order_release);
    atomic_store_explicit(&pool->run, run, memory_order_release);
    atomic_store_explicit(&pool->context, context, memory_order_release);
    atomic_store_explicit(&pool->claim, number << 32, memory_order_release);
    atomic_fetch_add(&pool->wake, 1);
    if (atomic_load(&pool->sleepers) > 0)
        futex_wake(&pool->wake, (int)pool->thread_count);
    while (run_one(pool, 0))
        continue;
    wait_done(pool, task_count);
}

typedef struct slices {
    uint32_t total, size;
    krn_slice_fn run;
    void *context;
} slices;

static void slice_task(void *context, uint32_t task, uint32_t thread)
{
    const slices *s = context;
    uint32_t first = task * s->size;
    uint32_t left = s->total - first;
    (void)thread;
    s->run(s->context, first, left < s->size ? left : s->size);
}

void krn_pool_slices(krn_pool *pool, uint32_t total, uint32_t grain, krn_slice_fn run,
                     void *context)
{
    if (total == 0)
        return;
    uint32_t threads = krn_pool_threads(pool);
    /* A few slices a thread even out differences without many claims. */
    uint32_t size = (total + 4 * threads - 1) / (4 * threads);
    if (size < grain)
        size = grain;
    if (threads == 1 || size >= total) {
        run(context, 0, total);
        return;
    }
    slices s = {.total = total, .size = size, .run = run, .context = context};
    krn_pool_run(pool, (total + size - 1) / size, slice_task, &s);
}
