/* What the rpc tests share: a loop with one runtime, and waiting for conditions. */
#ifndef TESTS_UNIT_RPC_HARNESS_H
#define TESTS_UNIT_RPC_HARNESS_H

#include "tests/unit/test.h"

#include "proto/sluice/v1/decode.pb-c.h"
#include "proto/sluice/v1/node.pb-c.h"
#include "proto/sluice/v1/prefill.pb-c.h"
#include "rpc/rpc.h"

#define HANG_GUARD_NS (60 * SL_S_NS) /* a test that waits so long hangs: not a timing verdict */

static sl_loop *loop;
static rpc_runtime *runtime;
static sl_err err;

#define wait_for(condition)                                   \
    do {                                                      \
        sl_time_ns wait_until_ = sl_now_ns() + HANG_GUARD_NS; \
        while (!(condition)) {                                \
            if (sl_now_ns() > wait_until_)                    \
                fail_msg("hangs waiting for %s", #condition); \
            sl_loop_run_once(loop, 50);                       \
        }                                                     \
    } while (0)

static inline int setup_runtime(void **state)
{
    (void)state;
    if (!sl_is_ok(sl_loop_create(&loop, &err)) ||
        !sl_is_ok(rpc_runtime_create(loop, &runtime, &err)))
        return -1;
    return 0;
}

static inline int teardown_runtime(void **state)
{
    (void)state;
    rpc_runtime_destroy(runtime);
    sl_loop_destroy(loop);
    return 0;
}

#define RPC_TEST(name) cmocka_unit_test_setup_teardown(name, setup_runtime, teardown_runtime)

/* One call's end, as a test sees it. */
typedef struct outcome {
    int ends;
    sl_err err;
    char text[128];
    rpc_call *call; /* if set: its answered is taken */
    bool answered;
} outcome;

static inline void on_done_status(void *context, const ProtobufCMessage *reply, const sl_err *why)
{
    outcome *out = context;
    out->ends++;
    out->err = *why;
    out->answered = out->call && rpc_call_answered(out->call);
    if (reply)
        snprintf(out->text, sizeof(out->text), "%s",
                 ((const Sluice__V1__NodeStatus *)(const void *)reply)->name);
}

static inline rpc_server *make_server(const rpc_handler *handlers, size_t count)
{
    rpc_server_options options = {
        .listen = "127.0.0.1:0", .handlers = handlers, .handler_count = count};
    rpc_server *server = NULL;
    assert_ok(rpc_server_create(runtime, &options, &server, &err), &err);
    return server;
}

static inline rpc_channel *make_channel(const char *target)
{
    rpc_channel *channel = NULL;
    rpc_channel_options options = {.own_connection = true};
    assert_ok(rpc_channel_create(runtime, target, &options, &channel, &err), &err);
    return channel;
}

static inline rpc_call_options within_ms(uint64_t ms)
{
    return (rpc_call_options){.deadline = sl_now_ns() + ms * SL_MS_NS};
}

#endif
