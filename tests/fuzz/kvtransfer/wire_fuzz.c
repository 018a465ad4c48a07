/* Any bytes as messages and announcements, at both ends of a live transfer: what the parser takes,
 * packing gives back; nothing crashes, nothing is written outside the open transfer's pages, and
 * both ends close. The words by which one end reads the other's memory come likewise: nothing is
 * read that was not agreed. Input: operations {what, size, bytes}. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "kvtransfer/local.h"
#include "kvtransfer/reads.h"
#include "tests/fuzz/kvtransfer/live.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_parser(const uint8_t *data, size_t size)
{
    kvt_message message;
    static uint8_t again[KVT_WIRE_COMMIT_SIZE + KVT_PAYLOAD_MAX];
    memset(&message, 0, sizeof message);
    if (!kvt_wire_parse(data, size, &message))
        return;
    size_t packed = kvt_wire_pack(&message, again, sizeof again);
    sl_assert(packed == size && memcmp(again, data, size) == 0);
}

/* An announcement; if it is taken, its payload lands at once. */
static void offer(kvt_peer *peer, const uint8_t *data, size_t size)
{
    kvt_message message;
    void *into = NULL;
    uint64_t bytes = PAGE_BYTES / 2;
    if (kvt_wire_parse(data, size, &message) && message.type == KVT_MESSAGE_PIECE)
        bytes = message.piece.bytes;
    kvt_request *request = kvt_core_offer(peer, data, size, bytes, &into);
    if (!request)
        return;
    sl_assert((uint8_t *)into >= d_memory + GUARD && bytes <= PAGE_BYTES &&
              (uint8_t *)into + bytes <= d_memory + GUARD + PAGES * PAGE_BYTES);
    memset(into, 0x11, bytes);
    kvt_core_finished(request, SL_OK);
}

/* ---- local reads */

static kvt_agreement at_p_local, at_d_local;
static kvt_read_offers at_d_offers;
static kvt_read_queue at_d_reads = {.offers = &at_d_offers};
static kvt_read_untold at_d_untold;

static void hear(bool at_sender, kvt_local_message message)
{
    kvt_local_step say;
    kvt_agreement *own = at_sender ? &at_p_local : &at_d_local;
    if (kvt_local_hear(own, at_sender, &message, &say))
        hear(!at_sender, kvt_local_message_of(own, say));
}

/* No other process is looked at: the peer is this one, or nobody. */
static void local_words(bool at_sender, const uint8_t *data, size_t size)
{
    uint8_t again[KVT_WIRE_LOCAL_SIZE];
    kvt_local_message message;
    if (!kvt_wire_parse_local(data, size, &message))
        return;
    kvt_wire_pack_local(&message, again);
    sl_assert(memcmp(again, data, sizeof again) == 0);
    message.pid = message.pid % 2 == 0 ? (uint32_t)getpid() : INT32_MAX;
    if (message.word_at % 2 == 0)
        message.word_at = (uint64_t)(uintptr_t)&at_p_local.word;
    hear(at_sender, message);
    sl_assert(!at_d_local.agreed || at_d_local.memory.challenge != 0);
    sl_assert(!at_p_local.agreed || at_p_local.word != 0);
}

/* As the transport does, a call's worth at a time. */
static void reads_take(kvt_peer *peer)
{
    kvt_read_offer offers[KVT_WIRE_READS_MAX];
    kvt_local_piece pieces[KVT_WIRE_READS_MAX];
    kvt_request *fetches[KVT_WIRE_READS_MAX];
    uint32_t count = kvt_read_queue_take(&at_d_reads, offers), admitted = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t address = offers[i].address, bytes = offers[i].bytes;
        void *into = NULL;
        kvt_request *fetch =
            kvt_core_offer(peer, offers[i].head, KVT_WIRE_PIECE_SIZE, bytes, &into);
        if (!fetch)
            continue;
        sl_assert((uint8_t *)into >= d_memory + GUARD && bytes <= PAGE_BYTES &&
                  (uint8_t *)into + bytes <= d_memory + GUARD + PAGES * PAGE_BYTES);
        if (address < sizeof p_memory)
            address += (uint64_t)(uintptr_t)p_memory;
        pieces[admitted] = (kvt_local_piece){address, bytes, into, SL_OK};
        fetches[admitted++] = fetch;
    }
    kvt_read_untold_add(&at_d_untold, offers, count);
    kvt_local_read(&at_d_local.memory, pieces, admitted);
    for (uint32_t i = 0; i < admitted; i++)
        kvt_core_finished(fetches[i], pieces[i].code);
}

