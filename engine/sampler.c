/* Draws tokens: penalties and bias, temperature, softmax, min_p, keyed draw (top_k and top_p:
 * sampler_top.c).
 *
 * docs/SAMPLING.md is the definition; every sum has one order, so that the same logits and key give
 * the same token everywhere. Thread: the engine thread. Allocates at init only. */
#include "engine/sampler.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/rng.h"
#include "kernels/draw.h"

static uint32_t word_count(uint32_t bits)
{
    return (bits + 63) / 64;
}

void eng_sampler_init(eng_sampler *sampler, uint32_t vocab_size, uint32_t eos_id,
                      const uint32_t *undefined)
{
    sl_assert(vocab_size > 0);
    *sampler = (eng_sampler){
        .vocab_size = vocab_size,
        .eos_id = eos_id,
        .undefined = undefined,
        .terms = sl_alloc(vocab_size, sizeof(float), "sampler terms"),
        .probability = sl_alloc(vocab_size, sizeof(float), "sampler probabilities"),
        .ids = sl_alloc(vocab_size, sizeof(uint32_t), "sampler candidates"),
        .count = sl_alloc(vocab_size, sizeof(uint32_t), "sampler counts"),
        .kept = sl_alloc(word_count(vocab_size), sizeof(uint64_t), "sampler kept"),
        .running = sl_alloc(word_count(vocab_size), sizeof(double), "sampler sums"),
    };
}

void eng_sampler_fini(eng_sampler *sampler)
{
    sl_free(sampler->terms);
    sl_free(sampler->probability);
    sl_free(sampler->ids);
    sl_free(sampler->count);
    sl_free(sampler->kept);
    sl_free(sampler->running);
    *sampler = (eng_sampler){0};
}

/* ---- changes to the logits ---- */

static void mask_undefined(const eng_sampler *sampler, float *logits)
{
    for (uint32_t word = 0; sampler->undefined && word < (sampler->vocab_size + 31) / 32; word++)
        for (uint32_t bits = sampler->undefined[word]; bits; bits &= bits - 1)
            logits[32 * word + (uint32_t)__builtin_ctz(bits)] = -INFINITY;
}

static bool is_end(const eng_sampler *sampler, const mdl_sampling *params, uint32_t id)
{
    bool end = id == sampler->eos_id;
    for (int32_t i = 0; i < params->stop_id_count && !end; i++)
        end = params->stop_ids[i] == (int32_t)id;
    return end;
}

/* Leaves a constraint only what ends the answer? Then min_tokens gives way. */
static bool allows_ends_only(const eng_sampler *sampler, const mdl_sampling *params,
                             const uint32_t *allowed)
{
    for (uint32_t word = 0; word < (sampler->vocab_size + 31) / 32; word++) {
        for (uint32_t bits = allowed[word]; bits; bits &= bits - 1)
            if (!is_end(sampler, params, 32 * word + (uint32_t)__builtin_ctz(bits)))
                return false;
    }
    return true;
}

static void sampler_allow(const eng_sampler *sampler, float *logits, const uint32_t *allowed)
{
    for (uint32_t first = 0; first < sampler->vocab_size; first += 32) {
        uint32_t word = allowed[first / 32], left = sampler->vocab_size - first;
        if (word == UINT32_MAX) /* mostly all or none */
            continue;
        for (uint32_t i = 0; i < (left < 32 ? left : 32); i++)
            logits[first + i] = word >> i & 1 ? logits[first + i] : -INFINITY;
    }
}

bool eng_sampler_bars_ends(const eng_sampler *sampler, const mdl_sampling *params,
                           uint32_t generated, const uint32_t *allowed)
{
    return params->min_tokens >= 0 && generated < (uint32_t)params->min_tokens &&
           !(allowed && allows_ends_only(sampler, params, allowed));
}

