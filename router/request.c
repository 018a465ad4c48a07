/* The request state machine: one handler an event, one place that changes the state. Pure. */
#include "router/request.h"

#include "base/assert.h"

#include <stdio.h>
#include <string.h>

#define PREFILLS_LOST_MAX 2u /* for one decode node, in a row */

static const char *const STATE_NAMES[RTR_STATE_COUNT] = {
    [RTR_STATE_QUEUED] = "queued",
    [RTR_STATE_ADMITTING] = "admitting",
    [RTR_STATE_PREFILLING] = "prefilling",
    [RTR_STATE_DECODING] = "decoding",
    [RTR_STATE_DONE] = "done",
    [RTR_STATE_FAILED] = "failed",
};

#define TO(state)        (1u << (state))
#define WEIGHTS_REPLACED "weights_replaced" /* reason of a migration */

/* Which states may follow which. DECODING follows ADMITTING when a rank that was asked again turns
 * out to run already; DONE follows QUEUED when a lost rank had sent every token but not the end. */
static const uint32_t LEGAL[RTR_STATE_COUNT] = {
    [RTR_STATE_QUEUED] = TO(RTR_STATE_ADMITTING) | TO(RTR_STATE_DECODING) | TO(RTR_STATE_DONE) |
                         TO(RTR_STATE_FAILED),
    [RTR_STATE_ADMITTING] = TO(RTR_STATE_QUEUED) | TO(RTR_STATE_PREFILLING) |
                            TO(RTR_STATE_DECODING) | TO(RTR_STATE_FAILED),
    [RTR_STATE_PREFILLING] = TO(RTR_STATE_QUEUED) | TO(RTR_STATE_DECODING) | TO(RTR_STATE_FAILED),
    [RTR_STATE_DECODING] = TO(RTR_STATE_QUEUED) | TO(RTR_STATE_DONE) | TO(RTR_STATE_FAILED),
    [RTR_STATE_DONE] = 0,
    [RTR_STATE_FAILED] = 0,
};

const char *rtr_state_name(rtr_state state)
{
    return state < RTR_STATE_COUNT ? STATE_NAMES[state] : "?";
}

const char *rtr_lack_name(rtr_lack lack)
{
    static const char *const NAMES[] = {
        [RTR_LACK_NONE] = "for nothing",
        [RTR_LACK_DECODE] = "no decode node can be used",
        [RTR_LACK_PREFILL] = "no prefill node that matches can be used",
        [RTR_LACK_PAUSED] = "the nodes are paused",
        [RTR_LACK_ROOM] = "the nodes are full",
        [RTR_LACK_BUDGET] = "others are computed again first",
        [RTR_LACK_SIZE] = "it is larger than the cache of any node",
    };
    return NAMES[lack];
}

bool rtr_state_legal(rtr_state from, rtr_state to)
{
    return from < RTR_STATE_COUNT && to < RTR_STATE_COUNT && (LEGAL[from] & TO(to)) != 0;
}

static void request_set_state(rtr_request *r, rtr_state state, sl_time_ns deadline)
{
    sl_assert(rtr_state_legal(r->state, state));
    r->state = state;
    r->deadline = deadline;
}

static rtr_action *act(rtr_actions *out, rtr_action_kind kind)
{
    sl_assert(out->count < RTR_ACTIONS_MAX);
    rtr_action *action = &out->at[out->count++];
    memset(action, 0, sizeof *action);
    action->kind = kind;
    return action;
}

static void actions_clear(rtr_actions *out)
{
    out->count = 0;
    out->blame = (rtr_blame){0};
}

static sl_time_ns after(sl_time_ns now, sl_time_ns span)
{
    return span > SL_NEVER - now ? SL_NEVER : now + span;
}

/* Codes that say something about the request, so that no other node would do better. */
static bool is_request_fault(sl_code code)
{
    return code == SL_INVALID || code == SL_TOO_LARGE || code == SL_UNSUPPORTED;
}

/* ---- letting go of nodes */

static void drop_prefill(rtr_request *r, rtr_actions *out)
{
    if (r->prefill_running)
        act(out, RTR_ACTION_CANCEL_PREFILL)->node = r->prefill;
    r->prefill_running = false;
    r->prefill = 0;
}

/* tell: the node still has the request and should stop. */
static void drop_decode(rtr_request *r, bool tell, rtr_actions *out)
{
    if (tell && r->decode)
        act(out, RTR_ACTION_CANCEL_DECODE)->node = r->decode;
    r->decode = 0;
    r->attach_by = SL_NEVER;
    r->granted_epoch = 0;
    r->last_granted = 0;
    r->prefills_lost = 0;
}

