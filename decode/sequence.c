/* The sequence state machine of a decode rank: see sequence.h. Pure: reads no clock, touches
 * nothing but its struct. */
#include "decode/sequence.h"

#include "base/assert.h"

static const char *const STATE_NAMES[DEC_STATE_COUNT] = {
    [DEC_STATE_OPENING] = "opening", [DEC_STATE_FETCHING] = "fetching",
    [DEC_STATE_STALLED] = "stalled", [DEC_STATE_RUNNING] = "running",
    [DEC_STATE_CLOSING] = "closing", [DEC_STATE_DONE] = "done",
};

/* LEGAL[from] = set of states that may follow. */
static const uint32_t LEGAL[DEC_STATE_COUNT] = {
    [DEC_STATE_OPENING] = 1u << DEC_STATE_FETCHING | 1u << DEC_STATE_RUNNING |
                          1u << DEC_STATE_CLOSING | 1u << DEC_STATE_DONE,
    [DEC_STATE_FETCHING] =
        1u << DEC_STATE_STALLED | 1u << DEC_STATE_RUNNING | 1u << DEC_STATE_CLOSING,
    [DEC_STATE_STALLED] =
        1u << DEC_STATE_FETCHING | 1u << DEC_STATE_RUNNING | 1u << DEC_STATE_CLOSING,
    [DEC_STATE_RUNNING] = 1u << DEC_STATE_CLOSING | 1u << DEC_STATE_DONE,
    [DEC_STATE_CLOSING] = 1u << DEC_STATE_DONE,
    [DEC_STATE_DONE] = 0,
};

const char *dec_state_name(dec_state state)
{
    sl_assert(state < DEC_STATE_COUNT);
    return STATE_NAMES[state];
}

static void set_state(dec_sequence *sequence, dec_state state, sl_time_ns deadline)
{
    sl_assert(LEGAL[sequence->state] & (1u << state));
    sequence->state = state;
    sequence->deadline = deadline;
}

void dec_sequence_init(dec_sequence *sequence, uint32_t epoch, bool self_prefill,
                       uint64_t prefill_ns)
{
    *sequence = (dec_sequence){
        .state = DEC_STATE_OPENING,
        .epoch = epoch,
        .self_prefill = self_prefill,
        .prefill_ns = prefill_ns,
        .deadline = SL_NEVER,
        .park_deadline = SL_NEVER,
    };
}

bool dec_sequence_is_parked(const dec_sequence *sequence)
{
    return sequence->park_deadline != SL_NEVER;
}

sl_time_ns dec_sequence_due(const dec_sequence *sequence)
{
    return sequence->park_deadline < sequence->deadline ? sequence->park_deadline
                                                        : sequence->deadline;
}

/* Pages are bound and no transfer is open: ask for the rows, or compute them here. */
static uint32_t begin(dec_sequence *sequence, sl_time_ns now)
{
    sl_assert(sequence->engine_open && !sequence->transfer_open);
    sequence->reopen = false;
    if (sequence->self_prefill) {
        set_state(sequence, DEC_STATE_RUNNING, SL_NEVER);
        return DEC_ACTION_RUN_SELF;
    }
    set_state(sequence, DEC_STATE_FETCHING, now + sequence->prefill_ns);
    sequence->transfer_open = true;
    return DEC_ACTION_OPEN_TRANSFER | DEC_ACTION_SEND_ADMITTED;
}

/* Lets go of the transfer first: the engine may reuse the pages only when nothing can write into
 * them any more. */
static uint32_t close_all(dec_sequence *sequence)
{
    set_state(sequence, DEC_STATE_CLOSING, SL_NEVER);
    if (sequence->transfer_open)
        return DEC_ACTION_REVOKE_TRANSFER;
    sequence->engine_closing = true;
    return DEC_ACTION_CLOSE_ENGINE;
}

