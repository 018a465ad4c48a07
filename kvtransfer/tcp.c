/* The transport over plain sockets: one connection of the kernel a link, read straight into pages.
 *
 * Owns listener, sockets and the buffers that frames are read ahead into (all memory is there from
 * the start). Runs on the progress thread (create and destroy: before and after it). Never blocks,
 * but to look up a host's name. What the bytes mean is stream.c's. */
#include "kvtransfer/transport.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/net.h"
#include "kvtransfer/stream.h"

/* While links have work the kernel is asked for news only every so many turns: a call each. */
#define TURNS_TO_POLL 8u

struct kvt_link {
    kvt_transport *transport;
    kvt_peer *peer; /* NULL: free */
    int fd;         /* -1: closed */
    bool connecting;
    bool readable, writable; /* until the kernel says: not now (events come at edges) */
    bool ended;              /* behind what is there to read: the end, whose edge has passed */
    bool broken;             /* said to the core, which will close it */
    bool closing;            /* closed, the core has not heard yet */
    bool active;             /* in the list of links with work */
    kvt_link *next_active;
    kvt_inflow in;
    kvt_outflow *out; /* of this place, always */
};

struct kvt_transport {
    kvt_core *core;
    int epoll_fd; /* also what the thread waits for */
    int listener;
    int spare_fd; /* given up to reject a connection when the process has no descriptor left */
    char address[KVT_ADDRESS_MAX];
    kvt_link *active_first, *active_last;
    uint32_t turns;
    uint32_t closing_count;
    kvt_link links[KVT_PEERS_MAX];
    /* Touched as far as links use them: */
    kvt_outflow *outflows; /* [KVT_PEERS_MAX] */
    uint8_t *ahead;        /* [KVT_PEERS_MAX][KVT_TCP_AHEAD_BYTES] */
};

/* ---- links */

static kvt_link *link_take(kvt_transport *transport)
{
    for (uint32_t i = 0; i < KVT_PEERS_MAX; i++) {
        kvt_link *link = &transport->links[i];
        if (!link->peer && !link->active) {
            link->transport = transport;
            link->fd = -1;
            link->connecting = link->broken = link->ended = false;
            link->readable = link->writable = false;
            kvt_outflow_init(link->out);
            return link;
        }
    }
    return NULL;
}

static void link_give(kvt_link *link, kvt_peer *peer)
{
    size_t place = (size_t)(link - link->transport->links);
    link->peer = peer;
    kvt_inflow_init(&link->in, peer, link->transport->ahead + place * KVT_TCP_AHEAD_BYTES);
}

static bool link_has_work(const kvt_link *link)
{
    if (!link->peer || link->broken || link->closing)
        return false;
    return link->readable || (link->writable && !kvt_outflow_empty(link->out));
}

static void link_activate(kvt_link *link)
{
    kvt_transport *transport = link->transport;
    if (link->active || !link_has_work(link))
        return;
    link->active = true;
    link->next_active = NULL;
    if (transport->active_last)
        transport->active_last->next_active = link;
    else
        transport->active_first = link;
    transport->active_last = link;
}

static kvt_link *active_take(kvt_transport *transport)
{
    kvt_link *link = transport->active_first;
    if (!link)
        return NULL;
    transport->active_first = link->next_active;
    if (!transport->active_first)
        transport->active_last = NULL;
    link->active = false;
    return link;
}

static void link_break(kvt_link *link, const char *why)
{
    char text[KVT_TEXT_MAX];
    if (link->broken)
        return;
    link->broken = true;
    snprintf(text, sizeof text, "connection lost: %s", why);
    kvt_core_broken(link->peer, SL_UNAVAILABLE, text);
}

/* No waiting for more to send; a host that went silently is given up as early as by UCX. */
static bool socket_prepare(int fd)
{
    static const struct {
        int level, name, value;
    } settings[] = {
        {IPPROTO_TCP, TCP_NODELAY, 1},
        {SOL_SOCKET, SO_KEEPALIVE, 1},
        {IPPROTO_TCP, TCP_KEEPIDLE, KVT_TCP_KEEPALIVE_S},
        {IPPROTO_TCP, TCP_KEEPINTVL, KVT_TCP_KEEPALIVE_EACH},
        {IPPROTO_TCP, TCP_KEEPCNT, KVT_TCP_KEEPALIVE_ASKS},
        {IPPROTO_TCP, TCP_USER_TIMEOUT, KVT_TCP_UNHEARD_MS},
    };
    for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++) {
        if (setsockopt(fd, settings[i].level, settings[i].name, &settings[i].value, sizeof(int)) !=
            0)
            return false;
    }
    return true;
}

