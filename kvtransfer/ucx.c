/* The transport over UCX: listener, endpoints, active messages, rendezvous into the page.
 *
 * Owns the UCX context, worker, listener and endpoints. Runs on the progress thread (create and
 * destroy: before and after it); callbacks of UCX only collect. API of UCX 1.13; README.md lists
 * the traps that shaped this file. */
#include "kvtransfer/transport.h"

#include <dlfcn.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <ucp/api/ucp.h>
#include <ucs/config/global_opts.h>
#include <ucs/debug/debug.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/bytes.h"
#include "base/net.h"
#include "base/rng.h"
#include "kvtransfer/local.h"
#include "kvtransfer/probe.h"
#include "kvtransfer/reads.h"

#define AM_MESSAGE 1u
#define AM_PIECE   2u
#define AM_LOCAL   3u /* may you read my memory? (kvt_local_step) */
#define AM_READ    4u /* offered pieces, to be read at addresses */
#define AM_TAKEN   5u /* they were read or refused; a message of ours may go with it */
#define AM_PROBE   6u /* of this process to itself (kvt_probe) */
/* Up to here one eager message is cheaper than asking the peer to fetch: on tcp what fits into one
 * segment of ours; where UCX may use RDMA, what fits into one of its. */
#define EAGER_BYTES_MAX      61440u
#define EAGER_BYTES_MAX_RDMA 8192u
#define LISTEN_AGAIN_MS      100u
#define PROGRESS_MAX         64u /* calls of ucp_worker_progress before commands get their turn */
#define CACHE_SLOTS          1024u

#define TAKEN_MAX 16u /* D's answers handed to UCX; then reads wait */

typedef struct small_send { /* bytes that UCX may still need */
    bool busy;
    kvt_request *with; /* a message that goes with them; NULL: none */
    uint8_t bytes[KVT_WIRE_LOCAL_SIZE];
} small_send;

struct kvt_link {
    kvt_transport *transport;
    kvt_peer *peer; /* NULL: free */
    ucp_ep_h endpoint;
    void *close_request;
    bool closing;
    bool outgoing;
    kvt_agreement local;
    small_send steps[2];         /* of kvt_local_step, each side says two */
    kvt_read_ring offered;       /* P */
    kvt_read_queue reads;        /* D */
    bool reading;                /* D: has reads that wait, or answers */
    kvt_link *next_reading;      /* D: of those */
    kvt_read_untold untold;      /* D */
    small_send taken[TAKEN_MAX]; /* D */
};

struct kvt_transport {
    kvt_core *core;
    ucp_context_h context;
    ucp_worker_h worker;
    ucp_listener_h listener;
    int wait_fd;
    char address[KVT_ADDRESS_MAX];
    ucp_mem_h memory[KVT_REGIONS_MAX];
    size_t memory_count;
    bool local_reads;
    kvt_probe probe;
    kvt_link *offering;                    /* P: its unsent offers may get company; NULL: none */
    kvt_link *reading_head, *reading_tail; /* D: reads wait, in turns */
    uint64_t eager_max;
    uint32_t offered; /* P: pieces that D's have not answered, of all links */
    kvt_link links[KVT_PEERS_MAX];
    kvt_read_offers offers[KVT_PEERS_MAX]; /* of the links, P's or D's */
    uint32_t closing_count;
    sl_time_ns listen_at;        /* SL_NEVER: we listen, or never did */
    uint16_t cache[CACHE_SLOTS]; /* endpoint -> link, a guess that is checked */
};

static sl_code code_of(ucs_status_t status)
{
    switch (status) {
    case UCS_OK:
        return SL_OK;
    case UCS_ERR_NO_MEMORY:
        return SL_NO_MEMORY;
    case UCS_ERR_MESSAGE_TRUNCATED:
        return SL_INVALID;
    default:
        return SL_UNAVAILABLE;
    }
}

static sl_status ucx_fail(sl_err *err, ucs_status_t status, const char *what)
{
    return sl_fail(err, status == UCS_ERR_NO_MEMORY ? SL_NO_MEMORY : SL_IO, "%s: %s", what,
                   ucs_status_string(status));
}

/* ---- links */

/* UCX may keep a send of a closed endpoint until the worker ends: its bytes are not used again. */
static bool link_kept(const kvt_link *link)
{
    bool kept = link->steps[0].busy || link->steps[1].busy;
    for (uint32_t i = 0; i < KVT_WINDOW_READS; i++)
        kept |= link->offered.busy[i];
    for (uint32_t i = 0; i < TAKEN_MAX; i++)
        kept |= link->taken[i].busy;
    return kept;
}

static kvt_link *link_take(kvt_transport *transport)
{
    for (uint32_t i = 0; i < KVT_PEERS_MAX; i++) {
        kvt_link *link = &transport->links[i];
        if (!link->endpoint && !link->peer && !link->closing && !link_kept(link)) {
            memset(link, 0, sizeof *link);
            link->transport = transport;
            kvt_read_ring_init(&link->offered, &transport->offers[i]);
            link->reads.offers = &transport->offers[i];
            return link;
        }
    }
    return NULL;
}

