/* Metrics and health responder. Owns the listener and a fixed table of connections; runs on the
 * loop's thread; never blocks, never keeps a connection beyond one answer. */
#include "base/daemon_http.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/assert.h"

#define ACCEPT_RETRY_NS (100 * SL_MS_NS)

typedef enum conn_state { CONN_FREE, CONN_READING, CONN_WRITING, CONN_LINGERING } conn_state;

typedef struct http_conn {
    sl_http *http;
    conn_state state;
    int fd;
    sl_watch *watch;
    sl_timer *timeout;
    char head[SL_HTTP_HEAD_MAX];
    size_t head_size;
    sl_buf out;
    size_t out_at;
} http_conn;

struct sl_http {
    sl_loop *loop;
    sl_metrics *metrics;
    int fd;
    sl_watch *watch;
    bool accepting;
    sl_timer *retry;
    char address[SL_ADDRESS_TEXT_MAX];
    size_t open_count;
    http_conn conns[SL_HTTP_CONNECTIONS_MAX];
};

static void set_accepting(sl_http *http, bool accepting)
{
    if (http->accepting == accepting)
        return;
    if (sl_is_ok(sl_watch_modify(http->watch, accepting ? EPOLLIN : 0)))
        http->accepting = accepting;
}

static void conn_close(http_conn *conn)
{
    sl_http *http = conn->http;
    sl_watch_destroy(conn->watch);
    sl_timer_destroy(conn->timeout);
    close(conn->fd);
    sl_buf_fini(&conn->out);
    conn->watch = NULL;
    conn->timeout = NULL;
    conn->state = CONN_FREE;
    http->open_count--;
    set_accepting(http, true);
}

static void on_timeout(void *context, sl_time_ns now)
{
    conn_close(context);
}

static void answer(http_conn *conn, const char *status, const char *type, const sl_buf *body,
                   bool head_only)
{
    sl_buf_printf(&conn->out,
                  "HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n"
                  "Connection: close\r\n\r\n",
                  status, type, body->size);
    if (!head_only)
        sl_buf_append(&conn->out, body->data, body->size);
}

static void answer_text(http_conn *conn, const char *status, const char *text, bool head_only)
{
    sl_buf body;
    sl_buf_init(&body, 0);
    sl_buf_puts(&body, text);
    answer(conn, status, "text/plain; charset=utf-8", &body, head_only);
    sl_buf_fini(&body);
}

/* True if the request's target (behind the method) is exactly `path`, a query aside. */
static bool target_is(const char *target, const char *path)
{
    size_t size = strlen(path);
    return strncmp(target, path, size) == 0 && (target[size] == ' ' || target[size] == '?');
}

static void respond(http_conn *conn)
{
    const char *line = conn->head;
    const char *line_end = strstr(line, "\r\n");
    const char *target = strchr(line, ' ');
    bool head_only = strncmp(line, "HEAD ", 5) == 0;
    if (!target || !line_end || target > line_end || target[1] != '/' || line_end - target < 11 ||
        strncmp(line_end - 9, " HTTP/1.", 8) != 0) {
        answer_text(conn, "400 Bad Request", "bad request\n", false);
        return;
    }
    target++;
    if (!head_only && strncmp(line, "GET ", 4) != 0) {
        answer_text(conn, "405 Method Not Allowed", "only GET and HEAD\n", false);
    } else if (target_is(target, "/health")) {
        answer_text(conn, "200 OK", "ok\n", head_only);
    } else if (target_is(target, "/metrics") && conn->http->metrics) {
        sl_buf body;
        sl_buf_init(&body, 0);
        sl_metrics_write(conn->http->metrics, &body);
        answer(conn, "200 OK", "text/plain; version=0.0.4; charset=utf-8", &body, head_only);
        sl_buf_fini(&body);
    } else {
        answer_text(conn, "404 Not Found", "try /metrics or /health\n", head_only);
    }
}

/* Returns false when the connection is done for. */
static bool conn_write(http_conn *conn)
{
    while (conn->out_at < conn->out.size) {
        ssize_t sent = send(conn->fd, conn->out.data + conn->out_at, conn->out.size - conn->out_at,
                            MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0 && errno == EAGAIN)
            return sl_is_ok(sl_watch_modify(conn->watch, EPOLLOUT));
        if (sent <= 0)
            return false;
        conn->out_at += (size_t)sent;
    }
    /* Closing with unread input would reset the connection and could destroy the answer on its way:
     * shut the sending side and wait (bounded by the timeout) for the peer to close. */
    if (shutdown(conn->fd, SHUT_WR) != 0)
        return false;
    conn->state = CONN_LINGERING;
    return sl_is_ok(sl_watch_modify(conn->watch, EPOLLIN));
}

