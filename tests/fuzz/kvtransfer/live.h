/* A live transfer between two contexts on the in-process network, for fuzz targets of kvtransfer:
 * pages between guards, both ends ready, pieces announced. Header only, one target at a time. */
#ifndef TESTS_FUZZ_KVTRANSFER_LIVE_H
#define TESTS_FUZZ_KVTRANSFER_LIVE_H

#include <string.h>

#include "base/assert.h"
#include "kvtransfer/core.h"
#include "kvtransfer/fake.h"

enum { PAGE_BYTES = 1024, PAGES = 4, GUARD = 4096 };

static kvt_fake *fake;
static kvt_context *p, *d;
static uint8_t p_memory[PAGES * PAGE_BYTES];
static uint8_t d_memory[GUARD + PAGES * PAGE_BYTES + GUARD];
static sl_time_ns now = SL_S_NS;
static const kvt_nonce nonce = {1, 2};

static inline void on_event(void *context, const kvt_event *event)
{
    if (event->type == KVT_EVENT_SEND_CLOSED || event->type == KVT_EVENT_RECV_CLOSED)
        *(bool *)event->cookie = true;
}

static inline void step(uint64_t ns)
{
    now += ns;
    kvt_fake_step(fake, now);
    kvt_poll(p, on_event, NULL);
    kvt_poll(d, on_event, NULL);
}

static inline void start(void)
{
    sl_err err;
    kvt_region sent = {p_memory, sizeof p_memory};
    kvt_region received = {d_memory + GUARD, PAGES * PAGE_BYTES};
    kvt_options options = {.name = "p", .regions = &sent, .region_count = 1};
    options.fake = fake = kvt_fake_create(1);
    sl_status status = kvt_context_create(&options, &p, &err);
    sl_assert(sl_is_ok(status));
    options.name = "d";
    options.listen = "d:1";
    options.regions = &received;
    status = kvt_context_create(&options, &d, &err);
    sl_assert(sl_is_ok(status));
}

static inline kvt_peer *peer_of(kvt_core *core)
{
    for (uint32_t i = 0; i < KVT_PEERS_MAX; i++) {
        if (core->peers[i].state == KVT_PEER_READY || core->peers[i].state == KVT_PEER_ACCEPTED)
            return &core->peers[i];
    }
    return NULL;
}

typedef struct live {
    bool send_closed, recv_closed;
    kvt_send *send;
    kvt_recv *recv;
} live;

static inline void live_open(live *one, kvt_sums sums)
{
    sl_err err;
    if (!fake)
        start();
    step(SL_MS_NS); /* what the end of the one before left on its way has come */
    memset(one, 0, sizeof *one);
    void *pages[PAGES];
    for (int i = 0; i < PAGES; i++)
        pages[i] = d_memory + GUARD + i * PAGE_BYTES;
    kvt_piece_slice slices[2] = {{0, PAGE_BYTES / 2}, {PAGE_BYTES / 2, PAGE_BYTES / 2}};
    kvt_recv_options ro = {.nonce = nonce,
                           .deadline = now + SL_S_NS,
                           .first_block = 1,
                           .block_count = PAGES,
                           .group_count = 2,
                           .pages = pages,
                           .slices = slices,
                           .sums = sums,
                           .piece_events = true,
                           .cookie = &one->recv_closed};
    kvt_send_options so = {.address = "d:1",
                           .nonce = nonce,
                           .deadline = now + SL_S_NS,
                           .first_block = 1,
                           .block_count = PAGES,
                           .group_count = 2,
                           .piece_events = true,
                           .cookie = &one->send_closed};
    sl_status status = kvt_recv_open(d, &ro, &one->recv, &err);
    sl_assert(sl_is_ok(status));
    status = kvt_send_open(p, &so, &one->send, &err);
    sl_assert(sl_is_ok(status));
    step(0);
    step(100000); /* hello .. */
    step(100000); /* .. and its answer: both peers are ready */
}

/* Both ends close, and nothing was written outside the pages. */
static inline void live_close(live *one)
{
    kvt_send_cancel(one->send);
    kvt_recv_revoke(one->recv);
    for (int i = 0; i < 100 && !(one->send_closed && one->recv_closed); i++)
        step(100 * SL_MS_NS);
    sl_assert(one->send_closed && one->recv_closed);
    kvt_send_release(one->send);
    kvt_recv_release(one->recv);
    for (int i = 0; i < GUARD; i++)
        sl_assert(d_memory[i] == 0 && d_memory[sizeof d_memory - 1 - (size_t)i] == 0);
}

#endif
