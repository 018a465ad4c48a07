/* How the ranks of one instance find each other, through etcd.
 *
 * Each rank has a record /sluice/v1/<cluster>/instances/<instance>/<rank> under a lease: who it is,
 * its contact (comm/comm.h), whether it leaves. A rank looks at all of them while the instance
 * comes together, and again when it leaves: an instance leaves as a whole. In between the record is
 * only kept alive. Thread: the loop of etcd's runtime; callbacks never come inside a call. */
#ifndef CLUSTER_RANKS_H
#define CLUSTER_RANKS_H

#include "cluster/etcd.h"
#include "cluster/member.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CLU_RANKS_MAX     64u
#define CLU_CONTACT_MAX   304u
#define CLU_RANK_JSON_MAX 1024u

typedef struct clu_rank_record {
    char node[CLU_NAME_MAX];
    char contact[CLU_CONTACT_MAX];
    uint32_t size; /* of the instance */
    bool leaving;
} clu_rank_record;

void clu_rank_write_json(sl_buf *buf, const clu_rank_record *record);
/* Untrusted bytes. SL_INVALID names the field. */
SL_MUST_USE sl_status clu_rank_parse_json(const void *data, size_t size,
                                          clu_rank_record *out_record, sl_err *err);

typedef struct clu_ranks clu_ranks;

typedef struct clu_ranks_options {
    const char *cluster, *instance; /* copied, like node and contact */
    uint32_t rank, size;
    const char *node, *contact;
    uint64_t lease_ns; /* 0 = 10 s */
} clu_ranks_options;

typedef struct clu_ranks_events {
    /* All are there, as far as etcd knows: contacts [size], borrowed for the call. Again and again
     * until clu_ranks_met: a record may be of a process that has ended. */
    void (*on_complete)(void *context, const char *const *contacts);
    /* SL_EXISTS: another live node has this rank; SL_INVALID: a rank counts other ranks. Only
     * destroy is left. */
    void (*on_failed)(void *context, const sl_err *err);
} clu_ranks_events;

SL_MUST_USE sl_status clu_ranks_create(clu_etcd *etcd, const clu_ranks_options *options,
                                       const clu_ranks_events *events, void *context,
                                       clu_ranks **out_ranks, sl_err *err);
/* They are connected: looks no more, keeps the record. */
void clu_ranks_met(clu_ranks *ranks);
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
