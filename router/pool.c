/* Worker threads over one bounded list behind a mutex; the mutex is never held while working. */
#include "router/pool.h"

#include "base/alloc.h"
#include "base/assert.h"

#include <pthread.h>
#include <signal.h>
#include <string.h>

#define POOL_THREADS_MAX 64

struct rtr_pool {
    pthread_mutex_t lock;
    pthread_cond_t wake;
    rtr_pool_job *first, *last;
    uint32_t waiting, jobs_max;
    bool stopping;
    uint32_t thread_count;
    pthread_t threads[POOL_THREADS_MAX];
};

static void job_done(void *context)
{
    rtr_pool_job *job = context;
    job->done(job);
}

static rtr_pool_job *take(rtr_pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    while (!pool->first && !pool->stopping)
        pthread_cond_wait(&pool->wake, &pool->lock);
    rtr_pool_job *job = pool->first;
    if (job) {
        pool->first = job->next;
        if (!pool->first)
            pool->last = NULL;
        pool->waiting--;
    }
    pthread_mutex_unlock(&pool->lock);
    return job;
}

static void *pool_main(void *context)
{
    rtr_pool *pool = context;
    rtr_pool_job *job;
    while ((job = take(pool)) != NULL) {
        job->work(job);
        /* Posts are bounded far above what all pools may have outstanding. */
        bool posted = sl_loop_post(job->loop, job_done, job);
        sl_assert(posted);
    }
    return NULL;
}

sl_status rtr_pool_create(uint32_t threads, uint32_t jobs_max, rtr_pool **out_pool, sl_err *err)
{
    sl_assert(threads > 0 && threads <= POOL_THREADS_MAX);
    sl_assert(jobs_max > 0 && jobs_max < SL_LOOP_POSTS_MAX / 2);
    rtr_pool *pool = sl_alloc(1, sizeof *pool, "router pool");
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pool->jobs_max = jobs_max;
    for (uint32_t i = 0; i < threads; i++) {
        if (pthread_create(&pool->threads[i], NULL, pool_main, pool) != 0) {
            rtr_pool_destroy(pool);
            return sl_fail(err, SL_NO_MEMORY, "cannot start a thread");
        }
        pool->thread_count++;
    }
    *out_pool = pool;
    return sl_ok();
}

void rtr_pool_destroy(rtr_pool *pool)
{
    if (!pool)
        return;
    pthread_mutex_lock(&pool->lock);
    sl_assert(!pool->first);
    pool->stopping = true;
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
    for (uint32_t i = 0; i < pool->thread_count; i++)
        pthread_join(pool->threads[i], NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
    sl_free(pool);
}

bool rtr_pool_submit(rtr_pool *pool, rtr_pool_job *job)
{
    bool taken = false;
    job->next = NULL;
    pthread_mutex_lock(&pool->lock);
    if (!pool->stopping && pool->waiting < pool->jobs_max) {
        taken = true;
        if (pool->last)
            pool->last->next = job;
        else
            pool->first = job;
        pool->last = job;
        pool->waiting++;
        pthread_cond_signal(&pool->wake);
    }
    pthread_mutex_unlock(&pool->lock);
    return taken;
}
