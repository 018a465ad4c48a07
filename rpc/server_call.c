/* One call on a server: from acceptance to on_closed.
 *
 * A call is freed when it is over for the transport, its owner was told, and gRPC holds none of its
 * tags. Thread: the runtime's loop. Never calls back inside a public call. */
#include <grpc/grpc_security.h>
#include <grpc/grpc_security_constants.h>
#include <string.h>

#include "base/alloc.h"
#include "rpc/internal.h"
#include "rpc/status_map.h"

#define STATUS_TEXT_MAX SL_ERR_TEXT_MAX

struct rpc_server_call {
    rpc_link link; /* server->calls once accepted */
    rpc_server *server;
    grpc_call *call;
    const rpc_handler *handler;
    grpc_call_details details;
    grpc_metadata_array metadata;
    rpc_op op_accept, op_close, op_open, op_recv, op_write, op_status, op_resume;
    int ops_live;
    bool busy;             /* inside a callback: do not free */
    bool told;             /* on_call was called: on_closed is owed */
    bool over;             /* on_closed was called, or nobody wants it */
    bool close_in;         /* the transport says that the call is over */
    bool open_sent;        /* initial metadata */
    bool finishing;        /* status decided */
    bool status_begun;     /* its batch went out */
    bool status_done;      /* .. and came back */
    bool status_ok;        /* .. well: the client can have it */
    bool reading, writing; /* batch out */
    bool write_dead;
    bool read_end;
    bool paused, resuming;
    int cancelled;
    grpc_byte_buffer *recv_buffer, *held_buffer, *send_buffer, *reply_buffer;
    ProtobufCMessage *request;
    rpc_queue queue;
    sl_code status;
    grpc_slice status_text;
    grpc_metadata status_metadata;
    char *peer;
    rpc_identity identity; /* role 0: no certificate was asked for */
    char **texts;          /* copies that rpc_server_call_metadata gave out */
    rpc_server_call_events events;
    void *context;
};

static void status_next(rpc_server_call *call);

static void call_free(rpc_server_call *call)
{
    rpc_server *server = call->server;
    grpc_byte_buffer_destroy(call->recv_buffer);
    grpc_byte_buffer_destroy(call->held_buffer);
    grpc_byte_buffer_destroy(call->send_buffer);
    grpc_byte_buffer_destroy(call->reply_buffer);
    rpc_message_release(call->request);
    rpc_queue_fini(&call->queue);
    for (size_t i = 0; call->texts && i < call->metadata.count; i++)
        sl_free(call->texts[i]);
    sl_free(call->texts);
    grpc_slice_unref(call->status_text);
    grpc_slice_unref(call->status_metadata.value);
    grpc_call_details_destroy(&call->details);
    grpc_metadata_array_destroy(&call->metadata);
    if (call->peer)
        gpr_free(call->peer);
    if (call->call) {
        grpc_call_unref(call->call);
        rpc_list_remove(&call->link);
        server->live_calls--;
        server->runtime->live_calls--;
    }
    sl_free(call);
    rpc_server_maybe_stopped(server); /* may free the server */
}

static void call_batch(rpc_server_call *call, const grpc_op *ops, size_t count, rpc_op *op)
{
    call->ops_live++;
    rpc_batch(call->server->runtime, call->call, ops, count, op);
}

/* Last thing that every entry does: on_closed when it is due, then freeing. */
static void call_settle(rpc_server_call *call)
{
    if (call->busy)
        return;
    if (!call->over && call->close_in && call->status_begun == call->status_done) {
        call->over = true;
        if (call->told && call->events.on_closed) {
            call->busy = true;
            call->events.on_closed(call->context, call, !call->status_ok);
            call->busy = false;
        }
        /* The handler never gave a status: gRPC still wants one. */
        if (!call->finishing) {
            call->finishing = true;
            call->status = SL_CANCELLED;
            rpc_queue_flush(&call->queue);
        }
        status_next(call);
    }
    if (call->over && call->close_in && call->ops_live == 0)
        call_free(call);
}

/* ---- sending ---- */

