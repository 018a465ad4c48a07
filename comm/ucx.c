/* The backend over UCX: a listener, an endpoint to each other rank, active messages, rendezvous
 * into the receiver's window.
 *
 * Owns context, worker, listener and endpoints; no thread: whoever has the group makes progress,
 * its owner or its carrier. The traps of UCX 1.13 that shaped it are those of kvtransfer/README.md.
 */
#include "comm/ucx.h"

#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <ucp/api/ucp.h>
#include <ucs/config/global_opts.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/clock.h"
#include "base/net.h"
#include "comm/transport.h"

#define AM_RANK 1u
/* Up to here one eager message is cheaper than asking the peer to fetch. */
#define EAGER_BYTES_MAX 8192u
#define LINKS_MAX       (2u * COM_RANKS_MAX) /* old ones may still be closing */
#define SENDS_MAX       (4u * COM_RANKS_MAX) /* a phase's, and the end's */
#define CLOSE_MS        2000u
#define PROGRESS_MAX    16u

typedef struct ep_link {
    com_transport *transport;
    ucp_ep_h endpoint; /* NULL: free */
    uint32_t rank;     /* COM_RANKS_MAX: it has said no hello */
    bool refused;      /* to be closed outside callbacks */
    bool closing;
    void *close_request;
} ep_link;

/* UCX may look at a message's head until it is sent. */
typedef struct outgoing {
    com_transport *transport;
    bool open;
    uint8_t head[COM_WIRE_SIZE];
} outgoing;

typedef struct receive {
    com_transport *transport;
    com_wire wire;
    bool open;
} receive;

struct com_transport {
    com_group *group;
    ucp_context_h context;
    ucp_worker_h worker;
    ucp_listener_h listener;
    int fd;
    char address[SL_ADDRESS_TEXT_MAX];
    ep_link links[LINKS_MAX];
    ep_link *by_rank[COM_RANKS_MAX];
    outgoing sends[SENDS_MAX];
    receive receives[COM_RANKS_MAX][2]; /* by rank and the phase's parity */
    uint32_t open_count;                /* of both */
};

static sl_status ucx_fail(sl_err *err, ucs_status_t status, const char *what)
{
    return sl_fail(err, status == UCS_ERR_NO_MEMORY ? SL_NO_MEMORY : SL_IO, "%s: %s", what,
                   ucs_status_string(status));
}

/* ---- links */

static ep_link *link_take(com_transport *transport)
{
    for (uint32_t i = 0; i < LINKS_MAX; i++) {
        ep_link *at = &transport->links[i];
        if (at->endpoint)
            continue;
        *at = (ep_link){.transport = transport, .rank = COM_RANKS_MAX};
        return at;
    }
    return NULL;
}

static ep_link *link_find(com_transport *transport, ucp_ep_h endpoint)
{
    for (uint32_t i = 0; i < LINKS_MAX && endpoint; i++)
        if (transport->links[i].endpoint == endpoint && !transport->links[i].closing)
            return &transport->links[i];
    return NULL;
}

static void on_endpoint_error(void *argument, ucp_ep_h endpoint, ucs_status_t status)
{
    ep_link *at = argument;
    if (at->closing || at->endpoint != endpoint)
        return;
    if (at->rank < COM_RANKS_MAX)
        com_group_broken(at->transport->group, at->rank, ucs_status_string(status));
}

static ucs_status_t link_create(ep_link *at, ucp_ep_params_t *params)
{
    params->field_mask |= UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER;
    params->err_mode = UCP_ERR_HANDLING_MODE_PEER;
    params->err_handler.cb = on_endpoint_error;
    params->err_handler.arg = at;
    return ucp_ep_create(at->transport->worker, params, &at->endpoint);
}

static sl_status ucx_connect(com_transport *transport, uint32_t rank, const char *address,
                             sl_err *err)
{
    struct sockaddr_storage to;
    socklen_t size;
    SL_TRY(sl_net_resolve(address, false, &to, &size, err));
    ep_link *at = link_take(transport);
    if (!at)
        return sl_fail(err, SL_FULL, "%u connections are open", LINKS_MAX);
    ucp_ep_params_t params = {.field_mask = UCP_EP_PARAM_FIELD_FLAGS | UCP_EP_PARAM_FIELD_SOCK_ADDR,
                              .flags = UCP_EP_PARAMS_FLAGS_CLIENT_SERVER,
                              .sockaddr = {(const struct sockaddr *)&to, size}};
    ucs_status_t status = link_create(at, &params);
    if (status != UCS_OK) {
        at->endpoint = NULL;
        return sl_fail(err, SL_UNAVAILABLE, "connect to %s: %s", address,
                       ucs_status_string(status));
    }
    at->rank = rank;
    transport->by_rank[rank] = at;
    return sl_ok();
}

