/* A node as one rank of an instance: meets the others at the start, leaves together with them.
 *
 * Owns the group and the rank's record in etcd. Thread: the control loop; once the engine runs, the
 * group's phases are the engine thread's. */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/log.h"
#include "comm/ucx.h"
#include "engine/parallel.h"
#include "node/internal.h"

#define CONNECT_NS (3 * SL_S_NS)  /* of one attempt: etcd's lease is not renewed meanwhile */
#define TELL_NS    (10 * SL_S_NS) /* who is still missing */
#define PASS_MS    100

_Static_assert(CLU_RANKS_MAX == COM_RANKS_MAX, "cluster and comm agree on the largest instance");
_Static_assert(CLU_CONTACT_MAX >= COM_CONTACT_MAX, "a contact fits into its record");

bool nod_ranks_used(const nod_host *host)
{
    return host->options->ep_size > 1;
}

sl_status nod_ranks_open(nod_host *host, sl_err *err)
{
    const nod_options *options = host->options;
    if (!nod_ranks_used(host))
        return sl_ok();
    const com_options comm = {
        .instance = options->instance,
        .rank = (uint32_t)options->ep_rank,
        .rank_count = (uint32_t)options->ep_size,
        .listen = options->ep_listen,
        .allow_wildcard = options->kv_allow_wildcard,
        .wait_ns = options->ep_timeout_ns,
        .backend = &com_backend_ucx,
    };
    return sl_wrap(err, com_group_open(&comm, &host->group, err), "--ep-listen");
}

/* What goes on while the ranks meet. */
typedef struct meeting {
    nod_host *host;
    bool done, failed;
    sl_err err;
} meeting;

static void on_complete(void *context, const char *const *contacts)
{
    meeting *m = context;
    nod_host *host = m->host;
    com_layout layout;
    if (m->done)
        return;
    eng_model_ranks_layout(host->model, host->rows_max, &layout);
    sl_status status =
        com_group_connect(host->group, contacts, &layout, sl_now_ns() + CONNECT_NS, NULL, &m->err);
    if (!sl_is_ok(status)) {
        sl_info("the ranks are not together yet: %s", m->err.text);
        m->failed = status.code == SL_INCOMPATIBLE;
        return;
    }
    status = eng_model_join(host->model, host->group, &m->err);
    m->done = sl_is_ok(status);
    m->failed = !m->done;
}

static void on_failed(void *context, const sl_err *err)
{
    meeting *m = context;
    m->failed = true;
    m->err = *err;
}

/* Runs the loop until it is decided. */
static sl_status meet(nod_host *host, meeting *m, sl_err *err)
{
    sl_time_ns give_up = sl_now_ns() + host->options->ep_start_timeout_ns;
    sl_time_ns tell_at = sl_now_ns() + TELL_NS;
    char missing[256];
    while (!m->done && !m->failed) {
        sl_loop_run_once(host->loop, PASS_MS);
        sl_time_ns now = sl_now_ns();
        clu_ranks_missing(host->ranks, missing, sizeof(missing));
        if (now >= give_up)
            return sl_fail(err, SL_DEADLINE, "instance %s: %s%s%s within --ep-start-timeout",
                           host->options->instance, missing[0] ? "no rank " : "the ranks did not",
                           missing, missing[0] ? "" : " meet");
        if (now >= tell_at && missing[0]) {
            sl_info("instance %s: waiting for rank %s", host->options->instance, missing);
            tell_at = now + TELL_NS;
        }
    }
    if (!m->failed)
        return sl_ok();
    return sl_fail(err, m->err.code, "instance %s: %s", host->options->instance, m->err.text);
}

sl_status nod_ranks_meet(nod_host *host, sl_err *err)
{
    static const clu_ranks_events EVENTS = {.on_complete = on_complete, .on_failed = on_failed};
    const nod_options *options = host->options;
    if (!nod_ranks_used(host))
        return sl_ok();
    meeting *m = sl_alloc(1, sizeof(*m), "meeting of ranks");
    m->host = host;
    host->meeting = m;
    const clu_ranks_options ranks = {
        .cluster = options->cluster,
        .instance = options->instance,
        .rank = (uint32_t)options->ep_rank,
        .size = (uint32_t)options->ep_size,
        .node = options->name,
        .contact = com_group_contact(host->group),
        .lease_ns = options->lease_ns,
    };
    SL_TRY(clu_ranks_create(host->etcd, &ranks, &EVENTS, m, &host->ranks, err));
    SL_TRY(meet(host, m, err));
    clu_ranks_met(host->ranks);
    sl_info("rank %u of %u of instance %s: %.1f MB of experts", com_group_rank(host->group),
            com_group_size(host->group), options->instance,
            (double)eng_model_expert_bytes(host->model) / 1e6);
    return sl_ok();
}

void nod_ranks_destroy(nod_host *host)
{
    clu_ranks_destroy(host->ranks);
    sl_free(host->meeting);
}
