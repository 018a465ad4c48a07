/* `sluicectl weights pause` and `weights resume`: all nodes that are meant at once. A pause is had
 * by all of them or by none: what one cannot do is taken back on the others. */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/rng.h"
#include "cli/commands.h"
#include "proto/sluice/v1/node.pb-c.h"

#define MARGIN_NS  (15 * SL_S_NS)  /* beyond the node's own deadline */
#define DEFAULT_NS (600 * SL_S_NS) /* its --drain-timeout is its own affair */

typedef struct crowd {
    ctl_session *session;
    const clu_member_info **nodes;
    ctl_call *calls;
    size_t count;
    sl_buf out;
    bool json;
} crowd;

/* Those that are named, or all nodes. */
static sl_status gather(crowd *c, ctl_session *session, const char *const *words, sl_err *err)
{
    size_t members = ctl_session_count(session);
    *c = (crowd){.session = session, .json = ctl_session_options(session)->json};
    sl_buf_init(&c->out, 0);
    c->nodes = sl_alloc(members, sizeof(*c->nodes), "sluicectl nodes");
    c->calls = sl_alloc(members, sizeof(*c->calls), "sluicectl calls");
    for (size_t i = 0; words[i]; i++) {
        const clu_member_info *member;
        SL_TRY(ctl_session_find_node(session, words[i], &member, err));
        bool twice = false;
        for (size_t j = 0; j < c->count; j++)
            twice = twice || c->nodes[j] == member;
        if (!twice)
            c->nodes[c->count++] = member;
    }
    for (size_t i = 0; !words[0] && i < members; i++)
        if (ctl_member_is_node(ctl_session_member(session, i)))
            c->nodes[c->count++] = ctl_session_member(session, i);
    return c->count > 0 ? sl_ok() : sl_fail(err, SL_NOT_FOUND, "there is no node");
}

static void crowd_free(crowd *c)
{
    for (size_t i = 0; i < c->count; i++)
        ctl_call_fini(&c->calls[i]);
    sl_free(c->calls);
    sl_free(c->nodes);
}

static void ask(crowd *c, const rpc_method *method, const ProtobufCMessage *request,
                uint64_t timeout_ns)
{
    for (size_t i = 0; i < c->count; i++)
        ctl_call_start_within(c->session, &c->calls[i], c->nodes[i], method, request, timeout_ns);
    ctl_session_wait(c->session);
}

/* How many did not do it; each says why. */
static size_t complain(const crowd *c)
{
    size_t failed = 0;
    for (size_t i = 0; i < c->count; i++) {
        if (c->calls[i].reply)
            continue;
        failed++;
        fprintf(stderr, "sluicectl: %s\n", c->calls[i].err.text); /* names the node */
    }
    return failed;
}

static void open_list(crowd *c)
{
    if (c->json)
        sl_buf_puts(&c->out, "{\"nodes\":[");
}

static int close_list(crowd *c, const char *verdict, bool holds)
{
    if (c->json) {
        sl_buf_putc(&c->out, ']');
        ctl_json_bool(&c->out, verdict, holds);
        ctl_json_bool(&c->out, "dry_run", ctl_session_options(c->session)->dry_run);
        sl_buf_puts(&c->out, "}\n");
    }
    ctl_print(&c->out);
    return holds ? CTL_EXIT_OK : CTL_EXIT_FAILURE;
}

/* ---- what would be done ---- */

static int plan(crowd *c, const char *verdict, const char *what)
{
    static const Sluice__V1__NodeStatusRequest REQUEST = SLUICE__V1__NODE_STATUS_REQUEST__INIT;
    ask(c, &rpc_method_node_get_status, &REQUEST.base,
        ctl_session_options(c->session)->call_timeout_ns);
    open_list(c);
    for (size_t i = 0; i < c->count; i++) {
        const Sluice__V1__NodeStatus *status = (const Sluice__V1__NodeStatus *)c->calls[i].reply;
        if (!status)
            continue;
        uint32_t requests = status->load ? status->load->running + status->load->waiting : 0;
        if (!c->json) {
            sl_buf_printf(&c->out, "would %s %s, which is %s: %u requests\n", what, status->name,
                          status->state, requests);
            continue;
        }
        ctl_json_open(&c->out, NULL, '{');
        ctl_json_text(&c->out, "node", status->name);
        ctl_json_text(&c->out, "state", status->state);
        ctl_json_number(&c->out, "requests", requests);
        sl_buf_putc(&c->out, '}');
    }
    return close_list(c, verdict, complain(c) == 0);
}

/* ---- pause ---- */

static void tell_pause(crowd *c, const char *node, const Sluice__V1__PauseReply *reply)
{
    if (!c->json) {
        sl_buf_printf(&c->out, "%-20s %s, with %u requests of version %s, for at most %.1f s\n",
                      node, reply->changed ? "is paused" : "was paused already", reply->requests,
                      reply->stamp->weights_version, (double)reply->hold_ms / 1e3);
        return;
    }
    ctl_json_open(&c->out, NULL, '{');
    ctl_json_text(&c->out, "node", node);
    ctl_json_bool(&c->out, "changed", reply->changed);
    ctl_json_number(&c->out, "requests", reply->requests);
    ctl_json_number(&c->out, "wait_us", reply->wait_us);
    ctl_json_number(&c->out, "hold_ms", reply->hold_ms);
    ctl_json_text(&c->out, "weights_version", reply->stamp->weights_version);
    sl_buf_putc(&c->out, '}');
}

