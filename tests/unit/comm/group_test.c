/* The group over the fake: ranks are threads. What is right, and everything that can go wrong. */
#include <pthread.h>

#include "comm/fake.h"
#include "comm/wire.h"
#include "tests/unit/comm/kit.h"

typedef struct team team;
typedef struct player {
    team *of;
    kit_rank rank;
    sl_status status;
    sl_err err;
    uint32_t faulty;
    pthread_t thread;
} player;

struct team {
    com_fake *fake;
    uint32_t size;
    uint64_t connect_ns;
    player players[COM_RANKS_MAX];
    const char *contacts[COM_RANKS_MAX];
    void (*play)(player *p);
};

static void *player_main(void *argument)
{
    player *p = argument;
    p->of->play(p);
    return NULL;
}

static void team_play(team *t, void (*play)(player *p))
{
    t->play = play;
    for (uint32_t r = 0; r < t->size; r++)
        assert_int_equal(pthread_create(&t->players[r].thread, NULL, player_main, &t->players[r]),
                         0);
    for (uint32_t r = 0; r < t->size; r++)
        pthread_join(t->players[r].thread, NULL);
}

static void play_connect(player *p)
{
    p->status = com_group_connect(p->rank.group, p->of->contacts, &p->rank.layout,
                                  sl_now_ns() + p->of->connect_ns, NULL, &p->err);
}

static void team_open(team *t, uint32_t size, uint64_t wait_ns)
{
    sl_err err;
    memset(t, 0, sizeof(*t));
    t->fake = com_fake_create();
    t->size = size;
    t->connect_ns = KIT_CONNECT_S * SL_S_NS;
    for (uint32_t r = 0; r < size; r++) {
        player *p = &t->players[r];
        const com_options options = {.instance = "test",
                                     .rank = r,
                                     .rank_count = size,
                                     .wait_ns = wait_ns,
                                     .carries = r % 2 == 1,
                                     .backend = &com_backend_fake,
                                     .backend_context = t->fake};
        p->of = t;
        kit_layout(&p->rank, size);
        assert_ok(com_group_open(&options, &p->rank.group, &err), &err);
        t->contacts[r] = com_group_contact(p->rank.group);
    }
}

static void team_connect(team *t)
{
    team_play(t, play_connect);
    for (uint32_t r = 0; r < t->size; r++) {
        assert_ok(t->players[r].status, &t->players[r].err);
        kit_buffers(&t->players[r].rank);
    }
}

static void team_close(team *t)
{
    for (uint32_t r = 0; r < t->size; r++)
        kit_free(&t->players[r].rank);
    com_fake_destroy(t->fake);
}

/* ---- what is right */

static void play_runs(player *p)
{
    p->status = sl_ok();
    for (uint32_t run = 0; run < 20 && sl_is_ok(p->status); run++)
        p->status = kit_run(&p->rank, run, 3, &p->err);
}

static void assert_all_ok(const team *t)
{
    for (uint32_t r = 0; r < t->size; r++)
        assert_ok(t->players[r].status, &t->players[r].err);
}

TEST(rows_reach_their_experts_and_come_back)
{
    for (uint32_t size = 1; size <= 5; size++) {
        team t;
        com_stats stats;
        uint64_t sent = 0, received = 0;
        team_open(&t, size, 0);
        team_connect(&t);
        team_play(&t, play_runs);
        assert_all_ok(&t);
        for (uint32_t r = 0; r < size; r++) {
            com_stats_get(t.players[r].rank.group, &stats);
            assert_int_equal(stats.runs, 20);
            assert_int_equal(stats.layers, 60);
            sent += stats.rows_sent;
            received += stats.rows_received;
            assert_int_equal(stats.dispatch_bytes > 0, size > 1);
            assert_int_equal(stats.combine_bytes > 0, size > 1);
        }
        assert_int_equal(sent, received);
        team_close(&t);
    }
}

static void play_gather(player *p)
{
    const size_t bytes = 100000; /* several windows */
    uint32_t rank = com_group_rank(p->rank.group);
    uint8_t *mine = sl_alloc(bytes, 1, "mine"), *all = sl_alloc(p->of->size, bytes, "all");
    for (size_t i = 0; i < bytes; i++)
        mine[i] = (uint8_t)(i * 7 + rank);
    p->status = com_gather(p->rank.group, mine, bytes, all, &p->err);
    for (size_t i = 0; i < p->of->size * bytes; i++)
        assert_int_equal(all[i], (uint8_t)(i % bytes * 7 + i / bytes));
    sl_free(mine);
    sl_free(all);
}