/* Events come at edges: once a call has said EAGAIN. */
static bool link_watch(kvt_link *link)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
                                .data.ptr = link};
    return epoll_ctl(link->transport->epoll_fd, EPOLL_CTL_ADD, link->fd, &event) == 0;
}

static sl_status connect_begin(kvt_link *link, const char *address, sl_err *err)
{
    struct sockaddr_storage to;
    socklen_t size;
    SL_TRY(sl_net_resolve(address, false, &to, &size, err));
    link->fd = socket(to.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (link->fd < 0)
        return sl_fail_errno(err, SL_UNAVAILABLE, "connect to %s", address);
    if (!socket_prepare(link->fd) ||
        (connect(link->fd, (const struct sockaddr *)&to, size) != 0 && errno != EINPROGRESS) ||
        !link_watch(link)) {
        sl_status failed = sl_fail_errno(err, SL_UNAVAILABLE, "connect to %s", address);
        close(link->fd);
        return failed;
    }
    link->connecting = true;
    return sl_ok();
}

static sl_status tcp_connect(kvt_transport *transport, const char *address, kvt_peer *peer,
                             kvt_link **out_link, sl_err *err)
{
    const char *part = kvt_tcp_part(address);
    if (!part)
        return sl_fail(err, SL_INCOMPATIBLE,
                       "%s receives by UCX, this side sends by tcp: give both the same kv "
                       "transport (nodes: --kv-transport)",
                       address);
    kvt_link *link = link_take(transport);
    if (!link)
        return sl_fail(err, SL_FULL, "%u connections are open", KVT_PEERS_MAX);
    SL_TRY(connect_begin(link, part, err));
    link_give(link, peer);
    *out_link = link;
    return sl_ok();
}

static void tcp_close(kvt_link *link)
{
    kvt_transport *transport = link->transport;
    static const struct linger at_once = {.l_onoff = 1, .l_linger = 0};
    sl_assert(!link->closing);
    link->closing = true;
    transport->closing_count++;
    /* With something unsent: the kernel shall not go on with it. Else what was sent may arrive. */
    if (!kvt_outflow_empty(link->out))
        setsockopt(link->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close(link->fd);
    link->fd = -1;
    kvt_inflow_end(&link->in);
    kvt_outflow_end(link->out);
}

static bool links_reap(kvt_transport *transport)
{
    bool did = false;
    for (uint32_t i = 0; transport->closing_count > 0 && i < KVT_PEERS_MAX; i++) {
        kvt_link *link = &transport->links[i];
        kvt_peer *peer = link->peer;
        if (!link->closing)
            continue;
        link->closing = false;
        link->peer = NULL;
        transport->closing_count--;
        kvt_core_closed(peer);
        did = true;
    }
    return did;
}

/* ---- accepting */

/* The process has no descriptor left: the spare one makes room to turn a caller away, who would
 * wait for his deadline otherwise, and we would be woken for him for ever. */
static void accept_reject(kvt_transport *transport)
{
    close(transport->spare_fd);
    int fd = accept4(transport->listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd >= 0)
        close(fd);
    transport->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

static void accept_one(kvt_transport *transport, int fd)
{
    kvt_link *link = socket_prepare(fd) ? link_take(transport) : NULL;
    kvt_peer *peer = link ? kvt_core_accepted(transport->core, link) : NULL;
    if (!peer) {
        close(fd);
        return;
    }
    link->fd = fd;
    link_give(link, peer);
    if (!link_watch(link))
        link_break(link, strerror(errno));
}

static void accept_all(kvt_transport *transport)
{
    for (uint32_t i = 0; i < KVT_TCP_ACCEPTS_MAX; i++) {
        int fd = accept4(transport->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0)
            accept_one(transport, fd);
        else if (errno == EMFILE || errno == ENFILE)
            accept_reject(transport);
        else if (errno != EINTR && errno != ECONNABORTED)
            return;
    }
}

/* ---- bytes */

static void tcp_send_message(kvt_link *link, const void *data, size_t size, kvt_request *request)
{
    if (link->closing) {
        kvt_core_finished(request, SL_UNAVAILABLE);
        return;
    }
    kvt_outflow_message(link->out, (sl_span){data, size}, request);
    link_activate(link); /* written at the next progress, together with what else comes till then */
}

static void tcp_send_piece(kvt_link *link, const void *head, size_t head_size, const void *data,
                           uint64_t bytes, kvt_request *request)
{
    if (link->closing) {
        kvt_core_finished(request, SL_UNAVAILABLE);
        return;
    }
    kvt_outflow_piece(link->out, (sl_span){head, head_size}, data, bytes, request);
    link_activate(link);
}

/* Nothing of UCX's shared memory to overrun: small pieces in flight are bounded by their bytes. */
static uint32_t tcp_window(const kvt_link *link, uint32_t open)
{
    return KVT_WINDOW_READS;
}

static bool call_again(void)
{
    return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
}

static bool link_write(kvt_link *link)
{
    struct iovec parts[KVT_TCP_PARTS_MAX];
    struct msghdr message = {.msg_iov = parts};
    message.msg_iovlen = kvt_outflow_parts(link->out, parts, KVT_TCP_PARTS_MAX);
    size_t asked = 0;
    for (size_t i = 0; i < message.msg_iovlen; i++)
        asked += parts[i].iov_len;
    ssize_t sent = sendmsg(link->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0) {
        link->writable = errno == EINTR;
        if (!call_again())
            link_break(link, strerror(errno));
        return false;
    }
    link->writable = (size_t)sent == asked;
    kvt_outflow_took(link->out, (size_t)sent);
    return true;
}

static ssize_t link_receive(kvt_link *link, size_t *out_asked)
{
    struct iovec parts[2];
    uint64_t skip = kvt_inflow_skip(&link->in);
    *out_asked = skip;
    if (skip > 0) /* thrown away by the kernel: nothing is stored */
        return recv(link->fd, NULL, skip, MSG_TRUNC | MSG_DONTWAIT);
    struct msghdr message = {.msg_iov = parts};
    message.msg_iovlen = kvt_inflow_parts(&link->in, parts);
    for (size_t i = 0; i < message.msg_iovlen; i++)
        *out_asked += parts[i].iov_len;
    return recvmsg(link->fd, &message, MSG_DONTWAIT);
}

static bool link_read(kvt_link *link)
{
    size_t asked;
    ssize_t got = link_receive(link, &asked);
    if (got < 0) {
        link->readable = errno == EINTR;
        if (!call_again())
            link_break(link, strerror(errno));
        return false;
    }
    if (got == 0) {
        link_break(link, "closed by the other end");
        return false;
    }
    /* Short: that was all, and more will be told. */
    link->readable = (size_t)got == asked || link->ended;
    kvt_inflow_took(&link->in, (size_t)got);
    link->broken |= link->in.failed;
    return true;
}

/* ---- progress */

static void link_event(kvt_link *link, uint32_t events)
{
    if (!link->peer || link->closing)
        return;
    if (link->connecting && events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) {
        int error = 0;
        socklen_t size = sizeof error;
        link->connecting = false;
        if (getsockopt(link->fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0 || error != 0) {
            link_break(link, strerror(error));
            return;
        }
    }
    link->ended |= (events & (EPOLLRDHUP | EPOLLERR | EPOLLHUP)) != 0;
    link->readable |= (events & EPOLLIN) != 0 || link->ended;
    link->writable |= (events & EPOLLOUT) != 0 && !link->connecting;
    link_activate(link);
}

static bool events_take(kvt_transport *transport)
{
    struct epoll_event events[KVT_TCP_EVENTS_MAX];
    int count = epoll_wait(transport->epoll_fd, events, KVT_TCP_EVENTS_MAX, 0);
    for (int i = 0; i < count; i++) {
        if (events[i].data.ptr)
            link_event(events[i].data.ptr, events[i].events);
        else
            accept_all(transport);
    }
    return count > 0;
}

/* Each link with work has one turn: one call each way. What was collected is answered at once: the
 * peer's window waits for it. */
static bool links_serve(kvt_transport *transport)
{
    bool did = false;
    kvt_link *last = transport->active_last;
    for (kvt_link *link = NULL; link != last && (link = active_take(transport));) {
        if (link_has_work(link) && link->writable && !kvt_outflow_empty(link->out))
            did |= link_write(link);
        if (link_has_work(link) && link->readable)
            did |= link_read(link);
        link_activate(link);
        if (kvt_core_collected(transport->core))
            return true;
    }
    return did;
}

static bool tcp_progress(kvt_transport *transport)
{
    bool did = false;
    if (!transport->active_first || ++transport->turns % TURNS_TO_POLL == 0)
        did = events_take(transport);
    did |= links_serve(transport);
    if (transport->closing_count > 0)
        did |= links_reap(transport);
    return did;
}

static bool tcp_arm(kvt_transport *transport)
{
    return !transport->active_first && transport->closing_count == 0;
}

static int tcp_wait_fd(const kvt_transport *transport)
{
    return transport->epoll_fd;
}

static void tcp_address(const kvt_transport *transport, char out_text[KVT_ADDRESS_MAX])
{
    memcpy(out_text, transport->address, sizeof transport->address);
}

/* ---- create, destroy */

static void close_if_open(int fd)
{
    if (fd >= 0)
        close(fd);
}

static void tcp_destroy(kvt_transport *transport)
{
    if (!transport)
        return;
    for (uint32_t i = 0; i < KVT_PEERS_MAX; i++)
        close_if_open(transport->links[i].fd);
    close_if_open(transport->listener);
    close_if_open(transport->spare_fd);
    close_if_open(transport->epoll_fd);
    sl_free(transport->outflows);
    sl_free(transport->ahead);
    sl_free(transport);
}

static sl_status tcp_listen(kvt_transport *transport, const kvt_options *options, sl_err *err)
{
    struct sockaddr_storage at;
    socklen_t size;
    char bound[SL_ADDRESS_TEXT_MAX];
    SL_TRY(kvt_listen_resolve(options, &at, &size, err));
    SL_TRY(sl_net_listen(options->listen, false, &transport->listener, bound, err));
    int length = snprintf(transport->address, sizeof transport->address, "tcp:%s", bound);
    sl_assert(length > 0 && (size_t)length < sizeof transport->address); /* numbers */
    transport->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (transport->spare_fd < 0 ||
        epoll_ctl(transport->epoll_fd, EPOLL_CTL_ADD, transport->listener, &event) != 0)
        return sl_fail_errno(err, SL_IO, "listen on %s", options->listen);
    return sl_ok();
}

static const kvt_transport_ops tcp_ops = {
    .connect = tcp_connect,
    .close = tcp_close,
    .send_message = tcp_send_message,
    .send_piece = tcp_send_piece,
    .window = tcp_window,
    .progress = tcp_progress,
    .restart = NULL, /* nothing is ever kept of a closed socket */
    .arm = tcp_arm,
    .wait_fd = tcp_wait_fd,
    .address = tcp_address,
    .destroy = tcp_destroy,
};

sl_status kvt_tcp_create(const kvt_options *options, kvt_core *core,
                         const kvt_transport_ops **out_ops, kvt_transport **out_transport,
                         sl_err *err)
{
    kvt_transport *transport = sl_alloc(1, sizeof *transport, "kvt transport");
    transport->core = core;
    transport->listener = transport->spare_fd = -1;
    transport->outflows = sl_alloc(KVT_PEERS_MAX, sizeof *transport->outflows, "kvt outflows");
    for (uint32_t i = 0; i < KVT_PEERS_MAX; i++) {
        transport->links[i].fd = -1;
        transport->links[i].out = &transport->outflows[i];
    }
    transport->ahead = sl_alloc(KVT_PEERS_MAX, KVT_TCP_AHEAD_BYTES, "kvt read ahead");
    transport->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    sl_status status = sl_ok();
    if (transport->epoll_fd < 0)
        status = sl_fail_errno(err, SL_IO, "create an epoll descriptor");
    else if (options->listen)
        status = tcp_listen(transport, options, err);
    if (!sl_is_ok(status)) {
        tcp_destroy(transport);
        return status;
    }
    *out_ops = &tcp_ops;
    *out_transport = transport;
    return sl_ok();
}
