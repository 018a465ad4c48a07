/* Packs and reads what goes between ranks. Owns nothing. Thread: any. */
#include "comm/wire.h"

#include "base/bytes.h"

#define MAGIC        0x70656c73u /* "slep" */
#define WIRE_VERSION 3u

void com_wire_pack(const com_wire *wire, uint8_t out_bytes[COM_WIRE_SIZE])
{
    sl_writer w = sl_writer_init(out_bytes, COM_WIRE_SIZE);
    sl_write_u32(&w, MAGIC);
    sl_write_u16(&w, WIRE_VERSION);
    sl_write_u16(&w, (uint16_t)wire->kind);
    sl_write_u32(&w, wire->rank);
    sl_write_u32(&w, wire->phase);
    sl_write_u32(&w, wire->rows);
    sl_write_u32(&w, wire->entries);
    sl_write_u32(&w, wire->wish);
    sl_write_u32(&w, 0);
    sl_write_u64(&w, wire->epoch);
    sl_write_u64(&w, wire->instance);
    sl_write_u64(&w, wire->layout);
    sl_write_u64(&w, wire->formation);
    sl_write_u64(&w, wire->rank_mask);
    sl_write_u64(&w, wire->ready);
    sl_write_u64(&w, wire->reload);
    sl_write_u64(&w, wire->bytes);
}

sl_status com_wire_unpack(const void *bytes, size_t size, com_wire *out_wire, sl_err *err)
{
    sl_reader r = sl_reader_init(bytes, size);
    uint32_t magic = sl_read_u32(&r);
    uint32_t version = sl_read_u16(&r), kind = sl_read_u16(&r);
    com_wire wire = {.kind = (com_kind)kind};
    wire.rank = sl_read_u32(&r);
    wire.phase = sl_read_u32(&r);
    wire.rows = sl_read_u32(&r);
    wire.entries = sl_read_u32(&r);
    wire.wish = sl_read_u32(&r);
    uint32_t zero = sl_read_u32(&r);
    wire.epoch = sl_read_u64(&r);
    wire.instance = sl_read_u64(&r);
    wire.layout = sl_read_u64(&r);
    wire.formation = sl_read_u64(&r);
    wire.rank_mask = sl_read_u64(&r);
    wire.ready = sl_read_u64(&r);
    wire.reload = sl_read_u64(&r);
    wire.bytes = sl_read_u64(&r);
    if (size != COM_WIRE_SIZE || !sl_reader_ok(&r) || magic != MAGIC || zero != 0)
        return sl_fail(err, SL_CORRUPT, "not a message between ranks");
    if (version != WIRE_VERSION)
        return sl_fail(err, SL_CORRUPT, "a message of version %u, this is %u", version,
                       WIRE_VERSION);
    if (kind >= COM_KIND_COUNT || wire.rank >= COM_RANKS_MAX || wire.rows > COM_ROWS_MAX ||
        wire.entries > COM_ROWS_MAX * COM_CHOSEN_MAX)
        return sl_fail(err, SL_CORRUPT, "a message of kind %u, rank %u, %u rows, %u entries", kind,
                       wire.rank, wire.rows, wire.entries);
    *out_wire = wire;
    return sl_ok();
}

uint64_t com_wire_dispatch_bytes(const com_layout *layout, uint32_t rows, uint32_t entries)
{
    uint64_t row = (uint64_t)layout->row_bytes + layout->scale_bytes + sizeof(uint16_t);
    return rows * row + entries * sizeof(uint16_t);
}

static sl_status lists_check(const com_layout *layout, const uint64_t *holders, uint32_t rank,
                             const com_part *part, sl_err *err)
{
    uint32_t at = 0;
    for (uint32_t row = 0; row < part->row_count; row++) {
        uint32_t count = part->counts[row];
        if (count == 0 || count > layout->chosen || count > part->entry_count - at)
            return sl_fail(err, SL_CORRUPT, "row %u has %u experts", row, count);
        for (uint32_t i = 0; i < count; i++, at++) {
            uint32_t expert = part->experts[at];
            if (expert >= layout->expert_count || (holders[expert] >> rank & 1) == 0)
                return sl_fail(err, SL_CORRUPT, "row %u wants expert %u of this rank", row, expert);
            if (i > 0 && expert <= part->experts[at - 1])
                return sl_fail(err, SL_CORRUPT, "the experts of row %u do not ascend", row);
        }
    }
    if (at != part->entry_count)
        return sl_fail(err, SL_CORRUPT, "%u of %u entries belong to no row", part->entry_count - at,
                       part->entry_count);
    return sl_ok();
}

sl_status com_wire_part(const com_layout *layout, const uint64_t *holders, uint32_t rank,
                        const com_wire *wire, const void *data, com_part *out_part, sl_err *err)
{
    uint64_t scales_at = (uint64_t)wire->rows * layout->row_bytes;
    uint64_t counts_at = scales_at + (uint64_t)wire->rows * layout->scale_bytes;
    uint64_t experts_at = counts_at + wire->rows * sizeof(uint16_t);
    if (wire->rows > layout->rows_max || wire->entries > wire->rows * layout->chosen ||
        wire->bytes != com_wire_dispatch_bytes(layout, wire->rows, wire->entries))
        return sl_fail(err, SL_CORRUPT, "a dispatch of %u rows and %u entries in %llu bytes",
                       wire->rows, wire->entries, (unsigned long long)wire->bytes);
    const uint8_t *bytes = data;
    com_part part = {
        .row_count = wire->rows,
        .entry_count = wire->entries,
        .rows = bytes,
        .scales = bytes + scales_at,
        .counts = (const uint16_t *)(bytes + counts_at),
        .experts = (const uint16_t *)(bytes + experts_at),
    };
    SL_TRY(lists_check(layout, holders, rank, &part, err));
    *out_part = part;
    return sl_ok();
}
