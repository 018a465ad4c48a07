/* Both go in circles over as many places as the window of local reads has pieces. */
#include "kvtransfer/reads.h"

#include <string.h>

#include "base/assert.h"
#include "base/bytes.h"

void kvt_read_ring_init(kvt_read_ring *ring, kvt_read_offers *offers)
{
    memset(ring, 0, sizeof *ring);
    ring->offers = offers;
}

bool kvt_read_ring_free(const kvt_read_ring *ring)
{
    return !ring->requests[ring->next] && !ring->busy[ring->next];
}

uint32_t kvt_read_ring_window(const kvt_read_ring *ring, uint32_t open)
{
    uint32_t others = open > ring->open ? open - ring->open : 0;
    bool wide = kvt_read_ring_free(ring) && others + ring->messages < KVT_WINDOW_PIECES;
    return wide ? KVT_WINDOW_READS : KVT_WINDOW_PIECES;
}

bool kvt_read_ring_full(const kvt_read_ring *ring, uint64_t bytes)
{
    return ring->unsent > 0 && (ring->next == 0 || ring->unsent == KVT_WIRE_READS_MAX ||
                                ring->unsent_bytes + bytes > KVT_READS_BYTES);
}

void kvt_read_ring_add(kvt_read_ring *ring, const void *head, const void *data, uint64_t bytes,
                       kvt_request *request)
{
    uint32_t place = ring->next;
    sl_assert(!ring->requests[place]);
    kvt_read_offer offer = {place, (uint64_t)(uintptr_t)data, bytes, head};
    kvt_wire_pack_read(&offer, (*ring->offers)[place]);
    ring->requests[place] = request;
    ring->open++;
    ring->next = (place + 1) % KVT_WINDOW_READS;
    ring->unsent++;
    ring->unsent_bytes += bytes;
}

sl_span kvt_read_ring_take(kvt_read_ring *ring, bool **out_busy)
{
    uint32_t first = (ring->next + KVT_WINDOW_READS - ring->unsent) % KVT_WINDOW_READS;
    sl_span message = {(*ring->offers)[first], ring->unsent * KVT_WIRE_READ_SIZE};
    *out_busy = &ring->busy[first];
    ring->begins[first] = true;
    ring->messages++;
    ring->unsent = 0;
    ring->unsent_bytes = 0;
    return message;
}

kvt_request *kvt_read_ring_done(kvt_read_ring *ring, uint32_t place)
{
    kvt_request *request = ring->requests[place];
    ring->requests[place] = NULL;
    ring->open -= request != NULL;
    ring->messages -= ring->begins[place];
    ring->begins[place] = false;
    return request;
}

bool kvt_read_queue_put(kvt_read_queue *queue, const void *data, size_t size)
{
    kvt_read_offer offers[KVT_WIRE_READS_MAX];
    uint32_t count = kvt_wire_parse_reads(data, size, offers);
    if (count == 0 || count > KVT_WINDOW_READS - queue->count)
        return false;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t at = (queue->first + queue->count++) % KVT_WINDOW_READS;
        kvt_wire_pack_read(&offers[i], (*queue->offers)[at]);
    }
    return true;
}

uint32_t kvt_read_queue_take(kvt_read_queue *queue, kvt_read_offer out[KVT_WIRE_READS_MAX])
{
    uint64_t bytes = 0;
    uint32_t count = 0;
    while (count < KVT_WIRE_READS_MAX && queue->count > 0) {
        const uint8_t *packed = (*queue->offers)[queue->first];
        uint32_t valid = kvt_wire_parse_reads(packed, KVT_WIRE_READ_SIZE, &out[count]);
        sl_assert(valid == 1);
        bytes += out[count].bytes;
        if (count > 0 && (out[count].place != out[count - 1].place + 1 || bytes > KVT_READS_BYTES))
            break;
        queue->first = (queue->first + 1) % KVT_WINDOW_READS;
        queue->count--;
        count++;
    }
    return count;
}

void kvt_read_untold_add(kvt_read_untold *untold, const kvt_read_offer *offers, uint32_t count)
{
    if (untold->taken.count == 0)
        untold->taken.place = offers[0].place;
    untold->taken.count += count;
    for (uint32_t i = 0; i < count; i++)
        untold->bytes += offers[i].bytes;
}

/* Of the oldest; KVT_WINDOW_READS: none. */
static uint32_t queue_place(const kvt_read_queue *queue)
{
    if (queue->count == 0)
        return KVT_WINDOW_READS;
    sl_reader reader = sl_reader_init((*queue->offers)[queue->first], KVT_WIRE_READ_SIZE);
    return sl_read_u32(&reader); /* where a packed offer begins */
}

bool kvt_read_untold_due(const kvt_read_untold *untold, const kvt_read_queue *queue)
{
    uint32_t next = untold->taken.place + untold->taken.count;
    return untold->taken.count > 0 &&
           (untold->taken.count >= KVT_WINDOW_READS / 4 || untold->bytes >= KVT_WINDOW_BYTES / 4 ||
            next == KVT_WINDOW_READS || queue_place(queue) != next);
}
