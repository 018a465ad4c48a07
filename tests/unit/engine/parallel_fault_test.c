/* What goes wrong on one rank of several: a fault fails the steps that it touches and the ranks
 * stay together; a rank that dies ends the instance; ranks with different weights do not start.
 * Ranks are threads over the fake. */
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#include "comm/fake.h"
#include "engine/reload.h"
#include "tests/unit/engine/parallel_kit.h"

enum { SIZE = 2 };

typedef struct team team;
typedef struct player {
    team *of;
    uint32_t rank;
    const char *dir;
    rig r;
    sl_status status;
    sl_err err;
    pthread_t thread;
} player;

struct team {
    com_fake *fake;
    com_group *groups[SIZE];
    const char *contacts[SIZE];
    player players[SIZE];
    void (*play)(player *p);
    int end[2]; /* readable once rank 0 has played */
};

static void *player_main(void *argument)
{
    player *p = argument;
    p->of->play(p);
    return NULL;
}

static void team_open(team *t)
{
    sl_err err;
    memset(t, 0, sizeof(*t));
    t->fake = com_fake_create();
    assert_int_equal(pipe(t->end), 0);
    for (uint32_t r = 0; r < SIZE; r++) {
        const com_options options = {.instance = "test",
                                     .rank = r,
                                     .rank_count = SIZE,
                                     .carries = true,
                                     .backend = &com_backend_fake,
                                     .backend_context = t->fake};
        assert_ok(com_group_open(&options, &t->groups[r], &err), &err);
        t->contacts[r] = com_group_contact(t->groups[r]);
        t->players[r] = (player){.of = t, .rank = r};
    }
}

static void team_play(team *t, void (*play)(player *p))
{
    t->play = play;
    for (uint32_t r = 0; r < SIZE; r++)
        assert_int_equal(pthread_create(&t->players[r].thread, NULL, player_main, &t->players[r]),
                         0);
    for (uint32_t r = 0; r < SIZE; r++)
        pthread_join(t->players[r].thread, NULL);
}

static void team_close(team *t)
{
    for (uint32_t r = 0; r < SIZE; r++)
        com_group_close(t->groups[r]);
    com_fake_destroy(t->fake);
    close(t->end[0]);
    close(t->end[1]);
}

static sl_status one_step(player *p, eng_sequence *sequence)
{
    uint32_t tokens[40];
    stream_fill(7 + p->rank, 40, tokens);
    const eng_span span = {
        .sequence = sequence, .tokens = tokens, .token_count = 40, .logits = ENG_LOGITS_LAST};
    return eng_step(p->r.engine, &span, 1, NULL, NULL, &p->err);
}

static void player_end(player *p)
{
    if (p->rank == 0)
        assert_int_equal(write(p->of->end[1], "x", 1), 1);
    else
        kit_take_part(p->r.engine, p->of->end[0]);
}

/* Rank 0 steps four times, rank 1 twice: then it takes part only. */
static void play_faults(player *p)
{
    kit_rank_open(&p->r, p->dir, p->of->groups[p->rank]);
    kit_rank_start(&p->r, p->of->groups[p->rank], p->of->contacts);
    eng_sequence *sequence = sequence_open(p->r.engine, 128);
    for (uint32_t i = 0; i < (p->rank == 0 ? 4u : 2u); i++) {
        p->status = one_step(p, sequence);
        assert_code(p->status, SL_INTERNAL);
        assert_int_equal(eng_sequence_length(sequence), 0);
    }
    player_end(p);
    assert_null(eng_engine_broken(p->r.engine));
    assert_null(com_group_failed(p->of->groups[p->rank]));
    eng_sequence_close(sequence);
    kit_rank_close(&p->r);
}

static void faults(const nano_options *files, const char *words)
{
    nano n;
    team t;
    nano_make(&n, files);
    team_open(&t);
    for (uint32_t r = 0; r < SIZE; r++)
        t.players[r].dir = n.dir;
    team_play(&t, play_faults);
    bool found = false;
    for (uint32_t r = 0; r < SIZE; r++)
        found |= strstr(t.players[r].err.text, words) != NULL;
    if (!found)
        fail_msg("neither \"%s\" nor \"%s\" contains \"%s\"", t.players[0].err.text,
                 t.players[1].err.text, words);
    team_close(&t);
    nano_remove(&n);
}

/* Both micro-batches and the whole step at once. */
TEST(a_fault_before_the_experts_leaves_the_ranks_together)
{
    for (int whole = 0; whole < 2; whole++) {
        kit_never_splits = whole;
        faults(&(nano_options){.huge = "model.layers.1.post_attention_layernorm.weight"},
               "layer 1");
        faults(&(nano_options){.huge = "model.layers.2.post_attention_layernorm.weight"},
               "layer 2");
        faults(&(nano_options){.huge = "model.layers.0.input_layernorm.weight"}, "layer 0");
    }
    kit_never_splits = false;
}

