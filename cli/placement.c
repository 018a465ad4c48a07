/* `sluicectl placement show`, `plan` and `apply`: which ranks of an instance hold which experts.
 *
 * The table is read from etcd, the loads from the ranks; a plan is made here (cluster/placement.h)
 * and written in one transaction on the table's revision, with its record under audit/. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "cli/balance.h"
#include "cli/commands.h"
#include "cluster/action.h"
#include "cluster/balance.h"
#include "cluster/placement_table.h"
#include "proto/etcd/etcd.pb-c.h"
#include "proto/sluice/v1/node.pb-c.h"

#define ROLL_OUT_NS (60 * SL_S_NS)
#define LOOK_MS     100u
#define GAIN_MIN    0.02 /* of the mean imbalance: less is not worth the moves */

/* What is known of an instance. */
typedef struct found {
    ctl_session *session;
    const char *instance;
    char key[CLU_KEY_MAX];
    clu_placement *table;
    int64_t revision;
    double *loads;      /* [layers][experts], of all ranks */
    double *rank_loads; /* [layers][ranks]: what each has really worked on */
    ctl_call *calls;    /* [members]; of other nodes without reply */
} found;

static const Sluice__V1__ExpertsReply *reply_of(const ctl_call *call)
{
    return (const Sluice__V1__ExpertsReply *)call->reply;
}

/* ---- etcd ---- */

typedef struct reading {
    bool done;
    sl_status status;
    sl_err *err;
    found *into;
} reading;

static void on_table(void *context, const ProtobufCMessage *message, const sl_err *err)
{
    reading *r = context;
    r->done = true;
    r->status = (sl_status){err->code};
    if (err->code != SL_OK) {
        *r->err = *err;
        return;
    }
    const Etcdserverpb__RangeResponse *reply = (const void *)message;
    if (reply->n_kvs == 0) {
        r->status = sl_fail(r->err, SL_NOT_FOUND, "there is no placement of an instance %s",
                            r->into->instance);
        return;
    }
    const Etcdserverpb__KeyValue *kv = reply->kvs[0];
    r->into->revision = kv->mod_revision;
    r->status = clu_placement_parse_json(kv->value.data, kv->value.len, &r->into->table, r->err);
}

static sl_status read_table(found *f, sl_err *err)
{
    const ctl_options *options = ctl_session_options(f->session);
    clu_etcd *etcd = ctl_session_etcd(f->session);
    reading r = {.err = err, .into = f};
    if (!etcd)
        return sl_fail(err, SL_UNSUPPORTED, "placement is read from etcd: --etcd, not --router");
    SL_TRY(clu_placement_key(options->cluster, f->instance, f->key, err));
    Etcdserverpb__RangeRequest request = ETCDSERVERPB__RANGE_REQUEST__INIT;
    request.key = clu_bytes(f->key);
    const clu_request_options once = {.idempotent = true};
    SL_TRY(clu_etcd_request(etcd, &rpc_method_etcd_kv_range, &request.base, &once, on_table, &r,
                            NULL, err));
    while (!r.done)
        ctl_session_pass(f->session, LOOK_MS);
    return r.status;
}

/* ---- the ranks ---- */

static bool is_rank(const found *f, const ctl_call *call)
{
    const clu_place_shape *shape = &f->table->shape;
    const Sluice__V1__ExpertsReply *reply = reply_of(call);
    return reply && strcmp(reply->instance, f->instance) == 0 && reply->layers == shape->layers &&
           reply->experts == shape->experts && reply->rank < shape->ranks &&
           reply->n_rows == (size_t)shape->layers * shape->experts;
}

static void calls_end(found *f)
{
    if (f->calls)
        ctl_calls_free(f->session, f->calls);
    f->calls = NULL;
}

static void ask_ranks(found *f)
{
    static const Sluice__V1__ExpertsRequest REQUEST = SLUICE__V1__EXPERTS_REQUEST__INIT;
    calls_end(f);
    f->calls = ctl_ask_all_nodes(f->session, &rpc_method_node_get_experts, &REQUEST.base);
}

/* What the ranks have counted, times `sign`. Returns how many ranks there are. */
static uint32_t add_loads(found *f, double sign)
{
    const clu_place_shape *shape = &f->table->shape;
    uint32_t ranks = 0;
    for (size_t i = 0; i < ctl_session_count(f->session); i++) {
        if (!is_rank(f, &f->calls[i]))
            continue;
        const Sluice__V1__ExpertsReply *reply = reply_of(&f->calls[i]);
        ranks++;
        for (size_t at = 0; at < reply->n_rows; at++) {
            size_t layer = at / shape->experts;
            f->loads[at] += sign * (double)reply->rows[at];
            f->rank_loads[layer * shape->ranks + reply->rank] += sign * (double)reply->rows[at];
        }
    }
    return ranks;
}

