/* Whether a name in the cluster may be claimed, before there is anything to register: see
 * registration.h for the claim itself. */
#ifndef CLUSTER_CLAIM_H
#define CLUSTER_CLAIM_H

#include "base/loop.h"
#include "cluster/etcd.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct clu_claim {
    const char *cluster, *name;
    const char *control; /* whoever has the name at this address is dead: the port is ours */
} clu_claim;

/* Runs the loop until it is clear: at once where no record of the name is, else until its lease has
 * been renewed, or outlived itself (SL_EXISTS, the text names its address), or was not renewed when
 * it had to be. SL_UNAVAILABLE, SL_DEADLINE: etcd does not answer. Thread: the loop's. */
SL_MUST_USE sl_status clu_claim_check(clu_etcd *etcd, sl_loop *loop, const clu_claim *claim,
                                      sl_err *err);

#ifdef __cplusplus
}
#endif
#endif
