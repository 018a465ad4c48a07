/* In the place of rpc's server: listeners, calls, health. */
#include "tests/sim/rpc.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "proto/grpc/health/v1/health.pb-c.h"
#include "rpc/methods.h"

#define HANDLERS_MAX 16u

typedef struct sim_watcher {
    struct sim_watcher *next;
    rpc_server_call *call;
} sim_watcher;

struct rpc_server {
    rpc_server *next; /* of all */
    sim_process *process;
    uint32_t life;
    sl_loop *loop;
    char address[SIM_NAME_MAX];
    rpc_handler handlers[HANDLERS_MAX];
    size_t handler_count;
    rpc_server_call *calls;
    size_t live;
    size_t messages_max, bytes_max;
    bool serving, stopping;
    sim_watcher *watchers;
    sl_timer *stop_timer;
    void (*on_stopped)(void *context);
    void *stop_context;
};

static rpc_server *servers;

sl_status rpc_server_create(rpc_runtime *runtime, const rpc_server_options *options,
                            rpc_server **out_server, sl_err *err)
{
    sl_assert(options->handler_count <= HANDLERS_MAX);
    rpc_server *server = sl_alloc(1, sizeof(*server), "sim server");
    server->loop = rpc_runtime_loop(runtime);
    server->process = sim_process_of_loop(server->loop);
    server->life = server->process->life;
    snprintf(server->address, sizeof(server->address), "%s", options->listen);
    memcpy(server->handlers, options->handlers, options->handler_count * sizeof(rpc_handler));
    server->handler_count = options->handler_count;
    server->messages_max =
        options->write_messages_max ? options->write_messages_max : RPC_WRITE_MESSAGES_MAX;
    server->bytes_max = options->write_bytes_max ? options->write_bytes_max : RPC_WRITE_BYTES_MAX;
    server->serving = true;
    server->next = servers;
    servers = server;
    *out_server = server;
    return sl_ok();
}

rpc_server *sim_server_at(sim_process *process, const char *address)
{
    for (rpc_server *server = servers; server; server = server->next)
        if (server->process == process && server->life == process->life &&
            strcmp(server->address, address) == 0)
            return server;
    return NULL;
}

const char *rpc_server_address(const rpc_server *server)
{
    return server->address;
}

size_t rpc_server_live_calls(const rpc_server *server)
{
    return server->live;
}

/* ---- the end of a call */

static void watcher_drop(rpc_server *server, rpc_server_call *call)
{
    for (sim_watcher **at = &server->watchers; *at; at = &(*at)->next) {
        sim_watcher *watcher = *at;
        if (watcher->call != call)
            continue;
        *at = watcher->next;
        sl_free(watcher);
        return;
    }
}

static void half_close(rpc_server_call *call)
{
    rpc_server *server = call->server;
    if (call->prev)
        call->prev->next = call->next;
    else
        server->calls = call->next;
    if (call->next)
        call->next->prev = call->prev;
    server->live--;
    watcher_drop(server, call);
    call->open = false;
    sim_frames_clear(&call->out.waiting);
    sim_frames_clear(&call->in.held);
    rpc_message_release(call->request);
    call->request = NULL;
    sim_call_unref(call->base);
}

static void check_stopped(rpc_server *server)
{
    if (!server->stopping || server->live > 0 || !server->on_stopped)
        return;
    void (*fn)(void *context) = server->on_stopped;
    server->on_stopped = NULL;
    fn(server->stop_context);
}

static void call_closed(rpc_server_call *call, bool cancelled)
{
    sim_call *base = call->base;
    rpc_server *server = call->server;
    if (!call->open)
        return;
    sim_call_ref(base);
    call->finished = true; /* what is written meanwhile is dropped */
    if (call->events.on_closed)
        call->events.on_closed(call->context, call, cancelled);
    half_close(call);
    sim_call_unref(base);
    check_stopped(server);
}

static void closed_drop(void *context)
{
    sim_call_unref(context);
}

static void closed_run(void *context)
{
    sim_call *base = context;
    if (base->server.open)
        call_closed(&base->server, base->server.cancelled);
    sim_call_unref(base);
}

static void close_later(rpc_server_call *call, bool cancelled)
{
    if (call->ending)
        return;
    call->ending = true;
    call->cancelled = cancelled;
    sim_call_ref(call->base);
    sim_deliver(call->server->process, closed_run, closed_drop, call->base);
}