TEST(gather_brings_everybody_everything)
{
    team t;
    team_open(&t, 3, 0);
    team_connect(&t);
    team_play(&t, play_gather);
    assert_all_ok(&t);
    team_close(&t);
}

TEST(a_header_is_pending_until_it_is_answered)
{
    team t;
    sl_err err;
    com_header headers[COM_RANKS_MAX];
    team_open(&t, 2, 0);
    team_connect(&t);
    com_group *a = t.players[0].rank.group, *b = t.players[1].rank.group;
    assert_false(com_header_pending(a));
    assert_false(com_header_pending(b));
    assert_true(com_arm(b));
    assert_ok(com_header_post(a, &(com_header){.wish = 2, .rank_mask = 3}, &err), &err);
    assert_false(com_arm(b));
    assert_true(com_header_pending(b));
    assert_true(com_header_pending(b));
    assert_ok(com_header_post(b, &(com_header){.rank_mask = 3}, &err), &err);
    assert_ok(com_header_wait(a, headers, &err), &err);
    assert_ok(com_header_wait(b, headers, &err), &err);
    assert_int_equal(headers[0].wish, 2);
    assert_int_equal(headers[1].wish, 0);
    assert_false(com_header_pending(a));
    assert_false(com_header_pending(b));
    team_close(&t);
}

/* ---- what goes wrong */

static void assert_all_failed(team *t, sl_code one, const char *words)
{
    bool found = false;
    for (uint32_t r = 0; r < t->size; r++) {
        const char *failed = com_group_failed(t->players[r].rank.group);
        assert_false(sl_is_ok(t->players[r].status));
        assert_non_null(failed);
        found |= t->players[r].status.code == one && strstr(failed, words);
        /* and it stays so */
        assert_code(com_header_post(t->players[r].rank.group, &(com_header){0}, NULL),
                    t->players[r].status.code);
        assert_true(com_header_pending(t->players[r].rank.group));
    }
    if (!found)
        fail_msg("nobody says \"%s\"", words);
}

static void play_until_failure(player *p)
{
    p->status = sl_ok();
    for (uint32_t run = 0; run < 100000 && sl_is_ok(p->status); run++) {
        if (run == 5 && com_group_rank(p->rank.group) == 1)
            com_fake_kill(p->of->fake, 1);
        p->status = kit_run(&p->rank, run, 2, &p->err);
    }
}

TEST(a_dead_rank_fails_the_others)
{
    team t;
    team_open(&t, 3, 2 * SL_S_NS); /* which the dead one waits itself */
    team_connect(&t);
    team_play(&t, play_until_failure);
    assert_all_failed(&t, SL_UNAVAILABLE, "rank 1 is gone");
    assert_int_equal(
        com_group_lost(t.players[0].rank.group) | com_group_lost(t.players[2].rank.group), 2);
    team_close(&t);
}

static void play_held(player *p)
{
    if (com_group_rank(p->rank.group) == 2)
        com_fake_hold(p->of->fake, 2, true);
    p->status = kit_run(&p->rank, 0, 2, &p->err);
}

TEST(a_silent_rank_is_named_at_the_deadline)
{
    team t;
    team_open(&t, 3, 500 * SL_MS_NS);
    team_connect(&t);
    team_play(&t, play_held);
    bool named = false; /* rank 2 itself has heard all */
    for (uint32_t r = 0; r < 2; r++) {
        assert_false(sl_is_ok(t.players[r].status));
        named |= strstr(com_group_failed(t.players[r].rank.group), "from rank 2") != NULL &&
                 com_group_lost(t.players[r].rank.group) == 4;
    }
    assert_true(named);
    com_fake_hold(t.fake, 2, false);
    team_close(&t);
}

