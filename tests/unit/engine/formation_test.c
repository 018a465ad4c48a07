/* Ranks go over to other formations while they play: another table of experts, without a rank that
 * died, with it again. Every stream's logits, tokens and page bytes equal those of one process.
 * Ranks are threads over the fake; each formation has a fake of its own, as it has connections of
 * its own. */
#include <pthread.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "comm/fake.h"
#include "tests/unit/engine/parallel_kit.h"

enum {
    SIZE = 4,
    FORMATIONS = 5,
    SLOTS = 3, /* of 8 experts: room for all of them on three ranks */
    LAYERS = 3,
    ENTRIES = LAYERS * SIZE * SLOTS,
};

typedef struct stage {
    uint64_t mask;
    const uint16_t *table;
    com_fake *fake;
} stage;

typedef struct game game;
typedef struct player {
    game *of;
    uint32_t rank;
    rig r;
    int bell;
    kit_play play;
    pthread_t thread;
    com_group *groups[FORMATIONS + 1]; /* by number */
    eng_formation formations[FORMATIONS + 1];
    bool started;
    _Atomic bool dead;
} player;

struct game {
    nano files;
    kit_stream streams[KIT_STREAMS];
    _Atomic uint32_t finished;
    _Atomic bool over;
    stage stages[FORMATIONS + 1];
    player players[SIZE];
};

static void ring(void *context)
{
    const uint64_t one = 1;
    assert_int_equal(write(((player *)context)->bell, &one, sizeof(one)), (ssize_t)sizeof(one));
}

/* ---- one rank ---- */

static void idle(player *p)
{
    uint64_t value;
    struct pollfd either[] = {{.fd = p->bell, .events = POLLIN},
                              {.fd = eng_engine_ranks_fd(p->r.engine), .events = POLLIN}};
    if (eng_engine_take_part(p->r.engine) || !eng_engine_ranks_arm(p->r.engine))
        return;
    poll(either, 2, -1);
    if (either[0].revents)
        assert_int_equal(read(p->bell, &value, sizeof(value)), (ssize_t)sizeof(value));
}

static void *player_main(void *argument)
{
    player *p = argument;
    game *g = p->of;
    sl_err err;
    while (!g->over && !p->dead) {
        kit_open(&p->play);
        if (p->play.active_count == 0) {
            if (p->play.next == p->play.count)
                idle(p);
            continue;
        }
        sl_status status = kit_step(&p->play, &err);
        if (p->dead)
            return NULL;
        assert_ok(status, &err);
        uint32_t before = p->play.active_count;
        kit_close(&p->play);
        g->finished += before - p->play.active_count;
    }
    return NULL;
}

