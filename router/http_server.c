/* Connections of the HTTP server: accepting, reading, time limits, writing, closing.
 *
 * Level-triggered watches; events are asked for only when they can be acted on, so that nothing
 * spins (a full descriptor table pauses the listener, a half-closed peer drops EPOLLIN and
 * EPOLLRDHUP). A connection is freed only by conn_close, which is called from watch callbacks, the
 * tick, flush and destroy, never from inside an answer. Thread: the loop's. */
#include "router/http_conn.h"

#include "base/alloc.h"
#include "base/assert.h"
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define TICK_NS         (100 * SL_MS_NS)
#define ACCEPT_PAUSE_NS (100 * SL_MS_NS)

static const char CONTINUE_LINE[] = "HTTP/1.1 100 Continue\r\n\r\n";

/* ---- closing */

static void conn_close(rtr_http_exchange *conn)
{
    rtr_http_server *server = conn->server;
    if (conn->ops) {
        const rtr_http_owner_ops *ops = conn->ops;
        conn->ops = NULL;
        ops->gone(conn->owner);
    }
    for (rtr_http_exchange **at = &server->dirty; conn->dirty && *at; at = &(*at)->dirty_next) {
        if (*at == conn) {
            *at = conn->dirty_next;
            break;
        }
    }
    if (conn->prev)
        conn->prev->next = conn->next;
    else
        server->connections = conn->next;
    if (conn->next)
        conn->next->prev = conn->prev;
    server->connection_count--;
    sl_watch_destroy(conn->watch);
    close(conn->fd);
    rtr_http_exchange_drop_body(conn);
    rtr_http_parser_fini(&conn->parser);
    sl_buf_fini(&conn->input);
    sl_buf_fini(&conn->output);
    sl_free(conn);
}

static void listener_arm(rtr_http_server *server, bool on)
{
    if (server->listening == on || !server->listener)
        return;
    if (sl_is_ok(sl_watch_modify(server->listener, on ? EPOLLIN : 0)))
        server->listening = on;
}

static void conn_close_and_accept(rtr_http_exchange *conn)
{
    rtr_http_server *server = conn->server;
    conn_close(conn);
    if (!server->stopped && server->connection_count < server->options.connections_max)
        listener_arm(server, true);
}

static void conn_update_events(rtr_http_exchange *conn)
{
    uint32_t want = 0;
    if (!conn->read_closed) {
        want = EPOLLRDHUP;
        if (conn->state != RTR_CONN_SERVE || conn->input.size < RTR_HTTP_PENDING_MAX)
            want |= EPOLLIN;
    }
    if (conn->blocked)
        want |= EPOLLOUT;
    if (want == conn->events)
        return;
    if (!sl_is_ok(sl_watch_modify(conn->watch, want)))
        conn->broken = true;
    conn->events = want;
}

void rtr_conn_mark_dirty(rtr_http_exchange *conn)
{
    if (conn->dirty)
        return;
    conn->dirty = true;
    conn->dirty_next = conn->server->dirty;
    conn->server->dirty = conn;
}

/* ---- writing */

/* Writes what the kernel takes. Sets broken on errors. */
static void conn_write(rtr_http_exchange *conn)
{
    while (conn->output_at < conn->output.size) {
        ssize_t n = send(conn->fd, conn->output.data + conn->output_at,
                         conn->output.size - conn->output_at, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        sl_time_ns limit = sl_loop_now(conn->server->loop) + conn->server->options.write_timeout_ns;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            conn->blocked = true;
            if (conn->deadline == SL_NEVER)
                conn->deadline = limit;
            return;
        }
        if (n < 0) {
            conn->broken = true;
            return;
        }
        conn->output_at += (size_t)n;
        if (conn->state != RTR_CONN_READ)
            conn->deadline = limit;
    }
    conn->blocked = false;
    conn->output_at = 0;
    sl_buf_clear(&conn->output);
    if (conn->output.capacity > RTR_HTTP_BACKLOG_HIGH)
        sl_buf_fini(&conn->output);
}

static void conn_begin_linger(rtr_http_exchange *conn)
{
    conn->state = RTR_CONN_LINGER;
    sl_buf_clear(&conn->input);
    conn->deadline = sl_loop_now(conn->server->loop) + conn->server->options.linger_timeout_ns;
    if (conn->read_closed || shutdown(conn->fd, SHUT_WR) != 0)
        conn->broken = true;
}

/* ---- reading */

static void body_append(rtr_http_exchange *conn, sl_span piece)
{
    sl_buf_append(&conn->body, piece.data, piece.size);
    conn->server->body_bytes += piece.size;
}