static grpc_op initial_op(rpc_server_call *call)
{
    grpc_op op = {.op = GRPC_OP_SEND_INITIAL_METADATA};
    call->open_sent = true;
    return op;
}

static void send_status(rpc_server_call *call)
{
    grpc_op ops[3];
    memset(ops, 0, sizeof(ops));
    size_t count = 0;
    call->status_begun = true;
    if (!call->open_sent)
        ops[count++] = initial_op(call);
    if (call->reply_buffer) {
        ops[count].op = GRPC_OP_SEND_MESSAGE;
        ops[count++].data.send_message.send_message = call->reply_buffer;
    }
    grpc_op *op = &ops[count++];
    op->op = GRPC_OP_SEND_STATUS_FROM_SERVER;
    op->data.send_status_from_server.status = (grpc_status_code)rpc_status_to_grpc(call->status);
    if (call->status != SL_OK) {
        char text[16];
        snprintf(text, sizeof(text), "%d", (int)call->status);
        call->status_metadata.key = grpc_slice_from_static_string(RPC_CODE_KEY);
        call->status_metadata.value = grpc_slice_from_copied_string(text);
        op->data.send_status_from_server.trailing_metadata_count = 1;
        op->data.send_status_from_server.trailing_metadata = &call->status_metadata;
        op->data.send_status_from_server.status_details = &call->status_text;
    }
    call_batch(call, ops, count, &call->op_status);
}

/* The status goes out behind the queue. */
static void status_next(rpc_server_call *call)
{
    if (call->finishing && !call->status_begun && !call->writing && !call->queue.count)
        send_status(call);
}

static void write_next(rpc_server_call *call)
{
    if (call->writing)
        return;
    if (!call->write_dead)
        call->send_buffer = rpc_queue_pop(&call->queue);
    if (!call->send_buffer) {
        status_next(call);
        return;
    }
    call->writing = true;
    grpc_op op = {.op = GRPC_OP_SEND_MESSAGE};
    op.data.send_message.send_message = call->send_buffer;
    call_batch(call, &op, 1, &call->op_write);
}

static void on_write(void *owner, bool ok)
{
    rpc_server_call *call = owner;
    call->ops_live--;
    call->writing = false;
    grpc_byte_buffer_destroy(call->send_buffer);
    call->send_buffer = NULL;
    if (!ok) {
        call->write_dead = true;
        rpc_queue_flush(&call->queue);
    }
    write_next(call);
    if (ok && !call->over && !call->finishing && call->events.on_writable &&
        rpc_queue_relieved(&call->queue)) {
        call->busy = true;
        call->events.on_writable(call->context, call);
        call->busy = false;
    }
    call_settle(call);
}

static void on_status(void *owner, bool ok)
{
    rpc_server_call *call = owner;
    call->ops_live--;
    call->status_done = true;
    call->status_ok = ok;
    call_settle(call);
}

static void on_plain(void *owner, bool ok)
{
    rpc_server_call *call = owner;
    (void)ok;
    call->ops_live--;
    call_settle(call);
}

static void set_status(rpc_server_call *call, sl_code code, const char *text)
{
    char bounded[STATUS_TEXT_MAX];
    snprintf(bounded, sizeof(bounded), "%s", text ? text : "");
    call->finishing = true;
    call->status = code;
    call->status_text = grpc_slice_from_copied_string(bounded);
}

static void finish(rpc_server_call *call, sl_code code, const char *text)
{
    if (call->finishing || call->over)
        return;
    set_status(call, code, text);
    write_next(call);
}

/* ---- reading ---- */

static void read_next(rpc_server_call *call)
{
    if (call->reading || call->read_end || call->paused || call->over || call->held_buffer)
        return;
    call->reading = true;
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE};
    op.data.recv_message.recv_message = &call->recv_buffer;
    call_batch(call, &op, 1, &call->op_recv);
}

