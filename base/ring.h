/* Bounded single-producer single-consumer ring of fixed-size items, and a mailbox = ring + eventfd.
 *
 * Full means refuse. The producer writes the eventfd only when the ring was empty. Thread: one
 * producer thread, one consumer thread (asserted in debug use by the owner); the release store of
 * `head` publishes the item, the consumer's acquire load sees it. */
#ifndef BASE_RING_H
#define BASE_RING_H

#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct sl_ring sl_ring;

/* capacity: a power of two. Allocates once. */
sl_ring *sl_ring_create(size_t item_bytes, size_t capacity);
void sl_ring_destroy(sl_ring *ring);
bool sl_ring_push(sl_ring *ring, const void *item); /* copies; false = full */
bool sl_ring_pop(sl_ring *ring, void *out_item);    /* false = empty */
size_t sl_ring_count(const sl_ring *ring);          /* approximate from other threads */

typedef struct sl_mailbox sl_mailbox;

SL_MUST_USE sl_status sl_mailbox_create(size_t item_bytes, size_t capacity,
                                        sl_mailbox **out_mailbox, sl_err *err);
void sl_mailbox_destroy(sl_mailbox *mailbox);
/* For epoll: readable while items may wait. */
int sl_mailbox_fd(const sl_mailbox *mailbox);
bool sl_mailbox_push(sl_mailbox *mailbox, const void *item);
/* Clears the eventfd first, then pop until false: no wake-up is lost. */
void sl_mailbox_clear(sl_mailbox *mailbox);
bool sl_mailbox_pop(sl_mailbox *mailbox, void *out_item);
/* Blocks until an item may be there or the deadline passed. */
void sl_mailbox_wait(sl_mailbox *mailbox, uint64_t deadline_ns);
/* Wakes the consumer without an item. Any thread. */
void sl_mailbox_wake(sl_mailbox *mailbox);

#ifdef __cplusplus
}
#endif
#endif
