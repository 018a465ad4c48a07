/* Client calls: unary and streams.
 *
 * A call owns its gRPC call, buffers and queue, and is freed when it ended (or was dropped) and
 * gRPC holds none of its tags. Thread: the runtime's loop. Never calls back inside a public call.
 */
#include <string.h>

#include "base/alloc.h"
#include "rpc/internal.h"
#include "rpc/status_map.h"

#define METADATA_MAX 16

struct rpc_call {
    rpc_link link; /* channel->calls, until dropped or ended */
    rpc_runtime *runtime;
    rpc_channel *channel; /* NULL once dropped */
    const rpc_method *method;
    grpc_call *call;
    char *target;
    size_t message_bytes_max;
    rpc_op op_start, op_open, op_recv, op_write, op_close, op_status, op_resume;
    int ops_live;
    bool unary;
    bool busy;             /* inside a callback: do not free */
    bool dropped;          /* no callbacks any more */
    bool ended;            /* the end callback was called */
    bool status_in;        /* the status arrived */
    bool reading, writing; /* batch out */
    bool write_dead;       /* a write failed: the status will say why */
    bool writes_done;      /* asked for */
    bool close_sent;
    bool read_end;
    bool paused, resuming;
    bool cancel_asked;
    bool bad; /* own verdict (local_err) instead of the peer's status */
    grpc_byte_buffer *recv_buffer, *held_buffer, *send_buffer;
    rpc_queue queue;
    grpc_metadata *metadata;
    size_t metadata_count;
    grpc_metadata_array initial, trailing;
    grpc_status_code status;
    grpc_slice details;
    sl_err local_err;
    rpc_done_fn on_done;
    rpc_stream_events events;
    void *context;
};

static void call_free(rpc_call *call)
{
    rpc_runtime *runtime = call->runtime;
    grpc_byte_buffer_destroy(call->recv_buffer);
    grpc_byte_buffer_destroy(call->held_buffer);
    grpc_byte_buffer_destroy(call->send_buffer);
    rpc_queue_fini(&call->queue);
    for (size_t i = 0; i < call->metadata_count; i++) {
        grpc_slice_unref(call->metadata[i].key);
        grpc_slice_unref(call->metadata[i].value);
    }
    sl_free(call->metadata);
    grpc_metadata_array_destroy(&call->initial);
    grpc_metadata_array_destroy(&call->trailing);
    grpc_slice_unref(call->details);
    grpc_call_unref(call->call);
    sl_free(call->target);
    sl_free(call);
    runtime->live_calls--;
    runtime->client_calls--;
}

static void call_unlink(rpc_call *call)
{
    if (!call->channel)
        return;
    rpc_list_remove(&call->link);
    call->channel = NULL;
}

/* Last thing that every entry does. */
static void call_settle(rpc_call *call)
{
    if (!call->busy && call->ops_live == 0 && (call->ended || call->dropped))
        call_free(call);
}

static void call_batch(rpc_call *call, const grpc_op *ops, size_t count, rpc_op *op)
{
    call->ops_live++;
    rpc_batch(call->runtime, call->call, ops, count, op);
}

/* ---- end ---- */

#define CODE_TEXT_MAX 16

/* The server's own code, which only our server sends; "" if the error is gRPC's. */
static void server_code(const rpc_call *call, char out_text[CODE_TEXT_MAX])
{
    out_text[0] = 0;
    for (size_t i = 0; i < call->trailing.count; i++) {
        const grpc_metadata *m = &call->trailing.metadata[i];
        size_t size = GRPC_SLICE_LENGTH(m->value);
        if (grpc_slice_str_cmp(m->key, RPC_CODE_KEY) == 0 && size < CODE_TEXT_MAX) {
            memcpy(out_text, GRPC_SLICE_START_PTR(m->value), size);
            out_text[size] = 0;
        }
    }
}

bool rpc_call_answered(const rpc_call *call)
{
    char code_text[CODE_TEXT_MAX];
    server_code(call, code_text);
    return !call->bad && code_text[0];
}