static void deliver(rpc_server_call *call, grpc_byte_buffer *buffer)
{
    ProtobufCMessage *message = NULL;
    sl_err err;
    if (!sl_is_ok(rpc_unpack(call->handler->method->request, buffer, &message, &err))) {
        call->read_end = true;
        finish(call, err.code, err.text);
        return;
    }
    call->busy = true;
    if (call->handler->method->kind == RPC_BIDI) {
        if (call->events.on_message)
            call->events.on_message(call->context, call, message);
        rpc_message_release(message);
    } else {
        call->request = message; /* until the end */
        call->read_end = true;
        call->told = true;
        call->handler->on_call(call->handler->context, call, message);
    }
    call->busy = false;
}

static void end_of_messages(rpc_server_call *call)
{
    call->read_end = true;
    if (call->over || call->close_in)
        return;
    if (call->handler->method->kind != RPC_BIDI) {
        finish(call, SL_INVALID, "no request message");
    } else if (call->events.on_half_closed && !call->finishing) {
        call->busy = true;
        call->events.on_half_closed(call->context, call);
        call->busy = false;
    }
}

static void on_recv(void *owner, bool ok)
{
    rpc_server_call *call = owner;
    (void)ok;
    call->ops_live--;
    call->reading = false;
    grpc_byte_buffer *buffer = call->recv_buffer;
    call->recv_buffer = NULL;
    if (!buffer)
        end_of_messages(call);
    else if (call->over || call->finishing)
        grpc_byte_buffer_destroy(buffer); /* nobody wants it, but the peer may go on */
    else if (call->paused)
        call->held_buffer = buffer;
    else
        deliver(call, buffer);
    read_next(call);
    call_settle(call);
}

static void on_resume(void *owner, bool ok)
{
    rpc_server_call *call = owner;
    (void)ok;
    call->ops_live--;
    call->resuming = false;
    if (!call->paused && !call->over && call->held_buffer) {
        grpc_byte_buffer *buffer = call->held_buffer;
        call->held_buffer = NULL;
        if (call->finishing)
            grpc_byte_buffer_destroy(buffer);
        else
            deliver(call, buffer);
    }
    read_next(call);
    call_settle(call);
}

/* ---- begin and end ---- */

static void on_close(void *owner, bool ok)
{
    rpc_server_call *call = owner;
    (void)ok;
    call->ops_live--;
    call->close_in = true;
    if (call->cancelled)
        rpc_queue_flush(&call->queue);
    call_settle(call);
}

/* ---- who calls ---- */

void rpc_peer_identity(grpc_call *call, rpc_identity *out_identity)
{
    grpc_auth_context *context = grpc_call_auth_context(call);
    memset(out_identity, 0, sizeof(*out_identity));
    if (!context)
        return;
    grpc_auth_property_iterator at =
        grpc_auth_context_find_properties_by_name(context, GRPC_X509_PEM_CERT_PROPERTY_NAME);
    const grpc_auth_property *property = grpc_auth_property_iterator_next(&at);
    if (property) {
        char *pem = sl_strndup(property->value, property->value_length, "rpc certificate");
        (void)!sl_is_ok(rpc_identity_of(pem, out_identity, NULL));
        sl_free(pem);
    }
    grpc_auth_context_release(context);
}

/* false: the call has its answer. */
static bool may_call(rpc_server_call *call)
{
    char text[320];
    unsigned roles = rpc_method_roles(call->handler->method);
    if (!call->server->checks_roles)
        return true;
    rpc_peer_identity(call->call, &call->identity);
    if (call->identity.role & roles)
        return true;
    snprintf(text, sizeof(text), "%s %s may not call %s: it takes %s's certificate",
             rpc_role_name(call->identity.role), call->identity.name, call->handler->method->path,
             roles & RPC_ROLE_OPERATOR ? "an operator" : "a node");
    finish(call, SL_DENIED, text);
    return false;
}

