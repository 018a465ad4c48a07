/* The state machine of a pause: see pause.h. Pure: reads no clock, touches nothing but its struct.
 */
#include "node/pause.h"

#include "base/assert.h"

/* LEGAL[from] = set of states that may follow. */
static const uint32_t LEGAL[NOD_PAUSE_STATE_COUNT] = {
    [NOD_PAUSE_STATE_OFF] = 1u << NOD_PAUSE_STATE_WAITING | 1u << NOD_PAUSE_STATE_STOPPING,
    [NOD_PAUSE_STATE_WAITING] = 1u << NOD_PAUSE_STATE_STOPPING | 1u << NOD_PAUSE_STATE_OFF,
    [NOD_PAUSE_STATE_STOPPING] = 1u << NOD_PAUSE_STATE_ON | 1u << NOD_PAUSE_STATE_OFF,
    [NOD_PAUSE_STATE_ON] = 1u << NOD_PAUSE_STATE_OFF,
};

static void set_state(nod_pause *pause, nod_pause_state state, sl_time_ns deadline)
{
    sl_assert(LEGAL[pause->state] & (1u << state));
    pause->state = state;
    pause->deadline = deadline;
}

void nod_pause_init(nod_pause *pause)
{
    *pause = (nod_pause){.state = NOD_PAUSE_STATE_OFF, .deadline = SL_NEVER};
}

sl_time_ns nod_pause_until(const nod_pause *pause)
{
    if (pause->state == NOD_PAUSE_STATE_OFF)
        return 0;
    return pause->state == NOD_PAUSE_STATE_ON ? pause->deadline : pause->deadline + pause->hold_ns;
}

static nod_pause_outcome begin(nod_pause *pause, const nod_pause_event *event, sl_time_ns now)
{
    nod_pause_outcome out = {NOD_PAUSE_ACTION_TELL, SL_OK};
    pause->hold_ns = event->hold_ns;
    switch (pause->state) {
    case NOD_PAUSE_STATE_OFF:
        pause->asked_at = now;
        set_state(pause, event->wait ? NOD_PAUSE_STATE_WAITING : NOD_PAUSE_STATE_STOPPING,
                  now + event->wait_ns);
        out.actions |= event->wait ? 0 : NOD_PAUSE_ACTION_REST;
        break;
    case NOD_PAUSE_STATE_WAITING:
        if (!event->wait) { /* somebody does not wait */
            set_state(pause, NOD_PAUSE_STATE_STOPPING, now + event->wait_ns);
            out.actions |= NOD_PAUSE_ACTION_REST | NOD_PAUSE_ACTION_FAIL;
            out.code = SL_EXISTS;
        } else if (now + event->wait_ns > pause->deadline) { /* the others' time stays */
            pause->deadline = now + event->wait_ns;
        }
        break;
    case NOD_PAUSE_STATE_ON:
        pause->deadline = now + event->hold_ns;
        out.actions |= NOD_PAUSE_ACTION_REPLY;
        break;
    default: /* STOPPING: the answer comes for all who asked */
        break;
    }
    return out;
}

static nod_pause_outcome end(nod_pause *pause, sl_code code)
{
    nod_pause_outcome out = {0, code};
    nod_pause_state before = pause->state;
    if (before == NOD_PAUSE_STATE_OFF)
        return out;
    out.actions = NOD_PAUSE_ACTION_TELL;
    if (before != NOD_PAUSE_STATE_WAITING)
        out.actions |= NOD_PAUSE_ACTION_GO;
    if (before != NOD_PAUSE_STATE_ON)
        out.actions |= NOD_PAUSE_ACTION_FAIL;
    set_state(pause, NOD_PAUSE_STATE_OFF, SL_NEVER);
    return out;
}

nod_pause_outcome nod_pause_handle(nod_pause *pause, const nod_pause_event *event, sl_time_ns now)
{
    nod_pause_outcome out = {0, SL_OK};
    sl_assert(event->kind < NOD_PAUSE_EVENT_COUNT);
    switch (event->kind) {
    case NOD_PAUSE_EVENT_BEGIN:
        out = begin(pause, event, now);
        break;
    case NOD_PAUSE_EVENT_IDLE:
        if (pause->state == NOD_PAUSE_STATE_WAITING) {
            set_state(pause, NOD_PAUSE_STATE_STOPPING, pause->deadline);
            out.actions = NOD_PAUSE_ACTION_REST;
        }
        break;
    case NOD_PAUSE_EVENT_RESTS:
        if (pause->state == NOD_PAUSE_STATE_STOPPING) {
            set_state(pause, NOD_PAUSE_STATE_ON, now + pause->hold_ns);
            pause->rested_at = now;
            out.actions = NOD_PAUSE_ACTION_TELL | NOD_PAUSE_ACTION_REPLY;
        }
        break;
    case NOD_PAUSE_EVENT_END:
        out = end(pause, SL_CONFLICT);
        break;
    case NOD_PAUSE_EVENT_LEAVE:
        out = end(pause, SL_UNAVAILABLE);
        break;
    case NOD_PAUSE_EVENT_TICK:
        if (now >= pause->deadline) {
            bool on = pause->state == NOD_PAUSE_STATE_ON;
            out = end(pause, SL_DEADLINE);
            out.actions |= on ? NOD_PAUSE_ACTION_EXPIRED : 0;
        }
        break;
    default:
        sl_assert(false);
    }
    return out;
}
