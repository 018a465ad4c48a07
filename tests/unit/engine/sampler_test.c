/* The sampler: known answers, edges of each filter, and draws that depend on the key alone. */
#include "tests/unit/test.h"

#include <math.h>

#include "base/rng.h"
#include "engine/sampler.h"

#define VOCAB 100u

static void draw_all(const float *logits, const mdl_sampling *params, const uint32_t *context,
                     uint32_t count, uint32_t prompt, uint32_t position, eng_sampled *out)
{
    eng_sampler sampler;
    float copy[VOCAB];
    memcpy(copy, logits, sizeof(copy));
    eng_sampler_init(&sampler, VOCAB, 1, NULL);
    eng_sampler_draw(&sampler, copy, params, context, count, prompt, position, NULL, out);
    eng_sampler_fini(&sampler);
}

static mdl_sampling defaults(void)
{
    mdl_sampling params;
    memset(&params, 0, sizeof(params));
    params.temperature = 1;
    params.top_p = 1;
    params.repetition_penalty = 1;
    params.logprob_count = -1;
    return params;
}

/* log(p) as logits, so that probabilities are the given ones; the rest is impossible. */
static void set_probabilities(float *logits, const float *p, uint32_t count)
{
    for (uint32_t i = 0; i < VOCAB; i++)
        logits[i] = i < count && p[i] > 0 ? logf(p[i]) : -INFINITY;
}

/* Bit i: id i is drawn at some of many positions. */
static uint32_t drawn_set(const float *logits, const mdl_sampling *params)
{
    uint32_t set = 0;
    for (uint32_t position = 0; position < 3000; position++) {
        eng_sampled sampled;
        draw_all(logits, params, NULL, 0, 0, position, &sampled);
        assert_true(sampled.id < 32);
        set |= 1u << sampled.id;
    }
    return set;
}

TEST(greedy_takes_the_lowest_of_equals)
{
    float logits[VOCAB];
    mdl_sampling params = defaults();
    eng_sampled sampled;
    params.temperature = 0;
    for (uint32_t i = 0; i < VOCAB; i++)
        logits[i] = i == 7 || i == 50 ? 3.0f : -1.0f;
    draw_all(logits, &params, NULL, 0, 0, 0, &sampled);
    assert_int_equal(sampled.id, 7);
    logits[0] = -0.0f;
    logits[1] = 0.0f;
    logits[7] = logits[50] = -2;
    draw_all(logits, &params, NULL, 0, 0, 0, &sampled);
    assert_int_equal(sampled.id, 0);
}

/* The draw is the keyed number against the running sum by ascending id. */
TEST(the_draw_is_the_keyed_number)
{
    static const float P[4] = {0.1f, 0.4f, 0.2f, 0.3f};
    float logits[VOCAB];
    mdl_sampling params = defaults();
    set_probabilities(logits, P, 4);
    for (uint32_t position = 0; position < 500; position++) {
        params.seed = 42 + position % 3;
        double u = sl_keyed_uniform(params.seed, position, 0);
        uint32_t expected = u < 0.0999999 ? 0 : u < 0.4999999 ? 1 : u < 0.6999999 ? 2 : 3;
        eng_sampled sampled;
        draw_all(logits, &params, NULL, 0, 0, position, &sampled);
        assert_int_equal(sampled.id, expected);
    }
}

TEST(frequencies_follow_probabilities)
{
    static const float P[4] = {0.5f, 0.25f, 0.125f, 0.125f};
    float logits[VOCAB];
    uint32_t counts[4] = {0};
    mdl_sampling params = defaults();
    set_probabilities(logits, P, 4);
    for (uint32_t position = 0; position < 8000; position++) {
        eng_sampled sampled;
        draw_all(logits, &params, NULL, 0, 0, position, &sampled);
        counts[sampled.id]++;
    }
    for (uint32_t i = 0; i < 4; i++)
        assert_true(fabsf((float)counts[i] / 8000 - P[i]) < 0.02f);
}