static uint32_t cache_slot(ucp_ep_h endpoint)
{
    return (uint32_t)(((uintptr_t)endpoint >> 4) * 0x9e3779b1u >> 12) % CACHE_SLOTS;
}

/* The link of a message's reply endpoint; NULL for one we closed. */
static kvt_link *link_find(kvt_transport *transport, const ucp_am_recv_param_t *param)
{
    if (!(param->recv_attr & UCP_AM_RECV_ATTR_FIELD_REPLY_EP) || !param->reply_ep)
        return NULL;
    uint16_t *guess = &transport->cache[cache_slot(param->reply_ep)];
    kvt_link *link = &transport->links[*guess % KVT_PEERS_MAX];
    if (link->endpoint != param->reply_ep) {
        link = NULL;
        for (uint32_t i = 0; i < KVT_PEERS_MAX && !link; i++) {
            if (transport->links[i].endpoint == param->reply_ep) {
                link = &transport->links[i];
                *guess = (uint16_t)i;
            }
        }
    }
    return link && link->peer && !link->closing ? link : NULL;
}

/* ---- reading on one machine */

static void on_small_sent(void *request, ucs_status_t status, void *user_data)
{
    *(bool *)user_data = false;
    ucp_request_free(request);
}

/* *busy while UCX may need the data. A failure shows as the connection's. */
static void small_send_start(kvt_link *link, unsigned id, sl_span data, bool *busy)
{
    ucp_request_param_t param = {.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK |
                                                 UCP_OP_ATTR_FIELD_USER_DATA |
                                                 UCP_OP_ATTR_FIELD_FLAGS,
                                 .flags = UCP_AM_SEND_FLAG_EAGER | UCP_AM_SEND_FLAG_REPLY,
                                 .cb.send = on_small_sent,
                                 .user_data = busy};
    if (link->closing || !link->endpoint)
        return;
    *busy = true;
    void *sent = ucp_am_send_nbx(link->endpoint, id, NULL, 0, data.data, data.size, &param);
    if (UCS_PTR_IS_PTR(sent))
        return;
    *busy = false;
    if (UCS_PTR_STATUS(sent) != UCS_OK)
        kvt_core_broken(link->peer, SL_UNAVAILABLE, "a message could not be sent");
}

static void local_say(kvt_link *link, kvt_local_step step)
{
    small_send *small = &link->steps[step == KVT_LOCAL_READY || step == KVT_LOCAL_GO];
    kvt_local_message message = kvt_local_message_of(&link->local, step);
    if (small->busy)
        return; /* a peer that asks twice */
    kvt_wire_pack_local(&message, small->bytes);
    small_send_start(link, AM_LOCAL, (sl_span){small->bytes, KVT_WIRE_LOCAL_SIZE}, &small->busy);
}

