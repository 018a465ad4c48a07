/* Layers by devices over the fake device and the fake group: ranks are threads. What is right, and
 * everything that can go wrong. */
#include <pthread.h>
#include <stdatomic.h>

#include "comm/device_fake.h"
#include "comm/fake.h"
#include "comm/nccl.h"
#include "tests/unit/comm/device_kit.h"

enum { WAIT_MS = 800 };

static const dk_shape small = {
    .rows_max = 40, .chosen = 4, .experts = 16, .row = 64, .scale = 8, .output = 96};

typedef struct team team;
typedef struct player {
    team *of;
    uint32_t rank;
    dk_rank kit;
    com_device_api api;
    sl_status status;
    sl_err err;
    pthread_t thread;
} player;

struct team {
    com_fake *fake;
    uint32_t size;
    uint64_t mask, open_ns;
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
        if (t->mask >> r & 1)
            assert_int_equal(
                pthread_create(&t->players[r].thread, NULL, player_main, &t->players[r]), 0);
    for (uint32_t r = 0; r < t->size; r++)
        if (t->mask >> r & 1)
            pthread_join(t->players[r].thread, NULL);
}

static void play_connect(player *p)
{
    p->status = com_group_connect(p->kit.group, p->of->contacts, &p->kit.layout,
                                  sl_now_ns() + DK_CONNECT_S * SL_S_NS, NULL, &p->err);
    if (sl_is_ok(p->status))
        dk_buffers(&p->kit);
}

static void assert_all_ok(const team *t)
{
    for (uint32_t r = 0; r < t->size; r++)
        if (t->mask >> r & 1)
            assert_ok(t->players[r].status, &t->players[r].err);
}

/* A group of threads that is connected; the devices are not open yet. */
static void team_start(team *t, const dk_shape *shape, uint32_t size, uint64_t mask,
                       uint64_t wait_ns)
{
    sl_err err;
    memset(t, 0, sizeof(*t));
    t->fake = com_fake_create();
    t->size = size;
    t->mask = mask;
    t->open_ns = DK_CONNECT_S * SL_S_NS;
    for (uint32_t r = 0; r < size; r++) {
        player *p = &t->players[r];
        const com_options options = {.instance = "test",
                                     .rank = r,
                                     .rank_count = size,
                                     .wait_ns = wait_ns,
                                     .backend = &com_backend_fake,
                                     .backend_context = t->fake};
        p->of = t;
        p->rank = r;
        p->api = com_device_fake;
        p->kit.api = &p->api;
        p->kit.stream = com_device_fake_stream_create();
        dk_layout(&p->kit, shape, size, mask);
        assert_ok(com_group_open(&options, &p->kit.group, &err), &err);
        t->contacts[r] = com_group_contact(p->kit.group);
    }
    team_play(t, play_connect);
    assert_all_ok(t);
}

static void play_open(player *p)
{
    const com_device_options options = {
        .group = p->kit.group, .api = &p->api, .stream = p->kit.stream, .device = (int32_t)p->rank};
    p->status =
        com_device_open(&options, sl_now_ns() + p->of->open_ns, NULL, &p->kit.device, &p->err);
}

static void team_open(team *t, uint32_t size, uint64_t wait_ns)
{
    team_start(t, &small, size, UINT64_MAX >> (64 - size), wait_ns);
    team_play(t, play_open);
    assert_all_ok(t);
}

static void play_close(player *p)
{
    com_device_close(p->kit.device);
    p->kit.device = NULL;
}

static void team_close(team *t)
{
    team_play(t, play_close);
    for (uint32_t r = 0; r < t->size; r++) {
        dk_free(&t->players[r].kit);
        com_device_fake_stream_destroy(t->players[r].kit.stream);
    }
    com_fake_destroy(t->fake);
}

/* ---- what is right */

static void play_layers(player *p)
{
    p->status = sl_ok();
    for (uint32_t i = 0; i < 30 && sl_is_ok(p->status); i++)
        p->status = dk_layer(&p->kit, i % DK_LAYERS, 1 + p->rank + i * 64, 0, true, &p->err);
}

