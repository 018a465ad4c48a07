/* The core: collects what the transport and the owner said, then acts on it in one fixed order.
 *
 * Owns peers, request pools and the lists of open transfers. Runs on the progress thread (or inside
 * kvt_fake_step); never waits, never touches payload. */
#include "kvtransfer/core.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/rng.h"

static uint64_t or_default(uint64_t value, uint64_t fallback)
{
    return value ? value : fallback;
}

void kvt_core_init(kvt_core *core, const kvt_options *options, sl_mailbox *events)
{
    memset(core, 0, sizeof *core);
    memcpy(core->name, options->name, strnlen(options->name, sizeof core->name - 1));
    core->incarnation = sl_random_u64();
    bool tcp = options->transport == KVT_TRANSPORT_TCP;
    core->window_bytes =
        or_default(options->window_bytes, tcp ? KVT_TCP_WINDOW_BYTES : KVT_WINDOW_BYTES);
    core->connect_ns = or_default(options->connect_ns, KVT_CONNECT_MS * SL_MS_NS);
    core->stall_ns = or_default(options->stall_ns, KVT_STALL_MS * SL_MS_NS);
    core->idle_ns = or_default(options->idle_ns, KVT_IDLE_MS * SL_MS_NS);
    core->close_grace_ns = or_default(options->close_grace_ns, KVT_CLOSE_GRACE_MS * SL_MS_NS);
    core->next_due = SL_NEVER;
    core->probe.due = SL_NEVER;
    core->events = events;
    kvt_core_doubt(core); /* does a probe come through at all? */
    kvt_map_init(&core->sends_by_nonce);
    kvt_map_init(&core->recvs_by_nonce);
    pthread_mutex_init(&core->peers_lock, NULL);
    kvt_pool_init(&core->messages, sizeof(kvt_request) + KVT_MESSAGE_MAX, KVT_MESSAGES_TOTAL);
    kvt_pool_init(&core->pieces, sizeof(kvt_request) + KVT_WIRE_PIECE_SIZE, KVT_PIECES_TOTAL);
    kvt_pool_init(&core->fetches, sizeof(kvt_request), KVT_PIECES_TOTAL);
}

void kvt_core_fini(kvt_core *core)
{
    for (uint32_t i = 0; i < KVT_PEERS_MAX; i++) {
        /* Bytes of abandoned commits. Those of others are their send's. */
        for (kvt_request *at = core->peers[i].requests; at; at = at->next_open) {
            if (at->kind == KVT_REQUEST_COMMIT)
                sl_free(at->dest);
        }
    }
    kvt_pool_fini(&core->messages);
    kvt_pool_fini(&core->pieces);
    kvt_pool_fini(&core->fetches);
    pthread_mutex_destroy(&core->peers_lock);
}

kvt_context *kvt_core_context(kvt_core *core)
{
    return core->context;
}

void kvt_core_due(kvt_core *core, sl_time_ns at)
{
    if (at < core->next_due)
        core->next_due = at;
}

bool kvt_core_emit(kvt_core *core, const kvt_event_item *item)
{
    if (sl_mailbox_push(core->events, item))
        return true;
    kvt_count(&core->counters.events_full, 1);
    /* Said before the second try: an owner who drains in between sees it and wakes us. */
    atomic_store(&core->events_waiting, true);
    return sl_mailbox_push(core->events, item);
}

kvt_recv *kvt_core_recv(kvt_core *core, kvt_nonce nonce)
{
    kvt_recv *recv = kvt_map_get(&core->recvs_by_nonce, nonce);
    if (recv)
        return recv;
    /* A ticket may be used before the progress thread has looked at its opening. */
    kvt_context_open_recvs(core->context);
    return kvt_map_get(&core->recvs_by_nonce, nonce);
}

/* ---- from the transport */

void kvt_core_finished(kvt_request *request, sl_code code)
{
    kvt_core *core = request->peer->core;
    if (request->answered)
        return; /* by a restart already */
    request->answered = true;
    request->code = code;
    request->next = NULL;
    if (core->finished_tail)
        core->finished_tail->next = request;
    else
        core->finished_head = request;
    core->finished_tail = request;
}

void kvt_core_read_locally(kvt_core *core)
{
    kvt_count(&core->counters.pieces_local, 1);
}

