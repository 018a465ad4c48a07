/* D's end of a transfer: judges announcements, takes pieces into its pages, verifies, closes.
 *
 * Runs on the progress thread. Owns the ledger of its pieces; the pages are the owner's and are
 * written only by fetches this file admitted. CLOSED is reached only when none is open. */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/fault.h"
#include "base/sum.h"
#include "kvtransfer/core.h"

void kvt_recv_dirty(kvt_recv *recv)
{
    if (recv->dirty)
        return;
    recv->dirty = true;
    recv->next_dirty = recv->core->dirty_recvs;
    recv->core->dirty_recvs = recv;
}

static void recv_report_later(kvt_recv *recv)
{
    if (recv->reporting)
        return;
    recv->reporting = true;
    recv->next_report = recv->core->report_recvs;
    recv->core->report_recvs = recv;
}

static bool bit_get(const uint64_t *bits, uint32_t index)
{
    return (bits[index / 64] >> (index % 64) & 1) != 0;
}

static void bit_set(uint64_t *bits, uint32_t index)
{
    bits[index / 64] |= 1ull << (index % 64);
}

void kvt_recv_start(kvt_core *core, kvt_recv *recv)
{
    sl_assert(!core->recvs[recv->slot]);
    core->recvs[recv->slot] = recv;
    kvt_map_put(&core->recvs_by_nonce, recv->options.nonce, recv);
    atomic_fetch_add_explicit(&core->counters.recvs_open, 1, memory_order_relaxed);
    kvt_core_due(core, recv->options.deadline);
}

/* Commits that were not reported yet will not be: the transfer ended otherwise. */
static void recv_drop_commits(kvt_recv *recv)
{
    for (uint32_t i = 0; i < KVT_COMMITS_OPEN_MAX; i++) {
        sl_free(recv->commits[i].payload);
        recv->commits[i] = (kvt_recv_commit){.present = false};
    }
    recv->commits_verified = recv->commits_reported;
}

void kvt_recv_end(kvt_recv *recv, sl_code code, const char *text)
{
    if (recv->state >= KVT_TRANSFER_CLOSING)
        return;
    kvt_transfer_set(&recv->state, KVT_TRANSFER_CLOSING);
    recv->code = code;
    memset(recv->text, 0, sizeof recv->text);
    memcpy(recv->text, text, strnlen(text, sizeof recv->text - 1));
    recv->revoke_due = code != SL_OK && recv->peer;
    recv->ack_count = code == SL_OK ? recv->ack_count : 0;
    recv->close_due = recv->core->now + recv->core->close_grace_ns;
    kvt_core_due(recv->core, recv->close_due);
    recv_drop_commits(recv);
    kvt_recv_dirty(recv);
}

/* The first connection that names the nonce has it; false: another one had it before. */
static bool recv_bind(kvt_recv *recv, kvt_peer *peer)
{
    if (recv->peer)
        return recv->peer == peer;
    recv->peer = peer;
    kvt_peer_ref(peer);
    kvt_transfer_set(&recv->state, KVT_TRANSFER_ACTIVE);
    return true;
}

static void recv_ack(kvt_recv *recv, uint32_t ordinal, uint8_t attempt, kvt_piece_result result)
{
    if (recv->ack_count == KVT_ACKS_WAITING) {
        kvt_recv_end(recv, SL_INVALID, "the sender ignores the window");
        return;
    }
    recv->acks[recv->ack_count++] =
        (kvt_piece_ack){.ordinal = ordinal, .result = (uint8_t)result, .attempt = attempt};
    kvt_recv_dirty(recv);
}

/* Answers go together while more of its fetches are about to end: on tcp each message costs as
 * much as 10 KB of payload, and any may have to wake P. P's window must not run dry meanwhile, so a
 * quarter of it is the most they wait for. */
static bool recv_hold_acks(const kvt_recv *recv)
{
    const kvt_transport_ops *ops = recv->core->ops;
    bool more = recv->requests_open > 0 || (ops->more && ops->more(recv->peer->link));
    return recv->state == KVT_TRANSFER_ACTIVE && more &&
           recv->ack_count < kvt_peer_window(recv->peer, 0) / 4 &&
           recv->ack_bytes < recv->core->window_bytes / 4;
}