TEST(top_p_keeps_the_crossing_token)
{
    static const float P[4] = {0.125f, 0.5f, 0.25f, 0.125f};
    float logits[VOCAB];
    mdl_sampling params = defaults();
    set_probabilities(logits, P, 4);
    params.top_p = 0.49f;
    assert_int_equal(drawn_set(logits, &params), 1u << 1);
    params.top_p = 0.51f;
    assert_int_equal(drawn_set(logits, &params), 1u << 1 | 1u << 2);
    params.top_p = 0.76f; /* equal ones: the lower id is first */
    assert_int_equal(drawn_set(logits, &params), 1u << 1 | 1u << 2 | 1u << 0);
    params.top_p = 1.0f;
    assert_int_equal(drawn_set(logits, &params), 0xf);
    params.top_p = 1e-9f; /* at least one stays */
    assert_int_equal(drawn_set(logits, &params), 1u << 1);
}

TEST(top_k_and_min_p)
{
    static const float P[5] = {0.1f, 0.3f, 0.3f, 0.2f, 0.1f};
    float logits[VOCAB];
    mdl_sampling params = defaults();
    set_probabilities(logits, P, 5);
    params.top_k = 1; /* of the two equal ones, the lower id */
    assert_int_equal(drawn_set(logits, &params), 1u << 1);
    params.top_k = 3;
    assert_int_equal(drawn_set(logits, &params), 0xe);
    params.top_k = 4;
    assert_int_equal(drawn_set(logits, &params), 0xf);
    params.top_k = 1000;
    assert_int_equal(drawn_set(logits, &params), 0x1f);
    params.top_k = 0;
    params.min_p = 0.5f; /* of the best, 0.3 */
    assert_int_equal(drawn_set(logits, &params), 0xe);
    params.min_p = 1.0f;
    assert_int_equal(drawn_set(logits, &params), 0x6);
    params.min_p = 0.5f;
    params.top_k = 2;
    assert_int_equal(drawn_set(logits, &params), 0x6);
}

/* Bit i: id i is in the mask; the mask is one record. */
static uint32_t mask_of(const float *logits, const mdl_sampling *params, mdl_mask_kind *out_kind)
{
    eng_sampler sampler;
    eng_sampled sampled;
    float copy[VOCAB];
    uint8_t out[64];
    uint32_t set = 0;
    memcpy(copy, logits, sizeof(copy));
    eng_sampler_init(&sampler, VOCAB, 1, NULL);
    eng_sampler_draw(&sampler, copy, params, NULL, 0, 0, 3, NULL, &sampled);
    uint32_t bytes = eng_sampler_mask(&sampler, out);
    eng_sampler_fini(&sampler);
    assert_true(mdl_mask_check((sl_span){out, bytes}, VOCAB));
    *out_kind = (mdl_mask_kind)out[0];
    for (uint32_t id = 0; id < 32 && out[0] == MDL_MASK_BITMAP; id++)
        set |= (uint32_t)(out[5 + id / 8] >> (id % 8) & 1) << id;
    for (uint32_t i = 0; out[0] == MDL_MASK_LIST && i < out[1]; i++)
        set |= 1u << out[5 + 4 * i];
    assert_true(out[0] == MDL_MASK_UNCUT || (set >> sampled.id & 1));
    return set;
}

/* The mask is the set of ids that are drawn at some position. */
TEST(masks_hold_what_can_be_drawn)
{
    static const float P[12] = {0.1f, 0.3f, 0.3f, 0.1f, 0.02f, 0.02f, 0.03f, 0.03f, 0.04f, 0.06f};
    static const mdl_sampling CASES[] = {
        {.top_k = 3},    {.top_k = 9},     {.top_p = 0.8f},
        {.min_p = 0.1f}, {.min_p = 0.05f}, {.top_k = 8, .top_p = 0.9f, .min_p = 0.15f}};
    float logits[VOCAB];
    mdl_mask_kind kind;
    set_probabilities(logits, P, 12);
    mdl_sampling params = defaults();
    assert_int_equal(mask_of(logits, &params, &kind), 0);
    assert_int_equal(kind, MDL_MASK_UNCUT);
    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
        params = defaults();
        params.top_k = CASES[i].top_k;
        params.min_p = CASES[i].min_p;
        params.top_p = CASES[i].top_p > 0 ? CASES[i].top_p : 1;
        uint32_t set = mask_of(logits, &params, &kind);
        assert_int_equal(set, drawn_set(logits, &params));
        assert_int_equal(kind, __builtin_popcount(set) > 3 ? MDL_MASK_BITMAP : MDL_MASK_LIST);
    }
    params.temperature = 0;
    assert_int_equal(mask_of(logits, &params, &kind), 1u << 1);
}

