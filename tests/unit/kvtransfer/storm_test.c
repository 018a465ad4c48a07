/* Many seeds of everything at once over the in-process network: pages that D has got back never
 * change, each transfer ends once and in time, what ended well is exact. KVT_TEST_SEEDS: how many.
 */
#include "tests/unit/kvtransfer/kit_net.h"

static uint64_t draw(uint64_t *state, uint64_t below)
{
    *state = *state * 6364136223846793005ull + 1442695040888963407ull;
    return (*state >> 33) % below;
}

typedef struct storm {
    net n;
    pair t[6];
    kit_shape shape[6];
    uint64_t *reused[6]; /* copy of the pages, taken at CLOSED */
    uint64_t dice;
} storm;

enum { STORM_PAIRS = 6, STORM_BLOCKS = 6 };

/* D's pages of a closed transfer get new contents, which must stay. */
static void storm_look(storm *s)
{
    for (uint32_t i = 0; i < STORM_PAIRS; i++) {
        size_t bytes = STORM_BLOCKS * PAGE_BYTES;
        uint8_t *pages = kit_page(&s->n.d, s->shape[i].page);
        if (s->t[i].de.closed && !s->reused[i]) {
            sl_time_ns limit = s->shape[i].deadline + KVT_CLOSE_GRACE_MS * SL_MS_NS;
            assert_true(s->n.now <= limit);
            if (s->t[i].de.code == SL_OK)
                assert_memory_equal(pages, kit_page(&s->n.p, s->shape[i].page), bytes);
            for (uint32_t b = 0; b < STORM_BLOCKS; b++)
                kit_fill_page(&s->n.d, s->shape[i].page + b, 777);
            s->reused[i] = sl_alloc(1, bytes, "copy");
            memcpy(s->reused[i], pages, bytes);
        } else if (s->reused[i]) {
            assert_memory_equal(pages, s->reused[i], bytes);
        }
    }
}

static void storm_act(storm *s)
{
    sl_err err;
    uint32_t i = (uint32_t)draw(&s->dice, STORM_PAIRS);
    pair *t = &s->t[i];
    switch (draw(&s->dice, 900)) {
    case 0:
        kvt_recv_revoke(t->recv);
        break;
    case 1:
        kvt_send_cancel(t->send);
        break;
    case 2:
    case 3:
        kvt_fake_pause(s->n.fake, "p0", draw(&s->dice, 3) == 0);
        break;
    case 4:
        kvt_fake_cut(s->n.fake, "p0", "d0", true);
        kvt_fake_cut(s->n.fake, "p0", "d0", draw(&s->dice, 3) == 0);
        break;
    case 5:
        kvt_fake_deafen(s->n.fake, draw(&s->dice, 2) == 0 ? "p0" : "d0");
        break;
    default:
        for (uint32_t k = 0; k < STORM_BLOCKS * KIT_GROUPS; k++) {
            sl_status status =
                kit_announce(&s->n.p, t->send, s->shape[i], k / KIT_GROUPS, k % KIT_GROUPS, &err);
            if (sl_is_ok(status) && draw(&s->dice, 4) == 0)
                return;
        }
        kvt_commit commit = {.tokens = STORM_BLOCKS * 64, .final = true};
        sl_status ignored = kvt_send_commit(t->send, &commit, &err);
        (void)ignored;
    }
}

static void storm_run(uint64_t seed, uint32_t *out_ok)
{
    storm s = {.dice = seed * 77 + 5};
    net_start(&s.n, seed, STORM_PAIRS * STORM_BLOCKS);
    kvt_fake_faults faults = {.delay_min_ns = 1000,
                              .delay_max_ns = 1000 + draw(&s.dice, 20 * SL_MS_NS),
                              .drop_ppm = (uint32_t)(draw(&s.dice, 2) * draw(&s.dice, 3000)),
                              .duplicate_ppm = (uint32_t)draw(&s.dice, 50000),
                              .reorder_ppm = (uint32_t)draw(&s.dice, 200000),
                              .corrupt_ppm = (uint32_t)(draw(&s.dice, 2) * draw(&s.dice, 50000))};
    kvt_fake_faults_set(s.n.fake, &faults);
    for (uint32_t i = 0; i < STORM_PAIRS; i++) {
        s.shape[i] = shape_of(&s.n, STORM_BLOCKS);
        s.shape[i].page = i * STORM_BLOCKS;
        s.shape[i].deadline = s.n.now + SL_S_NS + draw(&s.dice, 9 * SL_S_NS);
        pair_open(&s.n, &s.t[i], s.shape[i]);
    }
    for (int i = 0; i < 300; i++) {
        if (draw(&s.dice, 4) < 3)
            storm_act(&s);
        sl_time_ns until = s.n.now + draw(&s.dice, 50 * SL_MS_NS);
        while (s.n.now < until) {
            sl_time_ns due = net_step(&s.n);
            storm_look(&s);
            s.n.now = due < until && due > s.n.now ? due : until;
        }
    }
    kvt_fake_pause(s.n.fake, "p0", false);
    kvt_fake_cut(s.n.fake, "p0", "d0", true);
    kvt_fake_cut(s.n.fake, "p0", "d0", false);
    net_run(&s.n, s.n.now + 30 * SL_S_NS, NULL);
    storm_look(&s);
    for (uint32_t i = 0; i < STORM_PAIRS; i++) {
        assert_int_equal(s.t[i].pe.closed, 1);
        assert_int_equal(s.t[i].de.closed, 1);
        if (s.t[i].pe.code == SL_OK) /* P says so only because D did */
            assert_int_equal(s.t[i].de.code, SL_OK);
        *out_ok += s.t[i].de.code == SL_OK;
        sl_free(s.reused[i]);
        pair_release(&s.t[i]);
    }
    assert_rest(&s.n);
    net_stop(&s.n);
}

TEST(storm_of_faults_over_many_seeds)
{
    const char *text = getenv("KVT_TEST_SEEDS");
    uint32_t ok = 0, seeds = text ? (uint32_t)atoi(text) : 200;
    for (uint64_t seed = 0; seed < seeds; seed++)
        storm_run(seed, &ok);
    print_message("%u of %u transfers ended well\n", ok, seeds * STORM_PAIRS);
    assert_true(ok > seeds / 3);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(storm_of_faults_over_many_seeds),
};

TEST_MAIN(tests)
