/* In the place of rpc's client: channels and calls over simulated connections. */
#include "tests/sim/rpc.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"

struct rpc_runtime {
    sl_loop *loop;
    sim_process *process;
    rpc_channel *channels;
};

struct rpc_channel {
    rpc_runtime *runtime;
    rpc_channel *prev, *next;
    char target[SIM_NAME_MAX];
    uint32_t keepalive_ms;
    sim_conn *conn;
    rpc_call *calls;
};

sl_status rpc_runtime_create(sl_loop *loop, rpc_runtime **out_runtime, sl_err *err)
{
    rpc_runtime *runtime = sl_alloc(1, sizeof(*runtime), "sim runtime");
    runtime->loop = loop;
    runtime->process = sim_process_of_loop(loop);
    *out_runtime = runtime;
    return sl_ok();
}

sl_loop *rpc_runtime_loop(const rpc_runtime *runtime)
{
    return runtime->loop;
}

void rpc_runtime_destroy(rpc_runtime *runtime)
{
    while (runtime->channels)
        rpc_channel_destroy(runtime->channels);
    sim_loop_drop_inbox(runtime->process);
    sl_free(runtime);
}

/* ---- channels */

sl_status rpc_channel_create(rpc_runtime *runtime, const char *target,
                             const rpc_channel_options *options, rpc_channel **out_channel,
                             sl_err *err)
{
    rpc_channel *channel = sl_alloc(1, sizeof(*channel), "sim channel");
    uint32_t ping = options && options->keepalive_ms ? options->keepalive_ms : RPC_KEEPALIVE_MS;
    uint32_t wait = options && options->keepalive_timeout_ms ? options->keepalive_timeout_ms
                                                             : RPC_KEEPALIVE_TIMEOUT_MS;
    channel->runtime = runtime;
    channel->keepalive_ms = ping + wait;
    snprintf(channel->target, sizeof(channel->target), "%s", target);
    channel->next = runtime->channels;
    if (channel->next)
        channel->next->prev = channel;
    runtime->channels = channel;
    *out_channel = channel;
    return sl_ok();
}

static void conn_drop(rpc_channel *channel)
{
    sim_conn *conn = channel->conn;
    if (!conn)
        return;
    channel->conn = NULL;
    sim_conn_close(conn, SIM_CLIENT);
    sim_conn_unref(conn);
}

void rpc_channel_destroy(rpc_channel *channel)
{
    if (!channel)
        return;
    while (channel->calls)
        rpc_call_drop(channel->calls);
    conn_drop(channel);
    sim_net_forget(channel);
    if (channel->prev)
        channel->prev->next = channel->next;
    else
        channel->runtime->channels = channel->next;
    if (channel->next)
        channel->next->prev = channel->prev;
    sl_free(channel);
}

const char *rpc_channel_target(const rpc_channel *channel)
{
    return channel->target;
}

/* ---- the end of a call */

static void unlink_call(rpc_call *call)
{
    if (call->prev)
        call->prev->next = call->next;
    else
        call->channel->calls = call->next;
    if (call->next)
        call->next->prev = call->prev;
    call->open = false;
}

static void half_close(rpc_call *call)
{
    sim_frames_clear(&call->out.waiting);
    sim_frames_clear(&call->in.held);
    rpc_message_release(call->reply);
    call->reply = NULL;
    sim_call_unref(call->base);
}

static void call_end(rpc_call *call, const sl_err *err)
{
    sim_call *base = call->base;
    if (!call->open)
        return;
    sim_call_ref(base);
    unlink_call(call); /* what the callback does finds it no more */
    if (call->on_done)
        call->on_done(call->context, err->code == SL_OK ? call->reply : NULL, err);
    else if (call->events.on_end)
        call->events.on_end(call->context, err);
    half_close(call);
    sim_call_unref(base);
}

