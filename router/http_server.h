/* An HTTP/1.1 server on the event loop: connections, framing, limits, time limits, streams.
 *
 * One server per loop; several may share a listening descriptor. A connection carries one exchange
 * at a time: pipelined requests wait in the kernel and in a small buffer and are answered in order.
 * A handler answers at once or keeps the exchange and answers later; it must have claimed it
 * (rtr_http_exchange_claim) by the time it returns without a complete answer. Output is collected
 * and written in rtr_http_server_flush, which the loop's after-hook calls, so that all tokens of
 * one pass leave in one write.
 *
 * A client that closes is told apart from one that only ends its sending side (both look alike to
 * TCP) by a probe: a comment line in an event stream, or an interim "100 Continue" before the head
 * of an HTTP/1.1 answer. A closed socket answers with a reset and the exchange is gone at once; a
 * half-closed one still reads and is served to the end. HTTP/1.0 knows no interim answers: there
 * the end of the sending side before the answer counts as gone.
 *
 * Thread: the loop's. */
#ifndef ROUTER_HTTP_SERVER_H
#define ROUTER_HTTP_SERVER_H

#include "base/loop.h"
#include "router/http_parser.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct rtr_http_server rtr_http_server;
typedef struct rtr_http_exchange rtr_http_exchange;

typedef struct rtr_http_server_options {
    int listen_fd; /* borrowed; non-blocking */
    uint64_t body_max;
    uint64_t body_total_max; /* request bodies held in all; 0 = 32 times body_max */
    uint32_t connections_max;
    sl_time_ns head_timeout_ns;   /* from the first byte of a request to the end of its head */
    sl_time_ns body_timeout_ns;   /* between two pieces of a body */
    sl_time_ns idle_timeout_ns;   /* keep-alive */
    sl_time_ns write_timeout_ns;  /* output waits and nothing moves */
    sl_time_ns linger_timeout_ns; /* after an answer that closes the connection */
    void (*on_request)(void *context, rtr_http_exchange *exchange);
    void (*on_http_error)(void *context, int status); /* for metrics; may be NULL */
    void *context;
} rtr_http_server_options;

/* Sensible limits; the caller sets listen_fd, on_request and context. */
void rtr_http_server_options_init(rtr_http_server_options *options);
SL_MUST_USE sl_status rtr_http_server_create(sl_loop *loop, const rtr_http_server_options *options,
                                             rtr_http_server **out_server, sl_err *err);
/* Closes everything; claimed exchanges get their gone call. */
void rtr_http_server_destroy(rtr_http_server *server);
/* From now on an answer ends its connection: whoever balances load is to go elsewhere. */
void rtr_http_server_leave(rtr_http_server *server);
/* Accepts no more (who owns the socket shuts it down); idle ones close, others after their answer.
 */
void rtr_http_server_stop(rtr_http_server *server);
/* Writes what was collected. Call at the end of each loop pass. */
void rtr_http_server_flush(rtr_http_server *server);
uint32_t rtr_http_server_connections(const rtr_http_server *server);
/* Nothing is being answered or written. */
bool rtr_http_server_quiet(const rtr_http_server *server);

/* ---- exchange: one request and its answer */

typedef struct rtr_http_owner_ops {
    /* The client is gone or too slow; the exchange must not be touched any more. */
    void (*gone)(void *owner);
    /* The backlog fell below RTR_HTTP_BACKLOG_HIGH again. May be NULL. */
    void (*drained)(void *owner);
} rtr_http_owner_ops;

typedef struct rtr_http_pair {
    const char *name;
    const char *value;
} rtr_http_pair;

const rtr_http_head *rtr_http_exchange_head(const rtr_http_exchange *exchange);
sl_span rtr_http_exchange_body(const rtr_http_exchange *exchange);
/* The same bytes for the caller to keep: sl_free. */
char *rtr_http_exchange_take_body(rtr_http_exchange *exchange, size_t *out_size);
/* The body's memory is not needed any more. */
void rtr_http_exchange_drop_body(rtr_http_exchange *exchange);
void rtr_http_exchange_claim(rtr_http_exchange *exchange, const rtr_http_owner_ops *ops,
                             void *owner);

/* A whole answer; ends the exchange. extra: NULL-named pairs are skipped. */
void rtr_http_respond(rtr_http_exchange *exchange, int status, const char *content_type,
                      const rtr_http_pair *extra, size_t extra_count, const void *body,
                      size_t size);
/* The same with OpenAI's error body. param and code may be NULL. */
void rtr_http_respond_error(rtr_http_exchange *exchange, int status, const char *type,
                            const char *param, const char *code, const char *message,
                            const rtr_http_pair *extra, size_t extra_count);
/* An answer in pieces: chunked for HTTP/1.1, until close for 1.0. */
void rtr_http_stream_begin(rtr_http_exchange *exchange, int status, const char *content_type,
                           const rtr_http_pair *extra, size_t extra_count);
void rtr_http_stream_write(rtr_http_exchange *exchange, const void *data, size_t size);
/* Ends the exchange. */
void rtr_http_stream_end(rtr_http_exchange *exchange);
/* Bytes not yet taken by the kernel. Above RTR_HTTP_BACKLOG_HIGH: stop producing until drained. */
size_t rtr_http_backlog(const rtr_http_exchange *exchange);

/* {"error":{"message","type","param","code"}} appended to buf. */
void rtr_error_body(sl_buf *buf, const char *type, const char *param, const char *code,
                    const char *message);
const char *rtr_http_status_text(int status);

#ifdef __cplusplus
}
#endif
#endif