static void fail_with(rtr_request *r, sl_code code, const char *text, bool tell, rtr_actions *out)
{
    if (text != r->fail_text)
        snprintf(r->fail_text, sizeof r->fail_text, "%s", text ? text : sl_code_name(code));
    drop_prefill(r, out);
    drop_decode(r, tell, out);
    request_set_state(r, RTR_STATE_FAILED, SL_NEVER);
    rtr_action *fail = act(out, RTR_ACTION_FAIL);
    fail->code = code;
    fail->text = r->fail_text;
}

/* ---- waiting for a place */

/* fresh: the search begins now; else it goes on (a refusal), and its waiting time with it. */
static void enter_queue(rtr_request *r, bool fresh, sl_time_ns now, rtr_actions *out)
{
    if (r->state != RTR_STATE_QUEUED)
        request_set_state(r, RTR_STATE_QUEUED, SL_NEVER);
    if (fresh) {
        r->queued_at = now;
        r->lack = RTR_LACK_NONE;
        r->lack_since = now;
        r->refusal_code = SL_OK;
    }
    act(out, RTR_ACTION_PLACE);
}

static void remember(uint64_t *list, uint32_t *count, uint64_t node)
{
    for (uint32_t i = 0; i < *count; i++) {
        if (list[i] == node)
            return;
    }
    if (*count == RTR_REFUSED_MAX) { /* forget the oldest */
        memmove(list, list + 1, (RTR_REFUSED_MAX - 1) * sizeof *list);
        (*count)--;
    }
    list[(*count)++] = node;
}

static void note_refusal(rtr_request *r, sl_code code, const char *text, sl_time_ns now)
{
    r->refusal_code = code;
    snprintf(r->refusal_text, sizeof r->refusal_text, "%s", text ? text : sl_code_name(code));
    r->retry_at = after(now, r->limits->refusal_pause_ns);
}

static void forget_refusals(rtr_request *r)
{
    r->refused_decode_count = 0;
    r->refused_prefill_count = 0;
    r->retry_at = SL_NEVER;
}

/* A rank took it. What prefill nodes said stands until one takes it too: a rank that is asked again
 * for each of them grants at once, and they would be asked in circles. */
static void forget_decode_refusals(rtr_request *r)
{
    r->refused_decode_count = 0;
    if (r->refused_prefill_count == 0)
        r->retry_at = SL_NEVER;
}

/* The whole search, whatever it lacked meanwhile. */
static sl_time_ns search_deadline(const rtr_request *r)
{
    return after(after(r->queued_at, r->limits->queue_timeout_ns), r->limits->place_timeout_ns);
}

static sl_time_ns queue_deadline(const rtr_request *r)
{
    if (r->lack == RTR_LACK_PAUSED)
        return after(r->paused_until, r->limits->place_timeout_ns);
    bool room =
        r->lack == RTR_LACK_BUDGET ||
        (r->lack == RTR_LACK_ROOM && (r->refusal_code == SL_OK || r->refusal_code == SL_FULL));
    sl_time_ns deadline =
        after(r->lack_since, room ? r->limits->queue_timeout_ns : r->limits->place_timeout_ns);
    sl_time_ns latest = search_deadline(r);
    return deadline < latest ? deadline : latest;
}

static void queue_expired(rtr_request *r, sl_time_ns now, rtr_actions *out)
{
    unsigned long long waited = (now - r->lack_since) / SL_MS_NS;
    if (r->lack == RTR_LACK_DECODE || r->lack == RTR_LACK_PREFILL)
        snprintf(r->fail_text, sizeof r->fail_text, "no %s node is usable (waited %llu ms for one)",
                 r->lack == RTR_LACK_DECODE ? "decode" : "prefill", waited);
    else if (r->lack == RTR_LACK_BUDGET)
        snprintf(r->fail_text, sizeof r->fail_text,
                 "too much is to be computed again after losses (waited %llu ms)", waited);
    else if (r->lack == RTR_LACK_PAUSED)
        snprintf(r->fail_text, sizeof r->fail_text, "the nodes are paused (waited %llu ms)",
                 waited);
    else if (r->refusal_code != SL_OK)
        snprintf(r->fail_text, sizeof r->fail_text,
                 "no node took the request (waited %llu ms; the last one said: %s)", waited,
                 r->refusal_text);
    else
        snprintf(r->fail_text, sizeof r->fail_text,
                 "all decode nodes are full (waited %llu ms for room)", waited);
    bool full = r->lack == RTR_LACK_ROOM || r->lack == RTR_LACK_BUDGET;
    fail_with(r, full ? SL_FULL : SL_UNAVAILABLE, r->fail_text, true, out);
}