static void end_with(rpc_call *call, sl_code code, const char *text)
{
    sl_err err = {.code = code};
    if (code != SL_OK)
        (void)sl_fail(&err, code, "%s%s: %s", call->channel->target, call->base->method->path,
                      text ? text : sl_code_name(code));
    call_end(call, &err);
}

static void end_drop(void *context)
{
    sim_call_unref(context);
}

static void end_run(void *context)
{
    sim_call *base = context;
    if (base->client.open)
        end_with(&base->client, base->client.end.code, base->client.end.text);
    sim_call_unref(base);
}

/* From the loop, never inside the call that caused it. */
static void end_later(rpc_call *call, sl_code code, const char *text)
{
    if (call->ending)
        return;
    call->ending = true;
    call->end.code = code;
    snprintf(call->end.text, sizeof(call->end.text), "%s", text);
    sim_call_ref(call->base);
    sim_deliver(call->channel->runtime->process, end_run, end_drop, call->base);
}

static void tell_server(rpc_call *call)
{
    sim_conn_send(call->base->conn, sim_frame_new(call->base, SIM_SERVER, SIM_FRAME_CANCEL));
}

void rpc_call_cancel(rpc_call *call)
{
    if (!call->open || call->ending)
        return;
    tell_server(call);
    end_later(call, SL_CANCELLED, "cancelled");
}

void rpc_call_drop(rpc_call *call)
{
    if (!call || !call->open)
        return;
    tell_server(call);
    unlink_call(call);
    half_close(call);
}

void sim_client_lost(rpc_channel *channel, sim_conn *conn, const char *why)
{
    if (channel->conn == conn)
        conn_drop(channel);
    /* A callback may open and drop others: look again from the start. */
    for (rpc_call *call = channel->calls; call;) {
        if (call->base->conn == conn && call->open) {
            end_with(call, SL_UNAVAILABLE, why);
            call = channel->calls;
        } else {
            call = call->next;
        }
    }
}

/* ---- calls */

static void on_deadline(void *context, uint64_t tag)
{
    sim_call *base = context;
    rpc_call *call = &base->client;
    if (call->open && !call->ending) {
        tell_server(call);
        end_later(call, SL_DEADLINE, "deadline");
    }
    sim_call_unref(base);
}

static rpc_call *call_open(rpc_channel *channel, const rpc_method *method,
                           const ProtobufCMessage *request, const rpc_call_options *options)
{
    if (channel->conn && !channel->conn->ends[SIM_CLIENT].open)
        conn_drop(channel); /* it broke; whoever was on it hears of it */
    if (!channel->conn)
        channel->conn = sim_conn_open(channel, channel->runtime->process, channel->target,
                                      channel->keepalive_ms);
    sim_call *base = sl_alloc(1, sizeof(*base), "sim call");
    rpc_call *call = &base->client;
    base->refs = 1;
    base->method = method;
    base->conn = channel->conn;
    sim_conn_ref(base->conn);
    base->server.base = base;
    *call = (rpc_call){.base = base, .channel = channel, .open = true, .next = channel->calls};
    if (call->next)
        call->next->prev = call;
    channel->calls = call;
    call->out.messages_max = options && options->write_messages_max ? options->write_messages_max
                                                                    : RPC_WRITE_MESSAGES_MAX;
    call->out.bytes_max =
        options && options->write_bytes_max ? options->write_bytes_max : RPC_WRITE_BYTES_MAX;
    sim_frame *frame = sim_frame_new(base, SIM_SERVER, SIM_FRAME_BEGIN);
    if (request) {
        frame->size = protobuf_c_message_get_packed_size(request);
        frame->bytes = sl_alloc(frame->size + 1, 1, "sim frame bytes");
        (void)protobuf_c_message_pack(request, frame->bytes);
    }
    sim_out_push(base, SIM_CLIENT, frame);
    if (options && options->deadline && options->deadline != SL_NEVER) {
        sim_call_ref(base);
        sim_post(sim_world_time(channel->runtime->process, options->deadline), on_deadline, base,
                 0);
    }
    return call;
}

