/* Shutdown in two stages, health, reflection; and two loops on two threads. */
#include "tests/unit/rpc/harness.h"

#include <pthread.h>

#include "proto/descriptors.h"
#include "proto/grpc/health/v1/health.pb-c.h"
#include "proto/grpc/reflection/v1alpha/reflection.pb-c.h"

typedef struct side {
    rpc_server_call *call;
    int calls, closed, cancelled;
} side;

static void on_closed(void *context, rpc_server_call *call, bool cancelled)
{
    side *s = context;
    (void)call;
    s->call = NULL;
    s->closed++;
    s->cancelled += cancelled;
}

static void on_call(void *context, rpc_server_call *call, const ProtobufCMessage *request)
{
    static const rpc_server_call_events EVENTS = {.on_closed = on_closed};
    side *s = context;
    (void)request;
    s->call = call;
    s->calls++;
    rpc_server_call_set(call, &EVENTS, s);
}

static void reply_name(rpc_server_call *call, const char *name)
{
    Sluice__V1__NodeStatus reply = SLUICE__V1__NODE_STATUS__INIT;
    reply.name = (char *)(uintptr_t)name;
    rpc_server_call_reply(call, &reply.base);
}

static void ask(rpc_channel *channel, outcome *out)
{
    Sluice__V1__NodeStatusRequest request = SLUICE__V1__NODE_STATUS_REQUEST__INIT;
    assert_ok(rpc_unary(channel, &rpc_method_node_get_status, &request.base, NULL, on_done_status,
                        out, NULL, &err),
              &err);
}

static void count(void *context)
{
    ++*(int *)context;
}

TEST(stop_waits_for_live_calls)
{
    side s = {0};
    rpc_handler handler = {&rpc_method_node_get_status, on_call, &s};
    rpc_server *server = make_server(&handler, 1);
    rpc_channel *channel = make_channel(rpc_server_address(server));
    outcome first = {0}, second = {0};
    ask(channel, &first);
    wait_for(s.call);
    int stopped = 0;
    rpc_server_stop(server, sl_now_ns() + 600 * SL_S_NS, count, &stopped);
    ask(channel, &second); /* no new ones */
    wait_for(second.ends);
    assert_int_equal(second.err.code, SL_UNAVAILABLE);
    assert_int_equal(stopped, 0);
    assert_int_equal(first.ends, 0);
    reply_name(s.call, "last");
    wait_for(stopped && first.ends);
    assert_int_equal(first.err.code, SL_OK);
    assert_string_equal(first.text, "last");
    assert_int_equal(rpc_server_live_calls(server), 0);
    rpc_server_destroy(server);
}

TEST(stop_cancels_at_the_deadline)
{
    side s = {0};
    rpc_handler handler = {&rpc_method_node_get_status, on_call, &s};
    rpc_server *server = make_server(&handler, 1);
    rpc_channel *channel = make_channel(rpc_server_address(server));
    outcome out = {0};
    ask(channel, &out);
    wait_for(s.call);
    int stopped = 0;
    rpc_server_stop(server, sl_now_ns() + 100 * SL_MS_NS, count, &stopped);
    wait_for(stopped && out.ends);
    assert_int_equal(out.err.code, SL_UNAVAILABLE);
    assert_int_equal(s.cancelled, 1);
    rpc_server_destroy(server);
}

static void destroy_inside(void *context)
{
    rpc_server **server = context;
    rpc_server_destroy(*server);
    *server = NULL;
}

TEST(destroy_in_on_stopped)
{
    rpc_server *server = make_server(NULL, 0);
    rpc_server_stop(server, sl_now_ns(), destroy_inside, &server);
    wait_for(!server);
}