static void fill_error(rpc_call *call, sl_err *out_err)
{
    if (call->bad) {
        *out_err = call->local_err;
        return;
    }
    char code_text[CODE_TEXT_MAX];
    server_code(call, code_text);
    char details[SL_ERR_TEXT_MAX];
    snprintf(details, sizeof(details), "%.*s", (int)GRPC_SLICE_LENGTH(call->details),
             (const char *)GRPC_SLICE_START_PTR(call->details));
    sl_code code = rpc_status_from_wire(call->status, code_text[0] ? code_text : NULL, details);
    /* A server that goes away cancels its calls: for us that is a peer lost, not our own wish. */
    if (code == SL_CANCELLED && !code_text[0] && !call->cancel_asked)
        code = SL_UNAVAILABLE;
    /* A good end may stand behind messages that the cancellation threw away. */
    if (code == SL_OK && call->cancel_asked && !call->read_end && !call->recv_buffer) {
        (void)sl_fail(out_err, SL_CANCELLED, "%s%s: cancelled", call->target, call->method->path);
        return;
    }
    out_err->text[0] = 0;
    out_err->code = code;
    if (code != SL_OK)
        (void)sl_fail(out_err, code, "%s%s: %s", call->target, call->method->path,
                      details[0] ? details : rpc_status_grpc_name(call->status));
}

static void fail_locally(rpc_call *call, const sl_err *err)
{
    call->bad = true;
    (void)sl_fail(&call->local_err, SL_INCOMPATIBLE, "%s%s: reply: %s", call->target,
                  call->method->path, err->text);
    grpc_call_cancel(call->call, NULL);
}

static void end_unary(rpc_call *call)
{
    ProtobufCMessage *reply = NULL;
    sl_err err = {SL_OK, ""};
    fill_error(call, &err);
    if (err.code == SL_OK && !call->recv_buffer) {
        (void)sl_fail(&err, SL_INCOMPATIBLE, "%s%s: the server sent no reply", call->target,
                      call->method->path);
    } else if (err.code == SL_OK) {
        sl_err bad;
        sl_status status = rpc_unpack(call->method->reply, call->recv_buffer, &reply, &bad);
        call->recv_buffer = NULL;
        if (!sl_is_ok(status)) {
            fail_locally(call, &bad);
            err = call->local_err;
        }
    }
    call->ended = true;
    call_unlink(call);
    call->busy = true;
    call->on_done(call->context, reply, &err);
    call->busy = false;
    rpc_message_release(reply);
}

static void maybe_end_stream(rpc_call *call)
{
    if (call->ended || call->dropped || call->busy || !call->status_in || call->reading)
        return;
    sl_err err = {SL_OK, ""};
    fill_error(call, &err);
    if (err.code == SL_OK && call->held_buffer)
        return; /* paused: the message comes first */
    call->ended = true;
    call_unlink(call);
    call->busy = true;
    call->events.on_end(call->context, &err);
    call->busy = false;
}

/* ---- reading ---- */

static void read_next(rpc_call *call)
{
    if (call->reading || call->read_end || call->paused || call->held_buffer ||
        call->cancel_asked || call->dropped)
        return;
    call->reading = true;
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE};
    op.data.recv_message.recv_message = &call->recv_buffer;
    call_batch(call, &op, 1, &call->op_recv);
}

static void deliver(rpc_call *call, grpc_byte_buffer *buffer)
{
    ProtobufCMessage *message = NULL;
    sl_err err;
    if (!sl_is_ok(rpc_unpack(call->method->reply, buffer, &message, &err))) {
        call->read_end = true;
        fail_locally(call, &err);
        return;
    }
    call->busy = true;
    call->events.on_message(call->context, message);
    call->busy = false;
    rpc_message_release(message);
}

static void on_recv(void *owner, bool ok)
{
    rpc_call *call = owner;
    (void)ok;
    call->ops_live--;
    call->reading = false;
    grpc_byte_buffer *buffer = call->recv_buffer;
    call->recv_buffer = NULL;
    if (!buffer)
        call->read_end = true;
    else if (call->cancel_asked || call->dropped)
        grpc_byte_buffer_destroy(buffer);
    else if (call->paused)
        call->held_buffer = buffer;
    else
        deliver(call, buffer);
    read_next(call);
    maybe_end_stream(call);
    call_settle(call);
}

