/* Answers: heads, whole bodies, streams, OpenAI's error body. Only appends to a connection's output
 * and moves its state; reading, writing and closing are http_server.c's. Thread: the loop's. */
#include "router/http_conn.h"

#include "base/assert.h"
#include "base/clock.h"
#include "base/json.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

const char *rtr_http_status_text(int status)
{
    switch (status) {
    case 100:
        return "Continue";
    case 200:
        return "OK";
    case 204:
        return "No Content";
    case 400:
        return "Bad Request";
    case 404:
        return "Not Found";
    case 405:
        return "Method Not Allowed";
    case 408:
        return "Request Timeout";
    case 413:
        return "Content Too Large";
    case 414:
        return "URI Too Long";
    case 415:
        return "Unsupported Media Type";
    case 417:
        return "Expectation Failed";
    case 429:
        return "Too Many Requests";
    case 431:
        return "Request Header Fields Too Large";
    case 499:
        return "Client Closed Request";
    case 500:
        return "Internal Server Error";
    case 501:
        return "Not Implemented";
    case 502:
        return "Bad Gateway";
    case 503:
        return "Service Unavailable";
    case 504:
        return "Gateway Timeout";
    case 505:
        return "HTTP Version Not Supported";
    default:
        return "Status";
    }
}

static void put_json_or_null(sl_buf *buf, const char *text)
{
    if (text)
        sl_json_write_string(buf, text, strlen(text));
    else
        sl_buf_puts(buf, "null");
}

void rtr_error_body(sl_buf *buf, const char *type, const char *param, const char *code,
                    const char *message)
{
    sl_buf_puts(buf, "{\"error\":{\"message\":");
    sl_json_write_string(buf, message, strlen(message));
    sl_buf_puts(buf, ",\"type\":");
    put_json_or_null(buf, type);
    sl_buf_puts(buf, ",\"param\":");
    put_json_or_null(buf, param);
    sl_buf_puts(buf, ",\"code\":");
    put_json_or_null(buf, code);
    sl_buf_puts(buf, "}}");
}

/* Header values are ours or checked before; a line break in one would split the answer. */
static void put_header(sl_buf *out, const char *name, const char *value)
{
    if (!name || !value || strpbrk(value, "\r\n"))
        return;
    sl_buf_puts(out, name);
    sl_buf_puts(out, ": ");
    sl_buf_puts(out, value);
    sl_buf_puts(out, "\r\n");
}

static void put_head(rtr_http_exchange *conn, int status, const char *content_type,
                     const rtr_http_pair *extra, size_t extra_count)
{
    sl_buf *out = &conn->output;
    sl_assert(!conn->head_sent && extra_count <= RTR_HTTP_EXTRA_HEADERS_MAX);
    conn->head_sent = true;
    if (conn->server->leaving || conn->read_closed)
        conn->keep_alive = false;
    sl_buf_printf(out, "HTTP/1.1 %d %s\r\n", status, rtr_http_status_text(status));
    put_header(out, "content-type", content_type);
    for (size_t i = 0; i < extra_count; i++)
        put_header(out, extra[i].name, extra[i].value);
}

/* The connection line stands last, because HTTP/1.0 needs to be told that it may go on. */
static void put_head_end(rtr_http_exchange *conn)
{
    if (!conn->keep_alive)
        put_header(&conn->output, "connection", "close");
    else if (conn->parser.head.minor == 0)
        put_header(&conn->output, "connection", "keep-alive");
    sl_buf_puts(&conn->output, "\r\n");
}

/* The answer is complete: on to the next request, or to closing. */
static void exchange_end(rtr_http_exchange *conn)
{
    conn->ops = NULL;
    conn->owner = NULL;
    conn->streaming = false;
    conn->above_high = false;
    conn->state = conn->keep_alive ? RTR_CONN_READ : RTR_CONN_CLOSING;
    rtr_http_exchange_drop_body(conn);
    conn->deadline = sl_loop_now(conn->server->loop) + conn->server->options.idle_timeout_ns;
    conn->head_sent = false;
    rtr_http_parser_reset(&conn->parser);
    rtr_conn_mark_dirty(conn);
}

void rtr_http_respond(rtr_http_exchange *conn, int status, const char *content_type,
                      const rtr_http_pair *extra, size_t extra_count, const void *body, size_t size)
{
    sl_assert(conn->state == RTR_CONN_SERVE && !conn->streaming);
    put_head(conn, status, content_type, extra, extra_count);
    sl_buf_printf(&conn->output, "content-length: %zu\r\n", size);
    put_head_end(conn);
    if (conn->parser.head.method != RTR_HTTP_HEAD)
        sl_buf_append(&conn->output, body, size);
    exchange_end(conn);
}

void rtr_http_respond_error(rtr_http_exchange *conn, int status, const char *type,
                            const char *param, const char *code, const char *message,
                            const rtr_http_pair *extra, size_t extra_count)
{
    sl_buf body;
    sl_buf_init(&body, 0);
    rtr_error_body(&body, type, param, code, message);
    rtr_http_respond(conn, status, "application/json", extra, extra_count, body.data, body.size);
    sl_buf_fini(&body);
}

void rtr_http_stream_begin(rtr_http_exchange *conn, int status, const char *content_type,
                           const rtr_http_pair *extra, size_t extra_count)
{
    sl_assert(conn->state == RTR_CONN_SERVE && !conn->streaming);
    conn->chunked = conn->parser.head.minor == 1;
    if (!conn->chunked)
        conn->keep_alive = false;
    put_head(conn, status, content_type, extra, extra_count);
    if (conn->chunked)
        put_header(&conn->output, "transfer-encoding", "chunked");
    put_head_end(conn);
    conn->streaming = true;
    conn->event_stream = strcmp(content_type, "text/event-stream") == 0;
    rtr_conn_mark_dirty(conn);
}

void rtr_http_stream_write(rtr_http_exchange *conn, const void *data, size_t size)
{
    sl_assert(conn->state == RTR_CONN_SERVE && conn->streaming);
    if (size == 0 || conn->parser.head.method == RTR_HTTP_HEAD)
        return;
    if (conn->chunked)
        sl_buf_printf(&conn->output, "%zx\r\n", size);
    sl_buf_append(&conn->output, data, size);
    if (conn->chunked)
        sl_buf_append(&conn->output, "\r\n", 2);
    if (rtr_http_backlog(conn) > RTR_HTTP_BACKLOG_HIGH)
        conn->above_high = true;
    rtr_conn_mark_dirty(conn);
}

void rtr_http_stream_end(rtr_http_exchange *conn)
{
    sl_assert(conn->state == RTR_CONN_SERVE && conn->streaming);
    if (conn->chunked && conn->parser.head.method != RTR_HTTP_HEAD)
        sl_buf_puts(&conn->output, "0\r\n\r\n");
    exchange_end(conn);
}

size_t rtr_http_backlog(const rtr_http_exchange *conn)
{
    return conn->output.size - conn->output_at;
}

static const char *error_type(int status)
{
    return status >= 500 ? "server_error" : "invalid_request_error";
}

void rtr_conn_fail(rtr_http_exchange *conn, int status, const char *message)
{
    if (conn->server->options.on_http_error)
        conn->server->options.on_http_error(conn->server->options.context, status);
    conn->keep_alive = false;
    conn->state = RTR_CONN_SERVE;
    rtr_http_pair retry = {status == 503 ? "retry-after" : NULL, "1"};
    rtr_http_respond_error(conn, status, error_type(status), NULL, NULL, message, &retry, 1);
}