static void on_connection(ucp_conn_request_h request, void *argument)
{
    com_transport *transport = argument;
    ep_link *at = link_take(transport);
    if (!at) {
        ucp_listener_reject(transport->listener, request);
        return;
    }
    ucp_ep_params_t params = {.field_mask = UCP_EP_PARAM_FIELD_CONN_REQUEST,
                              .conn_request = request};
    if (link_create(at, &params) != UCS_OK)
        at->endpoint = NULL;
}

static void link_close(ep_link *at)
{
    com_transport *transport = at->transport;
    if (!at->endpoint || at->closing)
        return;
    if (at->rank < COM_RANKS_MAX && transport->by_rank[at->rank] == at)
        transport->by_rank[at->rank] = NULL;
    at->closing = true;
    ucp_request_param_t param = {.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS,
                                 .flags = UCP_EP_CLOSE_FLAG_FORCE};
    void *request = ucp_ep_close_nbx(at->endpoint, &param);
    at->close_request = UCS_PTR_IS_PTR(request) ? request : NULL;
}

/* Those whose close has ended become free; returns how many have not. */
static uint32_t links_reap(com_transport *transport)
{
    uint32_t left = 0;
    for (uint32_t i = 0; i < LINKS_MAX; i++) {
        ep_link *at = &transport->links[i];
        if (!at->closing)
            continue;
        if (at->close_request && ucp_request_check_status(at->close_request) == UCS_INPROGRESS) {
            left++;
            continue;
        }
        if (at->close_request)
            ucp_request_free(at->close_request);
        at->endpoint = NULL;
        at->closing = false;
    }
    return left;
}

/* ---- sending */

static outgoing *send_take(com_transport *transport)
{
    for (uint32_t i = 0; i < SENDS_MAX; i++)
        if (!transport->sends[i].open)
            return &transport->sends[i];
    return NULL;
}

static void send_end(outgoing *at)
{
    at->open = false;
    at->transport->open_count--;
    com_group_sent(at->transport->group);
}

static void on_sent(void *request, ucs_status_t status, void *user_data)
{
    ucp_request_free(request);
    send_end(user_data); /* a failed link is told by its error handler */
}

static void ucx_send(com_transport *transport, uint32_t rank, const uint8_t head[COM_WIRE_SIZE],
                     const void *data, uint64_t bytes)
{
    ep_link *to = transport->by_rank[rank];
    outgoing *at = to && !to->closing ? send_take(transport) : NULL;
    if (!at) {
        com_group_sent(transport->group);
        return;
    }
    at->transport = transport;
    at->open = true;
    transport->open_count++;
    memcpy(at->head, head, COM_WIRE_SIZE);
    uint32_t how = bytes <= EAGER_BYTES_MAX ? UCP_AM_SEND_FLAG_EAGER : UCP_AM_SEND_FLAG_RNDV;
    ucp_request_param_t param = {.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK |
                                                 UCP_OP_ATTR_FIELD_USER_DATA |
                                                 UCP_OP_ATTR_FIELD_FLAGS,
                                 .flags = how | UCP_AM_SEND_FLAG_REPLY,
                                 .cb.send = on_sent,
                                 .user_data = at};
    void *sent =
        ucp_am_send_nbx(to->endpoint, AM_RANK, at->head, COM_WIRE_SIZE, data, bytes, &param);
    if (!UCS_PTR_IS_PTR(sent))
        send_end(at);
}

/* ---- receiving */

static void receive_end(receive *at, ucs_status_t status)
{
    at->open = false;
    at->transport->open_count--;
    if (status == UCS_OK)
        com_group_arrived(at->transport->group, &at->wire);
    else
        com_group_broken(at->transport->group, at->wire.rank, ucs_status_string(status));
}

static void on_received(void *request, ucs_status_t status, size_t length, void *user_data)
{
    ucp_request_free(request);
    receive_end(user_data, status);
}

/* `data` is a rendezvous descriptor, or the bytes. */
static void receive_into(com_transport *transport, const com_wire *wire, void *into, void *data,
                         bool rendezvous)
{
    if (!rendezvous) {
        memcpy(into, data, wire->bytes);
        com_group_arrived(transport->group, wire);
        return;
    }
    receive *at = &transport->receives[wire->rank][wire->phase % 2];
    sl_assert(!at->open); /* the group takes one message a phase */
    *at = (receive){.transport = transport, .wire = *wire, .open = true};
    transport->open_count++;
    ucp_request_param_t param = {.op_attr_mask =
                                     UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
                                 .cb.recv_am = on_received,
                                 .user_data = at};
    void *request = ucp_am_recv_data_nbx(transport->worker, data, into, wire->bytes, &param);
    if (!UCS_PTR_IS_PTR(request))
        receive_end(at, UCS_PTR_STATUS(request));
}