static dec_outcome on_admit(dec_sequence *sequence, const dec_event *event, sl_time_ns now)
{
    dec_outcome out = {0, SL_OK};
    bool waiting = sequence->state == DEC_STATE_OPENING || sequence->state == DEC_STATE_FETCHING ||
                   sequence->state == DEC_STATE_STALLED;
    if (!waiting || event->epoch <= sequence->epoch || sequence->cancelled) {
        out.code = SL_CONFLICT;
        return out;
    }
    sequence->epoch = event->epoch;
    sequence->self_prefill = event->self_prefill;
    sequence->prefill_ns = event->prefill_ns;
    if (sequence->state == DEC_STATE_OPENING)
        return out;
    if (sequence->state == DEC_STATE_FETCHING) {
        out.actions = DEC_ACTION_REVOKE_TRANSFER;
        set_state(sequence, DEC_STATE_STALLED, SL_NEVER);
        sequence->reopen = true;
    } else if (sequence->transfer_open) {
        sequence->reopen = true;
        sequence->deadline = SL_NEVER;
    } else {
        out.actions = begin(sequence, now);
    }
    return out;
}

static dec_outcome in_opening(dec_sequence *sequence, const dec_event *event, sl_time_ns now)
{
    dec_outcome out = {0, SL_OK};
    if (event->kind == DEC_EVENT_CANCEL) {
        sequence->cancelled = true;
    } else if (event->kind == DEC_EVENT_OPENED) {
        sequence->engine_open = true;
        out.actions = sequence->cancelled ? close_all(sequence) : begin(sequence, now);
    } else if (event->kind == DEC_EVENT_OPEN_FAILED) {
        set_state(sequence, DEC_STATE_DONE, SL_NEVER);
        out.actions = sequence->cancelled ? 0 : DEC_ACTION_SEND_REFUSED;
        out.code = event->code;
    }
    return out;
}

/* What waits for a prefill node. One that gives way to a newer epoch waits for its transfer. */
static void extend(dec_sequence *sequence, uint64_t prefill_ns, sl_time_ns now)
{
    if (sequence->deadline != SL_NEVER)
        sequence->deadline = now + prefill_ns;
}

static dec_outcome in_fetching(dec_sequence *sequence, const dec_event *event, sl_time_ns now)
{
    dec_outcome out = {0, SL_OK};
    switch (event->kind) {
    case DEC_EVENT_COMMITTED:
        set_state(sequence, DEC_STATE_RUNNING, SL_NEVER);
        out.actions = DEC_ACTION_ADOPT;
        break;
    case DEC_EVENT_TRANSFER_FAILED:
        set_state(sequence, DEC_STATE_STALLED, now + DEC_STALL_NS);
        out.actions = DEC_ACTION_SEND_REFUSED;
        out.code = sequence->stall_code = event->code;
        break;
    case DEC_EVENT_TICK:
        if (now >= sequence->deadline) {
            set_state(sequence, DEC_STATE_STALLED, now + DEC_STALL_NS);
            out.actions = DEC_ACTION_REVOKE_TRANSFER | DEC_ACTION_SEND_REFUSED;
            out.code = sequence->stall_code = SL_DEADLINE;
        }
        break;
    case DEC_EVENT_EXTEND:
        extend(sequence, event->prefill_ns, now);
        break;
    case DEC_EVENT_CANCEL:
        sequence->cancelled = true;
        out.actions = close_all(sequence);
        break;
    default:
        break;
    }
    return out;
}

static dec_outcome in_stalled(dec_sequence *sequence, const dec_event *event, sl_time_ns now)
{
    dec_outcome out = {0, SL_OK};
    if (event->kind == DEC_EVENT_TRANSFER_CLOSED) {
        sequence->transfer_open = false;
        if (sequence->reopen)
            out.actions = begin(sequence, now);
    } else if (event->kind == DEC_EVENT_CANCEL) {
        sequence->cancelled = true;
        /* A revoke is already under way for an open transfer: closing waits for its end. */
        bool open = sequence->transfer_open;
        uint32_t actions = close_all(sequence);
        out.actions = open ? 0 : actions;
    } else if (event->kind == DEC_EVENT_EXTEND) {
        extend(sequence, event->prefill_ns, now);
    } else if (event->kind == DEC_EVENT_TICK && now >= sequence->deadline) {
        bool open = sequence->transfer_open;
        uint32_t actions = close_all(sequence);
        out.actions = (open ? 0 : actions) | DEC_ACTION_SEND_FAILED;
        out.code = SL_DEADLINE;
    }
    return out;
}

