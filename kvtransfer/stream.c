/* Frames out of a stream of bytes and into one. See stream.h; the layout stands in README.md. */
#include "kvtransfer/stream.h"

#include <string.h>

#include "base/assert.h"

_Static_assert(KVT_TCP_AHEAD_BYTES >= KVT_WIRE_FRAME_SIZE + KVT_WIRE_MESSAGE_MAX,
               "the largest message fits into what is read ahead");

#define PIECE_FRAME_SIZE (KVT_WIRE_FRAME_SIZE + KVT_WIRE_PIECE_SIZE)

/* ---- what comes */

void kvt_inflow_init(kvt_inflow *in, kvt_peer *peer, uint8_t *ahead)
{
    *in = (kvt_inflow){.peer = peer, .ahead = ahead};
}

uint64_t kvt_inflow_skip(const kvt_inflow *in)
{
    if (in->left == 0 || in->taken)
        return 0;
    return in->left < KVT_TCP_CALL_BYTES ? in->left : KVT_TCP_CALL_BYTES;
}

/* Behind a large piece only the next one's frame is read ahead: its payload is to go straight into
 * the page too. Small ones are cheaper copied than asked for one by one. */
size_t kvt_inflow_parts(kvt_inflow *in, struct iovec out_parts[2])
{
    size_t count = 0, ahead = KVT_TCP_AHEAD_BYTES - in->have;
    sl_assert(!in->failed && kvt_inflow_skip(in) == 0 && in->missing <= ahead);
    if (in->left > 0) {
        bool all = in->left <= KVT_TCP_CALL_BYTES;
        out_parts[count++] = (struct iovec){in->page, all ? in->left : KVT_TCP_CALL_BYTES};
        if (!all)
            return count;
    }
    if (in->large && ahead > PIECE_FRAME_SIZE)
        ahead = in->missing > PIECE_FRAME_SIZE ? in->missing : PIECE_FRAME_SIZE;
    out_parts[count++] = (struct iovec){in->ahead + in->have, ahead};
    return count;
}

/* The last byte of a piece is here, or past. */
static void piece_end(kvt_inflow *in, sl_code code)
{
    kvt_request *taken = in->taken;
    in->taken = NULL;
    in->page = NULL;
    in->left = 0;
    if (taken)
        kvt_core_finished(taken, code);
}

/* The payload that was read ahead; returns how much of `from` was the piece's. */
static size_t piece_copy(kvt_inflow *in, sl_span from)
{
    size_t bytes = from.size < in->left ? from.size : in->left;
    if (in->taken) {
        memcpy(in->page, from.data, bytes);
        in->page += bytes;
    }
    in->left -= bytes;
    if (in->left == 0)
        piece_end(in, SL_OK);
    return bytes;
}

static void inflow_refuse(kvt_inflow *in, const char *why)
{
    in->failed = true;
    kvt_core_invalid(in->peer, why);
}

/* One frame; returns its bytes without payload, 0 when not all of them are here. */
static size_t frame_take(kvt_inflow *in, sl_span from)
{
    kvt_frame frame;
    if (from.size < KVT_WIRE_FRAME_SIZE) {
        in->missing = (uint32_t)(KVT_WIRE_FRAME_SIZE - from.size);
        return 0;
    }
    const char *why = kvt_wire_parse_frame(from.data, &frame);
    if (why) {
        inflow_refuse(in, why);
        return 0;
    }
    bool piece = frame.kind == KVT_FRAME_PIECE;
    size_t size = KVT_WIRE_FRAME_SIZE + (piece ? frame.head_size : (size_t)frame.bytes);
    if (from.size < size) {
        in->missing = (uint32_t)(size - from.size);
        return 0;
    }
    const uint8_t *body = from.data + KVT_WIRE_FRAME_SIZE;
    if (!piece) {
        kvt_core_message(in->peer, body, (size_t)frame.bytes);
        return size;
    }
    void *page = NULL;
    in->taken = kvt_core_offer(in->peer, body, frame.head_size, frame.bytes, &page);
    in->page = page;
    in->left = frame.bytes;
    in->large = frame.bytes > KVT_TCP_COPY_MAX;
    return size;
}

/* Understands what was read ahead; what is left of it is the beginning of a frame. */
static void inflow_understand(kvt_inflow *in)
{
    sl_span rest = {in->ahead, in->have};
    in->missing = 0;
    while (rest.size > 0 && !in->failed) {
        size_t used = in->left > 0 ? piece_copy(in, rest) : frame_take(in, rest);
        if (used == 0)
            break;
        rest.data += used;
        rest.size -= used;
    }
    in->have = in->failed ? 0 : (uint32_t)rest.size;
    if (in->have > 0 && rest.data != in->ahead)
        memmove(in->ahead, rest.data, in->have);
}

void kvt_inflow_took(kvt_inflow *in, size_t bytes)
{
    if (in->left > 0) { /* none of it was read ahead */
        size_t own = bytes < in->left ? bytes : (size_t)in->left;
        in->left -= own;
        bytes -= own;
        if (in->taken)
            in->page += own;
        if (in->left == 0)
            piece_end(in, SL_OK);
    }
    if (bytes == 0)
        return;
    in->have += (uint32_t)bytes;
    sl_assert(in->have <= KVT_TCP_AHEAD_BYTES);
    inflow_understand(in);
}