static void on_resume(void *owner, bool ok)
{
    rpc_call *call = owner;
    (void)ok;
    call->ops_live--;
    call->resuming = false;
    if (!call->paused && !call->dropped && !call->ended && call->held_buffer) {
        grpc_byte_buffer *buffer = call->held_buffer;
        call->held_buffer = NULL;
        deliver(call, buffer);
    }
    read_next(call);
    maybe_end_stream(call);
    call_settle(call);
}

/* ---- writing ---- */

static void write_next(rpc_call *call)
{
    if (call->writing || call->write_dead || call->dropped || call->close_sent)
        return;
    call->send_buffer = rpc_queue_pop(&call->queue);
    if (call->send_buffer) {
        call->writing = true;
        grpc_op op = {.op = GRPC_OP_SEND_MESSAGE};
        op.data.send_message.send_message = call->send_buffer;
        call_batch(call, &op, 1, &call->op_write);
    } else if (call->writes_done) {
        call->close_sent = true;
        grpc_op op = {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT};
        call_batch(call, &op, 1, &call->op_close);
    }
}

static void on_write(void *owner, bool ok)
{
    rpc_call *call = owner;
    call->ops_live--;
    call->writing = false;
    grpc_byte_buffer_destroy(call->send_buffer);
    call->send_buffer = NULL;
    if (!ok) {
        call->write_dead = true;
        rpc_queue_flush(&call->queue);
    }
    write_next(call);
    if (ok && !call->dropped && !call->ended && call->events.on_writable &&
        rpc_queue_relieved(&call->queue)) {
        call->busy = true;
        call->events.on_writable(call->context);
        call->busy = false;
        maybe_end_stream(call);
    }
    call_settle(call);
}

/* ---- other tags ---- */

static void on_plain(void *owner, bool ok)
{
    rpc_call *call = owner;
    (void)ok;
    call->ops_live--;
    grpc_byte_buffer_destroy(call->send_buffer); /* of a server stream's request */
    call->send_buffer = NULL;
    call_settle(call);
}

static void on_closed_side(void *owner, bool ok)
{
    rpc_call *call = owner;
    (void)ok;
    call->ops_live--;
    call_settle(call);
}

static void on_open(void *owner, bool ok)
{
    rpc_call *call = owner;
    call->ops_live--;
    /* On a failed call this "succeeds" with nothing in it: the status tells. */
    if (ok && !call->dropped && !call->ended && !call->status_in && call->events.on_open) {
        call->busy = true;
        call->events.on_open(call->context);
        call->busy = false;
        maybe_end_stream(call);
    }
    call_settle(call);
}

static void on_status(void *owner, bool ok)
{
    rpc_call *call = owner;
    (void)ok;
    call->ops_live--;
    call->status_in = true;
    if (call->unary && !call->dropped)
        end_unary(call);
    else if (!call->unary)
        maybe_end_stream(call);
    call_settle(call);
}

/* ---- start ---- */

static sl_status take_metadata(rpc_call *call, const rpc_call_options *options, sl_err *err)
{
    if (options->metadata_count > METADATA_MAX)
        return sl_fail(err, SL_TOO_LARGE, "%zu metadata entries, at most %d",
                       options->metadata_count, METADATA_MAX);
    if (options->metadata_count)
        call->metadata = sl_alloc(options->metadata_count, sizeof(*call->metadata), "rpc metadata");
    for (size_t i = 0; i < options->metadata_count; i++) {
        grpc_metadata *m = &call->metadata[i];
        m->key = grpc_slice_from_copied_string(options->metadata[i].key);
        m->value = grpc_slice_from_copied_string(options->metadata[i].value);
        call->metadata_count++;
        if (!grpc_header_key_is_legal(m->key) || !grpc_header_nonbin_value_is_legal(m->value))
            return sl_fail(err, SL_INVALID, "metadata \"%s\": not allowed",
                           options->metadata[i].key);
    }
    return sl_ok();
}