static bool recv_flush_acks(kvt_recv *recv)
{
    if (recv_hold_acks(recv))
        return true;
    recv->ack_bytes = 0;
    while (recv->ack_count > 0) {
        kvt_message message = {.type = KVT_MESSAGE_ACK, .nonce = recv->options.nonce};
        uint32_t count = recv->ack_count < KVT_WIRE_ACKS_MAX ? recv->ack_count : KVT_WIRE_ACKS_MAX;
        message.ack.count = count;
        memcpy(message.ack.entries, recv->acks, count * sizeof recv->acks[0]);
        if (!kvt_peer_send(recv->peer, &message))
            return false;
        recv->ack_count -= count;
        memmove(recv->acks, recv->acks + count, recv->ack_count * sizeof recv->acks[0]);
    }
    return true;
}

static bool recv_flush_commit_ack(kvt_recv *recv)
{
    if (recv->commits_acked == recv->commits_reported)
        return true;
    kvt_message message = {.type = KVT_MESSAGE_COMMIT_ACK, .nonce = recv->options.nonce};
    message.sequence = recv->commits_reported - 1;
    if (!kvt_peer_send(recv->peer, &message))
        return false;
    recv->commits_acked = recv->commits_reported;
    return true;
}

static bool recv_flush_revoke(kvt_recv *recv)
{
    if (!recv->revoke_due)
        return true;
    kvt_message message = {.type = KVT_MESSAGE_REVOKE, .nonce = recv->options.nonce};
    message.revoke.code = (uint8_t)recv->code;
    memcpy(message.revoke.text, recv->text, sizeof recv->text);
    if (!kvt_peer_send(recv->peer, &message))
        return false;
    recv->revoke_due = false;
    return true;
}

/* In order of sequence: every piece named must be verified. */
static void recv_verify_commits(kvt_recv *recv)
{
    while (recv->state == KVT_TRANSFER_ACTIVE) {
        kvt_recv_commit *commit = &recv->commits[recv->commits_verified % KVT_COMMITS_OPEN_MAX];
        if (!commit->present || commit->sequence != recv->commits_verified ||
            commit->pieces > recv->watermark)
            return;
        if (commit->tokens < recv->tokens) {
            kvt_recv_end(recv, SL_INVALID, "a commit names fewer tokens than the one before");
            return;
        }
        recv->tokens = commit->tokens;
        recv->commits_verified++;
        recv_report_later(recv);
    }
}

static void recv_closed(kvt_recv *recv)
{
    kvt_core *core = recv->core;
    sl_assert(recv->requests_open == 0);
    atomic_fetch_sub_explicit(&core->counters.recvs_quarantined, recv->quarantined,
                              memory_order_relaxed);
    kvt_transfer_set(&recv->state, KVT_TRANSFER_CLOSED);
    core->recvs[recv->slot] = NULL;
    kvt_map_remove(&core->recvs_by_nonce, recv->options.nonce);
    atomic_fetch_sub_explicit(&core->counters.recvs_open, 1, memory_order_relaxed);
    if (recv->peer)
        kvt_peer_unref(recv->peer);
    recv->peer = NULL;
    recv_report_later(recv);
}

void kvt_recv_service(kvt_recv *recv)
{
    kvt_peer *peer = recv->peer;
    bool ready = peer && peer->state == KVT_PEER_READY && !peer->broken;
    recv_verify_commits(recv);
    bool flushed = true;
    if (ready)
        flushed = recv_flush_acks(recv) && recv_flush_commit_ack(recv) && recv_flush_revoke(recv);
    if (recv->state != KVT_TRANSFER_CLOSING || recv->requests_open > 0)
        return;
    /* A fetch that a forced close ended has stopped writing only when the connection is gone. */
    bool gone = !peer || peer->closed;
    if ((ready && flushed) || gone)
        recv_closed(recv);
}