/* Ranks 0 and 2 of three come together without rank 1, which is gone: it keeps its number. */
static void play_without(player *p)
{
    p->rank.layout.rank_mask = 5;
    p->rank.layout.formation = 7;
    for (uint32_t layer = 0; layer < KIT_LAYERS; layer++) {
        uint16_t *gone = kit_slots_of(&p->rank, 3, layer, 1);
        for (uint32_t rank = 0; rank < 3; rank += 2)
            for (uint32_t e = 0; e < KIT_EXPERTS; e++) /* some twice, some of it elsewhere too */
                kit_slots_of(&p->rank, 3, layer, rank)[e] = (uint16_t)((e + rank) % KIT_EXPERTS);
        for (uint32_t i = 0; i < KIT_SLOTS; i++)
            gone[i] = COM_NO_EXPERT;
    }
    play_connect(p);
    if (!sl_is_ok(p->status))
        return;
    kit_buffers(&p->rank);
    play_runs(p);
}

TEST(some_of_the_ranks_come_together)
{
    team t;
    team_open(&t, 3, 0);
    t.contacts[1] = NULL;
    t.play = play_without;
    for (uint32_t r = 0; r < 3; r += 2)
        assert_int_equal(pthread_create(&t.players[r].thread, NULL, player_main, &t.players[r]), 0);
    for (uint32_t r = 0; r < 3; r += 2) {
        pthread_join(t.players[r].thread, NULL);
        assert_ok(t.players[r].status, &t.players[r].err);
        assert_int_equal(com_group_mask(t.players[r].rank.group), 5);
    }
    team_close(&t);
}

static void play_abort(player *p)
{
    p->status = sl_ok();
    for (uint32_t run = 0; run < 100000 && sl_is_ok(p->status); run++) {
        if (run == 3 && com_group_rank(p->rank.group) == 0)
            com_abort(p->rank.group, "the operator said so");
        p->status = kit_run(&p->rank, run, 2, &p->err);
    }
}

TEST(the_abort_word_ends_all_waits)
{
    team t;
    team_open(&t, 3, 0);
    team_connect(&t);
    team_play(&t, play_abort);
    assert_all_failed(&t, SL_CANCELLED, "the operator said so");
    team_close(&t);
}

static uint32_t corrupt_at;
static bool corrupt_head;

static void play_corrupt(player *p)
{
    p->status = sl_ok();
    if (com_group_rank(p->rank.group) == 1)
        com_fake_corrupt(p->of->fake, 1, corrupt_at, corrupt_head);
    for (uint32_t run = 0; run < 8 && sl_is_ok(p->status); run++)
        p->status = kit_run(&p->rank, run, 2, &p->err);
}

/* A flipped bit in the list of experts, or in a message's head. (Rows carry no sum: what UCX
 * delivers is what was sent.) */
TEST(nonsense_fails_the_group)
{
    const uint32_t heads[] = {COM_WIRE_SIZE,      COM_WIRE_SIZE - 5,  COM_WIRE_SIZE - 11,
                              COM_WIRE_SIZE - 12, COM_WIRE_SIZE - 16, COM_WIRE_SIZE - 20,
                              COM_WIRE_SIZE - 32, COM_WIRE_SIZE - 56, 8};
    for (size_t i = 0; i <= sizeof(heads) / sizeof(heads[0]); i++) {
        team t;
        corrupt_head = i > 0;
        corrupt_at = i > 0 ? heads[i - 1] : 2;
        team_open(&t, 3, 300 * SL_MS_NS);
        team_connect(&t);
        team_play(&t, play_corrupt);
        for (uint32_t r = 0; r < 3; r++)
            if (sl_is_ok(t.players[r].status))
                fail_msg("byte %u from the end of the %s: rank %u goes on", corrupt_at,
                         corrupt_head ? "head" : "data", r);
        team_close(&t);
    }
}

static void play_fault(player *p)
{
    sl_err err;
    p->status = com_header_post(p->rank.group, &(com_header){.wish = 1}, &err);
    com_header headers[COM_RANKS_MAX];
    p->status = com_header_wait(p->rank.group, headers, &err);
    uint32_t rank = com_group_rank(p->rank.group), ignored;
    p->status = kit_layer(&p->rank, 0, rank + 2, rank == 1, &p->faulty, &p->err);
    if (sl_is_ok(p->status)) /* the next layer is fine again */
        p->status = kit_layer(&p->rank, 1, rank + 7, false, &ignored, &p->err);
}

TEST(a_rank_that_cannot_compute_says_so)
{
    team t;
    team_open(&t, 3, 0);
    team_connect(&t);
    team_play(&t, play_fault);
    assert_all_ok(&t);
    assert_int_equal(t.players[0].faulty, 1);
    assert_int_equal(t.players[1].faulty, 3); /* it knows by itself */
    assert_int_equal(t.players[2].faulty, 1);
    team_close(&t);
}