static void start_call(rpc_server_call *call)
{
    rpc_server *server = call->server;
    grpc_op close = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER};
    close.data.recv_close_on_server.cancelled = &call->cancelled;
    call_batch(call, &close, 1, &call->op_close);

    char text[128];
    call->handler = rpc_server_find(server, call->details.method);
    if (!call->handler) {
        snprintf(text, sizeof(text), "no method %.*s here",
                 (int)GRPC_SLICE_LENGTH(call->details.method),
                 (const char *)GRPC_SLICE_START_PTR(call->details.method));
        finish(call, SL_UNSUPPORTED, text);
        return;
    }
    if (server->live_calls > server->calls_max) {
        snprintf(text, sizeof(text), "%zu calls are open on this server", server->calls_max);
        finish(call, SL_FULL, text);
        return;
    }
    if (!may_call(call))
        return;
    if (call->handler->method->kind != RPC_UNARY) {
        grpc_op open = initial_op(call);
        call_batch(call, &open, 1, &call->op_open);
    }
    if (call->handler->method->kind == RPC_BIDI) {
        call->told = true;
        call->busy = true;
        call->handler->on_call(call->handler->context, call, NULL);
        call->busy = false;
    }
    read_next(call);
}

static void on_accept(void *owner, bool ok)
{
    rpc_server_call *call = owner;
    rpc_server *server = call->server;
    server->armed--;
    if (!ok) { /* shut down */
        call_free(call);
        return;
    }
    rpc_list_add(&server->calls, &call->link);
    server->live_calls++;
    server->runtime->live_calls++;
    if (server->orphaned || server->stopping) {
        grpc_op close = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER};
        close.data.recv_close_on_server.cancelled = &call->cancelled;
        call_batch(call, &close, 1, &call->op_close);
        set_status(call, SL_UNAVAILABLE, "the server is stopping");
        write_next(call);
        return;
    }
    rpc_server_call_accept(server);
    start_call(call);
    call_settle(call);
}

void rpc_server_call_accept(rpc_server *server)
{
    rpc_server_call *call = sl_alloc(1, sizeof(*call), "rpc server call");
    call->server = server;
    call->op_accept = (rpc_op){on_accept, call, NULL};
    call->op_close = (rpc_op){on_close, call, NULL};
    call->op_open = (rpc_op){on_plain, call, NULL};
    call->op_recv = (rpc_op){on_recv, call, NULL};
    call->op_write = (rpc_op){on_write, call, NULL};
    call->op_status = (rpc_op){on_status, call, NULL};
    call->op_resume = (rpc_op){on_resume, call, NULL};
    call->status_text = grpc_empty_slice();
    call->status_metadata.value = grpc_empty_slice();
    grpc_call_details_init(&call->details);
    grpc_metadata_array_init(&call->metadata);
    rpc_queue_init(&call->queue, server->write_messages_max, server->write_bytes_max);
    rpc_runtime *runtime = server->runtime;
    server->armed++;
    rpc_op_begin(runtime);
    grpc_call_error error =
        grpc_server_request_call(server->server, &call->call, &call->details, &call->metadata,
                                 runtime->queue, runtime->queue, &call->op_accept);
    sl_assert(error == GRPC_CALL_OK);
}

void rpc_server_call_orphan(rpc_link *link)
{
    rpc_server_call *call = rpc_list_entry(link, rpc_server_call, link);
    call->told = false; /* nobody is told any more */
    memset(&call->events, 0, sizeof(call->events));
    if (!call->finishing)
        set_status(call, SL_UNAVAILABLE, "the server is stopping");
    rpc_queue_flush(&call->queue);
    write_next(call);
}

/* ---- public ---- */

void rpc_server_call_set(rpc_server_call *call, const rpc_server_call_events *events, void *context)
{
    call->events = *events;
    call->context = context;
}

const rpc_method *rpc_server_call_method(const rpc_server_call *call)
{
    return call->handler->method;
}

const char *rpc_server_call_peer(const rpc_server_call *call)
{
    rpc_server_call *mutable = (rpc_server_call *)(uintptr_t)call;
    if (!mutable->peer)
        mutable->peer = grpc_call_get_peer(call->call);
    return mutable->peer;
}

sl_time_ns rpc_server_call_deadline(const rpc_server_call *call)
{
    gpr_timespec inf = gpr_inf_future(call->details.deadline.clock_type);
    if (gpr_time_cmp(call->details.deadline, inf) == 0)
        return SL_NEVER;
    gpr_timespec left =
        gpr_time_sub(call->details.deadline, gpr_now(call->details.deadline.clock_type));
    int64_t left_ns = left.tv_sec * (int64_t)SL_S_NS + left.tv_nsec;
    sl_time_ns now = sl_now_ns();
    if (left_ns < 0)
        return now;
    return now + (uint64_t)left_ns;
}

