/* Any bytes as what comes by the tcp transport, at either end of a live transfer, cut into calls
 * anyhow: no crash, nothing outside the open transfer's pages, both ends close. Frames that are
 * well formed can be asked for, so that what stands behind them is met. Input: which end; then
 * parts {how, size, bytes}. */
#include "kvtransfer/stream.h"
#include "tests/fuzz/kvtransfer/live.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint8_t ahead[KVT_TCP_AHEAD_BYTES];

/* What the parser takes, packing gives back. */
static void check_frame(const uint8_t *data, size_t size)
{
    kvt_frame frame;
    uint8_t again[KVT_WIRE_FRAME_SIZE];
    if (size < sizeof again || kvt_wire_parse_frame(data, &frame))
        return;
    kvt_wire_pack_frame(&frame, again);
    sl_assert(memcmp(again, data, sizeof again) == 0);
}

static void bring(kvt_inflow *in, const uint8_t *bytes, size_t size, size_t cut)
{
    while (size > 0 && !in->failed) {
        struct iovec parts[2];
        uint64_t skip = kvt_inflow_skip(in);
        size_t count = skip > 0 ? 0 : kvt_inflow_parts(in, parts);
        size_t most = size < cut ? size : cut, brought = skip < most ? (size_t)skip : most;
        if (skip == 0)
            brought = 0;
        for (size_t i = 0; i < count; i++) {
            size_t part = parts[i].iov_len < most - brought ? parts[i].iov_len : most - brought;
            memcpy(parts[i].iov_base, bytes + brought, part);
            brought += part;
        }
        kvt_inflow_took(in, brought);
        bytes += brought;
        size -= brought;
    }
}

/* A frame of the right form, and the nonce in its place: the rest is the input's. */
static void bring_framed(kvt_inflow *in, bool piece, const uint8_t *bytes, size_t size, size_t cut)
{
    static uint8_t whole[KVT_WIRE_FRAME_SIZE + UINT16_MAX];
    size_t head = piece ? KVT_WIRE_PIECE_SIZE : 0;
    if (size <= head)
        return;
    kvt_frame frame = {piece ? KVT_FRAME_PIECE : KVT_FRAME_MESSAGE, (uint16_t)head, size - head};
    kvt_wire_pack_frame(&frame, whole);
    memcpy(whole + KVT_WIRE_FRAME_SIZE, bytes, size);
    if (size >= 20) {
        sl_writer writer = sl_writer_init(whole + KVT_WIRE_FRAME_SIZE + 4, 16);
        sl_write_u64(&writer, nonce.high);
        sl_write_u64(&writer, nonce.low);
    }
    bring(in, whole, KVT_WIRE_FRAME_SIZE + size, cut);
}

static void operations(kvt_inflow *in, sl_reader *reader)
{
    while (sl_reader_left(reader) >= 4) {
        uint8_t how = sl_read_u8(reader);
        size_t cut = 1 + sl_read_u8(reader), size = sl_read_u16(reader);
        if (size > sl_reader_left(reader))
            size = sl_reader_left(reader);
        sl_span span = sl_read_span(reader, size);
        if (how & 8)
            cut = SIZE_MAX;
        check_frame(span.data, span.size);
        if (how % 4 == 3)
            bring(in, span.data, span.size, cut);
        else if (how % 4 != 2)
            bring_framed(in, how % 4 == 1, span.data, span.size, cut);
        step(how & 4 ? 0 : 1000);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    live one;
    kvt_inflow in;
    sl_reader reader = sl_reader_init(data, size);
    uint8_t first = sl_read_u8(&reader);
    live_open(&one, first & 128 ? KVT_SUMS_OFF : KVT_SUMS_ALL);
    kvt_peer *peer = peer_of(first & 1 ? one.send->core : one.recv->core);
    sl_assert(peer);
    kvt_inflow_init(&in, peer, ahead);
    operations(&in, &reader);
    kvt_inflow_end(&in);
    live_close(&one);
    return 0;
}
