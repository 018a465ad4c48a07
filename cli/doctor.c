/* `sluicectl doctor`: a list of questions to the cluster, each with a verdict and what to do. */
#include <stdio.h>
#include <string.h>

#include "cli/balance.h"
#include "cli/commands.h"
#include "proto/sluice/v1/cluster.pb-c.h"
#include "proto/sluice/v1/node.pb-c.h"
#include "rpc/methods.h"

#define PAGES_SCARCE_PERCENT 5u
#define ETCD_FULL_BYTES      ((int64_t)1536 << 20) /* three quarters of etcd's default quota */

typedef enum verdict { VERDICT_OK, VERDICT_WARN, VERDICT_FAIL } verdict;

typedef struct diagnosis {
    ctl_session *session;
    const ctl_call *nodes, *routers, *experts; /* [count] */
    bool json;
    sl_buf out;
    uint32_t counts[3];
} diagnosis;

static const Sluice__V1__NodeStatus *status_of(const ctl_call *call)
{
    return (const Sluice__V1__NodeStatus *)call->reply;
}

static void say(diagnosis *d, verdict v, const char *subject, const char *text)
{
    static const char *const NAMES[] = {"ok", "warn", "FAIL"};
    d->counts[v]++;
    if (!d->json) {
        sl_buf_printf(&d->out, "%-5s %-16s %s\n", NAMES[v], subject, text);
        return;
    }
    ctl_json_open(&d->out, NULL, '{');
    ctl_json_text(&d->out, "verdict", v == VERDICT_FAIL ? "fail" : NAMES[v]);
    ctl_json_text(&d->out, "subject", subject);
    ctl_json_text(&d->out, "text", text);
    sl_buf_putc(&d->out, '}');
}

#define sayf(d, v, subject, ...)                     \
    do {                                             \
        char text_[600];                             \
        snprintf(text_, sizeof(text_), __VA_ARGS__); \
        say((d), (v), (subject), text_);             \
    } while (0)

/* ---- etcd ---- */

typedef struct etcd_answer {
    bool done;
    sl_err err;
    int64_t bytes;
    bool leader;
    char alarm[200];
} etcd_answer;

static void on_etcd(void *context, const ProtobufCMessage *message, const sl_err *err)
{
    etcd_answer *answer = context;
    const Etcdserverpb__StatusResponse *reply = (const void *)message;
    answer->done = true;
    answer->err = *err;
    if (!reply)
        return;
    answer->bytes = reply->dbsize;
    answer->leader = reply->leader != 0;
    for (size_t i = 0; i < reply->n_errors && i < 1; i++)
        snprintf(answer->alarm, sizeof(answer->alarm), "%s", reply->errors[i]);
}

static void ask_etcd(diagnosis *d)
{
    Etcdserverpb__StatusRequest request = ETCDSERVERPB__STATUS_REQUEST__INIT;
    clu_etcd *etcd = ctl_session_etcd(d->session);
    clu_request_options options = {.idempotent = true};
    etcd_answer answer = {0};
    sl_time_ns start = sl_now_ns();
    if (!etcd)
        return; /* the routers say what they think of it */
    sl_status status = clu_etcd_request(etcd, &rpc_method_etcd_maintenance_status, &request.base,
                                        &options, on_etcd, &answer, NULL, &answer.err);
    while (sl_is_ok(status) && !answer.done)
        sl_loop_run_once(ctl_session_loop(d->session), 100);
    if (answer.err.code != SL_OK)
        say(d, VERDICT_FAIL, "etcd", answer.err.text);
    else if (!answer.leader)
        say(d, VERDICT_FAIL, "etcd", "it has no leader: are most of its members up?");
    else if (answer.alarm[0])
        sayf(d, VERDICT_FAIL, "etcd", "%s: defragment it, then disarm the alarm", answer.alarm);
    else if (answer.bytes > ETCD_FULL_BYTES)
        sayf(d, VERDICT_WARN, "etcd", "%lld MB are stored: compact and defragment it",
             (long long)(answer.bytes >> 20));
    else
        sayf(d, VERDICT_OK, "etcd", "answers in %.1f ms, stores %.1f MB",
             (double)(sl_now_ns() - start) / 1e6, (double)answer.bytes / 1048576.0);
}

/* ---- nodes ---- */

static bool is_paused(const Sluice__V1__NodeStatus *status)
{
    return strcmp(status->state, "paused") == 0 || strcmp(status->state, "pausing") == 0;
}

