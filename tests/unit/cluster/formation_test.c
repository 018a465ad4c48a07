/* Formations: JSON, and what a rank does about every picture that etcd can show it. Then many walks
 * of a whole instance by dice: ranks die, come, stall; it always comes together again, and ranks
 * that step are always of one formation. */
#include "base/rng.h"
#include "cluster/formation.h"
#include "tests/unit/test.h"

enum { SIZE = 4, NUMBERS = 8192 };

typedef struct picture {
    clu_formation newest;
    bool there[SIZE];
    clu_rank_record records[SIZE];
    uint64_t placement;
    clu_form form; /* of the rank that looks */
} picture;

static void contact(char *out, uint32_t rank, uint32_t life)
{
    snprintf(out, CLU_CONTACT_MAX, "h:%u#%u", rank, life);
}

/* All step in formation 5 with placement 3. */
static void steady(picture *p, uint32_t rank)
{
    memset(p, 0, sizeof(*p));
    p->placement = 3;
    p->newest = (clu_formation){.number = 5, .placement = 3, .ranks = 15};
    for (uint32_t r = 0; r < SIZE; r++) {
        clu_rank_record *record = &p->records[r];
        p->there[r] = true;
        *record =
            (clu_rank_record){.node = "n", .size = SIZE, .formation = 5, .tried = 5, .ready = 5};
        contact(record->contact, r, 6);
        contact(p->newest.contacts[r], r, 5);
    }
    p->form = (clu_form){.rank = rank,
                         .size = SIZE,
                         .ranks_needed = 3,
                         .reform_ns = 30 * SL_S_NS,
                         .used_ranks = 15,
                         .used_placement = 3,
                         .own = p->records[rank]};
}

static clu_form_action look(picture *p, sl_time_ns now)
{
    const clu_form_seen seen = {&p->newest, p->there, p->records, p->placement};
    p->records[p->form.rank] = p->form.own;
    return clu_form_decide(&p->form, &seen, now);
}

static void came(picture *p, uint32_t rank)
{
    p->records[rank] = (clu_rank_record){.node = "n", .size = SIZE};
    contact(p->records[rank].contact, rank, 99);
    p->there[rank] = true;
}

TEST(a_steady_instance_rests)
{
    picture p;
    for (uint32_t r = 0; r < SIZE; r++) {
        steady(&p, r);
        assert_int_equal(look(&p, 1).what, CLU_FORM_WAIT);
    }
}

TEST(a_newer_table_is_proposed_by_the_lowest_once_all_are_settled)
{
    picture p;
    steady(&p, 0);
    p.placement = 4;
    clu_form_action action = look(&p, 1);
    assert_int_equal(action.what, CLU_FORM_PROPOSE);
    assert_int_equal(action.ranks, 15);
    assert_int_equal(action.placement, 4);
    p.records[2].formation = p.records[2].tried = 4; /* it has not gone over yet */
    assert_int_equal(look(&p, 1).what, CLU_FORM_WAIT);
    steady(&p, 1);
    p.placement = 4;
    assert_int_equal(look(&p, 1).what, CLU_FORM_WAIT);
}

TEST(whoever_is_called_tries_and_then_waits_for_the_others)
{
    picture p;
    steady(&p, 2);
    p.newest.number = 6;
    memcpy(p.newest.contacts[2], p.form.own.contact, CLU_CONTACT_MAX);
    assert_int_equal(look(&p, 1).what, CLU_FORM_JOIN);
    p.form.forming = 6;
    assert_int_equal(look(&p, 1).what, CLU_FORM_WAIT);
    p.newest.number = 7; /* a newer one while it tries */
    assert_int_equal(look(&p, 1).what, CLU_FORM_JOIN);
    p.newest.number = 6;
    p.form.forming = 0;
    p.form.own.tried = p.form.own.ready = 6;
    contact(p.form.own.contact, 2, 7);
    assert_int_equal(look(&p, 1).what, CLU_FORM_WAIT);
}