TEST(temperature_sharpens)
{
    static const float P[2] = {0.4f, 0.6f};
    float logits[VOCAB];
    mdl_sampling params = defaults();
    set_probabilities(logits, P, 2);
    params.temperature = 1e-30f; /* no division by (nearly) zero shows */
    assert_int_equal(drawn_set(logits, &params), 1u << 1);
    params.temperature = 2;
    assert_int_equal(drawn_set(logits, &params), 3);
}

TEST(penalties_count_generated_tokens)
{
    static const uint32_t CONTEXT[] = {3, 3, 4, 4, 4, 5}; /* the first two are the prompt */
    float logits[VOCAB] = {0};
    mdl_sampling params = defaults();
    eng_sampled sampled;
    params.temperature = 0;
    params.logprob_count = 2;
    logits[3] = 2.0f;
    logits[4] = 3.0f;
    logits[5] = 2.5f;
    draw_all(logits, &params, CONTEXT, 6, 2, 6, &sampled);
    assert_int_equal(sampled.id, 4);
    params.presence_penalty = 1; /* 4: 2, 5: 1.5, 3: 2 (prompt only): the lower id */
    draw_all(logits, &params, CONTEXT, 6, 2, 6, &sampled);
    assert_int_equal(sampled.id, 3);
    params.presence_penalty = 0;
    params.frequency_penalty = 0.5f; /* 4: 1.5, 5: 2, 3: 2 */
    draw_all(logits, &params, CONTEXT, 6, 2, 6, &sampled);
    assert_int_equal(sampled.id, 3);
    logits[3] = 1.9f;
    draw_all(logits, &params, CONTEXT, 6, 2, 6, &sampled);
    assert_int_equal(sampled.id, 5);
    params.frequency_penalty = 0;
    params.repetition_penalty = 2; /* prompt too: 3: 0.95, 4: 1.5, 5: 1.25 */
    draw_all(logits, &params, CONTEXT, 6, 2, 6, &sampled);
    assert_int_equal(sampled.id, 4);
    logits[6] = 1.6f;
    draw_all(logits, &params, CONTEXT, 6, 2, 6, &sampled);
    assert_int_equal(sampled.id, 6);
    logits[6] = 0;
    for (uint32_t i = 0; i < VOCAB; i++)
        logits[i] -= 10; /* negative logits are multiplied: penalised ones fall */
    draw_all(logits, &params, CONTEXT, 6, 2, 6, &sampled);
    assert_int_equal(sampled.id, 0);
}

/* The smallest penalties that requests may name: quotients beyond f32 are still numbers. */
TEST(tiny_repetition_penalty)
{
    static const uint32_t CONTEXT[] = {3, 4};
    static const float PENALTIES[] = {1e-30f, 1e-40f, 1e-45f};
    float logits[VOCAB] = {0};
    mdl_sampling params = defaults();
    logits[3] = 1.9f;
    logits[4] = 1e9f;
    logits[5] = -1e9f;
    params.logprob_count = 3;
    for (size_t i = 0; i < sizeof(PENALTIES) / sizeof(PENALTIES[0]); i++) {
        for (int warm = 0; warm < 2; warm++) {
            eng_sampled sampled;
            params.repetition_penalty = PENALTIES[i];
            params.temperature = warm ? 1.0f : 0.0f;
            draw_all(logits, &params, CONTEXT, 2, 2, 2, &sampled);
            assert_true(sampled.id == 3 || sampled.id == 4);
            assert_true(isfinite(sampled.logprob));
        }
    }
}

