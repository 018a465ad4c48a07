/* Who waits for a place, in what order, and who may overtake. Pure: numbers and links, no clock.
 *
 * Lower priority numbers first, then the oldest; a request that must look again keeps its place.
 * One that lacks room is overtaken by those that find some (smaller ones, or for other nodes), but
 * only RTR_OVERTAKEN_MAX times: then whoever comes behind it waits too. Thread: the loop's. */
#ifndef ROUTER_QUEUE_H
#define ROUTER_QUEUE_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct rtr_waiter {
    struct rtr_waiter *prev, *next;
    bool queued;
    int32_t priority;
    uint64_t since; /* arrival */
    bool lacks_room;
    uint32_t overtaken;
} rtr_waiter;

typedef struct rtr_queue {
    rtr_waiter *first, *last;
    uint32_t count;
} rtr_queue;

/* Does nothing if it is there already. */
void rtr_queue_insert(rtr_queue *queue, rtr_waiter *waiter);
/* Does nothing if it is not there. */
void rtr_queue_remove(rtr_queue *queue, rtr_waiter *waiter);
/* Somebody before this one (which may not be queued itself) was overtaken often enough. */
bool rtr_queue_must_wait(const rtr_queue *queue, const rtr_waiter *waiter);
/* It found a place: those before it that lack room were overtaken. */
void rtr_queue_note_placed(rtr_queue *queue, const rtr_waiter *waiter);

#ifdef __cplusplus
}
#endif
#endif
