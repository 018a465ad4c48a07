/* P's end of a transfer: offers pieces, resends what D asks for, closes.
 *
 * Runs on the progress thread, but for the producer's log (pieces, commits), which the producer
 * writes and publishes with release stores. Owns the ledger of its pieces; never touches their
 * bytes. */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "kvtransfer/core.h"

static uint32_t send_published(const kvt_send *send)
{
    return atomic_load_explicit(&send->published, memory_order_acquire);
}

void kvt_send_dirty(kvt_send *send)
{
    if (send->dirty)
        return;
    send->dirty = true;
    send->next_dirty = send->core->dirty_sends;
    send->core->dirty_sends = send;
}

static void send_report_later(kvt_send *send)
{
    if (send->reporting)
        return;
    send->reporting = true;
    send->next_report = send->core->report_sends;
    send->core->report_sends = send;
}

void kvt_send_start(kvt_core *core, kvt_send *send)
{
    sl_assert(!core->sends[send->slot]);
    core->sends[send->slot] = send;
    kvt_map_put(&core->sends_by_nonce, send->options.nonce, send);
    atomic_fetch_add_explicit(&core->counters.sends_open, 1, memory_order_relaxed);
    kvt_core_due(core, send->options.deadline);
    sl_err err;
    if (sl_is_ok(kvt_peer_get(core, send->options.address, &send->peer, &err)))
        kvt_peer_ref(send->peer);
    else
        kvt_send_end(send, err.code, err.text);
    kvt_send_dirty(send);
}

void kvt_send_end(kvt_send *send, sl_code code, const char *text)
{
    if (send->state >= KVT_TRANSFER_CLOSING)
        return;
    kvt_transfer_set(&send->state, KVT_TRANSFER_CLOSING);
    atomic_store_explicit(&send->ended, true, memory_order_release);
    send->code = code;
    memset(send->text, 0, sizeof send->text);
    memcpy(send->text, text, strnlen(text, sizeof send->text - 1));
    send->cancel_due = code != SL_OK;
    send->close_due = send->core->now + send->core->close_grace_ns;
    kvt_core_due(send->core, send->close_due);
    kvt_peer_turn_remove(send);
    kvt_send_dirty(send);
}

static void send_commits(kvt_send *send)
{
    uint32_t published = atomic_load_explicit(&send->commits_published, memory_order_acquire);
    while (send->commits_sent < published) {
        kvt_request *request = kvt_peer_message_request(send->peer);
        if (!request)
            return;
        kvt_commit_slot *slot = &send->commits[send->commits_sent % KVT_COMMITS_OPEN_MAX];
        request->kind = KVT_REQUEST_COMMIT;
        request->send = send;
        request->index = send->commits_sent++;
        send->requests_open++;
        send->core->ops->send_message(send->peer->link, slot->bytes, slot->size, request);
    }
}

/* Nothing touches the transfer's memory any more. */
static void send_closed(kvt_send *send)
{
    kvt_core *core = send->core;
    kvt_transfer_set(&send->state, KVT_TRANSFER_CLOSED);
    core->sends[send->slot] = NULL;
    kvt_map_remove(&core->sends_by_nonce, send->options.nonce);
    atomic_fetch_sub_explicit(&core->counters.sends_open, 1, memory_order_relaxed);
    if (send->peer) {
        sl_assert(send->peer->pieces_open >= send->window_pieces);
        send->peer->pieces_open -= send->window_pieces;
        send->peer->window_bytes -= send->window_bytes;
        kvt_peer_unref(send->peer);
        send->peer = NULL;
    }
    send_report_later(send);
}

