/* Peers: connections with their hello, window, turns and small messages.
 *
 * Owns the peer table of a core. Runs on the progress thread; never blocks, never judges pieces. */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "kvtransfer/core.h"

static void peer_text(kvt_peer *peer, sl_code code, const char *text)
{
    peer->code = code;
    memset(peer->text, 0, sizeof peer->text);
    memcpy(peer->text, text, strnlen(text, sizeof peer->text - 1));
}

static kvt_peer *peer_find_free(kvt_core *core)
{
    for (uint32_t i = 0; i < KVT_PEERS_MAX; i++) {
        if (core->peers[i].state == KVT_PEER_FREE)
            return &core->peers[i];
    }
    return NULL;
}

/* A fresh object in a free slot. The atomics that others read are zeroed one by one. */
static void peer_init(kvt_core *core, kvt_peer *peer, bool outgoing, const char *address)
{
    sl_assert(peer->requests_open == 0 && !peer->dirty && !peer->turn);
    pthread_mutex_lock(&core->peers_lock);
    memset(peer->name, 0, sizeof peer->name);
    peer->outgoing = outgoing;
    peer->listed = true;
    pthread_mutex_unlock(&core->peers_lock);
    atomic_store_explicit(&peer->transfers, 0, memory_order_relaxed);
    atomic_store_explicit(&peer->pieces, 0, memory_order_relaxed);
    atomic_store_explicit(&peer->bytes, 0, memory_order_relaxed);
    peer->core = core;
    peer->link = NULL;
    peer->closed = peer->broken = peer->starved = false;
    peer->hello_due = outgoing;
    memset(peer->address, 0, sizeof peer->address);
    memcpy(peer->address, address, strnlen(address, sizeof peer->address - 1));
    peer->since = peer->progress_at = core->now;
    peer->window_bytes = 0;
    peer->pieces_open = peer->fetches_open = peer->messages_open = peer->refusals = 0;
    kvt_peer_set(&peer->state, outgoing ? KVT_PEER_CONNECTING : KVT_PEER_ACCEPTED);
    atomic_fetch_add_explicit(&core->counters.peers_open, 1, memory_order_relaxed);
    kvt_core_due(core, core->now + core->connect_ns);
    kvt_peer_dirty(peer);
}

static void peer_free(kvt_peer *peer)
{
    kvt_core *core = peer->core;
    kvt_peer_set(&peer->state, KVT_PEER_FREE);
    pthread_mutex_lock(&core->peers_lock);
    peer->listed = false;
    pthread_mutex_unlock(&core->peers_lock);
    peer->link = NULL;
    atomic_fetch_sub_explicit(&core->counters.peers_open, 1, memory_order_relaxed);
}

/* The table is full: the outgoing peer that rests longest makes room for a later call. */
static void peer_evict(kvt_core *core)
{
    kvt_peer *oldest = NULL;
    for (uint32_t i = 0; i < KVT_PEERS_MAX; i++) {
        kvt_peer *peer = &core->peers[i];
        if (peer->state == KVT_PEER_READY && peer->outgoing && peer->transfers == 0 &&
            (!oldest || peer->since < oldest->since))
            oldest = peer;
    }
    if (oldest)
        kvt_peer_break(oldest, SL_UNAVAILABLE, "closed to make room");
}

sl_status kvt_peer_get(kvt_core *core, const char *address, kvt_peer **out_peer, sl_err *err)
{
    if (core->stopping)
        return sl_fail(err, SL_UNAVAILABLE, "shutting down");
    for (uint32_t i = 0; i < KVT_PEERS_MAX; i++) {
        kvt_peer *peer = &core->peers[i];
        if (peer->outgoing && !peer->broken &&
            (peer->state == KVT_PEER_CONNECTING || peer->state == KVT_PEER_READY) &&
            strcmp(peer->address, address) == 0) {
            *out_peer = peer;
            return sl_ok();
        }
    }
    kvt_peer *peer = peer_find_free(core);
    if (!peer) {
        peer_evict(core);
        return sl_fail(err, SL_FULL, "%u connections are open", KVT_PEERS_MAX);
    }
    peer_init(core, peer, true, address);
    sl_status status = core->ops->connect(core->transport, address, peer, &peer->link, err);
    if (!sl_is_ok(status)) {
        peer_free(peer);
        return status;
    }
    *out_peer = peer;
    return sl_ok();
}

