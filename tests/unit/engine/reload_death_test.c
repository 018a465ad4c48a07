/* A rank dies in the very messages by which all ranks go over to other weights: the others meet
 * again, all with the new ones or all with the old ones, and every stream is what one process with
 * those gives. Ranks are threads over the fake, which loses what the dead one sent last; each
 * formation has a fake of its own. */
#include <pthread.h>

#include "comm/fake.h"
#include "comm/wire.h"
#include "engine/reload.h"
#include "tests/unit/engine/parallel_kit.h"

enum {
    SIZE = 3,
    DIES = 2,
    SLOTS = 4, /* of 8 experts: room for all of them on two ranks */
    LAYERS = 3,
    ENTRIES = LAYERS * SIZE * SLOTS,
    FORMATIONS = 3,
    ALL = 7,
    REST = 3,
};

static const nano_options OLD = {.echo = true};
static const nano_options NEW = {.echo = true,
                                 .change = "model.layers.2.mlp.experts.5.down_proj.weight"};

typedef struct game game;
typedef struct player {
    game *of;
    uint32_t rank;
    rig r;
    eng_model *fresh;
    uint32_t version;
    com_group *groups[FORMATIONS + 1]; /* by number */
    eng_formation formations[FORMATIONS + 1];
    kit_play play;
    pthread_t thread;
    sl_status status; /* of the last act */
    sl_err err;
    eng_reload_told told;
    bool over; /* of the last attempt at a formation */
} player;

struct game {
    nano files, other;
    kit_stream streams[KIT_STREAMS];
    player players[SIZE];
    com_fake *fakes[FORMATIONS + 1];
    uint32_t number; /* of the formation that is made */
    uint64_t mask;
    void (*act)(player *p);
};

static kit_stream expected_old[KIT_STREAMS], expected_new[KIT_STREAMS];

/* ---- threads of the ranks */

static void *player_main(void *argument)
{
    player *p = argument;
    p->of->act(p);
    return NULL;
}

static void begin(game *g, uint64_t mask, void (*act)(player *p))
{
    g->act = act;
    for (uint32_t r = 0; r < SIZE; r++)
        if (mask >> r & 1)
            assert_int_equal(
                pthread_create(&g->players[r].thread, NULL, player_main, &g->players[r]), 0);
}

static void await(game *g, uint64_t mask)
{
    for (uint32_t r = 0; r < SIZE; r++)
        if (mask >> r & 1)
            pthread_join(g->players[r].thread, NULL);
}

/* ---- formations */

static void table_fill(uint64_t mask, uint16_t *out_table)
{
    for (uint32_t i = 0, next = 0; i < ENTRIES; i++)
        out_table[i] =
            mask >> (i / SLOTS % SIZE) & 1 ? (uint16_t)(next++ % NANO_EXPERTS) : COM_NO_EXPERT;
}

static void player_open(game *g, uint32_t rank)
{
    player *p = &g->players[rank];
    uint16_t table[ENTRIES];
    table_fill(ALL, table);
    *p = (player){.of = g, .rank = rank, .version = 1};
    const eng_model_options model = {.dir = g->files.dir,
                                     .threads = 1,
                                     .ep_rank = rank,
                                     .ep_size = SIZE,
                                     .ep_table = table,
                                     .ep_slots = SLOTS};
    assert_ok(eng_model_open(&model, &p->r.model, &p->err), &p->err);
}

static void player_fresh(player *p)
{
    uint16_t table[ENTRIES];
    table_fill(ALL, table);
    const eng_model_options model = {.dir = p->of->other.dir,
                                     .threads = 1,
                                     .ep_rank = p->rank,
                                     .ep_size = SIZE,
                                     .ep_table = table,
                                     .ep_slots = SLOTS};
    assert_ok(eng_model_open(&model, &p->fresh, &p->err), &p->err);
}

static sl_status make(player *p, com_group *group, eng_formation *made, sl_err *err)
{
    const eng_options options = kit_engine_options(NULL);
    const eng_reload_doubt weights = {p->version, p->told.doubt ? p->fresh : NULL, 2};
    const char *contacts[SIZE] = {NULL};
    uint16_t table[ENTRIES];
    com_layout layout;
    for (uint32_t r = 0; r < SIZE; r++)
        if (p->of->mask >> r & 1)
            contacts[r] = com_group_contact(p->of->players[r].groups[p->of->number]);
    table_fill(p->of->mask, table);
    eng_model_ranks_layout(p->r.model, (uint32_t)options.rows_max, &layout);
    layout.slots = table;
    layout.rank_mask = p->of->mask;
    layout.formation = p->of->number;
    SL_TRY(com_group_connect(group, contacts, &layout, sl_now_ns() + 60 * SL_S_NS, NULL, err));
    SL_TRY(eng_model_settle(p->r.model, &weights, group, &p->over, err));
    SL_TRY(eng_experts_load(p->r.model, table, NULL, &made->experts, err));
    if (!p->r.engine)
        SL_TRY(eng_engine_create(p->r.model, &options, &p->r.engine, err));
    return com_gather(group, NULL, 0, NULL, err);
}

