/* Server side: listener, method table, calls; health and reflection are served by itself.
 *
 * A call begins with its method's on_call and ends with on_closed, exactly once and last (its
 * handle is invalid once that returned), however it ended. Thread: the runtime's loop. */
#ifndef RPC_SERVER_H
#define RPC_SERVER_H

#include "base/net.h"
#include "rpc/message.h"
#include "rpc/method.h"
#include "rpc/runtime.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct rpc_server rpc_server;
typedef struct rpc_server_call rpc_server_call;

#define RPC_SERVER_CALLS_MAX 4096 /* open calls of one server; more get RESOURCE_EXHAUSTED */
#define RPC_SERVER_ARMED     32   /* new calls taken from the transport ahead of need */

/* All members may be NULL. context = what rpc_server_call_set was given. */
typedef struct rpc_server_call_events {
    /* Bidi: one message of the client, borrowed. */
    void (*on_message)(void *context, rpc_server_call *call, const ProtobufCMessage *message);
    /* Bidi: the client ended its side. */
    void (*on_half_closed)(void *context, rpc_server_call *call);
    /* After a write was refused with SL_FULL: the queue is at most half full again. */
    void (*on_writable)(void *context, rpc_server_call *call);
    /* Last. cancelled: the client cancelled, vanished or ran into its deadline, before it had our
     * status. */
    void (*on_closed)(void *context, rpc_server_call *call, bool cancelled);
} rpc_server_call_events;

typedef struct rpc_handler {
    const rpc_method *method;
    /* A call came. request: borrowed until on_closed (unary, server stream); NULL (bidi). Answer
     * here or later. A deferred answer wants rpc_server_call_set here, to learn of the end. */
    void (*on_call)(void *context, rpc_server_call *call, const ProtobufCMessage *request);
    void *context;
} rpc_handler;

typedef struct rpc_server_options {
    const char *listen;          /* "127.0.0.1:9090", port 0 = any free one */
    const rpc_handler *handlers; /* copied */
    size_t handler_count;
    size_t calls_max;          /* 0 = RPC_SERVER_CALLS_MAX */
    size_t message_bytes_max;  /* 0 = RPC_MESSAGE_BYTES_MAX */
    size_t write_messages_max; /* of one call's queue; 0 = RPC_WRITE_MESSAGES_MAX (client.h) */
    size_t write_bytes_max;
    bool no_reflection;
    const rpc_tls *tls; /* NULL = plain text. With a ca callers need a certificate of it, and the
                           role that a method asks for (rpc/tls.h) */
} rpc_server_options;

/* A port in use: SL_IO, the text names the address. */
SL_MUST_USE sl_status rpc_server_create(rpc_runtime *runtime, const rpc_server_options *options,
                                        rpc_server **out_server, sl_err *err);
/* "127.0.0.1:41231", with the port really bound. */
const char *rpc_server_address(const rpc_server *server);
size_t rpc_server_live_calls(const rpc_server *server);
/* grpc.health.v1: service "sluice.v1.Decode", or "" for the whole server (serving from the start).
 * Watchers are told. Unknown names become known. */
void rpc_server_set_health(rpc_server *server, const char *service, bool serving);
/* Two stages: no new calls (health says not serving, watchers end), live ones may finish until
 * `deadline`, then they are cancelled; on_stopped comes once none is left. May be called again with
 * an earlier deadline. */
void rpc_server_stop(rpc_server *server, sl_time_ns deadline, void (*on_stopped)(void *context),
                     void *context);
/* After on_stopped, or at any time outside rpc callbacks: then live calls are cancelled without
 * on_closed and it blocks for milliseconds. NULL is fine. */
void rpc_server_destroy(rpc_server *server);

/* ---- one call ---- */
void rpc_server_call_set(rpc_server_call *call, const rpc_server_call_events *events,
                         void *context);
const rpc_method *rpc_server_call_method(const rpc_server_call *call);
/* "ipv4:127.0.0.1:41000", as gRPC names it; lives as long as the call. */
const char *rpc_server_call_peer(const rpc_server_call *call);
sl_time_ns rpc_server_call_deadline(const rpc_server_call *call); /* SL_NEVER = none */
/* A text metadata value of the client, NULL if absent; lives as long as the call. */
const char *rpc_server_call_metadata(const rpc_server_call *call, const char *key);

/* Who calls, for people and the audit: "operator alice", or what the client says of itself and
 * where it calls from. */
#define RPC_ACTOR_MAX 160
#define RPC_ACTOR_KEY "sluice-operator" /* the client's metadata */
void rpc_server_call_actor(rpc_server_call *call, char *out_text, size_t size);

/* Unary: the answer, with SL_OK. The call may already be cancelled: then it is dropped silently. A
 * reply that is too large ends the call with SL_TOO_LARGE. */
void rpc_server_call_reply(rpc_server_call *call, const ProtobufCMessage *reply);
/* Streams: queues one message. SL_FULL: queue full, nothing queued; SL_TOO_LARGE; SL_CANCELLED: the
 * call is over. */
SL_MUST_USE sl_status rpc_server_call_write(rpc_server_call *call, const ProtobufCMessage *message);
size_t rpc_server_call_write_pending(const rpc_server_call *call);
/* Streams and unary failure: the status, after what is queued. text may be NULL. Once; later calls
 * are ignored. */
void rpc_server_call_finish(rpc_server_call *call, sl_code code, const char *text);
/* Bidi: holds the client by flow control. */
void rpc_server_call_pause(rpc_server_call *call, bool paused);
/* Ends it at once, queue dropped: our clients see SL_UNAVAILABLE. on_closed follows. */
void rpc_server_call_cancel(rpc_server_call *call);

#ifdef __cplusplus
}
#endif
#endif