sl_status rpc_unary(rpc_channel *channel, const rpc_method *method, const ProtobufCMessage *request,
                    const rpc_call_options *options, rpc_done_fn on_done, void *context,
                    rpc_call **out_call, sl_err *err)
{
    rpc_call *call = call_open(channel, method, request, options);
    call->on_done = on_done;
    call->context = context;
    if (out_call)
        *out_call = call;
    return sl_ok();
}

sl_status rpc_stream_open(rpc_channel *channel, const rpc_method *method,
                          const ProtobufCMessage *request, const rpc_call_options *options,
                          const rpc_stream_events *events, void *context, rpc_call **out_call,
                          sl_err *err)
{
    rpc_call *call = call_open(channel, method, request, options);
    call->events = *events;
    call->context = context;
    *out_call = call;
    return sl_ok();
}

sl_status rpc_stream_write(rpc_call *call, const ProtobufCMessage *message)
{
    if (!call->open || call->ending || call->writes_done)
        return (sl_status){SL_UNAVAILABLE};
    return sim_out_write(call->base, SIM_CLIENT, message);
}

size_t rpc_stream_write_pending(const rpc_call *call)
{
    return call->out.waiting.count;
}

void rpc_stream_writes_done(rpc_call *call)
{
    call->writes_done = true;
    sim_out_push(call->base, SIM_CLIENT,
                 sim_frame_new(call->base, SIM_SERVER, SIM_FRAME_HALF_CLOSE));
}

void sim_client_writable(sim_call *call)
{
    if (call->client.open && call->client.events.on_writable)
        call->client.events.on_writable(call->client.context);
}

/* ---- what comes */

static void take_data(rpc_call *call, sim_frame *frame)
{
    sim_call *base = call->base;
    ProtobufCMessage *message;
    sl_err err;
    sim_in_consumed(base, SIM_CLIENT, frame->size);
    sl_status status =
        rpc_message_unpack(base->method->reply, frame->bytes, frame->size, &message, &err);
    sl_assert(sl_is_ok(status));
    if (call->on_done) {
        rpc_message_release(call->reply);
        call->reply = message;
        return;
    }
    if (call->events.on_message && !call->ending)
        call->events.on_message(call->context, message);
    rpc_message_release(message);
}

static void take(rpc_call *call, sim_frame *frame)
{
    if (frame->kind == SIM_FRAME_DATA)
        take_data(call, frame);
    else
        end_with(call, frame->code, frame->text);
}

void sim_client_frame(sim_frame *frame)
{
    rpc_call *call = &frame->call->client;
    if (!call->open) {
        sim_frame_free(frame);
        return;
    }
    if (!call->told_open && frame->kind != SIM_FRAME_CREDIT) {
        call->told_open = true;
        if (call->events.on_open)
            call->events.on_open(call->context);
    }
    bool ordered = frame->kind == SIM_FRAME_DATA || frame->kind == SIM_FRAME_STATUS;
    if (ordered && (call->in.paused || call->in.held.first)) {
        sim_frames_push(&call->in.held, frame);
        return;
    }
    if (frame->kind == SIM_FRAME_CREDIT)
        sim_out_credit(call->base, SIM_CLIENT, frame->size);
    else if (frame->kind == SIM_FRAME_CANCEL)
        end_with(call, SL_UNAVAILABLE, "ended by the server");
    else if (ordered)
        take(call, frame);
    sim_frame_free(frame);
}

static void held_run(void *context)
{
    sim_call *base = context;
    rpc_call *call = &base->client;
    while (call->open && !call->in.paused && call->in.held.first) {
        sim_frame *frame = sim_frames_pop(&call->in.held);
        take(call, frame);
        sim_frame_free(frame);
    }
    sim_call_unref(base);
}

void rpc_stream_pause(rpc_call *call, bool paused)
{
    call->in.paused = paused;
    if (paused || !call->in.held.first)
        return;
    sim_call_ref(call->base);
    sim_deliver(call->channel->runtime->process, held_run, end_drop, call->base);
}
