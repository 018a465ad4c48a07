/* The state machine of one prefill: see job.h. Pure: reads no clock, touches nothing but its
 * struct. */
#include "prefill/job.h"

#include "base/assert.h"

static const char *const STATE_NAMES[PRE_STATE_COUNT] = {
    [PRE_STATE_QUEUED] = "queued",       [PRE_STATE_OPENING] = "opening",
    [PRE_STATE_COMPUTING] = "computing", [PRE_STATE_DRAINING] = "draining",
    [PRE_STATE_CLOSING] = "closing",     [PRE_STATE_DONE] = "done",
};

/* LEGAL[from] = set of states that may follow. */
static const uint32_t LEGAL[PRE_STATE_COUNT] = {
    [PRE_STATE_QUEUED] = 1u << PRE_STATE_OPENING | 1u << PRE_STATE_CLOSING | 1u << PRE_STATE_DONE,
    [PRE_STATE_OPENING] = 1u << PRE_STATE_QUEUED | 1u << PRE_STATE_COMPUTING |
                          1u << PRE_STATE_CLOSING | 1u << PRE_STATE_DONE,
    [PRE_STATE_COMPUTING] = 1u << PRE_STATE_DRAINING | 1u << PRE_STATE_CLOSING,
    [PRE_STATE_DRAINING] = 1u << PRE_STATE_CLOSING,
    [PRE_STATE_CLOSING] = 1u << PRE_STATE_DONE,
    [PRE_STATE_DONE] = 0,
};

const char *pre_state_name(pre_state state)
{
    sl_assert(state < PRE_STATE_COUNT);
    return STATE_NAMES[state];
}

static void set_state(pre_job_state *job, pre_state state)
{
    sl_assert(LEGAL[job->state] & (1u << state));
    job->state = state;
}

void pre_job_init(pre_job_state *job, sl_time_ns deadline)
{
    *job = (pre_job_state){.state = PRE_STATE_QUEUED,
                           .send_open = true,
                           .deadline = deadline,
                           .rests_since = SL_NEVER};
}

static bool is_ending(const pre_job_state *job)
{
    return job->state == PRE_STATE_CLOSING || job->state == PRE_STATE_DONE;
}

sl_time_ns pre_job_due(const pre_job_state *job)
{
    return is_ending(job) || job->rests_since != SL_NEVER ? SL_NEVER : job->deadline;
}

/* The next step of closing: transfer first, then the engine's pages, then nothing is left. */
static uint32_t advance_close(pre_job_state *job)
{
    if (job->send_open)
        return 0;
    if (job->engine_open) {
        if (job->engine_closing)
            return 0;
        job->engine_closing = true;
        return PRE_ACTION_CLOSE_ENGINE;
    }
    set_state(job, PRE_STATE_DONE);
    return 0;
}

static pre_outcome fail(pre_job_state *job, sl_code code)
{
    pre_outcome out = {0, code};
    if (!job->replied)
        out.actions |= PRE_ACTION_REPLY_FAILED;
    job->replied = true;
    set_state(job, PRE_STATE_CLOSING);
    if (job->send_open)
        out.actions |= PRE_ACTION_CANCEL_SEND;
    out.actions |= advance_close(job);
    return out;
}

static pre_outcome on_send_closed(pre_job_state *job, const pre_event *event)
{
    pre_outcome out = {0, SL_OK};
    job->send_open = false;
    if (job->state == PRE_STATE_CLOSING) {
        out.actions = advance_close(job);
    } else if (event->kind == PRE_EVENT_ACKNOWLEDGED && job->state == PRE_STATE_DRAINING) {
        job->replied = true;
        set_state(job, PRE_STATE_CLOSING);
        out.actions = PRE_ACTION_REPLY_DONE | advance_close(job);
    } else {
        out = fail(job, event->kind == PRE_EVENT_ACKNOWLEDGED ? SL_INTERNAL : event->code);
    }
    return out;
}

static pre_outcome on_engine(pre_job_state *job, const pre_event *event)
{
    pre_outcome out = {0, SL_OK};
    switch (event->kind) {
    case PRE_EVENT_START:
        if (job->state == PRE_STATE_QUEUED) {
            set_state(job, PRE_STATE_OPENING);
            job->engine_open = true;
            out.actions = PRE_ACTION_OPEN_ENGINE;
        }
        break;
    case PRE_EVENT_OPENED:
        if (job->state == PRE_STATE_OPENING) {
            set_state(job, PRE_STATE_COMPUTING);
            out.actions = PRE_ACTION_COMPUTE;
        }
        break;
    case PRE_EVENT_OPEN_FULL:
    case PRE_EVENT_OPEN_FAILED:
        if (job->engine_closing)
            break; /* the answer to CLOSE_ENGINE is still to come */
        job->engine_open = false;
        if (job->state == PRE_STATE_CLOSING)
            out.actions = advance_close(job);
        else if (event->kind == PRE_EVENT_OPEN_FULL)
            set_state(job, PRE_STATE_QUEUED);
        else
            out = fail(job, event->code);
        break;
    case PRE_EVENT_COMPUTED:
        if (job->state == PRE_STATE_COMPUTING)
            set_state(job, PRE_STATE_DRAINING);
        break;
    case PRE_EVENT_ENGINE_CLOSED:
        job->engine_open = false;
        if (job->state == PRE_STATE_CLOSING)
            out.actions = advance_close(job);
        break;
    default:
        sl_assert(false);
    }
    return out;
}

pre_outcome pre_job_handle(pre_job_state *job, const pre_event *event, sl_time_ns now)
{
    sl_assert(event->kind < PRE_EVENT_COUNT);
    pre_outcome none = {0, SL_OK};
    bool ending = is_ending(job);
    switch (event->kind) {
    case PRE_EVENT_ACKNOWLEDGED:
    case PRE_EVENT_SEND_FAILED:
        return job->state == PRE_STATE_DONE ? none : on_send_closed(job, event);
    case PRE_EVENT_CANCEL:
        job->replied = true; /* nobody listens any more */
        return ending ? none : fail(job, SL_CANCELLED);
    case PRE_EVENT_COMPUTE_FAILED:
        return ending ? none : fail(job, event->code);
    case PRE_EVENT_REST:
        job->rests_since = now < job->rests_since ? now : job->rests_since;
        return none;
    case PRE_EVENT_GO:
        job->deadline += job->rests_since != SL_NEVER ? now - job->rests_since : 0;
        job->rests_since = SL_NEVER;
        return none;
    case PRE_EVENT_TICK:
        return now < pre_job_due(job) ? none : fail(job, SL_DEADLINE);
    default:
        return job->state == PRE_STATE_DONE ? none : on_engine(job, event);
    }
}
