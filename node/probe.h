/* What a node would refuse at its start, found before it loads weights. */
#ifndef NODE_PROBE_H
#define NODE_PROBE_H

#include "base/loop.h"
#include "cluster/etcd.h"
#include "engine/engine.h"
#include "node/options.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The engine's sizes; borrows nothing. Of one that is to run, the caller adds transit and tier. */
void nod_engine_options(const nod_options *options, eng_options *out_options);
/* Files: certificates, the model's configuration, tokenizer and headers, the second tier's folder;
 * sizes that do not fit the model. target: a nod_options. Any thread. */
SL_MUST_USE sl_status nod_probe(const void *target, sl_err *err);
/* Whether somebody else listens where this node is to. Any thread. */
SL_MUST_USE sl_status nod_probe_addresses(const nod_options *options, sl_err *err);
/* Whether etcd answers, and no live node has the name: runs the loop, for some seconds if another
 * process has had it. SL_UNAVAILABLE, SL_DEADLINE, SL_EXISTS. */
SL_MUST_USE sl_status nod_probe_cluster(const nod_options *options, sl_loop *loop, clu_etcd *etcd,
                                        sl_err *err);

#ifdef __cplusplus
}
#endif
#endif