/* A node said no: look further, unless the search is over. */
static void search_on(rtr_request *r, sl_time_ns now, rtr_actions *out)
{
    if (now < search_deadline(r)) {
        enter_queue(r, false, now, out);
        return;
    }
    if (r->state != RTR_STATE_QUEUED)
        request_set_state(r, RTR_STATE_QUEUED, SL_NEVER);
    queue_expired(r, now, out);
}

/* ---- rows of the prompt: told by whoever computes it, so they may come after the tokens */

static bool rows_missing(const rtr_request *r)
{
    return r->limits->prompt_rows && !r->rows_done;
}

static void fail_without_rows(rtr_request *r, sl_code code, rtr_actions *out)
{
    fail_with(r, code,
              code == SL_UNSUPPORTED ? "the node does not tell what was asked of the prompt"
                                     : "the node was lost before it had told all of the prompt",
              true, out);
}

/* All tokens are here. */
static void finish_or_wait(rtr_request *r, rtr_finish finish, sl_time_ns now, rtr_actions *out)
{
    if (rows_missing(r) && !r->prefill_running) {
        fail_without_rows(r, SL_UNSUPPORTED, out);
        return;
    }
    if (r->state != RTR_STATE_DECODING)
        request_set_state(r, RTR_STATE_DECODING, SL_NEVER);
    if (rows_missing(r)) {
        r->ended = finish;
        r->deadline = after(now, r->limits->progress_timeout_ns);
        return;
    }
    drop_prefill(r, out);
    request_set_state(r, RTR_STATE_DONE, SL_NEVER);
    act(out, RTR_ACTION_FINISH)->finish = finish;
}

/* ---- losses */

static bool attempts_left(const rtr_request *r)
{
    return r->attempts < r->limits->attempts_max && r->admit_losses < 2 * r->limits->attempts_max;
}

/* Everything was sent but the end: nothing is left to compute. */
static bool finish_if_complete(rtr_request *r, rtr_actions *out)
{
    if (r->limits->max_tokens == 0 || r->token_count < r->limits->max_tokens)
        return false;
    if (rows_missing(r)) { /* nobody computes the prompt for its own sake */
        fail_without_rows(r, SL_UNAVAILABLE, out);
        return true;
    }
    request_set_state(r, RTR_STATE_DONE, SL_NEVER);
    act(out, RTR_ACTION_FINISH)->finish = RTR_FINISH_LENGTH;
    return true;
}

static void count_loss(rtr_request *r, const char *reason)
{
    if (r->state == RTR_STATE_PREFILLING || r->state == RTR_STATE_DECODING) {
        r->attempts++;
        if (!r->migration)
            r->migration = reason;
    } else {
        r->admit_losses++;
    }
}

static void decode_gone(rtr_request *r, const char *text, bool tell, sl_time_ns now,
                        rtr_actions *out)
{
    bool was_queued = r->state == RTR_STATE_QUEUED;
    drop_prefill(r, out);
    drop_decode(r, tell, out);
    if (!was_queued && !attempts_left(r)) {
        snprintf(r->fail_text, sizeof r->fail_text, "given up after %u attempts: %s",
                 r->limits->attempts_max, text);
        fail_with(r, SL_UNAVAILABLE, r->fail_text, false, out);
        return;
    }
    bool fresh = r->state == RTR_STATE_PREFILLING || r->state == RTR_STATE_DECODING;
    if (!was_queued)
        request_set_state(r, RTR_STATE_QUEUED, SL_NEVER);
    if (!finish_if_complete(r, out))
        enter_queue(r, fresh, now, out);
}

/* The decode node is gone or useless: a new place for everything. */
static void decode_lost(rtr_request *r, const char *reason, const char *text, bool tell,
                        sl_time_ns now, rtr_actions *out)
{
    if (r->state != RTR_STATE_QUEUED)
        count_loss(r, reason);
    decode_gone(r, text, tell, now, out);
}

/* As an operator wished, and no failure: once more, here or there, and no attempt is spent. */
static void weights_replaced(rtr_request *r, const char *text, sl_time_ns now, rtr_actions *out)
{
    if (r->replaced >= RTR_REPLACED_MAX) {
        decode_lost(r, WEIGHTS_REPLACED, text, false, now, out);
        return;
    }
    r->replaced++;
    if (!r->migration)
        r->migration = WEIGHTS_REPLACED;
    decode_gone(r, text, false, now, out);
}

/* The prefill is over when the tokens have begun, and more of the prompt was to be told. */
static void rows_lost(rtr_request *r, const char *text, sl_time_ns now, rtr_actions *out)
{
    r->prefill_running = false;
    if (r->ended)
        fail_without_rows(r, SL_UNAVAILABLE, out);
    else
        decode_lost(r, "prefill_lost", text, true, now, out);
}