static bool is_rendezvous(const ucp_am_recv_param_t *param)
{
    return (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0;
}

static ucs_status_t on_local(void *argument, const void *head, size_t head_size, void *data,
                             size_t size, const ucp_am_recv_param_t *param)
{
    kvt_transport *transport = argument;
    kvt_link *link = link_find(transport, param);
    kvt_local_message message;
    kvt_local_step say;
    if (!link || !transport->local_reads || is_rendezvous(param) ||
        !kvt_wire_parse_local(data, size, &message))
        return UCS_OK; /* not answered: the peer goes on by rendezvous */
    if (kvt_local_hear(&link->local, link->outgoing, &message, &say))
        local_say(link, say);
    return UCS_OK;
}

/* P: D needs the piece at this place no more. */
static void read_finished(kvt_link *link, uint32_t place, sl_code code)
{
    kvt_request *request = kvt_read_ring_done(&link->offered, place);
    if (!request)
        return;
    link->transport->offered--;
    kvt_core_finished(request, code);
}

/* P: what was offered since the last message leaves as one. False: nothing was. */
static bool offers_send(kvt_transport *transport)
{
    kvt_link *link = transport->offering;
    bool *busy;
    if (!link)
        return false;
    transport->offering = NULL;
    sl_span message = kvt_read_ring_take(&link->offered, &busy);
    small_send_start(link, AM_READ, message, busy);
    return true;
}

/* P: leaves with others, by the next progress. */
static void read_offer(kvt_link *link, const void *head, const void *data, uint64_t bytes,
                       kvt_request *request)
{
    kvt_transport *transport = link->transport;
    if (transport->offering != link || kvt_read_ring_full(&link->offered, bytes))
        offers_send(transport);
    kvt_read_ring_add(&link->offered, head, data, bytes, request);
    transport->offered++;
    transport->offering = link;
}

static small_send *taken_free(kvt_link *link)
{
    for (uint32_t i = 0; i < TAKEN_MAX; i++) {
        if (!link->taken[i].busy)
            return &link->taken[i];
    }
    return NULL;
}

static void taken_sent(small_send *small, ucs_status_t status)
{
    small->busy = false;
    if (small->with)
        kvt_core_finished(small->with, code_of(status));
}

static void on_taken_sent(void *request, ucs_status_t status, void *user_data)
{
    taken_sent(user_data, status);
    ucp_request_free(request);
}

/* D: P hears what we are done with, and `message` of the core (`with`; NULL: none) in one go, so
 * that it wakes once. False: no place for it. */
static bool taken_tell(kvt_link *link, sl_span message, kvt_request *with)
{
    small_send *small = taken_free(link);
    ucp_request_param_t param = {.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK |
                                                 UCP_OP_ATTR_FIELD_USER_DATA |
                                                 UCP_OP_ATTR_FIELD_FLAGS,
                                 .flags = UCP_AM_SEND_FLAG_EAGER | UCP_AM_SEND_FLAG_REPLY,
                                 .cb.send = on_taken_sent,
                                 .user_data = small};
    if (!small)
        return false;
    small->busy = true;
    small->with = with;
    kvt_wire_pack_taken(&link->untold.taken, small->bytes);
    link->untold = (kvt_read_untold){.bytes = 0};
    void *sent = ucp_am_send_nbx(link->endpoint, AM_TAKEN, small->bytes, KVT_WIRE_TAKEN_SIZE,
                                 message.data, message.size, &param);
    if (UCS_PTR_IS_PTR(sent))
        return true;
    taken_sent(small, UCS_PTR_STATUS(sent));
    if (UCS_PTR_STATUS(sent) != UCS_OK)
        kvt_core_broken(link->peer, SL_UNAVAILABLE, "a message could not be sent");
    return true;
}

/* D: each judged as any offer, those admitted read together. */
static void reads_take(kvt_link *link, const kvt_read_offer *offers, uint32_t count)
{
    kvt_core *core = link->transport->core;
    kvt_local_piece pieces[KVT_WIRE_READS_MAX];
    kvt_request *fetches[KVT_WIRE_READS_MAX];
    uint32_t admitted = 0;
    for (uint32_t i = 0; i < count; i++) {
        const kvt_read_offer *offer = &offers[i];
        void *into = NULL;
        kvt_request *fetch =
            kvt_core_offer(link->peer, offer->head, KVT_WIRE_PIECE_SIZE, offer->bytes, &into);
        if (!fetch)
            continue;
        pieces[admitted] = (kvt_local_piece){offer->address, offer->bytes, into, SL_OK};
        fetches[admitted++] = fetch;
    }
    kvt_local_read(&link->local.memory, pieces, admitted);
    for (uint32_t i = 0; i < admitted; i++) {
        kvt_core_finished(fetches[i], pieces[i].code);
        kvt_core_read_locally(core);
    }
}

static void reading_append(kvt_transport *transport, kvt_link *link)
{
    if (link->reading)
        return;
    link->reading = true;
    link->next_reading = NULL;
    if (transport->reading_tail)
        transport->reading_tail->next_reading = link;
    else
        transport->reading_head = link;
    transport->reading_tail = link;
}

static void reading_remove(kvt_transport *transport, kvt_link *link)
{
    kvt_link *before = NULL;
    link->reading = false;
    for (kvt_link *at = transport->reading_head; at; before = at, at = at->next_reading) {
        if (at != link)
            continue;
        if (before)
            before->next_reading = link->next_reading;
        else
            transport->reading_head = link->next_reading;
        if (transport->reading_tail == link)
            transport->reading_tail = before;
        return;
    }
}

/* D: one call's worth of the link. */
static bool reads_one(kvt_link *link)
{
    kvt_read_offer offers[KVT_WIRE_READS_MAX];
    sl_span none = {NULL, 0};
    if (!taken_free(link))
        return false; /* an answer has to have a place */
    if (kvt_read_untold_due(&link->untold, &link->reads))
        return taken_tell(link, none, NULL); /* no message of the core took it along */
    uint32_t count = kvt_read_queue_take(&link->reads, offers);
    if (count == 0)
        return false;
    kvt_read_untold_add(&link->untold, offers, count);
    reads_take(link, offers, count);
    if (link->reads.count == 0)
        kvt_core_drained(link->peer);
    return true;
}

/* D: links by turns, so that answers leave, and P offers more, before the next. Answers that P does
 * not take hold up its own reads only. */
static bool reads_progress(kvt_transport *transport)
{
    kvt_link *link = transport->reading_head;
    if (!link)
        return false;
    reading_remove(transport, link);
    bool did = reads_one(link);
    if (link->reads.count > 0 || link->untold.taken.count > 0)
        reading_append(transport, link);
    return did;
}

static ucs_status_t on_read(void *argument, const void *head, size_t head_size, void *data,
                            size_t size, const ucp_am_recv_param_t *param)
{
    kvt_link *link = link_find(argument, param);
    if (!link)
        return UCS_OK;
    if (!link->local.agreed || link->outgoing || is_rendezvous(param) ||
        !kvt_read_queue_put(&link->reads, data, size)) {
        kvt_core_broken(link->peer, SL_INVALID, "an offer to read that was not agreed");
        return UCS_OK;
    }
    reading_append(link->transport, link);
    return UCS_OK;
}

static ucs_status_t on_taken(void *argument, const void *head, size_t head_size, void *data,
                             size_t size, const ucp_am_recv_param_t *param)
{
    kvt_link *link = link_find(argument, param);
    kvt_taken_message taken;
    if (!link || !link->outgoing || is_rendezvous(param) ||
        !kvt_wire_parse_taken(head, head_size, &taken))
        return UCS_OK;
    for (uint32_t i = 0; i < taken.count; i++)
        read_finished(link, taken.place + i, SL_OK);
    if (size > 0)
        kvt_core_message(link->peer, data, size);
    return UCS_OK;
}

/* ---- connections */

static void on_endpoint_error(void *argument, ucp_ep_h endpoint, ucs_status_t status)
{
    kvt_link *link = argument;
    char text[KVT_TEXT_MAX];
    if (link->closing || link->endpoint != endpoint || !link->peer)
        return;
    snprintf(text, sizeof text, "connection lost: %s", ucs_status_string(status));
    kvt_core_broken(link->peer, SL_UNAVAILABLE, text);
}

static ucs_status_t link_create(kvt_link *link, ucp_ep_params_t *params)
{
    params->field_mask |= UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER;
    params->err_mode = UCP_ERR_HANDLING_MODE_PEER;
    params->err_handler.cb = on_endpoint_error;
    params->err_handler.arg = link;
    return ucp_ep_create(link->transport->worker, params, &link->endpoint);
}

static sl_status ucx_connect(kvt_transport *transport, const char *address, kvt_peer *peer,
                             kvt_link **out_link, sl_err *err)
{
    struct sockaddr_storage to;
    socklen_t size;
    if (kvt_tcp_part(address))
        return sl_fail(err, SL_INCOMPATIBLE,
                       "%s receives by tcp, this side sends by UCX: give both the same kv "
                       "transport (nodes: --kv-transport)",
                       address);
    sl_status resolved = sl_net_resolve(address, false, &to, &size, err);
    if (!sl_is_ok(resolved))
        return resolved;
    kvt_link *link = link_take(transport);
    if (!link)
        return sl_fail(err, SL_FULL, "%u connections are open", KVT_PEERS_MAX);
    ucp_ep_params_t params = {.field_mask = UCP_EP_PARAM_FIELD_FLAGS | UCP_EP_PARAM_FIELD_SOCK_ADDR,
                              .flags = UCP_EP_PARAMS_FLAGS_CLIENT_SERVER,
                              .sockaddr = {(const struct sockaddr *)&to, size}};
    link->peer = peer;
    link->outgoing = true;
    ucs_status_t status = link_create(link, &params);
    if (status != UCS_OK) {
        memset(link, 0, sizeof *link);
        return sl_fail(err, SL_UNAVAILABLE, "connect to %s: %s", address,
                       ucs_status_string(status));
    }
    *out_link = link;
    if (transport->local_reads)
        local_say(link, KVT_LOCAL_ASK);
    return sl_ok();
}

static void on_connection(ucp_conn_request_h request, void *argument)
{
    kvt_transport *transport = argument;
    kvt_link *link = link_take(transport);
    kvt_peer *peer = link ? kvt_core_accepted(transport->core, link) : NULL;
    if (!peer) {
        ucp_listener_reject(transport->listener, request);
        return;
    }
    ucp_ep_params_t params = {.field_mask = UCP_EP_PARAM_FIELD_CONN_REQUEST,
                              .conn_request = request};
    link->peer = peer;
    ucs_status_t status = link_create(link, &params);
    if (status != UCS_OK) {
        link->endpoint = NULL; /* the core closes the link; there is nothing to wait for */
        kvt_core_broken(peer, SL_UNAVAILABLE, ucs_status_string(status));
    }
}

static void ucx_close(kvt_link *link)
{
    kvt_transport *transport = link->transport;
    sl_assert(!link->closing);
    link->closing = true;
    link->close_request = NULL;
    transport->closing_count++;
    if (transport->offering == link)
        transport->offering = NULL;
    reading_remove(transport, link);
    kvt_local_withdraw(&link->local);
    for (uint32_t i = 0; i < KVT_WINDOW_READS; i++)
        read_finished(link, i, SL_UNAVAILABLE);
    if (!link->endpoint)
        return;
    ucp_request_param_t param = {.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS,
                                 .flags = UCP_EP_CLOSE_FLAG_FORCE};
    void *request = ucp_ep_close_nbx(link->endpoint, &param);
    if (UCS_PTR_IS_PTR(request))
        link->close_request = request;
}

/* Tells the core of links whose close has ended. */
static bool links_reap(kvt_transport *transport)
{
    bool did = false;
    for (uint32_t i = 0; transport->closing_count > 0 && i < KVT_PEERS_MAX; i++) {
        kvt_link *link = &transport->links[i];
        if (!link->closing)
            continue;
        if (link->close_request) {
            if (ucp_request_check_status(link->close_request) == UCS_INPROGRESS)
                continue;
            ucp_request_free(link->close_request);
        }
        kvt_peer *peer = link->peer;
        transport->closing_count--;
        link->peer = NULL;
        link->endpoint = NULL;
        link->close_request = NULL;
        link->closing = false;
        kvt_core_closed(peer);
        did = true;
    }
    return did;
}

/* ---- sending */

static void on_sent(void *request, ucs_status_t status, void *user_data)
{
    ucp_request_free(request);
    kvt_core_finished(user_data, code_of(status));
}

static void ucx_am_send(kvt_link *link, unsigned id, sl_span head, sl_span data, uint32_t flags,
                        kvt_request *request)
{
    ucp_request_param_t param = {.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK |
                                                 UCP_OP_ATTR_FIELD_USER_DATA |
                                                 UCP_OP_ATTR_FIELD_FLAGS,
                                 .flags = flags | UCP_AM_SEND_FLAG_REPLY,
                                 .cb.send = on_sent,
                                 .user_data = request};
    if (link->closing || !link->endpoint) {
        kvt_core_finished(request, SL_UNAVAILABLE);
        return;
    }
    void *sent =
        ucp_am_send_nbx(link->endpoint, id, head.data, head.size, data.data, data.size, &param);
    if (!UCS_PTR_IS_PTR(sent))
        kvt_core_finished(request, code_of(UCS_PTR_STATUS(sent)));
}

static void ucx_send_message(kvt_link *link, const void *data, size_t size, kvt_request *request)
{
    sl_span none = {NULL, 0}, bytes = {data, size};
    if (link->untold.taken.count > 0 && !link->closing && link->endpoint &&
        taken_tell(link, bytes, request))
        return;
    ucx_am_send(link, AM_MESSAGE, none, bytes, UCP_AM_SEND_FLAG_EAGER, request);
}

static void ucx_send_piece(kvt_link *link, const void *head, size_t head_size, const void *data,
                           uint64_t bytes, kvt_request *request)
{
    sl_span first = {head, head_size}, second = {data, bytes};
    if (link->local.agreed && !link->closing && kvt_read_ring_free(&link->offered)) {
        sl_assert(head_size == KVT_WIRE_PIECE_SIZE);
        read_offer(link, head, data, bytes, request);
        return;
    }
    uint32_t flags =
        bytes <= link->transport->eager_max ? UCP_AM_SEND_FLAG_EAGER : UCP_AM_SEND_FLAG_RNDV;
    ucx_am_send(link, AM_PIECE, first, second, flags, request);
}

/* Pieces that wait to be read take no place in the FIFO of shared memory, only their messages do.
 */
static uint32_t ucx_window(const kvt_link *link, uint32_t open)
{
    return link->local.agreed ? kvt_read_ring_window(&link->offered, open) : KVT_WINDOW_PIECES;
}

/* D: answers may wait for what is read next. */
static bool ucx_more(const kvt_link *link)
{
    return link->reads.count > 0;
}

/* P: what was offered keeps D busy for longer than it takes to wake. To look again meanwhile may
 * take the core from D. */
static bool ucx_patient(const kvt_transport *transport)
{
    return transport->offered > 0;
}

/* ---- receiving */

static ucs_status_t on_message(void *argument, const void *head, size_t head_size, void *data,
                               size_t size, const ucp_am_recv_param_t *param)
{
    kvt_link *link = link_find(argument, param);
    /* A peer that asks us to fetch a message gets no answer but the end of its connection. */
    if (link)
        kvt_core_message(link->peer, data, is_rendezvous(param) ? 0 : size);
    return UCS_OK;
}

static void on_received(void *request, ucs_status_t status, size_t length, void *user_data)
{
    ucp_request_free(request);
    kvt_core_finished(user_data, code_of(status));
}

static ucs_status_t on_piece(void *argument, const void *head, size_t head_size, void *data,
                             size_t size, const ucp_am_recv_param_t *param)
{
    kvt_transport *transport = argument;
    kvt_link *link = link_find(transport, param);
    void *into = NULL;
    kvt_request *fetch = link ? kvt_core_offer(link->peer, head, head_size, size, &into) : NULL;
    if (!fetch)
        return UCS_OK; /* refused: the sender's request ends, no payload moves */
    if (!is_rendezvous(param)) {
        memcpy(into, data, size);
        kvt_core_finished(fetch, SL_OK);
        return UCS_OK;
    }
    ucp_request_param_t receive = {.op_attr_mask =
                                       UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
                                   .cb.recv_am = on_received,
                                   .user_data = fetch};
    void *request = ucp_am_recv_data_nbx(transport->worker, data, into, size, &receive);
    if (!UCS_PTR_IS_PTR(request))
        kvt_core_finished(fetch, code_of(UCS_PTR_STATUS(request)));
    return UCS_OK;
}

static ucs_status_t on_probe(void *argument, const void *head, size_t head_size, void *data,
                             size_t size, const ucp_am_recv_param_t *param)
{
    kvt_transport *transport = argument;
    if (!is_rendezvous(param) && kvt_probe_hear(&transport->probe, data, size))
        kvt_core_probed(transport->core);
    return UCS_OK;
}

/* ---- create, destroy, restart */

/* Ours only where the operator's environment says nothing: it has the last word. */
typedef enum need { NEED_NONE, NEED_SHM, NEED_TCP } need;

static const struct {
    const char *name, *value;
    need need; /* only with such a transport: UCX warns of keys it has no use for */
} ucx_settings[] = {
    {"TLS", "tcp,shm,self", NEED_NONE},
    {"MM_ERROR_HANDLING", "y", NEED_SHM}, /* else shm cannot tell of a peer's death: not used */
    /* A full FIFO of a dead process never drains, and UCX waits for room before it ends the
     * requests of a closed endpoint. By default 64 places, given back 32 at a time: too few for one
     * window of announcements and 8 KiB fragments. Many more places would leave the processor's
     * cache. */
    {"MM_FIFO_SIZE", "512", NEED_SHM},
    {"MM_FIFO_RELEASE_FACTOR", "0.125", NEED_SHM},
    /* By default 8k and 64k: calls of the kernel cost more than the copies then. */
    {"TX_SEG_SIZE", "64k", NEED_TCP},
    {"RX_SEG_SIZE", "256k", NEED_TCP},
    {"CM_REUSEADDR", "y", NEED_NONE},        /* a restarted process takes its port again at once */
    {"RNDV_SCHEME", "get_zcopy", NEED_NONE}, /* the receiver reads: nobody writes into it late */
};

static bool listed(const char *list, const char *const *names)
{
    for (; list && *names; names++) {
        if (strstr(list, *names))
            return true;
    }
    return !list;
}

/* May UCX use such a transport, as its own variable says? */
static bool allowed(need what)
{
    static const char *const shm[] = {"shm", "sm", "mm", "posix", "sysv", "all", NULL};
    static const char *const tcp[] = {"tcp", "all", NULL};
    return what == NEED_NONE || listed(getenv("UCX_TLS"), what == NEED_SHM ? shm : tcp);
}

/* By default it is not used: the operator names it. */
static bool rdma_named(void)
{
    static const char *const rdma[] = {"rc", "ud", "dc", "ib", "all", NULL};
    return getenv("UCX_TLS") && listed(getenv("UCX_TLS"), rdma);
}

/* The library takes fatal signals when it is loaded, and SIGHUP to wait for a debugger: a daemon
 * would hang instead of dying. Gives them back, unless the operator chose. */
void kvt_ucx_signals(void)
{
    static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGHUP};
    if (getenv("UCX_HANDLE_ERRORS") || getenv("UCX_DEBUG_SIGNO"))
        return;
    for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++) {
        struct sigaction action;
        Dl_info owner;
        if (sigaction(signals[i], NULL, &action) != 0 || action.sa_handler == SIG_DFL ||
            action.sa_handler == SIG_IGN)
            continue;
        if (!dladdr((void *)action.sa_sigaction, &owner) || !owner.dli_fname ||
            !strstr(owner.dli_fname, "libucs"))
            continue;
        if (signals[i] == SIGHUP)
            signal(SIGHUP, SIG_DFL);
        else
            ucs_debug_disable_signal(signals[i]); /* what stood there before, a sanitizer's too */
    }
}