static void look_at_node(diagnosis *d, const clu_member_info *member, const ctl_call *call)
{
    const Sluice__V1__NodeStatus *status = status_of(call);
    if (!status) {
        say(d, VERDICT_FAIL, member->name, call->err.text);
        return;
    }
    const Sluice__V1__Load *load = status->load;
    if (is_paused(status))
        sayf(d, VERDICT_WARN, member->name,
             "is %s, with %u requests, for at most %u s more: sluicectl weights resume %s",
             status->state, load ? load->running + load->waiting : 0,
             load ? load->pause_ms / 1000 + 1 : 0, member->name);
    else if (strcmp(status->state, "ready") != 0)
        sayf(d, VERDICT_WARN, member->name, "is %s: it takes nothing new", status->state);
    else if (load && load->waiting > 0 && load->slots_free == 0)
        sayf(d, VERDICT_WARN, member->name, "%u requests wait and no slot is free: add nodes",
             load->waiting);
    else if (load &&
             (uint64_t)load->pages_free * 100 < (uint64_t)load->pages_total * PAGES_SCARCE_PERCENT)
        sayf(d, VERDICT_WARN, member->name,
             "%u of %u cache pages are free: add nodes, or --kv-memory", load->pages_free,
             load->pages_total);
    else
        say(d, VERDICT_OK, member->name, "answers");
}

static bool has_role(const diagnosis *d, size_t node, const char *role)
{
    const Sluice__V1__NodeStatus *status = status_of(&d->nodes[node]);
    return status && (strcmp(status->role, role) == 0 || strcmp(status->role, "hybrid") == 0);
}

/* Its node does not know: routers do. */
static bool is_cordoned(const diagnosis *d, size_t node)
{
    const char *name = ctl_session_member(d->session, node)->name;
    for (size_t i = 0; i < ctl_session_count(d->session); i++) {
        const Sluice__V1__ListMembersReply *view =
            (const Sluice__V1__ListMembersReply *)d->routers[i].reply;
        for (size_t j = 0; view && j < view->n_members; j++)
            if (strcmp(view->members[j]->name, name) == 0 &&
                strcmp(view->members[j]->state, "cordoned") == 0)
                return true;
    }
    return false;
}

/* It gets new work. */
static bool is_ready(const diagnosis *d, size_t node)
{
    return strcmp(status_of(&d->nodes[node])->state, "ready") == 0 && !is_cordoned(d, node);
}

/* The instance that it is a rank of; NULL: it is alone. */
static const char *instance_of(const diagnosis *d, size_t node)
{
    const Sluice__V1__ExpertsReply *reply =
        (const Sluice__V1__ExpertsReply *)d->experts[node].reply;
    return reply ? reply->instance : NULL;
}

/* No node before it in the list is a ready rank of the same instance in the role. */
static bool is_first(const diagnosis *d, size_t node, const char *role)
{
    const char *own = instance_of(d, node);
    for (size_t i = 0; own && i < node; i++) {
        const char *other = instance_of(d, i);
        if (other && strcmp(own, other) == 0 && has_role(d, i, role) && is_ready(d, i))
            return false;
    }
    return true;
}

/* Ranks of one instance are no spare for each other: what fails alone are instances. */
static void look_at_roles(diagnosis *d)
{
    static const char *const ROLES[] = {"prefill", "decode"};
    for (size_t r = 0; r < 2; r++) {
        uint32_t count = 0, paused = 0, apart = 0;
        for (size_t i = 0; i < ctl_session_count(d->session); i++) {
            if (!has_role(d, i, ROLES[r]))
                continue;
            count += is_ready(d, i);
            apart += is_ready(d, i) && is_first(d, i, ROLES[r]);
            paused += is_paused(status_of(&d->nodes[i]));
        }
        if (count == 0 && paused > 0)
            sayf(d, VERDICT_WARN, ROLES[r], "%u nodes are paused, none is ready: requests wait",
                 paused);
        else if (count == 0)
            sayf(d, r == 0 ? VERDICT_WARN : VERDICT_FAIL, ROLES[r],
                 r == 0 ? "no node is ready: decode nodes compute prompts themselves, if "
                          "--self-prefill lets them"
                        : "no node is ready: nothing can be answered");
        else if (count == 1)
            sayf(d, VERDICT_WARN, ROLES[r], "one node is ready: if it fails there is no other");
        else if (apart == 1)
            sayf(d, VERDICT_WARN, ROLES[r],
                 "%u nodes are ready, all of one instance: if it fails there is no other", count);
        else if (apart < count)
            sayf(d, VERDICT_OK, ROLES[r], "%u nodes are ready, in %u instances", count, apart);
        else
            sayf(d, VERDICT_OK, ROLES[r], "%u nodes are ready", count);
    }
}