kvt_peer *kvt_core_accepted(kvt_core *core, kvt_link *link)
{
    kvt_peer *peer = core->stopping ? NULL : peer_find_free(core);
    if (!peer)
        return NULL;
    peer_init(core, peer, false, "");
    peer->link = link;
    return peer;
}

void kvt_peer_ref(kvt_peer *peer)
{
    atomic_fetch_add_explicit(&peer->transfers, 1, memory_order_relaxed);
}

void kvt_peer_unref(kvt_peer *peer)
{
    uint32_t before = atomic_fetch_sub_explicit(&peer->transfers, 1, memory_order_relaxed);
    sl_assert(before > 0);
    peer->since = peer->core->now;
    kvt_core_due(peer->core, peer->since + peer->core->idle_ns);
    kvt_peer_dirty(peer);
}

void kvt_peer_dirty(kvt_peer *peer)
{
    if (peer->dirty)
        return;
    peer->dirty = true;
    peer->next_dirty = peer->core->dirty_peers;
    peer->core->dirty_peers = peer;
}

void kvt_peer_break(kvt_peer *peer, sl_code code, const char *text)
{
    if (peer->broken || peer->state == KVT_PEER_FREE || peer->state == KVT_PEER_CLOSING)
        return;
    peer_text(peer, code, text);
    peer->broken = true;
    kvt_peer_dirty(peer);
}

void kvt_core_broken(kvt_peer *peer, sl_code code, const char *text)
{
    kvt_peer_break(peer, code, text);
}

void kvt_core_closed(kvt_peer *peer)
{
    sl_assert(peer->state == KVT_PEER_CLOSING);
    peer->closed = true;
    peer->closed_at = peer->core->now;
    if (peer->requests_open > 0)
        kvt_core_due(peer->core, peer->closed_at + KVT_ABANDON_MS * SL_MS_NS);
    kvt_peer_dirty(peer);
}

/* Everybody on the connection looks again: it became ready, got a place, or closed. */
static void peer_wake_transfers(kvt_peer *peer)
{
    kvt_core *core = peer->core;
    for (uint32_t i = 0; i < KVT_SENDS_MAX; i++) {
        if (core->sends[i] && core->sends[i]->peer == peer)
            kvt_send_dirty(core->sends[i]);
    }
    for (uint32_t i = 0; i < KVT_RECVS_MAX; i++) {
        if (core->recvs[i] && core->recvs[i]->peer == peer)
            kvt_recv_dirty(core->recvs[i]);
    }
}

static void peer_close(kvt_peer *peer)
{
    kvt_core *core = peer->core;
    peer->broken = false;
    kvt_peer_set(&peer->state, KVT_PEER_CLOSING);
    for (uint32_t i = 0; i < KVT_SENDS_MAX; i++) {
        if (core->sends[i] && core->sends[i]->peer == peer)
            kvt_send_end(core->sends[i], peer->code, peer->text);
    }
    for (uint32_t i = 0; i < KVT_RECVS_MAX; i++) {
        if (core->recvs[i] && core->recvs[i]->peer == peer)
            kvt_recv_end(core->recvs[i], peer->code, peer->text);
    }
    core->ops->close(peer->link);
    kvt_core_doubt(core);
}

void kvt_peer_release(kvt_peer *peer)
{
    if (peer->state == KVT_PEER_CLOSING && peer->closed && peer->requests_open == 0 &&
        peer->transfers == 0)
        peer_free(peer);
}

static void peer_send_hello(kvt_peer *peer)
{
    kvt_message message = {.type = peer->outgoing ? KVT_MESSAGE_HELLO : KVT_MESSAGE_HELLO_ACK};
    message.hello.version = KVT_WIRE_VERSION;
    message.hello.incarnation = peer->core->incarnation;
    memcpy(message.hello.name, peer->core->name, sizeof message.hello.name);
    if (kvt_peer_send(peer, &message))
        peer->hello_due = false;
}

static void peer_send_refusals(kvt_peer *peer)
{
    while (peer->refusals > 0) {
        uint32_t last = peer->refusals - 1;
        kvt_message message = {.type = KVT_MESSAGE_REVOKE, .nonce = peer->refusal[last].nonce};
        message.revoke.code = (uint8_t)peer->refusal[last].code;
        if (!kvt_peer_send(peer, &message))
            return;
        peer->refusals--;
    }
}