typedef struct ucx_pair {
    const char *name, *value;
} ucx_pair;

/* `more` (NULL at its end): over all else. */
static sl_status ucx_context(const ucx_pair *more, uint64_t features, ucp_context_h *out_context,
                             sl_err *err)
{
    ucp_config_t *config;
    ucs_status_t status = ucp_config_read(NULL, NULL, &config);
    if (status != UCS_OK)
        return ucx_fail(err, status, "read the UCX configuration");
    for (size_t i = 0; i < sizeof ucx_settings / sizeof ucx_settings[0]; i++) {
        char variable[64];
        snprintf(variable, sizeof variable, "UCX_%s", ucx_settings[i].name);
        if (!getenv(variable) && allowed(ucx_settings[i].need))
            status = ucp_config_modify(config, ucx_settings[i].name, ucx_settings[i].value);
        if (status != UCS_OK) {
            ucp_config_release(config);
            return ucx_fail(err, status, variable);
        }
    }
    for (; more->name && status == UCS_OK; more++)
        status = ucp_config_modify(config, more->name, more->value);
    if (status != UCS_OK) {
        ucp_config_release(config);
        return ucx_fail(err, status, "set up UCX");
    }
    ucp_params_t params = {.field_mask = UCP_PARAM_FIELD_FEATURES, .features = features};
    status = ucp_init(&params, config, out_context);
    ucp_config_release(config);
    return status == UCS_OK ? sl_ok() : ucx_fail(err, status, "start UCX");
}

