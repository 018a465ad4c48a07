/* What operators did to this node, recorded in etcd beside what they did to the cluster. A record
 * that cannot be written holds nothing up: the log has it too. Thread: control loop. */
#include "node/internal.h"

#include <stdio.h>

#include "base/alloc.h"
#include "base/log.h"
#include "cluster/action.h"

#define RECORDS_MAX 16u /* on their way at once */

typedef struct record {
    clu_action_run *run; /* NULL: free */
} record;

struct nod_audit {
    nod_host *host;
    record records[RECORDS_MAX];
};

nod_audit *nod_audit_create(nod_host *host)
{
    nod_audit *audit = sl_alloc(1, sizeof(*audit), "node audit");
    audit->host = host;
    return audit;
}

void nod_audit_destroy(nod_audit *audit)
{
    if (!audit)
        return;
    for (uint32_t i = 0; i < RECORDS_MAX; i++)
        clu_action_drop(audit->records[i].run);
    sl_free(audit);
}

bool nod_audit_busy(const nod_audit *audit)
{
    for (uint32_t i = 0; i < RECORDS_MAX; i++)
        if (audit->records[i].run)
            return true;
    return false;
}

static void on_written(void *context, int64_t revision, const sl_err *err)
{
    record *r = context;
    r->run = NULL;
    if (err->code != SL_OK)
        sl_warn("audit: not recorded in etcd: %s", err->text);
}

void nod_audit_note(nod_audit *audit, rpc_server_call *call, const char *verb, const char *detail)
{
    char actor[RPC_ACTOR_MAX];
    nod_host *host = audit->host;
    sl_err err;
    if (call)
        rpc_server_call_actor(call, actor, sizeof(actor));
    else
        snprintf(actor, sizeof(actor), "node %s", host->options->name);
    sl_info("%s by %s: %s", verb, actor, detail);
    clu_action action = {
        .actor = actor, .verb = verb, .target = host->options->name, .detail = detail};
    uint32_t i = 0;
    while (i < RECORDS_MAX && audit->records[i].run)
        i++;
    if (i == RECORDS_MAX) {
        sl_warn("audit: not recorded in etcd: too many at once");
        return;
    }
    record *r = &audit->records[i];
    if (!sl_is_ok(clu_action_start(host->etcd, host->options->cluster, &action, on_written, r,
                                   &r->run, &err)))
        sl_warn("audit: not recorded in etcd: %s", err.text);
}
