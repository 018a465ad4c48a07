/* All keys under a prefix, kept from a list and a watch: desired state, settings, the leader.
 *
 * List at R, watch from R + 1, list again after compaction. While etcd is away what was known
 * stays. Owns copies of nothing: each value is told and may be forgotten. Thread: the loop of
 * etcd's runtime; callbacks never come inside a call. */
#ifndef CLUSTER_TABLE_H
#define CLUSTER_TABLE_H

#include "cluster/etcd.h"
#include "cluster/member.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CLU_TABLE_KEYS_MAX 4096

typedef struct clu_table clu_table;

typedef struct clu_table_events {
    /* A list begins: what is not told until on_listed is gone. */
    void (*on_list)(void *context);
    /* name: what follows the prefix; value is NUL-terminated and borrowed. */
    void (*on_put)(void *context, const char *name, const char *value,
                   const Etcdserverpb__KeyValue *kv);
    void (*on_delete)(void *context, const char *name);
    void (*on_listed)(void *context);
    void (*on_seen)(void *context); /* clu_table_seen has grown; NULL: of no interest */
} clu_table_events;

SL_MUST_USE sl_status clu_table_create(clu_etcd *etcd, const char *prefix,
                                       const clu_table_events *events, void *context,
                                       clu_table **out_table, sl_err *err);
void clu_table_destroy(clu_table *table);
/* The first list is in. */
bool clu_table_ready(const clu_table *table);
/* etcd's revision up to which all has been told; 0: nothing yet. */
int64_t clu_table_seen(const clu_table *table);

#ifdef __cplusplus
}
#endif
#endif
