/* `sluicectl weights reload`: node by node, prefill and decode in turn, so that as many as possible
 * find a partner of their version meanwhile. All are asked first, so that none changes if one would
 * refuse. What fails later ends it: the others keep what they have. In place: all at once, since
 * they are of use to each other again when all have it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "cli/commands.h"
#include "proto/sluice/v1/cluster.pb-c.h"
#include "proto/sluice/v1/node.pb-c.h"
#include "rpc/methods.h"

#define RELOAD_NS     (1800 * SL_S_NS)
#define WEIGHTS_PAUSE (60 * SL_S_NS) /* the node's own bound on requests that must end first */

typedef struct rollout {
    ctl_session *session;
    const clu_member_info **order;
    size_t count;
    uint32_t version;
    sl_buf out;
    bool json;
} rollout;

static bool wanted(const clu_member_info *member, const char *const *words)
{
    if (!ctl_member_is_node(member))
        return false;
    for (size_t i = 0; words[i]; i++)
        if (strcmp(words[i], member->name) == 0)
            return true;
    return words[0] == NULL;
}

/* The next of a role (or of any other) from index on. */
static size_t next_of(const rollout *r, const char *const *words, bool prefill, size_t index)
{
    for (; index < ctl_session_count(r->session); index++) {
        const clu_member_info *member = ctl_session_member(r->session, index);
        if (wanted(member, words) && (strcmp(member->role, "prefill") == 0) == prefill)
            break;
    }
    return index;
}

static void order_nodes(rollout *r, const char *const *words)
{
    size_t members = ctl_session_count(r->session);
    r->order = sl_alloc(members, sizeof(*r->order), "sluicectl order");
    size_t p = next_of(r, words, true, 0), d = next_of(r, words, false, 0);
    while (p < members || d < members) {
        if (p < members)
            r->order[r->count++] = ctl_session_member(r->session, p);
        if (d < members)
            r->order[r->count++] = ctl_session_member(r->session, d);
        p = p < members ? next_of(r, words, true, p + 1) : p;
        d = d < members ? next_of(r, words, false, d + 1) : d;
    }
}

/* Of all nodes, not only of those that are reloaded: a version means the same everywhere. */
static uint32_t highest_version(const ctl_session *session)
{
    uint32_t highest = 0;
    for (size_t i = 0; i < ctl_session_count(session); i++) {
        uint32_t version = clu_stamp_weights(&ctl_session_member(session, i)->stamp);
        highest = version > highest ? version : highest;
    }
    return highest;
}

static void tell(rollout *r, const clu_member_info *member,
                 const Sluice__V1__ReloadWeightsReply *reply)
{
    if (!r->json) {
        if (reply)
            sl_buf_printf(&r->out,
                          "%-20s version %s serves: loaded in %.1f s, waited %.1f s for requests, "
                          "%u go on\n",
                          member->name, reply->stamp->weights_version, (double)reply->load_us / 1e6,
                          (double)reply->wait_us / 1e6, reply->requests);
        else
            sl_buf_printf(&r->out, "%-20s version %u would become %u\n", member->name,
                          clu_stamp_weights(&member->stamp), r->version);
        return;
    }
    ctl_json_open(&r->out, NULL, '{');
    ctl_json_text(&r->out, "node", member->name);
    ctl_json_number(&r->out, "before", clu_stamp_weights(&member->stamp));
    ctl_json_number(&r->out, "after", r->version);
    if (reply) {
        ctl_json_number(&r->out, "load_us", reply->load_us);
        ctl_json_number(&r->out, "wait_us", reply->wait_us);
        ctl_json_number(&r->out, "requests", reply->requests);
    }
    sl_buf_putc(&r->out, '}');
}

/* What a node would refuse for what it is now. */
static sl_status ask_first(const rollout *r, const clu_member_info *member, const ctl_call *status,
                           const ctl_call *experts, sl_err *err)
{
    const Sluice__V1__NodeStatus *is = (const Sluice__V1__NodeStatus *)status->reply;
    bool in_place = ctl_session_options(r->session)->in_place;
    uint32_t version = clu_stamp_weights(&member->stamp);
    if (!is)
        return sl_fail(err, status->err.code, "%s", status->err.text); /* names the node */
    bool paused = strcmp(is->state, "paused") == 0 || strcmp(is->state, "pausing") == 0;
    uint32_t live = is->load ? is->load->running + is->load->waiting : 0;
    if (version >= r->version)
        return sl_fail(err, SL_INVALID, "%s: has weights of version %u: a higher one is needed",
                       member->name, version);
    if (experts->reply && !in_place)
        return sl_fail(err, SL_UNSUPPORTED,
                       "%s: one rank of several: in place only (--in-place), all ranks at once",
                       member->name);
    if (paused && !in_place && live > 0)
        return sl_fail(err, SL_CONFLICT,
                       "%s: the node is paused with %u requests, which do not end: reload in "
                       "place, or resume it first",
                       member->name, live);
    if (!paused && strcmp(is->state, "ready") != 0)
        return sl_fail(err, SL_CONFLICT, "%s: the node is %s", member->name, is->state);
    return sl_ok();
}

static size_t member_index(const rollout *r, const clu_member_info *member)
{
    size_t i = 0;
    while (ctl_session_member(r->session, i) != member)
        i++;
    return i;
}