/* The prefill node is gone: the decode node keeps its slot and verified pages; a new epoch makes
 * the old ticket void. When several in a row could not deliver, it is the decode node that does not
 * take: then another one. */
static void prefill_lost(rtr_request *r, const char *reason, const char *text, sl_time_ns now,
                         rtr_actions *out)
{
    bool was_source = r->prefill && r->prefill == r->source;
    if (r->prefill)
        remember(r->refused_prefill, &r->refused_prefill_count, r->prefill);
    if (was_source)
        r->source = 0; /* its pages are lost, or do not come: they are computed again */
    else
        r->warm_prefill = 0;
    r->retry_at = after(now, r->limits->refusal_pause_ns);
    count_loss(r, reason);
    drop_prefill(r, out);
    if (!attempts_left(r)) {
        snprintf(r->fail_text, sizeof r->fail_text, "given up after %u attempts: %s",
                 r->limits->attempts_max, text);
        fail_with(r, SL_UNAVAILABLE, r->fail_text, true, out);
        return;
    }
    if (r->decode && !was_source && ++r->prefills_lost >= PREFILLS_LOST_MAX) {
        out->blame.decode = r->decode;
        remember(r->refused_decode, &r->refused_decode_count, r->decode);
        drop_decode(r, true, out);
    }
    enter_queue(r, r->state == RTR_STATE_PREFILLING, now, out);
}

/* ---- one handler an event */

/* The search is as old as it was when the pause began. */
static void note_pause_over(rtr_request *r, sl_time_ns now)
{
    if (r->lack == RTR_LACK_PAUSED)
        r->queued_at += now - r->paused_since;
    r->lack = RTR_LACK_NONE;
}

static void on_placed(rtr_request *r, const rtr_event *e, sl_time_ns now, rtr_actions *out)
{
    sl_assert(r->state == RTR_STATE_QUEUED && e->decode != 0);
    sl_assert(r->decode == 0 || r->decode == e->decode);
    if (r->lack == RTR_LACK_PAUSED)
        note_pause_over(r, now);
    r->decode = e->decode;
    r->prefill = e->prefill;
    r->epoch++;
    sl_time_ns wait = r->prefill ? r->limits->admit_timeout_ns : r->limits->self_timeout_ns;
    request_set_state(r, RTR_STATE_ADMITTING, after(now, wait));
    rtr_action *admit = act(out, RTR_ACTION_ADMIT);
    admit->node = r->decode;
    admit->epoch = r->epoch;
}

/* The decode node waits for a prefill node that rests until then at the latest; 0: it works again.
 */
static void extend(rtr_request *r, sl_time_ns until, sl_time_ns now, rtr_actions *out)
{
    rtr_action *action = act(out, RTR_ACTION_EXTEND);
    action->node = r->decode;
    action->epoch = r->epoch;
    action->span_ns = after(until > now ? until - now : 0, r->limits->self_timeout_ns);
}

static bool is_patient(rtr_lack lack)
{
    return lack == RTR_LACK_ROOM || lack == RTR_LACK_BUDGET;
}

static void on_unplaced(rtr_request *r, const rtr_event *e, sl_time_ns now, rtr_actions *out)
{
    sl_assert(r->state == RTR_STATE_QUEUED && e->lack != RTR_LACK_NONE);
    if (e->lack == RTR_LACK_SIZE) { /* waiting would not help */
        fail_with(r, SL_TOO_LARGE,
                  "prompt and max_tokens together exceed the cache of every decode node", true,
                  out);
        return;
    }
    bool paused = e->lack == RTR_LACK_PAUSED, was_paused = r->lack == RTR_LACK_PAUSED;
    if (was_paused && !paused)
        note_pause_over(r, now);
    if (is_patient(r->lack) != is_patient(e->lack) || paused != was_paused)
        r->lack_since = now; /* waiting for room and for a node are different waits */
    if (paused && !was_paused)
        r->paused_since = now;
    if (paused && r->granted_epoch && (!was_paused || e->until > after(r->extended_until, SL_S_NS)))
        extend(r, r->extended_until = e->until, now, out); /* what it has of the prompt is kept */
    r->paused_until = e->until;
    r->lack = e->lack;
    r->deadline = queue_deadline(r);
    if (now >= r->deadline)
        queue_expired(r, now, out);
}

/* The rank has given a slot, told or shown by its first tokens (a rank that computes the prompt
 * itself grants no ticket). */
