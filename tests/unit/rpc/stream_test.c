/* Server streams and bidi streams over loopback: order, bounds, pausing, cancel on both sides. */
#include "tests/unit/rpc/harness.h"

/* ---- the server's side ---- */

typedef struct side {
    rpc_server_call *call;
    int calls, messages, half_closed, writable, closed, cancelled;
    uint32_t wrote;
    bool echo, keep, finish_on_half_close;
    ProtobufCMessage *kept;
    char last_id[64];
} side;

static void side_write_event(side *s, sl_code expected)
{
    Sluice__V1__PrefillProgress progress = SLUICE__V1__PREFILL_PROGRESS__INIT;
    progress.tokens_done = s->wrote + 1;
    Sluice__V1__PrefillEvent event = SLUICE__V1__PREFILL_EVENT__INIT;
    event.body_case = SLUICE__V1__PREFILL_EVENT__BODY_PROGRESS;
    event.progress = &progress;
    assert_code(rpc_server_call_write(s->call, &event.base), expected);
    if (expected == SL_OK)
        s->wrote++;
}

static void on_server_message(void *context, rpc_server_call *call, const ProtobufCMessage *message)
{
    side *s = context;
    const Sluice__V1__RouterMessage *router = (const void *)message;
    s->messages++;
    if (router->body_case == SLUICE__V1__ROUTER_MESSAGE__BODY_CANCEL)
        snprintf(s->last_id, sizeof(s->last_id), "%s", router->cancel->request_id);
    if (s->keep && !s->kept) {
        rpc_message_take(message);
        s->kept = (ProtobufCMessage *)(uintptr_t)message;
    }
    if (!s->echo)
        return;
    Sluice__V1__Refused refused = SLUICE__V1__REFUSED__INIT;
    refused.request_id = s->last_id;
    Sluice__V1__DecodeMessage reply = SLUICE__V1__DECODE_MESSAGE__INIT;
    reply.body_case = SLUICE__V1__DECODE_MESSAGE__BODY_REFUSED;
    reply.refused = &refused;
    assert_code(rpc_server_call_write(call, &reply.base), SL_OK);
}

static void on_server_half_closed(void *context, rpc_server_call *call)
{
    side *s = context;
    s->half_closed++;
    if (s->finish_on_half_close)
        rpc_server_call_finish(call, SL_OK, NULL);
}

static void on_server_writable(void *context, rpc_server_call *call)
{
    side *s = context;
    (void)call;
    s->writable++;
}

static void on_server_closed(void *context, rpc_server_call *call, bool cancelled)
{
    side *s = context;
    (void)call;
    s->call = NULL;
    s->closed++;
    s->cancelled += cancelled;
}

static void on_call(void *context, rpc_server_call *call, const ProtobufCMessage *request)
{
    side *s = context;
    (void)request;
    s->calls++;
    s->call = call;
    static const rpc_server_call_events EVENTS = {on_server_message, on_server_half_closed,
                                                  on_server_writable, on_server_closed};
    rpc_server_call_set(call, &EVENTS, s);
}

/* ---- the client's side ---- */

typedef struct view {
    rpc_call *call;
    int messages, opened, writable, ends;
    uint32_t last;
    bool in_order, pause_at_once, cancel_at_once;
    sl_err err;
    char last_id[64];
} view;

static void on_message(void *context, const ProtobufCMessage *message)
{
    view *v = context;
    v->messages++;
    if (message->descriptor == &sluice__v1__prefill_event__descriptor) {
        const Sluice__V1__PrefillEvent *event = (const void *)message;
        v->in_order = event->progress->tokens_done == v->last + 1;
        v->last = event->progress->tokens_done;
    } else {
        const Sluice__V1__DecodeMessage *decode = (const void *)message;
        snprintf(v->last_id, sizeof(v->last_id), "%s", decode->refused->request_id);
    }
    if (v->pause_at_once)
        rpc_stream_pause(v->call, true);
    if (v->cancel_at_once)
        rpc_call_cancel(v->call);
}

static void on_writable(void *context)
{
    ((view *)context)->writable++;
}

static void on_open(void *context)
{
    ((view *)context)->opened++;
}

static void on_end(void *context, const sl_err *why)
{
    view *v = context;
    v->ends++;
    v->err = *why;
    v->call = NULL;
}

static const rpc_stream_events VIEW = {on_message, on_writable, on_open, on_end};