/* All that would refuse say so, before any changes. */
static bool all_would(rollout *r)
{
    static const Sluice__V1__ExpertsRequest EXPERTS = SLUICE__V1__EXPERTS_REQUEST__INIT;
    ctl_call *statuses = ctl_ask_all_statuses(r->session);
    ctl_call *experts = ctl_ask_all_nodes(r->session, &rpc_method_node_get_experts, &EXPERTS.base);
    size_t would = 0;
    for (size_t i = 0; i < r->count; i++) {
        size_t at = member_index(r, r->order[i]);
        sl_err err;
        if (sl_is_ok(ask_first(r, r->order[i], &statuses[at], &experts[at], &err)))
            would++;
        else
            fprintf(stderr, "sluicectl: %s\n", err.text);
    }
    ctl_calls_free(r->session, statuses);
    ctl_calls_free(r->session, experts);
    if (would < r->count)
        fprintf(stderr, "%zu of %zu nodes would refuse version %u: none was changed\n",
                r->count - would, r->count, r->version);
    return would == r->count;
}

/* The nodes [from, from + count) at once; those that did it come first in the order afterwards.
 * Returns how many; the others say why. */
static size_t reload(rollout *r, size_t from, size_t count)
{
    const ctl_options *options = ctl_session_options(r->session);
    uint64_t timeout_ns = options->timeout_ns ? options->timeout_ns : RELOAD_NS;
    Sluice__V1__ReloadWeightsRequest request = SLUICE__V1__RELOAD_WEIGHTS_REQUEST__INIT;
    ctl_call *calls = sl_alloc(count, sizeof(*calls), "sluicectl calls");
    size_t done = 0;
    request.model = (char *)options->model;
    request.weights_version = r->version;
    request.deadline_ms = (uint32_t)(WEIGHTS_PAUSE / SL_MS_NS);
    request.in_place = options->in_place;
    for (size_t i = 0; i < count; i++) {
        fprintf(stderr, "%s: reloading\n", r->order[from + i]->name);
        ctl_call_start_within(r->session, &calls[i], r->order[from + i],
                              &rpc_method_node_reload_weights, &request.base, timeout_ns);
    }
    ctl_session_wait(r->session);
    for (size_t i = 0; i < count; i++) {
        const clu_member_info *member = r->order[from + i];
        if (calls[i].reply) {
            tell(r, member, (const Sluice__V1__ReloadWeightsReply *)calls[i].reply);
            r->order[from + i] = r->order[from + done];
            r->order[from + done++] = member;
        } else {
            fprintf(stderr, "sluicectl: %s\n", calls[i].err.text);
        }
        ctl_call_fini(&calls[i]);
    }
    sl_free(calls);
    return done;
}

static int roll(rollout *r)
{
    const ctl_options *options = ctl_session_options(r->session);
    bool dry = options->dry_run, all = true;
    size_t done = 0, step = options->in_place ? r->count : 1;
    if (!dry && !all_would(r))
        return CTL_EXIT_FAILURE;
    sl_buf_init(&r->out, 0);
    if (r->json)
        sl_buf_puts(&r->out, "{\"nodes\":[");
    for (size_t i = 0; dry && i < r->count; i++)
        tell(r, r->order[i], NULL);
    while (!dry && all && done < r->count) {
        size_t went = reload(r, done, step);
        all = went == step;
        done += went;
    }
    done = dry ? r->count : done;
    if (r->json) {
        sl_buf_putc(&r->out, ']');
        ctl_json_number(&r->out, "version", r->version);
        ctl_json_bool(&r->out, "dry_run", dry);
        ctl_json_number(&r->out, "left", r->count - done);
        sl_buf_puts(&r->out, "}\n");
    }
    ctl_print(&r->out);
    if (all)
        return CTL_EXIT_OK;
    fprintf(stderr,
            "%zu of %zu nodes have version %u; the others keep theirs: say it again with "
            "--weights-version %u for",
            done, r->count, r->version, r->version);
    for (size_t i = done; i < r->count; i++) /* a node that has the version would refuse it */
        fprintf(stderr, " %s", r->order[i]->name);
    fprintf(stderr, "\n");
    return CTL_EXIT_FAILURE;
}

/* A node that is started again with older weights shall answer nothing by them. */
static int raise_minimum(const rollout *r)
{
    char value[16];
    Sluice__V1__SetSettingRequest request = SLUICE__V1__SET_SETTING_REQUEST__INIT;
    ctl_call call;
    sl_err err;
    snprintf(value, sizeof(value), "%u", r->version);
    request.name = (char *)"weights-min";
    request.value = value;
    sl_status status =
        ctl_ask_router(r->session, &rpc_method_cluster_set_setting, &request.base, &call, &err);
    ctl_call_fini(&call);
    if (sl_is_ok(status) || status.code == SL_NOT_FOUND) /* no router */
        return CTL_EXIT_OK;
    fprintf(stderr,
            "sluicectl: all nodes have version %u, but routers do not refuse older ones: %s\nsay "
            "settings set weights-min %u\n",
            r->version, err.text, r->version);
    return CTL_EXIT_FAILURE;
}

int ctl_weights_reload(ctl_session *session, const char *const *words)
{
    const ctl_options *options = ctl_session_options(session);
    rollout r = {.session = session, .json = options->json};
    const clu_member_info *member;
    sl_err err;
    if (!options->model || !options->model[0]) {
        fprintf(stderr, "sluicectl: weights reload needs --model DIR, as the nodes find it\n");
        return CTL_EXIT_MISUSE;
    }
    for (size_t i = 0; words[i]; i++)
        if (!sl_is_ok(ctl_session_find_node(session, words[i], &member, &err)))
            return ctl_fail(&err);
    r.version = options->weights_version ? (uint32_t)options->weights_version
                                         : highest_version(session) + 1;
    order_nodes(&r, words);
    int code = roll(&r);
    if (code == CTL_EXIT_OK && !options->dry_run && !words[0])
        code = raise_minimum(&r);
    sl_free(r.order);
    return code;
}
