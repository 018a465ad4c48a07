/* The price of drafts: see draft_cost.h. Owns nothing; engine thread. */
#include "decode/draft_cost.h"

#include "base/assert.h"

#define RECENT 0.25 /* weight of a new time in its mean */

static uint32_t bucket_of(uint32_t rows)
{
    if (rows < 16)
        return rows;
    uint32_t log = 31 - (uint32_t)__builtin_clz(rows);
    uint32_t bucket = 16 + 4 * (log - 4) + (rows >> (log - 2) & 3);
    return bucket < DEC_COST_BUCKETS ? bucket : DEC_COST_BUCKETS - 1;
}

static bool is_known(const dec_draft_cost *cost, uint32_t bucket)
{
    return cost->seen[bucket] > 0 && cost->steps - cost->seen[bucket] < DEC_COST_OLD;
}

static double mean_with(double mean, double value, bool first)
{
    return first ? value : mean + RECENT * (value - mean);
}

void dec_draft_cost_note(dec_draft_cost *cost, uint32_t rows, uint64_t ns)
{
    sl_assert(rows > 0);
    uint32_t bucket = bucket_of(rows);
    bool first = !is_known(cost, bucket);
    cost->rows[bucket] = mean_with(cost->rows[bucket], rows, first);
    cost->ns[bucket] = mean_with(cost->ns[bucket], (double)ns, first);
    cost->seen[bucket] = ++cost->steps;
}

void dec_draft_cost_note_drafts(dec_draft_cost *cost, uint32_t drafts, uint64_t ns)
{
    sl_assert(drafts > 0);
    cost->draft_ns = mean_with(cost->draft_ns, (double)ns / drafts, cost->draft_ns == 0);
}

/* The bucket of about twice the rows, if known, else one between 1.25 and 4 times; 0: none. */
static uint32_t larger_bucket(const dec_draft_cost *cost, uint32_t rows)
{
    if (is_known(cost, bucket_of(2 * rows)))
        return bucket_of(2 * rows);
    for (uint32_t bucket = bucket_of(rows + (rows + 3) / 4); bucket <= bucket_of(4 * rows);
         bucket++)
        if (is_known(cost, bucket) && cost->rows[bucket] > rows)
            return bucket;
    return 0;
}

double dec_draft_price(const dec_draft_cost *cost, uint32_t sequences)
{
    if (sequences == 0)
        return 0;
    uint32_t small = bucket_of(sequences), large = larger_bucket(cost, sequences);
    if (!is_known(cost, small) || large == 0 || cost->rows[large] <= cost->rows[small])
        return 0;
    double more = cost->ns[large] - cost->ns[small], rows = cost->rows[large] - cost->rows[small];
    double row_ns = more > 0 ? more / rows : 0;
    double token_ns = cost->ns[small] / cost->rows[small];
    return token_ns > 0 ? (row_ns + cost->draft_ns) / token_ns : 0;
}

bool dec_draft_cost_looks(const dec_draft_cost *cost, uint32_t sequences)
{
    return cost->steps % DEC_COST_LOOK == DEC_COST_LOOK - 1 &&
           !is_known(cost, bucket_of(sequences));
}
