/* The HTTP server over real sockets: one loop, driven by hand; clients are plain descriptors. */
#include "tests/unit/test.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "base/net.h"
#include "router/http_server.h"

#define WAIT_NS (10 * SL_S_NS) /* far beyond what anything here takes */

typedef struct fixture {
    sl_loop *loop;
    rtr_http_server *server;
    int listen_fd;
    uint16_t port;
    rtr_http_exchange *held; /* claimed by the handler of /hold */
    int requests, gone, drained, http_errors;
} fixture;

static void on_gone(void *owner)
{
    fixture *f = owner;
    f->gone++;
    f->held = NULL;
}

static void on_drained(void *owner)
{
    fixture *f = owner;
    f->drained++;
}

static const rtr_http_owner_ops OPS = {on_gone, on_drained};

static void on_request(void *context, rtr_http_exchange *exchange)
{
    fixture *f = context;
    const rtr_http_head *head = rtr_http_exchange_head(exchange);
    f->requests++;
    if (strcmp(head->path, "/hold") == 0) {
        rtr_http_exchange_claim(exchange, &OPS, f);
        f->held = exchange;
        return;
    }
    sl_span body = rtr_http_exchange_body(exchange);
    rtr_http_pair extra = {"x-path", head->path};
    rtr_http_respond(exchange, 200, "text/plain", &extra, 1, body.data, body.size);
}

static void on_http_error(void *context, int status)
{
    fixture *f = context;
    f->http_errors++;
}

static void after(void *context)
{
    fixture *f = context;
    rtr_http_server_flush(f->server);
}

static void open_fixture(fixture *f, void (*change)(rtr_http_server_options *options))
{
    sl_err err;
    char bound[SL_ADDRESS_TEXT_MAX];
    rtr_http_server_options options;
    memset(f, 0, sizeof *f);
    sl_log_set_level(SL_LOG_ERROR);
    assert_ok(sl_loop_create(&f->loop, &err), &err);
    assert_ok(sl_net_listen("127.0.0.1:0", false, &f->listen_fd, bound, &err), &err);
    f->port = (uint16_t)atoi(strrchr(bound, ':') + 1);
    rtr_http_server_options_init(&options);
    options.listen_fd = f->listen_fd;
    options.on_request = on_request;
    options.on_http_error = on_http_error;
    options.context = f;
    if (change)
        change(&options);
    assert_ok(rtr_http_server_create(f->loop, &options, &f->server, &err), &err);
    sl_loop_set_after(f->loop, after, f);
}

static void close_fixture(fixture *f)
{
    rtr_http_server_destroy(f->server);
    sl_loop_destroy(f->loop);
    close(f->listen_fd);
}

static int client(fixture *f)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(f->port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    assert_true(fd >= 0);
    int rc = connect(fd, (struct sockaddr *)&address, sizeof address);
    assert_true(rc == 0 || errno == EINPROGRESS);
    return fd;
}

static void turn(fixture *f)
{
    sl_loop_run_once(f->loop, 5);
}

/* Sends all, turning the loop while the socket is full. */
static void send_all(fixture *f, int fd, const char *data, size_t size)
{
    sl_time_ns limit = sl_now_ns() + WAIT_NS;
    while (size > 0) {
        ssize_t n = send(fd, data, size, MSG_NOSIGNAL);
        if (n > 0) {
            data += n;
            size -= (size_t)n;
            continue;
        }
        assert_true(errno == EAGAIN || errno == ENOTCONN);
        assert_true(sl_now_ns() < limit);
        turn(f);
    }
}

static void send_text(fixture *f, int fd, const char *text)
{
    send_all(f, fd, text, strlen(text));
}

typedef struct answer {
    sl_buf text;
    bool eof;
    bool reset;
} answer;

/* Reads what is there. */
static void take(int fd, answer *a)
{
    char buffer[65536];
    for (;;) {
        ssize_t n = recv(fd, buffer, sizeof buffer, 0);
        if (n > 0) {
            sl_buf_append(&a->text, buffer, (size_t)n);
            continue;
        }
        a->eof = a->eof || n == 0;
        a->reset = a->reset || (n < 0 && errno == ECONNRESET);
        return;
    }
}