TEST(an_attempt_that_failed_is_repeated_later)
{
    picture p;
    steady(&p, 0);
    p.placement = 4;
    p.newest.number = 6;
    for (uint32_t r = 0; r < SIZE; r++)
        p.records[r].tried = p.records[r].ready = 6;
    p.form.own = p.records[0];
    assert_int_equal(look(&p, 1).what, CLU_FORM_WAIT); /* they go over in a moment */
    p.records[3].ready = 5;
    p.form.retry_at = 10;
    clu_form_action action = look(&p, 1);
    assert_int_equal(action.what, CLU_FORM_WAIT);
    assert_int_equal(action.again_at, 10);
    assert_int_equal(look(&p, 10).what, CLU_FORM_PROPOSE);
    p.placement = 3; /* taken back: nothing to do */
    assert_int_equal(look(&p, 10).what, CLU_FORM_WAIT);
}

TEST(a_rank_that_came_is_taken_in)
{
    picture p;
    steady(&p, 0);
    p.form.used_ranks = p.newest.ranks = 11;
    p.records[2].formation = 4; /* of the one that died: its lease has not run out */
    assert_int_equal(look(&p, 1).what, CLU_FORM_WAIT);
    came(&p, 2);
    clu_form_action action = look(&p, 1);
    assert_int_equal(action.what, CLU_FORM_PROPOSE);
    assert_int_equal(action.ranks, 15);
    p.records[2].leaving = true;
    assert_int_equal(look(&p, 1).what, CLU_FORM_WAIT);
    steady(&p, 2); /* and what it sees itself */
    came(&p, 2);
    p.form.own = p.records[2];
    p.form.used_ranks = 0;
    assert_int_equal(look(&p, 1).what, CLU_FORM_WAIT);
}

static void failed(picture *p, uint32_t rank, uint64_t lost)
{
    p->records[rank].failed = true;
    p->records[rank].lost = lost;
    if (rank == p->form.rank)
        p->form.own = p->records[rank];
}

TEST(a_rank_that_died_is_left_out)
{
    picture p;
    steady(&p, 0);
    p.form.failed_at = 100;
    failed(&p, 0, 0);
    failed(&p, 3, 4);
    clu_form_action action = look(&p, 101); /* rank 1 has not said it yet */
    assert_int_equal(action.what, CLU_FORM_WAIT);
    assert_int_equal(action.again_at, 100 + CLU_FORM_GRACE_NS);
    failed(&p, 1, 0);
    action = look(&p, 101);
    assert_int_equal(action.what, CLU_FORM_PROPOSE);
    assert_int_equal(action.ranks, 11);
    p.form.rank = 1;
    p.form.own = p.records[1];
    assert_int_equal(look(&p, 101).what, CLU_FORM_WAIT); /* rank 0 does it */
    p.there[2] = false;
    assert_int_equal(look(&p, 101).what, CLU_FORM_WAIT);
}

TEST(a_silent_rank_is_left_out_after_the_grace)
{
    picture p;
    steady(&p, 1);
    p.form.failed_at = 100;
    for (uint32_t r = 1; r < SIZE; r++)
        failed(&p, r, 0);
    assert_int_equal(look(&p, 101).what, CLU_FORM_WAIT);
    clu_form_action action = look(&p, 100 + CLU_FORM_GRACE_NS);
    assert_int_equal(action.what, CLU_FORM_PROPOSE);
    assert_int_equal(action.ranks, 14);
}

TEST(a_rank_that_is_missed_but_says_so_itself_is_not_left_out)
{
    picture p;
    steady(&p, 0);
    p.form.failed_at = 100;
    failed(&p, 0, 2);
    failed(&p, 1, 1);
    failed(&p, 2, 8);
    assert_int_equal(look(&p, 101).ranks, 7);
}

TEST(too_few_or_too_late_is_the_end)
{
    picture p;
    steady(&p, 0);
    p.form.failed_at = 100;
    failed(&p, 0, 12);
    failed(&p, 1, 12);
    assert_int_equal(look(&p, 101).what, CLU_FORM_DOOMED);
    steady(&p, 0);
    p.form.failed_at = 100;
    failed(&p, 0, 0);
    assert_int_equal(look(&p, 100 + p.form.reform_ns).what, CLU_FORM_DOOMED);
}

TEST(the_others_went_on)
{
    picture p;
    steady(&p, 2);
    p.newest.number = 6;
    p.newest.ranks = 11;
    assert_int_equal(look(&p, 1).what, CLU_FORM_OUT);
    p.form.own.leaving = true;
    assert_int_equal(look(&p, 1).what, CLU_FORM_WAIT);
}

