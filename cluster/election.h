/* Who leads: one of the processes that campaign, by the key /sluice/v1/<cluster>/leader under a
 * lease.
 *
 * Who is elected learns the key's create_revision: the fence of all it does (cluster/action.h). It
 * is deposed when its lease is lost (told by etcd, or by its own clock when etcd cannot be reached)
 * or the key is gone; what it sends later than that does nothing. Thread: the loop of etcd's
 * runtime; callbacks never come inside a call. */
#ifndef CLUSTER_ELECTION_H
#define CLUSTER_ELECTION_H

#include "cluster/etcd.h"
#include "cluster/member.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct clu_election clu_election;

typedef struct clu_election_options {
    const char *cluster, *name; /* copied */
    uint64_t lease_ns;
} clu_election_options;

typedef struct clu_election_events {
    void (*on_elected)(void *context, int64_t fence);
    void (*on_deposed)(void *context);
    /* Another one leads, or (name "") nobody does at the moment. May be NULL. */
    void (*on_leader)(void *context, const char *name);
} clu_election_events;

SL_MUST_USE sl_status clu_election_create(clu_etcd *etcd, const clu_election_options *options,
                                          const clu_election_events *events, void *context,
                                          clu_election **out_election, sl_err *err);
/* No callback any more; the key goes with its lease. NULL is fine. */
void clu_election_destroy(clu_election *election);
/* 0: not the leader. */
int64_t clu_election_fence(const clu_election *election);
/* As far as etcd told; "": nobody. */
const char *clu_election_leader(const clu_election *election);

#ifdef __cplusplus
}
#endif
#endif
