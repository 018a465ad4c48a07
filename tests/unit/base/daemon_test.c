/* Addresses, listeners, signals into the loop, the metrics and health port. */
#include "tests/unit/test.h"

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/daemon.h"
#include "base/net.h"

TEST(addresses)
{
    static const struct {
        const char *text;
        bool passive;
        const char *want; /* NULL: refused */
    } cases[] = {{"127.0.0.1:80", false, "127.0.0.1:80"},
                 {"[::1]:443", false, "[::1]:443"},
                 {"127.0.0.1:0", true, "127.0.0.1:0"},
                 {":8080", true, "0.0.0.0:8080"},
                 {":8080", false, NULL},
                 {"127.0.0.1", true, NULL},
                 {"127.0.0.1:", true, NULL},
                 {"127.0.0.1:65536", true, NULL},
                 {"127.0.0.1:-1", true, NULL},
                 {"127.0.0.1:8o", true, NULL},
                 {"::1:80", true, NULL},
                 {"[::1]", true, NULL},
                 {"[::1:80", true, NULL},
                 {"[::1]x:80", true, NULL},
                 {"", true, NULL},
                 {"10.0.0.300:80", true, NULL},
                 {"[nohost]:80", true, NULL}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct sockaddr_storage address;
        socklen_t size;
        sl_err err;
        char text[SL_ADDRESS_TEXT_MAX];
        bool wildcard = false;
        sl_status status = sl_net_check(cases[i].text, cases[i].passive, &wildcard, &err);
        assert_true(sl_is_ok(status) == (cases[i].want != NULL));
        assert_true(wildcard == (strcmp(cases[i].text, ":8080") == 0 && cases[i].passive));
        status = sl_net_resolve(cases[i].text, cases[i].passive, &address, &size, &err);
        if (sl_is_ok(status) != (cases[i].want != NULL))
            fail_msg("\"%s\": %s", cases[i].text, sl_code_name(status.code));
        if (!cases[i].want) {
            assert_text_contains(err.text, cases[i].text);
            continue;
        }
        sl_net_format((struct sockaddr *)&address, text);
        assert_string_equal(text, cases[i].want);
    }
}

TEST(listener_names_its_port_and_conflicts)
{
    sl_err err;
    int fd, second;
    char bound[SL_ADDRESS_TEXT_MAX];
    assert_ok(sl_net_listen("127.0.0.1:0", false, &fd, bound, &err), &err);
    assert_string_not_equal(bound, "127.0.0.1:0");
    assert_code(sl_net_listen(bound, false, &second, NULL, &err), SL_EXISTS);
    assert_text_contains(err.text, bound);
    assert_text_contains(err.text, "Address already in use");
    close(fd);
    assert_ok(sl_net_listen("127.0.0.1:0", true, &fd, bound, &err), &err);
    assert_ok(sl_net_listen(bound, true, &second, NULL, &err), &err);
    close(fd);
    close(second);
}

/* --- daemon --- */

static sl_loop *loop;
static sl_daemon *daemon_;
static sl_metrics *metrics;
static int stops;

static void on_stop(void *context)
{
    stops++;
    sl_loop_stop(loop);
}

static int setup(void **state)
{
    sl_err err;
    stops = 0;
    metrics = sl_metrics_create();
    sl_metric_add(sl_counter(metrics, "sluice_test_total", "Test", NULL), NULL, 41);
    sl_daemon_options options = {"127.0.0.1:0", metrics, on_stop, NULL};
    if (!sl_is_ok(sl_loop_create(&loop, &err)))
        return -1;
    return sl_is_ok(sl_daemon_start(loop, &options, &daemon_, &err)) ? 0 : -1;
}

static int teardown(void **state)
{
    sl_daemon_destroy(daemon_);
    sl_daemon_destroy(NULL);
    sl_loop_destroy(loop);
    sl_metrics_destroy(metrics);
    return 0;
}

TEST(signal_calls_stop_once)
{
    kill(getpid(), SIGTERM);
    sl_loop_run(loop);
    assert_int_equal(stops, 1);
}

TEST(second_signal_exits)
{
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        raise(SIGINT);
        raise(SIGTERM);
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 130);
}

static int client_connect(void)
{
    struct sockaddr_storage address;
    socklen_t size;
    sl_err err;
    assert_ok(sl_net_resolve(sl_daemon_metrics_address(daemon_), false, &address, &size, &err),
              &err);
    int fd = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, size), 0);
    return fd;
}

