/* The order of service: see rank.h. Pure. */
#include "decode/rank.h"

bool dec_rank_before(dec_rank a, dec_rank b)
{
    return a.priority != b.priority ? a.priority < b.priority : a.seniority < b.seniority;
}

uint32_t dec_claim_first_lacking(const dec_claim *claims, uint32_t count)
{
    uint32_t first = DEC_NOBODY;
    for (uint32_t i = 0; i < count; i++)
        if (claims[i].lacks &&
            (first == DEC_NOBODY || dec_rank_before(claims[i].rank, claims[first].rank)))
            first = i;
    return first;
}

uint32_t dec_claim_victim(const dec_claim *claims, uint32_t count)
{
    uint32_t last = 0;
    for (uint32_t i = 1; i < count; i++)
        if (dec_rank_before(claims[last].rank, claims[i].rank))
            last = i;
    return count < 2 ? DEC_NOBODY : last;
}