void kvt_core_drained(kvt_peer *peer)
{
    kvt_core *core = peer->core;
    for (uint32_t i = 0; i < KVT_RECVS_MAX; i++) {
        if (core->recvs[i] && core->recvs[i]->peer == peer && core->recvs[i]->ack_count > 0)
            kvt_recv_dirty(core->recvs[i]);
    }
}

bool kvt_core_collected(const kvt_core *core)
{
    return core->finished_head || core->dirty_sends || core->dirty_recvs || core->dirty_peers;
}

void kvt_core_invalid(kvt_peer *peer, const char *text)
{
    kvt_count(&peer->core->counters.messages_invalid, 1);
    kvt_peer_break(peer, SL_INVALID, text);
}

/* Messages of P, at D. */
static void message_at_receiver(kvt_peer *peer, const kvt_message *message)
{
    kvt_recv *recv = kvt_core_recv(peer->core, message->nonce);
    if (message->type == KVT_MESSAGE_COMMIT) {
        if (recv)
            kvt_recv_commit_arrived(recv, peer, &message->commit);
        else
            kvt_peer_refuse(peer, message->nonce, SL_CONFLICT);
    } else if (message->type == KVT_MESSAGE_CANCEL) {
        /* Only the connection that feeds it may end it. */
        if (!recv || (recv->peer && recv->peer != peer))
            return;
        kvt_recv_end(recv, SL_CANCELLED, "cancelled by the sender");
        recv->revoke_due = false;
    } else {
        kvt_core_invalid(peer, "a message that a sender does not send");
    }
}

/* What D may say about a transfer; anything else is no reason we know. */
static sl_code revoke_code(uint8_t code)
{
    switch (code) {
    case SL_CONFLICT:
    case SL_CORRUPT:
    case SL_DEADLINE:
    case SL_INVALID:
    case SL_UNAVAILABLE:
        return (sl_code)code;
    default:
        return SL_CANCELLED;
    }
}

/* Messages of D, at P. */
static void message_at_sender(kvt_peer *peer, const kvt_message *message)
{
    kvt_send *send = kvt_map_get(&peer->core->sends_by_nonce, message->nonce);
    if (message->type != KVT_MESSAGE_ACK && message->type != KVT_MESSAGE_COMMIT_ACK &&
        message->type != KVT_MESSAGE_REVOKE) {
        kvt_core_invalid(peer, "a message that a receiver does not send");
        return;
    }
    if (!send || send->peer != peer)
        return; /* about a transfer that ended meanwhile */
    if (message->type == KVT_MESSAGE_ACK) {
        kvt_send_acks(send, &message->ack);
    } else if (message->type == KVT_MESSAGE_COMMIT_ACK) {
        kvt_send_commit_acked(send, message->sequence);
    } else if (send->state < KVT_TRANSFER_CLOSING) {
        sl_code code = revoke_code(message->revoke.code);
        char text[KVT_TEXT_MAX + 32];
        if (code == SL_CONFLICT)
            snprintf(text, sizeof text, "the receiver does not know this nonce");
        else
            snprintf(text, sizeof text, "revoked by the receiver: %s", message->revoke.text);
        kvt_send_end(send, code, text);
        send->cancel_due = false;
    }
}

void kvt_core_message(kvt_peer *peer, const void *data, size_t size)
{
    kvt_message message;
    if (peer->broken || peer->state == KVT_PEER_CLOSING || peer->state == KVT_PEER_FREE)
        return;
    if (!kvt_wire_parse(data, size, &message)) {
        kvt_core_invalid(peer, "a message that is not of this protocol");
        return;
    }
    if (message.type == (peer->outgoing ? KVT_MESSAGE_HELLO_ACK : KVT_MESSAGE_HELLO))
        kvt_peer_hello(peer, &message);
    else if (peer->state != KVT_PEER_READY)
        kvt_core_invalid(peer, "a message before the hello");
    else if (peer->outgoing)
        message_at_sender(peer, &message);
    else
        message_at_receiver(peer, &message);
}

kvt_request *kvt_core_offer(kvt_peer *peer, const void *head, size_t head_size, uint64_t bytes,
                            void **out_data)
{
    kvt_message message;
    kvt_core *core = peer->core;
    if (peer->broken || peer->state == KVT_PEER_CLOSING || peer->state == KVT_PEER_FREE) {
        kvt_count(&core->counters.pieces_refused, 1);
        return NULL;
    }
    if (peer->outgoing || peer->state != KVT_PEER_READY ||
        !kvt_wire_parse(head, head_size, &message) || message.type != KVT_MESSAGE_PIECE) {
        kvt_count(&core->counters.pieces_refused, 1);
        kvt_core_invalid(peer, "an offer that is not of this protocol");
        return NULL;
    }
    return kvt_recv_judge(peer, &message, bytes, out_data);
}