static void open_prefill(rpc_channel *channel, view *v)
{
    Sluice__V1__PrefillRequest request = SLUICE__V1__PREFILL_REQUEST__INIT;
    request.request_id = (char *)(uintptr_t) "r-1";
    assert_ok(rpc_stream_open(channel, &rpc_method_prefill_run, &request.base, NULL, &VIEW, v,
                              &v->call, &err),
              &err);
}

static void open_decode(rpc_channel *channel, view *v)
{
    assert_ok(
        rpc_stream_open(channel, &rpc_method_decode_serve, NULL, NULL, &VIEW, v, &v->call, &err),
        &err);
}

static sl_status write_cancel(view *v, const char *id)
{
    Sluice__V1__Cancel cancel = SLUICE__V1__CANCEL__INIT;
    cancel.request_id = (char *)(uintptr_t)id;
    Sluice__V1__RouterMessage message = SLUICE__V1__ROUTER_MESSAGE__INIT;
    message.body_case = SLUICE__V1__ROUTER_MESSAGE__BODY_CANCEL;
    message.cancel = &cancel;
    return rpc_stream_write(v->call, &message.base);
}

static rpc_channel *serve(const rpc_method *method, side *s, rpc_server **out_server)
{
    rpc_handler handler = {method, on_call, s};
    *out_server = make_server(&handler, 1);
    return make_channel(rpc_server_address(*out_server));
}

/* ---- tests ---- */

TEST(server_stream)
{
    side s = {0};
    view v = {0};
    rpc_server *server;
    rpc_channel *channel = serve(&rpc_method_prefill_run, &s, &server);
    open_prefill(channel, &v);
    wait_for(s.call);
    wait_for(v.opened);
    for (int i = 0; i < 50; i++)
        side_write_event(&s, SL_OK);
    rpc_server_call_finish(s.call, SL_OK, NULL); /* after what is queued */
    wait_for(v.ends && s.closed);
    assert_int_equal(v.err.code, SL_OK);
    assert_int_equal(v.messages, 50);
    assert_true(v.in_order);
    assert_int_equal(s.cancelled, 0);
}

TEST(server_stream_fails)
{
    side s = {0};
    view v = {0};
    rpc_server *server;
    rpc_channel *channel = serve(&rpc_method_prefill_run, &s, &server);
    open_prefill(channel, &v);
    wait_for(s.call);
    side_write_event(&s, SL_OK);
    rpc_server_call_finish(s.call, SL_CORRUPT, "page 7");
    Sluice__V1__PrefillEvent event = SLUICE__V1__PREFILL_EVENT__INIT;
    assert_code(rpc_server_call_write(s.call, &event.base), SL_CANCELLED);
    wait_for(v.ends && s.closed);
    assert_int_equal(v.messages, 1);
    assert_int_equal(v.err.code, SL_CORRUPT);
    assert_text_contains(v.err.text, "page 7");
}

TEST(bidi)
{
    side s = {.echo = true, .finish_on_half_close = true};
    view v = {0};
    rpc_server *server;
    rpc_channel *channel = serve(&rpc_method_decode_serve, &s, &server);
    open_decode(channel, &v);
    for (int i = 0; i < 20; i++) {
        char id[32];
        snprintf(id, sizeof(id), "r-%d", i);
        assert_code(write_cancel(&v, id), SL_OK);
        wait_for(v.messages == i + 1);
        assert_string_equal(v.last_id, id);
    }
    rpc_stream_writes_done(v.call);
    assert_code(write_cancel(&v, "late"), SL_UNAVAILABLE);
    wait_for(v.ends && s.closed);
    assert_int_equal(v.err.code, SL_OK);
    assert_int_equal(s.half_closed, 1);
    assert_int_equal(s.cancelled, 0);
}

TEST(bidi_client_cancels)
{
    side s = {.echo = true};
    view v = {0};
    rpc_server *server;
    rpc_channel *channel = serve(&rpc_method_decode_serve, &s, &server);
    open_decode(channel, &v);
    assert_code(write_cancel(&v, "r"), SL_OK);
    wait_for(v.messages == 1);
    rpc_call_cancel(v.call);
    wait_for(v.ends && s.closed);
    assert_int_equal(v.err.code, SL_CANCELLED);
    assert_int_equal(s.cancelled, 1);
}

