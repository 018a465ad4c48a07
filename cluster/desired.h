/* What operators and the controller want of a node, whatever process it is: the key
 * /sluice/v1/<cluster>/desired/<node>. Pure data. Thread: any. */
#ifndef CLUSTER_DESIRED_H
#define CLUSTER_DESIRED_H

#include "base/bytes.h"
#include "cluster/member.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CLU_DESIRED_JSON_MAX 4096u
#define CLU_REASON_MAX       256u

typedef struct clu_desired {
    bool cordoned;               /* routers give it nothing new */
    char reason[CLU_REASON_MAX]; /* why */
} clu_desired;

/* How many nodes of each role are wanted: the key /sluice/v1/<cluster>/scale. */
#define CLU_SCALE_MAX 1024u
typedef struct clu_scale {
    uint32_t prefill, decode;
} clu_scale;

void clu_scale_write_json(sl_buf *buf, const clu_scale *scale);
SL_MUST_USE sl_status clu_scale_parse_json(const void *data, size_t size, clu_scale *out_scale,
                                           sl_err *err);
/* SL_INVALID: none at all, or too many. */
SL_MUST_USE sl_status clu_scale_check(const clu_scale *scale, sl_err *err);

void clu_desired_write_json(sl_buf *buf, const clu_desired *desired);
/* Untrusted bytes. SL_INVALID names the field. */
SL_MUST_USE sl_status clu_desired_parse_json(const void *data, size_t size,
                                             clu_desired *out_desired, sl_err *err);

#ifdef __cplusplus
}
#endif
#endif
