/* The steps of the protocol at which a process can be held (control.h), each at a seam between two
 * shipped parts (-Wl,--wrap), so that the product carries none of it. */
#include "decode/sequence.h"
#include "kvtransfer/core.h"
#include "node/internal.h"
#include "prefill/job.h"
#include "proto/etcd/etcd.pb-c.h"
#include "rpc/client.h"
#include "tests/cluster/chaos/control.h"

dec_outcome __real_dec_sequence_handle(dec_sequence *sequence, const dec_event *event,
                                       sl_time_ns now);
dec_outcome __wrap_dec_sequence_handle(dec_sequence *sequence, const dec_event *event,
                                       sl_time_ns now);
void __real_pre_job_init(pre_job_state *job, sl_time_ns deadline);
void __wrap_pre_job_init(pre_job_state *job, sl_time_ns deadline);
pre_outcome __real_pre_job_handle(pre_job_state *job, const pre_event *event, sl_time_ns now);
pre_outcome __wrap_pre_job_handle(pre_job_state *job, const pre_event *event, sl_time_ns now);
sl_status __real_kvt_send_announce(kvt_send *send, uint32_t block, uint32_t group, const void *data,
                                   uint64_t bytes, uint64_t sum, sl_err *err);
sl_status __wrap_kvt_send_announce(kvt_send *send, uint32_t block, uint32_t group, const void *data,
                                   uint64_t bytes, uint64_t sum, sl_err *err);
sl_status __real_kvt_send_commit(kvt_send *send, const kvt_commit *commit, sl_err *err);
sl_status __wrap_kvt_send_commit(kvt_send *send, const kvt_commit *commit, sl_err *err);
kvt_request *__real_kvt_recv_judge(kvt_peer *peer, const kvt_message *message, uint64_t bytes,
                                   void **out_data);
kvt_request *__wrap_kvt_recv_judge(kvt_peer *peer, const kvt_message *message, uint64_t bytes,
                                   void **out_data);
void __real_eng_sequence_close(eng_sequence *sequence);
void __wrap_eng_sequence_close(eng_sequence *sequence);
void __real_nod_host_drain(nod_host *host, uint64_t timeout_ns);
void __wrap_nod_host_drain(nod_host *host, uint64_t timeout_ns);
sl_status __real_rpc_stream_write(rpc_call *call, const ProtobufCMessage *message);
sl_status __wrap_rpc_stream_write(rpc_call *call, const ProtobufCMessage *message);

/* Control thread of a decode node. */
dec_outcome __wrap_dec_sequence_handle(dec_sequence *sequence, const dec_event *event,
                                       sl_time_ns now)
{
    dec_outcome out = __real_dec_sequence_handle(sequence, event, now);
    if (out.actions & DEC_ACTION_SEND_ADMITTED)
        chaos_site("admitted"); /* pages are bound, nobody knows yet */
    if (event->kind == DEC_EVENT_FINISHED)
        chaos_site("last"); /* the last tokens were not sent yet: a pass ends with that */
    if (event->kind == DEC_EVENT_CANCEL)
        chaos_site("cancel");
    if (event->kind == DEC_EVENT_ATTACH)
        chaos_site("attach"); /* its stream broke, its router is back: what it lacks is not sent */
    return out;
}

/* Control thread of a prefill node. */
void __wrap_pre_job_init(pre_job_state *job, sl_time_ns deadline)
{
    __real_pre_job_init(job, deadline);
    chaos_site("ticket");
}

pre_outcome __wrap_pre_job_handle(pre_job_state *job, const pre_event *event, sl_time_ns now)
{
    pre_outcome out = __real_pre_job_handle(job, event, now);
    if (event->kind == PRE_EVENT_CANCEL)
        chaos_site("cancel");
    return out;
}

sl_status __wrap_kvt_send_announce(kvt_send *send, uint32_t block, uint32_t group, const void *data,
                                   uint64_t bytes, uint64_t sum, sl_err *err)
{
    chaos_site("announce");
    return __real_kvt_send_announce(send, block, group, data, bytes, sum, err);
}

sl_status __wrap_kvt_send_commit(kvt_send *send, const kvt_commit *commit, sl_err *err)
{
    chaos_site(commit->final ? "final" : "commit");
    return __real_kvt_send_commit(send, commit, err);
}

/* Progress thread of whoever receives, before it takes a piece. */
kvt_request *__wrap_kvt_recv_judge(kvt_peer *peer, const kvt_message *message, uint64_t bytes,
                                   void **out_data)
{
    chaos_site("fetch");
    return __real_kvt_recv_judge(peer, message, bytes, out_data);
}

/* Engine thread. */
void __wrap_eng_sequence_close(eng_sequence *sequence)
{
    chaos_control *control = chaos_control_get();
    __real_eng_sequence_close(sequence);
    if (control)
        atomic_store(&control->closed_ns, sl_now_ns());
}

void __wrap_nod_host_drain(nod_host *host, uint64_t timeout_ns)
{
    __real_nod_host_drain(host, timeout_ns);
    chaos_site("drain");
}

sl_status __wrap_rpc_stream_write(rpc_call *call, const ProtobufCMessage *message)
{
    if (message->descriptor == &etcdserverpb__lease_keep_alive_request__descriptor)
        chaos_site("lease");
    return __real_rpc_stream_write(call, message);
}
