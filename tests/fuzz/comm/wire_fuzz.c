/* Any bytes as a message between ranks: what the parser takes, packing gives back; the lists of a
 * dispatch that it takes stay inside the data and name experts of the rank. Input: a head, data. */
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "comm/wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { EXPERTS = 8, RANK = 1 };

static const uint64_t holders[EXPERTS] = {1, 1, 2, 3, 6, 4, 5, 2}; /* ranks, as bits */
static const com_layout layout = {
    .rows_max = 64,
    .chosen = 4,
    .expert_count = EXPERTS,
    .row_bytes = 4,
    .scale_bytes = 2,
    .output_bytes = 8,
};

static void check_part(const com_wire *wire, const uint8_t *data, size_t size)
{
    com_part part;
    if (wire->bytes != size)
        return;
    uint8_t *copy = sl_alloc(size, 1, "fuzz message"); /* ends where the data ends */
    memcpy(copy, data, size);
    if (sl_is_ok(com_wire_part(&layout, holders, RANK, wire, copy, &part, NULL))) {
        uint32_t entries = 0;
        for (uint32_t row = 0; row < part.row_count; row++)
            entries += part.counts[row];
        sl_assert(entries == part.entry_count);
        for (uint32_t i = 0; i < entries; i++)
            sl_assert(part.experts[i] < EXPERTS && (holders[part.experts[i]] >> RANK & 1) != 0);
        sl_assert((const uint8_t *)(part.experts + entries) == copy + size);
    }
    sl_free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    com_wire wire;
    uint8_t again[COM_WIRE_SIZE];
    size_t head = size < COM_WIRE_SIZE ? size : COM_WIRE_SIZE;
    if (!sl_is_ok(com_wire_unpack(data, head, &wire, NULL)))
        return 0;
    com_wire_pack(&wire, again);
    sl_assert(memcmp(again, data, COM_WIRE_SIZE) == 0);
    check_part(&wire, data + head, size - head);
    return 0;
}