/* The node with the newest weights; NULL: there is no node. */
static const clu_member_info *newest_weights(const diagnosis *d)
{
    const clu_member_info *newest = NULL;
    for (size_t i = 0; i < ctl_session_count(d->session); i++) {
        const clu_member_info *member = ctl_session_member(d->session, i);
        if (ctl_member_is_node(member) &&
            (!newest || clu_stamp_weights(&member->stamp) > clu_stamp_weights(&newest->stamp)))
            newest = member;
    }
    return newest;
}

/* A node that was started again after a reload comes back with what it was started with, and
 * answers by that. */
static bool look_at_weights(diagnosis *d, const clu_member_info *newest,
                            const clu_member_info *member)
{
    if (clu_stamp_weights(&member->stamp) == clu_stamp_weights(&newest->stamp))
        return false;
    sayf(d, VERDICT_FAIL, member->name,
         "has weights of version %u, %s has %u: what it answers is by the old ones, and they "
         "exchange no pages; unless a reload is under way: sluicectl weights reload --model DIR "
         "--weights-version %u %s",
         clu_stamp_weights(&member->stamp), newest->name, clu_stamp_weights(&newest->stamp),
         clu_stamp_weights(&newest->stamp), member->name);
    return true;
}

static void compare_members(diagnosis *d)
{
    const clu_member_info *first = NULL, *newest = newest_weights(d);
    bool equal = true;
    for (size_t i = 0; i < ctl_session_count(d->session); i++) {
        const clu_member_info *member = ctl_session_member(d->session, i);
        first = first ? first : member;
        if (strcmp(first->version, member->version) != 0)
            sayf(d, VERDICT_WARN, member->name, "is version %s, %s is %s: finish the upgrade",
                 member->version, first->name, first->version);
        if (!ctl_member_is_node(member))
            continue;
        if (memcmp(&newest->stamp, &member->stamp, sizeof(member->stamp)) == 0)
            continue;
        equal = false;
        if (look_at_weights(d, newest, member))
            continue;
        sl_buf differ;
        sl_buf_init(&differ, 0);
        clu_stamp_tell_difference(&newest->stamp, &member->stamp, &differ);
        sayf(d, VERDICT_WARN, member->name, "exchanges no pages with %s: they have %s",
             newest->name, differ.data);
        sl_buf_fini(&differ);
    }
    if (newest && equal)
        say(d, VERDICT_OK, "stamps", "all nodes compute alike");
}

/* ---- routers ---- */

/* Nothing fails: each keeps prefixes for itself. */
static void compare_secrets(diagnosis *d)
{
    const clu_member_info *first = NULL;
    bool equal = true;
    for (size_t i = 0; i < ctl_session_count(d->session); i++) {
        const clu_member_info *member = ctl_session_member(d->session, i);
        if (ctl_member_is_node(member))
            continue;
        first = first ? first : member;
        if (strcmp(first->secret_mark, member->secret_mark) == 0)
            continue;
        equal = false;
        const char *what = !member->secret_mark[0]  ? "no cluster secret, unlike"
                           : !first->secret_mark[0] ? "a cluster secret, unlike"
                                                    : "another cluster secret than";
        sayf(d, VERDICT_WARN, member->name,
             "has %s %s: they share no kept prefixes; give both the same --cluster-secret-file",
             what, first->name);
    }
    if (first && first->secret_mark[0] && equal)
        say(d, VERDICT_OK, "cluster secret", "all routers have the same");
}

static const char *const FINE[] = {"ready", "draining"};

static void look_at_view(diagnosis *d, const char *router,
                         const Sluice__V1__ListMembersReply *reply)
{
    const clu_member_info *newest = newest_weights(d);
    uint32_t odd = 0;
    if (!reply->etcd_connected) {
        say(d, VERDICT_FAIL, router, "has lost etcd: it serves on the members it knew");
        odd++;
    }
    if (reply->view_frozen) {
        say(d, VERDICT_FAIL, router, "many members lost their leases at once: look at etcd");
        odd++;
    }
    for (size_t i = 0; i < reply->n_members; i++) {
        const Sluice__V1__Member *member = reply->members[i];
        if (strcmp(member->state, FINE[0]) == 0 || strcmp(member->state, FINE[1]) == 0)
            continue;
        odd++;
        if (strcmp(member->state, "paused") == 0)
            continue; /* it says so itself */
        if (member->stamp && newest &&
            strcmp(member->stamp->weights_version, newest->stamp.weights_version) != 0 &&
            strcmp(member->state, "suspect") == 0)
            continue; /* compare_members tells what it lacks */
        if (strcmp(member->state, "cordoned") == 0)
            sayf(d, VERDICT_WARN, member->name, "is cordoned: sluicectl uncordon %s", member->name);
        else if (strcmp(member->state, "incompatible") == 0)
            sayf(d, VERDICT_FAIL, member->name, "serves another model than %s does", router);
        else
            sayf(d, VERDICT_FAIL, member->name, "%s finds it %s: is it reachable from there?",
                 router, member->state);
    }
    if (odd == 0)
        sayf(d, VERDICT_OK, router, "sees %zu members, all usable", reply->n_members);
}