static void player_open(game *g, uint32_t rank)
{
    player *p = &g->players[rank];
    sl_err err;
    *p = (player){.of = g, .rank = rank, .bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    const eng_model_options model = {.dir = g->files.dir,
                                     .threads = 1,
                                     .ep_rank = rank,
                                     .ep_size = SIZE,
                                     .ep_table = g->stages[1].table,
                                     .ep_slots = SLOTS};
    assert_ok(eng_model_open(&model, &p->r.model, &err), &err);
    p->play.seed = 100 + rank;
    for (uint32_t i = rank; i < KIT_STREAMS; i += SIZE) {
        kit_stream *s = &g->streams[i];
        *s = (kit_stream){.prompt = s->prompt, .known = s->prompt};
        stream_fill(i, s->prompt, s->tokens);
        p->play.streams[p->play.count++] = s;
    }
}

/* As a joined rank; its engine waits for the first formation. */
static void player_start(player *p)
{
    sl_err err;
    eng_options options = kit_engine_options(NULL);
    assert_ok(eng_engine_create(p->r.model, &options, &p->r.engine, &err), &err);
    eng_engine_set_wake(p->r.engine, ring, p);
    p->play.engine = p->r.engine;
    p->started = true;
    assert_int_equal(pthread_create(&p->thread, NULL, player_main, p), 0);
}

static void player_close(player *p)
{
    eng_engine_destroy(p->r.engine);
    for (uint32_t n = 1; n <= FORMATIONS; n++) {
        eng_experts_destroy(p->formations[n].experts);
        com_group_close(p->groups[n]);
    }
    eng_model_close(p->r.model);
    close(p->bell);
}

/* ---- a formation ---- */

typedef struct forming {
    player *p;
    uint32_t number;
    const char *contacts[SIZE];
    sl_status status;
    sl_err err;
    pthread_t thread;
} forming;

static void *form_main(void *argument)
{
    forming *f = argument;
    player *p = f->p;
    const stage *to = &p->of->stages[f->number];
    eng_formation *made = &p->formations[f->number];
    com_group *group = p->groups[f->number];
    com_layout layout;
    const eng_options options = kit_engine_options(NULL);
    eng_model_ranks_layout(p->r.model, (uint32_t)options.rows_max, &layout);
    layout.slots = to->table;
    layout.rank_mask = to->mask;
    layout.formation = f->number;
    f->status =
        com_group_connect(group, f->contacts, &layout, sl_now_ns() + 60 * SL_S_NS, NULL, &f->err);
    if (sl_is_ok(f->status))
        f->status = eng_model_join(p->r.model, group, &f->err);
    if (sl_is_ok(f->status))
        f->status = eng_experts_load(p->r.model, to->table, NULL, &made->experts, &f->err);
    if (sl_is_ok(f->status) && !p->started)
        player_start(p);
    if (sl_is_ok(f->status))
        f->status = com_gather(group, NULL, 0, NULL, &f->err);
    made->number = f->number;
    made->group = group;
    made->model = p->r.model;
    if (sl_is_ok(f->status))
        eng_engine_offer(p->r.engine, made);
    return NULL;
}

static void form(game *g, uint32_t number)
{
    static forming all[SIZE];
    const char *contacts[SIZE] = {NULL};
    sl_err err;
    stage *to = &g->stages[number];
    to->fake = com_fake_create();
    for (uint32_t r = 0; r < SIZE; r++) {
        const com_options options = {.instance = "test",
                                     .rank = r,
                                     .rank_count = SIZE,
                                     .carries = r > 0,
                                     .backend = &com_backend_fake,
                                     .backend_context = to->fake};
        if ((to->mask >> r & 1) == 0)
            continue;
        assert_ok(com_group_open(&options, &g->players[r].groups[number], &err), &err);
        contacts[r] = com_group_contact(g->players[r].groups[number]);
    }
    for (uint32_t r = 0; r < SIZE; r++) {
        all[r] = (forming){.p = &g->players[r], .number = number};
        memcpy(all[r].contacts, contacts, sizeof(contacts));
        if (to->mask >> r & 1)
            assert_int_equal(pthread_create(&all[r].thread, NULL, form_main, &all[r]), 0);
    }
    for (uint32_t r = 0; r < SIZE; r++) {
        if ((to->mask >> r & 1) == 0)
            continue;
        pthread_join(all[r].thread, NULL);
        assert_ok(all[r].status, &all[r].err);
    }
}

static void wait_used(game *g, uint32_t number)
{
    const sl_time_ns deadline = sl_now_ns() + 60 * SL_S_NS;
    eng_ranks_state state;
    for (uint32_t r = 0; r < SIZE; r++) {
        if ((g->stages[number].mask >> r & 1) == 0)
            continue;
        do {
            if (sl_now_ns() > deadline)
                fail_msg("rank %u has not gone over to formation %u", r, number);
            (void)poll(NULL, 0, 1);
            eng_engine_ranks_state(g->players[r].r.engine, &state);
        } while (state.used != number);
    }
}

static void wait_finished(game *g, uint32_t count)
{
    const sl_time_ns deadline = sl_now_ns() + 60 * SL_S_NS;
    while (g->finished < count) {
        if (sl_now_ns() > deadline)
            fail_msg("%u of %u streams have finished", g->finished, count);
        (void)poll(NULL, 0, 1);
    }
}

static void die(game *g, uint32_t rank, uint32_t number)
{
    player *p = &g->players[rank];
    p->dead = true;
    com_fake_kill(g->stages[number].fake, rank);
    com_abort(p->groups[number], "it died");
    eng_engine_give_up(p->r.engine, "it died");
    pthread_join(p->thread, NULL);
    for (uint32_t i = 0; i < p->play.active_count; i++)
        eng_sequence_close(p->play.active[i]->sequence);
    g->finished -= p->play.next - p->play.active_count;
    player_close(p);
}

/* ---- tables ---- */

/* Consecutive experts from `shift` on, each once, then again from the front until all is full. */
static void table_fill(uint64_t mask, uint32_t shift, uint16_t *out_table)
{
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        uint32_t next = shift + layer;
        for (uint32_t i = 0; i < SIZE * SLOTS; i++) {
            bool there = (mask >> (i / SLOTS) & 1) != 0;
            out_table[layer * SIZE * SLOTS + i] =
                there ? (uint16_t)(next++ % NANO_EXPERTS) : COM_NO_EXPERT;
        }
    }
}

