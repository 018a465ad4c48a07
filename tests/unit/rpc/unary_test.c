/* Unary calls over loopback: answers, errors, deadlines, cancels, limits. */
#include "tests/unit/rpc/harness.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

typedef struct node_service {
    int calls, closed, cancelled;
    rpc_server_call *open; /* of the deferred kind */
    const char *last_metadata;
    char peer[64];
    sl_time_ns deadline;
} node_service;

static void on_closed(void *context, rpc_server_call *call, bool cancelled)
{
    node_service *service = context;
    service->closed++;
    service->cancelled += cancelled;
    if (service->open == call)
        service->open = NULL;
}

static const rpc_server_call_events EVENTS = {.on_closed = on_closed};

static void reply_name(rpc_server_call *call, const char *name)
{
    Sluice__V1__NodeStatus reply = SLUICE__V1__NODE_STATUS__INIT;
    reply.name = (char *)(uintptr_t)name;
    rpc_server_call_reply(call, &reply.base);
}

static void answer_at_once(void *context, rpc_server_call *call, const ProtobufCMessage *request)
{
    node_service *service = context;
    (void)request;
    service->calls++;
    rpc_server_call_set(call, &EVENTS, service);
    snprintf(service->peer, sizeof(service->peer), "%s", rpc_server_call_peer(call));
    const char *value = rpc_server_call_metadata(call, "x-test");
    reply_name(call, value ? value : "node-7");
}

static void answer_later(void *context, rpc_server_call *call, const ProtobufCMessage *request)
{
    node_service *service = context;
    (void)request;
    service->calls++;
    service->open = call;
    service->deadline = rpc_server_call_deadline(call);
    rpc_server_call_set(call, &EVENTS, service);
}

static void refuse(void *context, rpc_server_call *call, const ProtobufCMessage *request)
{
    (void)context;
    const Sluice__V1__DrainRequest *drain = (const void *)request;
    rpc_server_call_finish(call, (sl_code)drain->deadline_ms, "because of the test");
}

static void start_status(rpc_channel *channel, const rpc_call_options *options, outcome *out,
                         rpc_call **out_call)
{
    Sluice__V1__NodeStatusRequest request = SLUICE__V1__NODE_STATUS_REQUEST__INIT;
    assert_ok(rpc_unary(channel, &rpc_method_node_get_status, &request.base, options,
                        on_done_status, out, out_call, &err),
              &err);
}

TEST(answer)
{
    node_service service = {0};
    rpc_handler handler = {&rpc_method_node_get_status, answer_at_once, &service};
    rpc_server *server = make_server(&handler, 1);
    rpc_channel *channel = make_channel(rpc_server_address(server));
    outcome out = {0};
    start_status(channel, NULL, &out, NULL);
    assert_int_equal(out.ends, 0); /* never inside the call */
    wait_for(out.ends && service.closed);
    assert_int_equal(out.err.code, SL_OK);
    assert_string_equal(out.text, "node-7");
    assert_int_equal(service.cancelled, 0);
    assert_text_contains(service.peer, "127.0.0.1:");
    wait_for(rpc_runtime_live_calls(runtime) == 0);
}

TEST(many_at_once)
{
    node_service service = {0};
    rpc_handler handler = {&rpc_method_node_get_status, answer_at_once, &service};
    rpc_server *server = make_server(&handler, 1);
    rpc_channel *channel = make_channel(rpc_server_address(server));
    enum { COUNT = 200 };
    static outcome out[COUNT];
    memset(out, 0, sizeof(out));
    for (int i = 0; i < COUNT; i++)
        start_status(channel, NULL, &out[i], NULL);
    for (int i = 0; i < COUNT; i++) {
        wait_for(out[i].ends);
        assert_int_equal(out[i].err.code, SL_OK);
    }
    wait_for(service.closed == COUNT);
}

