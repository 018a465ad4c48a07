/* What the files of cluster/ share. Not for other folders. */
#ifndef CLUSTER_INTERNAL_H
#define CLUSTER_INTERNAL_H

#include "cluster/etcd.h"

#define CLU_PREFIX_MAX 512 /* bytes of a watched prefix */

/* What became of an attempt at the current endpoint: counts for clu_etcd_connected, and moves on to
 * the next endpoint when `code` says that this one did not answer. */
void clu_etcd_note(clu_etcd *etcd, const sl_err *err);
rpc_channel *clu_etcd_channel(clu_etcd *etcd);
/* For a stream that is opened now: false, the token is not there yet, try again soon. */
bool clu_etcd_stream_options(clu_etcd *etcd, rpc_call_options *out_options,
                             rpc_metadata *out_metadata);
/* etcd refused a stream for who we are: the token may be too old. */
void clu_etcd_forget_token(clu_etcd *etcd);
/* The last failure's text; "" = none yet. */
const char *clu_etcd_last_error(const clu_etcd *etcd);

/* Exponential back-off with jitter of a half. */
typedef struct clu_backoff {
    uint64_t next_ns;
} clu_backoff;

uint64_t clu_backoff_next(clu_backoff *backoff);
void clu_backoff_reset(clu_backoff *backoff);
/* A random time of [0, span_ns). */
uint64_t clu_jitter(uint64_t span_ns);

#endif
