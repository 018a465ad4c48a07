/* See live_list.h. */
#include "router/live_list.h"

#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "router/front_internal.h"

static const char *kind_of(rtr_api_kind kind)
{
    static const char *const NAMES[] = {"chat", "completion", "tokenize", "detokenize"};
    return NAMES[kind];
}

static void fill_row(const rtr_live *lead, rtr_request_row *out)
{
    sl_time_ns now = sl_loop_now(lead->front->loop);
    memset(out, 0, sizeof *out);
    snprintf(out->id, sizeof out->id, "%s", lead->id);
    out->kind = kind_of(lead->kind);
    out->state = lead->started ? rtr_state_name(lead->core.state) : "encoding";
    out->age_ms = now > lead->arrived_at ? (now - lead->arrived_at) / SL_MS_NS : 0;
    out->choices = 1;
    if (!lead->started)
        return;
    out->prompt_tokens = (uint32_t)lead->request->prompt.count;
    out->max_tokens = lead->limits.max_tokens;
    out->choices = lead->request->choice_count;
    out->priority = lead->request->priority;
    out->generated_tokens = lead->token_count;
    for (const rtr_live *live = lead->followers; live; live = live->follower_next)
        out->generated_tokens += live->token_count;
    if (lead->core.decode)
        snprintf(out->decode, sizeof out->decode, "%s", lead->decode_name);
    if (lead->core.decode)
        snprintf(out->prefill, sizeof out->prefill, "%s", lead->prefill_name);
}

/* Its client still waits for (more of) the answer. */
static bool waits(const rtr_live *live)
{
    return live->lead == live && live->exchange;
}

uint32_t rtr_front_list(const rtr_front *front, rtr_request_row *rows, uint32_t max)
{
    uint32_t count = 0;
    for (const rtr_live *live = front->lives; live; live = live->next) {
        if (!waits(live))
            continue;
        if (count < max)
            fill_row(live, &rows[count]);
        count++;
    }
    return count;
}

bool rtr_front_cancel(rtr_front *front, const char *id, const char *text, rtr_request_row *out_row)
{
    rtr_live *live = rtr_live_find(front, id);
    if (!live || !waits(live->lead))
        return false;
    live = live->lead;
    fill_row(live, out_row);
    sl_info("request %s: %s", live->id, text);
    rtr_api_error_set(&live->error, SL_CANCELLED, text);
    rtr_live_fail(live, &live->error);
    rtr_live_settle(live); /* without a client it ends by itself, on its nodes too */
    return true;
}