static void sampler_mask(const eng_sampler *sampler, float *logits, const mdl_sampling *params,
                         uint32_t generated, const uint32_t *allowed)
{
    if (allowed)
        sampler_allow(sampler, logits, allowed);
    mask_undefined(sampler, logits);
    if (!eng_sampler_bars_ends(sampler, params, generated, allowed))
        return;
    logits[sampler->eos_id] = -INFINITY;
    for (int32_t i = 0; i < params->stop_id_count; i++) {
        if (params->stop_ids[i] >= 0 && (uint32_t)params->stop_ids[i] < sampler->vocab_size)
            logits[params->stop_ids[i]] = -INFINITY;
    }
}

/* A small penalty must not make infinity of a finite logit: that would be no number to draw by. */
static float sampler_divide(float logit, float penalty)
{
    float quotient = logit / penalty;
    return quotient > FLT_MAX ? FLT_MAX : quotient;
}

/* Repetition over the whole context, then frequency and presence over what was generated. */
static void sampler_penalise(eng_sampler *sampler, float *logits, const mdl_sampling *params,
                             const uint32_t *context, uint32_t context_count, uint32_t prompt_count)
{
    uint32_t *count = sampler->count;
    if (params->repetition_penalty != 1.0f && params->repetition_penalty > 0.0f) {
        for (uint32_t i = 0; i < context_count; i++) {
            uint32_t id = context[i];
            sl_assert(id < sampler->vocab_size);
            if (count[id]++)
                continue;
            logits[id] = logits[id] > 0.0f ? sampler_divide(logits[id], params->repetition_penalty)
                                           : logits[id] * params->repetition_penalty;
        }
        for (uint32_t i = 0; i < context_count; i++)
            count[context[i]] = 0;
    }
    if (params->presence_penalty == 0.0f && params->frequency_penalty == 0.0f)
        return;
    for (uint32_t i = prompt_count; i < context_count; i++) {
        sl_assert(context[i] < sampler->vocab_size);
        count[context[i]]++;
    }
    for (uint32_t i = prompt_count; i < context_count; i++) {
        uint32_t id = context[i];
        if (count[id] == 0)
            continue; /* done at its first occurrence */
        logits[id] -= (float)count[id] * params->frequency_penalty + params->presence_penalty;
        count[id] = 0;
    }
}

static void sampler_bias(const eng_sampler *sampler, float *logits, const mdl_sampling *params)
{
    for (int32_t i = 0; i < params->bias_count; i++) {
        if (params->bias[i].id >= 0 && (uint32_t)params->bias[i].id < sampler->vocab_size)
            logits[params->bias[i].id] += params->bias[i].bias;
    }
}

/* ---- logprobs ---- */

/* log(sum(exp(l))), in double, ascending id. */
static double log_sum_exp(const float *logits, uint32_t count, float max)
{
    double sum = 0;
    for (uint32_t i = 0; i < count; i++)
        sum += exp((double)logits[i] - (double)max);
    return (double)max + log(sum);
}

/* The count best of values, by value descending, then id ascending: insertion into a short list. */
static uint32_t top_list(const float *values, uint32_t value_count, uint32_t wanted,
                         eng_logprob *out_top)
{
    uint32_t have = 0;
    for (uint32_t id = 0; id < value_count && wanted > 0; id++) {
        if (values[id] == -INFINITY)
            continue;
        if (have == wanted && values[id] <= out_top[have - 1].logprob)
            continue;
        uint32_t at = have < wanted ? have++ : have - 1;
        for (; at > 0 && out_top[at - 1].logprob < values[id]; at--)
            out_top[at] = out_top[at - 1];
        out_top[at] = (eng_logprob){id, values[id]};
    }
    return have;
}

static uint32_t top_logprobs(const eng_sampler *sampler, const float *logits, double norm,
                             uint32_t wanted, eng_logprob *out_top)
{
    uint32_t count = top_list(logits, sampler->vocab_size, wanted, out_top);
    for (uint32_t i = 0; i < count; i++)
        out_top[i].logprob = (float)((double)out_top[i].logprob - norm);
    return count;
}