static void tell_taken_back(const crowd *undone, const bool *had, uint32_t hold_ms)
{
    bool go_on = false;
    for (size_t i = 0; i < undone->count; i++) {
        const char *name = undone->nodes[i]->name;
        const Sluice__V1__EndPauseReply *reply =
            (const Sluice__V1__EndPauseReply *)undone->calls[i].reply;
        if (reply)
            go_on = go_on || (had[i] && reply->changed);
        if (reply && had[i] && !reply->changed)
            fprintf(stderr, "sluicectl: %s: a pause that others asked for stands\n", name);
        if (!reply && had[i])
            fprintf(stderr,
                    "sluicectl: %s\nsluicectl: %s stays paused: for %.1f s, or until weights "
                    "resume %s\n",
                    undone->calls[i].err.text, name, (double)hold_ms / 1e3, name);
    }
    if (go_on)
        fprintf(stderr, "sluicectl: the others go on\n");
}

/* Those that this command has paused go on, unless others want it too. One that did not answer may
 * have paused, and ends that in time by itself. */
static void take_back(crowd *c, const Sluice__V1__PauseRequest *asked)
{
    Sluice__V1__EndPauseRequest request = SLUICE__V1__END_PAUSE_REQUEST__INIT;
    request.claim = asked->claim;
    bool *had = sl_alloc(c->count, sizeof(*had), "sluicectl nodes");
    crowd undone = {.session = c->session};
    undone.nodes = sl_alloc(c->count, sizeof(*undone.nodes), "sluicectl nodes");
    undone.calls = sl_alloc(c->count, sizeof(*undone.calls), "sluicectl calls");
    for (size_t i = 0; i < c->count; i++) {
        bool silent = c->calls[i].err.code == SL_DEADLINE || c->calls[i].err.code == SL_UNAVAILABLE;
        if (!c->calls[i].reply && !silent)
            continue;
        had[undone.count] = c->calls[i].reply != NULL;
        undone.nodes[undone.count++] = c->nodes[i];
    }
    ask(&undone, &rpc_method_node_end_pause, &request.base,
        ctl_session_options(c->session)->call_timeout_ns);
    tell_taken_back(&undone, had, asked->hold_ms);
    crowd_free(&undone);
    sl_free(had);
}

static int pause_all(crowd *c)
{
    const ctl_options *options = ctl_session_options(c->session);
    Sluice__V1__PauseRequest request = SLUICE__V1__PAUSE_REQUEST__INIT;
    request.wait = options->mode == CTL_MODE_WAIT;
    request.wait_ms = (uint32_t)(options->timeout_ns / SL_MS_NS);
    request.hold_ms = (uint32_t)(options->for_ns / SL_MS_NS);
    request.claim = sl_random_u64() | 1; /* never 0 */
    if (options->dry_run)
        return plan(c, "paused", request.wait ? "wait for the requests of, then pause," : "pause");
    ask(c, &rpc_method_node_pause, &request.base,
        options->timeout_ns ? options->timeout_ns + MARGIN_NS : DEFAULT_NS);
    bool all = complain(c) == 0;
    open_list(c);
    for (size_t i = 0; all && i < c->count; i++)
        tell_pause(c, c->nodes[i]->name, (const Sluice__V1__PauseReply *)c->calls[i].reply);
    if (!all)
        take_back(c, &request);
    return close_list(c, "paused", all);
}

int ctl_weights_pause(ctl_session *session, const char *const *words)
{
    crowd c;
    sl_err err;
    int code = sl_is_ok(gather(&c, session, words, &err)) ? pause_all(&c) : ctl_fail(&err);
    crowd_free(&c);
    return code;
}

/* ---- resume ---- */

static void tell_resume(crowd *c, const char *node, const Sluice__V1__EndPauseReply *reply)
{
    if (!c->json && !reply->changed) {
        sl_buf_printf(&c->out, "%-20s was not paused (any more)\n", node);
    } else if (!c->json) {
        sl_buf_printf(&c->out, "%-20s goes on with %u requests, after %.1f s, version %s\n", node,
                      reply->requests, (double)reply->pause_us / 1e6,
                      reply->stamp->weights_version);
    } else {
        ctl_json_open(&c->out, NULL, '{');
        ctl_json_text(&c->out, "node", node);
        ctl_json_bool(&c->out, "changed", reply->changed);
        ctl_json_number(&c->out, "requests", reply->requests);
        ctl_json_number(&c->out, "pause_us", reply->pause_us);
        ctl_json_text(&c->out, "weights_version", reply->stamp->weights_version);
        sl_buf_putc(&c->out, '}');
    }
}

static int resume_all(crowd *c)
{
    static const Sluice__V1__EndPauseRequest REQUEST = SLUICE__V1__END_PAUSE_REQUEST__INIT;
    const ctl_options *options = ctl_session_options(c->session);
    if (options->dry_run)
        return plan(c, "resumed", "resume");
    ask(c, &rpc_method_node_end_pause, &REQUEST.base, options->call_timeout_ns);
    open_list(c);
    for (size_t i = 0; i < c->count; i++)
        if (c->calls[i].reply)
            tell_resume(c, c->nodes[i]->name, (const Sluice__V1__EndPauseReply *)c->calls[i].reply);
    return close_list(c, "resumed", complain(c) == 0);
}

int ctl_weights_resume(ctl_session *session, const char *const *words)
{
    crowd c;
    sl_err err;
    int code = sl_is_ok(gather(&c, session, words, &err)) ? resume_all(&c) : ctl_fail(&err);
    crowd_free(&c);
    return code;
}