static dec_outcome in_running(dec_sequence *sequence, const dec_event *event)
{
    dec_outcome out = {0, SL_OK};
    if (event->kind == DEC_EVENT_FINISHED) {
        sequence->engine_open = false;
        if (sequence->transfer_open)
            set_state(sequence, DEC_STATE_CLOSING, SL_NEVER);
        else
            set_state(sequence, DEC_STATE_DONE, SL_NEVER);
    } else if (event->kind == DEC_EVENT_TRANSFER_CLOSED) {
        sequence->transfer_open = false;
    } else if (event->kind == DEC_EVENT_CANCEL) {
        sequence->cancelled = true;
        set_state(sequence, DEC_STATE_CLOSING, SL_NEVER);
        sequence->engine_closing = true;
        out.actions = DEC_ACTION_CLOSE_ENGINE;
    }
    return out;
}

static dec_outcome in_closing(dec_sequence *sequence, const dec_event *event)
{
    dec_outcome out = {0, SL_OK};
    if (event->kind == DEC_EVENT_TRANSFER_CLOSED) {
        sequence->transfer_open = false;
        /* Coming from RUNNING, the engine was asked already (or has finished by itself). */
        if (sequence->engine_open && !sequence->engine_closing) {
            sequence->engine_closing = true;
            out.actions = DEC_ACTION_CLOSE_ENGINE;
        }
    } else if (event->kind == DEC_EVENT_ENGINE_CLOSED) {
        sequence->engine_open = false;
    }
    if (!sequence->engine_open && !sequence->transfer_open)
        set_state(sequence, DEC_STATE_DONE, SL_NEVER);
    return out;
}

/* One that was cancelled is waited for by nobody. */
static dec_outcome on_detach(dec_sequence *sequence, const dec_event *event, sl_time_ns now)
{
    if (!sequence->cancelled)
        sequence->park_deadline = now + event->park_ns;
    return (dec_outcome){0, SL_OK};
}

static dec_outcome on_attach(dec_sequence *sequence)
{
    dec_outcome out = {0, SL_OK};
    sequence->park_deadline = SL_NEVER;
    if (sequence->state == DEC_STATE_STALLED && !sequence->reopen) {
        out.actions = DEC_ACTION_SEND_REFUSED;
        out.code = sequence->stall_code;
    }
    return out;
}

static dec_outcome in_state(dec_sequence *sequence, const dec_event *event, sl_time_ns now)
{
    switch (sequence->state) {
    case DEC_STATE_OPENING:
        return in_opening(sequence, event, now);
    case DEC_STATE_FETCHING:
        return in_fetching(sequence, event, now);
    case DEC_STATE_STALLED:
        return in_stalled(sequence, event, now);
    case DEC_STATE_RUNNING:
        return in_running(sequence, event);
    case DEC_STATE_CLOSING:
        return in_closing(sequence, event);
    case DEC_STATE_DONE:
    case DEC_STATE_COUNT:
        break;
    }
    return (dec_outcome){0, SL_OK};
}

dec_outcome dec_sequence_handle(dec_sequence *sequence, const dec_event *event, sl_time_ns now)
{
    static const dec_event CANCEL = {.kind = DEC_EVENT_CANCEL};
    sl_assert(event->kind < DEC_EVENT_COUNT);
    if (event->kind == DEC_EVENT_ADMIT)
        return on_admit(sequence, event, now);
    if (event->kind == DEC_EVENT_ATTACH)
        return on_attach(sequence);
    if (event->kind == DEC_EVENT_DETACH && event->park_ns > 0)
        return on_detach(sequence, event, now);
    bool given_up = event->kind == DEC_EVENT_TICK && now >= sequence->park_deadline;
    if (given_up || event->kind == DEC_EVENT_DETACH || event->kind == DEC_EVENT_CANCEL) {
        sequence->park_deadline = SL_NEVER;
        event = &CANCEL;
    }
    return in_state(sequence, event, now);
}
