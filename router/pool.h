/* A few threads for work that would stall a loop: encoding long prompts.
 *
 * Jobs are embedded in the caller's struct, run once in order of arrival, and come back to the loop
 * that sent them. Submit and done: the loop's thread; work: a pool thread. */
#ifndef ROUTER_POOL_H
#define ROUTER_POOL_H

#include "base/loop.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct rtr_pool rtr_pool;

typedef struct rtr_pool_job {
    struct rtr_pool_job *next;
    sl_loop *loop;
    void (*work)(struct rtr_pool_job *job); /* on a pool thread */
    void (*done)(struct rtr_pool_job *job); /* on the loop */
} rtr_pool_job;

SL_MUST_USE sl_status rtr_pool_create(uint32_t threads, uint32_t jobs_max, rtr_pool **out_pool,
                                      sl_err *err);
/* No job may be outstanding. NULL is fine. */
void rtr_pool_destroy(rtr_pool *pool);
/* False = full; the job was not taken. loop, work and done must be set. */
SL_MUST_USE bool rtr_pool_submit(rtr_pool *pool, rtr_pool_job *job);

#ifdef __cplusplus
}
#endif
#endif