TEST(bidi_client_drops)
{
    side s = {.echo = true};
    view v = {0};
    rpc_server *server;
    rpc_channel *channel = serve(&rpc_method_decode_serve, &s, &server);
    open_decode(channel, &v);
    assert_code(write_cancel(&v, "r"), SL_OK);
    wait_for(s.call);
    rpc_call_drop(v.call);
    wait_for(s.closed && rpc_runtime_live_calls(runtime) == 0);
    assert_int_equal(v.ends, 0);
}

TEST(bidi_server_cancels)
{
    side s = {0};
    view v = {0};
    rpc_server *server;
    rpc_channel *channel = serve(&rpc_method_decode_serve, &s, &server);
    open_decode(channel, &v);
    wait_for(s.call);
    rpc_server_call_cancel(s.call);
    wait_for(v.ends && s.closed);
    assert_int_equal(v.err.code, SL_UNAVAILABLE);
}

TEST(taken_message)
{
    side s = {.keep = true};
    view v = {0};
    rpc_server *server;
    rpc_channel *channel = serve(&rpc_method_decode_serve, &s, &server);
    open_decode(channel, &v);
    assert_code(write_cancel(&v, "kept"), SL_OK);
    assert_code(write_cancel(&v, "not kept"), SL_OK);
    wait_for(s.messages == 2);
    rpc_call_drop(v.call);
    wait_for(s.closed);
    const Sluice__V1__RouterMessage *kept = (const void *)s.kept;
    assert_string_equal(kept->cancel->request_id, "kept");
    rpc_message_free(s.kept);
}

/* A client that does not read: the server's queue fills, refuses, and tells when there is room. */
TEST(slow_reader_is_bounded)
{
    side s = {0};
    view v = {.pause_at_once = true};
    rpc_handler handler = {&rpc_method_prefill_run, on_call, &s};
    rpc_server_options options = {
        .listen = "127.0.0.1:0", .handlers = &handler, .handler_count = 1, .write_messages_max = 8};
    rpc_server *server;
    assert_ok(rpc_server_create(runtime, &options, &server, &err), &err);
    rpc_channel *channel = make_channel(rpc_server_address(server));
    open_prefill(channel, &v);
    wait_for(s.call);
    Sluice__V1__PrefillEvent event = SLUICE__V1__PREFILL_EVENT__INIT;
    Sluice__V1__PrefillProgress progress = SLUICE__V1__PREFILL_PROGRESS__INIT;
    event.body_case = SLUICE__V1__PREFILL_EVENT__BODY_PROGRESS;
    event.progress = &progress;
    bool full = false;
    /* Write until the transport's windows and the queue are full and stay so. */
    for (int quiet = 0; quiet < 20;) {
        progress.tokens_done = s.wrote + 1;
        sl_status status = rpc_server_call_write(s.call, &event.base);
        full = status.code == SL_FULL;
        if (!full)
            s.wrote++;
        quiet = full ? quiet + 1 : 0;
        sl_loop_run_once(loop, full ? 10 : 0);
        assert_true(rpc_server_call_write_pending(s.call) <= 9);
        assert_true(s.wrote < 200000);
    }
    assert_true(full);
    assert_true(v.messages <= 1);
    v.pause_at_once = false;
    int writable = s.writable;
    rpc_stream_pause(v.call, false);
    wait_for(s.writable > writable);
    rpc_server_call_finish(s.call, SL_OK, NULL);
    wait_for(v.ends);
    assert_int_equal(v.err.code, SL_OK);
    assert_int_equal(v.messages, s.wrote);
    assert_true(v.in_order);
}

/* The same towards a server that does not read. */
TEST(slow_server_is_bounded)
{
    side s = {0};
    view v = {0};
    rpc_server *server;
    rpc_channel *channel = serve(&rpc_method_decode_serve, &s, &server);
    rpc_call_options options = {.write_messages_max = 4};
    assert_ok(rpc_stream_open(channel, &rpc_method_decode_serve, NULL, &options, &VIEW, &v, &v.call,
                              &err),
              &err);
    wait_for(s.call);
    rpc_server_call_pause(s.call, true);
    int wrote = 0;
    char *id = sl_alloc(1, 4001, "test");
    memset(id, 'x', 4000);
    for (int quiet = 0; quiet < 20;) {
        sl_status status = write_cancel(&v, id);
        wrote += sl_is_ok(status);
        quiet = status.code == SL_FULL ? quiet + 1 : 0;
        sl_loop_run_once(loop, quiet ? 10 : 0);
        assert_true(rpc_stream_write_pending(v.call) <= 5);
        assert_true(wrote < 100000);
    }
    rpc_server_call_pause(s.call, false);
    wait_for(s.messages == wrote);
    wait_for(v.writable);
    rpc_call_drop(v.call);
    wait_for(s.closed);
    sl_free(id);
}