static uint64_t bytes_held(const game *g, uint32_t rank)
{
    return eng_model_expert_bytes(g->players[rank].r.model);
}

TEST(tables_change_a_rank_dies_and_comes_back_and_no_stream_differs)
{
    static game g;
    static kit_stream reference[KIT_STREAMS];
    static uint16_t tables[FORMATIONS + 1][ENTRIES];
    const uint64_t masks[FORMATIONS + 1] = {0, 15, 15, 7, 15, 15};
    nano_make(&g.files, &(nano_options){.echo = true});
    kit_alone(g.files.dir, reference);
    kit_streams(g.streams);
    for (uint32_t n = 1; n <= FORMATIONS; n++) {
        table_fill(masks[n], n == 4 ? 1 : 3 * n, tables[n]);
        g.stages[n] = (stage){.mask = masks[n], .table = tables[n]};
    }
    for (uint32_t r = 0; r < SIZE; r++)
        player_open(&g, r);
    form(&g, 1);
    wait_finished(&g, 4);
    uint64_t before = bytes_held(&g, 0);
    form(&g, 2);
    wait_used(&g, 2);
    assert_int_equal(bytes_held(&g, 0), before); /* as many, others */
    wait_finished(&g, 10);
    die(&g, 3, 2);
    form(&g, 3);
    wait_used(&g, 3);
    player_open(&g, 3);
    form(&g, 4);
    wait_used(&g, 4);
    wait_finished(&g, KIT_STREAMS); /* all sleep */
    form(&g, 5);
    wait_used(&g, 5);
    uint64_t loads[LAYERS * NANO_EXPERTS], sum = 0;
    for (uint32_t r = 0; r < SIZE; r++) {
        eng_engine_expert_loads(g.players[r].r.engine, loads);
        for (uint32_t i = 0; i < LAYERS * NANO_EXPERTS; i++)
            sum += loads[i];
        eng_ranks_state now;
        eng_engine_ranks_state(g.players[r].r.engine, &now);
        if (r < 3)
            print_message("rank %u ran again %.1f ms after the failure (%s)\n", r,
                          (double)(now.again_at - now.failed_at) / 1e6, now.why);
        assert_true(r == 3 || (now.failed == 2 && now.again_at > now.failed_at));
    }
    assert_true(sum > 0);
    g.over = true;
    for (uint32_t r = 0; r < SIZE; r++) {
        ring(&g.players[r]);
        pthread_join(g.players[r].thread, NULL);
    }
    for (uint32_t i = 0; i < KIT_STREAMS; i++)
        if (g.streams[i].sum != reference[i].sum)
            fail_msg("stream %u differs", i);
    for (uint32_t r = 0; r < SIZE; r++)
        player_close(&g.players[r]);
    for (uint32_t n = 1; n <= FORMATIONS; n++)
        com_fake_destroy(g.stages[n].fake);
    nano_remove(&g.files);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(tables_change_a_rank_dies_and_comes_back_and_no_stream_differs),
};
TEST_MAIN(tests)
