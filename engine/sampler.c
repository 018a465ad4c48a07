/* Draws tokens: penalties and bias, temperature, softmax, top_k, top_p, min_p, keyed draw.
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

#define SAMPLER_STREAM 0 /* of the keyed random number */

void eng_sampler_init(eng_sampler *sampler, uint32_t vocab_size, uint32_t eos_id,
                      const uint32_t *undefined)
{
    sl_assert(vocab_size > 0);
    *sampler = (eng_sampler){
        .vocab_size = vocab_size,
        .eos_id = eos_id,
        .undefined = undefined,
        .probability = sl_alloc(vocab_size, sizeof(float), "sampler probabilities"),
        .heap = sl_alloc(vocab_size, sizeof(uint32_t), "sampler heap"),
        .count = sl_alloc(vocab_size, sizeof(uint32_t), "sampler counts"),
        .kept = sl_alloc((vocab_size + 63) / 64, sizeof(uint64_t), "sampler kept"),
    };
}

void eng_sampler_fini(eng_sampler *sampler)
{
    sl_free(sampler->probability);
    sl_free(sampler->heap);
    sl_free(sampler->count);
    sl_free(sampler->kept);
    *sampler = (eng_sampler){0};
}

uint32_t eng_arg_max(const float *logits, uint32_t count)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < count; i++) {
        if (logits[i] > logits[best])
            best = i;
    }
    return best;
}

/* ---- changes to the logits ---- */

