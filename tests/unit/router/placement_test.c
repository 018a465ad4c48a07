/* Placement: who is taken, and what is missing when nobody is. */
#include "tests/unit/test.h"

#include "router/placement.h"

static const clu_stamp STAMP = {"cpu", "hash-content", "1", "v1"};
static const clu_stamp OTHER_MODEL = {"cpu", "other", "1", "v1"};
static const clu_stamp OTHER_NUMERICS = {"gpu", "hash-content", "1", "v1"};
static const clu_stamp OTHER_WEIGHTS = {"cpu", "hash-content", "2", "v1"};
static const clu_stamp OTHER_FORMAT = {"cpu", "hash-content", "1", "v2"};

#define NODE(number, label)                                                            \
    {                                                                                  \
        .id = number, .name = label, .stamp = &STAMP, .usable = true, .slots_free = 8, \
        .pages_free = 100                                                              \
    }

typedef struct fixture {
    rtr_candidate decodes[3];
    rtr_candidate prefills[3];
    rtr_request request;
    rtr_place_query query;
    rtr_place_result result;
} fixture;

static void setup(fixture *f)
{
    *f = (fixture){
        .decodes = {NODE(1, "d-a"), NODE(2, "d-b"), NODE(3, "d-c")},
        .prefills = {NODE(11, "p-a"), NODE(12, "p-b"), NODE(13, "p-c")},
    };
    f->query = (rtr_place_query){.decodes = f->decodes,
                                 .decode_count = 3,
                                 .prefills = f->prefills,
                                 .prefill_count = 3,
                                 .model_identity = "hash",
                                 .pages = 10,
                                 .request = &f->request};
}

static void check(fixture *f, rtr_lack lack, uint64_t decode, uint64_t prefill)
{
    rtr_place(&f->query, &f->result);
    assert_int_equal(f->result.lack, lack);
    assert_int_equal(f->result.decode, decode);
    assert_int_equal(f->result.prefill, prefill);
}

TEST(least_loaded_and_ties_by_name)
{
    fixture f;
    setup(&f);
    check(&f, RTR_LACK_NONE, 1, 11);
    rtr_candidate swap = f.decodes[0];
    f.decodes[0] = f.decodes[2];
    f.decodes[2] = swap;
    check(&f, RTR_LACK_NONE, 1, 11); /* not the order of the table */
    f.decodes[2].running = 1;
    check(&f, RTR_LACK_NONE, 2, 11);
    f.decodes[1].pending = 2;
    check(&f, RTR_LACK_NONE, 3, 11);
    f.decodes[0].running = 1;
    f.decodes[0].pages_free = 50; /* as loaded as d-a, with fewer pages */
    check(&f, RTR_LACK_NONE, 1, 11);
    f.prefills[0].queued_tokens = 100;
    f.prefills[1].tokens_pending = 50;
    check(&f, RTR_LACK_NONE, 1, 13);
    f.prefills[2].queued_tokens = 50;
    f.prefills[2].pending = 1;
    check(&f, RTR_LACK_NONE, 1, 12);
}

TEST(who_has_the_prompts_pages_computes_it_again)
{
    fixture f;
    setup(&f);
    f.query.tokens = 100;
    f.request.warm_prefill = 13;
    check(&f, RTR_LACK_NONE, 1, 13);
    f.prefills[2].queued_tokens = 100; /* as long as the others would take for all of it */
    check(&f, RTR_LACK_NONE, 1, 13);
    f.prefills[2].tokens_pending = 1;
    check(&f, RTR_LACK_NONE, 1, 11);
    f.prefills[2].tokens_pending = 0;
    f.prefills[2].usable = false;
    check(&f, RTR_LACK_NONE, 1, 11);
    f.prefills[2].usable = true;
    f.request.refused_prefill[0] = 13;
    f.request.refused_prefill_count = 1;
    check(&f, RTR_LACK_NONE, 1, 11);
}

/* The rank that a request moves away from has its pages: nobody computes them while it can be
 * reached. */