void kvt_send_service(kvt_send *send)
{
    kvt_peer *peer = send->peer;
    bool ready = peer && peer->state == KVT_PEER_READY && !peer->broken;
    if (send->state == KVT_TRANSFER_OPENING && ready)
        kvt_transfer_set(&send->state, KVT_TRANSFER_ACTIVE);
    if (send->state == KVT_TRANSFER_ACTIVE && ready) {
        if (kvt_send_next_bytes(send) > 0)
            kvt_peer_turn_add(send);
        send_commits(send);
    }
    if (send->state != KVT_TRANSFER_CLOSING)
        return;
    if (send->cancel_due) {
        kvt_message message = {.type = KVT_MESSAGE_CANCEL, .nonce = send->options.nonce};
        if (!ready || kvt_peer_send(peer, &message))
            send->cancel_due = false;
    }
    if (send->requests_open == 0 && !send->cancel_due)
        send_closed(send);
}

void kvt_send_timers(kvt_send *send, sl_time_ns now)
{
    if (send->state < KVT_TRANSFER_CLOSING) {
        if (now < send->options.deadline) {
            kvt_core_due(send->core, send->options.deadline);
            return;
        }
        char text[KVT_TEXT_MAX];
        snprintf(text, sizeof text, "deadline passed with %u of %u pieces verified",
                 send->verified_count, send->piece_count);
        kvt_send_end(send, SL_DEADLINE, text);
        return;
    }
    if (now < send->close_due) {
        kvt_core_due(send->core, send->close_due);
        return;
    }
    send->cancel_due = false;
    kvt_send_dirty(send);
    if (send->requests_open == 0)
        return;
    send->close_due = now + KVT_ABANDON_MS * SL_MS_NS;
    kvt_core_due(send->core, send->close_due);
    if (!send->close_forced) {
        send->close_forced = true;
        kvt_count(&send->core->counters.closes_forced, 1);
        kvt_peer_break(send->peer, SL_UNAVAILABLE,
                       "closed by force: pieces of an ended transfer stayed open");
    } else if (send->peer->closed) {
        /* They only read, and nobody is there to ask for it. */
        kvt_peer_abandon(send->peer, send);
    }
}

uint64_t kvt_send_next_bytes(const kvt_send *send)
{
    if (send->state != KVT_TRANSFER_ACTIVE)
        return 0;
    if (send->retry_head != KVT_NO_INDEX)
        return send->pieces[send->retry_head].bytes;
    if (send->posted < send_published(send))
        return send->pieces[send->posted].bytes;
    return 0;
}

static uint32_t send_take_next(kvt_send *send)
{
    uint32_t ordinal = send->retry_head;
    if (ordinal == KVT_NO_INDEX)
        return send->posted++;
    send->retry_head = send->pieces[ordinal].next;
    if (send->retry_head == KVT_NO_INDEX)
        send->retry_tail = KVT_NO_INDEX;
    return ordinal;
}

void kvt_send_offer(kvt_send *send)
{
    kvt_peer *peer = send->peer;
    kvt_core *core = send->core;
    uint32_t ordinal = send_take_next(send);
    kvt_send_piece *piece = &send->pieces[ordinal];
    kvt_piece_set(&piece->state, KVT_PIECE_ANNOUNCED);
    kvt_piece_set(&piece->state, KVT_PIECE_FETCHING);
    piece->finished = piece->acked = false;

    kvt_request *request = kvt_pool_take(&core->pieces);
    sl_assert(request); /* the windows of all peers together fit into the pool */
    kvt_peer_request_open(peer, request, KVT_REQUEST_PIECE);
    request->send = send;
    request->index = ordinal;
    send->requests_open++;
    if (peer->pieces_open++ == 0) {
        peer->progress_at = core->now;
        kvt_core_due(core, core->now + core->stall_ns);
    }
    peer->window_bytes += piece->bytes;
    send->window_pieces++;
    send->window_bytes += piece->bytes;
    if (peer->window_bytes >
        atomic_load_explicit(&core->counters.window_bytes_peak, memory_order_relaxed))
        atomic_store_explicit(&core->counters.window_bytes_peak, peer->window_bytes,
                              memory_order_relaxed);

    kvt_message head = {.type = KVT_MESSAGE_PIECE, .nonce = send->options.nonce};
    head.piece = (kvt_piece_head){.ordinal = ordinal,
                                  .block = piece->block,
                                  .group = piece->group,
                                  .attempt = piece->attempt,
                                  .bytes = piece->bytes,
                                  .sum = piece->sum};
    size_t size = kvt_wire_pack(&head, request->data, KVT_WIRE_PIECE_SIZE);
    sl_assert(size == KVT_WIRE_PIECE_SIZE);
    core->ops->send_piece(peer->link, request->data, size, piece->data, piece->bytes, request);
}