TEST(metadata)
{
    node_service service = {0};
    rpc_handler handler = {&rpc_method_node_get_status, answer_at_once, &service};
    rpc_server *server = make_server(&handler, 1);
    rpc_channel *channel = make_channel(rpc_server_address(server));
    rpc_metadata sent = {"x-test", "hello"};
    rpc_call_options options = {.metadata = &sent, .metadata_count = 1};
    outcome out = {0};
    start_status(channel, &options, &out, NULL);
    wait_for(out.ends);
    assert_string_equal(out.text, "hello");

    rpc_metadata bad = {"X Test", "hello"};
    options.metadata = &bad;
    Sluice__V1__NodeStatusRequest request = SLUICE__V1__NODE_STATUS_REQUEST__INIT;
    assert_code(rpc_unary(channel, &rpc_method_node_get_status, &request.base, &options,
                          on_done_status, &out, NULL, &err),
                SL_INVALID);
}

/* Every code crosses unchanged, with its text. */
TEST(error_codes)
{
    rpc_handler handler = {&rpc_method_node_drain, refuse, NULL};
    rpc_server *server = make_server(&handler, 1);
    rpc_channel *channel = make_channel(rpc_server_address(server));
    static const sl_code CODES[] = {SL_INVALID,  SL_TOO_LARGE, SL_UNSUPPORTED, SL_NOT_FOUND,
                                    SL_EXISTS,   SL_CANCELLED, SL_DEADLINE,    SL_FULL,
                                    SL_CONFLICT, SL_CORRUPT,   SL_UNAVAILABLE, SL_INCOMPATIBLE,
                                    SL_DENIED,   SL_IO,        SL_NO_MEMORY,   SL_INTERNAL};
    for (size_t i = 0; i < sizeof(CODES) / sizeof(CODES[0]); i++) {
        outcome out = {0};
        Sluice__V1__DrainRequest request = SLUICE__V1__DRAIN_REQUEST__INIT;
        request.deadline_ms = CODES[i];
        assert_ok(rpc_unary(channel, &rpc_method_node_drain, &request.base, NULL, on_done_status,
                            &out, &out.call, &err),
                  &err);
        wait_for(out.ends);
        assert_true(out.answered);
        assert_int_equal(out.err.code, CODES[i]);
        assert_text_contains(out.err.text, "because of the test");
        assert_text_contains(out.err.text, "/sluice.v1.Node/Drain");
    }
}

TEST(unknown_method)
{
    rpc_server *server = make_server(NULL, 0);
    rpc_channel *channel = make_channel(rpc_server_address(server));
    outcome out = {0};
    start_status(channel, NULL, &out, NULL);
    wait_for(out.ends);
    assert_int_equal(out.err.code, SL_UNSUPPORTED);
    assert_text_contains(out.err.text, "/sluice.v1.Node/GetStatus");
}

TEST(deadline)
{
    node_service service = {0};
    rpc_handler handler = {&rpc_method_node_get_status, answer_later, &service};
    rpc_server *server = make_server(&handler, 1);
    rpc_channel *channel = make_channel(rpc_server_address(server));
    outcome warm = {0}, out = {0};
    start_status(channel, NULL, &warm, NULL); /* so that the time is the server's alone */
    wait_for(service.open);
    reply_name(service.open, "at once");
    wait_for(warm.ends && service.closed == 1);
    rpc_call_options options = within_ms(1000);
    start_status(channel, &options, &out, &out.call);
    wait_for(out.ends && service.closed == 2);
    assert_int_equal(out.err.code, SL_DEADLINE);
    assert_false(out.answered);
    assert_int_equal(service.cancelled, 1);
    assert_true(service.deadline != SL_NEVER);
    assert_true(service.deadline <= options.deadline + SL_S_NS);
}

TEST(client_cancels)
{
    node_service service = {0};
    rpc_handler handler = {&rpc_method_node_get_status, answer_later, &service};
    rpc_server *server = make_server(&handler, 1);
    rpc_channel *channel = make_channel(rpc_server_address(server));
    outcome out = {0};
    rpc_call *call;
    start_status(channel, NULL, &out, &call);
    wait_for(service.open);
    assert_true(service.deadline == SL_NEVER);
    rpc_call_cancel(call);
    assert_int_equal(out.ends, 0);
    wait_for(out.ends && service.closed);
    assert_int_equal(out.err.code, SL_CANCELLED);
    assert_int_equal(service.cancelled, 1);
}