/* Turns the loop until the client has seen `text` (NULL: the end of the connection). */
static void expect(fixture *f, int fd, answer *a, const char *text)
{
    sl_time_ns limit = sl_now_ns() + WAIT_NS;
    for (;;) {
        take(fd, a);
        if (text ? a->text.data && strstr(a->text.data, text) : a->eof || a->reset)
            return;
        if (sl_now_ns() > limit)
            fail_msg("did not come: %s; came: %s", text ? text : "the end",
                     a->text.data ? a->text.data : "nothing");
        turn(f);
    }
}

#define WAIT_FOR(f, condition)                          \
    do {                                                \
        sl_time_ns wait_limit_ = sl_now_ns() + WAIT_NS; \
        while (!(condition)) {                          \
            assert_true(sl_now_ns() < wait_limit_);     \
            turn(f);                                    \
        }                                               \
    } while (0)

static size_t count_of(const answer *a, const char *part)
{
    size_t count = 0;
    for (const char *at = a->text.data; at && (at = strstr(at, part)); at += strlen(part))
        count++;
    return count;
}

static void answer_fini(answer *a)
{
    sl_buf_fini(&a->text);
    memset(a, 0, sizeof *a);
}

TEST(keep_alive_and_close)
{
    fixture f;
    answer a = {0};
    open_fixture(&f, NULL);
    int fd = client(&f);
    send_text(&f, fd, "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc");
    expect(&f, fd, &a, "\r\n\r\nabc");
    assert_text_contains(a.text.data, "HTTP/1.1 200 OK\r\n");
    assert_text_contains(a.text.data, "content-length: 3\r\n");
    assert_null(strstr(a.text.data, "connection:"));
    send_text(&f, fd, "GET /b HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    expect(&f, fd, &a, NULL);
    assert_text_contains(a.text.data, "x-path: /b\r\n");
    assert_text_contains(a.text.data, "connection: close\r\n");
    close(fd);
    answer_fini(&a);
    WAIT_FOR(&f, rtr_http_server_connections(f.server) == 0);
    close_fixture(&f);
}

TEST(pipelined_requests_are_answered_in_order)
{
    fixture f;
    answer a = {0};
    open_fixture(&f, NULL);
    int fd = client(&f);
    send_text(&f, fd,
              "POST /1 HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\n1"
              "GET /hold HTTP/1.1\r\nHost: h\r\n\r\n"
              "POST /3 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n3\r\n0\r\n\r\n"
              "HEAD /4 HTTP/1.1\r\nHost: h\r\n\r\n");
    WAIT_FOR(&f, f.held);
    expect(&f, fd, &a, "x-path: /1");
    assert_int_equal(f.requests, 2);
    rtr_http_respond(f.held, 200, "text/plain", NULL, 0, "held", 4);
    expect(&f, fd, &a, "x-path: /4");
    const char *held = strstr(a.text.data, "\r\n\r\nheld");
    const char *third = strstr(a.text.data, "x-path: /3");
    assert_true(held && third && held < third && third < strstr(a.text.data, "x-path: /4"));
    close(fd);
    answer_fini(&a);
    close_fixture(&f);
}

TEST(http_1_0_closes_and_streams_until_the_end)
{
    fixture f;
    answer a = {0};
    open_fixture(&f, NULL);
    int fd = client(&f);
    send_text(&f, fd, "GET /hold HTTP/1.0\r\n\r\n");
    WAIT_FOR(&f, f.held);
    rtr_http_stream_begin(f.held, 200, "text/event-stream", NULL, 0);
    rtr_http_stream_write(f.held, "data: x\n\n", 9);
    rtr_http_stream_end(f.held);
    expect(&f, fd, &a, NULL);
    assert_null(strstr(a.text.data, "chunked"));
    assert_text_contains(a.text.data, "\r\n\r\ndata: x\n\n");
    close(fd);
    answer_fini(&a);
    close_fixture(&f);
}

TEST(malformed_request_gets_400_json_and_close)
{
    fixture f;
    answer a = {0};
    open_fixture(&f, NULL);
    int fd = client(&f);
    send_text(&f, fd, "this is not http\r\n\r\n");
    expect(&f, fd, &a, NULL);
    assert_text_contains(a.text.data, "HTTP/1.1 400 Bad Request\r\n");
    assert_text_contains(a.text.data, "{\"error\":{\"message\":\"");
    assert_text_contains(a.text.data, "\"type\":\"invalid_request_error\"");
    assert_int_equal(f.http_errors, 1);
    assert_int_equal(f.requests, 0);
    close(fd);
    answer_fini(&a);
    close_fixture(&f);
}

TEST(expect_continue)
{
    fixture f;
    answer a = {0};
    open_fixture(&f, NULL);
    int fd = client(&f);
    send_text(&f, fd,
              "POST /e HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
    expect(&f, fd, &a, "HTTP/1.1 100 Continue\r\n\r\n");
    send_text(&f, fd, "ok");
    expect(&f, fd, &a, "\r\n\r\nok");
    close(fd);
    answer_fini(&a);
    close_fixture(&f);
}

static void small_body(rtr_http_server_options *options)
{
    options->body_max = 1000;
}

/* The client writes 8 MB before it looks: the answer must reach it all the same. */
TEST(huge_body_gets_413_that_arrives)
{
    fixture f;
    answer a = {0};
    open_fixture(&f, small_body);
    size_t size = 8u << 20;
    char *body = sl_alloc(size, 1, "test body");
    memset(body, 'x', size);
    for (int chunked = 0; chunked < 2; chunked++) {
        int fd = client(&f);
        if (chunked)
            send_text(
                &f, fd,
                "POST /b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n800000\r\n");
        else
            send_text(&f, fd, "POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 8388608\r\n\r\n");
        send_all(&f, fd, body, size);
        expect(&f, fd, &a, "HTTP/1.1 413 Content Too Large");
        expect(&f, fd, &a, NULL);
        assert_true(a.eof && !a.reset);
        assert_text_contains(a.text.data, "over the limit");
        close(fd);
        answer_fini(&a);
    }
    assert_int_equal(f.requests, 0);
    sl_free(body);
    close_fixture(&f);
}

static void small_total(rtr_http_server_options *options)
{
    options->body_max = 1000;
    options->body_total_max = 1500;
}

TEST(bodies_in_all_are_bounded)
{
    fixture f;
    answer a = {0};
    open_fixture(&f, small_total);
    int first = client(&f), second = client(&f);
    char part[901];
    memset(part, 'x', 900);
    part[900] = 0;
    send_text(&f, first, "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n");
    send_text(&f, first, part);
    for (int i = 0; i < 5; i++)
        turn(&f);
    send_text(&f, second, "POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n");
    expect(&f, second, &a, "HTTP/1.1 503 ");
    assert_text_contains(a.text.data, "retry-after: 1\r\n");
    answer_fini(&a);
    part[100] = 0;
    send_text(&f, first, part);
    expect(&f, first, &a, "HTTP/1.1 200 OK");
    close(first);
    close(second);
    answer_fini(&a);
    close_fixture(&f);
}

static void short_times(rtr_http_server_options *options)
{
    options->head_timeout_ns = 150 * SL_MS_NS;
    options->body_timeout_ns = 150 * SL_MS_NS;
    options->idle_timeout_ns = 150 * SL_MS_NS;
    options->write_timeout_ns = SL_S_NS;
    options->linger_timeout_ns = 150 * SL_MS_NS;
}

TEST(slow_clients_are_cut_off)
{
    static const char *const STARTS[] = {
        "GET / HT", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nab",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"};
    fixture f;
    answer a = {0};
    open_fixture(&f, short_times);
    for (size_t i = 0; i < 3; i++) {
        int fd = client(&f);
        send_text(&f, fd, STARTS[i]);
        expect(&f, fd, &a, NULL);
        assert_text_contains(a.text.data, "HTTP/1.1 408 Request Timeout");
        close(fd);
        answer_fini(&a);
    }
    int silent = client(&f);
    expect(&f, silent, &a, NULL);
    assert_int_equal(a.text.size, 0);
    close(silent);
    int idle = client(&f);
    send_text(&f, idle, "GET /i HTTP/1.1\r\nHost: h\r\n\r\n");
    expect(&f, idle, &a, "x-path: /i");
    expect(&f, idle, &a, NULL); /* kept, then idle for too long */
    close(idle);
    answer_fini(&a);
    WAIT_FOR(&f, rtr_http_server_connections(f.server) == 0);
    close_fixture(&f);
}

/* One byte at a time keeps no connection alive: the limit is for the whole head. */
TEST(trickled_head_is_cut_off)
{
    fixture f;
    answer a = {0};
    open_fixture(&f, short_times);
    int fd = client(&f);
    send_text(&f, fd, "GET / HTTP/1.1\r\nHost: h\r\nX: ");
    sl_time_ns now = sl_now_ns(), limit = now + WAIT_NS, next = now;
    for (; !a.eof && !a.reset && now < limit; now = sl_now_ns()) {
        /* At most one a millisecond: a quick machine would reach the limit of the head's size
         * first. */
        if (now >= next) {
            (void)!send(fd, "y", 1, MSG_NOSIGNAL);
            next = now + SL_MS_NS;
        }
        turn(&f);
        take(fd, &a);
    }
    assert_text_contains(a.text.data, "HTTP/1.1 408 ");
    close(fd);
    answer_fini(&a);
    close_fixture(&f);
}

TEST(client_that_closes_is_noticed)
{
    fixture f;
    open_fixture(&f, NULL);
    for (int streaming = 0; streaming < 2; streaming++) {
        answer a = {0};
        int fd = client(&f);
        send_text(&f, fd, "GET /hold HTTP/1.1\r\nHost: h\r\n\r\n");
        WAIT_FOR(&f, f.held);
        if (streaming) {
            rtr_http_stream_begin(f.held, 200, "text/event-stream", NULL, 0);
            rtr_http_stream_write(f.held, "data: 1\n\n", 9);
            expect(&f, fd, &a, "data: 1");
        }
        close(fd);
        WAIT_FOR(&f, f.gone == streaming + 1);
        assert_null(f.held);
        answer_fini(&a);
    }
    WAIT_FOR(&f, rtr_http_server_connections(f.server) == 0);
    close_fixture(&f);
}

/* Ends its sending side but reads on: served to the end. */
TEST(half_closed_client_gets_its_answer)
{
    fixture f;
    open_fixture(&f, NULL);
    for (int streaming = 0; streaming < 2; streaming++) {
        answer a = {0};
        int fd = client(&f);
        send_text(&f, fd, "GET /hold HTTP/1.1\r\nHost: h\r\n\r\n");
        WAIT_FOR(&f, f.held);
        if (streaming) {
            rtr_http_stream_begin(f.held, 200, "text/event-stream", NULL, 0);
            rtr_http_stream_write(f.held, "data: 1\n\n", 9);
            expect(&f, fd, &a, "data: 1");
        }
        shutdown(fd, SHUT_WR);
        expect(&f, fd, &a, streaming ? "\r\n:\n\n" : "HTTP/1.1 100 Continue\r\n\r\n");
        for (int i = 0; i < 10; i++)
            turn(&f);
        assert_non_null(f.held);
        if (streaming) {
            rtr_http_stream_write(f.held, "data: 2\n\n", 9);
            rtr_http_stream_end(f.held);
        } else {
            rtr_http_respond(f.held, 200, "text/plain", NULL, 0, "data: 2", 7);
        }
        f.held = NULL;
        expect(&f, fd, &a, "data: 2");
        expect(&f, fd, &a, NULL);
        close(fd);
        answer_fini(&a);
    }
    assert_int_equal(f.gone, 0);
    close_fixture(&f);
}

TEST(stream_is_chunked_and_joined_in_one_pass)
{
    fixture f;
    answer a = {0};
    open_fixture(&f, NULL);
    int fd = client(&f);
    send_text(&f, fd, "GET /hold HTTP/1.1\r\nHost: h\r\n\r\n");
    WAIT_FOR(&f, f.held);
    rtr_http_stream_begin(f.held, 200, "text/event-stream", NULL, 0);
    rtr_http_stream_write(f.held, "data: 1\n\n", 9);
    rtr_http_stream_write(f.held, "data: 22\n\n", 10);
    rtr_http_stream_write(f.held, "", 0); /* must not end the chunks */
    rtr_http_stream_end(f.held);
    send_text(&f, fd, "GET /next HTTP/1.1\r\nHost: h\r\n\r\n");
    expect(&f, fd, &a, "x-path: /next");
    assert_text_contains(a.text.data, "transfer-encoding: chunked\r\n");
    assert_text_contains(a.text.data,
                         "\r\n\r\n9\r\ndata: 1\n\n\r\na\r\ndata: 22\n\n\r\n0\r\n\r\nHTTP/1.1 200");
    close(fd);
    answer_fini(&a);
    close_fixture(&f);
}

/* The kernel's buffers may still grow: what they took must be followed by more. */
static void fill(fixture *f, const char *block)
{
    if (f->held && rtr_http_backlog(f->held) <= RTR_HTTP_BACKLOG_HIGH)
        rtr_http_stream_write(f->held, block, 1u << 20);
}

TEST(client_that_does_not_read)
{
    fixture f;
    open_fixture(&f, short_times);
    char *block = sl_alloc(1u << 20, 1, "test block");
    memset(block, 'x', 1u << 20);
    int fd = client(&f);
    send_text(&f, fd, "GET /hold HTTP/1.1\r\nHost: h\r\n\r\n");
    WAIT_FOR(&f, f.held);
    rtr_http_stream_begin(f.held, 200, "text/event-stream", NULL, 0);
    while (f.held && rtr_http_backlog(f.held) <= RTR_HTTP_BACKLOG_HIGH) {
        rtr_http_stream_write(f.held, block, 1u << 20);
        turn(&f);
    }
    answer a = {0};
    f.drained = 0;
    WAIT_FOR(&f, (take(fd, &a), f.drained > 0 || f.gone > 0)); /* it reads: drained */
    assert_int_equal(f.drained, 1);
    answer_fini(&a);
    WAIT_FOR(&f, (fill(&f, block), f.gone == 1)); /* it never reads again: given up */
    close(fd);
    sl_free(block);
    close_fixture(&f);
}

static void two_connections(rtr_http_server_options *options)
{
    options->connections_max = 2;
}

TEST(connection_limit_makes_others_wait)
{
    fixture f;
    answer a = {0};
    open_fixture(&f, two_connections);
    int first = client(&f), second = client(&f), third = client(&f);
    WAIT_FOR(&f, rtr_http_server_connections(f.server) == 2);
    send_text(&f, third, "GET /3 HTTP/1.1\r\nHost: h\r\n\r\n");
    for (int i = 0; i < 20; i++)
        turn(&f);
    assert_int_equal(f.requests, 0);
    close(first);
    expect(&f, third, &a, "x-path: /3");
    close(second);
    close(third);
    answer_fini(&a);
    close_fixture(&f);
}

/* Without descriptors the listener pauses instead of spinning, and works again afterwards. */
TEST(accept_without_descriptors)
{
    fixture f;
    answer a = {0};
    struct rlimit old, low;
    open_fixture(&f, NULL);
    int fds[3];
    for (int i = 0; i < 3; i++)
        fds[i] = client(&f);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
    low = old;
    low.rlim_cur = (rlim_t)fds[2] + 1; /* nothing above what is open */
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
    int passes = 0;
    sl_time_ns until = sl_now_ns() + 300 * SL_MS_NS;
    while (sl_now_ns() < until) {
        sl_loop_run_once(f.loop, 50);
        passes++;
    }
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
    assert_true(passes < 100);
    int fd = client(&f);
    send_text(&f, fd, "GET /again HTTP/1.1\r\nHost: h\r\n\r\n");
    expect(&f, fd, &a, "x-path: /again");
    for (int i = 0; i < 3; i++)
        close(fds[i]);
    close(fd);
    answer_fini(&a);
    close_fixture(&f);
}

TEST(leave_ends_connections_with_their_answers_and_accepts_more)
{
    fixture f;
    answer a = {0}, b = {0};
    open_fixture(&f, NULL);
    int fd = client(&f);
    send_text(&f, fd, "GET /x HTTP/1.1\r\nHost: h\r\n\r\n");
    expect(&f, fd, &a, "x-path: /x");
    assert_null(strstr(a.text.data, "connection: close"));
    rtr_http_server_leave(f.server);
    send_text(&f, fd, "GET /y HTTP/1.1\r\nHost: h\r\n\r\n");
    expect(&f, fd, &a, NULL);
    assert_text_contains(a.text.data, "x-path: /y");
    assert_text_contains(a.text.data, "connection: close");
    int late = client(&f);
    send_text(&f, late, "GET /z HTTP/1.1\r\nHost: h\r\n\r\n");
    expect(&f, late, &b, NULL);
    assert_text_contains(b.text.data, "x-path: /z");
    close(fd);
    close(late);
    answer_fini(&a);
    answer_fini(&b);
    close_fixture(&f);
}

TEST(stop_closes_idle_and_finishes_the_rest)
{
    fixture f;
    answer a = {0}, b = {0};
    open_fixture(&f, NULL);
    int idle = client(&f), busy = client(&f);
    send_text(&f, idle, "GET /x HTTP/1.1\r\nHost: h\r\n\r\n");
    expect(&f, idle, &a, "x-path: /x");
    send_text(&f, busy, "GET /hold HTTP/1.1\r\nHost: h\r\n\r\n");
    WAIT_FOR(&f, f.held);
    rtr_http_server_stop(f.server);
    assert_false(rtr_http_server_quiet(f.server));
    expect(&f, idle, &a, NULL);
    rtr_http_respond(f.held, 200, "text/plain", NULL, 0, "late", 4);
    expect(&f, busy, &b, NULL);
    assert_text_contains(b.text.data, "late");
    assert_text_contains(b.text.data, "connection: close");
    assert_true(rtr_http_server_quiet(f.server));
    close(idle);
    close(busy);
    answer_fini(&a);
    answer_fini(&b);
    close_fixture(&f);
}

TEST(destroy_tells_owners)
{
    fixture f;
    open_fixture(&f, NULL);
    int fd = client(&f);
    send_text(&f, fd, "GET /hold HTTP/1.1\r\nHost: h\r\n\r\n");
    WAIT_FOR(&f, f.held);
    close_fixture(&f);
    assert_int_equal(f.gone, 1);
    close(fd);
}

TEST(many_pipelined_requests_survive_small_reads)
{
    fixture f;
    answer a = {0};
    sl_buf text;
    open_fixture(&f, NULL);
    sl_buf_init(&text, 0);
    for (int i = 0; i < 500; i++)
        sl_buf_printf(&text, "POST /%d HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n%01000d",
                      i, i);
    int fd = client(&f);
    send_all(&f, fd, text.data, text.size);
    expect(&f, fd, &a, "x-path: /499\r\n");
    assert_int_equal(count_of(&a, "HTTP/1.1 200 OK"), 500);
    close(fd);
    sl_buf_fini(&text);
    answer_fini(&a);
    close_fixture(&f);
}

TEST(port_in_use_is_a_clear_error)
{
    fixture f;
    sl_err err;
    int fd;
    char bound[SL_ADDRESS_TEXT_MAX], address[64];
    open_fixture(&f, NULL);
    snprintf(address, sizeof address, "127.0.0.1:%u", f.port);
    assert_false(sl_is_ok(sl_net_listen(address, false, &fd, bound, &err)));
    assert_text_contains(err.text, address);
    assert_text_contains(err.text, "in use");
    close_fixture(&f);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(keep_alive_and_close),
    cmocka_unit_test(pipelined_requests_are_answered_in_order),
    cmocka_unit_test(http_1_0_closes_and_streams_until_the_end),
    cmocka_unit_test(malformed_request_gets_400_json_and_close),
    cmocka_unit_test(expect_continue),
    cmocka_unit_test(huge_body_gets_413_that_arrives),
    cmocka_unit_test(bodies_in_all_are_bounded),
    cmocka_unit_test(slow_clients_are_cut_off),
    cmocka_unit_test(trickled_head_is_cut_off),
    cmocka_unit_test(client_that_closes_is_noticed),
    cmocka_unit_test(half_closed_client_gets_its_answer),
    cmocka_unit_test(stream_is_chunked_and_joined_in_one_pass),
    cmocka_unit_test(client_that_does_not_read),
    cmocka_unit_test(connection_limit_makes_others_wait),
    cmocka_unit_test(accept_without_descriptors),
    cmocka_unit_test(leave_ends_connections_with_their_answers_and_accepts_more),
    cmocka_unit_test(stop_closes_idle_and_finishes_the_rest),
    cmocka_unit_test(destroy_tells_owners),
    cmocka_unit_test(many_pipelined_requests_survive_small_reads),
    cmocka_unit_test(port_in_use_is_a_clear_error),
};
TEST_MAIN(TESTS)