const char *rpc_server_call_metadata(const rpc_server_call *call, const char *key)
{
    rpc_server_call *mutable = (rpc_server_call *)(uintptr_t)call;
    for (size_t i = 0; i < call->metadata.count; i++) {
        const grpc_metadata *m = &call->metadata.metadata[i];
        if (grpc_slice_str_cmp(m->key, key) != 0)
            continue;
        if (!mutable->texts)
            mutable->texts = sl_alloc(call->metadata.count, sizeof(char *), "rpc metadata");
        if (!mutable->texts[i])
            mutable->texts[i] = sl_strndup((const char *)GRPC_SLICE_START_PTR(m->value),
                                           GRPC_SLICE_LENGTH(m->value), "rpc metadata");
        return mutable->texts[i];
    }
    return NULL;
}

void rpc_server_call_actor(rpc_server_call *call, char *out_text, size_t size)
{
    if (call->identity.role) {
        snprintf(out_text, size, "%s %s", rpc_role_name(call->identity.role), call->identity.name);
        return;
    }
    const char *claimed = rpc_server_call_metadata(call, RPC_ACTOR_KEY);
    char name[64] = "someone";
    size_t length = 0;
    for (; claimed && claimed[length] && length < sizeof(name) - 1; length++)
        name[length] = claimed[length] > ' ' && claimed[length] < 127 ? claimed[length] : '?';
    if (length > 0)
        name[length] = 0;
    snprintf(out_text, size, "%s, unverified, from %.80s", name, rpc_server_call_peer(call));
}

void rpc_server_call_reply(rpc_server_call *call, const ProtobufCMessage *reply)
{
    sl_loop_assert_owner(call->server->runtime->loop);
    sl_assert(call->handler->method->kind == RPC_UNARY);
    sl_assert(reply->descriptor == call->handler->method->reply);
    if (call->finishing || call->over)
        return;
    if (!sl_is_ok(rpc_pack(reply, call->server->message_bytes_max, &call->reply_buffer))) {
        finish(call, SL_TOO_LARGE, "the reply is larger than the limit");
        return;
    }
    finish(call, SL_OK, NULL);
}

sl_status rpc_server_call_write(rpc_server_call *call, const ProtobufCMessage *message)
{
    sl_loop_assert_owner(call->server->runtime->loop);
    sl_assert(call->handler->method->kind != RPC_UNARY);
    sl_assert(message->descriptor == call->handler->method->reply);
    if (call->finishing || call->over || call->close_in || call->write_dead)
        return (sl_status){SL_CANCELLED};
    SL_TRY(rpc_queue_push(&call->queue, message, call->server->message_bytes_max));
    write_next(call);
    return sl_ok();
}

size_t rpc_server_call_write_pending(const rpc_server_call *call)
{
    return call->queue.count + (call->send_buffer ? 1 : 0);
}

void rpc_server_call_finish(rpc_server_call *call, sl_code code, const char *text)
{
    sl_loop_assert_owner(call->server->runtime->loop);
    sl_assert(code != SL_OK || call->handler->method->kind != RPC_UNARY);
    finish(call, code, text);
}

void rpc_server_call_pause(rpc_server_call *call, bool paused)
{
    sl_loop_assert_owner(call->server->runtime->loop);
    sl_assert(call->handler->method->kind == RPC_BIDI);
    call->paused = paused;
    if (paused || call->resuming || call->over)
        return;
    call->resuming = true;
    call->ops_live++;
    rpc_defer(call->server->runtime, &call->op_resume);
}

void rpc_server_call_cancel(rpc_server_call *call)
{
    sl_loop_assert_owner(call->server->runtime->loop);
    if (call->over)
        return;
    rpc_queue_flush(&call->queue);
    grpc_call_cancel(call->call, NULL);
}