TEST(who_has_the_pages_hands_them_over)
{
    fixture f;
    rtr_candidate source = NODE(91, "d-old");
    setup(&f);
    f.query.source = &source;
    check(&f, RTR_LACK_NONE, 1, 91);
    f.query.prefill_count = 0;
    check(&f, RTR_LACK_NONE, 1, 91);
    f.query.prefill_count = 3;
    source.stamp = &OTHER_WEIGHTS;
    check(&f, RTR_LACK_NONE, 1, 11);
    source.stamp = &STAMP;
    source.usable = false;
    check(&f, RTR_LACK_NONE, 1, 11);
    source.usable = true;
    f.request.refused_prefill[0] = 91;
    f.request.refused_prefill_count = 1;
    check(&f, RTR_LACK_NONE, 1, 11);
}

/* Nodes of an operator's pause get nothing new; that there are none but those is told apart, since
 * it passes. A rank that has the request already is asked in any case. */
TEST(paused_nodes_are_skipped)
{
    fixture f;
    setup(&f);
    f.decodes[0].paused = f.prefills[0].paused = true;
    check(&f, RTR_LACK_NONE, 2, 12);
    f.decodes[1].paused = f.decodes[2].paused = true;
    check(&f, RTR_LACK_PAUSED, 0, 0);
    f.query.keep_decode = 1;
    check(&f, RTR_LACK_NONE, 1, 12);
    f.prefills[1].paused = f.prefills[2].paused = true;
    check(&f, RTR_LACK_PAUSED, 0, 0);
    f.query.self_prefill = true;
    check(&f, RTR_LACK_NONE, 1, 0);
    setup(&f);
    f.decodes[0].paused = true;
    f.decodes[1].usable = f.decodes[2].usable = false;
    check(&f, RTR_LACK_PAUSED, 0, 0);
    f.decodes[1].usable = true;
    f.decodes[1].slots_free = 0; /* who works has no room: that is the wait */
    check(&f, RTR_LACK_ROOM, 0, 0);
    setup(&f);
    for (int i = 0; i < 3; i++)
        f.prefills[i].paused = true;
    check(&f, RTR_LACK_PAUSED, 0, 0);
    f.prefills[1].paused = false;
    f.request.refused_prefill[0] = 12;
    f.request.refused_prefill_count = 1;
    check(&f, RTR_LACK_ROOM, 0, 0);
}

static const char *verdict(fixture *f, int decode, int prefill)
{
    const rtr_candidate *chosen = NULL;
    rtr_place(&f->query, &f->result);
    for (int i = 0; i < 3; i++)
        if (f->result.decode && f->decodes[i].id == f->result.decode)
            chosen = &f->decodes[i];
    return rtr_place_verdict(&f->query, &f->result,
                             decode >= 0 ? &f->decodes[decode] : &f->prefills[prefill], decode >= 0,
                             chosen);
}

TEST(each_candidate_is_judged)
{
    fixture f;
    setup(&f);
    assert_string_equal(verdict(&f, 0, -1), "is taken");
    assert_string_equal(verdict(&f, -1, 0), "is taken");
    assert_string_equal(verdict(&f, 1, -1), "is busier, or without a prefill node");
    assert_string_equal(verdict(&f, -1, 1), "has more to do");
    f.decodes[1].slots_free = 0;
    assert_string_equal(verdict(&f, 1, -1), "has no room for it");
    f.request.refused_decode[0] = 2;
    f.request.refused_decode_count = 1;
    assert_string_equal(verdict(&f, 1, -1), "has refused it a moment ago");
    f.decodes[1].paused = f.prefills[1].paused = true;
    assert_string_equal(verdict(&f, 1, -1), "is paused");
    assert_string_equal(verdict(&f, -1, 1), "is paused");
    f.decodes[1].usable = f.prefills[1].usable = false;
    assert_text_contains(verdict(&f, 1, -1), "cannot be used");
    assert_text_contains(verdict(&f, -1, 1), "cannot be used");
    f.decodes[1].stamp = &OTHER_MODEL;
    assert_string_equal(verdict(&f, 1, -1), "serves another model");
    f.prefills[1].stamp = &OTHER_WEIGHTS;
    assert_text_contains(verdict(&f, -1, 1), "other weights");
    f.query.keep_decode = 1;
    assert_string_equal(verdict(&f, 0, -1), "is kept: it has the request");
    setup(&f);
    for (int i = 0; i < 3; i++)
        f.decodes[i].slots_free = 0; /* nobody is taken */
    assert_string_equal(verdict(&f, -1, 0), "would do");
}