TEST(a_fault_in_an_expert_fails_those_whose_rows_it_had)
{
    for (int whole = 0; whole < 2; whole++) {
        kit_never_splits = whole;
        faults(&(nano_options){.e8m0 = true,
                               .huge = "model.layers.2.mlp.experts.6.up_proj.weight_scale_inv"},
               "another rank");
    }
    kit_never_splits = false;
}

static void play_death(player *p)
{
    kit_rank_open(&p->r, p->dir, p->of->groups[p->rank]);
    kit_rank_start(&p->r, p->of->groups[p->rank], p->of->contacts);
    eng_sequence *sequence = sequence_open(p->r.engine, 128);
    p->status = one_step(p, sequence);
    assert_ok(p->status, &p->err);
    if (p->rank == 1)
        com_fake_kill(p->of->fake, 1);
    else
        p->status = one_step(p, sequence);
    if (p->rank == 0) {
        assert_code(p->status, SL_INTERNAL);
        assert_text_contains(p->err.text, "rank 1 is gone");
        assert_text_contains(eng_engine_broken(p->r.engine), "rank 1 is gone");
        assert_int_equal(eng_sequence_length(sequence), 40); /* as it was before */
        assert_code(one_step(p, sequence), SL_INTERNAL);     /* and so it stays */
        assert_false(eng_engine_take_part(p->r.engine));
    }
    eng_sequence_close(sequence);
    kit_rank_close(&p->r);
}

TEST(a_dead_rank_breaks_the_engine_of_the_others)
{
    nano n;
    team t;
    nano_make(&n, NULL);
    team_open(&t);
    for (uint32_t r = 0; r < SIZE; r++)
        t.players[r].dir = n.dir;
    team_play(&t, play_death);
    team_close(&t);
    nano_remove(&n);
}

static void play_join(player *p)
{
    com_layout layout;
    kit_rank_open(&p->r, p->dir, p->of->groups[p->rank]);
    eng_model_ranks_layout(p->r.model, KIT_ROWS, &layout);
    assert_ok(com_group_connect(p->of->groups[p->rank], p->of->contacts, &layout,
                                sl_now_ns() + 60 * SL_S_NS, NULL, &p->err),
              &p->err);
    const eng_options early = kit_engine_options(p->of->groups[p->rank]);
    eng_engine *engine;
    assert_code(eng_engine_create(p->r.model, &early, &engine, &p->err), SL_INVALID);
    p->status = eng_model_join(p->r.model, p->of->groups[p->rank], &p->err);
    eng_model_close(p->r.model);
}

static void join(const nano_options *one, const nano_options *two, const char *words)
{
    nano first, second;
    team t;
    nano_make(&first, one);
    nano_make(&second, two);
    team_open(&t);
    for (uint32_t r = 0; r < SIZE; r++)
        t.players[r].dir = r ? second.dir : first.dir;
    team_play(&t, play_join);
    for (uint32_t r = 0; r < SIZE; r++) {
        assert_code(t.players[r].status, SL_INCOMPATIBLE);
        assert_text_contains(t.players[r].err.text, words);
    }
    nano_remove(&first);
    nano_remove(&second);
    team_close(&t);
}

TEST(ranks_with_other_weights_do_not_start)
{
    join(&(nano_options){0}, &(nano_options){.change = "model.layers.1.self_attn.o_proj.weight"},
         "model.layers.1.self_attn.o_proj.weight");
    join(&(nano_options){0}, &(nano_options){.shared = 2}, "different models");
}

static void refused(eng_model_options options, sl_code code)
{
    sl_err err;
    eng_model *model = NULL;
    assert_code(eng_model_open(&options, &model, &err), code);
}

TEST(what_several_ranks_cannot_do_is_refused)
{
    rig r;
    sl_err err;
    nano_make(&r.files, NULL);
    refused((eng_model_options){.dir = r.files.dir, .ep_rank = 2, .ep_size = 2}, SL_INVALID);
    refused((eng_model_options){.dir = r.files.dir, .ep_size = NANO_EXPERTS + 1}, SL_TOO_LARGE);
    refused((eng_model_options){.dir = r.files.dir, .ep_size = 2, .layer_end = 2}, SL_UNSUPPORTED);
    refused((eng_model_options){.dir = r.files.dir, .ep_size = 2, .numerics = ENG_NUMERICS_PLAIN},
            SL_UNSUPPORTED);
    const eng_model_options half = {.dir = r.files.dir, .threads = 1, .ep_size = 2};
    assert_ok(eng_model_open(&half, &r.model, &err), &err);
    const eng_options options = kit_engine_options(NULL);
    assert_code(eng_engine_create(r.model, &options, &r.engine, &err), SL_INVALID);
    eng_model_close(r.model);
    nano_remove(&r.files);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_fault_before_the_experts_leaves_the_ranks_together),
    cmocka_unit_test(a_fault_in_an_expert_fails_those_whose_rows_it_had),
    cmocka_unit_test(a_dead_rank_breaks_the_engine_of_the_others),
    cmocka_unit_test(ranks_with_other_weights_do_not_start),
    cmocka_unit_test(what_several_ranks_cannot_do_is_refused),
};
TEST_MAIN(tests)