uint32_t kvt_peer_window(const kvt_peer *peer, uint32_t open)
{
    const kvt_transport_ops *ops = peer->core->ops;
    return ops->window ? ops->window(peer->link, open) : KVT_WINDOW_PIECES;
}

/* Offers pieces by turns, one a send, while the window lets it. */
static void peer_offer(kvt_peer *peer)
{
    uint64_t limit = peer->core->window_bytes;
    while (peer->turn && peer->pieces_open < kvt_peer_window(peer, peer->pieces_open)) {
        kvt_send *send = peer->turn;
        uint64_t bytes = kvt_send_next_bytes(send);
        if (bytes == 0) {
            kvt_peer_turn_remove(send);
            continue;
        }
        /* A piece larger than the window goes alone. */
        if (peer->pieces_open > 0 && peer->window_bytes + bytes > limit)
            return;
        peer->turn = send->next_turn;
        kvt_send_offer(send);
    }
}

void kvt_peer_service(kvt_peer *peer)
{
    if (peer->state == KVT_PEER_FREE)
        return;
    if (peer->broken && peer->state != KVT_PEER_CLOSING)
        peer_close(peer);
    if (peer->state == KVT_PEER_CLOSING) {
        if (peer->closed)
            peer_wake_transfers(peer);
        kvt_peer_release(peer);
        return;
    }
    if (peer->hello_due)
        peer_send_hello(peer);
    if (peer->state != KVT_PEER_READY)
        return;
    peer_send_refusals(peer);
    peer_offer(peer);
}

void kvt_peer_timers(kvt_peer *peer, sl_time_ns now)
{
    kvt_core *core = peer->core;
    sl_time_ns due = SL_NEVER;
    const char *text = "";
    bool forced = true;
    if (peer->broken || peer->state == KVT_PEER_FREE || peer->state == KVT_PEER_CLOSING)
        return;
    if (peer->state != KVT_PEER_READY) {
        due = peer->since + core->connect_ns;
        text = "no answer within the connect deadline";
    } else if (peer->pieces_open + peer->fetches_open > 0) {
        due = peer->progress_at + core->stall_ns;
        text = "stalled: pieces in flight and none finished";
    } else if (peer->transfers == 0) {
        /* The side that connected closes; the other only when that one forgot. */
        due = peer->since + core->idle_ns * (peer->outgoing ? 1 : 2);
        text = "idle";
        forced = false;
    }
    if (now < due) {
        kvt_core_due(core, due);
        return;
    }
    if (forced)
        kvt_count(&core->counters.closes_forced, 1);
    kvt_peer_break(peer, SL_UNAVAILABLE, text);
}

void kvt_peer_turn_add(kvt_send *send)
{
    kvt_peer *peer = send->peer;
    kvt_peer_dirty(peer);
    if (send->in_ring)
        return;
    send->in_ring = true;
    if (!peer->turn) {
        peer->turn = send->next_turn = send->prev_turn = send;
        return;
    }
    /* At the end of the round: before the one whose turn it is. */
    send->next_turn = peer->turn;
    send->prev_turn = peer->turn->prev_turn;
    send->prev_turn->next_turn = send;
    send->next_turn->prev_turn = send;
}

void kvt_peer_turn_remove(kvt_send *send)
{
    if (!send->in_ring)
        return;
    kvt_peer *peer = send->peer;
    send->in_ring = false;
    if (send->next_turn == send) {
        peer->turn = NULL;
        return;
    }
    send->prev_turn->next_turn = send->next_turn;
    send->next_turn->prev_turn = send->prev_turn;
    if (peer->turn == send)
        peer->turn = send->next_turn;
}

static kvt_pool *request_pool(kvt_core *core, uint8_t kind)
{
    switch (kind) {
    case KVT_REQUEST_PIECE:
        return &core->pieces;
    case KVT_REQUEST_FETCH:
        return &core->fetches;
    default:
        return &core->messages;
    }
}

void kvt_peer_request_open(kvt_peer *peer, kvt_request *request, kvt_request_kind kind)
{
    memset(request, 0, sizeof *request);
    request->peer = peer;
    request->kind = (uint8_t)kind;
    request->next_open = peer->requests;
    if (peer->requests)
        peer->requests->prev_open = request;
    peer->requests = request;
    peer->requests_open++;
    atomic_fetch_add_explicit(&peer->core->counters.requests_open, 1, memory_order_relaxed);
}