TEST(full_nodes_are_skipped)
{
    fixture f;
    setup(&f);
    f.decodes[0].slots_free = 0;
    f.decodes[1].pages_free = 9;
    check(&f, RTR_LACK_NONE, 3, 11);
    f.decodes[2].slots_free = 2;
    f.decodes[2].pending = 2;
    check(&f, RTR_LACK_ROOM, 0, 0);
    f.decodes[2].pending = 1;
    f.decodes[2].pages_pending = 91;
    check(&f, RTR_LACK_ROOM, 0, 0);
    f.decodes[2].pages_pending = 101; /* more promised than there is */
    check(&f, RTR_LACK_ROOM, 0, 0);
    f.decodes[2].pages_pending = 90;
    check(&f, RTR_LACK_NONE, 3, 11);
}

TEST(unusable_nodes_are_skipped)
{
    fixture f;
    setup(&f);
    f.decodes[0].usable = false;
    f.prefills[0].usable = false;
    check(&f, RTR_LACK_NONE, 2, 12);
    f.decodes[1].usable = f.decodes[2].usable = false;
    check(&f, RTR_LACK_DECODE, 0, 0);
    f.decodes[1].usable = true;
    f.prefills[1].usable = f.prefills[2].usable = false;
    check(&f, RTR_LACK_PREFILL, 0, 0);
    f.query.self_prefill = true;
    check(&f, RTR_LACK_NONE, 2, 0);
    f.query.decode_count = 0;
    check(&f, RTR_LACK_DECODE, 0, 0);
}

TEST(stamps_must_match)
{
    static const clu_stamp *const OTHERS[] = {&OTHER_NUMERICS, &OTHER_WEIGHTS, &OTHER_FORMAT};
    fixture f;
    setup(&f);
    f.query.prefill_count = 1;
    for (size_t i = 0; i < 3; i++) {
        f.prefills[0].stamp = OTHERS[i];
        check(&f, RTR_LACK_PREFILL, 0, 0);
        f.decodes[1].stamp = OTHERS[i]; /* a pair of their own */
        check(&f, RTR_LACK_NONE, 2, 11);
        f.decodes[1].stamp = &STAMP;
    }
    f.prefills[0].stamp = &OTHER_MODEL;
    for (int i = 0; i < 3; i++)
        f.decodes[i].stamp = &OTHER_MODEL;
    check(&f, RTR_LACK_DECODE, 0, 0); /* a pair, but of another model than the router's */
    f.query.model_identity = NULL;
    check(&f, RTR_LACK_NONE, 1, 11);
}

TEST(refusals_are_remembered)
{
    fixture f;
    setup(&f);
    f.request.refused_decode[0] = 1;
    f.request.refused_decode_count = 1;
    f.request.refused_prefill[0] = 11;
    f.request.refused_prefill_count = 1;
    check(&f, RTR_LACK_NONE, 2, 12);
    f.query.decode_count = 1;
    check(&f, RTR_LACK_ROOM, 0, 0);
    f.request.refused_decode_count = 0;
    f.query.prefill_count = 1;
    check(&f, RTR_LACK_ROOM, 0, 0); /* it will be asked again: not "no prefill node" */
    f.query.self_prefill = true;
    check(&f, RTR_LACK_ROOM, 0, 0); /* a prefill node exists: wait for it */
}

TEST(kept_decode_node)
{
    fixture f;
    setup(&f);
    f.query.keep_decode = 3;
    f.decodes[2].slots_free = 0; /* it holds its slot already */
    f.decodes[2].running = 100;
    f.decodes[2].usable = false; /* draining: what it has it finishes */
    check(&f, RTR_LACK_NONE, 3, 11);
    f.query.keep_decode = 9;
    check(&f, RTR_LACK_DECODE, 0, 0);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(least_loaded_and_ties_by_name),
    cmocka_unit_test(who_has_the_prompts_pages_computes_it_again),
    cmocka_unit_test(who_has_the_pages_hands_them_over),
    cmocka_unit_test(paused_nodes_are_skipped),
    cmocka_unit_test(each_candidate_is_judged),
    cmocka_unit_test(full_nodes_are_skipped),
    cmocka_unit_test(unusable_nodes_are_skipped),
    cmocka_unit_test(stamps_must_match),
    cmocka_unit_test(refusals_are_remembered),
    cmocka_unit_test(kept_decode_node),
};
TEST_MAIN(TESTS)
