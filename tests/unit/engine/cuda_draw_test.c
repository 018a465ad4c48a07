/* What the host tells a device of a draw: changes one an id, what does not fit, what comes back.
 * The draw itself: tests/cuda/draw_test.c. */
#include "tests/unit/test.h"

#include <math.h>

#include "engine/cuda_draw.h"

enum { VOCAB = 100, EOS = 1, EDITS = 8 };

typedef struct rig {
    eng_sampler sampler;
    mdl_sampling params;
    krn_cuda_edit at[EDITS];
    eng_cuda_edits edits;
    krn_cuda_draw_row row;
} rig;

static void rig_open(rig *r)
{
    memset(r, 0, sizeof(*r));
    eng_sampler_init(&r->sampler, VOCAB, EOS, NULL);
    mdl_sampling_init(&r->params);
    r->edits = (eng_cuda_edits){r->at, 0, EDITS};
}

static bool prepare(rig *r, const uint32_t *context, uint32_t count, uint32_t prompt,
                    const uint32_t *allowed)
{
    return eng_cuda_draw_prepare(&r->sampler, &r->params, context, count, prompt, count, allowed, 4,
                                 &r->edits, &r->row);
}

TEST(an_id_has_one_edit)
{
    static const uint32_t CONTEXT[] = {7, 8, 7, 9, 7, 9};
    rig r;
    rig_open(&r);
    r.params.repetition_penalty = 1.5f;
    r.params.presence_penalty = 0.5f;
    r.params.bias_count = 2;
    r.params.bias[0] = (mdl_logit_bias){9, -2};
    r.params.bias[1] = (mdl_logit_bias){50, 3};
    r.params.min_tokens = 5;
    r.params.stop_id_count = 2;
    r.params.stop_ids[0] = 50;
    r.params.stop_ids[1] = VOCAB; /* none of this vocabulary */
    r.edits.used = 2;             /* of a row before */
    assert_true(prepare(&r, CONTEXT, 6, 2, NULL));
    assert_int_equal(r.row.edits_at, 2);
    assert_int_equal(r.row.edit_count, 5);
    static const krn_cuda_edit WANT[] = {
        {7, KRN_CUDA_EDIT_REPEATED, 2, 0},
        {8, KRN_CUDA_EDIT_REPEATED, 0, 0},
        {9, KRN_CUDA_EDIT_REPEATED | KRN_CUDA_EDIT_BIAS, 2, -2},
        {50, KRN_CUDA_EDIT_BIAS | KRN_CUDA_EDIT_BARRED, 0, 3},
        {EOS, KRN_CUDA_EDIT_BARRED, 0, 0},
    };
    assert_memory_equal(r.at + 2, WANT, sizeof(WANT));
    assert_int_equal(r.row.drawn, 1);
    assert_int_equal(r.row.allowed, 0);
    /* Without the repetition penalty the prompt is no matter. */
    r.params = (mdl_sampling){.temperature = 1, .repetition_penalty = 1, .frequency_penalty = 1};
    r.edits.used = 0;
    assert_true(prepare(&r, CONTEXT, 6, 4, NULL));
    assert_int_equal(r.row.edit_count, 2);
    assert_int_equal(r.at[0].id, 7);
    assert_int_equal(r.at[0].count, 1);
    eng_sampler_fini(&r.sampler);
}

TEST(a_mask_of_ends_alone_bars_none)
{
    rig r;
    rig_open(&r);
    uint32_t allowed[4] = {1u << EOS};
    r.params.min_tokens = 5;
    assert_true(prepare(&r, NULL, 0, 0, allowed));
    assert_int_equal(r.row.edit_count, 0);
    assert_int_equal(r.row.allowed, 5);
    allowed[0] |= 1u << 9;
    assert_true(prepare(&r, NULL, 0, 0, allowed));
    assert_int_equal(r.row.edit_count, 1);
    eng_sampler_fini(&r.sampler);
}

TEST(what_does_not_fit_is_the_host_s)
{
    uint32_t context[EDITS + 1];
    rig r;
    rig_open(&r);
    for (uint32_t i = 0; i <= EDITS; i++)
        context[i] = 10 + i;
    r.params.repetition_penalty = 2;
    r.edits.used = 1;
    assert_false(prepare(&r, context, EDITS, EDITS, NULL));
    assert_int_equal(r.edits.used, 1); /* given back */
    assert_int_equal(r.row.drawn, 0);
    r.edits.used = 0;
    assert_true(prepare(&r, context, EDITS, EDITS, NULL));
    r.edits.used = 0;
    r.params.bias_count = 1;
    r.params.bias[0] = (mdl_logit_bias){3, 1};
    assert_false(prepare(&r, context, EDITS, EDITS, NULL));
    r.params.bias_count = 2; /* two for one id */
    r.params.bias[1] = r.params.bias[0];
    assert_false(prepare(&r, context, 1, 1, NULL));
    r.params.bias_count = 0;
    r.params.min_tokens = 100;
    assert_false(prepare(&r, context, EDITS, EDITS, NULL));
    for (uint32_t i = 0; i < VOCAB; i++)
        assert_int_equal(r.sampler.count[i], 0);
    eng_sampler_fini(&r.sampler);
}

TEST(what_comes_back)
{
    krn_cuda_draw_row row = {.logprobs = 1};
    krn_cuda_drawn drawn = {.code = KRN_CUDA_DRAWN,
                            .id = 5,
                            .sum = 2,
                            .max = 3,
                            .logit = 3,
                            .top_count = 1,
                            .top_ids = {6},
                            .top_logits = {3}};
    eng_sampled sampled;
    assert_true(eng_cuda_draw_take(&drawn, &row, &sampled));
    assert_int_equal(sampled.id, 5);
    assert_true(sampled.logprob == (float)-log(2));
    assert_int_equal(sampled.top_count, 1);
    assert_int_equal(sampled.top[0].id, 6);
    assert_true(sampled.top[0].logprob == (float)-log(2));
    row.logprobs = -1;
    assert_true(eng_cuda_draw_take(&drawn, &row, &sampled));
    assert_int_equal(sampled.top_count, 0);
    drawn.code = KRN_CUDA_DRAW_LONG;
    assert_false(eng_cuda_draw_take(&drawn, &row, &sampled));
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(an_id_has_one_edit),
    cmocka_unit_test(a_mask_of_ends_alone_bars_none),
    cmocka_unit_test(what_does_not_fit_is_the_host_s),
    cmocka_unit_test(what_comes_back),
};
TEST_MAIN(TESTS)