void rtr_http_exchange_drop_body(rtr_http_exchange *conn)
{
    conn->server->body_bytes -= conn->body.size;
    sl_buf_fini(&conn->body);
    sl_buf_init(&conn->body, conn->server->options.body_max);
}

static void conn_head_ready(rtr_http_exchange *conn)
{
    rtr_http_server *server = conn->server;
    const rtr_http_head *head = &conn->parser.head;
    conn->keep_alive = head->keep_alive;
    conn->deadline = sl_loop_now(server->loop) + server->options.body_timeout_ns;
    if (!head->has_body)
        return;
    if (server->body_bytes + head->content_size > server->options.body_total_max) {
        rtr_conn_fail(conn, 503, "too many request bodies are being received; try again later");
        return;
    }
    if (head->expect_continue) {
        sl_buf_puts(&conn->output, CONTINUE_LINE);
        rtr_conn_mark_dirty(conn);
    }
}

/* One step of the parser over the input buffer. False: nothing more can be done now. */
static bool conn_parse_step(rtr_http_exchange *conn, size_t *at)
{
    rtr_http_server *server = conn->server;
    size_t used = 0;
    sl_span piece = {NULL, 0};
    bool begun = rtr_http_parser_begun(&conn->parser);
    rtr_http_parse result = rtr_http_parser_feed(&conn->parser, conn->input.data + *at,
                                                 conn->input.size - *at, &used, &piece);
    *at += used;
    if (!begun && rtr_http_parser_begun(&conn->parser))
        conn->deadline = sl_loop_now(server->loop) + server->options.head_timeout_ns;
    switch (result) {
    case RTR_HTTP_MORE:
        return false;
    case RTR_HTTP_HEAD_READY:
        conn_head_ready(conn);
        return true;
    case RTR_HTTP_BODY:
        body_append(conn, piece);
        conn->deadline = sl_loop_now(server->loop) + server->options.body_timeout_ns;
        if (server->body_bytes > server->options.body_total_max)
            rtr_conn_fail(conn, 503, "too many request bodies are being received; try again later");
        return true;
    case RTR_HTTP_COMPLETE:
        conn->state = RTR_CONN_SERVE;
        conn->deadline = SL_NEVER;
        server->options.on_request(server->options.context, conn);
        sl_assert(conn->state != RTR_CONN_SERVE || conn->ops);
        return true;
    case RTR_HTTP_ERROR:
        rtr_conn_fail(conn, conn->parser.error_status, conn->parser.error_text);
        return true;
    }
    return false;
}

/* Parses and dispatches requests until one is being served or input runs out. */
static void conn_process(rtr_http_exchange *conn)
{
    size_t at = 0;
    while (conn->state == RTR_CONN_READ && conn_parse_step(conn, &at)) {
    }
    sl_buf_consume(&conn->input, at);
    if (conn->state == RTR_CONN_CLOSING)
        sl_buf_clear(&conn->input);
}

/* The peer ended its sending side: a half-close, or a close that only a write can tell. */
static void conn_read_closed(rtr_http_exchange *conn)
{
    conn->read_closed = true;
    conn->keep_alive = false;
    switch (conn->state) {
    case RTR_CONN_READ:
        if (conn->output_at == conn->output.size)
            conn->broken = true;
        else
            conn->state = RTR_CONN_CLOSING;
        break;
    case RTR_CONN_SERVE:
        if (!conn->head_sent && conn->parser.head.minor == 1)
            sl_buf_puts(&conn->output, CONTINUE_LINE);
        else if (!conn->head_sent)
            conn->broken = true;
        else if (conn->streaming && conn->event_stream)
            rtr_http_stream_write(conn, ":\n\n", 3);
        rtr_conn_mark_dirty(conn);
        break;
    case RTR_CONN_CLOSING:
        break;
    case RTR_CONN_LINGER:
        conn->broken = true;
        break;
    }
}

static void conn_take_input(rtr_http_exchange *conn, const char *data, size_t size)
{
    if (conn->state == RTR_CONN_CLOSING || conn->state == RTR_CONN_LINGER) {
        conn->discarded += size;
        if (conn->discarded > RTR_HTTP_LINGER_BYTES)
            conn->broken = true;
        return;
    }
    sl_buf_append(&conn->input, data, size);
    if (conn->state == RTR_CONN_READ)
        conn_process(conn);
}

/* Reads once: the watch is level-triggered, so the rest waits for the next pass and no connection
 * can hold the loop. */
static void conn_read(rtr_http_exchange *conn)
{
    rtr_http_server *server = conn->server;
    ssize_t n = recv(conn->fd, server->read_buffer, sizeof server->read_buffer, 0);
    if (n > 0) {
        conn_take_input(conn, server->read_buffer, (size_t)n);
    } else if (n == 0) {
        conn_read_closed(conn);
    } else if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) {
        conn->broken = true;
    }
}

