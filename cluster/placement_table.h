/* The placement table of an instance, `placement/<instance>` in etcd: which rank holds which
 * experts in each layer. Changed by transactions that compare the revision of the key; each raises
 * the version. Thread: any. */
#ifndef CLUSTER_PLACEMENT_TABLE_H
#define CLUSTER_PLACEMENT_TABLE_H

#include "base/bytes.h"
#include "cluster/member.h"
#include "cluster/placement.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CLU_PLACEMENT_JSON_MAX (1u << 20) /* etcd takes 1.5 MB */

typedef struct clu_placement {
    uint64_t version; /* from 1 */
    clu_place_shape shape;
    uint16_t *slots; /* [layers][ranks][slots]; owned */
} clu_placement;

/* All loads alike. */
SL_MUST_USE sl_status clu_placement_create(const clu_place_shape *shape, uint64_t version,
                                           clu_placement **out_table, sl_err *err);
clu_placement *clu_placement_copy(const clu_placement *table);
void clu_placement_destroy(clu_placement *table); /* NULL is fine */
uint64_t clu_placement_entries(const clu_place_shape *shape);
/* Same layers, experts, ranks, slots. */
bool clu_placement_fits(const clu_placement *table, const clu_place_shape *shape);

void clu_placement_write_json(sl_buf *buf, const clu_placement *table);
/* Untrusted bytes. SL_INVALID: what is wrong, or clu_place_check's. */
SL_MUST_USE sl_status clu_placement_parse_json(const void *data, size_t size,
                                               clu_placement **out_table, sl_err *err);

/* The key of an instance's table. SL_INVALID: a name that none can have. */
SL_MUST_USE sl_status clu_placement_key(const char *cluster, const char *instance,
                                        char out_key[CLU_KEY_MAX], sl_err *err);

#ifdef __cplusplus
}
#endif
#endif