TEST(bias_and_masks)
{
    static const uint32_t UNDEFINED[4] = {0, 0, 0, 1u << 3}; /* id 99 */
    float logits[VOCAB] = {0}, copy[VOCAB];
    mdl_sampling params = defaults();
    eng_sampled sampled;
    params.temperature = 0;
    params.bias_count = 2;
    params.bias[0] = (mdl_logit_bias){10, 5.0f};
    params.bias[1] = (mdl_logit_bias){11, 4.0f};
    draw_all(logits, &params, NULL, 0, 0, 0, &sampled);
    assert_int_equal(sampled.id, 10);
    params.bias[0].bias = -100;
    draw_all(logits, &params, NULL, 0, 0, 0, &sampled);
    assert_int_equal(sampled.id, 11);
    logits[99] = 50;
    logits[1] = 40; /* EOS */
    logits[2] = 30; /* a stop id */
    eng_sampler sampler;
    eng_sampler_init(&sampler, VOCAB, 1, UNDEFINED);
    params.stop_id_count = 1;
    params.stop_ids[0] = 2;
    params.min_tokens = 2;
    static const uint32_t EXPECTED[] = {11, 11, 1}; /* after 0, 1, 2 generated tokens */
    static const uint32_t CONTEXT[] = {5, 6, 7};
    for (uint32_t made = 0; made < 3; made++) {
        memcpy(copy, logits, sizeof(copy));
        eng_sampler_draw(&sampler, copy, &params, CONTEXT, 1 + made, 1, 1 + made, NULL, &sampled);
        assert_int_equal(sampled.id, EXPECTED[made]);
    }
    eng_sampler_fini(&sampler);
}

TEST(logprobs_before_temperature)
{
    static const float P[4] = {0.1f, 0.4f, 0.4f, 0.1f};
    static const uint32_t ORDER[4] = {1, 2, 0, 3};
    float logits[VOCAB];
    mdl_sampling params = defaults();
    eng_sampled sampled;
    set_probabilities(logits, P, 4);
    for (uint32_t i = 0; i < VOCAB; i++)
        logits[i] += 7; /* a shift changes nothing */
    params.temperature = 0.5f;
    params.logprob_count = 20;
    draw_all(logits, &params, NULL, 0, 0, 3, &sampled);
    assert_int_equal(sampled.top_count, 4); /* the others are impossible */
    for (uint32_t i = 0; i < 4; i++) {
        assert_int_equal(sampled.top[i].id, ORDER[i]);
        assert_true(fabsf(sampled.top[i].logprob - logf(P[ORDER[i]])) < 1e-5f);
    }
    assert_true(fabsf(sampled.logprob - logf(P[sampled.id])) < 1e-5f);
    params.logprob_count = 0;
    draw_all(logits, &params, NULL, 0, 0, 3, &sampled);
    assert_int_equal(sampled.top_count, 0);
    assert_true(sampled.logprob < 0);
}

/* A given token scores what it would have been reported with had it been drawn. */
TEST(scores_equal_reported_logprobs)
{
    float logits[VOCAB], copy[VOCAB];
    const uint32_t undefined[(VOCAB + 31) / 32] = {1u << 9};
    eng_sampler sampler;
    eng_sampled sampled;
    mdl_score_top top[5];
    mdl_score score;
    uint8_t bytes[52];
    mdl_sampling params = defaults();
    params.logprob_count = 5;
    for (uint32_t i = 0; i < VOCAB; i++)
        logits[i] = (float)(sl_keyed_uniform(3, i / 2, 7) * 8); /* pairs are equal */
    logits[9] = 99;
    eng_sampler_init(&sampler, VOCAB, 1, undefined);
    for (uint32_t position = 0; position < 50; position++) {
        memcpy(copy, logits, sizeof(copy));
        eng_sampler_draw(&sampler, copy, &params, NULL, 0, 0, position, NULL, &sampled);
        memcpy(copy, logits, sizeof(copy));
        eng_sampler_score(&sampler, copy, sampled.id, 5, bytes);
        assert_true(mdl_score_unpack(bytes, 5, VOCAB, top, &score));
        assert_true(score.logprob == sampled.logprob && score.top_count == 5);
        assert_memory_equal(top, sampled.top, sizeof(top));
        uint32_t rank = 1;
        for (uint32_t i = 0; i < VOCAB; i++)
            rank += i != 9 && logits[i] > logits[sampled.id];
        assert_int_equal(score.rank, rank);
    }
    memcpy(copy, logits, sizeof(copy));
    eng_sampler_score(&sampler, copy, 9, 0, bytes); /* an id that is none */
    assert_true(mdl_score_unpack(bytes, 0, VOCAB, top, &score));
    assert_true(isinf(score.logprob) && score.rank == VOCAB);
    eng_sampler_fini(&sampler);
}