/* The port is free again once the server has stopped. */
TEST(restart_on_the_same_port)
{
    char address[SL_ADDRESS_TEXT_MAX] = "127.0.0.1:0";
    for (int i = 0; i < 3; i++) {
        side s = {0};
        rpc_handler handler = {&rpc_method_node_get_status, on_call, &s};
        rpc_server_options options = {.listen = address, .handlers = &handler, .handler_count = 1};
        rpc_server *server;
        assert_ok(rpc_server_create(runtime, &options, &server, &err), &err);
        snprintf(address, sizeof(address), "%s", rpc_server_address(server));
        rpc_channel *channel = make_channel(address);
        outcome out = {0};
        ask(channel, &out);
        wait_for(s.call);
        reply_name(s.call, "x");
        wait_for(out.ends);
        assert_int_equal(out.err.code, SL_OK);
        int stopped = 0;
        rpc_server_stop(server, sl_now_ns() + SL_S_NS, count, &stopped);
        wait_for(stopped);
        rpc_server_destroy(server);
        rpc_channel_destroy(channel);
    }
}

/* ---- health ---- */

typedef struct health_view {
    int messages, ends, status, checks;
    sl_err err;
} health_view;

static void on_health_message(void *context, const ProtobufCMessage *message)
{
    health_view *v = context;
    v->messages++;
    v->status = (int)((const Grpc__Health__V1__HealthCheckResponse *)(const void *)message)->status;
}

static void on_health_end(void *context, const sl_err *why)
{
    health_view *v = context;
    v->ends++;
    v->err = *why;
}

static void on_checked(void *context, const ProtobufCMessage *reply, const sl_err *why)
{
    health_view *v = context;
    v->checks++;
    v->err = *why;
    if (reply)
        on_health_message(v, reply);
}

static void check(rpc_channel *channel, const char *service, health_view *v)
{
    Grpc__Health__V1__HealthCheckRequest request = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
    request.service = (char *)(uintptr_t)service;
    v->checks = 0;
    assert_ok(rpc_unary(channel, &rpc_method_health_check, &request.base, NULL, on_checked, v, NULL,
                        &err),
              &err);
    wait_for(v->checks);
}

#define SERVING         GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING
#define NOT_SERVING     GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__NOT_SERVING
#define SERVICE_UNKNOWN GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVICE_UNKNOWN

static const rpc_stream_events HEALTH_EVENTS = {.on_message = on_health_message,
                                                .on_end = on_health_end};

static rpc_call *watch(rpc_channel *channel, const char *service, health_view *v)
{
    Grpc__Health__V1__HealthCheckRequest request = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
    request.service = (char *)(uintptr_t)service;
    rpc_call *call;
    assert_ok(rpc_stream_open(channel, &rpc_method_health_watch, &request.base, NULL,
                              &HEALTH_EVENTS, v, &call, &err),
              &err);
    return call;
}

TEST(health)
{
    rpc_server *server = make_server(NULL, 0);
    rpc_channel *channel = make_channel(rpc_server_address(server));
    health_view c = {0};
    check(channel, "", &c);
    assert_int_equal(c.err.code, SL_OK);
    assert_int_equal(c.status, SERVING);
    check(channel, "sluice.v1.Decode", &c);
    assert_int_equal(c.err.code, SL_NOT_FOUND);

    health_view w = {0}, dropped = {0};
    watch(channel, "sluice.v1.Decode", &w);
    rpc_call *call = watch(channel, "sluice.v1.Decode", &dropped);
    wait_for(w.messages == 1 && dropped.messages == 1);
    assert_int_equal(w.status, SERVICE_UNKNOWN);
    rpc_server_set_health(server, "sluice.v1.Decode", true);
    wait_for(w.messages == 2);
    assert_int_equal(w.status, SERVING);
    rpc_server_set_health(server, "sluice.v1.Decode", true); /* no change, no message */
    rpc_call_drop(call);
    rpc_server_set_health(server, "sluice.v1.Decode", false);
    wait_for(w.messages == 3);
    assert_int_equal(w.status, NOT_SERVING);
    check(channel, "sluice.v1.Decode", &c);
    assert_int_equal(c.status, NOT_SERVING);
    rpc_server_set_health(server, "sluice.v1.Decode", true);
    wait_for(w.messages == 4);

    /* Stopping says not serving, and ends the watch: it does not hold the server. */
    int stopped = 0;
    rpc_server_stop(server, sl_now_ns() + 600 * SL_S_NS, count, &stopped);
    wait_for(w.ends && stopped);
    assert_int_equal(w.messages, 5);
    assert_int_equal(w.status, NOT_SERVING);
    assert_int_equal(w.err.code, SL_UNAVAILABLE);
    rpc_server_destroy(server);
}