static sl_status ucx_contexts(kvt_transport *transport, sl_err *err)
{
    static const ucx_pair none[] = {{NULL, NULL}};
    /* Nobody sends to it: it needs no 8 MB of buffers. */
    static const ucx_pair probe[] = {{"TLS", "posix,sysv"}, {"MM_SEG_SIZE", "256"}, {NULL, NULL}};
    /* A peer's death is an event here, not an error line: the owner says what it did about it. */
    if (!getenv("UCX_LOG_LEVEL"))
        ucs_global_opts_set_value("LOG_LEVEL", "fatal");
    SL_TRY(ucx_context(none, UCP_FEATURE_AM | UCP_FEATURE_WAKEUP, &transport->context, err));
    /* Without it nothing is probed. */
    if (allowed(NEED_SHM) &&
        !sl_is_ok(ucx_context(probe, UCP_FEATURE_AM, &transport->probe.context, NULL)))
        transport->probe.context = NULL;
    return sl_ok();
}

static sl_status ucx_handler(kvt_transport *transport, unsigned id, ucp_am_recv_callback_t cb,
                             sl_err *err)
{
    ucp_am_handler_param_t param = {
        .field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_FLAGS |
                      UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG,
        .id = id,
        .flags = UCP_AM_FLAG_WHOLE_MSG,
        .cb = cb,
        .arg = transport};
    ucs_status_t status = ucp_worker_set_am_recv_handler(transport->worker, &param);
    return status == UCS_OK ? sl_ok() : ucx_fail(err, status, "set a UCX message handler");
}