TEST(rows_reach_their_experts_as_over_the_group)
{
    for (uint32_t size = 1; size <= 5; size++) {
        team t;
        uint64_t sent = 0, received = 0;
        team_open(&t, size, 0);
        team_play(&t, play_layers);
        assert_all_ok(&t);
        for (uint32_t r = 0; r < size; r++) {
            com_stats stats, host;
            com_device_stats_get(t.players[r].kit.device, &stats);
            com_stats_get(t.players[r].kit.group, &host);
            assert_int_equal(stats.layers, 30);
            assert_int_equal(stats.rows_sent, host.rows_sent);
            assert_int_equal(stats.rows_received, host.rows_received);
            assert_int_equal(stats.dispatch_bytes, host.dispatch_bytes);
            assert_int_equal(stats.combine_bytes, host.combine_bytes);
            assert_true(com_device_memory_bytes(t.players[r].kit.device) > 0);
            sent += stats.rows_sent;
            received += stats.rows_received;
        }
        assert_int_equal(sent, received);
        assert_int_equal(sent > 0, size > 1);
        team_close(&t);
    }
}

TEST(some_of_the_ranks_have_a_communicator)
{
    team t;
    team_start(&t, &small, 4, 0xD, 0);
    team_play(&t, play_open);
    assert_all_ok(&t);
    team_play(&t, play_layers);
    assert_all_ok(&t);
    team_close(&t);
}

static void play_faulty(player *p)
{
    p->status = dk_layer(&p->kit, 0, 1 + p->rank, p->rank == 1 ? 7 : 0, false, &p->err);
    for (uint32_t r = 0; r < p->of->size && sl_is_ok(p->status); r++)
        assert_int_equal(p->kit.faults[r], r == 1 ? 7 : 0);
    if (sl_is_ok(p->status)) /* the next layer is fine again */
        p->status = dk_layer(&p->kit, 1, 9 + p->rank, 0, false, &p->err);
    for (uint32_t r = 0; r < p->of->size && sl_is_ok(p->status); r++)
        assert_int_equal(p->kit.faults[r], 0);
}

TEST(a_rank_that_cannot_compute_says_so)
{
    team t;
    team_open(&t, 3, 0);
    team_play(&t, play_faulty);
    assert_all_ok(&t);
    team_close(&t);
}

/* ---- what goes wrong at the start */

static void assert_nobody_opened(const team *t)
{
    for (uint32_t r = 0; r < t->size; r++) {
        assert_false(sl_is_ok(t->players[r].status));
        assert_null(t->players[r].kit.device);
        assert_non_null(com_group_failed(t->players[r].kit.group));
    }
}

static uint32_t newer_version(void)
{
    return 2;
}

TEST(another_version_of_the_library_is_refused_by_all)
{
    team t;
    team_start(&t, &small, 3, 7, 0);
    t.players[2].api.library_version = newer_version;
    team_play(&t, play_open);
    assert_nobody_opened(&t);
    for (uint32_t r = 0; r < 3; r++)
        assert_code(t.players[r].status, SL_INCOMPATIBLE);
    assert_text_contains(t.players[0].err.text, "rank 2 has fake 2, this one 1");
    team_close(&t);
}

static int other_id(const uint8_t id[COM_DEVICE_ID_BYTES], uint32_t rank, uint32_t count,
                    com_link *out_link)
{
    uint8_t changed[COM_DEVICE_ID_BYTES];
    memcpy(changed, id, sizeof(changed));
    changed[3] ^= 1;
    return com_device_fake.link_create(changed, rank, count, out_link);
}

TEST(ranks_with_another_id_do_not_meet)
{
    team t;
    bool said = false;
    team_start(&t, &small, 2, 3, 0);
    t.open_ns = WAIT_MS * SL_MS_NS;
    t.players[1].api.link_create = other_id;
    team_play(&t, play_open);
    assert_nobody_opened(&t);
    for (uint32_t r = 0; r < 2; r++)
        said |= t.players[r].status.code == SL_DEADLINE &&
                strstr(t.players[r].err.text, "a communicator did not end in time");
    assert_true(said);
    team_close(&t);
}

static int no_memory(uint64_t bytes, void **out_memory)
{
    return COM_DEVICE_NO_MEMORY;
}