/* ---- reflection ---- */

#define REQUEST(x) GRPC__REFLECTION__V1ALPHA__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_##x
#define REPLY(x)   GRPC__REFLECTION__V1ALPHA__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_##x

typedef struct reflection_view {
    int messages, ends, error_code;
    char services[512];
    size_t files;
    bool has_types, same_bytes;
    sl_err err;
} reflection_view;

static void on_reflection(void *context, const ProtobufCMessage *message)
{
    reflection_view *v = context;
    const Grpc__Reflection__V1alpha__ServerReflectionResponse *reply = (const void *)message;
    v->messages++;
    switch (reply->message_response_case) {
    case REPLY(LIST_SERVICES_RESPONSE):
        v->services[0] = 0;
        for (size_t i = 0; i < reply->list_services_response->n_service; i++) {
            size_t used = strlen(v->services);
            snprintf(v->services + used, sizeof(v->services) - used, "%s ",
                     reply->list_services_response->service[i]->name);
        }
        break;
    case REPLY(FILE_DESCRIPTOR_RESPONSE):
        v->files = reply->file_descriptor_response->n_file_descriptor_proto;
        for (unsigned i = 0; i < proto_file_count; i++) {
            const ProtobufCBinaryData *got = reply->file_descriptor_response->file_descriptor_proto;
            if (strcmp(proto_files[i].name, "sluice/v1/decode.proto") == 0)
                v->same_bytes = got->len == proto_files[i].size &&
                                memcmp(got->data, proto_files[i].bytes, got->len) == 0;
        }
        break;
    case REPLY(ERROR_RESPONSE):
        v->error_code = reply->error_response->error_code;
        break;
    default:
        break;
    }
}

static void on_reflection_end(void *context, const sl_err *why)
{
    reflection_view *v = context;
    v->ends++;
    v->err = *why;
}

TEST(reflection)
{
    side s = {0};
    rpc_handler handlers[] = {{&rpc_method_decode_serve, on_call, &s},
                              {&rpc_method_node_get_status, on_call, &s},
                              {&rpc_method_node_drain, on_call, &s}};
    rpc_server *server = make_server(handlers, 3);
    rpc_channel *channel = make_channel(rpc_server_address(server));
    static const rpc_stream_events EVENTS = {.on_message = on_reflection,
                                             .on_end = on_reflection_end};
    reflection_view v = {0};
    rpc_call *call;
    assert_ok(rpc_stream_open(channel, &rpc_method_server_reflection_server_reflection_info, NULL,
                              NULL, &EVENTS, &v, &call, &err),
              &err);
    Grpc__Reflection__V1alpha__ServerReflectionRequest request =
        GRPC__REFLECTION__V1ALPHA__SERVER_REFLECTION_REQUEST__INIT;
    request.message_request_case = REQUEST(LIST_SERVICES);
    request.list_services = (char *)(uintptr_t) "*";
    assert_code(rpc_stream_write(call, &request.base), SL_OK);
    wait_for(v.messages == 1);
    assert_string_equal(v.services, "sluice.v1.Decode sluice.v1.Node grpc.health.v1.Health "
                                    "grpc.reflection.v1alpha.ServerReflection ");
    request.message_request_case = REQUEST(FILE_CONTAINING_SYMBOL);
    request.file_containing_symbol = (char *)(uintptr_t) "sluice.v1.Decode.Serve";
    assert_code(rpc_stream_write(call, &request.base), SL_OK);
    wait_for(v.messages == 2);
    assert_int_equal(v.files, 2); /* with types.proto */
    assert_true(v.same_bytes);
    request.file_containing_symbol = (char *)(uintptr_t) "no.Such";
    assert_code(rpc_stream_write(call, &request.base), SL_OK);
    wait_for(v.messages == 3);
    assert_int_equal(v.error_code, 5);
    request.message_request_case = REQUEST(FILE_BY_FILENAME);
    request.file_by_filename = (char *)(uintptr_t) "sluice/v1/types.proto";
    assert_code(rpc_stream_write(call, &request.base), SL_OK);
    wait_for(v.messages == 4);
    assert_int_equal(v.files, 1);
    rpc_stream_writes_done(call);
    wait_for(v.ends);
    assert_int_equal(v.err.code, SL_OK);
}