static void send_list_append(kvt_send *send, uint32_t *head, uint32_t *tail, uint32_t ordinal)
{
    send->pieces[ordinal].next = KVT_NO_INDEX;
    if (*tail == KVT_NO_INDEX)
        *head = ordinal;
    else
        send->pieces[*tail].next = ordinal;
    *tail = ordinal;
}

static const char *const result_texts[KVT_RESULT_COUNT] = {
    [KVT_RESULT_RANGE] = "a piece lies outside the receiver's transfer",
    [KVT_RESULT_SIZE] = "a piece has not the size the receiver expects",
    [KVT_RESULT_DUPLICATE] = "the receiver knows a piece under another number",
    [KVT_RESULT_FULL] = "more pieces in flight than the receiver allows",
};

/* Both the transport and D are done with this fetch of the piece. */
static void send_piece_settle(kvt_send *send, uint32_t ordinal)
{
    kvt_send_piece *piece = &send->pieces[ordinal];
    kvt_peer *peer = send->peer;
    if (!piece->finished || !piece->acked)
        return;
    peer->pieces_open--;
    peer->window_bytes -= piece->bytes;
    send->window_pieces--;
    send->window_bytes -= piece->bytes;
    kvt_peer_dirty(peer);
    if (piece->result == KVT_RESULT_VERIFIED) {
        kvt_piece_set(&piece->state, KVT_PIECE_VERIFIED);
        if (send->options.piece_events) {
            send_list_append(send, &send->report_head, &send->report_tail, ordinal);
            send_report_later(send);
        }
    } else if (piece->result == KVT_RESULT_REFETCH && piece->attempt + 1u < KVT_FETCHES_MAX) {
        kvt_piece_set(&piece->state, KVT_PIECE_RETRY);
        piece->attempt++;
        send_list_append(send, &send->retry_head, &send->retry_tail, ordinal);
        kvt_send_dirty(send);
    } else {
        kvt_piece_set(&piece->state, KVT_PIECE_FAILED);
        bool corrupt = piece->result == KVT_RESULT_REFETCH;
        kvt_send_end(send, corrupt ? SL_CORRUPT : SL_INVALID,
                     corrupt ? "a sum differed twice" : result_texts[piece->result]);
    }
}

void kvt_send_piece_finished(kvt_request *request)
{
    kvt_send *send = request->send;
    uint32_t ordinal = request->index;
    sl_code code = request->code;
    request->peer->progress_at = request->peer->core->now;
    kvt_peer_request_close(request);
    if (!send)
        return; /* abandoned */
    send->requests_open--;
    if (send->state == KVT_TRANSFER_CLOSING) {
        kvt_send_dirty(send);
        return;
    }
    if (code != SL_OK) {
        kvt_send_end(send, code, "a piece could not be sent");
        return;
    }
    send->pieces[ordinal].finished = true;
    send_piece_settle(send, ordinal);
}

