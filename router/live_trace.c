/* What is remembered of a request: what came of each step of its machine, and why it went where it
 * went. Thread: the loop's. */
#include "router/front_internal.h"

#include "router/live_list.h"

/* The other events are told by what follows from them. */
void rtr_live_note_event(rtr_live *live, const rtr_event *event)
{
    sl_trace *trace = live->front->trace;
    switch (event->kind) {
    case RTR_EVENT_UNPLACED:
        if (event->lack != live->core.lack)
            sl_trace_note(trace, live->id, "waits", "%s", rtr_lack_name(event->lack));
        break;
    case RTR_EVENT_ADMITTED:
        sl_trace_note(trace, live->id, "granted", "by %s, epoch %u", live->decode_name,
                      event->epoch);
        break;
    case RTR_EVENT_REFUSED:
        sl_trace_note(trace, live->id, "refused", "by %s: %s", live->decode_name,
                      event->text ? event->text : "");
        break;
    case RTR_EVENT_PREFILL_FAILED:
        sl_trace_note(trace, live->id, "prefill failed", "on %s: %s", live->prefill_name,
                      event->text ? event->text : "");
        break;
    case RTR_EVENT_DECODE_BROKEN:
    case RTR_EVENT_DECODE_BACK:
    case RTR_EVENT_DECODE_LOST:
        sl_trace_note(trace, live->id,
                      event->kind == RTR_EVENT_DECODE_BROKEN ? "stream broke"
                      : event->kind == RTR_EVENT_DECODE_BACK ? "stream is back"
                                                             : "node lost",
                      "%s", live->decode_name);
        break;
    case RTR_EVENT_CLIENT_GONE:
        sl_trace_note(trace, live->id, "client gone", "after %u tokens", live->token_count);
        break;
    default:
        break;
    }
}

void rtr_live_note_action(rtr_live *live, const rtr_action *action)
{
    sl_trace *trace = live->front->trace;
    switch (action->kind) {
    case RTR_ACTION_ADMIT:
        sl_trace_note(trace, live->id, "placed", "decode %s, prefill %s, epoch %u",
                      live->decode_name, live->prefill_name, action->epoch);
        break;
    case RTR_ACTION_RUN_PREFILL:
        sl_trace_note(trace, live->id, "prefill asked", "of %s, epoch %u", live->prefill_name,
                      action->epoch);
        break;
    case RTR_ACTION_DELIVER:
        if (live->token_count == action->count) /* the first of all */
            sl_trace_note(
                trace, live->id, "first token", "%u ms after the request came",
                (unsigned)((sl_loop_now(live->front->loop) - live->arrived_at) / SL_MS_NS));
        break;
    case RTR_ACTION_MIGRATED:
        sl_trace_note(trace, live->id, "goes on", "at token %u on %s (%s)", live->token_count,
                      live->decode_name, action->text);
        break;
    case RTR_ACTION_FINISH:
        sl_trace_note(trace, live->id, "done", "%u tokens, %u ms after the request came",
                      live->token_count,
                      (unsigned)((sl_loop_now(live->front->loop) - live->arrived_at) / SL_MS_NS));
        break;
    case RTR_ACTION_FAIL:
        sl_trace_note(trace, live->id, "failed", "%s: %s", sl_code_name(action->code),
                      action->text);
        break;
    default:
        break;
    }
}

static void on_candidate(void *context, const rtr_node_candidate *at)
{
    const rtr_live *live = context;
    sl_trace *choices = live->front->choices;
    if (at->is_decode)
        sl_trace_note(choices, live->id, "decode", "%s: %s; %u run there, %u of %u pages free",
                      at->name, at->verdict, at->running, at->pages_free, at->pages);
    else
        sl_trace_note(choices, live->id, "prefill", "%s: %s; %llu tokens are queued there",
                      at->name, at->verdict, (unsigned long long)at->queued_tokens);
}

void rtr_live_note_choice(rtr_live *live, const rtr_place_result *place)
{
    uint32_t tokens = (uint32_t)live->request->prompt.count + live->token_count;
    uint32_t pages = rtr_live_pages(live);
    if (place->lack != RTR_LACK_NONE && place->lack == live->core.lack)
        return; /* told before */
    sl_trace_note(live->front->choices, live->id, "wants", "%u pages; %u tokens to compute", pages,
                  tokens);
    rtr_nodes_explain(live->front->nodes, &live->core, pages, tokens, place, on_candidate, live);
}

/* ---- for operators ---- */

uint32_t rtr_front_trace(const rtr_front *front, bool choices, const char *id,
                         void (*fn)(void *context, const sl_trace_event *event), void *context)
{
    return sl_trace_find(choices ? front->choices : front->trace, id, fn, context);
}

uint64_t rtr_front_trace_since_us(const rtr_front *front)
{
    return sl_trace_since_us(front->trace);
}