/* A failed stream ends although its reader is paused; a well ended one delivers first. */
TEST(paused_end)
{
    side s = {0};
    view v = {0};
    rpc_server *server;
    rpc_channel *channel = serve(&rpc_method_prefill_run, &s, &server);
    open_prefill(channel, &v);
    wait_for(s.call);
    rpc_stream_pause(v.call, true);
    side_write_event(&s, SL_OK);
    rpc_server_call_finish(s.call, SL_OK, NULL);
    wait_for(s.closed || s.call); /* whatever it takes to be sent */
    for (int i = 0; i < 20; i++)
        sl_loop_run_once(loop, 5);
    assert_int_equal(v.ends, 0);
    rpc_stream_pause(v.call, false);
    wait_for(v.ends);
    assert_int_equal(v.messages, 1);
    assert_int_equal(v.err.code, SL_OK);

    view second = {0};
    open_prefill(channel, &second);
    wait_for(s.calls == 2 && s.call);
    rpc_stream_pause(second.call, true);
    rpc_server_call_cancel(s.call);
    wait_for(second.ends);
    assert_int_equal(second.err.code, SL_UNAVAILABLE);
}

/* Whether the stream's end came in: nothing this large is ever queued, so the answer is that alone.
 */
static bool end_is_in(view *v)
{
    char id[256];
    memset(id, 'x', sizeof(id) - 1);
    id[sizeof(id) - 1] = 0;
    return write_cancel(v, id).code == SL_UNAVAILABLE;
}

/* A cancelled stream ends although its reader is paused, and does not call it a good end when
 * messages were thrown away: one in our hands with the end behind it, or more, still in gRPC's. */
TEST(paused_cancel)
{
    side s = {.echo = true};
    rpc_server *server;
    rpc_handler handler = {&rpc_method_decode_serve, on_call, &s};
    server = make_server(&handler, 1);
    rpc_channel *channel;
    rpc_channel_options options = {.message_bytes_max = 200};
    assert_ok(rpc_channel_create(runtime, rpc_server_address(server), &options, &channel, &err),
              &err);
    for (int count = 1; count <= 3; count++) {
        view v = {0};
        s.messages = s.closed = 0;
        open_decode(channel, &v);
        for (int i = 0; i < count; i++)
            assert_code(write_cancel(&v, "r"), SL_OK);
        rpc_stream_pause(v.call, true);
        wait_for(s.messages == count);
        rpc_server_call_finish(s.call, SL_OK, NULL);
        wait_for(s.closed);
        if (count == 1)
            wait_for(end_is_in(&v));
        assert_int_equal(v.ends, 0);
        rpc_call_cancel(v.call);
        assert_int_equal(v.ends, 0); /* never inside the call */
        wait_for(v.ends);
        assert_int_equal(v.err.code, SL_CANCELLED);
        assert_int_equal(v.messages, 0);
    }
    wait_for(rpc_runtime_live_calls(runtime) == 0);
}

/* No message comes after the one in whose callback the stream was cancelled. */
TEST(cancel_in_message)
{
    side s = {0};
    view v = {.cancel_at_once = true};
    rpc_server *server;
    rpc_channel *channel = serve(&rpc_method_prefill_run, &s, &server);
    open_prefill(channel, &v);
    wait_for(s.call);
    for (int i = 0; i < 20; i++)
        side_write_event(&s, SL_OK);
    rpc_server_call_finish(s.call, SL_OK, NULL);
    wait_for(v.ends);
    assert_int_equal(v.err.code, SL_CANCELLED);
    assert_int_equal(v.messages, 1);
}