/* Whatever P offered, D's answers are valid ones. */
static void untold_tell(void)
{
    uint8_t packed[KVT_WIRE_TAKEN_SIZE];
    kvt_taken_message heard;
    kvt_wire_pack_taken(&at_d_untold.taken, packed);
    sl_assert(kvt_wire_parse_taken(packed, sizeof packed, &heard));
    at_d_untold = (kvt_read_untold){.bytes = 0};
}

static void reads_offered(kvt_peer *peer, const uint8_t *data, size_t size)
{
    uint8_t again[KVT_WIRE_READ_SIZE];
    kvt_read_offer offers[KVT_WIRE_READS_MAX];
    uint32_t count = kvt_wire_parse_reads(data, size, offers);
    for (uint32_t i = 0; i < count; i++) {
        kvt_wire_pack_read(&offers[i], again);
        sl_assert(memcmp(again, data + i * sizeof again, sizeof again) == 0);
        sl_assert(offers[i].place < KVT_WINDOW_READS);
    }
    bool put = at_d_local.agreed && kvt_read_queue_put(&at_d_reads, data, size);
    sl_assert(!put || count > 0);
    while (at_d_reads.count > 0 || at_d_untold.taken.count > 0) {
        if (kvt_read_untold_due(&at_d_untold, &at_d_reads))
            untold_tell();
        else
            reads_take(peer);
    }
}

static void taken(const uint8_t *data, size_t size)
{
    uint8_t again[KVT_WIRE_TAKEN_SIZE];
    kvt_taken_message message;
    if (!kvt_wire_parse_taken(data, size, &message))
        return;
    kvt_wire_pack_taken(&message, again);
    sl_assert(memcmp(again, data, sizeof again) == 0);
    sl_assert(message.place < KVT_WINDOW_READS &&
              message.count <= KVT_WINDOW_READS - message.place);
}

static void operations(kvt_core *pc, kvt_core *dc, const uint8_t *data, size_t size)
{
    sl_reader reader = sl_reader_init(data, size);
    while (sl_reader_left(&reader) >= 3) {
        uint8_t what = sl_read_u8(&reader);
        size_t bytes = sl_read_u16(&reader);
        if (bytes > sl_reader_left(&reader))
            bytes = sl_reader_left(&reader);
        sl_span span = sl_read_span(&reader, bytes);
        kvt_peer *at_p = peer_of(pc), *at_d = peer_of(dc);
        check_parser(span.data, span.size);
        if (what % 8 == 0 && at_d)
            kvt_core_message(at_d, span.data, span.size);
        else if (what % 8 == 1 && at_d)
            offer(at_d, span.data, span.size);
        else if (what % 8 == 2 && at_p)
            kvt_core_message(at_p, span.data, span.size);
        else if (what % 8 == 4 || what % 8 == 5)
            local_words(what % 8 == 5, span.data, span.size);
        else if (what % 8 == 6 && at_d)
            reads_offered(at_d, span.data, span.size);
        else if (what % 8 == 7)
            taken(span.data, span.size);
        else
            step(100000);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    sl_err err;
    live one;
    at_p_local = at_d_local = (kvt_agreement){0};
    live_open(&one, data && size > 0 && data[0] & 128 ? KVT_SUMS_OFF : KVT_SUMS_ALL);
    for (uint32_t i = 0; i < PAGES; i++)
        (void)!sl_is_ok(kvt_send_announce(one.send, 1 + i, 0, p_memory, PAGE_BYTES / 2, 0, &err));
    operations(one.send->core, one.recv->core, data, size);
    live_close(&one);
    return 0;
}