void kvt_recv_timers(kvt_recv *recv, sl_time_ns now)
{
    if (recv->state < KVT_TRANSFER_CLOSING) {
        if (now < recv->options.deadline) {
            kvt_core_due(recv->core, recv->options.deadline);
            return;
        }
        char text[KVT_TEXT_MAX];
        snprintf(text, sizeof text, "deadline passed with %u of %u pieces verified",
                 recv->verified_count, recv->piece_count);
        kvt_recv_end(recv, SL_DEADLINE, text);
        return;
    }
    if (now < recv->close_due) {
        kvt_core_due(recv->core, recv->close_due);
        return;
    }
    /* Open fetches, or messages that do not leave: either way the peer does not move. */
    recv->close_due = SL_NEVER;
    kvt_recv_dirty(recv);
    if (recv->peer && recv->close_forced) {
        recv->quarantined = recv->requests_open > 0;
        atomic_fetch_add_explicit(&recv->core->counters.recvs_quarantined, recv->quarantined,
                                  memory_order_relaxed);
    } else if (recv->peer) {
        recv->close_forced = true;
        recv->close_due = now + KVT_ABANDON_MS * SL_MS_NS;
        kvt_core_due(recv->core, recv->close_due);
        kvt_count(&recv->core->counters.closes_forced, 1);
        kvt_peer_break(recv->peer, SL_UNAVAILABLE,
                       "closed by force: fetches of an ended transfer stayed open");
    }
}

/* ---- announcements */

static kvt_request *judge_refuse(kvt_recv *recv, const kvt_piece_head *head,
                                 kvt_piece_result result)
{
    kvt_count(&recv->core->counters.pieces_refused, 1);
    recv_ack(recv, head->ordinal, head->attempt, result);
    return NULL;
}

static kvt_request *judge_ignore(kvt_core *core)
{
    kvt_count(&core->counters.pieces_refused, 1);
    return NULL;
}

static uint64_t recv_index(const kvt_recv *recv, uint32_t block, uint32_t group)
{
    return (uint64_t)(block - recv->options.first_block) * recv->options.group_count + group;
}

static kvt_request *recv_admit(kvt_recv *recv, const kvt_piece_head *head, void **out_data)
{
    kvt_core *core = recv->core;
    kvt_peer *peer = recv->peer;
    uint64_t index = recv_index(recv, head->block, head->group);
    kvt_request *request = kvt_pool_take(&core->fetches);
    sl_assert(request && index < recv->piece_count);
    kvt_recv_piece *piece = &recv->pieces[index];
    kvt_piece_set(&piece->state, KVT_PIECE_ANNOUNCED);
    kvt_piece_set(&piece->state, KVT_PIECE_FETCHING);
    piece->ordinal = head->ordinal;
    bit_set(recv->seen, head->ordinal);
    kvt_peer_request_open(peer, request, KVT_REQUEST_FETCH);
    uint32_t row = head->block - recv->options.first_block;
    request->recv = recv;
    request->index = (uint32_t)index;
    request->bytes = head->bytes;
    request->sum = head->sum;
    request->attempt = head->attempt;
    request->dest = (uint8_t *)recv->options.pages[row] + recv->options.slices[head->group].offset;
    recv->requests_open++;
    if (peer->fetches_open++ == 0) {
        peer->progress_at = core->now;
        kvt_core_due(core, core->now + core->stall_ns);
    }
    *out_data = request->dest;
    return request;
}