void sim_server_status_sent(sim_call *call)
{
    if (call->server.open)
        close_later(&call->server, false);
}

void sim_server_lost(rpc_server *server, sim_conn *conn)
{
    for (rpc_server_call *call = server->calls; call;) {
        if (call->base->conn == conn && call->open) {
            call_closed(call, true);
            call = server->calls;
        } else {
            call = call->next;
        }
    }
    conn->server = NULL;
}

/* ---- what a call does */

void rpc_server_call_set(rpc_server_call *call, const rpc_server_call_events *events, void *context)
{
    call->events = *events;
    call->context = context;
}

const rpc_method *rpc_server_call_method(const rpc_server_call *call)
{
    return call->base->method;
}

const char *rpc_server_call_peer(const rpc_server_call *call)
{
    return call->base->conn->ends[SIM_CLIENT].process->name;
}

sl_time_ns rpc_server_call_deadline(const rpc_server_call *call)
{
    return SL_NEVER;
}

const char *rpc_server_call_metadata(const rpc_server_call *call, const char *key)
{
    return NULL;
}

static bool is_over(const rpc_server_call *call)
{
    return !call->open || call->finished || call->ending;
}

sl_status rpc_server_call_write(rpc_server_call *call, const ProtobufCMessage *message)
{
    if (is_over(call))
        return (sl_status){SL_CANCELLED};
    return sim_out_write(call->base, SIM_SERVER, message);
}

size_t rpc_server_call_write_pending(const rpc_server_call *call)
{
    return call->out.waiting.count;
}

void rpc_server_call_finish(rpc_server_call *call, sl_code code, const char *text)
{
    if (is_over(call))
        return;
    call->finished = true;
    sim_frame *frame = sim_frame_new(call->base, SIM_CLIENT, SIM_FRAME_STATUS);
    frame->code = code;
    frame->text = text ? sl_strdup(text, "sim frame text") : NULL;
    sim_out_push(call->base, SIM_SERVER, frame);
}

void rpc_server_call_reply(rpc_server_call *call, const ProtobufCMessage *reply)
{
    if (sl_is_ok(rpc_server_call_write(call, reply)))
        rpc_server_call_finish(call, SL_OK, NULL);
}

void rpc_server_call_pause(rpc_server_call *call, bool paused)
{
    sl_assert(!paused); /* nobody does */
}

void rpc_server_call_cancel(rpc_server_call *call)
{
    if (!call->open || call->ending)
        return;
    sim_frames_clear(&call->out.waiting);
    sim_conn_send(call->base->conn, sim_frame_new(call->base, SIM_CLIENT, SIM_FRAME_CANCEL));
    close_later(call, true);
}

void sim_server_writable(sim_call *call)
{
    if (call->server.open && call->server.events.on_writable)
        call->server.events.on_writable(call->server.context, &call->server);
}

/* ---- health */

static void tell_watcher(const rpc_server *server, rpc_server_call *call)
{
    Grpc__Health__V1__HealthCheckResponse reply = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
    reply.status = server->serving && !server->stopping
                       ? GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING
                       : GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__NOT_SERVING;
    sl_status status = rpc_server_call_write(call, &reply.base);
    (void)status;
}

static void watch_health(rpc_server *server, rpc_server_call *call)
{
    sim_watcher *watcher = sl_alloc(1, sizeof(*watcher), "sim watcher");
    watcher->call = call;
    watcher->next = server->watchers;
    server->watchers = watcher;
    tell_watcher(server, call);
    if (server->stopping)
        rpc_server_call_finish(call, SL_UNAVAILABLE, "the server is stopping");
}

void rpc_server_set_health(rpc_server *server, const char *service, bool serving)
{
    server->serving = serving;
    for (sim_watcher *watcher = server->watchers; watcher; watcher = watcher->next)
        tell_watcher(server, watcher->call);
}

/* ---- what comes */

static const rpc_handler *handler_of(const rpc_server *server, const rpc_method *method)
{
    for (size_t i = 0; i < server->handler_count; i++)
        if (strcmp(server->handlers[i].method->path, method->path) == 0)
            return &server->handlers[i];
    return NULL;
}

