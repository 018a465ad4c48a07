/* Single-producer single-consumer ring, and the mailbox that adds an eventfd for sleeping.
 *
 * The ring owns its slots. `head` is written by the producer only, `tail` by the consumer only;
 * each keeps a private copy of the other's index and reloads it only when it seems full or empty,
 * so that the two cache lines move seldom.
 *
 * Orders. The release half of the store to `head` publishes the item, the consumer's acquire load
 * of `head` sees it; `tail` gives the slot back the same way. The stores and the re-loads are
 * seq_cst because of the mailbox: the producer stores head, then loads tail ("had the consumer
 * taken all before this item?"); the consumer stores tail, then loads head ("is there more?"). In
 * one total order at least one of them sees the other's store: either the producer writes the
 * eventfd or the consumer goes on. Never blocks but in sl_mailbox_wait. */
#include "base/ring.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/clock.h"

#define LINE_BYTES 64

struct sl_ring {
    size_t item_bytes;
    size_t mask;
    uint8_t *slots;
    char pad0[LINE_BYTES];
    _Atomic size_t head; /* producer's line */
    size_t tail_seen;
    char pad1[LINE_BYTES];
    _Atomic size_t tail; /* consumer's line */
    size_t head_seen;
    char pad2[LINE_BYTES];
};

struct sl_mailbox {
    sl_ring *ring;
    int fd;
};

sl_ring *sl_ring_create(size_t item_bytes, size_t capacity)
{
    sl_assert(item_bytes > 0);
    sl_assert(capacity > 0 && (capacity & (capacity - 1)) == 0);
    sl_ring *ring = sl_alloc(1, sizeof(*ring), "ring");
    ring->item_bytes = item_bytes;
    ring->mask = capacity - 1;
    ring->slots = sl_alloc(capacity, item_bytes, "ring slots");
    return ring;
}

void sl_ring_destroy(sl_ring *ring)
{
    if (!ring)
        return;
    sl_free(ring->slots);
    sl_free(ring);
}

/* *out_was_drained: the consumer had taken everything before this item. */
static bool ring_push(sl_ring *ring, const void *item, bool *out_was_drained)
{
    size_t head = atomic_load_explicit(&ring->head, memory_order_relaxed);
    if (head - ring->tail_seen > ring->mask) {
        ring->tail_seen = atomic_load_explicit(&ring->tail, memory_order_acquire);
        if (head - ring->tail_seen > ring->mask)
            return false;
    }
    memcpy(ring->slots + (head & ring->mask) * ring->item_bytes, item, ring->item_bytes);
    atomic_store_explicit(&ring->head, head + 1, memory_order_seq_cst);
    if (out_was_drained) {
        ring->tail_seen = atomic_load_explicit(&ring->tail, memory_order_seq_cst);
        *out_was_drained = ring->tail_seen == head;
    }
    return true;
}

bool sl_ring_push(sl_ring *ring, const void *item)
{
    return ring_push(ring, item, NULL);
}

bool sl_ring_pop(sl_ring *ring, void *out_item)
{
    size_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);
    if (tail == ring->head_seen) {
        ring->head_seen = atomic_load_explicit(&ring->head, memory_order_seq_cst);
        if (tail == ring->head_seen)
            return false;
    }
    memcpy(out_item, ring->slots + (tail & ring->mask) * ring->item_bytes, ring->item_bytes);
    atomic_store_explicit(&ring->tail, tail + 1, memory_order_seq_cst);
    return true;
}

size_t sl_ring_count(const sl_ring *ring)
{
    /* tail first: head can only be ahead of what was read. */
    size_t tail = atomic_load_explicit(&ring->tail, memory_order_acquire);
    size_t head = atomic_load_explicit(&ring->head, memory_order_acquire);
    size_t count = head - tail;
    return count > ring->mask + 1 ? ring->mask + 1 : count;
}

sl_status sl_mailbox_create(size_t item_bytes, size_t capacity, sl_mailbox **out_mailbox,
                            sl_err *err)
{
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (fd < 0)
        return sl_fail_errno(err, SL_IO, "create an eventfd");
    sl_mailbox *mailbox = sl_alloc(1, sizeof(*mailbox), "mailbox");
    mailbox->fd = fd;
    mailbox->ring = sl_ring_create(item_bytes, capacity);
    *out_mailbox = mailbox;
    return sl_ok();
}

void sl_mailbox_destroy(sl_mailbox *mailbox)
{
    if (!mailbox)
        return;
    close(mailbox->fd);
    sl_ring_destroy(mailbox->ring);
    sl_free(mailbox);
}

int sl_mailbox_fd(const sl_mailbox *mailbox)
{
    return mailbox->fd;
}

void sl_mailbox_wake(sl_mailbox *mailbox)
{
    uint64_t one = 1;
    ssize_t wrote;
    do {
        wrote = write(mailbox->fd, &one, sizeof(one));
    } while (wrote < 0 && errno == EINTR);
    /* EAGAIN: the counter is full, so the descriptor is readable anyway. */
}

bool sl_mailbox_push(sl_mailbox *mailbox, const void *item)
{
    bool was_drained;
    if (!ring_push(mailbox->ring, item, &was_drained))
        return false;
    if (was_drained)
        sl_mailbox_wake(mailbox);
    return true;
}

void sl_mailbox_clear(sl_mailbox *mailbox)
{
    uint64_t count;
    ssize_t got;
    do {
        got = read(mailbox->fd, &count, sizeof(count));
    } while (got < 0 && errno == EINTR);
}

bool sl_mailbox_pop(sl_mailbox *mailbox, void *out_item)
{
    return sl_ring_pop(mailbox->ring, out_item);
}

void sl_mailbox_wait(sl_mailbox *mailbox, uint64_t deadline_ns)
{
    struct pollfd poll_fd = {.fd = mailbox->fd, .events = POLLIN};
    while (sl_ring_count(mailbox->ring) == 0) {
        struct timespec left = {0, 0};
        if (deadline_ns != SL_NEVER) {
            sl_time_ns now = sl_now_ns();
            uint64_t left_ns = deadline_ns > now ? deadline_ns - now : 0;
            left.tv_sec = (time_t)(left_ns / SL_S_NS);
            left.tv_nsec = (long)(left_ns % SL_S_NS);
        }
        int ready = ppoll(&poll_fd, 1, deadline_ns == SL_NEVER ? NULL : &left, NULL);
        if (ready < 0 && errno == EINTR)
            continue;
        if (ready > 0)
            sl_mailbox_clear(mailbox); /* before the caller pops: no wake-up is lost */
        return;
    }
}