/* ---- two threads ---- */

typedef struct remote {
    pthread_t thread;
    sl_loop *loop;
    rpc_runtime *runtime;
    rpc_server *server;
    char address[SL_ADDRESS_TEXT_MAX];
    pthread_mutex_t lock;
    pthread_cond_t ready;
    bool up;
} remote;

static void answer(void *context, rpc_server_call *call, const ProtobufCMessage *request)
{
    (void)context;
    (void)request;
    reply_name(call, "other thread");
}

static void *remote_main(void *argument)
{
    remote *r = argument;
    sl_err e;
    rpc_handler handler = {&rpc_method_node_get_status, answer, NULL};
    rpc_server_options options = {
        .listen = "127.0.0.1:0", .handlers = &handler, .handler_count = 1};
    bool good = sl_is_ok(sl_loop_create(&r->loop, &e)) &&
                sl_is_ok(rpc_runtime_create(r->loop, &r->runtime, &e)) &&
                sl_is_ok(rpc_server_create(r->runtime, &options, &r->server, &e));
    pthread_mutex_lock(&r->lock);
    if (good)
        snprintf(r->address, sizeof(r->address), "%s", rpc_server_address(r->server));
    r->up = true;
    pthread_cond_signal(&r->ready);
    pthread_mutex_unlock(&r->lock);
    if (good)
        sl_loop_run(r->loop);
    rpc_runtime_destroy(r->runtime);
    sl_loop_destroy(r->loop);
    return NULL;
}

TEST(two_threads)
{
    static remote r;
    memset(&r, 0, sizeof(r));
    pthread_mutex_init(&r.lock, NULL);
    pthread_cond_init(&r.ready, NULL);
    assert_int_equal(pthread_create(&r.thread, NULL, remote_main, &r), 0);
    pthread_mutex_lock(&r.lock);
    while (!r.up)
        pthread_cond_wait(&r.ready, &r.lock);
    pthread_mutex_unlock(&r.lock);
    assert_true(r.address[0]);
    rpc_channel *channel = make_channel(r.address);
    enum { ROUNDS = 20, COUNT = 32 };
    for (int round = 0; round < ROUNDS; round++) {
        outcome out[COUNT];
        memset(out, 0, sizeof(out));
        for (int i = 0; i < COUNT; i++)
            ask(channel, &out[i]);
        for (int i = 0; i < COUNT; i++) {
            wait_for(out[i].ends);
            assert_int_equal(out[i].err.code, SL_OK);
            assert_string_equal(out[i].text, "other thread");
        }
    }
    sl_loop_stop(r.loop);
    pthread_join(r.thread, NULL);
}

static const struct CMUnitTest TESTS[] = {
    RPC_TEST(stop_waits_for_live_calls),
    RPC_TEST(stop_cancels_at_the_deadline),
    RPC_TEST(destroy_in_on_stopped),
    RPC_TEST(restart_on_the_same_port),
    RPC_TEST(health),
    RPC_TEST(reflection),
    RPC_TEST(two_threads),
};
TEST_MAIN(TESTS)
