/* The kernels' threads: a fixed pool that runs independent tasks.
 *
 * krn_pool_run hands out tasks 0..count-1 to the caller and the pool's threads and returns when all
 * are done. Idle threads spin for a few microseconds, then sleep on a futex. Where the machine has
 * several memory nodes, the pool's threads are spread over them and stay there (base/numa.h). Which
 * thread runs a task never shows in a result: tasks own disjoint outputs. One thread at a time may
 * call krn_pool_run on a pool (the engine thread); tasks may not call it. */
#ifndef KERNELS_POOL_H
#define KERNELS_POOL_H

#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

#define KRN_POOL_THREADS_MAX 256

typedef struct krn_pool krn_pool;

/* thread: 0 = the caller, 1..threads-1 = pool threads (index of per-thread scratch). */
typedef void (*krn_task_fn)(void *context, uint32_t task, uint32_t thread);

/* threads: the caller included; 0 = all cores this process may use. 1 starts no thread. */
SL_MUST_USE sl_status krn_pool_create(int threads, krn_pool **out_pool, sl_err *err);
void krn_pool_destroy(krn_pool *pool);
/* 1 for NULL: every kernel takes NULL and then runs on its caller alone. */
uint32_t krn_pool_threads(const krn_pool *pool);
void krn_pool_run(krn_pool *pool, uint32_t task_count, krn_task_fn run, void *context);

#ifdef __cplusplus
}
#endif
#endif
