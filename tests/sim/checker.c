/* See checker.h. The wrappers here also carry the planted bugs (plants.h): a plant changes what the
 * shipped function is told or says, the rules look at what comes of it. */
#include "tests/sim/checker.h"

#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "decode/internal.h"
#include "engine/state.h"
#include "node/internal.h"
#include "prefill/job.h"
#include "router/front_internal.h"
#include "router/router.h"
#include "tests/sim/cluster.h"
#include "tests/sim/plants.h"

#define PAGES_MAX     256u
#define TRANSFERS_MAX 2048u
#define AUDIT_STEPS   256u
#define LATE_NS       (7 * SL_MS_NS)
#define NOW_AND_THEN  8u

static const char ONE_OWNER[] = "a page has one owner", REUSE[] = "no reuse before release",
                  ENDS[] = "every request ends once", BOUNDED[] = "bounded queues",
                  DEADLINES[] = "deadlines are kept", FENCING[] = "fencing",
                  LEFT[] = "nothing is left", STORMS[] = "no storms";

typedef struct transfer { /* open, or not yet released */
    const void *handle;
    uint32_t process;
    bool holds[PAGES_MAX];
} transfer;

static struct {
    uint32_t holds[SIM_PROCESSES_MAX][PAGES_MAX]; /* open transfers that name the page */
    transfer *transfers[TRANSFERS_MAX];
    uint32_t transfer_count;
    struct granted { /* for recovery, by a router */
        uint64_t tokens;
        sl_time_ns since;
    } granted[SIM_PROCESSES_MAX];
    uint32_t faults, resets;
    uint64_t audited;
} state;

sim_counts sim_seen;
sim_times sim_last;
sim_plant sim_planted;

void sim_checker_init(void)
{
    memset(&state, 0, sizeof(state));
    sim_seen = (sim_counts){0};
    sim_last = (sim_times){0};
}

void sim_checker_note_fault(void)
{
    state.faults++;
}

void sim_checker_note_reset(void)
{
    state.resets++;
}

uint32_t sim_checker_faults(void)
{
    return state.faults;
}

static bool now_and_then(void)
{
    return sim_draw(NOW_AND_THEN) == 0;
}

/* ---- pages and transfers */

static transfer *transfer_of(const void *handle)
{
    for (uint32_t i = 0; i < state.transfer_count; i++)
        if (state.transfers[i]->handle == handle)
            return state.transfers[i];
    return NULL;
}

static transfer *transfer_add(const void *handle)
{
    sl_assert(state.transfer_count < TRANSFERS_MAX);
    transfer *t = sl_alloc(1, sizeof(*t), "sim transfer");
    t->handle = handle;
    t->process = sim.current->index;
    state.transfers[state.transfer_count++] = t;
    sim_seen.transfers++;
    return t;
}

static void transfer_remove(transfer *t)
{
    for (uint32_t page = 0; page < PAGES_MAX; page++)
        state.holds[t->process][page] -= t->holds[page];
    for (uint32_t i = 0; i < state.transfer_count; i++)
        if (state.transfers[i] == t)
            state.transfers[i] = state.transfers[--state.transfer_count];
    sl_free(t);
}

static void hold(transfer *t, const void *data)
{
    const eng_engine *engine = sim.current->node->engine;
    uint64_t offset = (uint64_t)((const uint8_t *)data - engine->cache);
    uint32_t page = (uint32_t)(offset / engine->layout.page_bytes);
    sl_assert(page < PAGES_MAX);
    if (t->holds[page])
        return;
    t->holds[page] = true;
    state.holds[t->process][page]++;
    if (engine->pages.table[page].ref_count == 0)
        sim_violation(REUSE, "%s: a transfer names page %u, which nobody has", sim.current->name,
                      page);
}

static void transfer_ends(const void *handle)
{
    transfer *t = transfer_of(handle);
    if (t)
        transfer_remove(t);
}

sl_status __real_kvt_recv_open(kvt_context *context, const kvt_recv_options *options,
                               kvt_recv **out_recv, sl_err *err);
sl_status __wrap_kvt_recv_open(kvt_context *context, const kvt_recv_options *options,
                               kvt_recv **out_recv, sl_err *err);
