/* Client side: channels and calls.
 *
 * Calls start at once and report by callback. The end callback (on_done, on_end) comes exactly once
 * and last; the handle is invalid once it returned. rpc_call_drop ends a call without any further
 * callback: use it when the context goes away. Thread: the runtime's loop. */
#ifndef RPC_CLIENT_H
#define RPC_CLIENT_H

#include "rpc/message.h"
#include "rpc/method.h"
#include "rpc/runtime.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A dead or stopped peer is seen after keepalive + timeout, also without calls. */
#define RPC_KEEPALIVE_MS           2000
#define RPC_KEEPALIVE_TIMEOUT_MS   1000
#define RPC_BACKOFF_FIRST_MS       100
#define RPC_BACKOFF_MAX_MS         1000
#define RPC_CONNECT_TIMEOUT_MS     2000
#define RPC_STREAM_LOOKAHEAD_BYTES 65536 /* what HTTP/2 takes in for a stream nobody reads */
#define RPC_WRITE_MESSAGES_MAX     64    /* default bounds of a stream's write queue */
#define RPC_WRITE_BYTES_MAX        ((size_t)8 << 20)

typedef struct rpc_channel rpc_channel;
typedef struct rpc_call rpc_call;

typedef struct rpc_channel_options { /* zero = the defaults above */
    uint32_t keepalive_ms;
    uint32_t keepalive_timeout_ms;
    size_t message_bytes_max;
    bool own_connection; /* do not share a connection with other channels to the same target */
    const rpc_tls *tls;  /* NULL = plain text */
} rpc_channel_options;

/* Lazy: connects with the first call. target: "host:port"; options may be NULL. */
SL_MUST_USE sl_status rpc_channel_create(rpc_runtime *runtime, const char *target,
                                         const rpc_channel_options *options,
                                         rpc_channel **out_channel, sl_err *err);
/* Drops its calls. NULL is fine. */
void rpc_channel_destroy(rpc_channel *channel);
const char *rpc_channel_target(const rpc_channel *channel);

typedef struct rpc_metadata {
    const char *key; /* lower case */
    const char *value;
} rpc_metadata;

typedef struct rpc_call_options { /* may be NULL: no deadline, fail at once if the peer is down */
    sl_time_ns deadline;          /* absolute, sl_now_ns; 0 or SL_NEVER = none */
    bool wait_for_ready;          /* wait for the peer up to the deadline */
    const rpc_metadata *metadata;
    size_t metadata_count;
    size_t write_messages_max; /* streams; 0 = the default */
    size_t write_bytes_max;
} rpc_call_options;

/* reply: NULL unless err->code is SL_OK. err is never NULL; its text names target and method. */
typedef void (*rpc_done_fn)(void *context, const ProtobufCMessage *reply, const sl_err *err);

/* Fails only for a request that cannot be sent (SL_TOO_LARGE; SL_FULL past RPC_CALLS_MAX). */
SL_MUST_USE sl_status rpc_unary(rpc_channel *channel, const rpc_method *method,
                                const ProtobufCMessage *request, const rpc_call_options *options,
                                rpc_done_fn on_done, void *context, rpc_call **out_call,
                                sl_err *err);

#define RPC_CALLS_MAX 65536 /* open client calls of one runtime */

typedef struct rpc_stream_events {
    /* Borrowed message. Not called while paused. */
    void (*on_message)(void *context, const ProtobufCMessage *message);
    /* May be NULL: after a write was refused with SL_FULL, the queue is at most half full again. */
    void (*on_writable)(void *context);
    /* May be NULL: the server's first bytes (its initial metadata) arrived: it is there. */
    void (*on_open)(void *context);
    /* Last; SL_OK = the server ended the stream well. */
    void (*on_end)(void *context, const sl_err *err);
} rpc_stream_events;

/* Server stream: pass the request. Bidi: request NULL, then write. Events are copied. */
SL_MUST_USE sl_status rpc_stream_open(rpc_channel *channel, const rpc_method *method,
                                      const ProtobufCMessage *request,
                                      const rpc_call_options *options,
                                      const rpc_stream_events *events, void *context,
                                      rpc_call **out_call, sl_err *err);
/* Bidi: queues one message (packed before returning, `message` stays yours). SL_FULL: the bounded
 * queue is full, nothing queued; SL_TOO_LARGE; SL_UNAVAILABLE once the stream is ending. */
SL_MUST_USE sl_status rpc_stream_write(rpc_call *call, const ProtobufCMessage *message);
/* Messages queued and not yet handed to the transport. */
size_t rpc_stream_write_pending(const rpc_call *call);
/* Bidi: no more writes; the server sees the end of the stream once the queue is empty. */
void rpc_stream_writes_done(rpc_call *call);
/* While paused no message is delivered or read, so the sender is held by flow control. */
void rpc_stream_pause(rpc_call *call, bool paused);

/* Any call, paused or not: no message is delivered any more, and the end callback follows with
 * SL_CANCELLED (unless the peer's end had already come in, with nothing left to deliver). */
void rpc_call_cancel(rpc_call *call);
/* In an end callback: the error is what the server said, not that it could not be asked. */
bool rpc_call_answered(const rpc_call *call);
/* Any call: cancels, no callback comes any more, the handle is invalid. NULL is fine. */
void rpc_call_drop(rpc_call *call);

#ifdef __cplusplus
}
#endif
#endif