static void note_granted(rtr_request *r, rtr_actions *out)
{
    if (r->granted_epoch == 0)
        r->granted_epoch = r->epoch;
    r->last_granted = r->epoch;
    forget_decode_refusals(r);
    r->refusal_code = SL_OK;
    r->admit_losses = 0;
    if (r->migration)
        act(out, RTR_ACTION_MIGRATED)->text = r->migration;
    r->migration = NULL;
}

static void on_admitted(rtr_request *r, const rtr_event *e, sl_time_ns now, rtr_actions *out)
{
    if (r->state != RTR_STATE_ADMITTING || e->decode != r->decode || e->epoch != r->epoch)
        return;
    note_granted(r, out);
    sl_time_ns wait = r->prefill ? r->limits->progress_timeout_ns : r->limits->self_timeout_ns;
    request_set_state(r, RTR_STATE_PREFILLING, after(now, wait));
    if (!r->prefill)
        return;
    r->prefill_running = true;
    if (r->prefill != r->source)
        r->warm_prefill = r->prefill;
    rtr_action *run = act(out, RTR_ACTION_RUN_PREFILL);
    run->node = r->prefill;
    run->epoch = r->epoch;
}

/* Before the grant a refusal means no; after it, that the transfer failed and the rank waits for
 * another epoch with its slot and verified pages kept. */
static void on_refused(rtr_request *r, const rtr_event *e, sl_time_ns now, rtr_actions *out)
{
    if (e->decode != r->decode || r->decode == 0 || e->epoch != r->epoch)
        return;
    bool granted = r->last_granted == r->epoch;
    if (!granted && r->state == RTR_STATE_DECODING && e->code != SL_NOT_FOUND)
        return; /* it was asked again while its first tokens were under way */
    if (is_request_fault(e->code)) {
        fail_with(r, e->code, e->text, granted, out);
        return;
    }
    if (e->code == SL_NOT_FOUND) { /* answer to ATTACH */
        decode_lost(r, "decode_lost", "the decode node had let go of the request", false, now, out);
        return;
    }
    if (granted) {
        if (r->state == RTR_STATE_QUEUED)
            return;
        out->blame.prefill = r->prefill;
        prefill_lost(r, "transfer_failed", e->text ? e->text : "the transfer failed", now, out);
        return;
    }
    if (e->code == SL_CONFLICT && r->granted_epoch && r->state == RTR_STATE_ADMITTING) {
        /* Asked again, it says that it has begun: the earlier ticket was filled after all. */
        r->prefill = 0;
        r->migration = NULL;
        request_set_state(r, RTR_STATE_DECODING, after(now, r->limits->token_timeout_ns));
        return;
    }
    remember(r->refused_decode, &r->refused_decode_count, r->decode);
    note_refusal(r, e->code, e->text, now);
    r->prefill = 0;
    drop_decode(r, false, out);
    search_on(r, now, out);
}

static void on_prefill_progress(rtr_request *r, const rtr_event *e, sl_time_ns now)
{
    if (!r->prefill_running || e->epoch != r->epoch)
        return;
    if (r->state != RTR_STATE_PREFILLING && !r->ended)
        return;
    forget_refusals(r);
    r->deadline = after(now, r->limits->progress_timeout_ns);
}

static void on_prefill_failed(rtr_request *r, const rtr_event *e, sl_time_ns now, rtr_actions *out)
{
    if (!r->prefill_running || e->epoch != r->epoch)
        return;
    r->prefill_running = false; /* the call is over: nothing to cancel */
    if (r->state == RTR_STATE_DECODING && rows_missing(r))
        rows_lost(r, "the prefill failed", now, out);
    if (r->state != RTR_STATE_PREFILLING)
        return;
    if (is_request_fault(e->code)) {
        fail_with(r, e->code, e->text, true, out);
        return;
    }
    /* Not a loss: it had no room, or has other weights now than the decode node has. */
    if (e->code == SL_FULL || e->code == SL_CONFLICT || e->code == SL_INCOMPATIBLE) {
        remember(r->refused_prefill, &r->refused_prefill_count, r->prefill);
        note_refusal(r, e->code, e->text, now);
        r->prefill = 0;
        search_on(r, now, out);
        return;
    }
    if (e->code != SL_UNAVAILABLE)
        out->blame.prefill = r->prefill;
    prefill_lost(r, e->code == SL_UNAVAILABLE ? "prefill_lost" : "prefill_failed",
                 e->text ? e->text : "the prefill node failed", now, out);
}

static void on_prefill_node_lost(rtr_request *r, const rtr_event *e, sl_time_ns now,
                                 rtr_actions *out)
{
    if (r->prefill == 0 || e->prefill != r->prefill)
        return;
    if (r->state == RTR_STATE_ADMITTING || (r->state == RTR_STATE_PREFILLING && r->prefill_running))
        prefill_lost(r, "prefill_lost", "the prefill node was lost", now, out);
    else if (r->state == RTR_STATE_DECODING && r->prefill_running && rows_missing(r))
        rows_lost(r, "the prefill node was lost", now, out);
}