static void conn_event(void *context, uint32_t events)
{
    rtr_http_exchange *conn = context;
    if (events & (EPOLLERR | EPOLLHUP)) {
        conn_close_and_accept(conn);
        return;
    }
    if (events & EPOLLIN)
        conn_read(conn);
    else if (events & EPOLLRDHUP) /* input is full and the peer has ended */
        conn_read_closed(conn);
    if (events & EPOLLOUT) {
        conn->blocked = false;
        rtr_conn_mark_dirty(conn);
    }
    if (conn->broken)
        conn_close_and_accept(conn);
    else
        conn_update_events(conn);
}

/* ---- accepting */

static void conn_create(rtr_http_server *server, int fd)
{
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    rtr_http_exchange *conn = sl_alloc(1, sizeof *conn, "http connection");
    conn->server = server;
    conn->fd = fd;
    conn->events = EPOLLIN | EPOLLRDHUP;
    rtr_http_parser_init(&conn->parser, server->options.body_max);
    sl_buf_init(&conn->input, 0);
    sl_buf_init(&conn->body, server->options.body_max);
    sl_buf_init(&conn->output, 0);
    if (!sl_is_ok(sl_watch_create(server->loop, fd, conn->events, conn_event, conn, &conn->watch,
                                  NULL))) {
        close(fd);
        sl_free(conn);
        return;
    }
    /* A silent client has the head time limit from the start. */
    conn->deadline = sl_loop_now(server->loop) + server->options.head_timeout_ns;
    conn->next = server->connections;
    if (conn->next)
        conn->next->prev = conn;
    server->connections = conn;
    server->connection_count++;
}

/* Out of descriptors: the connection would stay in the backlog and keep the listener readable. Take
 * it with the reserve and close it; if even that fails, look again a little later. */
static void accept_exhausted(rtr_http_server *server)
{
    if (server->reserve_fd >= 0) {
        close(server->reserve_fd);
        int fd = accept4(server->options.listen_fd, NULL, NULL, SOCK_CLOEXEC);
        if (fd >= 0)
            close(fd);
        server->reserve_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    }
    sl_warn("out of descriptors: connections are refused");
    listener_arm(server, false);
    sl_timer_set(server->accept_pause, sl_loop_now(server->loop) + ACCEPT_PAUSE_NS);
}

static void accept_pause_over(void *context, sl_time_ns now)
{
    rtr_http_server *server = context;
    if (!server->stopped && server->connection_count < server->options.connections_max)
        listener_arm(server, true);
}

static void listener_event(void *context, uint32_t events)
{
    rtr_http_server *server = context;
    for (uint32_t i = 0; i < RTR_HTTP_ACCEPT_BATCH; i++) {
        if (server->connection_count >= server->options.connections_max) {
            listener_arm(server, false);
            return;
        }
        int fd = accept4(server->options.listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            conn_create(server, fd);
            continue;
        }
        if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            accept_exhausted(server);
            return;
        }
        if (errno != EINTR && errno != ECONNABORTED)
            return;
    }
}

/* ---- time limits */

static void conn_expired(rtr_http_exchange *conn)
{
    bool output_waits = conn->output_at < conn->output.size;
    if (conn->state == RTR_CONN_READ && rtr_http_parser_begun(&conn->parser) && !output_waits) {
        rtr_conn_fail(conn, 408, "the request did not arrive in time");
        return;
    }
    conn_close_and_accept(conn);
}

static void server_tick(void *context, sl_time_ns now)
{
    rtr_http_server *server = context;
    for (rtr_http_exchange *conn = server->connections, *next; conn; conn = next) {
        next = conn->next;
        if (now >= conn->deadline)
            conn_expired(conn);
    }
    sl_timer_set(server->tick, now + TICK_NS);
}

/* ---- flush */

static void conn_note_drained(rtr_http_exchange *conn)
{
    if (!conn->above_high || rtr_http_backlog(conn) > RTR_HTTP_BACKLOG_HIGH / 2)
        return;
    conn->above_high = false;
    if (conn->ops && conn->ops->drained)
        conn->ops->drained(conn->owner);
}

static void conn_flush(rtr_http_exchange *conn)
{
    if (!conn->blocked)
        conn_write(conn);
    if (rtr_http_backlog(conn) > RTR_HTTP_BACKLOG_MAX || conn->output.overflow)
        conn->broken = true;
    if (!conn->broken)
        conn_note_drained(conn);
    bool written = conn->output_at == conn->output.size;
    if (!conn->broken && written && conn->state == RTR_CONN_SERVE)
        conn->deadline = SL_NEVER; /* waiting for us, not for the client */
    if (!conn->broken && conn->state == RTR_CONN_READ) {
        if (conn->input.size)
            conn_process(conn);
        else if (conn->server->stopped && written && !rtr_http_parser_begun(&conn->parser))
            conn->broken = true;
    }
    if (!conn->broken && conn->state == RTR_CONN_CLOSING && conn->output_at == conn->output.size)
        conn_begin_linger(conn);
    if (conn->broken)
        conn_close_and_accept(conn);
    else
        conn_update_events(conn);
}