TEST(same_key_same_token)
{
    float logits[VOCAB];
    mdl_sampling params = defaults();
    uint32_t differ = 0;
    for (uint32_t i = 0; i < VOCAB; i++)
        logits[i] = (float)sl_keyed_uniform(1, i, 9) * 3;
    params.top_p = 0.9f;
    for (uint32_t position = 0; position < 200; position++) {
        eng_sampled a, b, c;
        params.seed = 5;
        draw_all(logits, &params, NULL, 0, 0, position, &a);
        draw_all(logits, &params, NULL, 0, 0, position, &b);
        assert_int_equal(a.id, b.id);
        params.seed = 6;
        draw_all(logits, &params, NULL, 0, 0, position, &c);
        differ += a.id != c.id;
    }
    assert_true(differ > 150);
}

/* Only allowed ids are drawn and told of; the draw is the one of a vocabulary without the others;
 * min_tokens gives way where nothing but an end is left. */
TEST(only_the_allowed_are_drawn)
{
    float logits[VOCAB], copy[VOCAB], alone[VOCAB];
    uint32_t allowed[(VOCAB + 31) / 32] = {0x00400009, 0x80000000, 0, 0x1}; /* 0, 3, 22, 63, 96 */
    eng_sampler sampler;
    eng_sampled sampled, expected;
    uint8_t record[64];
    mdl_sampling params = defaults();
    eng_sampler_init(&sampler, VOCAB, 1, NULL);
    for (uint32_t position = 0; position < 100; position++) {
        for (uint32_t id = 0; id < VOCAB; id++) {
            logits[id] = (float)sl_keyed_uniform(2, position * VOCAB + id, 9) * 4;
            alone[id] = allowed[id / 32] >> (id % 32) & 1 ? logits[id] : -INFINITY;
        }
        params.temperature = (float)(position % 3) / 2;
        params.top_p = position % 2 ? 0.8f : 1.0f;
        params.logprob_count = 10;
        draw_all(alone, &params, NULL, 0, 0, position, &expected);
        memcpy(copy, logits, sizeof(copy));
        eng_sampler_draw(&sampler, copy, &params, NULL, 0, 0, position, allowed, &sampled);
        assert_memory_equal(&sampled, &expected, sizeof(sampled));
        assert_int_equal(sampled.top_count, 5);
        uint32_t bytes = eng_sampler_mask(&sampler, record);
        assert_true(mdl_mask_check((sl_span){record, bytes}, VOCAB));
        assert_true(record[0] != MDL_MASK_UNCUT);
    }
    memset(allowed, 0, sizeof(allowed));
    allowed[0] = 1u << 1 | 1u << 2; /* the end of sentence and a stop id */
    params.stop_id_count = 1;
    params.stop_ids[0] = 2;
    params.min_tokens = 5;
    memcpy(copy, logits, sizeof(copy));
    eng_sampler_draw(&sampler, copy, &params, NULL, 0, 0, 0, allowed, &sampled);
    assert_true(sampled.id == 1 || sampled.id == 2);
    allowed[0] |= 1u << 4;
    memcpy(copy, logits, sizeof(copy));
    eng_sampler_draw(&sampler, copy, &params, NULL, 0, 0, 0, allowed, &sampled);
    assert_int_equal(sampled.id, 4);
    eng_sampler_fini(&sampler);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(greedy_takes_the_lowest_of_equals),
    cmocka_unit_test(the_draw_is_the_keyed_number),
    cmocka_unit_test(frequencies_follow_probabilities),
    cmocka_unit_test(top_p_keeps_the_crossing_token),
    cmocka_unit_test(top_k_and_min_p),
    cmocka_unit_test(masks_hold_what_can_be_drawn),
    cmocka_unit_test(temperature_sharpens),
    cmocka_unit_test(penalties_count_generated_tokens),
    cmocka_unit_test(tiny_repetition_penalty),
    cmocka_unit_test(bias_and_masks),
    cmocka_unit_test(logprobs_before_temperature),
    cmocka_unit_test(scores_equal_reported_logprobs),
    cmocka_unit_test(same_key_same_token),
    cmocka_unit_test(only_the_allowed_are_drawn),
};
TEST_MAIN(TESTS)