static void call_begin(rpc_server *server, sim_frame *frame)
{
    sim_call *base = frame->call;
    rpc_server_call *call = &base->server;
    sl_err err;
    *call = (rpc_server_call){.base = base, .server = server, .open = true, .next = server->calls};
    call->out.messages_max = server->messages_max;
    call->out.bytes_max = server->bytes_max;
    if (call->next)
        call->next->prev = call;
    server->calls = call;
    server->live++;
    sim_call_ref(base);
    const rpc_handler *handler = handler_of(server, base->method);
    if (base->method == &rpc_method_health_watch) {
        watch_health(server, call);
    } else if (server->stopping || !handler) {
        rpc_server_call_finish(call, server->stopping ? SL_UNAVAILABLE : SL_UNSUPPORTED,
                               "not served here");
    } else {
        if (base->method->kind != RPC_BIDI)
            sl_assert(sl_is_ok(rpc_message_unpack(base->method->request, frame->bytes, frame->size,
                                                  &call->request, &err)));
        handler->on_call(handler->context, call, call->request);
    }
}

static void take_data(rpc_server_call *call, const sim_frame *frame)
{
    ProtobufCMessage *message;
    sl_err err;
    sim_in_consumed(call->base, SIM_SERVER, frame->size);
    sl_assert(sl_is_ok(rpc_message_unpack(call->base->method->request, frame->bytes, frame->size,
                                          &message, &err)));
    if (call->events.on_message)
        call->events.on_message(call->context, call, message);
    rpc_message_release(message);
}

void sim_server_frame(sim_frame *frame)
{
    rpc_server_call *call = &frame->call->server;
    rpc_server *server = frame->conn->server;
    if (server && frame->kind == SIM_FRAME_BEGIN)
        call_begin(server, frame);
    else if (!call->open)
        ; /* it ended here meanwhile */
    else if (frame->kind == SIM_FRAME_CREDIT)
        sim_out_credit(call->base, SIM_SERVER, frame->size);
    else if (frame->kind == SIM_FRAME_CANCEL)
        call_closed(call, !call->ending || call->cancelled);
    else if (frame->kind == SIM_FRAME_DATA && !is_over(call))
        take_data(call, frame);
    else if (frame->kind == SIM_FRAME_HALF_CLOSE && !is_over(call) && call->events.on_half_closed)
        call->events.on_half_closed(call->context, call);
    sim_frame_free(frame);
}

/* ---- stop */

static void on_stop_deadline(void *context, sl_time_ns now)
{
    rpc_server *server = context;
    for (rpc_server_call *call = server->calls, *next; call; call = next) {
        next = call->next;
        rpc_server_call_cancel(call);
    }
    check_stopped(server);
}

static void on_stop_check(void *context)
{
    check_stopped(context);
}

void rpc_server_stop(rpc_server *server, sl_time_ns deadline, void (*on_stopped)(void *context),
                     void *context)
{
    server->on_stopped = on_stopped;
    server->stop_context = context;
    if (!server->stop_timer)
        server->stop_timer = sl_timer_create(server->loop, on_stop_deadline, server);
    sl_timer_set(server->stop_timer, deadline);
    if (!server->stopping) {
        server->stopping = true;
        for (sim_watcher *watcher = server->watchers, *next; watcher; watcher = next) {
            next = watcher->next;
            tell_watcher(server, watcher->call);
            rpc_server_call_finish(watcher->call, SL_UNAVAILABLE, "the server is stopping");
        }
    }
    bool posted = sl_loop_post(server->loop, on_stop_check, server);
    sl_assert(posted);
}

void rpc_server_destroy(rpc_server *server)
{
    if (!server)
        return;
    while (server->calls) {
        rpc_server_call *call = server->calls;
        sim_conn_send(call->base->conn, sim_frame_new(call->base, SIM_CLIENT, SIM_FRAME_CANCEL));
        half_close(call);
    }
    for (rpc_server **at = &servers; *at; at = &(*at)->next) {
        if (*at == server) {
            *at = server->next;
            break;
        }
    }
    sl_timer_destroy(server->stop_timer);
    sim_net_break(server->process); /* the process goes with it */
    sl_free(server);
}

void rpc_server_call_actor(rpc_server_call *call, char *out_text, size_t size)
{
    snprintf(out_text, size, "someone");
}