void __real_kvt_recv_release(kvt_recv *recv);
void __wrap_kvt_recv_release(kvt_recv *recv);
sl_status __real_kvt_send_announce(kvt_send *send, uint32_t block, uint32_t group, const void *data,
                                   uint64_t bytes, uint64_t sum, sl_err *err);
sl_status __wrap_kvt_send_announce(kvt_send *send, uint32_t block, uint32_t group, const void *data,
                                   uint64_t bytes, uint64_t sum, sl_err *err);
void __real_kvt_send_release(kvt_send *send);
void __wrap_kvt_send_release(kvt_send *send);
uint32_t __real_eng_pages_take(eng_pages *pages);
uint32_t __wrap_eng_pages_take(eng_pages *pages);
void __real_eng_pages_give(eng_pages *pages, uint32_t page);
void __wrap_eng_pages_give(eng_pages *pages, uint32_t page);

sl_status __wrap_kvt_recv_open(kvt_context *context, const kvt_recv_options *options,
                               kvt_recv **out_recv, sl_err *err)
{
    kvt_recv_options with = *options;
    if (sim_planted == SIM_PLANT_NO_SUMS)
        with.sums = KVT_SUMS_OFF;
    SL_TRY(__real_kvt_recv_open(context, &with, out_recv, err));
    transfer *t = transfer_add(*out_recv);
    for (uint32_t i = 0; i < options->block_count; i++)
        hold(t, options->pages[i]);
    return sl_ok();
}

void __wrap_kvt_recv_release(kvt_recv *recv)
{
    sim_last.fetch_closed = sim.now;
    transfer_ends(recv);
    __real_kvt_recv_release(recv);
}

sl_status __wrap_kvt_send_announce(kvt_send *send, uint32_t block, uint32_t group, const void *data,
                                   uint64_t bytes, uint64_t sum, sl_err *err)
{
    SL_TRY(__real_kvt_send_announce(send, block, group, data, bytes, sum, err));
    transfer *t = transfer_of(send);
    hold(t ? t : transfer_add(send), data);
    return sl_ok();
}

void __wrap_kvt_send_release(kvt_send *send)
{
    transfer_ends(send);
    __real_kvt_send_release(send);
}

static uint32_t somebodys_page(const eng_pages *pages)
{
    for (uint32_t page = 0; page < pages->page_count; page++)
        if (pages->table[page].state == ENG_PAGE_STATE_PRIVATE)
            return page;
    return ENG_NO_PAGE;
}

uint32_t __wrap_eng_pages_take(eng_pages *pages)
{
    uint32_t page = ENG_NO_PAGE;
    if (sim_planted == SIM_PLANT_TWO_OWNERS && now_and_then())
        page = somebodys_page(pages);
    if (page == ENG_NO_PAGE)
        page = __real_eng_pages_take(pages);
    if (page != ENG_NO_PAGE && state.holds[sim.current->index][page] > 0)
        sim_violation(ONE_OWNER, "%s: page %u is taken, %u transfers name it", sim.current->name,
                      page, state.holds[sim.current->index][page]);
    return page;
}

void __wrap_eng_pages_give(eng_pages *pages, uint32_t page)
{
    if (!sim.current->dying && sim.current->alive && pages->table[page].ref_count == 1 &&
        state.holds[sim.current->index][page] > 0 && !sim.current->stop_asked)
        sim_violation(REUSE, "%s: page %u is given back, %u transfers name it", sim.current->name,
                      page, state.holds[sim.current->index][page]);
    sim_last.pages_given[sim.current->index] = sim.now + sim.skew;
    __real_eng_pages_give(pages, page);
}

/* ---- deadlines */

/* now: the process's clock. A process that was stopped, or whose clock jumped, finds what passed
 * meanwhile when it goes on. */
static bool is_late(sl_time_ns deadline, sl_time_ns now)
{
    const sim_process *process = sim.current;
    return deadline < now && process->held_until < sim_world_time(process, deadline);
}

static void check_deadline(const char *what, const char *state_name, sl_time_ns deadline,
                           sl_time_ns now)
{
    if (is_late(deadline, now))
        sim_violation(DEADLINES, "%s: %s %s: %.6f ms late", sim.current->name, what, state_name,
                      (double)(now - deadline) / 1e6);
}