static sl_status call_create(rpc_channel *channel, const rpc_method *method,
                             const ProtobufCMessage *request, const rpc_call_options *options,
                             rpc_call **out_call, sl_err *err)
{
    static const rpc_call_options DEFAULTS;
    rpc_runtime *runtime = channel->runtime;
    sl_loop_assert_owner(runtime->loop);
    sl_assert(!runtime->closing);
    if (!options)
        options = &DEFAULTS;
    if (runtime->client_calls >= RPC_CALLS_MAX)
        return sl_fail(err, SL_FULL, "%s%s: %d calls are open", channel->target, method->path,
                       RPC_CALLS_MAX);
    grpc_byte_buffer *buffer = NULL;
    if (request && !sl_is_ok(rpc_pack(request, channel->message_bytes_max, &buffer)))
        return sl_fail(err, SL_TOO_LARGE, "%s%s: request over %zu bytes", channel->target,
                       method->path, channel->message_bytes_max);

    rpc_call *call = sl_alloc(1, sizeof(*call), "rpc call");
    call->runtime = runtime;
    call->method = method;
    call->send_buffer = buffer;
    call->target = sl_strdup(channel->target, "rpc call");
    call->message_bytes_max = channel->message_bytes_max;
    call->details = grpc_empty_slice();
    grpc_metadata_array_init(&call->initial);
    grpc_metadata_array_init(&call->trailing);
    rpc_queue_init(&call->queue, options->write_messages_max, options->write_bytes_max);
    call->call = grpc_channel_create_call(
        channel->channel, NULL, GRPC_PROPAGATE_DEFAULTS, runtime->queue,
        grpc_slice_from_static_string(method->path), NULL, rpc_deadline(options->deadline), NULL);
    sl_assert(call->call);
    runtime->live_calls++;
    runtime->client_calls++;
    sl_status status = take_metadata(call, options, err);
    if (!sl_is_ok(status)) {
        call_free(call);
        return status;
    }
    call->op_start = (rpc_op){on_plain, call, NULL};
    call->op_open = (rpc_op){on_open, call, NULL};
    call->op_recv = (rpc_op){on_recv, call, NULL};
    call->op_write = (rpc_op){on_write, call, NULL};
    call->op_close = (rpc_op){on_closed_side, call, NULL};
    call->op_status = (rpc_op){on_status, call, NULL};
    call->op_resume = (rpc_op){on_resume, call, NULL};
    call->channel = channel;
    rpc_list_add(&channel->calls, &call->link);
    *out_call = call;
    return sl_ok();
}

static grpc_op initial_op(const rpc_call *call, const rpc_call_options *options)
{
    grpc_op op = {.op = GRPC_OP_SEND_INITIAL_METADATA};
    op.data.send_initial_metadata.count = call->metadata_count;
    op.data.send_initial_metadata.metadata = call->metadata;
    if (options)
        op.flags = GRPC_INITIAL_METADATA_WAIT_FOR_READY_EXPLICITLY_SET |
                   (options->wait_for_ready ? GRPC_INITIAL_METADATA_WAIT_FOR_READY : 0);
    return op;
}

static grpc_op status_op(rpc_call *call)
{
    grpc_op op = {.op = GRPC_OP_RECV_STATUS_ON_CLIENT};
    op.data.recv_status_on_client.trailing_metadata = &call->trailing;
    op.data.recv_status_on_client.status = &call->status;
    op.data.recv_status_on_client.status_details = &call->details;
    return op;
}

sl_status rpc_unary(rpc_channel *channel, const rpc_method *method, const ProtobufCMessage *request,
                    const rpc_call_options *options, rpc_done_fn on_done, void *context,
                    rpc_call **out_call, sl_err *err)
{
    sl_assert(method->kind == RPC_UNARY && request->descriptor == method->request);
    rpc_call *call;
    SL_TRY(call_create(channel, method, request, options, &call, err));
    call->unary = true;
    call->on_done = on_done;
    call->context = context;
    grpc_op ops[6] = {[0] = initial_op(call, options)};
    ops[1].op = GRPC_OP_SEND_MESSAGE;
    ops[1].data.send_message.send_message = call->send_buffer;
    ops[2].op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
    ops[3].op = GRPC_OP_RECV_INITIAL_METADATA;
    ops[3].data.recv_initial_metadata.recv_initial_metadata = &call->initial;
    ops[4].op = GRPC_OP_RECV_MESSAGE;
    ops[4].data.recv_message.recv_message = &call->recv_buffer;
    ops[5] = status_op(call);
    call_batch(call, ops, 6, &call->op_status);
    if (out_call)
        *out_call = call;
    return sl_ok();
}

