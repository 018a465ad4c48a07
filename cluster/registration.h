/* One node's record in etcd: written under a lease, renewed, updated in place, taken back on stop.
 *
 * Thread: the loop of etcd's runtime; callbacks never come inside a call. */
#ifndef CLUSTER_REGISTRATION_H
#define CLUSTER_REGISTRATION_H

#include "cluster/etcd.h"
#include "cluster/member.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CLU_LEASE_NS (10 * SL_S_NS)

typedef struct clu_registration clu_registration;

typedef struct clu_registration_options {
    const char *cluster;
    const clu_member_info *info; /* copied */
    uint64_t lease_ns;           /* 0 = CLU_LEASE_NS; renewed at a third */
} clu_registration_options;

/* What a member's options say: name (NULL: not given), cluster, endpoints, lease. The text names
 * the option: --name, --cluster, --etcd, --lease. */
typedef struct clu_settings {
    const char *name, *cluster;
    const char *etcd;
    const char *etcd_ca; /* NULL: no https */
    uint64_t lease_ns;
} clu_settings;
SL_MUST_USE sl_status clu_settings_check(const clu_settings *settings, sl_err *err);

typedef struct clu_registration_events {
    /* The record stands: the first time, and again after each loss (of the lease, or of the record
     * alone, which is looked at once in a lease time). */
    void (*on_registered)(void *context);
    /* The lease was lost or etcd is away; re-registration goes on by itself. May be NULL. */
    void (*on_lost)(void *context);
    /* It ends here (only destroy is left). SL_EXISTS: another live node has this name, the text
     * names its address. SL_UNAVAILABLE: etcd did not answer within its timeout at the start. */
    void (*on_failed)(void *context, const sl_err *err);
} clu_registration_events;

/* An old record of the same name with the same control address is taken over at once (we hold the
 * port, so its process is dead). Another one is given its lease's time to expire; renewed meanwhile
 * = alive = SL_EXISTS. */
SL_MUST_USE sl_status clu_registration_create(clu_etcd *etcd,
                                              const clu_registration_options *options,
                                              const clu_registration_events *events, void *context,
                                              clu_registration **out_registration, sl_err *err);
/* Replaces the record (state, capacity ..; not name or incarnation); only the last of several quick
 * updates may be seen by others. */
SL_MUST_USE sl_status clu_registration_update(clu_registration *registration,
                                              const clu_member_info *info, sl_err *err);
bool clu_registration_registered(const clu_registration *registration);
/* Clean leave: tombstone, then revoke. on_stopped comes when done, or when etcd did not answer
 * within its timeout (then the lease expires). on_stopped may be NULL. */
void clu_registration_stop(clu_registration *registration, void (*on_stopped)(void *context),
                           void *context);
/* Without stop: the record stays until the lease expires (as after a kill). NULL is fine. */
void clu_registration_destroy(clu_registration *registration);

#ifdef __cplusplus
}
#endif
#endif