/* ---- the decode node's machine */

dec_outcome __real_dec_sequence_handle(dec_sequence *sequence, const dec_event *event,
                                       sl_time_ns now);
dec_outcome __wrap_dec_sequence_handle(dec_sequence *sequence, const dec_event *event,
                                       sl_time_ns now);

static void plant_in_sequence(dec_sequence *sequence, const dec_event *event, dec_outcome *out)
{
    if (sim_planted == SIM_PLANT_FREE_EARLY_RECV && event->kind == DEC_EVENT_CANCEL &&
        (out->actions & DEC_ACTION_REVOKE_TRANSFER)) {
        out->actions |= DEC_ACTION_CLOSE_ENGINE;
        sequence->engine_closing = true;
    }
    if (sim_planted == SIM_PLANT_LATE_PARK && event->kind == DEC_EVENT_DETACH &&
        dec_sequence_is_parked(sequence))
        sequence->park_deadline += LATE_NS;
    if (sim_planted == SIM_PLANT_LATE_FETCH && (out->actions & DEC_ACTION_OPEN_TRANSFER))
        sequence->deadline += LATE_NS;
}

static void check_park(const dec_sequence *before, const dec_event *event,
                       const dec_sequence *after, sl_time_ns now)
{
    bool was = dec_sequence_is_parked(before), is = dec_sequence_is_parked(after);
    if (event->kind == DEC_EVENT_DETACH && is && after->park_deadline != now + event->park_ns)
        sim_violation(DEADLINES, "%s: a router is waited for %.3f ms, not %.3f ms",
                      sim.current->name, (double)(after->park_deadline - now) / 1e6,
                      (double)event->park_ns / 1e6);
    if (is && !was) {
        sim_seen.parked++;
        sim_last.parked = sim.now;
    }
    if (was && !is && event->kind == DEC_EVENT_TICK)
        sim_last.park_given_up = sim.now;
}

dec_outcome __wrap_dec_sequence_handle(dec_sequence *sequence, const dec_event *event,
                                       sl_time_ns now)
{
    dec_sequence before = *sequence;
    check_deadline("sequence", dec_state_name(before.state), before.deadline, now);
    check_deadline("parked sequence", dec_state_name(before.state), before.park_deadline, now);
    dec_outcome out = __real_dec_sequence_handle(sequence, event, now);
    plant_in_sequence(sequence, event, &out);
    if ((out.actions & DEC_ACTION_OPEN_TRANSFER) &&
        sequence->deadline != now + sequence->prefill_ns)
        sim_violation(DEADLINES, "%s: a fetch is waited for %.3f ms, not %.3f ms",
                      sim.current->name, (double)(sequence->deadline - now) / 1e6,
                      (double)sequence->prefill_ns / 1e6);
    check_park(&before, event, sequence, now);
    bool stale = event->kind == DEC_EVENT_ADMIT && event->epoch <= before.epoch;
    if (stale && (out.actions || memcmp(&before, sequence, sizeof(before)) != 0))
        sim_violation(FENCING, "%s: epoch %u changes a sequence of epoch %u", sim.current->name,
                      event->epoch, before.epoch);
    if (out.actions & DEC_ACTION_OPEN_TRANSFER)
        sim_last.fetch_opened = sim.now;
    if (event->kind == DEC_EVENT_TICK && (out.actions & DEC_ACTION_REVOKE_TRANSFER))
        sim_last.fetch_given_up = sim.now;
    sim_seen.transfers_failed += event->kind == DEC_EVENT_TRANSFER_FAILED;
    sim_seen.retries += event->kind == DEC_EVENT_ADMIT;
    return out;
}

void __real_dec_admit(dec_service *service, dec_stream *stream, const Sluice__V1__Admit *admit);
void __wrap_dec_admit(dec_service *service, dec_stream *stream, const Sluice__V1__Admit *admit);
sl_status __real_dec_slot_attach(dec_service *service, dec_slot *slot, dec_stream *stream,
                                 uint32_t next_index, uint32_t next_row);
