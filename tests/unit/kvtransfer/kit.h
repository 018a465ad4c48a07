/* What the kvtransfer tests share: a side (context, memory, what its events said) and patterns.
 *
 * Header only, for one test program at a time; waits for conditions, with a deadline that only a
 * hang reaches. */
#ifndef TESTS_UNIT_KVTRANSFER_KIT_H
#define TESTS_UNIT_KVTRANSFER_KIT_H

#include <poll.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/rng.h"
#include "base/sum.h"
#include "kvtransfer/fake.h"
#include "tests/unit/test.h"

#define KIT_WAIT_NS (60 * SL_S_NS)
#define KIT_KEY     0x1234567890abcdefull
#define KIT_GROUPS  4u

typedef struct kit_end { /* what one transfer's events said so far */
    uint32_t pieces, commits, closed;
    uint64_t tokens;
    bool final;
    sl_code code;
    char text[KVT_TEXT_MAX];
    uint8_t payload[256];
    size_t payload_bytes;
} kit_end;

typedef struct kit_side {
    kvt_context *context;
    uint8_t *memory;
    uint32_t page_count;
    uint64_t page_bytes;
    kvt_piece_slice slices[KIT_GROUPS];
} kit_side;

static inline void kit_on_event(void *context, const kvt_event *event)
{
    kit_end *end = event->cookie;
    assert_int_equal(end->closed, 0); /* nothing follows CLOSED */
    switch (event->type) {
    case KVT_EVENT_SEND_PIECE:
    case KVT_EVENT_RECV_PIECE:
        end->pieces++;
        break;
    case KVT_EVENT_SEND_COMMIT:
    case KVT_EVENT_RECV_COMMIT:
        assert_int_equal(event->sequence, end->commits);
        end->commits++;
        end->tokens = event->tokens;
        end->final = event->final;
        end->payload_bytes = event->payload_bytes;
        if (event->payload_bytes > 0)
            memcpy(end->payload, event->payload,
                   event->payload_bytes < 256 ? event->payload_bytes : 256);
        break;
    default:
        end->closed = 1;
        end->code = event->code;
        snprintf(end->text, sizeof end->text, "%s", event->text);
    }
}

/* Groups of 3/8, 3/8, 1/8, 1/8 of the page. */
static inline void kit_slices(kit_side *side)
{
    static const uint32_t eighths[KIT_GROUPS] = {3, 3, 1, 1};
    uint64_t at = 0;
    for (uint32_t g = 0; g < KIT_GROUPS; g++) {
        side->slices[g].offset = at;
        side->slices[g].bytes = side->page_bytes / 8 * eighths[g];
        at += side->slices[g].bytes;
    }
}

static inline void kit_memory(kit_side *side, uint32_t page_count, uint64_t page_bytes)
{
    memset(side, 0, sizeof *side);
    side->page_count = page_count;
    side->page_bytes = page_bytes;
    sl_err err;
    void *memory;
    assert_ok(sl_alloc_pages(page_count * page_bytes, &memory, &err), &err);
    side->memory = memory;
    kit_slices(side);
}

static inline void kit_create(kit_side *side, kvt_options options)
{
    sl_err err;
    kvt_region region = {side->memory, side->page_count * side->page_bytes};
    options.regions = &region;
    options.region_count = 1;
    options.no_local_reads = getenv("KVT_TEST_NO_LOCAL_READS") != NULL;
    if (getenv("KVT_TEST_SOCKETS"))
        options.transport = KVT_TRANSPORT_TCP;
    assert_ok(kvt_context_create(&options, &side->context, &err), &err);
}

static inline void kit_fini(kit_side *side)
{
    kvt_context_destroy(side->context);
    sl_free_pages(side->memory, side->page_count * side->page_bytes);
    memset(side, 0, sizeof *side);
}

static inline uint8_t *kit_page(const kit_side *side, uint32_t page)
{
    return side->memory + page * side->page_bytes;
}

/* Bytes that depend on seed, page and place. */
static inline void kit_fill_page(const kit_side *side, uint32_t page, uint64_t seed)
{
    uint64_t *words = (uint64_t *)kit_page(side, page);
    uint64_t x = seed * 0x9e3779b97f4a7c15ull + page * 0xbf58476d1ce4e5b9ull + 1;
    for (uint64_t i = 0; i < side->page_bytes / 8; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        words[i] = x;
    }
}

static inline void kit_fill(const kit_side *side, uint64_t seed)
{
    for (uint32_t page = 0; page < side->page_count; page++)
        kit_fill_page(side, page, seed);
}

static inline bool kit_equal(const kit_side *a, const kit_side *b)
{
    return memcmp(a->memory, b->memory, a->page_count * a->page_bytes) == 0;
}

static inline kvt_nonce kit_nonce(void)
{
    kvt_nonce nonce = {sl_random_u64(), sl_random_u64()};
    return nonce;
}