TEST(connect_refuses_other_ranks_and_layouts_and_may_be_tried_again)
{
    team t;
    team_open(&t, 2, 0);
    t.connect_ns = 400 * SL_MS_NS; /* for those that do not come together */
    t.players[1].rank.layout.rows_max--;
    team_play(&t, play_connect);
    for (uint32_t r = 0; r < 2; r++)
        assert_false(sl_is_ok(t.players[r].status));
    t.players[1].rank.layout.rows_max++;
    kit_slots_of(&t.players[1].rank, 2, 2, 1)[15] = 3; /* twice there */
    team_play(&t, play_connect);
    for (uint32_t r = 0; r < 2; r++)
        assert_false(sl_is_ok(t.players[r].status));
    kit_layout(&t.players[1].rank, 2);
    const char *right = t.contacts[0]; /* rank 0 was started again, rank 1 does not know it yet */
    t.contacts[0] = "fake:0#0123456789abcdef";
    play_connect(&t.players[0]);
    assert_code(t.players[0].status, SL_CONFLICT);
    assert_false(com_group_failed(t.players[0].rank.group));
    t.contacts[0] = "nonsense";
    play_connect(&t.players[0]);
    assert_code(t.players[0].status, SL_INVALID);
    t.contacts[0] = right;
    play_connect(&t.players[1]); /* alone */
    assert_code(t.players[1].status, SL_DEADLINE);
    t.connect_ns = KIT_CONNECT_S * SL_S_NS;
    team_connect(&t);
    team_play(&t, play_runs);
    assert_all_ok(&t);
    team_close(&t);
}

TEST(options_are_checked)
{
    sl_err err;
    com_group *group;
    com_options options = {
        .instance = "x", .rank = 2, .rank_count = 2, .backend = &com_backend_fake};
    assert_code(com_group_open(&options, &group, &err), SL_INVALID);
    options.rank_count = COM_RANKS_MAX + 1;
    assert_code(com_group_open(&options, &group, &err), SL_INVALID);
    team t;
    team_open(&t, 1, 0);
    t.players[0].rank.layout.chosen = COM_CHOSEN_MAX + 1;
    play_connect(&t.players[0]);
    assert_code(t.players[0].status, SL_INVALID);
    kit_layout(&t.players[0].rank, 1);
    kit_slots_of(&t.players[0].rank, 1, 1, 0)[0] = COM_NO_EXPERT;
    play_connect(&t.players[0]);
    assert_code(t.players[0].status, SL_INVALID);
    assert_text_contains(t.players[0].err.text, "layer 1: expert 0 is placed nowhere");
    kit_slots_of(&t.players[0].rank, 1, 1, 0)[0] = KIT_EXPERTS;
    play_connect(&t.players[0]);
    assert_code(t.players[0].status, SL_INVALID);
    kit_layout(&t.players[0].rank, 1);
    t.players[0].rank.layout.layer_count = COM_LAYERS_MAX + 1;
    play_connect(&t.players[0]);
    assert_code(t.players[0].status, SL_INVALID);
    kit_layout(&t.players[0].rank, 1);
    t.players[0].rank.layout.rank_mask = 2;
    play_connect(&t.players[0]);
    assert_code(t.players[0].status, SL_INVALID);
    kit_free(&t.players[0].rank);
    com_fake_destroy(t.fake);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(rows_reach_their_experts_and_come_back),
    cmocka_unit_test(gather_brings_everybody_everything),
    cmocka_unit_test(a_header_is_pending_until_it_is_answered),
    cmocka_unit_test(a_dead_rank_fails_the_others),
    cmocka_unit_test(a_silent_rank_is_named_at_the_deadline),
    cmocka_unit_test(some_of_the_ranks_come_together),
    cmocka_unit_test(the_abort_word_ends_all_waits),
    cmocka_unit_test(nonsense_fails_the_group),
    cmocka_unit_test(a_rank_that_cannot_compute_says_so),
    cmocka_unit_test(connect_refuses_other_ranks_and_layouts_and_may_be_tried_again),
    cmocka_unit_test(options_are_checked),
};
TEST_MAIN(tests)