static sl_status ucx_worker(kvt_transport *transport, sl_err *err)
{
    ucp_worker_params_t params = {.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE,
                                  .thread_mode = UCS_THREAD_MODE_SINGLE};
    ucs_status_t status = ucp_worker_create(transport->context, &params, &transport->worker);
    if (status != UCS_OK)
        return ucx_fail(err, status, "create a UCX worker");
    status = ucp_worker_get_efd(transport->worker, &transport->wait_fd);
    if (status != UCS_OK)
        return ucx_fail(err, status, "get the UCX event descriptor");
    SL_TRY(ucx_handler(transport, AM_MESSAGE, on_message, err));
    SL_TRY(ucx_handler(transport, AM_PIECE, on_piece, err));
    SL_TRY(ucx_handler(transport, AM_LOCAL, on_local, err));
    SL_TRY(ucx_handler(transport, AM_READ, on_read, err));
    SL_TRY(ucx_handler(transport, AM_PROBE, on_probe, err));
    return ucx_handler(transport, AM_TAKEN, on_taken, err);
}

/* Registered once, so that transports that pin memory never do it on the data path. */
static sl_status ucx_map(kvt_transport *transport, const kvt_region *region, sl_err *err)
{
    ucp_mem_map_params_t params = {.field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS |
                                                 UCP_MEM_MAP_PARAM_FIELD_LENGTH,
                                   .address = region->base,
                                   .length = region->bytes};
    ucs_status_t status =
        ucp_mem_map(transport->context, &params, &transport->memory[transport->memory_count]);
    if (status != UCS_OK)
        return ucx_fail(err, status, "register memory with UCX");
    transport->memory_count++;
    return sl_ok();
}