/* ---- acting */

static bool run_finished(kvt_core *core)
{
    kvt_request *request = core->finished_head;
    if (!request)
        return false;
    core->finished_head = core->finished_tail = NULL;
    while (request) {
        kvt_request *next = request->next;
        switch (request->kind) {
        case KVT_REQUEST_MESSAGE:
            kvt_peer_message_finished(request);
            break;
        case KVT_REQUEST_COMMIT:
            kvt_send_commit_finished(request);
            break;
        case KVT_REQUEST_PIECE:
            kvt_send_piece_finished(request);
            break;
        default:
            kvt_recv_fetched(request);
        }
        request = next;
    }
    return true;
}

static bool run_kicks(kvt_core *core)
{
    if (atomic_load_explicit(&core->kicks, memory_order_relaxed) == 0 ||
        atomic_exchange(&core->kicks, 0) == 0)
        return false;
    for (uint32_t i = 0; i < KVT_SENDS_MAX; i++) {
        /* Cleared before the service reads the log: a later kick is seen again. */
        if (core->sends[i] && atomic_exchange(&core->sends[i]->kicked, false))
            kvt_send_dirty(core->sends[i]);
    }
    return true;
}

/* Peers whose requests the transport keeps long after their close. */
static bool core_stuck(const kvt_core *core, sl_time_ns *out_since)
{
    sl_time_ns since = SL_NEVER;
    for (uint32_t i = 0; i < KVT_PEERS_MAX; i++) {
        const kvt_peer *peer = &core->peers[i];
        if (peer->state == KVT_PEER_CLOSING && peer->closed && peer->requests_open > 0 &&
            peer->closed_at < since)
            since = peer->closed_at;
    }
    *out_since = since;
    return since != SL_NEVER;
}

static void core_restart(kvt_core *core, const char *text)
{
    for (uint32_t i = 0; i < KVT_PEERS_MAX; i++) {
        kvt_peer_break(&core->peers[i], SL_UNAVAILABLE, text);
        kvt_peer_service(&core->peers[i]);
    }
    core->ops->restart(core->transport);
    for (uint32_t i = 0; i < KVT_PEERS_MAX; i++) {
        for (kvt_request *at = core->peers[i].requests; at; at = at->next_open)
            kvt_core_finished(at, SL_UNAVAILABLE);
    }
    core->restarts++;
    kvt_count(&core->counters.restarts, 1);
    kvt_core_doubt(core);
}

/* A restart costs all connections: at rest, or when pages have been in quarantine for too long. */
static void run_stuck(kvt_core *core)
{
    sl_time_ns since = 0;
    kvt_counters *counters = &core->counters;
    if (!core->ops->restart || !core_stuck(core, &since))
        return;
    uint32_t quarantined = atomic_load_explicit(&counters->recvs_quarantined, memory_order_relaxed);
    uint32_t open = atomic_load_explicit(&counters->sends_open, memory_order_relaxed) +
                    atomic_load_explicit(&counters->recvs_open, memory_order_relaxed);
    bool rest = open == quarantined && core->now >= since + KVT_ABANDON_MS * SL_MS_NS;
    bool long_ago = quarantined > 0 && core->now >= since + KVT_QUARANTINE_MS * SL_MS_NS;
    if (rest || long_ago)
        core_restart(core, "the transport restarts");
    else
        kvt_core_due(core, core->now + 100 * SL_MS_NS);
}

void kvt_core_doubt(kvt_core *core)
{
    core->probe.wanted = true;
    kvt_core_due(core, core->probe.after);
}

void kvt_core_probed(kvt_core *core)
{
    core->probe.heard = true;
    kvt_count(&core->counters.probes_heard, 1);
    core->probe.due = SL_NEVER;
}

/* Where no probe was ever heard, silence says nothing. */
static void probe_unheard(kvt_core *core)
{
    core->probe.due = SL_NEVER;
    core->ops->probe(core->transport, false);
    if (!core->probe.heard)
        return;
    if (core->now < core->probe.restart_after) {
        core->probe.wanted = true;
        return;
    }
    core->probe.restart_after = core->now + KVT_DEAF_MS * SL_MS_NS;
    core_restart(core, "the transport restarts: a process that died had deafened it");
    kvt_count(&core->counters.restarts_deaf, 1); /* who sees it may connect */
}

