/* Event loop: epoll, timers, posted calls. One loop per thread; an object belongs to one loop.
 *
 * Iteration order: timers that are due, ready descriptors, posted calls, after-hook (flushes what
 * the pass collected). Thread: create anywhere, run on one thread; every call but sl_loop_post and
 * sl_loop_stop asserts that thread (or that the loop does not run yet). */
#ifndef BASE_LOOP_H
#define BASE_LOOP_H

#include "base/clock.h"
#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct sl_loop sl_loop;
typedef struct sl_watch sl_watch; /* one descriptor */
typedef struct sl_timer sl_timer;

typedef void (*sl_watch_fn)(void *context, uint32_t epoll_events);
typedef void (*sl_timer_fn)(void *context, sl_time_ns now);
typedef void (*sl_post_fn)(void *context);

SL_MUST_USE sl_status sl_loop_create(sl_loop **out_loop, sl_err *err);
void sl_loop_destroy(sl_loop *loop);
void sl_loop_run(sl_loop *loop);  /* until sl_loop_stop */
void sl_loop_stop(sl_loop *loop); /* any thread, also a signal handler */
/* One pass; waits at most timeout_ms (-1 = until something happens). For tests and embedding. */
void sl_loop_run_once(sl_loop *loop, int timeout_ms);
sl_time_ns sl_loop_now(const sl_loop *loop); /* time at the start of this pass's current callback */
void sl_loop_assert_owner(const sl_loop *loop);
/* Called at the end of every pass. */
void sl_loop_set_after(sl_loop *loop, sl_post_fn after, void *context);

/* events: EPOLLIN etc. as given (EPOLLET if wanted). The watch does not own fd. */
SL_MUST_USE sl_status sl_watch_create(sl_loop *loop, int fd, uint32_t events, sl_watch_fn fn,
                                      void *context, sl_watch **out_watch, sl_err *err);
SL_MUST_USE sl_status sl_watch_modify(sl_watch *watch, uint32_t events);
/* Safe inside callbacks, also of other watches of the same pass. NULL is fine. */
void sl_watch_destroy(sl_watch *watch);

sl_timer *sl_timer_create(sl_loop *loop, sl_timer_fn fn, void *context);
void sl_timer_set(sl_timer *timer, sl_time_ns at); /* SL_NEVER disarms */
void sl_timer_destroy(sl_timer *timer);

/* Any thread: run fn(context) on the loop's thread. Bounded by SL_LOOP_POSTS_MAX: false = full. */
#define SL_LOOP_POSTS_MAX 65536
SL_MUST_USE bool sl_loop_post(sl_loop *loop, sl_post_fn fn, void *context);

#ifdef __cplusplus
}
#endif
#endif