static sl_status ucx_listen(kvt_transport *transport, const kvt_options *options, sl_err *err)
{
    struct sockaddr_storage at;
    socklen_t size;
    SL_TRY(kvt_listen_resolve(options, &at, &size, err));
    ucp_listener_params_t params = {.field_mask = UCP_LISTENER_PARAM_FIELD_SOCK_ADDR |
                                                  UCP_LISTENER_PARAM_FIELD_CONN_HANDLER,
                                    .sockaddr = {(const struct sockaddr *)&at, size},
                                    .conn_handler = {on_connection, transport}};
    ucs_status_t status = ucp_listener_create(transport->worker, &params, &transport->listener);
    if (status != UCS_OK)
        return ucx_fail(err, status, options->listen);
    ucp_listener_attr_t attr = {.field_mask = UCP_LISTENER_ATTR_FIELD_SOCKADDR};
    status = ucp_listener_query(transport->listener, &attr);
    if (status != UCS_OK)
        return ucx_fail(err, status, options->listen);
    sl_net_format((const struct sockaddr *)&attr.sockaddr, transport->address);
    return sl_ok();
}

static void ucx_destroy(kvt_transport *transport)
{
    if (!transport)
        return;
    kvt_probe_reset(&transport->probe);
    if (transport->probe.context)
        ucp_cleanup(transport->probe.context);
    if (transport->listener)
        ucp_listener_destroy(transport->listener);
    if (transport->worker)
        ucp_worker_destroy(transport->worker);
    for (size_t i = 0; i < transport->memory_count; i++)
        ucp_mem_unmap(transport->context, transport->memory[i]);
    if (transport->context)
        ucp_cleanup(transport->context);
    sl_free(transport);
}