typedef struct kit_shape { /* pages [page, page + blocks) of each side */
    uint32_t first_block, blocks, page;
    sl_time_ns deadline;
    kvt_sums sums;
    bool piece_events;
} kit_shape;

static inline kvt_recv *kit_recv(const kit_side *side, kit_shape shape, kvt_nonce nonce,
                                 kit_end *end)
{
    void *pages[KVT_BLOCKS_MAX];
    sl_err err;
    kvt_recv *recv = NULL;
    for (uint32_t i = 0; i < shape.blocks; i++)
        pages[i] = kit_page(side, shape.page + i);
    kvt_recv_options options = {.nonce = nonce,
                                .deadline = shape.deadline,
                                .first_block = shape.first_block,
                                .block_count = shape.blocks,
                                .group_count = KIT_GROUPS,
                                .pages = pages,
                                .slices = side->slices,
                                .sums = shape.sums,
                                .sum_key = KIT_KEY,
                                .piece_events = shape.piece_events,
                                .cookie = end};
    assert_ok(kvt_recv_open(side->context, &options, &recv, &err), &err);
    return recv;
}

static inline kvt_send *kit_send(const kit_side *side, kit_shape shape, const char *address,
                                 kvt_nonce nonce, kit_end *end)
{
    sl_err err;
    kvt_send *send = NULL;
    kvt_send_options options = {.address = address,
                                .nonce = nonce,
                                .deadline = shape.deadline,
                                .first_block = shape.first_block,
                                .block_count = shape.blocks,
                                .group_count = KIT_GROUPS,
                                .piece_events = shape.piece_events,
                                .cookie = end};
    assert_ok(kvt_send_open(side->context, &options, &send, &err), &err);
    return send;
}

static inline sl_status kit_announce(const kit_side *side, kvt_send *send, kit_shape shape,
                                     uint32_t row, uint32_t group, sl_err *err)
{
    const kvt_piece_slice *slice = &side->slices[group];
    const uint8_t *data = kit_page(side, shape.page + row) + slice->offset;
    uint32_t block = shape.first_block + row;
    uint64_t sum = sl_sum64(KIT_KEY, kvt_sum_tweak(block, group), data, slice->bytes);
    return kvt_send_announce(send, block, group, data, slice->bytes, sum, err);
}

static inline void kit_announce_all(const kit_side *side, kvt_send *send, kit_shape shape)
{
    sl_err err;
    for (uint32_t row = 0; row < shape.blocks; row++) {
        for (uint32_t group = 0; group < KIT_GROUPS; group++)
            assert_ok(kit_announce(side, send, shape, row, group, &err), &err);
    }
}

static inline void kit_commit_final(kvt_send *send, uint64_t tokens)
{
    sl_err err;
    kvt_commit commit = {.tokens = tokens, .final = true, .payload = "h_final", .payload_bytes = 8};
    assert_ok(kvt_send_commit(send, &commit, &err), &err);
}

/* Polls the contexts (UCX, threads) until *flag is at least `count`. */
static inline void kit_wait(kit_side *const *sides, size_t count, const uint32_t *flag,
                            uint32_t wanted)
{
    struct pollfd fds[8];
    sl_time_ns give_up = sl_now_ns() + KIT_WAIT_NS;
    while (*flag < wanted) {
        assert_true(sl_now_ns() < give_up);
        for (size_t i = 0; i < count; i++)
            fds[i] = (struct pollfd){.fd = kvt_fd(sides[i]->context), .events = POLLIN};
        poll(fds, count, 100);
        for (size_t i = 0; i < count; i++)
            kvt_poll(sides[i]->context, kit_on_event, NULL);
    }
}

/* First in main. UCX's memory hooks call into the thread sanitizer when a thread is already gone;
 * they can only be left out before the library is loaded. */
static inline void kit_main(char **argv)
{
#ifdef __SANITIZE_THREAD__
    if (!getenv("UCX_MEM_EVENTS")) {
        setenv("UCX_MEM_EVENTS", "n", 1);
        execv("/proc/self/exe", argv);
    }
#endif
}

/* An address as text to listen on: without its scheme. */
static inline const char *kit_listen_text(const char *address)
{
    return strncmp(address, "tcp:", 4) == 0 ? address + 4 : address;
}

/* Nothing open but connections. */
static inline void kit_assert_rest(const kit_side *side)
{
    kvt_stats stats;
    sl_time_ns give_up = sl_now_ns() + KIT_WAIT_NS;
    do {
        kvt_stats_get(side->context, &stats);
        assert_true(sl_now_ns() < give_up);
    } while (stats.requests_open > 0);
    assert_int_equal(stats.sends_open, 0);
    assert_int_equal(stats.recvs_open, 0);
}

#endif
