/* Changes of a cluster's desired state in etcd: each is one transaction with its record under
 * audit/, so that nothing is done unrecorded and nothing recorded undone.
 *
 * The audit is a ring of CLU_AUDIT_MAX records; audit/next counts them all. An action of the
 * controller is fenced: it takes place only while the leader key is the one that the controller was
 * elected with, so that an old leader changes nothing, however late its transaction arrives.
 * Thread: the loop of etcd's runtime; callbacks never come inside a call. */
#ifndef CLUSTER_ACTION_H
#define CLUSTER_ACTION_H

#include "cluster/etcd.h"
#include "cluster/member.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CLU_AUDIT_MAX          1000u
#define CLU_AUDIT_JSON_MAX     16384u
#define CLU_AUDIT_TEXT_MAX     512u /* of one field, longer ones are cut */
#define CLU_ACTION_CHANGES_MAX 3u

typedef struct clu_change {
    const char *key;
    const char *value; /* NULL: the key goes */
    bool expects;      /* only if the key was last written at `revision` */
    int64_t revision;  /* 0: it is absent */
} clu_change;

typedef struct clu_action { /* texts are copied */
    const char *actor;      /* "operator alice", "controller router-0" */
    const char *verb;       /* "cordon" */
    const char *target;     /* "decode-0" */
    const char *detail;
    clu_change changes[CLU_ACTION_CHANGES_MAX];
    size_t change_count; /* 0: only the record */
    int64_t fence;       /* create_revision of the leader key; 0: not fenced */
} clu_action;

typedef struct clu_action_run clu_action_run;

/* SL_OK: it took place at that revision. SL_CONFLICT: a key was not as expected, or the leader is
 * another one; the text says which. SL_UNAVAILABLE, SL_DEADLINE: open. */
typedef void (*clu_action_fn)(void *context, int64_t revision, const sl_err *err);

/* The run must be dropped, or have ended, before the client goes. */
SL_MUST_USE sl_status clu_action_start(clu_etcd *etcd, const char *cluster,
                                       const clu_action *action, clu_action_fn fn, void *context,
                                       clu_action_run **out_run, sl_err *err);
/* No callback any more. NULL is fine. */
void clu_action_drop(clu_action_run *run);

typedef struct clu_audit_record {
    uint64_t sequence, time_us;
    int64_t fence;
    char actor[CLU_AUDIT_TEXT_MAX], verb[64], target[CLU_AUDIT_TEXT_MAX],
        detail[CLU_AUDIT_TEXT_MAX];
} clu_audit_record;

void clu_audit_write_json(sl_buf *buf, const clu_audit_record *record);
/* Untrusted bytes. SL_INVALID names the field. */
SL_MUST_USE sl_status clu_audit_parse_json(const void *data, size_t size,
                                           clu_audit_record *out_record, sl_err *err);

#ifdef __cplusplus
}
#endif
#endif