sl_status __wrap_dec_slot_attach(dec_service *service, dec_slot *slot, dec_stream *stream,
                                 uint32_t next_index, uint32_t next_row);

/* Now and then one that was taken comes twice: nothing may come of it but the same answer. */
void __wrap_dec_admit(dec_service *service, dec_stream *stream, const Sluice__V1__Admit *admit)
{
    __real_dec_admit(service, stream, admit);
    const dec_slot *slot = dec_slot_find(service, admit->request_id);
    if (!slot || slot->stream != stream || slot->core.epoch != admit->epoch || sim_draw(16) > 0)
        return;
    dec_state before = slot->core.state;
    uint32_t live = service->live_count;
    __real_dec_admit(service, stream, admit);
    if (slot->core.state != before || service->live_count != live)
        sim_violation(FENCING, "%s: request %s was admitted twice", sim.current->name,
                      admit->request_id);
}

sl_status __wrap_dec_slot_attach(dec_service *service, dec_slot *slot, dec_stream *stream,
                                 uint32_t next_index, uint32_t next_row)
{
    bool ours = dec_owner_equal(&slot->owner, &stream->owner);
    SL_TRY(__real_dec_slot_attach(service, slot, stream, next_index, next_row));
    sim_seen.attached++;
    if (!ours)
        sim_violation(FENCING, "%s: request %s of %s goes to %s", sim.current->name,
                      slot->request_id, slot->owner.router, stream->owner.router);
    if (sim_planted == SIM_PLANT_WRONG_REPLAY && slot->log_sent > 0)
        slot->log_sent--, slot->first_index++; /* the token before, said to be the next */
    return sl_ok();
}

/* ---- the prefill node's */

pre_outcome __real_pre_job_handle(pre_job_state *job, const pre_event *event, sl_time_ns now);
pre_outcome __wrap_pre_job_handle(pre_job_state *job, const pre_event *event, sl_time_ns now);

pre_outcome __wrap_pre_job_handle(pre_job_state *job, const pre_event *event, sl_time_ns now)
{
    pre_job_state before = *job;
    if (before.state < PRE_STATE_CLOSING)
        check_deadline("job", pre_state_name(before.state), pre_job_due(&before), now);
    pre_outcome out = __real_pre_job_handle(job, event, now);
    if (sim_planted == SIM_PLANT_FREE_EARLY_SEND && event->kind == PRE_EVENT_CANCEL &&
        (out.actions & PRE_ACTION_CANCEL_SEND) && job->engine_open && !job->engine_closing) {
        out.actions |= PRE_ACTION_CLOSE_ENGINE;
        job->engine_closing = true;
    }
    if (sim_planted == SIM_PLANT_LEAK && (out.actions & PRE_ACTION_CLOSE_ENGINE) && now_and_then())
        out.actions &= ~(uint32_t)PRE_ACTION_CLOSE_ENGINE;
    return out;
}

/* ---- the router's */

void __real_rtr_request_step(rtr_request *request, const rtr_event *event, sl_time_ns now,
                             rtr_actions *out);
void __wrap_rtr_request_step(rtr_request *request, const rtr_event *event, sl_time_ns now,
                             rtr_actions *out);
sl_time_ns __real_rtr_request_deadline(const rtr_request *request);
sl_time_ns __wrap_rtr_request_deadline(const rtr_request *request);

/* What a stream, an epoch or a request says that is over. */
static bool is_stale(const rtr_request *r, const rtr_event *event)
{
    if (rtr_request_over(r))
        return true;
    switch (event->kind) {
    case RTR_EVENT_ADMITTED:
    case RTR_EVENT_REFUSED:
        return event->decode != r->decode || event->epoch < r->epoch;
    case RTR_EVENT_TOKENS:
    case RTR_EVENT_DECODE_BROKEN:
    case RTR_EVENT_DECODE_BACK:
    case RTR_EVENT_DECODE_LOST:
        return event->decode != r->decode;
    case RTR_EVENT_PREFILL_DONE:
    case RTR_EVENT_PREFILL_FAILED:
        return event->epoch != r->epoch || !r->prefill_running;
    case RTR_EVENT_PREFILL_LOST:
        return event->prefill != r->prefill;
    default:
        return false;
    }
}