static int no_link(const uint8_t id[COM_DEVICE_ID_BYTES], uint32_t rank, uint32_t count,
                   com_link *out_link)
{
    return COM_DEVICE_FAILED;
}

static int no_id(uint8_t out_id[COM_DEVICE_ID_BYTES])
{
    return COM_DEVICE_FAILED;
}

static int no_event(com_event *out_event)
{
    return COM_DEVICE_FAILED;
}

static int no_device(int32_t device)
{
    return COM_DEVICE_UNSUPPORTED;
}

static int no_moves(com_link link, const com_device_move *moves, uint32_t count, com_stream stream)
{
    return COM_DEVICE_LOST;
}

static int no_copy(void *to, const void *from, uint64_t bytes, com_stream stream)
{
    return COM_DEVICE_FAILED;
}

/* Whatever fails on one rank: that one says what, the others do not wait for their deadline. */
static void one_fails(void (*spoil)(com_device_api *api), sl_code code, uint32_t rank)
{
    team t;
    team_start(&t, &small, 3, 7, 0);
    spoil(&t.players[rank].api);
    team_play(&t, play_open);
    assert_nobody_opened(&t);
    assert_code(t.players[rank].status, code);
    for (uint32_t r = 0; r < 3; r++)
        assert_true(t.players[r].status.code != SL_DEADLINE);
    team_close(&t);
}

static void spoil_memory(com_device_api *api)
{
    api->memory_create = no_memory;
}

static void spoil_host(com_device_api *api)
{
    api->host_create = no_memory;
}

static void spoil_link(com_device_api *api)
{
    api->link_create = no_link;
}

static void spoil_id(com_device_api *api)
{
    api->id_create = no_id;
}

static void spoil_event(com_device_api *api)
{
    api->event_create = no_event;
}

static void spoil_device(com_device_api *api)
{
    api->device_open = no_device;
}

static void spoil_moves(com_device_api *api)
{
    api->exchange = no_moves;
}

static void spoil_copy(com_device_api *api)
{
    api->copy = no_copy;
}

TEST(what_fails_at_the_start_fails_everywhere_at_once)
{
    one_fails(spoil_device, SL_UNSUPPORTED, 1);
    one_fails(spoil_event, SL_IO, 1);
    one_fails(spoil_memory, SL_NO_MEMORY, 2);
    one_fails(spoil_host, SL_NO_MEMORY, 0);
    one_fails(spoil_copy, SL_IO, 1);
    one_fails(spoil_id, SL_IO, 0);
    one_fails(spoil_link, SL_IO, 1);
    one_fails(spoil_moves, SL_UNAVAILABLE, 2);
}

TEST(rows_must_suit_the_device)
{
    const dk_shape odd[] = {
        {.rows_max = 4, .chosen = 2, .experts = 4, .row = 24, .scale = 8, .output = 96},
        {.rows_max = 4, .chosen = 2, .experts = 4, .row = 32, .scale = 6, .output = 96},
        {.rows_max = 4, .chosen = 2, .experts = 4, .row = 32, .scale = 8, .output = 40},
    };
    for (size_t i = 0; i < sizeof(odd) / sizeof(odd[0]); i++) {
        team t;
        team_start(&t, &odd[i], 1, 1, 0);
        team_play(&t, play_open);
        assert_code(t.players[0].status, SL_INVALID);
        team_close(&t);
    }
}

static volatile bool stop_now = true;

static void play_stopped(player *p)
{
    const com_device_options options = {
        .group = p->kit.group, .api = &p->api, .stream = p->kit.stream};
    if (p->rank == 0)
        p->api.link_create = other_id; /* so that there is something to stop */
    p->status = com_device_open(&options, SL_NEVER, &stop_now, &p->kit.device, &p->err);
}

TEST(an_open_can_be_stopped)
{
    team t;
    team_start(&t, &small, 2, 3, 0);
    team_play(&t, play_stopped);
    assert_nobody_opened(&t); /* who looks second hears of it from the group */
    assert_true(t.players[0].status.code == SL_CANCELLED ||
                t.players[1].status.code == SL_CANCELLED);
    team_close(&t);
}