TEST(client_drops)
{
    node_service service = {0};
    rpc_handler handler = {&rpc_method_node_get_status, answer_later, &service};
    rpc_server *server = make_server(&handler, 1);
    rpc_channel *channel = make_channel(rpc_server_address(server));
    outcome out = {0};
    rpc_call *call;
    start_status(channel, NULL, &out, &call);
    wait_for(service.open);
    rpc_call_drop(call);
    wait_for(service.closed && rpc_runtime_live_calls(runtime) == 0);
    assert_int_equal(out.ends, 0);
    /* The same by destroying the channel. */
    start_status(channel, NULL, &out, &call);
    wait_for(service.open);
    rpc_channel_destroy(channel);
    wait_for(service.closed == 2 && rpc_runtime_live_calls(runtime) == 0);
    assert_int_equal(out.ends, 0);
}

TEST(server_cancels)
{
    node_service service = {0};
    rpc_handler handler = {&rpc_method_node_get_status, answer_later, &service};
    rpc_server *server = make_server(&handler, 1);
    rpc_channel *channel = make_channel(rpc_server_address(server));
    outcome out = {0};
    start_status(channel, NULL, &out, NULL);
    wait_for(service.open);
    rpc_server_call_cancel(service.open);
    wait_for(out.ends && service.closed);
    assert_int_equal(out.err.code, SL_UNAVAILABLE);
}

TEST(deferred_reply)
{
    node_service service = {0};
    rpc_handler handler = {&rpc_method_node_get_status, answer_later, &service};
    rpc_server *server = make_server(&handler, 1);
    rpc_channel *channel = make_channel(rpc_server_address(server));
    outcome out = {0};
    start_status(channel, NULL, &out, NULL);
    wait_for(service.open);
    assert_int_equal(rpc_server_live_calls(server), 1);
    reply_name(service.open, "late");
    reply_name(service.open, "twice"); /* ignored */
    wait_for(out.ends && service.closed);
    assert_string_equal(out.text, "late");
    assert_int_equal(service.cancelled, 0);
}

TEST(peer_absent)
{
    /* A port that is ours, so that nobody else listens there either. */
    struct sockaddr_in ours = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof(ours);
    char address[SL_ADDRESS_TEXT_MAX];
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&ours, sizeof(ours)), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&ours, &size), 0);
    snprintf(address, sizeof(address), "127.0.0.1:%d", ntohs(ours.sin_port));
    rpc_channel *channel = make_channel(address);
    outcome out = {0};
    rpc_call_options options = within_ms(30000);
    start_status(channel, &options, &out, &out.call);
    wait_for(out.ends);
    assert_false(out.answered);
    assert_int_equal(out.err.code, SL_UNAVAILABLE);
    assert_text_contains(out.err.text, address);

    /* Waiting for a peer that does not come ends at the deadline. */
    outcome waited = {0};
    options = within_ms(300);
    options.wait_for_ready = true;
    start_status(channel, &options, &waited, NULL);
    wait_for(waited.ends);
    assert_int_equal(waited.err.code, SL_DEADLINE);
    close(fd);
}

TEST(bad_target)
{
    rpc_channel *channel = NULL;
    assert_code(rpc_channel_create(runtime, "nohost", NULL, &channel, &err), SL_INVALID);
    assert_code(rpc_channel_create(runtime, ":80", NULL, &channel, &err), SL_INVALID);
    assert_text_contains(err.text, "host:port");
    assert_null(channel);
}

