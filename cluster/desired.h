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

void clu_desired_write_json(sl_buf *buf, const clu_desired *desired);
/* Untrusted bytes. SL_INVALID names the field. */
SL_MUST_USE sl_status clu_desired_parse_json(const void *data, size_t size,
                                             clu_desired *out_desired, sl_err *err);

#ifdef __cplusplus
}
#endif
#endif