static sl_status gather(found *f, sl_err *err)
{
    const clu_place_shape *shape = &f->table->shape;
    const ctl_options *options = ctl_session_options(f->session);
    size_t count = (size_t)shape->layers * shape->experts;
    f->loads = sl_alloc(count, sizeof(double), "expert loads");
    f->rank_loads = sl_alloc((size_t)shape->layers * shape->ranks, sizeof(double), "rank loads");
    if (options->window_ns > 0) {
        ask_ranks(f);
        (void)add_loads(f, -1);
        ctl_session_pass(f->session, (uint32_t)(options->window_ns / SL_MS_NS));
    }
    ask_ranks(f);
    if (add_loads(f, 1) == 0)
        return sl_fail(err, SL_UNAVAILABLE, "no rank of %s answers", f->instance);
    for (size_t i = 0; i < count; i++) /* a rank was started again in between */
        f->loads[i] = f->loads[i] > 0 ? f->loads[i] : 0;
    return sl_ok();
}

static sl_status open_found(found *f, ctl_session *session, const char *instance, sl_err *err)
{
    *f = (found){.session = session, .instance = instance};
    SL_TRY(read_table(f, err));
    return gather(f, err);
}

static void close_found(found *f)
{
    calls_end(f);
    clu_placement_destroy(f->table);
    sl_free(f->loads);
    sl_free(f->rank_loads);
}

/* ---- show ---- */

static uint32_t held(const found *f, uint32_t rank)
{
    const clu_place_shape *shape = &f->table->shape;
    uint32_t count = 0;
    for (uint32_t layer = 0; layer < shape->layers; layer++) {
        const uint16_t *of = f->table->slots + ((size_t)layer * shape->ranks + rank) * shape->slots;
        for (uint32_t i = 0; i < shape->slots; i++) {
            bool before = false;
            for (uint32_t j = 0; j < i; j++)
                before = before || of[j] == of[i];
            count += !before;
        }
    }
    return count;
}

static void show_rank(const found *f, size_t member, bool json, sl_buf *out)
{
    const Sluice__V1__ExpertsReply *reply = reply_of(&f->calls[member]);
    const char *name = ctl_session_member(f->session, member)->name;
    uint64_t rows = 0;
    for (size_t i = 0; i < reply->n_rows; i++)
        rows += reply->rows[i];
    if (!json) {
        sl_buf_printf(out, "%4u  %-20s %9" PRIu64 " %9" PRIu64 " %8u %9.1f %12" PRIu64 "\n",
                      reply->rank, name, reply->formation, reply->placement_version,
                      held(f, reply->rank), (double)reply->expert_bytes / 1e6, rows);
        return;
    }
    ctl_json_open(out, NULL, '{');
    ctl_json_number(out, "rank", reply->rank);
    ctl_json_text(out, "node", name);
    ctl_json_number(out, "formation", reply->formation);
    ctl_json_number(out, "placement", reply->placement_version);
    ctl_json_number(out, "experts", held(f, reply->rank));
    ctl_json_number(out, "expert_bytes", reply->expert_bytes);
    ctl_json_number(out, "rows", rows);
    sl_buf_putc(out, '}');
}

static void show(const found *f)
{
    const clu_place_shape *shape = &f->table->shape;
    bool json = ctl_session_options(f->session)->json;
    clu_balance now = clu_balance_of_ranks(shape, f->rank_loads),
                table = clu_balance_of_table(shape, f->loads, f->table->slots);
    sl_buf out;
    sl_buf_init(&out, 0);
    if (json) {
        ctl_json_open(&out, NULL, '{');
        ctl_json_text(&out, "instance", f->instance);
        ctl_json_number(&out, "version", f->table->version);
        ctl_json_number(&out, "layers", shape->layers);
        ctl_json_number(&out, "experts", shape->experts);
        ctl_json_number(&out, "slots", shape->slots);
        ctl_json_double(&out, "imbalance_measured", now.mean);
        ctl_json_double(&out, "imbalance_measured_worst", now.worst);
        ctl_json_double(&out, "imbalance_by_table", table.mean);
        ctl_json_open(&out, "ranks", '[');
    } else {
        sl_buf_printf(&out,
                      "placement %" PRIu64 " of %s: %u layers of %u experts on %u ranks of %u "
                      "slots\nimbalance (heaviest rank / mean): measured %.3f, worst layer %.3f; "
                      "by the table %.3f\n%4s  %-20s %9s %9s %8s %9s %12s\n",
                      f->table->version, f->instance, shape->layers, shape->experts, shape->ranks,
                      shape->slots, now.mean, now.worst, table.mean, "RANK", "NODE", "FORMATION",
                      "PLACEMENT", "EXPERTS", "MB", "ROWS");
    }
    for (uint32_t rank = 0; rank < shape->ranks; rank++)
        for (size_t i = 0; i < ctl_session_count(f->session); i++)
            if (is_rank(f, &f->calls[i]) && reply_of(&f->calls[i])->rank == rank)
                show_rank(f, i, json, &out);
    if (json)
        sl_buf_puts(&out, "]}\n");
    ctl_print(&out);
}