static uint64_t used(const player *p)
{
    eng_ranks_state state;
    eng_engine_ranks_state(p->r.engine, &state);
    return state.used;
}

/* Makes it, and goes over to it if all could. */
static void act_form(player *p)
{
    uint32_t number = p->of->number;
    eng_formation *made = &p->formations[number];
    p->over = false;
    p->status = make(p, p->groups[number], made, &p->err);
    if (!sl_is_ok(p->status))
        return;
    made->number = number;
    made->group = p->groups[number];
    made->model = p->r.model;
    eng_engine_offer(p->r.engine, made);
    while (used(p) != number)
        if (!eng_engine_take_part(p->r.engine))
            (void)poll(NULL, 0, 1);
}

static void form(game *g, uint32_t number, uint64_t mask)
{
    sl_err err;
    g->number = number;
    g->mask = mask;
    g->fakes[number] = com_fake_create();
    for (uint32_t r = 0; r < SIZE; r++) {
        const com_options options = {.instance = "test",
                                     .rank = r,
                                     .rank_count = SIZE,
                                     .wait_ns = 60 * SL_S_NS,
                                     .backend = &com_backend_fake,
                                     .backend_context = g->fakes[number]};
        if (mask >> r & 1)
            assert_ok(com_group_open(&options, &g->players[r].groups[number], &err), &err);
    }
    begin(g, mask, act_form);
    await(g, mask);
}

/* ---- the change */

static bool all_ready(player *p)
{
    eng_reload_word words[COM_RANKS_MAX];
    eng_engine_reload_words(p->r.engine, words);
    for (uint32_t r = 0; r < SIZE; r++)
        if (words[r].version != 2 || words[r].stage != ENG_RELOAD_READY)
            return false;
    return true;
}

static void act_ready(player *p)
{
    player_fresh(p);
    eng_engine_tell_reload(p->r.engine, 2, ENG_RELOAD_READY);
    while (!all_ready(p))
        if (!eng_engine_take_part(p->r.engine))
            (void)poll(NULL, 0, 1);
}

/* As all are ready, the next headers are those in which all say GO. */
static void act_go(player *p)
{
    const eng_reload_together how = {.version = 2, .formation = 1, .wait_ns = 60 * SL_S_NS};
    p->status =
        eng_engine_reload_together(p->r.engine, p->r.model, p->fresh, &how, &p->told, &p->err);
    p->version = sl_is_ok(p->status) ? 2 : 1;
    eng_engine_tell_reload(p->r.engine, 2,
                           sl_is_ok(p->status) ? ENG_RELOAD_NONE : ENG_RELOAD_REFUSED);
}

static void act_find_out(player *p)
{
    while (eng_engine_take_part(p->r.engine)) /* the failed group, which ends nothing here */
        ;
    assert_null(eng_engine_broken(p->r.engine));
}

static void act_play(player *p)
{
    const uint32_t ranks = (uint32_t)__builtin_popcountll(p->of->mask);
    kit_play_all(&p->play, p->r.engine, p->of->streams, p->rank, ranks);
}

/* All ranks of the mask go on until all have played. */
static _Atomic uint32_t played;

static void act_play_together(player *p)
{
    act_play(p);
    played++;
    while (played < (uint32_t)__builtin_popcountll(p->of->mask))
        if (!eng_engine_take_part(p->r.engine))
            (void)poll(NULL, 0, 1);
}

/* What all ranks must give, by either weights; the two differ. */
static void expect(const game *g)
{
    uint32_t differ = 0;
    kit_alone(g->files.dir, expected_old);
    kit_alone(g->other.dir, expected_new);
    for (uint32_t i = 0; i < KIT_STREAMS; i++)
        differ += expected_old[i].sum != expected_new[i].sum;
    assert_true(differ > 0);
}

static void wait_sent(game *g, uint32_t rank, uint32_t kind, uint32_t more)
{
    const sl_time_ns deadline = sl_now_ns() + 60 * SL_S_NS;
    while (com_fake_sent(g->fakes[1], rank, kind) < more) {
        if (sl_now_ns() > deadline)
            fail_msg("rank %u has not sent %u messages of kind %u", rank, more, kind);
        (void)poll(NULL, 0, 1);
    }
}

static void player_close(player *p)
{
    eng_engine_destroy(p->r.engine);
    for (uint32_t n = 1; n <= FORMATIONS; n++) {
        eng_experts_destroy(p->formations[n].experts);
        com_group_close(p->groups[n]);
    }
    eng_model_close(p->fresh);
    eng_model_close(p->r.model);
}

