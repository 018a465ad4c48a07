/* Two sides on the in-process network, stepped in virtual time. Header only. */
#ifndef TESTS_UNIT_KVTRANSFER_KIT_NET_H
#define TESTS_UNIT_KVTRANSFER_KIT_NET_H

#include "tests/unit/kvtransfer/kit.h"

#define PAGE_BYTES 4096u
#define D_ADDRESS  "d0:1"

typedef struct net {
    kvt_fake *fake;
    kit_side p, d;
    sl_time_ns now;
} net;

static inline void net_start(net *n, uint64_t seed, uint32_t pages)
{
    memset(n, 0, sizeof *n);
    n->fake = kvt_fake_create(seed);
    kit_memory(&n->p, pages, PAGE_BYTES);
    kit_memory(&n->d, pages, PAGE_BYTES);
    kit_create(&n->p, (kvt_options){.name = "p0", .fake = n->fake});
    kit_create(&n->d, (kvt_options){.name = "d0", .listen = D_ADDRESS, .fake = n->fake});
    kit_fill(&n->p, seed + 1);
    n->now = SL_S_NS;
}

static inline void net_stop(net *n)
{
    kit_fini(&n->p);
    kit_fini(&n->d);
    kvt_fake_destroy(n->fake);
}

/* One step at `now`, events delivered; returns when something is next due. */
static inline sl_time_ns net_step(net *n)
{
    sl_time_ns due = SL_NEVER;
    size_t events;
    do {
        due = kvt_fake_step(n->fake, n->now);
        events = kvt_poll(n->p.context, kit_on_event, NULL);
        events += kvt_poll(n->d.context, kit_on_event, NULL);
    } while (events > 0);
    return due;
}

/* Lets time pass until `until` or *flag. */
static inline void net_run(net *n, sl_time_ns until, const uint32_t *flag)
{
    for (;;) {
        sl_time_ns due = net_step(n);
        if (flag && *flag)
            return;
        if (due > until) {
            n->now = until;
            net_step(n);
            return;
        }
        n->now = due > n->now ? due : n->now + 1;
    }
}

static inline kit_shape shape_of(const net *n, uint32_t blocks)
{
    return (kit_shape){.first_block = 3, .blocks = blocks, .deadline = n->now + 10 * SL_S_NS};
}

static inline void assert_rest(const net *n)
{
    kit_assert_rest(&n->p);
    kit_assert_rest(&n->d);
}

/* A whole transfer; the ends' outcomes are the caller's to judge. */
typedef struct pair {
    kvt_send *send;
    kvt_recv *recv;
    kit_end pe, de;
    kvt_nonce nonce;
} pair;

static inline void pair_open(net *n, pair *t, kit_shape shape)
{
    memset(t, 0, sizeof *t);
    t->nonce = kit_nonce();
    t->recv = kit_recv(&n->d, shape, t->nonce, &t->de);
    t->send = kit_send(&n->p, shape, D_ADDRESS, t->nonce, &t->pe);
}

static inline void pair_release(pair *t)
{
    kvt_send_release(t->send);
    kvt_recv_release(t->recv);
}

#endif
