/* The sampler against docs/SAMPLING.md written down plainly, with a full sort: the same token and
 * the same mask, for peaked, flat, tied and tiny probabilities, on every CPU variant. */
#include "tests/unit/test.h"

#include <float.h>
#include <math.h>

#include "base/alloc.h"
#include "base/rng.h"
#include "engine/sampler.h"
#include "tests/unit/kernels/variants.h"

#define VOCAB_MAX 9000u

typedef struct plain {
    uint32_t vocab;
    float p[VOCAB_MAX];
    bool kept[VOCAB_MAX];
    uint32_t order[VOCAB_MAX];
} plain;

static const float *sort_by; /* qsort has no context */

static int by_probability(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    if (sort_by[x] != sort_by[y])
        return sort_by[x] > sort_by[y] ? -1 : 1;
    return x < y ? -1 : 1;
}

/* Steps 6 and 7. */
static void filter(plain *m, const float *logits, const mdl_sampling *params)
{
    double sum = 0, prefix = 0;
    float max = -INFINITY, largest = 0;
    for (uint32_t i = 0; i < m->vocab; i++)
        max = logits[i] > max ? logits[i] : max;
    for (uint32_t i = 0; i < m->vocab; i++) {
        float x = (logits[i] - max) / params->temperature;
        m->p[i] = x < -104.0f ? 0.0f : (float)exp((double)x);
        sum += (double)m->p[i];
    }
    for (uint32_t i = 0; i < m->vocab; i++) {
        m->p[i] = (float)((double)m->p[i] / sum);
        largest = m->p[i] > largest ? m->p[i] : largest;
        m->order[i] = i;
        m->kept[i] = false;
    }
    sort_by = m->p;
    qsort(m->order, m->vocab, sizeof m->order[0], by_probability);
    for (uint32_t i = 0; i < m->vocab; i++) {
        if (params->top_k > 0 && i >= (uint32_t)params->top_k)
            break;
        if (params->top_p < 1.0f && i > 0 && prefix >= (double)params->top_p)
            break;
        uint32_t id = m->order[i];
        prefix += (double)m->p[id];
        m->kept[id] = m->p[id] > 0 && !(m->p[id] < params->min_p * largest);
    }
}

static uint32_t plain_draw(const plain *m, double u)
{
    double total = 0, sum = 0;
    uint32_t last = 0;
    for (uint32_t i = 0; i < m->vocab; i++)
        total += m->kept[i] ? (double)m->p[i] : 0.0;
    for (uint32_t i = 0; i < m->vocab; i++) {
        if (!m->kept[i])
            continue;
        sum += (double)m->p[i];
        last = i;
        if (sum > u * total)
            break;
    }
    return last;
}

/* kind 0: a model's; 1: flat; 2: few distinct values; 3: very far apart; 4: a long faint tail. */
static void fill(float *logits, uint32_t vocab, uint32_t kind, uint64_t seed)
{
    static const float SPREADS[] = {12, 0.25f, 3, 130, 2};
    for (uint32_t i = 0; i < vocab; i++) {
        float x = (float)(sl_keyed_uniform(seed, i, 0) + sl_keyed_uniform(seed, i, 1) - 1);
        logits[i] = SPREADS[kind] * x;
        if (kind == 2)
            logits[i] = roundf(2 * logits[i]) / 2;
        if (kind == 4 && sl_keyed_uniform(seed, i, 2) < 0.98)
            logits[i] -= 24;
    }
}

static const mdl_sampling CASES[] = {
    {.top_p = 0.95f},
    {.top_p = 0.5f, .top_k = 300},
    {.top_p = 0.999999f},
    {.top_p = 0.9999999f, .min_p = 1e-9f},
    {.top_p = 1, .top_k = 1},
    {.top_p = 1, .top_k = 50, .min_p = 0.02f},
    {.top_p = 1, .top_k = 3000},
    {.top_p = 1, .min_p = 0.1f},
    {.top_p = 1},
    {.top_p = 1e-9f},
};

static void compare(plain *m, const float *logits, mdl_sampling *params, uint32_t position)
{
    static float copy[VOCAB_MAX];
    static uint8_t record[VOCAB_MAX];
    static uint64_t bits[VOCAB_MAX / 64 + 1];
    static uint8_t expected[VOCAB_MAX];
    eng_sampler sampler;
    eng_sampled sampled;
    eng_sampler_init(&sampler, m->vocab, 1, NULL);
    memcpy(copy, logits, m->vocab * sizeof(float));
    eng_sampler_draw(&sampler, copy, params, NULL, 0, 0, position, NULL, &sampled);
    filter(m, logits, params);
    assert_int_equal(sampled.id, plain_draw(m, sl_keyed_uniform(params->seed, position, 0)));
    memset(bits, 0, sizeof bits);
    for (uint32_t i = 0; i < m->vocab; i++)
        bits[i / 64] |= (uint64_t)m->kept[i] << (i % 64);
    bool cut = params->top_k > 0 || params->top_p < 1 || params->min_p > 0;
    uint32_t bytes = mdl_mask_pack(cut ? bits : NULL, m->vocab, expected);
    assert_int_equal(eng_sampler_mask(&sampler, record), bytes);
    assert_memory_equal(record, expected, bytes);
    eng_sampler_fini(&sampler);
}

TEST(draws_equal_the_definition)
{
    static const uint32_t VOCABS[] = {1, 100, 2048, 8999};
    static const float TEMPERATURES[] = {0.7f, 1, 1.9f, 0.05f};
    static float logits[VOCAB_MAX];
    plain *m = sl_alloc(1, sizeof *m, "plain sampler");
    EACH_VARIANT
    {
        for (uint32_t i = 0; i < 4 * 5 * 10; i++) {
            mdl_sampling params = CASES[i % 10];
            uint32_t kind = i / 10 % 5;
            m->vocab = VOCABS[i / 50];
            params.temperature = TEMPERATURES[(i + i / 10) % 4];
            params.repetition_penalty = 1;
            params.logprob_count = -1;
            params.seed = i;
            fill(logits, m->vocab, kind, i);
            for (uint32_t position = 0; position < 3; position++)
                compare(m, logits, &params, position);
        }
    }
    sl_free(m);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(draws_equal_the_definition),
};
TEST_MAIN(TESTS)
