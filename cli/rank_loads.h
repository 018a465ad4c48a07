/* How evenly the ranks of instances are loaded by their experts. Pure. Thread: any. */
#ifndef CLI_RANK_LOADS_H
#define CLI_RANK_LOADS_H

#include "cluster/member.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ctl_rank {
    char instance[CLU_NAME_MAX]; /* "": it has no other ranks, or did not answer */
    uint64_t incarnation;
    uint64_t rows; /* that its experts have worked on, since it started */
    uint64_t done; /* of them, since the look before */
    double load; /* over the mean of its instance's ranks that answered; < 0: nothing to compare */
} ctl_rank;

#define CTL_RANKS_SEEN_MAX 1024u

/* What was looked at before; zeroed at first. Later ranks are judged by all that they have done. */
typedef struct ctl_ranks_seen {
    uint32_t count;
    struct {
        uint64_t incarnation, rows;
    } at[CTL_RANKS_SEEN_MAX];
} ctl_ranks_seen;

/* Fills in `done` and `load`, and remembers this look. */
void ctl_rank_loads(ctl_rank *ranks, size_t count, ctl_ranks_seen *seen);

#ifdef __cplusplus
}
#endif
#endif