static void on_prefill_rests(rtr_request *r, const rtr_event *e, sl_time_ns now, rtr_actions *out)
{
    bool runs = r->state == RTR_STATE_PREFILLING && r->prefill_running;
    if (runs && e->prefill == r->prefill)
        extend(r, e->until, now, out);
}

static void on_decode_finish(rtr_request *r, const rtr_event *e, sl_time_ns now, rtr_actions *out)
{
    if (e->finish == RTR_FINISH_STOP || e->finish == RTR_FINISH_LENGTH) {
        r->decode = 0;
        r->attach_by = SL_NEVER;
        finish_or_wait(r, e->finish, now, out);
        return;
    }
    const char *text = e->text && e->text[0] ? e->text : "the decode node ended the request";
    if (e->finish == RTR_FINISH_FAILED && is_request_fault(e->code)) {
        fail_with(r, e->code, text, false, out);
        return;
    }
    bool transfer = e->code == SL_DEADLINE || e->code == SL_CORRUPT || e->code == SL_UNAVAILABLE;
    if (e->finish == RTR_FINISH_FAILED && transfer && r->state != RTR_STATE_DECODING) {
        /* The cache did not arrive: this rank is as good as any, the source is in doubt. */
        out->blame.prefill = r->prefill;
        if (r->prefill)
            remember(r->refused_prefill, &r->refused_prefill_count, r->prefill);
        r->retry_at = after(now, r->limits->refusal_pause_ns);
        decode_lost(r, "transfer_failed", text, false, now, out);
        return;
    }
    if (e->finish == RTR_FINISH_FAILED && e->code == SL_CONFLICT) {
        weights_replaced(r, text, now, out);
        return;
    }
    if (e->finish == RTR_FINISH_FAILED)
        out->blame.decode = r->decode;
    remember(r->refused_decode, &r->refused_decode_count, r->decode);
    r->retry_at = after(now, r->limits->refusal_pause_ns);
    decode_lost(r, e->finish == RTR_FINISH_FAILED ? "decode_failed" : "decode_cancelled", text,
                false, now, out);
}

static void on_tokens(rtr_request *r, const rtr_event *e, sl_time_ns now, rtr_actions *out)
{
    /* Runs of an earlier epoch of the same rank count: the tokens are the same for every epoch. */
    if (e->decode != r->decode || r->decode == 0 || e->epoch > r->epoch)
        return;
    if (r->state == RTR_STATE_ADMITTING && e->epoch == r->epoch)
        note_granted(r, out);
    if (r->granted_epoch == 0 || e->epoch < r->granted_epoch)
        return;
    if (e->first_index > r->token_count) {
        snprintf(r->fail_text, sizeof r->fail_text,
                 "the decode node skipped tokens (expected index %u, got %u)", r->token_count,
                 e->first_index);
        fail_with(r, SL_INTERNAL, r->fail_text, true, out);
        return;
    }
    uint32_t skip = r->token_count - e->first_index;
    uint32_t fresh = e->count > skip ? e->count - skip : 0;
    if (r->limits->max_tokens && fresh > r->limits->max_tokens - r->token_count) {
        fail_with(r, SL_INTERNAL, "the decode node sent more tokens than asked for", true, out);
        return;
    }
    if (fresh) {
        r->token_count += fresh;
        rtr_action *deliver = act(out, RTR_ACTION_DELIVER);
        deliver->skip = skip;
        deliver->count = fresh;
        if (r->state != RTR_STATE_DECODING) {
            if (e->epoch != r->epoch && !rows_missing(r)) /* the later prefill is not needed */
                drop_prefill(r, out);
            r->migration = NULL; /* a loss that cost nothing after all */
            r->source = 0;
            request_set_state(r, RTR_STATE_DECODING, SL_NEVER);
        }
    }
    if (r->state == RTR_STATE_DECODING)
        r->deadline = after(now, r->limits->token_timeout_ns);
    if (e->finish != RTR_FINISH_NONE)
        on_decode_finish(r, e, now, out);
}

/* How long the state may last, from the last sign of life on. */
static sl_time_ns state_span(const rtr_request *r)
{
    const rtr_request_limits *limits = r->limits;
    switch (r->state) {
    case RTR_STATE_ADMITTING:
        return r->prefill ? limits->admit_timeout_ns : limits->self_timeout_ns;
    case RTR_STATE_PREFILLING:
        return r->prefill_running ? limits->progress_timeout_ns : limits->self_timeout_ns;
    default:
        return r->ended ? limits->progress_timeout_ns : limits->token_timeout_ns;
    }
}