TEST(the_start_needs_everybody)
{
    picture p;
    steady(&p, 0);
    p.form.used_ranks = 0;
    for (uint32_t r = 0; r < SIZE; r++)
        came(&p, r);
    p.form.own = p.records[0];
    clu_form_action action = look(&p, 1); /* whatever a former life has left */
    assert_int_equal(action.what, CLU_FORM_PROPOSE);
    assert_int_equal(action.ranks, 15);
    p.placement = 0;
    assert_int_equal(look(&p, 1).what, CLU_FORM_WAIT);
    p.placement = 3;
    p.there[3] = false;
    assert_int_equal(look(&p, 1).what, CLU_FORM_WAIT);
    p.there[3] = true;
    p.form.rank = 1;
    p.form.own = p.records[1];
    assert_int_equal(look(&p, 1).what, CLU_FORM_WAIT);
}

TEST(records_are_read_as_they_were_written)
{
    clu_rank_record record = {.node = "a",
                              .contact = "h:1#2",
                              .size = 4,
                              .leaving = true,
                              .formation = 7,
                              .tried = 9,
                              .ready = 8,
                              .failed = true,
                              .lost = UINT64_C(1) << 63 | 5};
    clu_rank_record again;
    static clu_formation formation, read;
    sl_buf buf;
    sl_err err;
    sl_buf_init(&buf, 0);
    clu_rank_write_json(&buf, &record);
    assert_ok(clu_rank_parse_json(buf.data, buf.size, &again, &err), &err);
    assert_memory_equal(&record, &again, sizeof(record));
    sl_buf_clear(&buf);
    formation = (clu_formation){.number = 12, .placement = 3, .ranks = 9};
    contact(formation.contacts[0], 0, 1);
    contact(formation.contacts[3], 3, 1);
    clu_formation_write_json(&buf, &formation);
    assert_ok(clu_formation_parse_json(buf.data, buf.size, &read, &err), &err);
    assert_memory_equal(&formation, &read, sizeof(read));
    sl_buf_fini(&buf);
    static const char *const BAD[] = {
        "",
        "{}",
        "{\"number\":0,\"placement\":1,\"ranks\":[0],\"contacts\":[\"a\"]}",
        "{\"number\":1,\"placement\":1,\"ranks\":[64],\"contacts\":[\"a\"]}",
        "{\"number\":1,\"placement\":1,\"ranks\":[0,1],\"contacts\":[\"a\"]}",
        "{\"number\":1,\"placement\":1,\"ranks\":[0],\"contacts\":[\"a\",\"b\"]}",
        "{\"number\":1,\"placement\":1,\"ranks\":[],\"contacts\":[]}",
        "{\"number\":1,\"placement\":1,\"ranks\":[0],\"contacts\":[\"\"]}"};
    read.number = 0;
    for (size_t i = 0; i < sizeof(BAD) / sizeof(BAD[0]); i++)
        if (clu_formation_parse_json(BAD[i], strlen(BAD[i]), &read, &err).code != SL_INVALID ||
            read.number != 0)
            fail_msg("taken: %s", BAD[i]);
}

/* ---- walks ---- */

typedef struct walker {
    bool alive, written;
    uint32_t life;
    clu_form form;
    uint64_t offered; /* it is ready for it and has told the engine */
} walker;

typedef struct world {
    uint64_t seed, draws;
    sl_time_ns now;
    picture etcd;
    walker ranks[SIZE];
    uint64_t masks[NUMBERS]; /* of the formations */
} world;

static uint32_t dice(world *w, uint32_t below)
{
    return (uint32_t)(sl_keyed_uniform(w->seed, w->draws++, 1) * below);
}

static void fresh(walker *rank)
{
    contact(rank->form.own.contact, rank->form.rank, ++rank->life);
    rank->written = false;
}

static void born(walker *rank, uint32_t number)
{
    rank->alive = true;
    rank->offered = 0;
    rank->form = (clu_form){.rank = number,
                            .size = SIZE,
                            .ranks_needed = 3,
                            .reform_ns = 1000 * SL_S_NS,
                            .own = {.node = "n", .size = SIZE}};
    fresh(rank);
}

