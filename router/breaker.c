/* Breaking off with nodes that fail: see breaker.h. Pure. */
#include "router/breaker.h"

bool rtr_breaker_is_open(const rtr_breaker *breaker)
{
    return breaker->pause_ns > 0;
}

bool rtr_breaker_allows(const rtr_breaker *breaker, sl_time_ns now)
{
    return !rtr_breaker_is_open(breaker) || now >= breaker->next_probe;
}

void rtr_breaker_note_given(rtr_breaker *breaker, sl_time_ns now)
{
    if (!rtr_breaker_is_open(breaker) || now < breaker->next_probe)
        return; /* well; or it was the last resort, which proves nothing */
    breaker->probing = true;
    breaker->next_probe = now + breaker->pause_ns;
}

bool rtr_breaker_note_progress(rtr_breaker *breaker)
{
    bool was_open = rtr_breaker_is_open(breaker);
    *breaker = (rtr_breaker){0};
    return was_open;
}

bool rtr_breaker_note_failure(rtr_breaker *breaker, bool grave, sl_time_ns now)
{
    breaker->failures++;
    if (rtr_breaker_is_open(breaker)) {
        if (!breaker->probing)
            return false; /* of the time before */
        breaker->probing = false;
        breaker->pause_ns *= 2;
        if (breaker->pause_ns > RTR_BREAKER_MAX_NS)
            breaker->pause_ns = RTR_BREAKER_MAX_NS;
        breaker->next_probe = now + breaker->pause_ns;
        return false;
    }
    if (!grave && breaker->failures < RTR_BREAKER_FAILURES)
        return false;
    breaker->pause_ns = RTR_BREAKER_FIRST_NS;
    breaker->next_probe = now + breaker->pause_ns;
    return true;
}
