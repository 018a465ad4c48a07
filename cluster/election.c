/* See election.h. Owns the lease, the table of the one key, one request at a time. */
#include "cluster/election.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "cluster/internal.h"
#include "cluster/table.h"
#include "cluster/txn.h"

struct clu_election {
    clu_etcd *etcd;
    clu_election_events events;
    void *context;
    char name[CLU_NAME_MAX];
    char key[CLU_KEY_MAX];
    clu_lease *lease;
    clu_table *table;
    clu_request *request;
    sl_timer *timer; /* campaign again */
    clu_backoff backoff;
    int64_t fence;
    bool taken; /* the key is there, as the table tells */
    bool listed;
    char leader[CLU_NAME_MAX];
};

static void campaign(clu_election *election);

static void again_later(clu_election *election)
{
    sl_timer_set(election->timer, sl_now_ns() + clu_backoff_next(&election->backoff));
}

static void depose(clu_election *election)
{
    if (election->fence == 0)
        return;
    election->fence = 0;
    election->events.on_deposed(election->context);
}

static void set_leader(clu_election *election, const char *name)
{
    if (strcmp(election->leader, name) == 0)
        return;
    snprintf(election->leader, sizeof(election->leader), "%s", name);
    if (election->events.on_leader)
        election->events.on_leader(election->context, election->leader);
}

/* ---- the key ---- */

/* The lease says whose it is: names may be those of earlier processes. */
static void on_put(void *context, const char *name, const char *value,
                   const Etcdserverpb__KeyValue *kv)
{
    clu_election *election = context;
    if (*name)
        return; /* another key that begins alike */
    election->taken = election->listed = true;
    bool ours = kv->lease != 0 && kv->lease == clu_lease_id(election->lease);
    if (!ours || kv->create_revision != election->fence)
        depose(election);
    set_leader(election, clu_name_valid(value) ? value : "?");
    if (!ours || election->fence)
        return;
    election->fence = kv->create_revision;
    clu_backoff_reset(&election->backoff);
    election->events.on_elected(election->context, election->fence);
}

static void on_delete(void *context, const char *name)
{
    clu_election *election = context;
    if (*name)
        return;
    election->taken = false;
    depose(election);
    set_leader(election, "");
    campaign(election);
}

static void on_list(void *context)
{
    ((clu_election *)context)->listed = false;
}

static void on_listed(void *context)
{
    clu_election *election = context;
    if (!election->listed)
        on_delete(election, "");
}

/* ---- the campaign ---- */

static void on_campaigned(void *context, const ProtobufCMessage *message, const sl_err *err)
{
    clu_election *election = context;
    election->request = NULL;
    /* Won, lost or open: the watch tells; if it does not, the key is still free. */
    again_later(election);
}

static void campaign(clu_election *election)
{
    int64_t lease = clu_lease_id(election->lease);
    clu_txn txn;
    sl_err err;
    if (election->request || election->taken || lease == 0 || !clu_table_ready(election->table))
        return;
    clu_txn_init(&txn);
    clu_txn_compare_mod(&txn, election->key, 0);
    clu_txn_put(&txn, election->key, election->name, lease);
    if (!sl_is_ok(clu_txn_send(election->etcd, &txn, NULL, on_campaigned, election,
                               &election->request, &err)))
        again_later(election);
}

static void on_timer(void *context, sl_time_ns now)
{
    campaign(context);
}

static void on_granted(void *context, int64_t id)
{
    campaign(context);
}

static void on_lost(void *context)
{
    depose(context);
}

/* ---- life ---- */

sl_status clu_election_create(clu_etcd *etcd, const clu_election_options *options,
                              const clu_election_events *events, void *context,
                              clu_election **out_election, sl_err *err)
{
    static const clu_lease_events LEASE = {on_granted, on_lost};
    static const clu_table_events TABLE = {on_list, on_put, on_delete, on_listed, NULL};
    char key[CLU_KEY_MAX];
    SL_TRY(clu_key(options->cluster, "leader", key, err));
    clu_election *election = sl_alloc(1, sizeof(*election), "election");
    election->etcd = etcd;
    election->events = *events;
    election->context = context;
    memcpy(election->key, key, sizeof(key));
    snprintf(election->name, sizeof(election->name), "%s", options->name);
    election->timer = sl_timer_create(rpc_runtime_loop(clu_etcd_runtime(etcd)), on_timer, election);
    sl_status status =
        clu_lease_create(etcd, options->lease_ns, &LEASE, election, &election->lease, err);
    if (sl_is_ok(status))
        status = clu_table_create(etcd, key, &TABLE, election, &election->table, err);
    if (!sl_is_ok(status)) {
        clu_election_destroy(election);
        return status;
    }
    *out_election = election;
    return status;
}

void clu_election_destroy(clu_election *election)
{
    if (!election)
        return;
    clu_request_drop(election->request);
    clu_table_destroy(election->table);
    clu_lease_destroy(election->lease);
    sl_timer_destroy(election->timer);
    sl_free(election);
}

int64_t clu_election_fence(const clu_election *election)
{
    return election->fence;
}

const char *clu_election_leader(const clu_election *election)
{
    return election->leader;
}
