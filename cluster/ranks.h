/* One rank of an instance in etcd: its record `instances/<instance>/<rank>`, the instance's
 * formation `instances/<instance>/formation` and its placement table (cluster/placement_table.h).
 *
 * Watches all three and does what clu_form_decide says (cluster/formation.h): proposes formations
 * itself, has its owner try them. An instance leaves as a whole. Thread: the loop of etcd's
 * runtime; callbacks never come inside a call. */
#ifndef CLUSTER_RANKS_H
#define CLUSTER_RANKS_H

#include "cluster/etcd.h"
#include "cluster/formation.h"
#include "cluster/placement_table.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct clu_ranks clu_ranks;

typedef struct clu_ranks_options {
    const char *cluster, *instance; /* copied, like node */
    uint32_t rank, size;
    const char *node;
    clu_place_shape
        shape;          /* of the table: ranks is size. Rank 0 writes one that fits if none does */
    uint64_t lease_ns;  /* 0 = 10 s */
    uint64_t reform_ns; /* how long a failed formation may wait for another */
} clu_ranks_options;

typedef struct clu_ranks_events {
    /* Try this formation, with this table; an attempt under way is of no use any more. Answered by
     * clu_ranks_tried. Borrowed for the call. */
    void (*on_join)(void *context, const clu_formation *formation, const clu_placement *table);
    /* A table in etcd that is not followed, and why. */
    void (*on_refused)(void *context, const sl_err *err);
    /* The others go on without this rank (SL_CONFLICT), no formation can follow the one that failed
     * (SL_UNAVAILABLE), another live node has this rank (SL_EXISTS), or a rank counts other ranks
     * (SL_INVALID). Only destroy is left. */
    void (*on_failed)(void *context, const sl_err *err);
} clu_ranks_events;

/* Looks at the table only, until clu_ranks_enter. */
SL_MUST_USE sl_status clu_ranks_create(clu_etcd *etcd, const clu_ranks_options *options,
                                       const clu_ranks_events *events, void *context,
                                       clu_ranks **out_ranks, sl_err *err);
/* The newest table that fits; NULL: none yet. Until the loop runs again. */
const clu_placement *clu_ranks_table(const clu_ranks *ranks);
/* Writes the record from now on: this rank may be in formations. contact: where it is met. */
void clu_ranks_enter(clu_ranks *ranks, const char *contact);
/* An attempt ended; contact: that of the next one. */
void clu_ranks_tried(clu_ranks *ranks, uint64_t number, bool ready, const char *contact);
/* The rank steps with this formation. */
void clu_ranks_used(clu_ranks *ranks, uint64_t number, uint64_t mask, uint64_t placement);
/* The formation in use has failed; lost: who is missed, as bits. */
void clu_ranks_lost(clu_ranks *ranks, uint64_t lost);
/* Ranks without a record yet, for messages: "1, 3". */
void clu_ranks_missing(const clu_ranks *ranks, char *out_text, size_t size);
/* Says that this rank leaves; on_left once all others do too, or are gone. */
void clu_ranks_leave(clu_ranks *ranks, void (*on_left)(void *context), void *context);
/* It does not leave after all. */
void clu_ranks_stay(clu_ranks *ranks);
/* No callbacks any more; the record goes with its lease. NULL is fine. */
void clu_ranks_destroy(clu_ranks *ranks);

#ifdef __cplusplus
}
#endif
#endif
