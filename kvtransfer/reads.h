/* Offers of pieces for local reads on their way: P's ring of places, D's queue of what came.
 *
 * Owns neither the memory of the offers (kvt_read_offers, one a connection) nor the requests.
 * Progress thread, never blocks. */
#ifndef KVTRANSFER_READS_H
#define KVTRANSFER_READS_H

#include "kvtransfer/transport.h"
#include "kvtransfer/wire.h"

/* Offers leave, and are read, together up to here: a call of the kernel costs as much as some KB
 * of payload. More would keep the other end waiting. */
#define KVT_READS_BYTES (KVT_WINDOW_BYTES / 4)

typedef uint8_t kvt_read_offers[KVT_WINDOW_READS][KVT_WIRE_READ_SIZE];

/* P's. The places are a ring; a message is a run of them that does not wrap. */
typedef struct kvt_read_ring {
    kvt_read_offers *offers;
    kvt_request *requests[KVT_WINDOW_READS]; /* offered, and D is not done with them */
    bool busy[KVT_WINDOW_READS];             /* the message that begins here is being sent */
    bool begins[KVT_WINDOW_READS];           /* D is not done with the first of a message */
    uint32_t messages, open;                 /* such; places that are taken */
    uint32_t next;
    uint32_t unsent; /* offers before `next` that no message has */
    uint64_t unsent_bytes;
} kvt_read_ring;

void kvt_read_ring_init(kvt_read_ring *ring, kvt_read_offers *offers);
/* There is a place for another offer. */
bool kvt_read_ring_free(const kvt_read_ring *ring);
/* How many pieces may be in flight, when `open` are (some of them elsewhere): few where each takes
 * a message of its own. */
uint32_t kvt_read_ring_window(const kvt_read_ring *ring, uint32_t open);
/* It does not go with the unsent: they have to be taken first. */
bool kvt_read_ring_full(const kvt_read_ring *ring, uint64_t bytes);
/* `head`: the packed PIECE. There is a place. */
void kvt_read_ring_add(kvt_read_ring *ring, const void *head, const void *data, uint64_t bytes,
                       kvt_request *request);
/* The unsent (at least one) as a message, there while *out_busy, which is the caller's to set. */
sl_span kvt_read_ring_take(kvt_read_ring *ring, bool **out_busy);
/* D is done with the place. NULL: nothing was offered there. */
kvt_request *kvt_read_ring_done(kvt_read_ring *ring, uint32_t place);

/* D's. */
typedef struct kvt_read_queue {
    kvt_read_offers *offers;
    uint32_t first, count;
} kvt_read_queue;

/* A message; false: not a valid one, or more than the window. */
SL_MUST_USE bool kvt_read_queue_put(kvt_read_queue *queue, const void *data, size_t size);
/* The oldest, at places in a row, to be read together; 0: none. Their heads stay until the next
 * put. */
uint32_t kvt_read_queue_take(kvt_read_queue *queue, kvt_read_offer out[KVT_WIRE_READS_MAX]);

/* D's: done with, and P does not know yet. An answer may have to wake P, on the very core that
 * reads, so one stands for as much as P's window can spare. */
typedef struct kvt_read_untold {
    kvt_taken_message taken; /* count 0: nothing */
    uint64_t bytes;
} kvt_read_untold;

/* At least one, as taken from the queue, when nothing is due. */
void kvt_read_untold_add(kvt_read_untold *untold, const kvt_read_offer *offers, uint32_t count);
/* Has to be told before more is taken: a quarter of the window, or the queue has nothing more at
 * the places that follow. */
bool kvt_read_untold_due(const kvt_read_untold *untold, const kvt_read_queue *queue);

#endif
