/* Daemon skeleton: signals through a self-pipe into the loop, the metrics port, descriptor limits.
 *
 * Owns the process's SIGTERM, SIGINT and SIGPIPE dispositions while it lives (one at a time per
 * process; the former ones come back at destroy). A handler and a pipe instead of signalfd, because
 * signalfd needs the signals blocked in every thread, and libraries start threads of their own.
 * Runs on the loop's thread but for the handler, which only writes one byte. */
#include "base/daemon.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/daemon_http.h"

struct sl_daemon {
    void (*stop)(void *context);
    void *context;
    int pipe_fds[2];
    sl_watch *watch;
    sl_http *http;
    struct sigaction old_term, old_int, old_pipe;
    bool stop_called;
};

static _Atomic int signal_fd = -1; /* what the handler writes to; -1 = no daemon */
static _Atomic int signal_count;

static void on_signal(int signal_number)
{
    int saved = errno;
    if (atomic_fetch_add(&signal_count, 1) > 0)
        _exit(130);
    char byte = (char)signal_number;
    ssize_t ignored = write(atomic_load(&signal_fd), &byte, 1);
    (void)ignored;
    errno = saved;
}

static void on_pipe(void *context, uint32_t events)
{
    sl_daemon *daemon = context;
    char bytes[16];
    ssize_t got = read(daemon->pipe_fds[0], bytes, sizeof(bytes));
    if (got <= 0 || daemon->stop_called)
        return;
    daemon->stop_called = true;
    if (daemon->stop)
        daemon->stop(daemon->context); /* may destroy the daemon */
}

/* Soft to hard: a node holds many sockets, and the default of 1024 is a trap. */
static void raise_descriptor_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static void catch_signals(sl_daemon *daemon)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    int nobody = -1;
    sigemptyset(&action.sa_mask);
    sigemptyset(&ignore.sa_mask);
    atomic_store(&signal_count, 0);
    sl_assert(atomic_compare_exchange_strong(&signal_fd, &nobody, daemon->pipe_fds[1]));
    sl_assert(sigaction(SIGTERM, &action, &daemon->old_term) == 0);
    sl_assert(sigaction(SIGINT, &action, &daemon->old_int) == 0);
    sl_assert(sigaction(SIGPIPE, &ignore, &daemon->old_pipe) == 0);
}

static void release_signals(sl_daemon *daemon)
{
    sl_assert(sigaction(SIGTERM, &daemon->old_term, NULL) == 0);
    sl_assert(sigaction(SIGINT, &daemon->old_int, NULL) == 0);
    sl_assert(sigaction(SIGPIPE, &daemon->old_pipe, NULL) == 0);
    atomic_store(&signal_fd, -1);
}

sl_status sl_daemon_start(sl_loop *loop, const sl_daemon_options *options, sl_daemon **out_daemon,
                          sl_err *err)
{
    sl_daemon *daemon = sl_alloc(1, sizeof(*daemon), "daemon");
    sl_status status;
    daemon->stop = options->stop;
    daemon->context = options->context;
    raise_descriptor_limit();
    if (pipe2(daemon->pipe_fds, O_NONBLOCK | O_CLOEXEC) != 0) {
        status = sl_fail_errno(err, SL_IO, "create the signal pipe");
        goto err_free;
    }
    status =
        sl_watch_create(loop, daemon->pipe_fds[0], EPOLLIN, on_pipe, daemon, &daemon->watch, err);
    if (!sl_is_ok(status))
        goto err_pipe;
    if (options->metrics_listen) {
        status = sl_http_start(loop, options->metrics_listen, options->metrics, &daemon->http, err);
        if (!sl_is_ok(status))
            goto err_watch;
    }
    catch_signals(daemon);
    *out_daemon = daemon;
    return sl_ok();
err_watch:
    sl_watch_destroy(daemon->watch);
err_pipe:
    close(daemon->pipe_fds[0]);
    close(daemon->pipe_fds[1]);
err_free:
    sl_free(daemon);
    return status;
}

const char *sl_daemon_metrics_address(const sl_daemon *daemon)
{
    return daemon->http ? sl_http_address(daemon->http) : "";
}

void sl_daemon_destroy(sl_daemon *daemon)
{
    if (!daemon)
        return;
    release_signals(daemon);
    sl_http_destroy(daemon->http);
    sl_watch_destroy(daemon->watch);
    close(daemon->pipe_fds[0]);
    close(daemon->pipe_fds[1]);
    sl_free(daemon);
}