static void plant_in_request(rtr_actions *out)
{
    for (uint32_t i = 0; i < out->count; i++) {
        rtr_action *action = &out->at[i];
        if (sim_planted == SIM_PLANT_DROP_TOKEN && action->kind == RTR_ACTION_DELIVER &&
            action->count > 1 && now_and_then())
            action->count--;
        if (sim_planted == SIM_PLANT_LOST_END && action->kind == RTR_ACTION_FINISH &&
            now_and_then())
            out->count = i;
    }
}

static rtr_event stale_as_new(const rtr_request *r, const rtr_event *event)
{
    rtr_event out = *event;
    out.decode = event->decode ? r->decode : 0;
    out.epoch = event->epoch ? r->epoch : 0;
    return out;
}

/* Each node may be asked once between two pauses; one that comes back under another number, too. */
static void check_storm(const rtr_request *request, sl_time_ns now)
{
    const rtr_live *live =
        (const rtr_live *)(const void *)((const char *)request - offsetof(rtr_live, core));
    uint64_t pauses = (now - live->arrived_at) / request->limits->refusal_pause_ns + 3;
    if (request->epoch > sim.process_count * pauses + state.resets)
        sim_violation(STORMS, "%s: request %s asks for the %u. time in %.3f s", sim.current->name,
                      live->id, request->epoch, (double)(now - live->arrived_at) / 1e9);
}

void __wrap_rtr_request_step(rtr_request *request, const rtr_event *event, sl_time_ns now,
                             rtr_actions *out)
{
    rtr_request before = *request;
    bool stale = is_stale(&before, event);
    rtr_event told = *event;
    check_deadline("request", rtr_state_name(before.state), before.deadline, now);
    check_deadline("stream of a request", rtr_state_name(before.state), before.attach_by, now);
    if (stale && sim_planted == SIM_PLANT_STALE_EPOCH && !rtr_request_over(request))
        told = stale_as_new(request, event);
    __real_rtr_request_step(request, &told, now, out);
    check_storm(request, now);
    bool same = before.state == request->state && before.token_count == request->token_count &&
                before.epoch == request->epoch && before.deadline == request->deadline &&
                before.decode == request->decode && before.attach_by == request->attach_by;
    if (stale && (out->count > 0 || !same))
        sim_violation(FENCING,
                      "%s: event %d of decode %llu epoch %u moves a request of decode "
                      "%llu epoch %u in state %s",
                      sim.current->name, (int)event->kind, (unsigned long long)event->decode,
                      event->epoch, (unsigned long long)before.decode, before.epoch,
                      rtr_state_name(before.state));
    if (event->kind == RTR_EVENT_PREFILL_PROGRESS)
        sim_last.prefill_heard = sim.now;
    if (event->kind == RTR_EVENT_TIMER && before.state == RTR_STATE_PREFILLING && out->count > 0)
        sim_last.prefill_given_up = sim.now;
    for (uint32_t i = 0; i < out->count; i++) {
        const rtr_action *action = &out->at[i];
        bool migrated = action->kind == RTR_ACTION_MIGRATED;
        sim_seen.migrations += migrated;
        sim_seen.moves += migrated && strcmp(action->text, "drained") == 0;
    }
    plant_in_request(out);
}

sl_time_ns __wrap_rtr_request_deadline(const rtr_request *request)
{
    sl_time_ns deadline = __real_rtr_request_deadline(request);
    return sim_planted == SIM_PLANT_LATE_ROUTER && deadline != SL_NEVER ? deadline + LATE_NS
                                                                        : deadline;
}

/* ---- the budget of recovery */

bool __real_rtr_budget_take(rtr_budget *budget, uint64_t tokens, sl_time_ns now);
bool __wrap_rtr_budget_take(rtr_budget *budget, uint64_t tokens, sl_time_ns now);

/* Of each router's life: what was granted, but for the last one, is no more than the rate allows.
 */
