/* What the comm tests share: ranks that send random rows to each other's "experts" and check what
 * comes back. An expert's output for a row is a function of both that no other pair has. */
#ifndef TESTS_UNIT_COMM_KIT_H
#define TESTS_UNIT_COMM_KIT_H

#include "base/rng.h"
#include "comm/comm.h"
#include "tests/unit/test.h"

#define KIT_EXPERTS   16u
#define KIT_CHOSEN    4u
#define KIT_ROWS      48u
#define KIT_ROW       256u
#define KIT_SCALE     8u
#define KIT_OUTPUT    512u
#define KIT_CONNECT_S 30u
#define KIT_LAYERS    3u
#define KIT_SLOTS     16u

typedef struct kit_rank {
    com_group *group;
    uint16_t slots[KIT_LAYERS * COM_RANKS_MAX * KIT_SLOTS];
    com_layout layout;
    uint8_t *returns;
    uint8_t rows[KIT_ROWS * KIT_ROW], scales[KIT_ROWS * KIT_SCALE];
    uint32_t experts[KIT_ROWS * KIT_CHOSEN], places[KIT_ROWS * KIT_CHOSEN];
    uint8_t *outputs;  /* of received entries */
    uint32_t *stacked; /* their places: in reverse, as a stacking by expert might have it */
} kit_rank;

static inline uint16_t *kit_slots_of(kit_rank *r, uint32_t size, uint32_t layer, uint32_t rank)
{
    return r->slots + (layer * size + rank) * KIT_SLOTS;
}

/* Each expert on one rank in the first layer, on two in the second, in the third on as many as have
 * room. */
static inline void kit_layout(kit_rank *r, uint32_t size)
{
    for (uint32_t layer = 0; layer < KIT_LAYERS; layer++) {
        uint32_t used[COM_RANKS_MAX] = {0}, copies = layer < 2 ? layer + 1 : size;
        copies = copies < size ? copies : size;
        for (uint32_t i = 0; i < size * KIT_SLOTS; i++)
            kit_slots_of(r, size, layer, 0)[i] = COM_NO_EXPERT;
        for (uint32_t i = 0; i < copies * KIT_EXPERTS; i++) {
            uint32_t e = i % KIT_EXPERTS;
            uint32_t rank = (e * size / KIT_EXPERTS + i / KIT_EXPERTS) % size;
            if (used[rank] < KIT_SLOTS)
                kit_slots_of(r, size, layer, rank)[used[rank]++] = (uint16_t)e;
        }
    }
    r->layout = (com_layout){.rows_max = KIT_ROWS,
                             .chosen = KIT_CHOSEN,
                             .expert_count = KIT_EXPERTS,
                             .row_bytes = KIT_ROW,
                             .scale_bytes = KIT_SCALE,
                             .output_bytes = KIT_OUTPUT,
                             .layer_count = KIT_LAYERS,
                             .slot_count = KIT_SLOTS,
                             .slots = r->slots};
}

static inline bool kit_holds(kit_rank *r, uint32_t layer, uint32_t rank, uint32_t expert)
{
    const uint16_t *slots = kit_slots_of(r, com_group_size(r->group), layer, rank);
    for (uint32_t i = 0; i < KIT_SLOTS; i++)
        if (slots[i] == expert)
            return true;
    return false;
}

/* Once connected. */
static inline void kit_buffers(kit_rank *r)
{
    uint32_t size = com_group_size(r->group), entries = size * KIT_ROWS * KIT_CHOSEN;
    r->returns = sl_alloc(size, com_group_return_bytes(r->group), "returns");
    r->outputs = sl_alloc(entries, KIT_OUTPUT, "outputs");
    r->stacked = sl_alloc(entries, sizeof(uint32_t), "stacked");
    com_group_set_returns(r->group, r->returns);
}

static inline void kit_free(kit_rank *r)
{
    com_group_close(r->group);
    sl_free(r->returns);
    sl_free(r->outputs);
    sl_free(r->stacked);
}

static inline void kit_expert(const uint8_t *row, const uint8_t *scale, uint32_t expert,
                              uint8_t *out)
{
    for (uint32_t i = 0; i < KIT_OUTPUT; i++)
        out[i] = (uint8_t)(row[i % KIT_ROW] * 31 + scale[i % KIT_SCALE] + expert * 7 + i / KIT_ROW);
}