static void receive_hello(ep_link *from, const com_wire *wire)
{
    com_transport *transport = from->transport;
    if (!com_group_hello(transport->group, wire)) {
        from->refused = true;
        return;
    }
    from->rank = wire->rank;
    transport->by_rank[wire->rank] = from;
}

static ucs_status_t on_message(void *argument, const void *head, size_t head_size, void *data,
                               size_t size, const ucp_am_recv_param_t *param)
{
    com_transport *transport = argument;
    com_wire wire;
    bool reply = (param->recv_attr & UCP_AM_RECV_ATTR_FIELD_REPLY_EP) != 0;
    ep_link *from = link_find(transport, reply ? param->reply_ep : NULL);
    if (!from || from->refused)
        return UCS_OK; /* of a link that was closed */
    if (!sl_is_ok(com_wire_unpack(head, head_size, &wire, NULL)) || wire.bytes != size ||
        (wire.kind != COM_KIND_HELLO && wire.rank != from->rank)) {
        from->refused = true;
        if (from->rank < COM_RANKS_MAX)
            com_group_broken(transport->group, from->rank, "what it sends is no message");
        return UCS_OK;
    }
    if (wire.kind == COM_KIND_HELLO) {
        receive_hello(from, &wire);
        return UCS_OK;
    }
    void *into = com_group_arrive(transport->group, &wire);
    if (into && size > 0)
        receive_into(transport, &wire, into, data,
                     (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0);
    else
        com_group_arrived(transport->group, &wire);
    return UCS_OK; /* a refused rendezvous moves no payload */
}

/* ---- create and destroy */

/* Ours only where the operator's environment says nothing; why: kvtransfer/ucx.c. */
static const char *const ucx_settings[][2] = {
    {"TLS", "tcp,shm,self"}, {"MM_ERROR_HANDLING", "y"},   {"MM_FIFO_SIZE", "512"},
    {"CM_REUSEADDR", "y"},   {"RNDV_SCHEME", "get_zcopy"}, {NULL, NULL},
};

static bool shm_allowed(void)
{
    const char *list = getenv("UCX_TLS");
    return !list || strstr(list, "shm") || strstr(list, "sm") || strstr(list, "posix") ||
           strstr(list, "sysv") || strstr(list, "all");
}

static sl_status ucx_context(com_transport *transport, sl_err *err)
{
    if (!getenv("UCX_LOG_LEVEL"))
        ucs_global_opts_set_value("LOG_LEVEL", "fatal");
    ucp_config_t *config;
    ucs_status_t status = ucp_config_read(NULL, NULL, &config);
    if (status != UCS_OK)
        return ucx_fail(err, status, "read the UCX configuration");
    for (size_t i = 0; ucx_settings[i][0] && status == UCS_OK; i++) {
        char variable[64];
        bool shm_only = strncmp(ucx_settings[i][0], "MM_", 3) == 0;
        snprintf(variable, sizeof(variable), "UCX_%s", ucx_settings[i][0]);
        if (!getenv(variable) && (!shm_only || shm_allowed()))
            status = ucp_config_modify(config, ucx_settings[i][0], ucx_settings[i][1]);
    }
    ucp_params_t params = {.field_mask = UCP_PARAM_FIELD_FEATURES,
                           .features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP};
    if (status == UCS_OK)
        status = ucp_init(&params, config, &transport->context);
    ucp_config_release(config);
    return status == UCS_OK ? sl_ok() : ucx_fail(err, status, "start UCX");
}

static sl_status ucx_worker(com_transport *transport, sl_err *err)
{
    ucp_worker_params_t params = {.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE,
                                  .thread_mode = UCS_THREAD_MODE_SERIALIZED};
    ucs_status_t status = ucp_worker_create(transport->context, &params, &transport->worker);
    if (status != UCS_OK)
        return ucx_fail(err, status, "create a UCX worker");
    status = ucp_worker_get_efd(transport->worker, &transport->fd);
    if (status != UCS_OK)
        return ucx_fail(err, status, "get the UCX event descriptor");
    ucp_am_handler_param_t handler = {
        .field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_FLAGS |
                      UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG,
        .id = AM_RANK,
        .flags = UCP_AM_FLAG_WHOLE_MSG,
        .cb = on_message,
        .arg = transport};
    status = ucp_worker_set_am_recv_handler(transport->worker, &handler);
    return status == UCS_OK ? sl_ok() : ucx_fail(err, status, "set a UCX message handler");
}

static sl_status ucx_listen(com_transport *transport, const char *address, bool allow_wildcard,
                            sl_err *err)
{
    struct sockaddr_storage at;
    socklen_t size;
    SL_TRY(sl_net_resolve(address, true, &at, &size, err));
    if (sl_net_is_wildcard((const struct sockaddr *)&at) && !allow_wildcard)
        return sl_fail(err, SL_INVALID,
                       "%s: the network between ranks authenticates nobody; name one interface",
                       address);
    ucp_listener_params_t params = {.field_mask = UCP_LISTENER_PARAM_FIELD_SOCK_ADDR |
                                                  UCP_LISTENER_PARAM_FIELD_CONN_HANDLER,
                                    .sockaddr = {(const struct sockaddr *)&at, size},
                                    .conn_handler = {on_connection, transport}};
    ucs_status_t status = ucp_listener_create(transport->worker, &params, &transport->listener);
    if (status != UCS_OK)
        return ucx_fail(err, status, address);
    ucp_listener_attr_t attr = {.field_mask = UCP_LISTENER_ATTR_FIELD_SOCKADDR};
    status = ucp_listener_query(transport->listener, &attr);
    if (status != UCS_OK)
        return ucx_fail(err, status, address);
    sl_net_format((const struct sockaddr *)&attr.sockaddr, transport->address);
    return sl_ok();
}

static void worker_destroy(com_transport *transport)
{
    if (transport->listener)
        ucp_listener_destroy(transport->listener);
    if (transport->worker)
        ucp_worker_destroy(transport->worker); /* ends whatever it still kept */
    transport->listener = NULL;
    transport->worker = NULL;
}

/* What will not end by itself ends with the worker; then there is another, at the same address. */
static void worker_renew(com_transport *transport)
{
    worker_destroy(transport);
    memset(transport->links, 0, sizeof(transport->links));
    memset(transport->sends, 0, sizeof(transport->sends));
    memset(transport->receives, 0, sizeof(transport->receives));
    transport->open_count = 0;
    sl_status status = ucx_worker(transport, NULL);
    sl_assert(sl_is_ok(status)); /* there was one a moment ago */
    status = ucx_listen(transport, transport->address, true, NULL);
    (void)status; /* without listener, connect fails and says so */
}

static bool ucx_progress(com_transport *transport)
{
    bool did = false;
    for (uint32_t i = 0; i < PROGRESS_MAX && ucp_worker_progress(transport->worker) != 0; i++)
        did = true;
    for (uint32_t i = 0; i < LINKS_MAX; i++)
        if (transport->links[i].refused)
            link_close(&transport->links[i]);
    (void)links_reap(transport);
    return did;
}

static void ucx_reset(com_transport *transport)
{
    sl_time_ns deadline = sl_now_ns() + CLOSE_MS * SL_MS_NS;
    for (uint32_t i = 0; i < LINKS_MAX; i++)
        link_close(&transport->links[i]);
    while ((links_reap(transport) > 0 || transport->open_count > 0) && sl_now_ns() < deadline)
        (void)ucp_worker_progress(transport->worker);
    if (links_reap(transport) > 0 || transport->open_count > 0)
        worker_renew(transport);
    memset(transport->by_rank, 0, sizeof(transport->by_rank));
}

static void ucx_close(com_transport *transport)
{
    if (!transport)
        return;
    if (transport->worker)
        ucx_reset(transport);
    worker_destroy(transport);
    if (transport->context)
        ucp_cleanup(transport->context);
    sl_free(transport);
}

static sl_status ucx_open(const com_options *options, com_group *group,
                          com_transport **out_transport, sl_err *err)
{
    com_transport *transport = sl_alloc(1, sizeof(*transport), "comm transport");
    transport->group = group;
    sl_status status = ucx_context(transport, err);
    if (sl_is_ok(status))
        status = ucx_worker(transport, err);
    if (sl_is_ok(status))
        status = ucx_listen(transport, options->listen, options->allow_wildcard, err);
    if (!sl_is_ok(status)) {
        ucx_close(transport);
        return status;
    }
    *out_transport = transport;
    return sl_ok();
}

static const char *ucx_address(const com_transport *transport)
{
    return transport->address;
}

static int ucx_fd(const com_transport *transport)
{
    return transport->fd;
}

static bool ucx_arm(com_transport *transport)
{
    return ucp_worker_arm(transport->worker) == UCS_OK;
}

const com_backend com_backend_ucx = {
    .open = ucx_open,
    .close = ucx_close,
    .address = ucx_address,
    .connect = ucx_connect,
    .send = ucx_send,
    .progress = ucx_progress,
    .fd = ucx_fd,
    .arm = ucx_arm,
    .reset = ucx_reset,
};