kvt_request *kvt_recv_judge(kvt_peer *peer, const kvt_message *message, uint64_t bytes,
                            void **out_data)
{
    kvt_core *core = peer->core;
    const kvt_piece_head *head = &message->piece;
    kvt_recv *recv = kvt_core_recv(core, message->nonce);
    if (!recv) {
        kvt_peer_refuse(peer, message->nonce, SL_CONFLICT);
        return judge_ignore(core);
    }
    if (recv->state >= KVT_TRANSFER_CLOSING)
        return judge_ignore(core); /* its end is being told already */
    if (!recv_bind(recv, peer)) {
        kvt_peer_refuse(peer, message->nonce, SL_CONFLICT);
        return judge_ignore(core);
    }
    const kvt_recv_options *options = &recv->options;
    if (head->block < options->first_block ||
        head->block - options->first_block >= options->block_count ||
        head->group >= options->group_count || head->ordinal >= recv->piece_count)
        return judge_refuse(recv, head, KVT_RESULT_RANGE);
    if (head->bytes != bytes || bytes != options->slices[head->group].bytes)
        return judge_refuse(recv, head, KVT_RESULT_SIZE);
    const kvt_recv_piece *piece = &recv->pieces[recv_index(recv, head->block, head->group)];
    if (piece->state == KVT_PIECE_ABSENT) {
        if (bit_get(recv->seen, head->ordinal))
            return judge_refuse(recv, head, KVT_RESULT_DUPLICATE);
    } else if (piece->ordinal != head->ordinal) {
        return judge_refuse(recv, head, KVT_RESULT_DUPLICATE);
    } else if (piece->state == KVT_PIECE_VERIFIED) {
        return judge_refuse(recv, head, KVT_RESULT_VERIFIED); /* the first answer may be lost */
    } else if (piece->state != KVT_PIECE_RETRY || head->attempt != piece->attempt) {
        return judge_ignore(core); /* the same announcement twice */
    }
    if (peer->fetches_open >= kvt_peer_window(peer, 0))
        return judge_refuse(recv, head, KVT_RESULT_FULL);
    return recv_admit(recv, head, out_data);
}

/* ---- arrivals */

static bool recv_sum_wanted(const kvt_recv *recv, uint64_t tweak)
{
    switch (recv->options.sums) {
    case KVT_SUMS_OFF:
        return false;
    case KVT_SUMS_SAMPLE:
        return ((tweak ^ recv->options.sum_key) * 0x9e3779b97f4a7c15ull) >> 60 == 0;
    default:
        return true;
    }
}

static bool recv_sum_right(const kvt_recv *recv, const kvt_request *request)
{
    uint32_t groups = recv->options.group_count;
    uint32_t block = recv->options.first_block + request->index / groups;
    uint64_t tweak = kvt_sum_tweak(block, request->index % groups);
    if (!recv_sum_wanted(recv, tweak))
        return true;
    if (sl_fault("kvt.fetch"))
        return false;
    return sl_sum64(recv->options.sum_key, tweak, request->dest, request->bytes) == request->sum;
}

static void recv_piece_verified(kvt_recv *recv, const kvt_request *request)
{
    kvt_recv_piece *piece = &recv->pieces[request->index];
    kvt_piece_set(&piece->state, KVT_PIECE_VERIFIED);
    bit_set(recv->verified, piece->ordinal);
    recv->verified_count++;
    while (recv->watermark < recv->piece_count && bit_get(recv->verified, recv->watermark))
        recv->watermark++;
    kvt_count(&recv->core->counters.pieces_received, 1);
    kvt_count(&recv->core->counters.bytes_received, request->bytes);
    kvt_count(&recv->peer->pieces, 1);
    kvt_count(&recv->peer->bytes, request->bytes);
    recv->ack_bytes += request->bytes;
    recv_ack(recv, piece->ordinal, request->attempt, KVT_RESULT_VERIFIED);
    if (!recv->options.piece_events)
        return;
    piece->next = KVT_NO_INDEX;
    if (recv->report_tail == KVT_NO_INDEX)
        recv->report_head = request->index;
    else
        recv->pieces[recv->report_tail].next = request->index;
    recv->report_tail = request->index;
    recv_report_later(recv);
}

static void recv_piece_wrong(kvt_recv *recv, const kvt_request *request)
{
    kvt_recv_piece *piece = &recv->pieces[request->index];
    kvt_count(&recv->core->counters.sum_mismatches, 1);
    if (piece->attempt + 1u < KVT_FETCHES_MAX) {
        kvt_piece_set(&piece->state, KVT_PIECE_RETRY);
        piece->attempt++;
        recv_ack(recv, piece->ordinal, request->attempt, KVT_RESULT_REFETCH);
        return;
    }
    kvt_piece_set(&piece->state, KVT_PIECE_FAILED);
    uint32_t groups = recv->options.group_count;
    char text[KVT_TEXT_MAX];
    snprintf(text, sizeof text, "the sum of block %u group %u differed twice",
             recv->options.first_block + request->index / groups, request->index % groups);
    kvt_recv_end(recv, SL_CORRUPT, text);
}