static void look_at_routers(diagnosis *d)
{
    uint32_t count = 0;
    for (size_t i = 0; i < ctl_session_count(d->session); i++) {
        const clu_member_info *member = ctl_session_member(d->session, i);
        if (ctl_member_is_node(member))
            continue;
        count += d->routers[i].reply != NULL;
        if (d->routers[i].reply)
            look_at_view(d, member->name,
                         (const Sluice__V1__ListMembersReply *)d->routers[i].reply);
        else
            say(d, VERDICT_FAIL, member->name, d->routers[i].err.text);
    }
    if (count == 0)
        say(d, VERDICT_FAIL, "routers", "none answers: clients reach nothing");
    else if (count == 1)
        say(d, VERDICT_WARN, "routers", "one answers: if it fails there is no other");
    else
        sayf(d, VERDICT_OK, "routers", "%u answer", count);
}

/* ---- experts ---- */

static void look_at_instances(diagnosis *d)
{
    ctl_balances balances = ctl_balances_ask(d->session);
    const Sluice__V1__GetBalanceReply *leader = balances.leader;
    for (size_t i = 0; leader && i < leader->n_instances; i++) {
        const Sluice__V1__InstanceBalance *of = leader->instances[i];
        if (of->placement_late > 0)
            sayf(d, VERDICT_WARN, of->instance,
                 "placement %llu is written, but not all ranks use it: their logs say why",
                 (unsigned long long)of->placement_late);
        else if (of->placement_version == 0)
            say(d, VERDICT_WARN, of->instance, of->reason);
        else if (of->advised && strcmp(leader->rebalance, "act") != 0)
            sayf(d, VERDICT_WARN, of->instance,
                 "experts load its ranks unevenly: %s: sluicectl placement apply %s, or settings "
                 "set rebalance act",
                 of->reason, of->instance);
        else
            sayf(d, VERDICT_OK, of->instance, "experts: %s", of->reason);
    }
    ctl_balances_free(&balances);
}

int ctl_doctor(ctl_session *session, const char *const *words)
{
    static const Sluice__V1__ListMembersRequest REQUEST = SLUICE__V1__LIST_MEMBERS_REQUEST__INIT;
    static const Sluice__V1__ExpertsRequest EXPERTS = SLUICE__V1__EXPERTS_REQUEST__INIT;
    ctl_call *nodes = ctl_ask_all_statuses(session);
    ctl_call *routers =
        ctl_ask_all_routers(session, &rpc_method_cluster_list_members, &REQUEST.base);
    ctl_call *experts = ctl_ask_all_nodes(session, &rpc_method_node_get_experts, &EXPERTS.base);
    diagnosis d = {.session = session,
                   .experts = experts,
                   .nodes = nodes,
                   .routers = routers,
                   .json = ctl_session_options(session)->json};
    sl_buf_init(&d.out, 0);
    if (d.json)
        sl_buf_puts(&d.out, "{\"findings\":[");
    ask_etcd(&d);
    look_at_routers(&d);
    compare_secrets(&d);
    look_at_roles(&d);
    compare_members(&d);
    look_at_instances(&d);
    for (size_t i = 0; i < ctl_session_count(session); i++)
        if (ctl_member_is_node(ctl_session_member(session, i)))
            look_at_node(&d, ctl_session_member(session, i), &nodes[i]);
    if (d.json) {
        sl_buf_putc(&d.out, ']');
        ctl_json_number(&d.out, "warnings", d.counts[VERDICT_WARN]);
        ctl_json_number(&d.out, "failures", d.counts[VERDICT_FAIL]);
        ctl_json_bool(&d.out, "ok", d.counts[VERDICT_FAIL] == 0);
        sl_buf_puts(&d.out, "}\n");
    } else {
        sl_buf_printf(&d.out, "%u ok, %u warnings, %u failures\n", d.counts[VERDICT_OK],
                      d.counts[VERDICT_WARN], d.counts[VERDICT_FAIL]);
    }
    ctl_print(&d.out);
    ctl_calls_free(session, nodes);
    ctl_calls_free(session, experts);
    ctl_calls_free(session, routers);
    return d.counts[VERDICT_FAIL] ? CTL_EXIT_FAILURE : CTL_EXIT_OK;
}