static bool stepping(const walker *rank)
{
    return rank->alive && rank->form.own.formation > 0 && !rank->form.own.failed;
}

static void fail_all(world *w, uint64_t formation, uint64_t lost)
{
    for (uint32_t r = 0; r < SIZE; r++) {
        walker *rank = &w->ranks[r];
        if (!stepping(rank) || rank->form.own.formation != formation)
            continue;
        rank->form.own.failed = true;
        rank->form.own.lost = dice(w, 2) ? lost : 0; /* some only hear of it */
        rank->form.failed_at = w->now;
        rank->offered = 0;
        rank->written = false;
    }
}

static void die(world *w, uint32_t r)
{
    w->ranks[r].alive = false;
}

/* An attempt ends: well, if all that were called are alive and try. */
static void attempt(world *w, walker *rank)
{
    const clu_formation *newest = &w->etcd.newest;
    clu_rank_record *own = &rank->form.own;
    bool well = rank->form.forming == newest->number;
    for (uint32_t r = 0; r < SIZE && well; r++) {
        const walker *other = &w->ranks[r];
        if (newest->ranks >> r & 1)
            well = other->alive && (other->form.forming == newest->number ||
                                    other->form.own.ready == newest->number);
    }
    if (!well && dice(w, 4) > 0)
        return; /* it goes on waiting for the others */

    own->tried = rank->form.forming;
    own->ready = well ? rank->form.forming : own->ready;
    rank->form.forming = 0;
    rank->form.retry_at = w->now + (well ? 0 : CLU_FORM_RETRY_NS);
    if (well)
        rank->offered = own->ready;
    fresh(rank);
}

/* Who goes over: whoever has failed, or has none, at once; all others together. */
static void go_over(world *w, walker *rank)
{
    clu_rank_record *own = &rank->form.own;
    if (rank->offered <= own->formation)
        return;
    for (uint32_t r = 0; r < SIZE && stepping(rank); r++)
        if (stepping(&w->ranks[r]) && w->ranks[r].form.own.formation == own->formation &&
            w->ranks[r].offered != rank->offered)
            return;
    uint64_t before = own->formation, number = rank->offered;
    bool together = stepping(rank);
    for (uint32_t r = 0; r < SIZE; r++) {
        walker *one = &w->ranks[r];
        if (one != rank && !(together && stepping(one) && one->form.own.formation == before))
            continue;
        one->form.own.formation = number;
        one->form.own.failed = false;
        one->form.own.lost = 0;
        one->form.used_ranks = w->masks[number];
        one->form.used_placement = w->etcd.newest.placement;
        one->written = false;
    }
}

static void act(world *w, uint32_t r)
{
    walker *rank = &w->ranks[r];
    picture *etcd = &w->etcd;
    if (!rank->alive)
        return;
    if (!rank->written) {
        etcd->records[r] = rank->form.own;
        etcd->there[r] = true;
        rank->written = true;
        return;
    }
    const clu_form_seen seen = {&etcd->newest, etcd->there, etcd->records, etcd->placement};
    clu_form_action action = clu_form_decide(&rank->form, &seen, w->now);
    switch (action.what) {
    case CLU_FORM_WAIT:
        break;
    case CLU_FORM_JOIN:
        rank->form.forming = etcd->newest.number;
        break;
    case CLU_FORM_PROPOSE:
        etcd->newest.number++;
        etcd->newest.ranks = action.ranks;
        etcd->newest.placement = action.placement;
        assert_true(etcd->newest.number < NUMBERS);
        w->masks[etcd->newest.number] = action.ranks;
        for (uint32_t i = 0; i < SIZE; i++)
            memcpy(etcd->newest.contacts[i], etcd->records[i].contact, CLU_CONTACT_MAX);
        break;
    case CLU_FORM_OUT:
    case CLU_FORM_DOOMED:
        die(w, r);
        break;
    }
}

static bool together(const world *w)
{
    for (uint32_t r = 0; r < SIZE; r++)
        if (!stepping(&w->ranks[r]) ||
            w->ranks[r].form.own.formation != w->ranks[0].form.own.formation ||
            w->ranks[r].form.used_placement != w->etcd.placement ||
            w->ranks[r].form.used_ranks != 15)
            return false;
    return true;
}

