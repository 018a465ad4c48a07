/* What a command works with: the members as etcd tells them, and calls to them.
 *
 * Runs its loop only inside these functions, which wait with a deadline. Thread: the program's one.
 */
#ifndef CLI_SESSION_H
#define CLI_SESSION_H

#include "cluster/trust.h"
#include "cluster/view.h"
#include "rpc/methods.h"
#include "rpc/rpc.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { CTL_MODE_KEEP, CTL_MODE_WAIT }; /* weights pause: what runs stays, or ends first */

typedef struct ctl_options {
    const char *router; /* NULL: etcd tells who is there */
    const char *etcd;
    const char *cluster;
    uint64_t etcd_timeout_ns;
    uint64_t call_timeout_ns;
    uint64_t timeout_ns; /* drain, weights reload; 0 = as the command says */
    uint64_t interval_ns;
    uint64_t window_ns;
    uint64_t for_ns;
    int mode; /* CTL_MODE_* */
    int64_t count;
    int64_t limit;
    int64_t weights_version;
    int64_t prefill, decode;
    int64_t prompt_tokens, answer_tokens, requests;
    uint64_t valid_ns;
    const char *dir, *host;
    const char *reason;
    const char *model;
    clu_trust_options trust;
    bool json;
    bool watch;
    bool dry_run;
    bool in_place;
    bool ledger;
    bool at_rest;
} ctl_options;

typedef struct ctl_session ctl_session;

/* Lists the members. Errors say what to do. */
SL_MUST_USE sl_status ctl_session_open(const ctl_options *options, ctl_session **out_session,
                                       sl_err *err);
void ctl_session_close(ctl_session *session);
const ctl_options *ctl_session_options(const ctl_session *session);
/* By name. Copies of the records as they were when the session opened. */
size_t ctl_session_count(const ctl_session *session);
const clu_member_info *ctl_session_member(const ctl_session *session, size_t index);
/* SL_NOT_FOUND names those that there are. */
SL_MUST_USE sl_status ctl_session_find(const ctl_session *session, const char *name,
                                       const clu_member_info **out_member, sl_err *err);
/* The process that had this record is a member still; it may be suspect. Asks the router, where one
 * was named. */
bool ctl_session_has(ctl_session *session, const clu_member_info *member, bool *out_suspect);
/* etcd's client; NULL: a router tells. */
clu_etcd *ctl_session_etcd(ctl_session *session);
sl_loop *ctl_session_loop(ctl_session *session);
/* SL_NOT_FOUND; SL_UNSUPPORTED: a router. */
SL_MUST_USE sl_status ctl_session_find_node(const ctl_session *session, const char *name,
                                            const clu_member_info **out_member, sl_err *err);
/* Serves Node, so not a router. */
bool ctl_member_is_node(const clu_member_info *member);

/* A unary call under way, or its end. Zeroed at first. */
typedef struct ctl_call {
    ctl_session *session;
    const clu_member_info *member;
    rpc_call *call; /* until it is done */
    bool done;
    sl_err err; /* code SL_OK: reply is set */
    ProtobufCMessage *reply;
} ctl_call;

void ctl_call_start(ctl_session *session, ctl_call *call, const clu_member_info *member,
                    const rpc_method *method, const ProtobufCMessage *request);
/* One that may take longer than others. */
void ctl_call_start_within(ctl_session *session, ctl_call *call, const clu_member_info *member,
                           const rpc_method *method, const ProtobufCMessage *request,
                           uint64_t timeout_ns);
void ctl_call_fini(ctl_call *call);
/* One call to its end; ctl_call_fini in any case. */
SL_MUST_USE sl_status ctl_ask(ctl_session *session, const clu_member_info *member,
                              const rpc_method *method, const ProtobufCMessage *request,
                              ctl_call *out_call, sl_err *err);
/* The same of the first router that answers, or of the one that was named. */
SL_MUST_USE sl_status ctl_ask_router(ctl_session *session, const rpc_method *method,
                                     const ProtobufCMessage *request, ctl_call *out_call,
                                     sl_err *err);
/* A method of all nodes at once: calls[ctl_session_count], of routers zeroed. The caller's, with
 * ctl_calls_free. */
ctl_call *ctl_ask_all_nodes(ctl_session *session, const rpc_method *method,
                            const ProtobufCMessage *request);
/* Node.GetStatus so. */
ctl_call *ctl_ask_all_statuses(ctl_session *session);
/* A method of all routers at once, of nodes zeroed. */
ctl_call *ctl_ask_all_routers(ctl_session *session, const rpc_method *method,
                              const ProtobufCMessage *request);
void ctl_calls_free(ctl_session *session, ctl_call *calls);
/* Until all calls that were started have ended. */
void ctl_session_wait(ctl_session *session);
/* Without a session. */
void ctl_pass(uint64_t ns);
/* Lets other things happen for about so long. */
void ctl_session_pass(ctl_session *session, uint32_t ms);
/* A server stream to its end. on_message: a status that is not SL_OK ends it with that. */
SL_MUST_USE sl_status ctl_session_read(ctl_session *session, const clu_member_info *member,
                                       const rpc_method *method, const ProtobufCMessage *request,
                                       sl_status (*on_message)(void *context,
                                                               const ProtobufCMessage *message,
                                                               sl_err *err),
                                       void *context, sl_err *err);

#ifdef __cplusplus
}
#endif
#endif
