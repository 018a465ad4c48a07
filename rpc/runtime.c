/* The runtime: completion queue, poller thread, bridge into the loop.
 *
 * Owns the queue, the thread and the mailbox. The poller thread runs only poller_main: it carries
 * tags, touches no object. Everything else runs on the loop's thread. Blocks only in destroy. */
#include "rpc/runtime.h"

#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>

#include <grpc/support/log.h>

#include "base/alloc.h"
#include "base/log.h"
#include "base/ring.h"
#include "rpc/internal.h"

#define EVENTS_MAX      16384 /* ring between poller and loop */
#define EVENTS_PER_PASS 1024  /* then the loop's other work has its turn */

#ifdef __SANITIZE_THREAD__
int rpc_fence_word;
#endif

typedef struct event {
    rpc_op *op;
    bool ok;
} event;

static void *poller_main(void *argument)
{
    rpc_runtime *runtime = argument;
    pthread_setname_np(pthread_self(), "rpc-poll");
    for (;;) {
        grpc_event got =
            grpc_completion_queue_next(runtime->queue, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
        if (got.type == GRPC_QUEUE_SHUTDOWN)
            return NULL;
        if (got.type != GRPC_OP_COMPLETE)
            continue;
        event item = {got.tag, got.success != 0};
        /* Full only while the loop's thread is held up: there is nothing useful to do meanwhile. */
        while (!sl_mailbox_push(runtime->mailbox, &item))
            nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
    }
}

/* gRPC reports what calls report too: only for debugging. Any thread. */
static void on_grpc_log(gpr_log_func_args *line)
{
    sl_debug("grpc: %s (%s:%d)", line->message, line->file, line->line);
}

static void run_deferred(rpc_runtime *runtime)
{
    rpc_op *op = runtime->deferred; /* those added meanwhile wait for the next pass */
    runtime->deferred = NULL;
    runtime->deferred_tail = &runtime->deferred;
    while (op) {
        rpc_op *next = op->next;
        op->next = NULL;
        op->done(op->owner, true);
        op = next;
    }
}

static void dispatch(rpc_runtime *runtime)
{
    sl_mailbox_clear(runtime->mailbox);
    runtime->dispatching = true;
    run_deferred(runtime);
    event item;
    int budget = EVENTS_PER_PASS;
    while (budget > 0 && sl_mailbox_pop(runtime->mailbox, &item)) {
        rpc_fence_acquire();
        sl_assert(runtime->outstanding > 0);
        runtime->outstanding--;
        item.op->done(item.op->owner, item.ok);
        budget--;
    }
    runtime->dispatching = false;
    if (budget == 0 || runtime->deferred)
        sl_mailbox_wake(runtime->mailbox);
}

static void on_readable(void *context, uint32_t events)
{
    (void)events;
    dispatch(context);
}

void rpc_op_begin(rpc_runtime *runtime)
{
    rpc_fence_release();
    runtime->outstanding++;
}

void rpc_batch(rpc_runtime *runtime, grpc_call *call, const grpc_op *ops, size_t op_count,
               rpc_op *op)
{
    rpc_op_begin(runtime);
    grpc_call_error error = grpc_call_start_batch(call, ops, op_count, op, NULL);
    sl_assert(error == GRPC_CALL_OK);
}

void rpc_defer(rpc_runtime *runtime, rpc_op *op)
{
    op->next = NULL;
    *runtime->deferred_tail = op;
    runtime->deferred_tail = &op->next;
    sl_mailbox_wake(runtime->mailbox);
}

gpr_timespec rpc_deadline(sl_time_ns deadline)
{
    if (deadline == 0 || deadline == SL_NEVER)
        return gpr_inf_future(GPR_CLOCK_MONOTONIC);
    sl_time_ns now = sl_now_ns();
    int64_t left = deadline > now ? (int64_t)(deadline - now) : 0;
    return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_nanos(left, GPR_TIMESPAN));
}

sl_status rpc_runtime_create(sl_loop *loop, rpc_runtime **out_runtime, sl_err *err)
{
    rpc_runtime *runtime = sl_alloc(1, sizeof(*runtime), "rpc runtime");
    runtime->loop = loop;
    runtime->deferred_tail = &runtime->deferred;
    rpc_list_init(&runtime->channels);
    rpc_list_init(&runtime->servers);
    sl_status status = sl_mailbox_create(sizeof(event), EVENTS_MAX, &runtime->mailbox, err);
    if (!sl_is_ok(status))
        goto err_free;
    status = sl_watch_create(loop, sl_mailbox_fd(runtime->mailbox), EPOLLIN, on_readable, runtime,
                             &runtime->watch, err);
    if (!sl_is_ok(status))
        goto err_mailbox;

    /* Signals belong to the loop's thread: gRPC's threads and ours inherit a full mask. */
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    gpr_set_log_function(on_grpc_log);
    grpc_init();
    runtime->queue = grpc_completion_queue_create_for_next(NULL);
    int failed = pthread_create(&runtime->poller, NULL, poller_main, runtime);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (failed) {
        status = sl_fail(err, SL_IO, "start the rpc poller thread: %s", strerror(failed));
        goto err_queue;
    }
    *out_runtime = runtime;
    return sl_ok();

err_queue:
    grpc_completion_queue_shutdown(runtime->queue);
    grpc_completion_queue_destroy(runtime->queue);
    grpc_shutdown_blocking();
    sl_watch_destroy(runtime->watch);
err_mailbox:
    sl_mailbox_destroy(runtime->mailbox);
err_free:
    sl_free(runtime);
    return status;
}

void rpc_runtime_destroy(rpc_runtime *runtime)
{
    if (!runtime)
        return;
    sl_loop_assert_owner(runtime->loop);
    sl_assert(!runtime->dispatching);
    runtime->closing = true;
    while (runtime->channels.next != &runtime->channels)
        rpc_channel_destroy(rpc_list_entry(runtime->channels.next, rpc_channel, link));
    for (rpc_link *link = runtime->servers.next, *next; link != &runtime->servers; link = next) {
        next = link->next;
        rpc_server_destroy(rpc_list_entry(link, rpc_server, link));
    }
    /* A batch on a queue that was shut aborts the process: only when nothing is left. */
    while (runtime->outstanding > 0 || runtime->deferred || runtime->live_calls > 0 ||
           runtime->servers.next != &runtime->servers) {
        if (!runtime->deferred)
            sl_mailbox_wait(runtime->mailbox, sl_now_ns() + SL_S_NS);
        dispatch(runtime);
    }
    grpc_completion_queue_shutdown(runtime->queue);
    pthread_join(runtime->poller, NULL);
    grpc_completion_queue_destroy(runtime->queue);
    grpc_shutdown_blocking();
    sl_watch_destroy(runtime->watch);
    sl_mailbox_destroy(runtime->mailbox);
    sl_free(runtime);
}

sl_loop *rpc_runtime_loop(const rpc_runtime *runtime)
{
    return runtime->loop;
}

size_t rpc_runtime_live_calls(const rpc_runtime *runtime)
{
    return runtime->live_calls;
}
