/* A transaction of etcd under construction: bounded, on the stack, texts borrowed.
 *
 * Compares come first, then what happens if all hold; otherwise the compared keys are read, so that
 * the reply tells what is there. Thread: owner. */
#ifndef CLUSTER_TXN_H
#define CLUSTER_TXN_H

#include "cluster/etcd.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CLU_TXN_OPS_MAX 8u

typedef struct clu_txn {
    Etcdserverpb__Compare compares[CLU_TXN_OPS_MAX], *compare_pointers[CLU_TXN_OPS_MAX];
    Etcdserverpb__RangeRequest reads[CLU_TXN_OPS_MAX];
    Etcdserverpb__PutRequest puts[CLU_TXN_OPS_MAX];
    Etcdserverpb__DeleteRangeRequest deletes[CLU_TXN_OPS_MAX];
    Etcdserverpb__RequestOp success[CLU_TXN_OPS_MAX], *success_pointers[CLU_TXN_OPS_MAX];
    Etcdserverpb__RequestOp failure[CLU_TXN_OPS_MAX], *failure_pointers[CLU_TXN_OPS_MAX];
    size_t compare_count, success_count;
} clu_txn;

void clu_txn_init(clu_txn *txn);
/* The key was written last (created) at that revision; 0: it is absent. */
void clu_txn_compare_mod(clu_txn *txn, const char *key, int64_t revision);
void clu_txn_compare_create(clu_txn *txn, const char *key, int64_t revision);
/* lease 0: none. */
void clu_txn_put(clu_txn *txn, const char *key, const char *value, int64_t lease);
void clu_txn_delete(clu_txn *txn, const char *key);

/* options NULL: sent once, within the client's time. Unless they call it idempotent, SL_UNAVAILABLE
 * and SL_DEADLINE leave open whether it took place. */
SL_MUST_USE sl_status clu_txn_send(clu_etcd *etcd, clu_txn *txn, const clu_request_options *options,
                                   rpc_done_fn fn, void *context, clu_request **out_request,
                                   sl_err *err);
/* Of a transaction that did not take place: the key that was compared as number `index`; NULL: it
 * is absent. */
const Etcdserverpb__KeyValue *clu_txn_found(const Etcdserverpb__TxnResponse *reply, size_t index);

#ifdef __cplusplus
}
#endif
#endif