bool __wrap_rtr_budget_take(rtr_budget *budget, uint64_t tokens, sl_time_ns now)
{
    struct granted *granted = &state.granted[sim.current->index];
    bool may = __real_rtr_budget_take(budget, tokens, now) || sim_planted == SIM_PLANT_NO_BUDGET;
    if (!may || budget->tokens_per_s == 0)
        return may;
    if (granted->tokens == 0)
        granted->since = now;
    uint64_t allowed =
        (now - granted->since + RTR_BUDGET_BURST_NS) / SL_MS_NS * budget->tokens_per_s / 1000 + 1;
    if (granted->tokens > allowed)
        sim_violation(STORMS, "%s: %llu tokens are computed again in %.3f s at %llu a second",
                      sim.current->name, (unsigned long long)granted->tokens,
                      (double)(now - granted->since) / 1e9,
                      (unsigned long long)budget->tokens_per_s);
    granted->tokens += tokens;
    return true;
}

/* ---- processes */

void sim_checker_process_started(sim_process *process)
{
    memset(state.holds[process->index], 0, sizeof(state.holds[0]));
    state.granted[process->index].tokens = 0;
    process->held_until = sim.now;
    if (process->router && sim_planted == SIM_PLANT_OPEN_DOOR) {
        rtr_router_front(process->router)->tuning.queue_max = UINT32_MAX;
    }
}

void sim_checker_process_ends(sim_process *process)
{
    for (uint32_t i = state.transfer_count; i-- > 0;)
        if (state.transfers[i]->process == process->index)
            transfer_remove(state.transfers[i]);
}

void sim_checker_request_ended(const sim_request *request)
{
    bool calm = request->must_succeed && request->faults_before == state.faults;
    if (calm && request->outcome != SIM_ANSWERED && request->outcome != SIM_HUNG_UP)
        sim_violation(ENDS, "request %u: status %d, and nothing was wrong: %s", request->number,
                      request->status, request->text.size ? request->text.data : "");
    if (request->outcome == SIM_REFUSED && request->status < 500 && request->status != 200 &&
        request->status != 429)
        sim_violation(ENDS, "request %u: status %d: %s", request->number, request->status,
                      request->text.size ? request->text.data : "");
}

/* ---- audits */

/* Every page counts as many sequences as have it; one that is written has one. */
static void audit_pages(const sim_process *process)
{
    const eng_engine *engine = process->node->engine;
    uint32_t refs[PAGES_MAX] = {0};
    uint32_t free = 0, kept = 0;
    for (uint32_t i = 0; i < engine->sequences_max; i++) {
        const eng_sequence *sequence = &engine->sequences[i];
        for (uint32_t block = 0; sequence->open && block < sequence->page_count; block++)
            if (sequence->pages[block] != ENG_NO_PAGE)
                refs[sequence->pages[block]]++;
    }
    for (uint32_t page = 0; page < engine->pages.page_count; page++) {
        const eng_page *entry = &engine->pages.table[page];
        free += entry->state == ENG_PAGE_STATE_FREE;
        kept += entry->state == ENG_PAGE_STATE_KEPT;
        if (refs[page] != entry->ref_count ||
            (entry->state == ENG_PAGE_STATE_PRIVATE && refs[page] != 1))
            sim_violation(ONE_OWNER, "%s: page %u has %u owners and counts %u", process->name, page,
                          refs[page], entry->ref_count);
    }
    if (free != engine->pages.free_count || kept != engine->pages.kept_count)
        sim_violation(ONE_OWNER, "%s: %u free and %u kept pages, counted %u and %u", process->name,
                      free, kept, engine->pages.free_count, engine->pages.kept_count);
}

static void audit_router(sim_process *process)
{
    rtr_front *front = rtr_router_front(process->router);
    /* At the door the queue is looked at; those that a rank refused, or lost, come back to it. */
    const sim_shape *shape = &sim_cl.shape;
    uint32_t room = shape->router_queue + SIM_CHOICES_MAX +
                    shape->sequences * (shape->decodes + shape->hybrids);
    sim_process *before = sim.current;
    sim.current = process;
    uint32_t placed = 0;
    for (const rtr_live *live = front->lives; live; live = live->next) {
        placed += live->admitted;
        if (live->started && !rtr_request_over(&live->core))
            check_deadline("request", rtr_state_name(live->core.state), live->core.deadline,
                           sim_clock(process));
    }
    if (front->queue.count > room + placed)
        sim_violation(BOUNDED, "%s: %u requests wait, at most %u may", process->name,
                      front->queue.count, room);
    sim.current = before;
}