int ctl_placement_show(ctl_session *session, const char *const *words)
{
    found f;
    sl_err err;
    sl_status status = open_found(&f, session, words[0], &err);
    if (sl_is_ok(status))
        show(&f);
    close_found(&f);
    return sl_is_ok(status) ? CTL_EXIT_OK : ctl_fail(&err);
}

/* ---- plan and apply ---- */

typedef struct plan {
    clu_placement *table;
    clu_balance before, after;
    uint64_t moves, bytes;
    bool worth;
} plan;

static uint64_t bytes_each(const found *f)
{
    for (size_t i = 0; i < ctl_session_count(f->session); i++) {
        if (!is_rank(f, &f->calls[i]))
            continue;
        const Sluice__V1__ExpertsReply *reply = reply_of(&f->calls[i]);
        uint32_t count = held(f, reply->rank);
        return count ? reply->expert_bytes / count : 0;
    }
    return 0;
}

static sl_status make_plan(const found *f, plan *out_plan, sl_err *err)
{
    const clu_place_shape *shape = &f->table->shape;
    plan p = {.table = clu_placement_copy(f->table),
              .before = clu_balance_of_table(shape, f->loads, f->table->slots)};
    p.table->version++;
    sl_status status = clu_place_plan(shape, f->loads, p.table->slots, err);
    if (!sl_is_ok(status)) {
        clu_placement_destroy(p.table);
        return status;
    }
    clu_place_keep(shape, f->table->slots, p.table->slots);
    p.after = clu_balance_of_table(shape, f->loads, p.table->slots);
    p.moves = clu_place_moves(shape, f->table->slots, p.table->slots);
    p.bytes = p.moves * bytes_each(f);
    p.worth = p.before.mean - p.after.mean >= GAIN_MIN * p.before.mean;
    *out_plan = p;
    return status;
}

/* What the controller thinks of it. */
static void report_leader(const ctl_balances *balances, const char *instance, bool json,
                          sl_buf *out)
{
    const Sluice__V1__InstanceBalance *known = ctl_balances_find(balances, instance);
    const char *reason = known ? known->reason : "";
    if (!balances->leader)
        return;
    if (json) {
        ctl_json_text(out, "rebalance", balances->leader->rebalance);
        ctl_json_text(out, "rebalance_reason", reason);
    } else {
        sl_buf_printf(out, "%s leads, --rebalance %s%s%s\n", balances->leader->router,
                      balances->leader->rebalance, *reason ? ": " : "", reason);
    }
}

static void report(const found *f, const plan *p, bool applied, double seconds)
{
    const ctl_options *options = ctl_session_options(f->session);
    ctl_balances balances = ctl_balances_ask(f->session);
    sl_buf out;
    sl_buf_init(&out, 0);
    if (options->json) {
        ctl_json_open(&out, NULL, '{');
        ctl_json_text(&out, "instance", f->instance);
        ctl_json_number(&out, "version", applied ? p->table->version : f->table->version);
        ctl_json_bool(&out, "worth_it", p->worth);
        ctl_json_bool(&out, "applied", applied);
        ctl_json_double(&out, "imbalance_before", p->before.mean);
        ctl_json_double(&out, "imbalance_after", p->after.mean);
        ctl_json_double(&out, "worst_before", p->before.worst);
        ctl_json_double(&out, "worst_after", p->after.worst);
        ctl_json_number(&out, "moves", p->moves);
        ctl_json_number(&out, "bytes", p->bytes);
        ctl_json_double(&out, "seconds", seconds);
        report_leader(&balances, f->instance, true, &out);
        sl_buf_puts(&out, "}\n");
        ctl_print(&out);
        ctl_balances_free(&balances);
        return;
    }
    sl_buf_printf(&out,
                  "imbalance (heaviest rank / mean): %.3f now, %.3f planned; worst layer %.3f, "
                  "%.3f\n%" PRIu64 " experts move, %.1f MB are loaded\n",
                  p->before.mean, p->after.mean, p->before.worst, p->after.worst, p->moves,
                  (double)p->bytes / 1e6);
    if (applied)
        sl_buf_printf(&out, "placement %" PRIu64 " of %s is in use after %.2f s\n",
                      p->table->version, f->instance, seconds);
    else if (!p->worth)
        sl_buf_printf(&out, "not worth it: placement %" PRIu64 " stays\n", f->table->version);
    else
        sl_buf_printf(&out, "sluicectl placement apply %s does it\n", f->instance);
    report_leader(&balances, f->instance, false, &out);
    ctl_balances_free(&balances);
    ctl_print(&out);
}