/* No sign of life, but its nodes were told to give none until then: the wait begins there. */
static bool was_held(rtr_request *r, sl_time_ns until, sl_time_ns now)
{
    if (until == 0 || r->state == RTR_STATE_QUEUED || now < r->deadline)
        return false;
    sl_time_ns deadline = after(until, state_span(r));
    if (now >= deadline)
        return false;
    r->deadline = deadline;
    return true;
}

static void on_timer(rtr_request *r, const rtr_event *e, sl_time_ns now, rtr_actions *out)
{
    if (now >= r->attach_by) {
        decode_lost(r, "decode_lost", "the decode node's stream did not come back", false, now,
                    out);
        return;
    }
    if (now < rtr_request_deadline(r) || was_held(r, e->until, now))
        return;
    if (r->state != RTR_STATE_QUEUED && !r->ended) {
        out->blame.grave = true;
        if (r->prefill_running && r->state == RTR_STATE_PREFILLING)
            out->blame.prefill = r->prefill;
        else
            out->blame.decode = r->decode;
    }
    switch (r->state) {
    case RTR_STATE_QUEUED:
        if (now >= r->deadline) {
            queue_expired(r, now, out);
        } else {
            forget_refusals(r);
            act(out, RTR_ACTION_PLACE);
        }
        break;
    case RTR_STATE_ADMITTING:
        remember(r->refused_decode, &r->refused_decode_count, r->decode);
        r->retry_at = after(now, r->limits->refusal_pause_ns);
        decode_lost(r, "decode_silent", "the decode node did not answer in time", true, now, out);
        break;
    case RTR_STATE_PREFILLING:
        if (r->prefill_running)
            prefill_lost(r, "prefill_stalled", "the prefill node made no progress", now, out);
        else
            decode_lost(r, "decode_stalled", "the decode node made no progress", true, now, out);
        break;
    case RTR_STATE_DECODING:
        if (r->ended) {
            fail_without_rows(r, SL_UNAVAILABLE, out);
            break;
        }
        remember(r->refused_decode, &r->refused_decode_count, r->decode);
        r->retry_at = after(now, r->limits->refusal_pause_ns);
        decode_lost(r, "decode_stalled", "the decode node sent no token in time", true, now, out);
        break;
    default:
        break;
    }
}

static void on_prefill_done(rtr_request *r, const rtr_event *e, sl_time_ns now, rtr_actions *out)
{
    if (!r->prefill_running || e->epoch != r->epoch)
        return;
    r->prefill_running = false;
    r->source = 0;
    if (rows_missing(r)) {
        fail_without_rows(r, SL_UNSUPPORTED, out);
        return;
    }
    if (r->state == RTR_STATE_PREFILLING)
        request_set_state(r, RTR_STATE_DECODING, after(now, r->limits->token_timeout_ns));
}

/* An admission that nothing was done for yet goes elsewhere at once. */
static void on_decode_broken(rtr_request *r, sl_time_ns now, rtr_actions *out)
{
    bool idle = r->state == RTR_STATE_ADMITTING && r->prefill;
    if (idle || r->limits->attach_timeout_ns == 0)
        decode_lost(r, "decode_lost", "the decode node was lost", false, now, out);
    else
        r->attach_by = after(now, r->limits->attach_timeout_ns);
}

static void on_decode_back(rtr_request *r, const rtr_event *e, rtr_actions *out)
{
    r->decode = e->again;
    r->attach_by = SL_NEVER;
    r->extended_until = 0; /* it may not have heard */
    bool asked = r->state == RTR_STATE_ADMITTING;
    rtr_action *action = act(out, asked ? RTR_ACTION_ADMIT : RTR_ACTION_ATTACH);
    action->node = r->decode;
    action->epoch = r->epoch;
    if (r->state == RTR_STATE_QUEUED)
        act(out, RTR_ACTION_PLACE);
}

/* It goes on elsewhere, with its pages. Tokens under way are drawn again. That is no loss, so it
 * takes no attempt. What the prompt is still to tell would be lost: then it stays. */
static void on_decode_drains(rtr_request *r, const rtr_event *e, sl_time_ns now, rtr_actions *out)
{
    bool runs = r->state == RTR_STATE_DECODING && !r->ended && r->attach_by == SL_NEVER;
    if (!runs || rows_missing(r))
        return;
    rtr_action *cancel = act(out, RTR_ACTION_CANCEL_DECODE);
    cancel->node = r->decode;
    cancel->moved = true;
    drop_prefill(r, out);
    drop_decode(r, false, out);
    r->source = e->source;
    r->migration = "drained";
    request_set_state(r, RTR_STATE_QUEUED, SL_NEVER);
    if (!finish_if_complete(r, out))
        enter_queue(r, true, now, out);
}

