/* Other weights on all ranks of an instance at once: afterwards every stream is what one process
 * with those weights gives; whatever is wrong on one rank leaves the old ones on all. Ranks are
 * threads over the fake, each with its own copy of the files. */
#include <pthread.h>
#include <stdatomic.h>

#include "comm/fake.h"
#include "engine/reload.h"
#include "tests/unit/engine/parallel_kit.h"

enum { SIZE = 3, WAIT_MS = 20000 };

static const nano_options OLD = {.echo = true};
static const nano_options NEW = {.echo = true,
                                 .change = "model.layers.2.mlp.experts.5.down_proj.weight"};

/* In what all ranks have: an expert is only looked at by those that hold it. */
static const nano_options THIRD = {.echo = true, .change = "model.layers.1.input_layernorm.weight"};

typedef struct game game;
typedef struct player {
    game *of;
    uint32_t rank;
    rig r;
    com_group *group;
    const char *contacts[SIZE];
    eng_model *fresh;
    kit_play play;
    pthread_t thread;
    sl_code code; /* of the last reload */
    sl_err err;
} player;

struct game {
    nano files, other, third;
    kit_stream streams[KIT_STREAMS];
    player players[SIZE];
    void (*act)(player *p);
    _Atomic uint32_t arrived;
};

/* cmocka's own are for its thread only. */
#define MUST(p, condition)                                                               \
    do {                                                                                 \
        if (!(condition)) {                                                              \
            fprintf(stderr, "line %d, rank %u: %s (code %d, %s)\n", __LINE__, (p)->rank, \
                    #condition, (p)->code, (p)->err.text);                               \
            abort();                                                                     \
        }                                                                                \
    } while (0)

/* All ranks come here, taking part in the others' runs until they have. */
static void meet(player *p)
{
    game *g = p->of;
    uint32_t target = (g->arrived++ / SIZE + 1) * SIZE;
    while (g->arrived < target)
        if (!eng_engine_take_part(p->r.engine))
            (void)poll(NULL, 0, 1);
}

static void play(player *p)
{
    kit_play_all(&p->play, p->r.engine, p->of->streams, p->rank, SIZE);
    meet(p);
}

static uint64_t all_at(player *p, uint32_t version, eng_reload_stage stage)
{
    eng_reload_word words[COM_RANKS_MAX];
    uint64_t mask = 0;
    eng_engine_reload_words(p->r.engine, words);
    for (uint32_t r = 0; r < SIZE; r++)
        if (words[r].version == version && words[r].stage == stage)
            mask |= 1ull << r;
    return mask;
}

static void wait_all(player *p, uint32_t version, eng_reload_stage stage)
{
    eng_engine_tell_reload(p->r.engine, version, stage);
    while (all_at(p, version, stage) != (1u << SIZE) - 1)
        if (!eng_engine_take_part(p->r.engine))
            (void)poll(NULL, 0, 1);
}

static void reload(player *p, uint32_t version, uint64_t wait_ns)
{
    const eng_reload_together how = {.version = version, .wait_ns = wait_ns};
    eng_reload_told told;
    p->code =
        eng_engine_reload_together(p->r.engine, p->r.model, p->fresh, &how, &told, &p->err).code;
    MUST(p, told.tier.text[0] == '\0' && !told.doubt);
    eng_engine_tell_reload(p->r.engine, version,
                           p->code == SL_OK ? ENG_RELOAD_NONE : ENG_RELOAD_REFUSED);
}

static void open_fresh(player *p, const char *dir)
{
    const eng_model_options options = {
        .dir = dir, .threads = 1, .ep_rank = p->rank, .ep_size = SIZE};
    MUST(p, sl_is_ok(eng_model_open(&options, &p->fresh, &p->err)));
}

static void close_fresh(player *p)
{
    eng_model_close(p->fresh);
    p->fresh = NULL;
}

static void *player_main(void *argument)
{
    player *p = argument;
    kit_rank_start(&p->r, p->group, p->contacts);
    p->of->act(p);
    meet(p);
    return NULL;
}

static void run(game *g, void (*act)(player *p))
{
    com_fake *fake = com_fake_create();
    sl_err err;
    g->act = act;
    g->arrived = 0;
    kit_streams(g->streams);
    for (uint32_t r = 0; r < SIZE; r++) {
        player *p = &g->players[r];
        const com_options options = {.instance = "test",
                                     .rank = r,
                                     .rank_count = SIZE,
                                     .wait_ns = 60 * SL_S_NS,
                                     .backend = &com_backend_fake,
                                     .backend_context = fake};
        *p = (player){.of = g, .rank = r};
        assert_ok(com_group_open(&options, &p->group, &err), &err);
        kit_rank_open(&p->r, g->files.dir, p->group);
    }
    for (uint32_t r = 0; r < SIZE; r++) {
        for (uint32_t i = 0; i < SIZE; i++)
            g->players[r].contacts[i] = com_group_contact(g->players[i].group);
        assert_int_equal(pthread_create(&g->players[r].thread, NULL, player_main, &g->players[r]),
                         0);
    }
    for (uint32_t r = 0; r < SIZE; r++)
        pthread_join(g->players[r].thread, NULL);
    for (uint32_t r = 0; r < SIZE; r++) {
        kit_rank_close(&g->players[r].r);
        com_group_close(g->players[r].group);
    }
    com_fake_destroy(fake);
}

static void check_streams(player *p, const kit_stream *expected)
{
    for (uint32_t i = 0; i < KIT_STREAMS; i++)
        MUST(p, p->of->streams[i].sum == expected[i].sum);
}

static void streams_anew(player *p)
{
    meet(p);
    if (p->rank == 0)
        kit_streams(p->of->streams);
    meet(p);
}

static const char *version_of(player *p)
{
    return eng_engine_stamp(p->r.engine)->weights_version;
}

/* ---- it goes well */

static kit_stream expected_old[KIT_STREAMS], expected_new[KIT_STREAMS];

static void act_well(player *p)
{
    game *g = p->of;
    play(p);
    check_streams(p, expected_old);
    open_fresh(p, g->other.dir);
    wait_all(p, 2, ENG_RELOAD_LOADED);
    wait_all(p, 2, ENG_RELOAD_READY);
    reload(p, 2, WAIT_MS * SL_MS_NS);
    MUST(p, p->code == SL_OK);
    close_fresh(p);
    MUST(p, strcmp(version_of(p), "2") == 0);
    streams_anew(p);
    play(p);
    check_streams(p, expected_new);
    open_fresh(p, g->files.dir); /* and back */
    wait_all(p, 3, ENG_RELOAD_READY);
    reload(p, 3, WAIT_MS * SL_MS_NS);
    MUST(p, p->code == SL_OK);
    close_fresh(p);
    streams_anew(p);
    play(p);
    check_streams(p, expected_old);
}

TEST(all_go_over_and_equal_one_process)
{
    static game g;
    nano_make(&g.files, &OLD);
    nano_make(&g.other, &NEW);
    kit_alone(g.files.dir, expected_old);
    kit_alone(g.other.dir, expected_new);
    run(&g, act_well);
    nano_remove(&g.files);
    nano_remove(&g.other);
}

/* ---- or not, on any rank */

/* Rank 1 is ready, and then takes its word back. */
static void act_taken_back(player *p)
{
    open_fresh(p, p->of->other.dir);
    wait_all(p, 2, ENG_RELOAD_READY);
    meet(p); /* else one of the others may not have seen that all were */
    if (p->rank == 1)
        eng_engine_tell_reload(p->r.engine, 2, ENG_RELOAD_REFUSED);
    else
        reload(p, 2, WAIT_MS * SL_MS_NS);
    meet(p);
    MUST(p, p->code == (p->rank == 1 ? SL_OK : SL_CONFLICT));
    if (p->rank != 1)
        MUST(p, strstr(p->err.text, "has taken its word back"));
}

/* Rank 2 does not come. */
static void act_late(player *p)
{
    open_fresh(p, p->of->other.dir);
    wait_all(p, 2, ENG_RELOAD_READY);
    if (p->rank != 2)
        reload(p, 2, 30 * SL_MS_NS);
    meet(p);
    MUST(p, p->rank == 2 ? p->code == SL_OK : p->code == SL_DEADLINE || p->code == SL_CONFLICT);
}

/* Rank 0 has loaded others than the rest. */
static void act_different(player *p)
{
    open_fresh(p, p->rank == 0 ? p->of->third.dir : p->of->other.dir);
    wait_all(p, 2, ENG_RELOAD_READY);
    reload(p, 2, WAIT_MS * SL_MS_NS);
    MUST(p, p->code == SL_INCOMPATIBLE);
    MUST(p, strstr(p->err.text, "have loaded different"));
}

/* A sequence is open on rank 2; or it is not as new. */
static void act_unfit(player *p)
{
    open_fresh(p, p->of->other.dir);
    wait_all(p, 2, ENG_RELOAD_READY);
    eng_sequence *open = p->rank == 2 ? sequence_open(p->r.engine, 64) : NULL;
    MUST(p, eng_engine_reload_fits(p->r.engine, &p->err).code == (open ? SL_CONFLICT : SL_OK));
    reload(p, 2, WAIT_MS * SL_MS_NS);
    MUST(p, p->code == SL_CONFLICT);
    MUST(p, strstr(p->err.text, open ? "a sequence is open" : "has taken its word"));
    if (open)
        eng_sequence_close(open);
    meet(p);
    wait_all(p, 2, ENG_RELOAD_READY);
    reload(p, p->rank == 2 ? 1 : 2, WAIT_MS * SL_MS_NS);
    MUST(p, p->code == (p->rank == 2 ? SL_INVALID : SL_CONFLICT));
}

static void act_all_of_them(player *p)
{
    static void (*const ACTS[])(player * p) = {act_taken_back, act_late, act_different, act_unfit};
    for (size_t i = 0; i < sizeof ACTS / sizeof ACTS[0]; i++) {
        ACTS[i](p);
        close_fresh(p);
        p->code = SL_OK;
        meet(p);
        MUST(p, strcmp(version_of(p), "1") == 0);
    }
    play(p);
    check_streams(p, expected_old);
}

TEST(what_one_cannot_none_does)
{
    static game g;
    nano_make(&g.files, &OLD);
    nano_make(&g.other, &NEW);
    nano_make(&g.third, &THIRD);
    kit_alone(g.files.dir, expected_old);
    run(&g, act_all_of_them);
    nano_remove(&g.files);
    nano_remove(&g.other);
    nano_remove(&g.third);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(all_go_over_and_equal_one_process),
    cmocka_unit_test(what_one_cannot_none_does),
};
TEST_MAIN(tests)
