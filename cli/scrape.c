/* See scrape.h. */
#include "cli/scrape.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/net.h"

/* false: the deadline passed first. */
static bool wait_for(int fd, short events, sl_time_ns deadline)
{
    struct pollfd at = {.fd = fd, .events = events};
    sl_time_ns now = sl_now_ns();
    return now < deadline && poll(&at, 1, (int)((deadline - now) / SL_MS_NS) + 1) > 0;
}

static sl_status connect_to(const char *address, sl_time_ns deadline, int *out_fd, sl_err *err)
{
    struct sockaddr_storage to;
    socklen_t size, error_size = sizeof(int);
    int error = 0;
    SL_TRY(sl_net_resolve(address, false, &to, &size, err));
    int fd = socket(to.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return sl_fail_errno(err, SL_IO, "%s", address);
    bool open = connect(fd, (struct sockaddr *)&to, size) == 0 ||
                (errno == EINPROGRESS && wait_for(fd, POLLOUT, deadline) &&
                 getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &error_size) == 0 && error == 0);
    if (open) {
        *out_fd = fd;
        return sl_ok();
    }
    close(fd);
    return sl_fail(err, SL_UNAVAILABLE, "%s does not answer", address);
}

static sl_status exchange(int fd, const char *address, sl_time_ns deadline, sl_buf *out,
                          sl_err *err)
{
    char piece[16384], request[320];
    int length =
        snprintf(request, sizeof(request),
                 "GET /metrics HTTP/1.1\r\nHost: %.200s\r\nConnection: close\r\n\r\n", address);
    if (send(fd, request, (size_t)length, MSG_NOSIGNAL) != length)
        return sl_fail(err, SL_UNAVAILABLE, "%s takes no request", address);
    while (!out->overflow) {
        if (!wait_for(fd, POLLIN, deadline))
            return sl_fail(err, SL_DEADLINE, "%s does not answer in time", address);
        ssize_t got = recv(fd, piece, sizeof(piece), 0);
        if (got <= 0)
            break;
        sl_buf_append(out, piece, (size_t)got);
    }
    sl_buf_putc(out, '\0');
    if (out->overflow || strncmp(out->data, "HTTP/1.", 7) != 0 || !strstr(out->data, " 200 "))
        return sl_fail(err, SL_INCOMPATIBLE, "%s serves no metrics", address);
    return sl_ok();
}

sl_status ctl_scrape(const char *address, sl_time_ns deadline, sl_buf *out_text, sl_err *err)
{
    int fd = -1;
    sl_buf_init(out_text, CTL_SCRAPE_BYTES_MAX);
    SL_TRY(connect_to(address, deadline, &fd, err));
    sl_status status = exchange(fd, address, deadline, out_text, err);
    close(fd);
    return status;
}

double ctl_metric_sum(const char *text, const char *name)
{
    size_t size = strlen(name);
    double sum = 0;
    for (const char *line = text; line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, name, size) != 0 || (line[size] != ' ' && line[size] != '{'))
            continue;
        const char *value = line + size;
        if (*value == '{') {
            value = strstr(value, "} ");
            value = value ? value + 1 : line + size;
        }
        sum += strtod(value, NULL);
    }
    return sum;
}