/* ---- what goes wrong later */

/* All ranks fail, one of them with `code` and these words, and stay failed. */
static void assert_all_failed(team *t, sl_code code, const char *words)
{
    bool found = false;
    for (uint32_t r = 0; r < t->size; r++) {
        player *p = &t->players[r];
        assert_false(sl_is_ok(p->status));
        assert_non_null(com_group_failed(p->kit.group));
        found |= p->status.code == code && strstr(p->err.text, words);
        const com_rows none = {0};
        assert_code(com_device_dispatch_post(p->kit.device, &none, NULL, NULL), SL_UNAVAILABLE);
        assert_code(com_device_wait(p->kit.device, NULL), SL_UNAVAILABLE);
    }
    if (!found)
        fail_msg("nobody says \"%s\", but \"%s\"", words, t->players[0].err.text);
}

static uint32_t fail_at; /* layer in which rank 1 does what the test is about */
static void (*fail_how)(player *p);

static void play_until_failure(player *p)
{
    p->status = sl_ok();
    for (uint32_t i = 0; i < 1000000 && sl_is_ok(p->status); i++) {
        if (i == fail_at && p->rank == 1)
            fail_how(p);
        p->status = dk_layer(&p->kit, i % DK_LAYERS, 1 + p->rank + i * 64, 0, false, &p->err);
    }
}

static void later(void (*how)(player *p), uint64_t wait_ms, sl_code code, const char *words)
{
    team t;
    fail_at = 4;
    fail_how = how;
    team_open(&t, 3, wait_ms * SL_MS_NS);
    team_play(&t, play_until_failure);
    assert_all_failed(&t, code, words);
    team_close(&t);
}

static void how_killed(player *p)
{
    com_fake_kill(p->of->fake, p->rank); /* its links break, as when its process dies */
    p->api.exchange = no_moves;
}

TEST(a_dead_rank_ends_the_others_waits)
{
    later(how_killed, 0, SL_UNAVAILABLE, "rank 1 is gone");
}

static void how_aborted(player *p)
{
    com_abort(p->kit.group, "the operator said so");
}

TEST(the_abort_word_ends_all_waits)
{
    later(how_aborted, 0, SL_CANCELLED, "the operator said so");
}

static int silent(com_link link, const com_device_move *moves, uint32_t count, com_stream stream)
{
    return COM_DEVICE_OK; /* nothing leaves, nothing comes */
}

static int never(com_event event, uint32_t *out_done)
{
    *out_done = 0;
    return COM_DEVICE_OK;
}

static void how_silent(player *p)
{
    p->api.exchange = silent;
    p->api.event_done = never;
}

TEST(a_silent_device_is_found_at_the_deadline)
{
    later(how_silent, WAIT_MS, SL_DEADLINE, "did not end in time (fake)");
}

static int lost_state(com_link link, uint32_t *out_done)
{
    return COM_DEVICE_LOST;
}

static void how_lost(player *p)
{
    p->api.link_state = lost_state;
}

TEST(what_the_communicator_reports_is_heard)
{
    later(how_lost, 0, SL_UNAVAILABLE, "fake: ");
}

static int busy_state(com_link link, uint32_t *out_done)
{
    *out_done = 0;
    return COM_DEVICE_OK;
}

static void how_busy(player *p)
{
    p->api.link_state = busy_state;
}

TEST(moves_that_are_never_under_way_end_at_the_deadline)
{
    later(how_busy, WAIT_MS, SL_DEADLINE, "did not end in time");
}

static int event_broken(com_event event, uint32_t *out_done)
{
    return COM_DEVICE_FAILED;
}

static void how_event(player *p)
{
    p->api.event_done = event_broken;
}

static int no_record(com_event event, com_stream stream)
{
    return COM_DEVICE_FAILED;
}

static void how_record(player *p)
{
    p->api.event_record = no_record;
}

static int no_kernel(const com_device_rows_params *params, com_stream stream)
{
    return COM_DEVICE_FAILED;
}

static void how_count(player *p)
{
    p->api.count = no_kernel;
}

static void how_pack(player *p)
{
    p->api.pack = no_kernel;
}