static void on_applied(void *context, int64_t revision, const sl_err *err)
{
    reading *r = context;
    r->done = true;
    r->status = (sl_status){err->code};
    if (err->code != SL_OK)
        *r->err = *err;
}

static sl_status write_table(found *f, const plan *p, sl_err *err)
{
    const ctl_options *options = ctl_session_options(f->session);
    char detail[160];
    reading r = {.err = err, .into = f};
    sl_buf value;
    snprintf(detail, sizeof(detail),
             "version %" PRIu64 ": imbalance %.3f to %.3f, %" PRIu64 " experts move",
             p->table->version, p->before.mean, p->after.mean, p->moves);
    sl_buf_init(&value, CLU_PLACEMENT_JSON_MAX);
    clu_placement_write_json(&value, p->table);
    sl_buf_putc(&value, '\0');
    const clu_action action = {
        .actor = "operator",
        .verb = "placement",
        .target = f->instance,
        .detail = detail,
        .changes = {{f->key, value.data, true, f->revision}},
        .change_count = 1,
    };
    sl_status status = clu_action_start(ctl_session_etcd(f->session), options->cluster, &action,
                                        on_applied, &r, NULL, err);
    while (sl_is_ok(status) && !r.done)
        ctl_session_pass(f->session, LOOK_MS);
    sl_buf_fini(&value);
    return sl_is_ok(status) ? r.status : status;
}

static bool all_use(const found *f, uint64_t version)
{
    bool any = false;
    for (size_t i = 0; i < ctl_session_count(f->session); i++) {
        if (!is_rank(f, &f->calls[i]))
            continue;
        any = true;
        if (reply_of(&f->calls[i])->placement_version < version)
            return false;
    }
    return any;
}

static sl_status roll_out(found *f, const plan *p, double *out_seconds, sl_err *err)
{
    const ctl_options *options = ctl_session_options(f->session);
    sl_time_ns begun = sl_now_ns();
    SL_TRY(write_table(f, p, err));
    sl_time_ns end = begun + (options->timeout_ns ? options->timeout_ns : ROLL_OUT_NS);
    for (;;) {
        ask_ranks(f);
        *out_seconds = (double)(sl_now_ns() - begun) / 1e9;
        if (all_use(f, p->table->version))
            return sl_ok();
        if (sl_now_ns() >= end)
            return sl_fail(err, SL_DEADLINE,
                           "placement %" PRIu64 " is written, but not all ranks use it yet: their "
                           "logs say why",
                           p->table->version);
        ctl_session_pass(f->session, LOOK_MS);
    }
}

static int plan_or_apply(ctl_session *session, const char *instance, bool apply)
{
    found f;
    plan p = {0};
    sl_err err;
    double seconds = 0;
    sl_status status = open_found(&f, session, instance, &err);
    if (sl_is_ok(status))
        status = make_plan(&f, &p, &err);
    bool applied = sl_is_ok(status) && apply && p.worth;
    if (applied)
        status = roll_out(&f, &p, &seconds, &err);
    if (sl_is_ok(status))
        report(&f, &p, applied, seconds);
    clu_placement_destroy(p.table);
    close_found(&f);
    return sl_is_ok(status) ? CTL_EXIT_OK : ctl_fail(&err);
}

int ctl_placement_plan(ctl_session *session, const char *const *words)
{
    return plan_or_apply(session, words[0], false);
}

int ctl_placement_apply(ctl_session *session, const char *const *words)
{
    return plan_or_apply(session, words[0], !ctl_session_options(session)->dry_run);
}
