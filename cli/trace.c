/* `sluicectl trace` and `explain`: what all processes remember of a request, put together by time.
 * Each goes by its own clock: between machines the order is as good as those agree. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/alloc.h"
#include "cli/commands.h"
#include "proto/sluice/v1/cluster.pb-c.h"
#include "proto/sluice/v1/node.pb-c.h"

typedef struct line {
    const Sluice__V1__TraceEvent *event;
    const char *who;
    size_t order; /* among those of one process */
} line;

typedef struct story {
    ctl_session *session;
    ctl_call *routers, *nodes; /* nodes: NULL, they are not asked */
    line *lines;
    size_t count;
    size_t silent;
    uint64_t since_us; /* of the router that forgets soonest; 0: none forgets */
} story;

static void add(story *s, const char *who, Sluice__V1__TraceEvent **events, size_t count)
{
    s->lines = sl_realloc(s->lines, s->count + count, sizeof(*s->lines), "sluicectl trace");
    for (size_t i = 0; i < count; i++) {
        s->lines[s->count] = (line){events[i], who, s->count};
        s->count++;
    }
}

static int by_time(const void *a, const void *b)
{
    const line *x = a, *y = b;
    if (x->event->time_us != y->event->time_us)
        return x->event->time_us < y->event->time_us ? -1 : 1;
    return x->order < y->order ? -1 : x->order > y->order;
}

/* What one process says; why: only why nodes were chosen. */
static void take(story *s, const ctl_call *call, bool why)
{
    const Sluice__V1__TraceReply *reply = (const Sluice__V1__TraceReply *)call->reply;
    if (!reply) {
        fprintf(stderr, "sluicectl: %s\n", call->err.text);
        s->silent++;
        return;
    }
    if (why)
        add(s, reply->name, reply->choices, reply->n_choices);
    else
        add(s, reply->name, reply->events, reply->n_events);
    if (!ctl_member_is_node(call->member) && reply->since_us > s->since_us)
        s->since_us = reply->since_us;
}

static void ask(story *s, ctl_session *session, const char *id, bool why)
{
    Sluice__V1__TraceRequest request = SLUICE__V1__TRACE_REQUEST__INIT;
    request.id = (char *)id;
    *s = (story){.session = session};
    s->routers = ctl_ask_all_routers(session, &rpc_method_cluster_trace, &request.base);
    if (!why)
        s->nodes = ctl_ask_all_nodes(session, &rpc_method_node_trace, &request.base);
    for (size_t i = 0; i < ctl_session_count(session); i++) {
        if (!ctl_member_is_node(ctl_session_member(session, i)))
            take(s, &s->routers[i], why);
        else if (s->nodes)
            take(s, &s->nodes[i], why);
    }
    if (s->count > 0)
        qsort(s->lines, s->count, sizeof(*s->lines), by_time);
}

static void time_text(uint64_t time_us, char *out, size_t size)
{
    time_t seconds = (time_t)(time_us / 1000000);
    struct tm parts;
    gmtime_r(&seconds, &parts);
    size_t at = strftime(out, size, "%Y-%m-%dT%H:%M:%S", &parts);
    snprintf(out + at, size - at, ".%03uZ", (unsigned)(time_us / 1000 % 1000));
}

static void write_line(sl_buf *out, const line *at)
{
    ctl_json_open(out, NULL, '{');
    ctl_json_number(out, "time_us", at->event->time_us);
    ctl_json_text(out, "process", at->who);
    ctl_json_text(out, "id", at->event->id);
    ctl_json_text(out, "what", at->event->what);
    ctl_json_text(out, "text", at->event->text);
    sl_buf_putc(out, '}');
}

static void print_lines(sl_buf *out, const story *s, const char *id)
{
    char begin[48];
    uint64_t first = s->lines[0].event->time_us;
    time_text(first, begin, sizeof(begin));
    sl_buf_printf(out, "%s, milliseconds since %s\n", id, begin);
    for (size_t i = 0; i < s->count; i++) {
        const Sluice__V1__TraceEvent *event = s->lines[i].event;
        const char *choice = event->id + strlen(id); /* "" or "-N" */
        sl_buf_printf(out, "%10.1f  %-14s %-14s %s%s%s\n", (double)(event->time_us - first) / 1e3,
                      s->lines[i].who, event->what, event->text, *choice ? "  choice " : "",
                      *choice ? choice + 1 : "");
    }
}

static int forgotten(const story *s, const char *id)
{
    char since[48];
    sl_err err;
    if (s->silent > 0) {
        (void)sl_fail(&err, SL_NOT_FOUND, "nobody who answered knows a request %s", id);
    } else if (s->since_us == 0) {
        (void)sl_fail(&err, SL_NOT_FOUND, "nobody knows a request %s, and nobody has forgotten any",
                      id);
    } else {
        time_text(s->since_us, since, sizeof(since));
        (void)sl_fail(&err, SL_NOT_FOUND,
                      "nobody remembers a request %s: routers have forgotten what was before %s",
                      id, since);
    }
    return ctl_fail(&err);
}

static int tell(story *s, const char *id)
{
    bool json = ctl_session_options(s->session)->json, found = s->count > 0;
    sl_buf out;
    sl_buf_init(&out, 0);
    if (json) {
        ctl_json_open(&out, NULL, '{');
        ctl_json_text(&out, "id", id);
        ctl_json_open(&out, "events", '[');
        for (size_t i = 0; i < s->count; i++)
            write_line(&out, &s->lines[i]);
        sl_buf_putc(&out, ']');
        ctl_json_number(&out, "unanswered", s->silent);
        ctl_json_number(&out, "since_us", s->since_us);
        sl_buf_puts(&out, "}\n");
    } else if (found) {
        print_lines(&out, s, id);
    }
    ctl_print(&out);
    int code = !found ? forgotten(s, id) : s->silent > 0 ? CTL_EXIT_FAILURE : CTL_EXIT_OK;
    ctl_calls_free(s->session, s->routers);
    if (s->nodes)
        ctl_calls_free(s->session, s->nodes);
    sl_free(s->lines);
    return code;
}

int ctl_trace(ctl_session *session, const char *const *words)
{
    const char *id = ctl_request_id(words[0]);
    story s;
    ask(&s, session, id, false);
    return tell(&s, id);
}

int ctl_explain(ctl_session *session, const char *const *words)
{
    const char *id = ctl_request_id(words[0]);
    story s;
    ask(&s, session, id, true);
    return tell(&s, id);
}