static void mask_undefined(const eng_sampler *sampler, float *logits)
{
    for (uint32_t id = 0; sampler->undefined && id < sampler->vocab_size; id++) {
        if (sampler->undefined[id / 32] >> (id % 32) & 1)
            logits[id] = -INFINITY;
    }
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

static void sampler_mask(const eng_sampler *sampler, float *logits, const mdl_sampling *params,
                         uint32_t generated, const uint32_t *allowed)
{
    if (allowed)
        sampler_allow(sampler, logits, allowed);
    mask_undefined(sampler, logits);
    if (params->min_tokens < 0 || generated >= (uint32_t)params->min_tokens ||
        (allowed && allows_ends_only(sampler, params, allowed)))
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
    float max = logits[eng_arg_max(logits, vocab)];
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

/* ---- filters: bits of sampler->kept ---- */

static inline bool before(const float *p, uint32_t a, uint32_t b)
{
    return p[a] > p[b] || (p[a] == p[b] && a < b);
}

static void heap_sift(uint32_t *heap, uint32_t count, uint32_t at, const float *p)
{
    uint32_t id = heap[at];
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= count)
            break;
        if (child + 1 < count && before(p, heap[child + 1], heap[child]))
            child++;
        if (!before(p, heap[child], id))
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = id;
}

/* Keeps the top_k most probable, of those the smallest prefix whose sum reaches top_p. */
static void keep_top(eng_sampler *sampler, const mdl_sampling *params)
{
    const float *p = sampler->probability;
    uint32_t *heap = sampler->heap;
    uint32_t count = 0;
    for (uint32_t id = 0; id < sampler->vocab_size; id++) {
        if (p[id] > 0.0f)
            heap[count++] = id;
    }
    for (uint32_t i = count / 2; i-- > 0;)
        heap_sift(heap, count, i, p);
    memset(sampler->kept, 0, (sampler->vocab_size + 63) / 64 * sizeof(uint64_t));
    uint32_t limit = params->top_k > 0 ? (uint32_t)params->top_k : UINT32_MAX;
    double sum = 0;
    for (uint32_t taken = 0; taken < limit && count > 0; taken++) {
        uint32_t id = heap[0];
        sampler->kept[id / 64] |= 1ull << (id % 64);
        sum += (double)p[id];
        if (params->top_p < 1.0f && sum >= (double)params->top_p)
            break;
        heap[0] = heap[--count];
        if (count > 0)
            heap_sift(heap, count, 0, p);
    }
}

static void keep_allowed(eng_sampler *sampler, const uint32_t *allowed)
{
    memset(sampler->kept, 0xff, (sampler->vocab_size + 63) / 64 * sizeof(uint64_t));
    for (uint32_t word = 0; allowed && word < (sampler->vocab_size + 31) / 32; word++)
        sampler->kept[word / 2] &= ~((uint64_t)~allowed[word] << (word % 2 * 32));
}

static void keep_min_p(eng_sampler *sampler, float p_max, float min_p)
{
    float floor_p = min_p * p_max;
    for (uint32_t id = 0; id < sampler->vocab_size; id++) {
        if (sampler->probability[id] < floor_p)
            sampler->kept[id / 64] &= ~(1ull << (id % 64));
    }
}

/* ---- draw ---- */

/* Probabilities of logits / temperature: e = exp((l - max) / T) rounded to f32, their sum in double
 * by ascending id, the quotient rounded to f32. Returns the largest. */
static float softmax(eng_sampler *sampler, const float *logits, float max, float temperature)
{
    double sum = 0;
    for (uint32_t i = 0; i < sampler->vocab_size; i++) {
        float x = (logits[i] - max) / temperature;
        float e = x < -104.0f ? 0.0f : (float)exp((double)x); /* below it f32 holds no e^x */
        sampler->probability[i] = e;
        sum += (double)e;
    }
    float p_max = 0;
    for (uint32_t i = 0; i < sampler->vocab_size; i++) {
        float p = (float)((double)sampler->probability[i] / sum);
        sampler->probability[i] = p;
        p_max = p > p_max ? p : p_max;
    }
    return p_max;
}

/* Walks the kept ids upwards until the running sum passes u times their total. */
static uint32_t pick(const eng_sampler *sampler, double u)
{
    double total = 0;
    for (uint32_t id = 0; id < sampler->vocab_size; id++) {
        if (sampler->kept[id / 64] >> (id % 64) & 1)
            total += (double)sampler->probability[id];
    }
    double sum = 0;
    uint32_t last = UINT32_MAX;
    for (uint32_t id = 0; id < sampler->vocab_size; id++) {
        if (!(sampler->kept[id / 64] >> (id % 64) & 1) || sampler->probability[id] <= 0.0f)
            continue;
        sum += (double)sampler->probability[id];
        last = id;
        if (sum > u * total)
            break;
    }
    sl_assert(last != UINT32_MAX);
    return last;
}

static uint32_t draw(eng_sampler *sampler, const float *logits, float max,
                     const mdl_sampling *params, uint32_t position, const uint32_t *allowed)
{
    float p_max = softmax(sampler, logits, max, params->temperature);
    if (params->top_k > 0 || params->top_p < 1.0f)
        keep_top(sampler, params);
    else
        keep_allowed(sampler, allowed);
    bool cut = allowed || params->top_k > 0 || params->top_p < 1.0f || params->min_p > 0.0f;
    sampler->mask = cut ? MDL_MASK_BITMAP : MDL_MASK_UNCUT;
    if (params->min_p > 0.0f)
        keep_min_p(sampler, p_max, params->min_p);
    return pick(sampler, sl_keyed_uniform(params->seed, position, SAMPLER_STREAM));
}

void eng_sampler_draw(eng_sampler *sampler, float *logits, const mdl_sampling *params,
                      const uint32_t *context, uint32_t context_count, uint32_t prompt_count,
                      uint32_t position, const uint32_t *allowed, eng_sampled *out_sampled)
{
    sl_assert(prompt_count <= context_count);
    sl_assert(params->temperature >= 0.0f);
    sampler_penalise(sampler, logits, params, context, context_count, prompt_count);
    sampler_bias(sampler, logits, params);
    sampler_mask(sampler, logits, params, context_count - prompt_count, allowed);
    uint32_t best = eng_arg_max(logits, sampler->vocab_size);
    float max = logits[best];
    sl_assert(isfinite(max));

    eng_sampled sampled = {.id = best};
    sampler->mask = MDL_MASK_LIST;
    if (params->temperature > 0.0f)
        sampled.id = draw(sampler, logits, max, params, position, allowed);
    sampler->last_id = sampled.id;
    if (params->logprob_count >= 0) {
        double norm = log_sum_exp(logits, sampler->vocab_size, max);
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
    if (vocab % 64) /* ids that are none */
        sampler->kept[vocab / 64] &= (1ull << (vocab % 64)) - 1;
    for (uint32_t id = 0; id < vocab; id++) /* barred before the filters, or next to impossible */
        if (sampler->probability[id] <= 0.0f)
            sampler->kept[id / 64] &= ~(1ull << (id % 64));
    return mdl_mask_pack(sampler->kept, vocab, out);
}