void sim_checker_step(void)
{
    if (sim.steps - state.audited < AUDIT_STEPS)
        return;
    state.audited = sim.steps;
    for (uint32_t i = 0; i < sim.process_count; i++) {
        sim_process *process = &sim.processes[i];
        if (!process->alive || process->paused)
            continue;
        if (process->node)
            audit_pages(process);
        if (process->router)
            audit_router(process);
    }
}

/* ---- rest */

static void node_at_rest(const sim_process *process)
{
    const nod_host *host = process->node;
    eng_page_counts pages;
    kvt_stats stats;
    eng_engine_count_pages(host->engine, &pages);
    kvt_stats_get(host->kvt, &stats);
    if (nod_host_live(host) > 0)
        sim_violation(LEFT, "%s: %u requests live", process->name, nod_host_live(host));
    if (pages.bound > 0 || pages.promised > 0)
        sim_violation(LEFT, "%s: %u pages bound, %u promised", process->name, pages.bound,
                      pages.promised);
    if (stats.sends_open + stats.recvs_open + stats.recvs_quarantined > 0)
        sim_violation(LEFT, "%s: %u sends, %u receives open", process->name, stats.sends_open,
                      stats.recvs_open);
    for (uint32_t page = 0; page < PAGES_MAX; page++)
        if (state.holds[process->index][page] > 0)
            sim_violation(LEFT, "%s: a transfer names page %u", process->name, page);
}

void sim_checker_rest(void)
{
    for (uint32_t i = 0; i < sim_cls.count; i++) {
        const sim_request *request = sim_cls.requests[i];
        if (request->outcome == SIM_WAITING)
            sim_violation(ENDS, "request %u has not ended in %.1f s", request->number,
                          (double)(sim.now - request->asked_at) / 1e9);
    }
    for (uint32_t i = 0; i < sim.process_count; i++) {
        const sim_process *process = &sim.processes[i];
        if (!process->alive)
            continue;
        if (process->router)
            sim_seen.pulls += (uint64_t)sl_metric_get(
                rtr_router_front(process->router)->shared->metrics.pulls, "fetched");
        if (process->node)
            node_at_rest(process);
        if (process->router && rtr_front_live_count(rtr_router_front(process->router)) > 0)
            sim_violation(LEFT, "%s: %u requests live", process->name,
                          rtr_front_live_count(rtr_router_front(process->router)));
    }
}

/* ---- plants */

static const char *const PLANTS[SIM_PLANT_COUNT] = {
    [SIM_PLANT_NONE] = "none",
    [SIM_PLANT_FREE_EARLY_RECV] = "free-early-recv",
    [SIM_PLANT_FREE_EARLY_SEND] = "free-early-send",
    [SIM_PLANT_TWO_OWNERS] = "two-owners",
    [SIM_PLANT_DROP_TOKEN] = "drop-token",
    [SIM_PLANT_LOST_END] = "lost-end",
    [SIM_PLANT_LATE_ROUTER] = "late-router",
    [SIM_PLANT_LATE_FETCH] = "late-fetch",
    [SIM_PLANT_STALE_EPOCH] = "stale-epoch",
    [SIM_PLANT_OPEN_DOOR] = "open-door",
    [SIM_PLANT_NO_SUMS] = "no-sums",
    [SIM_PLANT_LEAK] = "leak",
    [SIM_PLANT_LATE_PARK] = "late-park",
    [SIM_PLANT_WRONG_REPLAY] = "wrong-replay",
    [SIM_PLANT_NO_BUDGET] = "no-budget",
};

const char *sim_plant_name(sim_plant plant)
{
    return PLANTS[plant];
}

bool sim_plant_parse(const char *name, sim_plant *out_plant)
{
    for (int i = 0; i < SIM_PLANT_COUNT; i++) {
        if (strcmp(name, PLANTS[i]) != 0)
            continue;
        *out_plant = (sim_plant)i;
        return true;
    }
    return false;
}