void kvt_recv_fetched(kvt_request *request)
{
    kvt_recv *recv = request->recv;
    kvt_peer *peer = request->peer;
    peer->fetches_open--;
    peer->progress_at = recv->core->now;
    recv->requests_open--;
    kvt_recv_dirty(recv);
    if (recv->state == KVT_TRANSFER_ACTIVE) {
        if (request->code != SL_OK)
            kvt_recv_end(recv, request->code, "a fetch failed");
        else if (recv_sum_right(recv, request))
            recv_piece_verified(recv, request);
        else
            recv_piece_wrong(recv, request);
    }
    kvt_peer_request_close(request);
}

void kvt_recv_commit_arrived(kvt_recv *recv, kvt_peer *peer, const kvt_commit_head *commit)
{
    if (recv->state >= KVT_TRANSFER_CLOSING)
        return;
    if (!recv_bind(recv, peer)) {
        kvt_peer_refuse(peer, recv->options.nonce, SL_CONFLICT);
        return;
    }
    if (commit->sequence < recv->commits_reported)
        return; /* said twice */
    kvt_recv_commit *slot = &recv->commits[commit->sequence % KVT_COMMITS_OPEN_MAX];
    if (slot->present && slot->sequence == commit->sequence)
        return;
    if (commit->sequence - recv->commits_reported >= KVT_COMMITS_OPEN_MAX ||
        recv->payload_open + commit->payload.size > KVT_PAYLOAD_MAX) {
        kvt_recv_end(recv, SL_INVALID, "more commits open than the protocol allows");
        return;
    }
    if (commit->pieces > recv->piece_count ||
        (commit->final && commit->pieces != recv->piece_count)) {
        char text[KVT_TEXT_MAX];
        snprintf(text, sizeof text, "a %scommit names %u of %u pieces",
                 commit->final ? "final " : "", commit->pieces, recv->piece_count);
        kvt_recv_end(recv, SL_INVALID, text);
        return;
    }
    slot->present = true;
    slot->final = commit->final;
    slot->sequence = commit->sequence;
    slot->pieces = commit->pieces;
    slot->tokens = commit->tokens;
    slot->payload_bytes = (uint32_t)commit->payload.size;
    recv->payload_open += slot->payload_bytes;
    if (commit->payload.size > 0) {
        slot->payload = sl_alloc(1, commit->payload.size, "kvt payload");
        memcpy(slot->payload, commit->payload.data, commit->payload.size);
    }
    kvt_recv_dirty(recv);
}

bool kvt_recv_report(kvt_recv *recv)
{
    kvt_core *core = recv->core;
    uint32_t groups = recv->options.group_count;
    while (recv->report_head != KVT_NO_INDEX) {
        uint32_t index = recv->report_head;
        kvt_event_item item = {.type = KVT_EVENT_RECV_PIECE,
                               .recv = recv,
                               .block = recv->options.first_block + index / groups,
                               .group = (uint16_t)(index % groups)};
        if (!kvt_core_emit(core, &item))
            return false;
        recv->report_head = recv->pieces[index].next;
        if (recv->report_head == KVT_NO_INDEX)
            recv->report_tail = KVT_NO_INDEX;
    }
    while (recv->commits_reported < recv->commits_verified) {
        kvt_recv_commit *commit = &recv->commits[recv->commits_reported % KVT_COMMITS_OPEN_MAX];
        kvt_event_item item = {.type = KVT_EVENT_RECV_COMMIT,
                               .recv = recv,
                               .sequence = commit->sequence,
                               .tokens = commit->tokens,
                               .final = commit->final,
                               .payload = commit->payload,
                               .payload_bytes = commit->payload_bytes};
        if (!kvt_core_emit(core, &item))
            return false;
        recv->payload_open -= commit->payload_bytes;
        *commit = (kvt_recv_commit){.present = false};
        recv->commits_reported++;
        kvt_recv_dirty(recv);
        if (item.final)
            kvt_recv_end(recv, SL_OK, "");
    }
    if (recv->state == KVT_TRANSFER_CLOSED) {
        kvt_event_item item = {.type = KVT_EVENT_RECV_CLOSED, .recv = recv};
        return kvt_core_emit(core, &item);
    }
    return true;
}