void kvt_send_acks(kvt_send *send, const kvt_ack_list *list)
{
    kvt_core *core = send->core;
    for (uint32_t i = 0; i < list->count && send->state == KVT_TRANSFER_ACTIVE; i++) {
        const kvt_piece_ack *entry = &list->entries[i];
        if (entry->ordinal >= send->posted) {
            kvt_send_end(send, SL_INVALID, "the receiver answered a piece never offered");
            return;
        }
        kvt_send_piece *piece = &send->pieces[entry->ordinal];
        if (piece->state != KVT_PIECE_FETCHING || piece->acked || piece->attempt != entry->attempt)
            continue; /* said twice */
        piece->acked = true;
        piece->result = entry->result;
        send->peer->progress_at = core->now;
        if (entry->result == KVT_RESULT_VERIFIED) {
            send->verified_count++;
            kvt_count(&core->counters.pieces_sent, 1);
            kvt_count(&core->counters.bytes_sent, piece->bytes);
            kvt_count(&send->peer->pieces, 1);
            kvt_count(&send->peer->bytes, piece->bytes);
        } else if (entry->result == KVT_RESULT_REFETCH) {
            kvt_count(&core->counters.sum_mismatches, 1);
        }
        send_piece_settle(send, entry->ordinal);
    }
}

/* Acknowledged and let go of by the transport: the payload's place is the producer's again, before
 * the event says so. */
static void send_free_payloads(kvt_send *send)
{
    while (send->commits_done < send->commits_acked) {
        kvt_commit_slot *slot = &send->commits[send->commits_done % KVT_COMMITS_OPEN_MAX];
        if (!slot->finished)
            return;
        sl_free(slot->bytes);
        slot->bytes = NULL;
        atomic_fetch_add_explicit(&send->payload_freed, slot->payload_bytes, memory_order_release);
        send->commits_done++;
        send_report_later(send);
    }
}

void kvt_send_commit_finished(kvt_request *request)
{
    kvt_send *send = request->send;
    sl_code code = request->code;
    uint32_t sequence = request->index;
    kvt_peer_request_close(request);
    if (!send)
        return; /* abandoned */
    send->commits[sequence % KVT_COMMITS_OPEN_MAX].finished = true;
    send->requests_open--;
    if (send->state == KVT_TRANSFER_CLOSING)
        kvt_send_dirty(send);
    else if (code != SL_OK)
        kvt_send_end(send, code, "a commit could not be sent");
    send_free_payloads(send);
}

void kvt_send_commit_acked(kvt_send *send, uint32_t sequence)
{
    if (send->state != KVT_TRANSFER_ACTIVE)
        return;
    if (sequence >= send->commits_sent) {
        kvt_send_end(send, SL_INVALID, "the receiver answered a commit never sent");
        return;
    }
    if (sequence < send->commits_acked)
        return; /* said twice */
    send->commits_acked = sequence + 1;
    send->peer->progress_at = send->core->now;
    send_free_payloads(send);
}

bool kvt_send_report(kvt_send *send)
{
    kvt_core *core = send->core;
    while (send->report_head != KVT_NO_INDEX) {
        const kvt_send_piece *piece = &send->pieces[send->report_head];
        kvt_event_item item = {.type = KVT_EVENT_SEND_PIECE,
                               .send = send,
                               .block = piece->block,
                               .group = piece->group};
        if (!kvt_core_emit(core, &item))
            return false;
        send->report_head = piece->next;
        if (send->report_head == KVT_NO_INDEX)
            send->report_tail = KVT_NO_INDEX;
    }
    while (send->commits_reported < send->commits_done) {
        kvt_commit_slot *slot = &send->commits[send->commits_reported % KVT_COMMITS_OPEN_MAX];
        kvt_event_item item = {.type = KVT_EVENT_SEND_COMMIT,
                               .send = send,
                               .sequence = send->commits_reported,
                               .tokens = slot->tokens,
                               .final = slot->final};
        if (!kvt_core_emit(core, &item))
            return false;
        memset(slot, 0, sizeof *slot);
        send->commits_reported++;
        /* Release: the slot is the producer's again. */
        atomic_store_explicit(&send->commits_freed, send->commits_reported, memory_order_release);
        if (item.final)
            kvt_send_end(send, SL_OK, "");
    }
    if (send->state == KVT_TRANSFER_CLOSED) {
        kvt_event_item item = {.type = KVT_EVENT_SEND_CLOSED, .send = send};
        return kvt_core_emit(core, &item);
    }
    return true;
}