void kvt_peer_request_close(kvt_request *request)
{
    kvt_peer *peer = request->peer;
    kvt_core *core = peer->core;
    sl_assert(peer->requests_open > 0);
    peer->requests_open--;
    if (request->next_open)
        request->next_open->prev_open = request->prev_open;
    if (request->prev_open)
        request->prev_open->next_open = request->next_open;
    else
        peer->requests = request->next_open;
    atomic_fetch_sub_explicit(&core->counters.requests_open, 1, memory_order_relaxed);
    if (request->kind == KVT_REQUEST_MESSAGE || request->kind == KVT_REQUEST_COMMIT) {
        peer->messages_open--;
        if (request->kind == KVT_REQUEST_COMMIT)
            sl_free(request->dest);
        if (peer->starved) {
            peer->starved = false;
            peer_wake_transfers(peer);
            kvt_peer_dirty(peer);
        }
    }
    if (peer->state == KVT_PEER_CLOSING)
        kvt_peer_dirty(peer);
    kvt_pool_give(request_pool(core, request->kind), request);
}

void kvt_peer_abandon(kvt_peer *peer, kvt_send *send)
{
    for (kvt_request *request = peer->requests; request; request = request->next_open) {
        if (request->send != send)
            continue;
        if (request->kind == KVT_REQUEST_COMMIT) {
            kvt_commit_slot *slot = &send->commits[request->index % KVT_COMMITS_OPEN_MAX];
            request->dest = slot->bytes;
            slot->bytes = NULL;
        }
        request->send = NULL;
        send->requests_open--;
        kvt_count(&peer->core->counters.requests_abandoned, 1);
    }
    sl_assert(send->requests_open == 0);
}

kvt_request *kvt_peer_message_request(kvt_peer *peer)
{
    kvt_request *request = NULL;
    if (peer->messages_open < KVT_MESSAGES_MAX)
        request = kvt_pool_take(&peer->core->messages);
    if (!request) {
        peer->starved = true;
        return NULL;
    }
    kvt_peer_request_open(peer, request, KVT_REQUEST_MESSAGE);
    peer->messages_open++;
    return request;
}

bool kvt_peer_send(kvt_peer *peer, const kvt_message *message)
{
    kvt_request *request = kvt_peer_message_request(peer);
    if (!request)
        return false;
    size_t size = kvt_wire_pack(message, request->data, KVT_MESSAGE_MAX);
    sl_assert(size > 0);
    peer->core->ops->send_message(peer->link, request->data, size, request);
    return true;
}

void kvt_peer_message_finished(kvt_request *request)
{
    if (request->code != SL_OK)
        kvt_peer_break(request->peer, request->code, "a message could not be sent");
    kvt_peer_request_close(request);
}

void kvt_peer_hello(kvt_peer *peer, const kvt_message *message)
{
    kvt_core *core = peer->core;
    if (peer->state != KVT_PEER_CONNECTING && peer->state != KVT_PEER_ACCEPTED)
        return;
    if (!peer->outgoing)
        peer->hello_due = true; /* the answer, also to another version: it says ours */
    kvt_peer_dirty(peer);
    if (message->hello.version != KVT_WIRE_VERSION) {
        char text[KVT_TEXT_MAX];
        snprintf(text, sizeof text, "the peer speaks protocol version %u, this side %u",
                 message->hello.version, KVT_WIRE_VERSION);
        if (peer->outgoing)
            kvt_peer_break(peer, SL_INCOMPATIBLE, text);
        return;
    }
    pthread_mutex_lock(&core->peers_lock);
    memcpy(peer->name, message->hello.name, sizeof peer->name);
    pthread_mutex_unlock(&core->peers_lock);
    peer->incarnation = message->hello.incarnation;
    peer->since = core->now;
    kvt_peer_set(&peer->state, KVT_PEER_READY);
    kvt_core_due(core, core->now + core->idle_ns);
    peer_wake_transfers(peer);
}

void kvt_peer_refuse(kvt_peer *peer, kvt_nonce nonce, sl_code code)
{
    for (uint32_t i = 0; i < peer->refusals; i++) {
        if (kvt_nonce_equal(peer->refusal[i].nonce, nonce))
            return;
    }
    if (peer->refusals == KVT_REFUSALS_MAX)
        return; /* the next announcement of that nonce asks again */
    peer->refusal[peer->refusals].nonce = nonce;
    peer->refusal[peer->refusals++].code = code;
    kvt_peer_dirty(peer);
}