void kvt_inflow_end(kvt_inflow *in)
{
    in->failed = true;
    in->have = 0;
    piece_end(in, SL_UNAVAILABLE);
}

/* ---- what goes */

void kvt_outflow_init(kvt_outflow *out)
{
    out->message_first = out->message_count = out->piece_first = out->piece_count = 0;
    out->sent = 0;
    out->sent_piece = false;
}

static void outgoing_fill(kvt_outgoing *one, kvt_frame_kind kind, sl_span head, sl_span data,
                          kvt_request *request)
{
    kvt_frame frame = {(uint8_t)kind, (uint16_t)head.size, data.size};
    sl_assert(head.size <= KVT_WIRE_PIECE_SIZE);
    kvt_wire_pack_frame(&frame, one->head);
    if (head.size > 0)
        memcpy(one->head + KVT_WIRE_FRAME_SIZE, head.data, head.size);
    one->head_size = KVT_WIRE_FRAME_SIZE + (uint32_t)head.size;
    one->data = data.data;
    one->bytes = data.size;
    one->request = request;
}

void kvt_outflow_message(kvt_outflow *out, sl_span data, kvt_request *request)
{
    sl_assert(out->message_count < KVT_MESSAGES_MAX);
    uint32_t at = (out->message_first + out->message_count++) % KVT_MESSAGES_MAX;
    outgoing_fill(&out->messages[at], KVT_FRAME_MESSAGE, (sl_span){NULL, 0}, data, request);
}

void kvt_outflow_piece(kvt_outflow *out, sl_span head, const void *data, uint64_t bytes,
                       kvt_request *request)
{
    sl_assert(out->piece_count < KVT_WINDOW_READS);
    uint32_t at = (out->piece_first + out->piece_count++) % KVT_WINDOW_READS;
    outgoing_fill(&out->pieces[at], KVT_FRAME_PIECE, head, (sl_span){data, bytes}, request);
}

static const kvt_outgoing *message_at(const kvt_outflow *out, uint32_t i)
{
    return &out->messages[(out->message_first + i) % KVT_MESSAGES_MAX];
}

static const kvt_outgoing *piece_at(const kvt_outflow *out, uint32_t i)
{
    return &out->pieces[(out->piece_first + i) % KVT_WINDOW_READS];
}

/* The i-th to go: a piece that has begun, messages, pieces. */
static const kvt_outgoing *outflow_at(const kvt_outflow *out, uint32_t i)
{
    uint32_t begun = out->sent > 0 && out->sent_piece;
    if (i < begun)
        return piece_at(out, 0);
    i -= begun;
    return i < out->message_count ? message_at(out, i)
                                  : piece_at(out, i - out->message_count + begun);
}

size_t kvt_outflow_parts(const kvt_outflow *out, struct iovec *out_parts, size_t capacity)
{
    uint32_t frames = out->message_count + out->piece_count;
    uint64_t skip = out->sent, room = KVT_TCP_CALL_BYTES;
    size_t count = 0;
    for (uint32_t i = 0; i < frames && room > 0 && count + 2 <= capacity; i++) {
        const kvt_outgoing *one = outflow_at(out, i);
        sl_span spans[2] = {{one->head, one->head_size}, {one->data, one->bytes}};
        for (int k = 0; k < 2 && room > 0; k++) {
            uint64_t passed = skip < spans[k].size ? skip : spans[k].size;
            uint64_t bytes = spans[k].size - passed < room ? spans[k].size - passed : room;
            skip -= passed;
            room -= bytes;
            if (bytes > 0)
                out_parts[count++] = (struct iovec){(void *)(spans[k].data + passed), bytes};
        }
    }
    return count;
}

void kvt_outflow_took(kvt_outflow *out, size_t bytes)
{
    while (bytes > 0) {
        sl_assert(!kvt_outflow_empty(out));
        const kvt_outgoing *one = outflow_at(out, 0);
        bool piece = out->sent > 0 ? out->sent_piece : out->message_count == 0;
        uint64_t left = one->head_size + one->bytes - out->sent;
        if (bytes < left) {
            out->sent += bytes;
            out->sent_piece = piece;
            return;
        }
        bytes -= left;
        out->sent = 0;
        uint32_t *first = piece ? &out->piece_first : &out->message_first;
        uint32_t *count = piece ? &out->piece_count : &out->message_count;
        *first = (*first + 1) % (piece ? KVT_WINDOW_READS : KVT_MESSAGES_MAX);
        (*count)--;
        kvt_core_finished(one->request, SL_OK);
    }
}

void kvt_outflow_end(kvt_outflow *out)
{
    uint32_t frames = out->message_count + out->piece_count;
    for (uint32_t i = 0; i < frames; i++)
        kvt_core_finished(outflow_at(out, i)->request, SL_UNAVAILABLE);
    kvt_outflow_init(out);
}