static bool conn_answer(http_conn *conn)
{
    conn->state = CONN_WRITING;
    return conn_write(conn);
}

static bool conn_linger(http_conn *conn)
{
    char sink[4096];
    ssize_t got;
    /* One read a wake-up is enough: epoll is level-triggered. */
    got = recv(conn->fd, sink, sizeof(sink), 0);
    return got > 0 || (got < 0 && (errno == EAGAIN || errno == EINTR));
}

static bool conn_read(http_conn *conn)
{
    for (;;) {
        size_t room = sizeof(conn->head) - 1 - conn->head_size;
        if (room == 0) {
            answer_text(conn, "431 Request Header Fields Too Large", "too large\n", false);
            return conn_answer(conn);
        }
        ssize_t got = recv(conn->fd, conn->head + conn->head_size, room, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && errno == EAGAIN)
            return true;
        if (got <= 0)
            return false;
        if (memchr(conn->head + conn->head_size, '\0', (size_t)got)) {
            answer_text(conn, "400 Bad Request", "bad request\n", false);
            return conn_answer(conn);
        }
        conn->head_size += (size_t)got;
        conn->head[conn->head_size] = '\0';
        if (strstr(conn->head, "\r\n\r\n")) {
            respond(conn);
            return conn_answer(conn);
        }
    }
}

static void on_conn(void *context, uint32_t events)
{
    http_conn *conn = context;
    bool alive = !(events & EPOLLERR);
    if (alive && conn->state == CONN_READING)
        alive = conn_read(conn);
    else if (alive && conn->state == CONN_WRITING)
        alive = conn_write(conn);
    else if (alive)
        alive = conn_linger(conn);
    if (!alive)
        conn_close(conn);
}

static void conn_open(sl_http *http, int fd)
{
    http_conn *conn = http->conns;
    while (conn->state != CONN_FREE)
        conn++;
    sl_assert(conn < http->conns + SL_HTTP_CONNECTIONS_MAX);
    if (!sl_is_ok(sl_watch_create(http->loop, fd, EPOLLIN, on_conn, conn, &conn->watch, NULL))) {
        close(fd);
        return;
    }
    conn->http = http;
    conn->state = CONN_READING;
    conn->fd = fd;
    conn->head_size = 0;
    conn->out_at = 0;
    sl_buf_init(&conn->out, 0);
    conn->timeout = sl_timer_create(http->loop, on_timeout, conn);
    sl_timer_set(conn->timeout, sl_loop_now(http->loop) + SL_HTTP_TIMEOUT_NS);
    http->open_count++;
}

static void on_retry(void *context, sl_time_ns now)
{
    set_accepting(context, true);
}

static void on_accept(void *context, uint32_t events)
{
    sl_http *http = context;
    for (;;) {
        if (http->open_count == SL_HTTP_CONNECTIONS_MAX) {
            set_accepting(http, false); /* others wait in the backlog */
            return;
        }
        int fd = accept4(http->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            conn_open(http, fd);
            continue;
        }
        if (errno == EINTR || errno == ECONNABORTED)
            continue;
        if (errno != EAGAIN) {
            /* Out of descriptors: without a pause the level-triggered listener would spin. */
            set_accepting(http, false);
            sl_timer_set(http->retry, sl_loop_now(http->loop) + ACCEPT_RETRY_NS);
        }
        return;
    }
}

sl_status sl_http_start(sl_loop *loop, const char *listen, sl_metrics *metrics, sl_http **out_http,
                        sl_err *err)
{
    sl_http *http = sl_alloc(1, sizeof(*http), "metrics port");
    http->loop = loop;
    http->metrics = metrics;
    sl_status status = sl_net_listen(listen, false, &http->fd, http->address, err);
    if (!sl_is_ok(status))
        goto err_free;
    status = sl_watch_create(loop, http->fd, EPOLLIN, on_accept, http, &http->watch, err);
    if (!sl_is_ok(status))
        goto err_close;
    http->accepting = true;
    http->retry = sl_timer_create(loop, on_retry, http);
    *out_http = http;
    return sl_ok();
err_close:
    close(http->fd);
err_free:
    sl_free(http);
    return status;
}

const char *sl_http_address(const sl_http *http)
{
    return http->address;
}

void sl_http_destroy(sl_http *http)
{
    if (!http)
        return;
    for (size_t i = 0; i < SL_HTTP_CONNECTIONS_MAX; i++)
        if (http->conns[i].state != CONN_FREE)
            conn_close(&http->conns[i]);
    sl_timer_destroy(http->retry);
    sl_watch_destroy(http->watch);
    close(http->fd);
    sl_free(http);
}