static void probe_begin(kvt_core *core)
{
    core->probe.wanted = core->probe.late = false;
    core->probe.after = core->now + KVT_PROBE_EACH_MS * SL_MS_NS;
    core->probe.due = core->now + KVT_PROBE_MS * SL_MS_NS;
    if (!core->ops->probe(core->transport, true))
        core->probe.due = SL_NEVER;
}

/* A process that dies, or is stopped, amid a message may leave the transport deaf to all others of
 * this machine: what they have open with us is lost then, and restarting costs only those who come
 * another way. Each connection's end is a reason to look. */
static void run_probe(kvt_core *core)
{
    if (!core->ops->probe || core->stopping)
        return;
    if (core->now >= core->probe.due && core->probe.late) {
        probe_unheard(core);
    } else if (core->now >= core->probe.due) {
        /* We may have been stopped, and the answer waits behind others. */
        core->probe.late = true;
        core->probe.due = core->now + KVT_PROBE_LATE_MS * SL_MS_NS;
    }
    if (core->probe.due == SL_NEVER && core->probe.wanted && core->now >= core->probe.after)
        probe_begin(core);
    if (core->probe.due != SL_NEVER)
        kvt_core_due(core, core->probe.due);
    else if (core->probe.wanted)
        kvt_core_due(core, core->probe.after);
}

static bool run_timers(kvt_core *core)
{
    if (core->now < core->next_due)
        return false;
    core->next_due = SL_NEVER;
    for (uint32_t i = 0; i < KVT_SENDS_MAX; i++) {
        if (core->sends[i])
            kvt_send_timers(core->sends[i], core->now);
    }
    for (uint32_t i = 0; i < KVT_RECVS_MAX; i++) {
        if (core->recvs[i])
            kvt_recv_timers(core->recvs[i], core->now);
    }
    for (uint32_t i = 0; i < KVT_PEERS_MAX; i++)
        kvt_peer_timers(&core->peers[i], core->now);
    run_stuck(core);
    run_probe(core);
    return true;
}

static bool run_dirty(kvt_core *core)
{
    bool did = false;
    while (core->dirty_sends || core->dirty_recvs || core->dirty_peers) {
        did = true;
        kvt_recv *recv = core->dirty_recvs;
        kvt_send *send = core->dirty_sends;
        kvt_peer *peer = core->dirty_peers;
        if (recv) {
            core->dirty_recvs = recv->next_dirty;
            recv->dirty = false;
            kvt_recv_service(recv);
        } else if (send) {
            core->dirty_sends = send->next_dirty;
            send->dirty = false;
            kvt_send_service(send);
        } else {
            core->dirty_peers = peer->next_dirty;
            peer->dirty = false;
            kvt_peer_service(peer);
        }
    }
    return did;
}

/* Tells the owner. What does not fit into the ring stays listed. */
static void run_reports(kvt_core *core)
{
    while (core->report_recvs) {
        kvt_recv *recv = core->report_recvs;
        kvt_recv *next = recv->next_report;
        /* Unlisted first: with CLOSED the owner may release it at once. */
        recv->reporting = false;
        core->report_recvs = next;
        if (!kvt_recv_report(recv)) {
            recv->reporting = true;
            core->report_recvs = recv;
            return;
        }
    }
    while (core->report_sends) {
        kvt_send *send = core->report_sends;
        kvt_send *next = send->next_report;
        send->reporting = false;
        core->report_sends = next;
        if (!kvt_send_report(send)) {
            send->reporting = true;
            core->report_sends = send;
            return;
        }
    }
}

bool kvt_core_run(kvt_core *core, sl_time_ns now)
{
    core->now = now;
    bool did = run_finished(core);
    did |= run_kicks(core);
    did |= run_timers(core);
    do {
        did |= run_dirty(core);
        run_reports(core);
    } while (core->dirty_sends || core->dirty_recvs || core->dirty_peers);
    return did;
}

void kvt_core_stop(kvt_core *core)
{
    core->stopping = true;
    for (uint32_t i = 0; i < KVT_PEERS_MAX; i++)
        kvt_peer_break(&core->peers[i], SL_UNAVAILABLE, "shutting down");
}

bool kvt_core_idle(const kvt_core *core)
{
    return atomic_load_explicit(&core->counters.peers_open, memory_order_relaxed) == 0;
}