sl_status rpc_stream_open(rpc_channel *channel, const rpc_method *method,
                          const ProtobufCMessage *request, const rpc_call_options *options,
                          const rpc_stream_events *events, void *context, rpc_call **out_call,
                          sl_err *err)
{
    bool bidi = method->kind == RPC_BIDI;
    sl_assert(bidi ? !request : method->kind == RPC_SERVER_STREAM);
    sl_assert(bidi || request->descriptor == method->request);
    sl_assert(events->on_message && events->on_end);
    rpc_call *call;
    SL_TRY(call_create(channel, method, request, options, &call, err));
    call->events = *events;
    call->context = context;
    call->close_sent = !bidi;

    grpc_op status = status_op(call);
    call_batch(call, &status, 1, &call->op_status);
    grpc_op ops[3] = {[0] = initial_op(call, options)};
    ops[1].op = GRPC_OP_SEND_MESSAGE;
    ops[1].data.send_message.send_message = call->send_buffer;
    ops[2].op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
    if (bidi)
        call->writing = true; /* the first write waits until the start batch is through */
    call_batch(call, ops, bidi ? 1 : 3, bidi ? &call->op_write : &call->op_start);
    grpc_op open = {.op = GRPC_OP_RECV_INITIAL_METADATA};
    open.data.recv_initial_metadata.recv_initial_metadata = &call->initial;
    call_batch(call, &open, 1, &call->op_open);
    read_next(call);
    *out_call = call;
    return sl_ok();
}

/* ---- control ---- */

sl_status rpc_stream_write(rpc_call *call, const ProtobufCMessage *message)
{
    sl_loop_assert_owner(call->runtime->loop);
    sl_assert(!call->dropped && message->descriptor == call->method->request);
    if (call->ended || call->status_in || call->write_dead || call->writes_done || call->bad)
        return (sl_status){SL_UNAVAILABLE};
    SL_TRY(rpc_queue_push(&call->queue, message, call->message_bytes_max));
    write_next(call);
    return sl_ok();
}

size_t rpc_stream_write_pending(const rpc_call *call)
{
    return call->queue.count + (call->send_buffer ? 1 : 0);
}

void rpc_stream_writes_done(rpc_call *call)
{
    sl_loop_assert_owner(call->runtime->loop);
    sl_assert(!call->dropped);
    call->writes_done = true;
    write_next(call);
}

static void resume_later(rpc_call *call)
{
    if (call->resuming || call->ended)
        return;
    call->resuming = true;
    call->ops_live++;
    rpc_defer(call->runtime, &call->op_resume);
}

void rpc_stream_pause(rpc_call *call, bool paused)
{
    sl_loop_assert_owner(call->runtime->loop);
    sl_assert(!call->dropped && !call->unary);
    call->paused = paused;
    if (!paused)
        resume_later(call);
}

void rpc_call_cancel(rpc_call *call)
{
    sl_loop_assert_owner(call->runtime->loop);
    sl_assert(!call->dropped);
    call->cancel_asked = true;
    grpc_call_cancel(call->call, NULL);
    if (!call->held_buffer)
        return;
    /* The end may be in and wait for this message, which a paused owner never takes. */
    grpc_byte_buffer_destroy(call->held_buffer);
    call->held_buffer = NULL;
    resume_later(call);
}

void rpc_call_drop(rpc_call *call)
{
    if (!call)
        return;
    sl_loop_assert_owner(call->runtime->loop);
    if (call->ended)
        return; /* from inside its end callback */
    sl_assert(!call->dropped);
    call->dropped = true;
    call_unlink(call);
    rpc_queue_flush(&call->queue);
    grpc_call_cancel(call->call, NULL);
    call_settle(call);
}

void rpc_client_call_drop(rpc_link *link)
{
    rpc_call_drop(rpc_list_entry(link, rpc_call, link));
}