static bool ucx_probe(kvt_transport *transport, bool on)
{
    if (!on)
        kvt_probe_reset(&transport->probe);
    return on && kvt_probe_begin(&transport->probe, transport->worker, AM_PROBE);
}

/* The same address; should it be taken for a moment, later. */
static void ucx_listen_again(kvt_transport *transport)
{
    kvt_options again = {.listen = transport->address, .allow_wildcard = true};
    transport->listen_at = SL_NEVER;
    if (transport->address[0] && !sl_is_ok(ucx_listen(transport, &again, NULL)))
        transport->listen_at = sl_now_ns() + LISTEN_AGAIN_MS * SL_MS_NS;
}

/* A new worker. */
static void ucx_restart(kvt_transport *transport)
{
    kvt_probe_reset(&transport->probe);
    if (transport->listener)
        ucp_listener_destroy(transport->listener);
    transport->listener = NULL;
    ucp_worker_destroy(transport->worker); /* ends whatever it still kept */
    transport->worker = NULL;
    transport->wait_fd = -1;
    for (uint32_t i = 0; i < KVT_PEERS_MAX; i++) {
        kvt_link *link = &transport->links[i];
        kvt_peer *peer = link->peer;
        memset(link, 0, sizeof *link);
        if (peer)
            kvt_core_closed(peer);
    }
    transport->closing_count = 0;
    transport->offered = 0;
    sl_status status = ucx_worker(transport, NULL);
    sl_assert(sl_is_ok(status)); /* there was one a moment ago */
    ucx_listen_again(transport);
}

/* ---- progress */

static bool ucx_progress(kvt_transport *transport)
{
    bool did = offers_send(transport);
    for (uint32_t i = 0; i < PROGRESS_MAX && ucp_worker_progress(transport->worker) != 0; i++) {
        did = true;
        /* What was collected is answered at once: the peer's window waits for it. */
        if (kvt_core_collected(transport->core))
            break;
    }
    did |= reads_progress(transport);
    if (transport->closing_count > 0)
        did |= links_reap(transport);
    kvt_probe_progress(&transport->probe);
    if (transport->listen_at != SL_NEVER && sl_now_ns() >= transport->listen_at)
        ucx_listen_again(transport);
    return did;
}

static bool ucx_arm(kvt_transport *transport)
{
    return !transport->offering && !transport->reading_head && !transport->probe.under_way &&
           transport->listen_at == SL_NEVER && ucp_worker_arm(transport->worker) == UCS_OK;
}

static int ucx_wait_fd(const kvt_transport *transport)
{
    return transport->wait_fd;
}

static void ucx_address(const kvt_transport *transport, char out_text[KVT_ADDRESS_MAX])
{
    memcpy(out_text, transport->address, sizeof transport->address);
}

static const kvt_transport_ops ucx_ops = {
    .connect = ucx_connect,
    .close = ucx_close,
    .send_message = ucx_send_message,
    .send_piece = ucx_send_piece,
    .window = ucx_window,
    .more = ucx_more,
    .patient = ucx_patient,
    .progress = ucx_progress,
    .restart = ucx_restart,
    .probe = ucx_probe,
    .arm = ucx_arm,
    .wait_fd = ucx_wait_fd,
    .address = ucx_address,
    .destroy = ucx_destroy,
};

sl_status kvt_ucx_create(const kvt_options *options, kvt_core *core,
                         const kvt_transport_ops **out_ops, kvt_transport **out_transport,
                         sl_err *err)
{
    kvt_transport *transport = sl_alloc(1, sizeof *transport, "kvt transport");
    transport->core = core;
    transport->listen_at = SL_NEVER;
    transport->eager_max = rdma_named() ? EAGER_BYTES_MAX_RDMA : EAGER_BYTES_MAX;
    transport->local_reads = allowed(NEED_SHM) && !options->no_local_reads;
    sl_status status = ucx_contexts(transport, err);
    if (sl_is_ok(status))
        status = ucx_worker(transport, err);
    for (size_t i = 0; i < options->region_count && sl_is_ok(status); i++)
        status = ucx_map(transport, &options->regions[i], err);
    if (sl_is_ok(status) && options->listen)
        status = ucx_listen(transport, options, err);
    if (!sl_is_ok(status)) {
        ucx_destroy(transport);
        return status;
    }
    *out_ops = &ucx_ops;
    *out_transport = transport;
    return sl_ok();
}