TEST(oversize)
{
    node_service service = {0};
    rpc_handler handler = {&rpc_method_node_get_status, answer_later, &service};
    rpc_server_options options = {.listen = "127.0.0.1:0",
                                  .handlers = &handler,
                                  .handler_count = 1,
                                  .message_bytes_max = 1000};
    rpc_server *server;
    assert_ok(rpc_server_create(runtime, &options, &server, &err), &err);
    rpc_channel *channel = make_channel(rpc_server_address(server));
    outcome out = {0};
    start_status(channel, NULL, &out, NULL);
    wait_for(service.open);
    char *name = sl_alloc(2000, 1, "test");
    memset(name, 'a', 1999);
    reply_name(service.open, name); /* the server's own limit */
    wait_for(out.ends && service.closed == 1);
    assert_int_equal(out.err.code, SL_TOO_LARGE);

    /* The client's limit, seen by the client. */
    rpc_channel *narrow;
    rpc_channel_options narrow_options = {.message_bytes_max = 100, .own_connection = true};
    assert_ok(
        rpc_channel_create(runtime, rpc_server_address(server), &narrow_options, &narrow, &err),
        &err);
    memset(&out, 0, sizeof(out));
    start_status(narrow, NULL, &out, NULL);
    wait_for(service.open);
    name[900] = 0;
    reply_name(service.open, name);
    wait_for(out.ends);
    assert_int_equal(out.err.code, SL_TOO_LARGE);

    /* A request over the limit is not even sent; one over the server's limit is refused by it. */
    Sluice__V1__PrefillRequest request = SLUICE__V1__PREFILL_REQUEST__INIT;
    request.request_id = name;
    rpc_stream_events events = {.on_message = (void *)1, .on_end = (void *)1};
    rpc_call *call = NULL;
    assert_code(rpc_stream_open(narrow, &rpc_method_prefill_run, &request.base, NULL, &events, NULL,
                                &call, &err),
                SL_TOO_LARGE);
    assert_null(call);
    sl_free(name);
}

TEST(calls_max)
{
    node_service service = {0};
    rpc_handler handler = {&rpc_method_node_get_status, answer_later, &service};
    rpc_server_options options = {
        .listen = "127.0.0.1:0", .handlers = &handler, .handler_count = 1, .calls_max = 2};
    rpc_server *server;
    assert_ok(rpc_server_create(runtime, &options, &server, &err), &err);
    rpc_channel *channel = make_channel(rpc_server_address(server));
    outcome first = {0}, second = {0}, third = {0};
    rpc_call *calls[2];
    start_status(channel, NULL, &first, &calls[0]);
    start_status(channel, NULL, &second, &calls[1]);
    wait_for(service.calls == 2);
    start_status(channel, NULL, &third, NULL);
    wait_for(third.ends);
    assert_int_equal(third.err.code, SL_FULL);
    rpc_call_drop(calls[0]);
    rpc_call_drop(calls[1]);
}

TEST(port_in_use)
{
    rpc_server *server = make_server(NULL, 0);
    rpc_server_options options = {.listen = rpc_server_address(server)};
    rpc_server *second = NULL;
    assert_code(rpc_server_create(runtime, &options, &second, &err), SL_IO);
    assert_null(second);
    assert_text_contains(err.text, rpc_server_address(server));
    assert_text_contains(err.text, "in use");
    options.listen = "nonsense";
    assert_code(rpc_server_create(runtime, &options, &second, &err), SL_INVALID);
}

/* Everything still open when the runtime goes: nothing leaks, nobody is called. */
TEST(destroy_with_everything_open)
{
    node_service service = {0};
    rpc_handler handler = {&rpc_method_node_get_status, answer_later, &service};
    rpc_server *server = make_server(&handler, 1);
    rpc_channel *channel = make_channel(rpc_server_address(server));
    static outcome out;
    memset(&out, 0, sizeof(out));
    for (int i = 0; i < 5; i++)
        start_status(channel, NULL, &out, NULL);
    wait_for(service.calls == 5);
    rpc_runtime_destroy(runtime);
    assert_int_equal(out.ends, 0);
    assert_int_equal(service.closed, 0);
    assert_ok(rpc_runtime_create(loop, &runtime, &err), &err);
}

static const struct CMUnitTest TESTS[] = {
    RPC_TEST(answer),         RPC_TEST(many_at_once),
    RPC_TEST(metadata),       RPC_TEST(error_codes),
    RPC_TEST(unknown_method), RPC_TEST(deadline),
    RPC_TEST(client_cancels), RPC_TEST(client_drops),
    RPC_TEST(server_cancels), RPC_TEST(deferred_reply),
    RPC_TEST(peer_absent),    RPC_TEST(bad_target),
    RPC_TEST(oversize),       RPC_TEST(calls_max),
    RPC_TEST(port_in_use),    RPC_TEST(destroy_with_everything_open),
};
TEST_MAIN(TESTS)