static void check_streams(const game *g, const kit_stream *expected)
{
    for (uint32_t i = 0; i < KIT_STREAMS; i++)
        if (g->streams[i].sum != expected[i].sum)
            fail_msg("stream %u is not what one process gives", i);
}

/* The dead rank's last messages of a kind reach the ranks outside `lost` only. Afterwards: who is
 * in doubt, who has gone over, and what all have in the end. */
typedef struct death {
    uint32_t kind;
    uint64_t lost;
    uint64_t doubt, gone;
} death;

static void check_after(const game *g, const death *d)
{
    for (uint32_t r = 0; r < SIZE; r++) {
        const player *p = &g->players[r];
        if ((REST >> r & 1) == 0)
            continue;
        bool gone = d->gone >> r & 1;
        assert_code(p->status, gone ? SL_OK : SL_UNAVAILABLE);
        assert_int_equal(p->told.doubt, d->doubt >> r & 1);
        assert_string_equal(eng_engine_stamp(p->r.engine)->weights_version, gone ? "2" : "1");
    }
}

static void settle(game *g, const death *d)
{
    form(g, 2, REST);
    bool split = d->gone != 0 && d->doubt != 0;
    for (uint32_t r = 0; r < SIZE && split; r++) {
        player *p = &g->players[r];
        if ((REST >> r & 1) == 0)
            continue;
        assert_code(p->status, SL_CONFLICT);
        assert_int_equal(p->over, d->doubt >> r & 1);
        if (!p->over)
            continue;
        assert_ok(eng_engine_reload_late(p->r.engine, p->r.model, p->fresh, 2, &p->told, &p->err),
                  &p->err);
        p->version = 2;
    }
    if (split)
        form(g, 3, REST);
    for (uint32_t r = 0; r < SIZE; r++)
        if (REST >> r & 1)
            assert_ok(g->players[r].status, &g->players[r].err);
}

static void dies(const death *d)
{
    static game g;
    memset(&g, 0, sizeof(g));
    nano_make(&g.files, &OLD);
    nano_make(&g.other, &NEW);
    if (expected_old[0].known == 0)
        expect(&g);
    for (uint32_t r = 0; r < SIZE; r++)
        player_open(&g, r);
    form(&g, 1, ALL);
    begin(&g, ALL, act_ready);
    await(&g, ALL);
    uint32_t before[SIZE];
    for (uint32_t r = 0; r < SIZE; r++)
        before[r] = com_fake_sent(g.fakes[1], r, COM_KIND_GATHER);
    com_fake_lose(g.fakes[1], DIES, d->lost, d->kind);
    begin(&g, ALL, act_go);
    for (uint32_t r = 0; r < SIZE; r++)
        if ((d->doubt | d->gone) >> r & 1)
            wait_sent(&g, r, COM_KIND_GATHER, before[r] + SIZE - 1);
    await(&g, d->gone);
    com_fake_kill(g.fakes[1], DIES);
    com_abort(g.players[DIES].groups[1], "it died");
    await(&g, ALL & ~d->gone);
    begin(&g, REST, act_find_out);
    await(&g, REST);
    check_after(&g, d);
    settle(&g, d);
    kit_streams(g.streams);
    played = 0;
    begin(&g, REST, act_play_together);
    await(&g, REST);
    check_streams(&g, d->gone ? expected_new : expected_old);
    for (uint32_t r = 0; r < SIZE; r++)
        player_close(&g.players[r]);
    for (uint32_t n = 1; n <= FORMATIONS; n++)
        com_fake_destroy(g.fakes[n]);
    nano_remove(&g.files);
    nano_remove(&g.other);
}

TEST(a_rank_dies_in_the_header_in_which_all_agree)
{
    dies(&(death){.kind = COM_KIND_HEADER, .lost = 2, .doubt = 1});
    dies(&(death){.kind = COM_KIND_HEADER, .lost = REST});
}

TEST(a_rank_dies_before_anybody_has_its_sums)
{
    dies(&(death){.kind = COM_KIND_GATHER, .lost = REST, .doubt = REST});
}

TEST(a_rank_dies_when_one_has_its_sums_and_the_other_has_not)
{
    dies(&(death){.kind = COM_KIND_GATHER, .lost = 2, .doubt = 2, .gone = 1});
    dies(&(death){.kind = COM_KIND_GATHER, .lost = 1, .doubt = 1, .gone = 2});
}

TEST(a_rank_dies_when_all_have_gone_over)
{
    dies(&(death){.kind = COM_KIND_GATHER, .gone = REST});
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_rank_dies_in_the_header_in_which_all_agree),
    cmocka_unit_test(a_rank_dies_before_anybody_has_its_sums),
    cmocka_unit_test(a_rank_dies_when_one_has_its_sums_and_the_other_has_not),
    cmocka_unit_test(a_rank_dies_when_all_have_gone_over),
};
TEST_MAIN(tests)
