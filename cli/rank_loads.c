/* See rank_loads.h. Pure. */
#include "cli/rank_loads.h"

#include <string.h>

static uint64_t rows_before(const ctl_ranks_seen *seen, const ctl_rank *rank)
{
    for (uint32_t i = 0; i < seen->count; i++)
        if (seen->at[i].incarnation == rank->incarnation && seen->at[i].rows <= rank->rows)
            return seen->at[i].rows;
    return 0; /* it has started since, or is new to us */
}

static double load_of(const ctl_rank *ranks, size_t count, size_t index)
{
    const ctl_rank *own = &ranks[index];
    uint32_t alike = 0;
    double sum = 0;
    if (!own->instance[0])
        return -1;
    for (size_t i = 0; i < count; i++) {
        if (strcmp(ranks[i].instance, own->instance) != 0)
            continue;
        alike++;
        sum += (double)ranks[i].done;
    }
    return sum > 0 ? (double)own->done * alike / sum : -1;
}

void ctl_rank_loads(ctl_rank *ranks, size_t count, ctl_ranks_seen *seen)
{
    for (size_t i = 0; i < count; i++)
        ranks[i].done = ranks[i].rows - rows_before(seen, &ranks[i]);
    for (size_t i = 0; i < count; i++)
        ranks[i].load = load_of(ranks, count, i);
    seen->count = 0;
    for (size_t i = 0; i < count && seen->count < CTL_RANKS_SEEN_MAX; i++) {
        if (!ranks[i].instance[0])
            continue;
        seen->at[seen->count].incarnation = ranks[i].incarnation;
        seen->at[seen->count++].rows = ranks[i].rows;
    }
}