static int no_gather(const com_device_outputs_params *params, com_stream stream)
{
    return COM_DEVICE_FAILED;
}

static void how_gather(player *p)
{
    p->api.gather = no_gather;
}

TEST(a_broken_device_fails_all)
{
    later(how_event, 0, SL_IO, "fake: ");
    later(how_record, 0, SL_IO, "fake: ");
    later(how_count, 0, SL_IO, "fake: dispatch");
    later(how_pack, 0, SL_IO, "fake: dispatch");
    later(how_gather, 0, SL_IO, "fake: a combine");
}

/* ---- counts that cannot be: rank 1's are changed on their way */

static uint32_t spoil_word; /* of com_device_count */
static uint32_t spoil_value;

static int spoiled_count(const com_device_rows_params *params, com_stream stream)
{
    static _Thread_local uint32_t word; /* a stream of work: it is copied later */
    int code = com_device_fake.count(params, stream);
    word = spoil_value;
    if (code != COM_DEVICE_OK)
        return code;
    return com_device_fake.copy((uint32_t *)params->counts + spoil_word, &word, sizeof(word),
                                stream);
}

static void how_spoiled(player *p)
{
    p->api.count = spoiled_count;
}

TEST(counts_that_cannot_be_fail_the_group)
{
    const struct {
        uint32_t word, value;
        const char *words;
    } cases[] = {
        {0, 17, "another epoch"},           {1, 17, "another epoch"},
        {2, 99, "another layer"},           {3, 77, "another layer"},
        {4, 41, "more than there"},         {5, 1000000, "more than there"},
        {5, UINT32_MAX, "more than there"}, {6, 1, "more than there"},
        {7, 1, "more than there"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        spoil_word = cases[i].word;
        spoil_value = cases[i].value;
        later(how_spoiled, 0, SL_CORRUPT, cases[i].words);
    }
}

/* ---- the end */

static void play_slow_close(player *p)
{
    if (p->rank == 0)
        play_close(p);
}

TEST(a_rank_that_closes_alone_does_not_wait_for_ever)
{
    team t;
    team_open(&t, 2, WAIT_MS * SL_MS_NS);
    team_play(&t, play_slow_close);
    assert_null(t.players[0].kit.device);
    assert_non_null(com_group_failed(t.players[0].kit.group));
    team_close(&t);
    com_device_close(NULL);
}

TEST(objects_that_are_not_ours_are_refused)
{
    const com_device_api *api = NULL;
    sl_err err;
    assert_code(com_nccl_load("./nothing-here.so", &api, &err), SL_UNSUPPORTED);
    assert_text_contains(err.text, "nothing-here.so");
    assert_code(com_nccl_load("libm.so.6", &api, &err), SL_INCOMPATIBLE);
    assert_text_contains(err.text, "libm.so.6 is not of version 1");
    assert_null(api);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(rows_reach_their_experts_as_over_the_group),
    cmocka_unit_test(some_of_the_ranks_have_a_communicator),
    cmocka_unit_test(a_rank_that_cannot_compute_says_so),
    cmocka_unit_test(another_version_of_the_library_is_refused_by_all),
    cmocka_unit_test(ranks_with_another_id_do_not_meet),
    cmocka_unit_test(what_fails_at_the_start_fails_everywhere_at_once),
    cmocka_unit_test(rows_must_suit_the_device),
    cmocka_unit_test(an_open_can_be_stopped),
    cmocka_unit_test(a_dead_rank_ends_the_others_waits),
    cmocka_unit_test(the_abort_word_ends_all_waits),
    cmocka_unit_test(a_silent_device_is_found_at_the_deadline),
    cmocka_unit_test(what_the_communicator_reports_is_heard),
    cmocka_unit_test(moves_that_are_never_under_way_end_at_the_deadline),
    cmocka_unit_test(a_broken_device_fails_all),
    cmocka_unit_test(counts_that_cannot_be_fail_the_group),
    cmocka_unit_test(a_rank_that_closes_alone_does_not_wait_for_ever),
    cmocka_unit_test(objects_that_are_not_ours_are_refused),
};
TEST_MAIN(tests)
