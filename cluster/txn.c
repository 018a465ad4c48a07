/* See txn.h. */
#include "cluster/txn.h"

#include "base/assert.h"
#include "rpc/methods.h"

void clu_txn_init(clu_txn *txn)
{
    txn->compare_count = txn->success_count = 0;
}

static Etcdserverpb__Compare *add_compare(clu_txn *txn, const char *key)
{
    sl_assert(txn->compare_count < CLU_TXN_OPS_MAX);
    size_t i = txn->compare_count++;
    etcdserverpb__compare__init(&txn->compares[i]);
    etcdserverpb__range_request__init(&txn->reads[i]);
    etcdserverpb__request_op__init(&txn->failure[i]);
    txn->compares[i].key = txn->reads[i].key = clu_bytes(key);
    txn->compares[i].result = ETCDSERVERPB__COMPARE__COMPARE_RESULT__EQUAL;
    txn->failure[i].request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_RANGE;
    txn->failure[i].request_range = &txn->reads[i];
    txn->compare_pointers[i] = &txn->compares[i];
    txn->failure_pointers[i] = &txn->failure[i];
    return &txn->compares[i];
}

void clu_txn_compare_mod(clu_txn *txn, const char *key, int64_t revision)
{
    Etcdserverpb__Compare *compare = add_compare(txn, key);
    compare->target = ETCDSERVERPB__COMPARE__COMPARE_TARGET__MOD;
    compare->target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_MOD_REVISION;
    compare->mod_revision = revision;
}

void clu_txn_compare_create(clu_txn *txn, const char *key, int64_t revision)
{
    Etcdserverpb__Compare *compare = add_compare(txn, key);
    compare->target = ETCDSERVERPB__COMPARE__COMPARE_TARGET__CREATE;
    compare->target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_CREATE_REVISION;
    compare->create_revision = revision;
}

static size_t add_success(clu_txn *txn)
{
    sl_assert(txn->success_count < CLU_TXN_OPS_MAX);
    size_t i = txn->success_count++;
    etcdserverpb__request_op__init(&txn->success[i]);
    txn->success_pointers[i] = &txn->success[i];
    return i;
}

void clu_txn_put(clu_txn *txn, const char *key, const char *value, int64_t lease)
{
    size_t i = add_success(txn);
    etcdserverpb__put_request__init(&txn->puts[i]);
    txn->puts[i].key = clu_bytes(key);
    txn->puts[i].value = clu_bytes(value);
    txn->puts[i].lease = lease;
    txn->success[i].request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT;
    txn->success[i].request_put = &txn->puts[i];
}

void clu_txn_delete(clu_txn *txn, const char *key)
{
    size_t i = add_success(txn);
    etcdserverpb__delete_range_request__init(&txn->deletes[i]);
    txn->deletes[i].key = clu_bytes(key);
    txn->success[i].request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_DELETE_RANGE;
    txn->success[i].request_delete_range = &txn->deletes[i];
}

sl_status clu_txn_send(clu_etcd *etcd, clu_txn *txn, const clu_request_options *options,
                       rpc_done_fn fn, void *context, clu_request **out_request, sl_err *err)
{
    Etcdserverpb__TxnRequest request = ETCDSERVERPB__TXN_REQUEST__INIT;
    request.n_compare = request.n_failure = txn->compare_count;
    request.compare = txn->compare_pointers;
    request.failure = txn->failure_pointers;
    request.n_success = txn->success_count;
    request.success = txn->success_pointers;
    return clu_etcd_request(etcd, &rpc_method_etcd_kv_txn, &request.base, options, fn, context,
                            out_request, err);
}

const Etcdserverpb__KeyValue *clu_txn_found(const Etcdserverpb__TxnResponse *reply, size_t index)
{
    if (index >= reply->n_responses || reply->responses[index]->response_case !=
                                           ETCDSERVERPB__RESPONSE_OP__RESPONSE_RESPONSE_RANGE)
        return NULL;
    const Etcdserverpb__RangeResponse *range = reply->responses[index]->response_range;
    return range && range->n_kvs == 1 ? range->kvs[0] : NULL;
}
