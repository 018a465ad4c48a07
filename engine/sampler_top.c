/* top_k and top_p: marks the shortest prefix of the tokens by probability, sorting few of them.
 *
 * Most draws end among the tokens of at least 2^-13, which are taken in order from a heap. Else the
 * end is found by bisection of the probability. Sums of probabilities of at least 2^-29 are exact
 * in double (multiples of 2^-52 below 2), so they do not depend on the order that defines them.
 * Below, the order shows, and tokens are taken one by one. */
#include "engine/sampler.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "kernels/draw.h"
#include "kernels/numbers.h"

#define LIKELY_LEAST   0x1p-13f
#define LIKELY_MAX     1024u /* of them, sorted without bisection */
#define EXACT_LEAST    0x1p-29f
#define BISECTED_COUNT 256u /* candidates that are sorted after bisection */

/* What has been kept, and what ends it. */
typedef struct prefix {
    double sum, top_p; /* top_p INFINITY: no limit */
    uint32_t count, top_k;
} prefix;

static bool ends(const prefix *p)
{
    return p->count > 0 && (p->count >= p->top_k || p->sum >= p->top_p);
}

static float probability_of(float term, double sum)
{
    return (float)((double)term / sum);
}

/* The least term whose probability is at least `least`: both grow together. */
static float least_term(float least, double sum)
{
    float term = (float)((double)least * sum);
    while (probability_of(term, sum) >= least)
        term = nextafterf(term, 0);
    while (probability_of(term, sum) < least)
        term = nextafterf(term, INFINITY);
    return term;
}

/* ---- in order ---- */

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

static void keep(eng_sampler *sampler, uint32_t id, prefix *p)
{
    sampler->kept[id / 64] |= 1ull << (id % 64);
    p->sum += (double)sampler->probability[id];
    p->count++;
}

/* Keeps candidates (sampler->ids) from the most probable on, up to the end of the prefix. */
static void keep_ordered(eng_sampler *sampler, uint32_t count, prefix *p)
{
    uint32_t *heap = sampler->ids;
    for (uint32_t i = count / 2; i-- > 0;)
        heap_sift(heap, count, i, sampler->probability);
    while (count > 0 && !ends(p)) {
        keep(sampler, heap[0], p);
        heap[0] = heap[--count];
        if (count > 0)
            heap_sift(heap, count, 0, sampler->probability);
    }
}

static bool keep_likely(eng_sampler *sampler, double sum, prefix *p)
{
    float low = least_term(LIKELY_LEAST, sum);
    uint32_t count = krn_in_range(sampler->terms, sampler->vocab_size, low, INFINITY, sampler->ids);
    if (count > LIKELY_MAX)
        return false;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t id = sampler->ids[i];
        sampler->probability[id] = probability_of(sampler->terms[id], sum);
    }
    keep_ordered(sampler, count, p);
    return ends(p);
}

/* ---- bisection ---- */

/* The prefix of all that are at least `low`, which is EXACT_LEAST or more. */
static prefix reaching(const eng_sampler *sampler, float low, const prefix *limits)
{
    prefix p = *limits;
    p.sum = krn_sum_reaching(sampler->probability, sampler->vocab_size, low, &p.count);
    return p;
}

/* The prefix ends among the probabilities of at least EXACT_LEAST. Between `low`, which ends it,
 * and `high`, which does not, until few are left, or equal ones only. */
static void keep_bisected(eng_sampler *sampler, double sum, prefix *p)
{
    uint32_t low = krn_f32_bits(EXACT_LEAST), high = krn_f32_bits(probability_of(1, sum)) + 1,
             count;
    prefix at_low = reaching(sampler, EXACT_LEAST, p), at_high = *p;
    while (high - low > 1 && at_low.count - at_high.count > BISECTED_COUNT) {
        uint32_t middle = low + (high - low) / 2; /* bits of positive floats are in their order */
        prefix here = reaching(sampler, krn_bits_f32(middle), p);
        if (ends(&here)) {
            low = middle;
            at_low = here;
        } else {
            high = middle;
            at_high = here;
        }
    }
    *p = at_high;
    krn_reaching(sampler->probability, sampler->vocab_size, krn_bits_f32(high), sampler->kept);
    count = krn_in_range(sampler->probability, sampler->vocab_size, krn_bits_f32(low),
                         krn_bits_f32(high), sampler->ids);
    if (high - low > 1) {
        keep_ordered(sampler, count, p);
    } else {
        for (uint32_t i = 0; i < count && !ends(p); i++)
            keep(sampler, sampler->ids[i], p);
    }
}

static void keep_many(eng_sampler *sampler, double sum, prefix *p)
{
    krn_softmax_divide(sampler->terms, sampler->vocab_size, sum, sampler->probability);
    prefix exact = reaching(sampler, EXACT_LEAST, p);
    if (ends(&exact)) {
        keep_bisected(sampler, sum, p);
        return;
    }
    *p = exact;
    krn_reaching(sampler->probability, sampler->vocab_size, EXACT_LEAST, sampler->kept);
    keep_ordered(sampler,
                 krn_in_range(sampler->probability, sampler->vocab_size, FLT_TRUE_MIN, EXACT_LEAST,
                              sampler->ids),
                 p);
}

void eng_sampler_keep_top(eng_sampler *sampler, double sum, const mdl_sampling *params)
{
    const prefix none = {
        .top_p = params->top_p < 1.0f ? (double)params->top_p : INFINITY,
        .top_k = params->top_k > 0 ? (uint32_t)params->top_k : UINT32_MAX,
    };
    prefix p = none;
    memset(sampler->kept, 0, (sampler->vocab_size + 63) / 64 * sizeof(uint64_t));
    if (keep_likely(sampler, sum, &p))
        return;
    p = none;
    keep_many(sampler, sum, &p);
}