void eng_sampler_score(const eng_sampler *sampler, float *logits, uint32_t id,
                       uint32_t alternatives, uint8_t *out)
{
    uint32_t vocab = sampler->vocab_size, rank = 1;
    eng_logprob list[ENG_LOGPROBS_MAX];
    mdl_score_top top[ENG_LOGPROBS_MAX];
    sl_assert(id < vocab && alternatives <= ENG_LOGPROBS_MAX);
    mask_undefined(sampler, logits);
    float max = logits[krn_arg_max(logits, vocab)];
    sl_assert(isfinite(max));
    double norm = log_sum_exp(logits, vocab, max);
    for (uint32_t i = 0; i < vocab; i++)
        rank += logits[i] > logits[id];
    uint32_t count = top_logprobs(sampler, logits, norm, alternatives, list);
    for (uint32_t i = 0; i < count; i++)
        top[i] = (mdl_score_top){list[i].id, list[i].logprob};
    const mdl_score score = {(float)((double)logits[id] - norm), rank, count, top};
    mdl_score_pack(&score, alternatives, out);
}

/* ---- draw ---- */

uint32_t eng_sampler_best(const eng_sampler *sampler, float *logits, const uint32_t *allowed)
{
    sampler_allow(sampler, logits, allowed);
    return krn_arg_max(logits, sampler->vocab_size);
}

/* Takes out of `kept` what min_p drops. */
static void drop_below(eng_sampler *sampler, float low)
{
    for (uint32_t word = 0; word < word_count(sampler->vocab_size); word++) {
        for (uint64_t bits = sampler->kept[word]; bits; bits &= bits - 1) {
            uint32_t id = 64 * word + (uint32_t)__builtin_ctzll(bits);
            if (sampler->probability[id] < low)
                sampler->kept[word] &= ~(1ull << (id % 64));
        }
    }
}

/* Every probability, and in `kept` those that are not zero and not below `low`. What was barred
 * before has the term 0. */
static void keep_reaching(eng_sampler *sampler, double sum, float low)
{
    krn_softmax_divide(sampler->terms, sampler->vocab_size, sum, sampler->probability);
    krn_reaching(sampler->probability, sampler->vocab_size, low > FLT_TRUE_MIN ? low : FLT_TRUE_MIN,
                 sampler->kept);
}

/* Walks the kept ids upwards until the running sum passes u times their total. The sum at the end
 * of each word is noted on the way to the total, so that the walk needs one word. */
static uint32_t pick(const eng_sampler *sampler, double u)
{
    uint32_t words = word_count(sampler->vocab_size), last = 0, word = 0, id = 0;
    double sum = 0;
    for (uint32_t w = 0; w < words; w++) {
        for (uint64_t bits = sampler->kept[w]; bits; bits &= bits - 1)
            sum += (double)sampler->probability[64 * w + (uint32_t)__builtin_ctzll(bits)];
        sampler->running[w] = sum;
        last = sampler->kept[w] ? w : last; /* if rounding lets no sum pass */
    }
    sl_assert(sum > 0);
    double limit = u * sum;
    while (word < last && sampler->running[word] <= limit)
        word++;
    sum = word > 0 ? sampler->running[word - 1] : 0;
    for (uint64_t bits = sampler->kept[word]; bits && sum <= limit; bits &= bits - 1) {
        id = 64 * word + (uint32_t)__builtin_ctzll(bits);
        sum += (double)sampler->probability[id];
    }
    return id;
}