/* Runs the loop until the peer closed; returns what came. */
static const char *client_finish(int fd)
{
    static char answer[65536];
    size_t used = 0;
    for (;;) {
        struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
        sl_loop_run_once(loop, 1);
        if (poll(&poll_fd, 1, 0) != 1)
            continue;
        ssize_t got = recv(fd, answer + used, sizeof(answer) - 1 - used, 0);
        if (got <= 0)
            break;
        used += (size_t)got;
    }
    answer[used] = '\0';
    close(fd);
    sl_loop_run_once(loop, 0);
    return answer;
}

static const char *ask(const char *request)
{
    int fd = client_connect();
    assert_int_equal(send(fd, request, strlen(request), MSG_NOSIGNAL), strlen(request));
    return client_finish(fd);
}

static void assert_begins(const char *text, const char *head)
{
    if (strncmp(text, head, strlen(head)) != 0)
        fail_msg("\"%.60s\" does not begin with \"%s\"", text, head);
}

TEST(metrics_and_health)
{
    const char *answer = ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_begins(answer, "HTTP/1.1 200 OK\r\n");
    assert_text_contains(answer, "Content-Type: text/plain; version=0.0.4");
    assert_text_contains(answer, "\r\n\r\n# HELP sluice_test_total Test\n");
    assert_text_contains(answer, "sluice_test_total 41\n");
    answer = ask("GET /health HTTP/1.0\r\n\r\n");
    assert_begins(answer, "HTTP/1.1 200 OK\r\n");
    assert_text_contains(answer, "\r\n\r\nok\n");
    answer = ask("GET /metrics?x=1 HTTP/1.1\r\n\r\n");
    assert_begins(answer, "HTTP/1.1 200 OK\r\n");
    answer = ask("HEAD /health HTTP/1.1\r\n\r\n");
    assert_text_contains(answer, "Content-Length: 3\r\n");
    assert_null(strstr(answer, "\r\n\r\nok"));
}

TEST(bad_requests_get_answers)
{
    assert_begins(ask("GET /metricsx HTTP/1.1\r\n\r\n"), "HTTP/1.1 404 ");
    assert_begins(ask("GET / HTTP/1.1\r\n\r\n"), "HTTP/1.1 404 ");
    assert_begins(ask("POST /metrics HTTP/1.1\r\n\r\n"), "HTTP/1.1 405 ");
    assert_begins(ask("nonsense\r\n\r\n"), "HTTP/1.1 400 ");
    assert_begins(ask("GET /health\r\n\r\n"), "HTTP/1.1 400 ");
    assert_begins(ask("GET health HTTP/1.1\r\n\r\n"), "HTTP/1.1 400 ");
    assert_begins(ask(" / HTTP/1.1\r\n\r\n"), "HTTP/1.1 ");
    static char big[20000];
    memset(big, 'a', sizeof(big) - 1);
    assert_begins(ask(big), "HTTP/1.1 431 ");
}

TEST(nul_bytes_and_pieces)
{
    int fd = client_connect();
    assert_int_equal(send(fd, "GET\0/", 5, MSG_NOSIGNAL), 5);
    assert_begins(client_finish(fd), "HTTP/1.1 400 ");
    fd = client_connect();
    static const char request[] = "GET /health HTTP/1.1\r\n\r\n";
    for (size_t i = 0; i < sizeof(request) - 1; i++) {
        assert_int_equal(send(fd, request + i, 1, MSG_NOSIGNAL), 1);
        sl_loop_run_once(loop, 0);
    }
    assert_begins(client_finish(fd), "HTTP/1.1 200 ");
}

/* More idle connections than the port serves: one more waits, and is served when one leaves. */
TEST(connections_are_bounded)
{
    int fds[40];
    for (int i = 0; i < 40; i++) {
        fds[i] = client_connect();
        sl_loop_run_once(loop, 0);
    }
    for (int i = 0; i < 20; i++)
        close(fds[i]);
    assert_begins(ask("GET /health HTTP/1.1\r\n\r\n"), "HTTP/1.1 200 ");
    for (int i = 20; i < 40; i++)
        close(fds[i]);
}

TEST(port_conflict_is_told)
{
    sl_err err;
    sl_loop *other_loop;
    sl_daemon *other;
    sl_daemon_options options = {sl_daemon_metrics_address(daemon_), NULL, NULL, NULL};
    assert_ok(sl_loop_create(&other_loop, &err), &err);
    assert_code(sl_daemon_start(other_loop, &options, &other, &err), SL_EXISTS);
    sl_loop_destroy(other_loop);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
static const struct CMUnitTest tests[] = {
    cmocka_unit_test(addresses), cmocka_unit_test(listener_names_its_port_and_conflicts),
    T(signal_calls_stop_once),   T(second_signal_exits),
    T(metrics_and_health),       T(bad_requests_get_answers),
    T(nul_bytes_and_pieces),     T(connections_are_bounded),
    T(port_conflict_is_told),
};
TEST_MAIN(tests)