TEST(oversize_request)
{
    side s = {0};
    view v = {0};
    rpc_handler handler = {&rpc_method_prefill_run, on_call, &s};
    rpc_server_options options = {.listen = "127.0.0.1:0",
                                  .handlers = &handler,
                                  .handler_count = 1,
                                  .message_bytes_max = 1000};
    rpc_server *server;
    assert_ok(rpc_server_create(runtime, &options, &server, &err), &err);
    rpc_channel *channel = make_channel(rpc_server_address(server));
    Sluice__V1__PrefillRequest request = SLUICE__V1__PREFILL_REQUEST__INIT;
    uint32_t *tokens = sl_alloc(10000, sizeof(*tokens), "test");
    request.n_tokens = 10000;
    request.tokens = tokens;
    assert_ok(rpc_stream_open(channel, &rpc_method_prefill_run, &request.base, NULL, &VIEW, &v,
                              &v.call, &err),
              &err);
    wait_for(v.ends);
    assert_int_equal(v.err.code, SL_TOO_LARGE);
    assert_int_equal(s.calls, 0);
    sl_free(tokens);
}

/* The default limit lets a long prompt through (gRPC's own is 4 MB). */
TEST(large_request)
{
    side s = {0};
    view v = {0};
    rpc_server *server;
    rpc_channel *channel = serve(&rpc_method_prefill_run, &s, &server);
    Sluice__V1__PrefillRequest request = SLUICE__V1__PREFILL_REQUEST__INIT;
    enum { COUNT = 2000000 };
    uint32_t *tokens = sl_alloc(COUNT, sizeof(*tokens), "test");
    for (int i = 0; i < COUNT; i++)
        tokens[i] = 100000 + (uint32_t)(i % 20000);
    request.n_tokens = COUNT;
    request.tokens = tokens;
    assert_ok(rpc_stream_open(channel, &rpc_method_prefill_run, &request.base, NULL, &VIEW, &v,
                              &v.call, &err),
              &err);
    wait_for(s.call);
    rpc_server_call_finish(s.call, SL_OK, NULL);
    wait_for(v.ends);
    assert_int_equal(v.err.code, SL_OK);
    sl_free(tokens);
}

/* Text that is not UTF-8 never reaches a handler. */
TEST(invalid_text)
{
    side s = {0};
    view v = {0};
    rpc_server *server;
    rpc_channel *channel = serve(&rpc_method_prefill_run, &s, &server);
    Sluice__V1__PrefillRequest request = SLUICE__V1__PREFILL_REQUEST__INIT;
    request.request_id = (char *)(uintptr_t) "r-\xff";
    assert_ok(rpc_stream_open(channel, &rpc_method_prefill_run, &request.base, NULL, &VIEW, &v,
                              &v.call, &err),
              &err);
    wait_for(v.ends);
    assert_int_equal(v.err.code, SL_INVALID);
    assert_text_contains(v.err.text, "request_id");
    assert_int_equal(s.calls, 0);

    side b = {0};
    view w = {0};
    rpc_channel *other = serve(&rpc_method_decode_serve, &b, &server);
    open_decode(other, &w);
    assert_code(write_cancel(&w, "\xc0\x80"), SL_OK);
    wait_for(w.ends && b.closed);
    assert_int_equal(w.err.code, SL_INVALID);
    assert_int_equal(b.messages, 0);
}

/* A bad reply ends the stream here: another peer may do better. */
TEST(invalid_reply)
{
    side s = {.echo = true};
    view v = {0};
    rpc_server *server;
    rpc_channel *channel = serve(&rpc_method_decode_serve, &s, &server);
    open_decode(channel, &v);
    snprintf(s.last_id, sizeof(s.last_id), "\xff");
    Sluice__V1__RouterMessage message = SLUICE__V1__ROUTER_MESSAGE__INIT;
    assert_code(rpc_stream_write(v.call, &message.base), SL_OK);
    wait_for(v.ends && s.closed);
    assert_int_equal(v.err.code, SL_INCOMPATIBLE);
    assert_int_equal(v.messages, 0);
}

static const struct CMUnitTest TESTS[] = {
    RPC_TEST(server_stream),
    RPC_TEST(server_stream_fails),
    RPC_TEST(bidi),
    RPC_TEST(bidi_client_cancels),
    RPC_TEST(bidi_client_drops),
    RPC_TEST(bidi_server_cancels),
    RPC_TEST(taken_message),
    RPC_TEST(slow_reader_is_bounded),
    RPC_TEST(paused_end),
    RPC_TEST(paused_cancel),
    RPC_TEST(cancel_in_message),
    RPC_TEST(slow_server_is_bounded),
    RPC_TEST(oversize_request),
    RPC_TEST(large_request),
    RPC_TEST(invalid_text),
    RPC_TEST(invalid_reply),
};
TEST_MAIN(TESTS)