static inline uint32_t kit_fill(kit_rank *r, uint64_t stream)
{
    uint32_t count = (uint32_t)(sl_keyed_uniform(stream, 0, 1) * (KIT_ROWS + 1));
    if (stream % 5 == 0)
        count = stream % 2 ? 0 : KIT_ROWS;
    for (uint32_t i = 0; i < count * KIT_ROW; i++)
        r->rows[i] = (uint8_t)(sl_keyed_uniform(stream, i, 2) * 256);
    for (uint32_t i = 0; i < count * KIT_SCALE; i++)
        r->scales[i] = (uint8_t)(sl_keyed_uniform(stream, i, 3) * 256);
    for (uint32_t row = 0; row < count; row++) {
        uint32_t from = 0; /* ascending, leaving room for the rest */
        for (uint32_t i = 0; i < KIT_CHOSEN; i++) {
            uint32_t room = KIT_EXPERTS - (KIT_CHOSEN - 1 - i) - from;
            uint32_t skip = (uint32_t)(sl_keyed_uniform(stream, row * 8 + i, 4) * room);
            r->experts[row * KIT_CHOSEN + i] = from + skip;
            from += skip + 1;
        }
    }
    return count;
}

static inline void kit_compute(kit_rank *r, const com_part *parts)
{
    uint32_t total = 0, at = 0;
    for (uint32_t p = 0; p < com_group_size(r->group); p++)
        total += parts[p].entry_count;
    for (uint32_t p = 0; p < com_group_size(r->group); p++) {
        const uint16_t *expert = parts[p].experts;
        for (uint32_t row = 0; row < parts[p].row_count; row++)
            for (uint32_t i = 0; i < parts[p].counts[row]; i++, at++, expert++) {
                r->stacked[at] = total - 1 - at;
                kit_expert((const uint8_t *)parts[p].rows + row * KIT_ROW,
                           (const uint8_t *)parts[p].scales + row * KIT_SCALE, *expert,
                           r->outputs + (size_t)r->stacked[at] * KIT_OUTPUT);
            }
    }
}

static inline void kit_check(kit_rank *r, uint32_t layer, uint32_t count)
{
    uint8_t want[KIT_OUTPUT];
    uint32_t window = KIT_ROWS * KIT_CHOSEN;
    for (uint32_t i = 0; i < count * KIT_CHOSEN; i++) {
        uint32_t row = i / KIT_CHOSEN, expert = r->experts[i];
        bool local = r->places[i] == COM_LOCAL;
        uint32_t rank = local ? com_group_rank(r->group) : r->places[i] / window;
        assert_true(kit_holds(r, layer, rank, expert));
        if (local)
            continue;
        kit_expert(r->rows + row * KIT_ROW, r->scales + row * KIT_SCALE, expert, want);
        assert_memory_equal(r->returns + (size_t)r->places[i] * KIT_OUTPUT, want, KIT_OUTPUT);
    }
}

static inline sl_status kit_layer(kit_rank *r, uint32_t layer, uint64_t stream, bool faulty,
                                  uint32_t *out_faulty, sl_err *err)
{
    com_part parts[COM_RANKS_MAX];
    uint32_t count = kit_fill(r, stream);
    const com_rows rows = {layer, count, r->rows, r->scales, r->experts};
    SL_TRY(com_dispatch_post(r->group, &rows, r->places, err));
    com_group_carry(r->group); /* those whose options say so */
    SL_TRY(com_dispatch_wait(r->group, parts, err));
    kit_compute(r, parts);
    SL_TRY(com_combine_post(r->group, r->outputs, r->stacked, faulty, err));
    com_group_carry(r->group);
    SL_TRY(com_combine_wait(r->group, out_faulty, err));
    if (*out_faulty == com_group_size(r->group))
        kit_check(r, layer, count);
    return sl_ok();
}

/* A run of some layers, its header first. */
static inline sl_status kit_run(kit_rank *r, uint32_t run, uint32_t layers, sl_err *err)
{
    com_header headers[COM_RANKS_MAX];
    uint32_t rank = com_group_rank(r->group), size = com_group_size(r->group), faulty;
    uint64_t mask = com_group_mask(r->group);
    const com_header mine = {.wish = rank + 1, .rows = run % 100, .rank_mask = mask};
    SL_TRY(com_header_post(r->group, &mine, err));
    SL_TRY(com_header_wait(r->group, headers, err));
    for (uint32_t i = 0; i < size; i++) {
        assert_int_equal(headers[i].wish, mask >> i & 1 ? i + 1 : 0);
        assert_int_equal(headers[i].rows, mask >> i & 1 ? run % 100 : 0);
    }
    for (uint32_t layer = 0; layer < layers; layer++) {
        SL_TRY(kit_layer(r, layer % KIT_LAYERS, 1 + rank + size * (layer + (uint64_t)layers * run),
                         false, &faulty, err));
        assert_int_equal(faulty, size);
    }
    return sl_ok();
}

#endif