/* Softmax of logits / temperature, the filters, and the keyed draw. */
static uint32_t draw(eng_sampler *sampler, const float *logits, float max,
                     const mdl_sampling *params, uint32_t position, const uint32_t *allowed)
{
    bool top = params->top_k > 0 || params->top_p < 1.0f;
    double sum =
        krn_softmax_terms(logits, sampler->vocab_size, max, params->temperature, sampler->terms);
    float largest = (float)(1.0 / sum), low = params->min_p > 0.0f ? params->min_p * largest : 0;
    sampler->mask = allowed || top || params->min_p > 0.0f ? MDL_MASK_BITMAP : MDL_MASK_UNCUT;
    if (top) {
        eng_sampler_keep_top(sampler, sum, params);
        if (low > 0)
            drop_below(sampler, low);
    } else {
        keep_reaching(sampler, sum, low);
    }
    return pick(sampler, sl_keyed_uniform(params->seed, position, ENG_SAMPLER_STREAM));
}

/* After penalties, bias and masks: the likeliest, or drawn at `position`. */
static uint32_t choose(eng_sampler *sampler, float *logits, const mdl_sampling *params,
                       uint32_t position, const uint32_t *allowed, bool drawn)
{
    uint32_t best = krn_arg_max(logits, sampler->vocab_size);
    sl_assert(isfinite(logits[best]));
    sampler->max = logits[best];
    sampler->mask = MDL_MASK_LIST;
    sampler->last_id = best;
    if (drawn && params->temperature > 0.0f)
        sampler->last_id = draw(sampler, logits, sampler->max, params, position, allowed);
    return sampler->last_id;
}

static void change(eng_sampler *sampler, float *logits, const mdl_sampling *params,
                   const uint32_t *context, uint32_t context_count, uint32_t prompt_count,
                   const uint32_t *allowed)
{
    sl_assert(prompt_count <= context_count);
    sl_assert(params->temperature >= 0.0f);
    sampler_penalise(sampler, logits, params, context, context_count, prompt_count);
    sampler_bias(sampler, logits, params);
    sampler_mask(sampler, logits, params, context_count - prompt_count, allowed);
}

bool eng_sampler_guesses(const mdl_sampling *params, uint32_t generated, bool drawn)
{
    bool early = params->min_tokens > 0 && generated < (uint32_t)params->min_tokens;
    return (drawn && params->temperature > 0.0f) || params->bias_count > 0 || early ||
           params->repetition_penalty != 1.0f || params->presence_penalty != 0.0f ||
           params->frequency_penalty != 0.0f;
}

uint32_t eng_sampler_guess(eng_sampler *sampler, float *logits, const mdl_sampling *params,
                           const uint32_t *context, uint32_t context_count, uint32_t prompt_count,
                           const uint32_t *allowed, bool drawn)
{
    change(sampler, logits, params, context, context_count, prompt_count, allowed);
    return choose(sampler, logits, params, context_count, allowed, drawn);
}

void eng_sampler_draw(eng_sampler *sampler, float *logits, const mdl_sampling *params,
                      const uint32_t *context, uint32_t context_count, uint32_t prompt_count,
                      uint32_t position, const uint32_t *allowed, eng_sampled *out_sampled)
{
    change(sampler, logits, params, context, context_count, prompt_count, allowed);
    eng_sampled sampled = {.id = choose(sampler, logits, params, position, allowed, true)};
    if (params->logprob_count >= 0) {
        double norm = log_sum_exp(logits, sampler->vocab_size, sampler->max);
        sampled.logprob = (float)((double)logits[sampled.id] - norm);
        uint32_t wanted = (uint32_t)params->logprob_count;
        wanted = wanted > ENG_LOGPROBS_MAX ? ENG_LOGPROBS_MAX : wanted;
        sampled.top_count = top_logprobs(sampler, logits, norm, wanted, sampled.top);
    }
    *out_sampled = sampled;
}

uint32_t eng_sampler_mask(eng_sampler *sampler, uint8_t *out)
{
    uint32_t vocab = sampler->vocab_size;
    if (sampler->mask == MDL_MASK_LIST)
        return mdl_mask_pack_one(sampler->last_id, out);
    if (sampler->mask == MDL_MASK_UNCUT)
        return mdl_mask_pack(NULL, vocab, out);
    return mdl_mask_pack(sampler->kept, vocab, out);
}