/* Of the node that has it. */
static void on_decode_node(rtr_request *r, const rtr_event *e, sl_time_ns now, rtr_actions *out)
{
    if (r->decode == 0 || e->decode != r->decode)
        return;
    if (e->kind == RTR_EVENT_DECODE_BROKEN)
        on_decode_broken(r, now, out);
    else if (e->kind == RTR_EVENT_DECODE_BACK)
        on_decode_back(r, e, out);
    else if (e->kind == RTR_EVENT_DECODE_DRAINS)
        on_decode_drains(r, e, now, out);
    else
        decode_lost(r, "decode_lost", "the decode node was lost", false, now, out);
}

/* Also found in tokens taken before a loss, while a new place is sought. */
static void on_stopped(rtr_request *r, rtr_actions *out)
{
    drop_prefill(r, out);
    drop_decode(r, true, out);
    if (r->state == RTR_STATE_ADMITTING || r->state == RTR_STATE_PREFILLING)
        request_set_state(r, RTR_STATE_QUEUED, SL_NEVER);
    request_set_state(r, RTR_STATE_DONE, SL_NEVER);
}

void rtr_request_init(rtr_request *request, const rtr_request_limits *limits)
{
    sl_assert(limits->attempts_max > 0 && limits->attempts_max <= RTR_ATTEMPTS_MAX);
    memset(request, 0, sizeof *request);
    request->limits = limits;
    request->deadline = SL_NEVER;
    request->attach_by = SL_NEVER;
    request->retry_at = SL_NEVER;
}

void rtr_request_step(rtr_request *r, const rtr_event *e, sl_time_ns now, rtr_actions *out)
{
    actions_clear(out);
    if (rtr_request_over(r))
        return;
    switch (e->kind) {
    case RTR_EVENT_SUBMIT:
        enter_queue(r, true, now, out);
        break;
    case RTR_EVENT_PLACED:
        on_placed(r, e, now, out);
        break;
    case RTR_EVENT_UNPLACED:
        on_unplaced(r, e, now, out);
        break;
    case RTR_EVENT_NODES_CHANGED:
        if (r->state == RTR_STATE_QUEUED)
            act(out, RTR_ACTION_PLACE);
        break;
    case RTR_EVENT_ADMITTED:
        on_admitted(r, e, now, out);
        break;
    case RTR_EVENT_REFUSED:
        on_refused(r, e, now, out);
        break;
    case RTR_EVENT_DECODE_BROKEN:
    case RTR_EVENT_DECODE_BACK:
    case RTR_EVENT_DECODE_LOST:
    case RTR_EVENT_DECODE_DRAINS:
        on_decode_node(r, e, now, out);
        break;
    case RTR_EVENT_PREFILL_PROGRESS:
        on_prefill_progress(r, e, now);
        break;
    case RTR_EVENT_ROWS_DONE:
        r->rows_done = true;
        if (r->ended)
            finish_or_wait(r, r->ended, now, out);
        break;
    case RTR_EVENT_PREFILL_DONE:
        on_prefill_done(r, e, now, out);
        break;
    case RTR_EVENT_PREFILL_FAILED:
        on_prefill_failed(r, e, now, out);
        break;
    case RTR_EVENT_PREFILL_LOST:
        on_prefill_node_lost(r, e, now, out);
        break;
    case RTR_EVENT_PREFILL_RESTS:
        on_prefill_rests(r, e, now, out);
        break;
    case RTR_EVENT_TOKENS:
        on_tokens(r, e, now, out);
        break;
    case RTR_EVENT_STOPPED:
        on_stopped(r, out);
        break;
    case RTR_EVENT_CLIENT_GONE:
        fail_with(r, SL_CANCELLED, "the client is gone", true, out);
        break;
    case RTR_EVENT_ABORT:
        fail_with(r, e->code, e->text, true, out);
        break;
    case RTR_EVENT_TIMER:
        on_timer(r, e, now, out);
        break;
    case RTR_EVENT_COUNT:
        sl_assert(!"an event kind");
    }
}

sl_time_ns rtr_request_deadline(const rtr_request *r)
{
    sl_time_ns deadline = r->deadline < r->attach_by ? r->deadline : r->attach_by;
    return r->state == RTR_STATE_QUEUED && r->retry_at < deadline ? r->retry_at : deadline;
}

bool rtr_request_over(const rtr_request *r)
{
    return r->state == RTR_STATE_DONE || r->state == RTR_STATE_FAILED;
}
