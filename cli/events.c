/* `sluicectl events`: what a router saw of late, and the audit. */
#include <stdio.h>
#include <time.h>

#include "cli/commands.h"
#include "proto/sluice/v1/cluster.pb-c.h"

/* UTC, as in the logs. */
static void time_text(uint64_t time_us, char *out_text, size_t size)
{
    time_t seconds = (time_t)(time_us / 1000000);
    struct tm tm;
    char day[32] = "?";
    if (gmtime_r(&seconds, &tm))
        strftime(day, sizeof(day), "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(out_text, size, "%s.%03uZ", day, (unsigned)(time_us / 1000 % 1000));
}

int ctl_events(ctl_session *session, const char *const *words)
{
    const ctl_options *options = ctl_session_options(session);
    Sluice__V1__ListEventsRequest request = SLUICE__V1__LIST_EVENTS_REQUEST__INIT;
    ctl_call call;
    sl_err err;
    sl_buf out;
    request.limit = (uint32_t)options->limit;
    if (!sl_is_ok(
            ctl_ask_router(session, &rpc_method_cluster_list_events, &request.base, &call, &err))) {
        ctl_call_fini(&call);
        return ctl_fail(&err);
    }
    const Sluice__V1__ListEventsReply *reply = (const Sluice__V1__ListEventsReply *)call.reply;
    sl_buf_init(&out, 0);
    if (options->json)
        sl_buf_puts(&out, "{\"events\":[");
    for (size_t i = 0; i < reply->n_events; i++) {
        const Sluice__V1__Event *at = reply->events[i];
        char when[64];
        time_text(at->time_us, when, sizeof(when));
        if (options->json) {
            ctl_json_open(&out, NULL, '{');
            ctl_json_text(&out, "time", when);
            ctl_json_text(&out, "kind", at->kind);
            ctl_json_text(&out, "subject", at->subject);
            ctl_json_text(&out, "text", at->text);
            ctl_json_text(&out, "actor", at->actor);
            sl_buf_putc(&out, '}');
        } else {
            sl_buf_printf(&out, "%s %-14s %-16s %s%s%s%s\n", when, at->kind,
                          *at->subject ? at->subject : "-", at->text, *at->actor ? " (by " : "",
                          at->actor, *at->actor ? ")" : "");
        }
    }
    if (options->json) {
        sl_buf_putc(&out, ']');
        ctl_json_text(&out, "router", reply->router);
        sl_buf_puts(&out, "}\n");
    }
    ctl_print(&out);
    ctl_call_fini(&call);
    return CTL_EXIT_OK;
}