void rtr_http_server_flush(rtr_http_server *server)
{
    sl_loop_assert_owner(server->loop);
    if (server->flushing)
        return;
    server->flushing = true;
    while (server->dirty) {
        rtr_http_exchange *conn = server->dirty;
        server->dirty = conn->dirty_next;
        conn->dirty = false;
        conn->dirty_next = NULL;
        conn_flush(conn);
    }
    server->flushing = false;
}

/* ---- server */

void rtr_http_server_options_init(rtr_http_server_options *options)
{
    memset(options, 0, sizeof *options);
    options->listen_fd = -1;
    options->body_max = 16u << 20;
    options->connections_max = 4096;
    options->head_timeout_ns = 10 * SL_S_NS;
    options->body_timeout_ns = 30 * SL_S_NS;
    options->idle_timeout_ns = 75 * SL_S_NS;
    options->write_timeout_ns = 60 * SL_S_NS;
    options->linger_timeout_ns = 5 * SL_S_NS;
}

sl_status rtr_http_server_create(sl_loop *loop, const rtr_http_server_options *options,
                                 rtr_http_server **out_server, sl_err *err)
{
    sl_assert(options->listen_fd >= 0 && options->on_request && options->connections_max > 0);
    rtr_http_server *server = sl_alloc(1, sizeof *server, "http server");
    server->loop = loop;
    server->options = *options;
    if (server->options.body_total_max == 0)
        server->options.body_total_max = options->body_max * 32;
    server->reserve_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    sl_status status = sl_watch_create(loop, options->listen_fd, EPOLLIN, listener_event, server,
                                       &server->listener, err);
    if (!sl_is_ok(status)) {
        if (server->reserve_fd >= 0)
            close(server->reserve_fd);
        sl_free(server);
        return status;
    }
    server->listening = true;
    server->tick = sl_timer_create(loop, server_tick, server);
    server->accept_pause = sl_timer_create(loop, accept_pause_over, server);
    sl_timer_set(server->tick, sl_now_ns() + TICK_NS);
    *out_server = server;
    return sl_ok();
}

void rtr_http_server_leave(rtr_http_server *server)
{
    server->leaving = true;
}

void rtr_http_server_stop(rtr_http_server *server)
{
    if (server->stopped)
        return;
    server->leaving = server->stopped = true;
    sl_watch_destroy(server->listener);
    server->listener = NULL;
    for (rtr_http_exchange *conn = server->connections; conn; conn = conn->next) {
        if (!conn->head_sent)
            conn->keep_alive = false;
        rtr_conn_mark_dirty(conn);
    }
}

void rtr_http_server_destroy(rtr_http_server *server)
{
    if (!server)
        return;
    while (server->connections)
        conn_close(server->connections);
    sl_watch_destroy(server->listener);
    sl_timer_destroy(server->tick);
    sl_timer_destroy(server->accept_pause);
    if (server->reserve_fd >= 0)
        close(server->reserve_fd);
    sl_free(server);
}

uint32_t rtr_http_server_connections(const rtr_http_server *server)
{
    return server->connection_count;
}

bool rtr_http_server_quiet(const rtr_http_server *server)
{
    for (const rtr_http_exchange *conn = server->connections; conn; conn = conn->next) {
        bool written = conn->output_at == conn->output.size;
        if (conn->state == RTR_CONN_SERVE || conn->state == RTR_CONN_CLOSING || !written)
            return false;
    }
    return true;
}

const rtr_http_head *rtr_http_exchange_head(const rtr_http_exchange *conn)
{
    return &conn->parser.head;
}

sl_span rtr_http_exchange_body(const rtr_http_exchange *conn)
{
    sl_span body = {(const uint8_t *)conn->body.data, conn->body.size};
    return body;
}

char *rtr_http_exchange_take_body(rtr_http_exchange *conn, size_t *out_size)
{
    conn->server->body_bytes -= conn->body.size;
    return sl_buf_take(&conn->body, out_size);
}

void rtr_http_exchange_claim(rtr_http_exchange *conn, const rtr_http_owner_ops *ops, void *owner)
{
    sl_assert(conn->state == RTR_CONN_SERVE && ops && ops->gone);
    conn->ops = ops;
    conn->owner = owner;
}