static void show(const world *w)
{
    print_message("newest %u of ranks %x, placement %u of %u\n", (unsigned)w->etcd.newest.number,
                  (unsigned)w->etcd.newest.ranks, (unsigned)w->etcd.newest.placement,
                  (unsigned)w->etcd.placement);
    for (uint32_t r = 0; r < SIZE; r++) {
        const walker *rank = &w->ranks[r];
        const clu_rank_record *own = &rank->form.own;
        print_message("rank %u: %s life %u, in %u (ranks %x, placement %u), tried %u, ready %u, "
                      "forming %u, offered %u, %s, lost %x\n",
                      r, rank->alive ? "alive" : "dead", rank->life, (unsigned)own->formation,
                      (unsigned)rank->form.used_ranks, (unsigned)rank->form.used_placement,
                      (unsigned)own->tried, (unsigned)own->ready, (unsigned)rank->form.forming,
                      (unsigned)rank->offered, own->failed ? "failed" : "well",
                      (unsigned)own->lost);
    }
}

/* A link breaks when one end is dead, or has closed that formation. */
static void links(world *w)
{
    for (uint32_t r = 0; r < SIZE; r++) {
        uint64_t number = w->ranks[r].form.own.formation;
        for (uint32_t i = 0; i < SIZE && stepping(&w->ranks[r]); i++) {
            const walker *other = &w->ranks[i];
            bool there =
                other->alive && (other->form.own.formation == number ||
                                 other->form.forming == number || other->offered == number);
            if ((w->masks[number] >> i & 1) != 0 && !there)
                fail_all(w, number, UINT64_C(1) << i);
        }
    }
}

static void turn(world *w)
{
    uint32_t r = dice(w, SIZE);
    w->now += dice(w, 100) * SL_MS_NS;
    walker *rank = &w->ranks[r];
    if (rank->alive && rank->form.forming > 0 && dice(w, 2))
        attempt(w, rank);
    else if (rank->alive && dice(w, 3) == 0)
        go_over(w, rank);
    else
        act(w, r);
    links(w);
    if (!rank->alive && dice(w, 50) == 0)
        w->etcd.there[r] = false; /* its lease */
    if (!rank->alive && dice(w, 30) == 0)
        born(rank, r);
}

TEST(an_instance_always_comes_together_again)
{
    uint32_t most = 0;
    for (uint64_t seed = 0; seed < 400; seed++) {
        static world w;
        memset(&w, 0, sizeof(w));
        w.seed = seed;
        w.etcd.placement = 1;
        for (uint32_t r = 0; r < SIZE; r++)
            born(&w.ranks[r], r);
        for (uint32_t i = 0; i < 400; i++) {
            turn(&w);
            if (dice(&w, 60) == 0)
                die(&w, dice(&w, SIZE));
            if (dice(&w, 100) == 0)
                w.etcd.placement++;
        }
        uint32_t turns = 0;
        for (; !together(&w); turns++) {
            if (turns > 20000) {
                show(&w);
                fail_msg("seed %u: it does not come together", (unsigned)seed);
            }
            turn(&w);
        }
        most = turns > most ? turns : most;
    }
    print_message("at most %u turns to come together\n", most);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(a_steady_instance_rests),
    cmocka_unit_test(a_newer_table_is_proposed_by_the_lowest_once_all_are_settled),
    cmocka_unit_test(whoever_is_called_tries_and_then_waits_for_the_others),
    cmocka_unit_test(an_attempt_that_failed_is_repeated_later),
    cmocka_unit_test(a_rank_that_came_is_taken_in),
    cmocka_unit_test(a_rank_that_died_is_left_out),
    cmocka_unit_test(a_silent_rank_is_left_out_after_the_grace),
    cmocka_unit_test(a_rank_that_is_missed_but_says_so_itself_is_not_left_out),
    cmocka_unit_test(too_few_or_too_late_is_the_end),
    cmocka_unit_test(the_others_went_on),
    cmocka_unit_test(the_start_needs_everybody),
    cmocka_unit_test(records_are_read_as_they_were_written),
    cmocka_unit_test(an_instance_always_comes_together_again),
};
TEST_MAIN(TESTS)
