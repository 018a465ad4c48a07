/* The queue of a router loop: see queue.h. Pure. */
#include "router/queue.h"

#include <stddef.h>

#include "router/limits.h"

static bool is_before(const rtr_waiter *a, const rtr_waiter *b)
{
    return a->priority != b->priority ? a->priority < b->priority : a->since < b->since;
}

void rtr_queue_insert(rtr_queue *queue, rtr_waiter *waiter)
{
    if (waiter->queued)
        return;
    rtr_waiter *before = queue->last;
    while (before && is_before(waiter, before))
        before = before->prev;
    waiter->prev = before;
    waiter->next = before ? before->next : queue->first;
    if (waiter->next)
        waiter->next->prev = waiter;
    else
        queue->last = waiter;
    if (before)
        before->next = waiter;
    else
        queue->first = waiter;
    waiter->queued = true;
    queue->count++;
}

void rtr_queue_remove(rtr_queue *queue, rtr_waiter *waiter)
{
    if (!waiter->queued)
        return;
    if (waiter->prev)
        waiter->prev->next = waiter->next;
    else
        queue->first = waiter->next;
    if (waiter->next)
        waiter->next->prev = waiter->prev;
    else
        queue->last = waiter->prev;
    waiter->prev = waiter->next = NULL;
    waiter->queued = false;
    queue->count--;
}

bool rtr_queue_must_wait(const rtr_queue *queue, const rtr_waiter *waiter)
{
    for (const rtr_waiter *at = queue->first; at && at != waiter && is_before(at, waiter);
         at = at->next)
        if (at->lacks_room && at->overtaken >= RTR_OVERTAKEN_MAX)
            return true;
    return false;
}

void rtr_queue_note_placed(rtr_queue *queue, const rtr_waiter *waiter)
{
    for (rtr_waiter *at = queue->first; at && at != waiter && is_before(at, waiter); at = at->next)
        at->overtaken += at->lacks_room;
}
