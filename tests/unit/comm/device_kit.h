/* What the tests of com_device share, over the fake and over NCCL: ranks that send random rows to
 * each other's "experts" by their devices, and the same rows by the group in host memory: that is
 * the oracle for what reaches whom. An expert's output for a row is a function of both. */
#ifndef TESTS_UNIT_COMM_DEVICE_KIT_H
#define TESTS_UNIT_COMM_DEVICE_KIT_H

#include "base/clock.h"
#include "base/rng.h"
#include "comm/device.h"
#include "tests/unit/test.h"

#define DK_LAYERS    3u
#define DK_CONNECT_S 60u

typedef struct dk_shape {
    uint32_t rows_max, chosen, experts, row, scale, output;
} dk_shape;

typedef struct dk_rank {
    const com_device_api *api;
    com_stream stream;
    com_group *group;
    com_device *device;
    dk_shape shape;
    com_layout layout;
    uint16_t *slots;
    uint32_t row_count; /* of the last layer */
    /* host */
    uint8_t *rows, *scales, *outputs, *returns, *returns_host, *part;
    uint32_t *experts, *places, *places_host, *stacked, faults[COM_RANKS_MAX];
    /* device */
    void *d_rows, *d_scales, *d_experts, *d_places, *d_outputs, *d_stacked, *d_fault;
} dk_rank;

static inline uint64_t dk_mix(uint64_t x)
{
    x = (x ^ (x >> 31)) * 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 29)) * 0xbf58476d1ce4e5b9ull;
    return x ^ (x >> 32);
}

/* Experts in one place each in the first layer, in two in the second, anywhere in the third. Each
 * rank has slots for all. */
static inline void dk_layout(dk_rank *k, const dk_shape *shape, uint32_t size, uint64_t mask)
{
    uint32_t members = 0, of[COM_RANKS_MAX], slots = shape->experts;
    for (uint32_t r = 0; r < size; r++)
        if (mask >> r & 1)
            of[members++] = r;
    k->shape = *shape;
    k->slots = sl_alloc((size_t)DK_LAYERS * size * slots, sizeof(uint16_t), "dk slots");
    memset(k->slots, 0xFF, (size_t)DK_LAYERS * size * slots * sizeof(uint16_t));
    for (uint32_t layer = 0; layer < DK_LAYERS; layer++)
        for (uint32_t e = 0; e < shape->experts; e++) {
            uint16_t *at = k->slots + (size_t)layer * size * slots + e;
            uint64_t where = dk_mix(e * 77 + 5) & ~(dk_mix(e) << 1);
            bool any = false;
            for (uint32_t m = 0; m < members; m++) {
                uint32_t home = e * members / shape->experts;
                bool here = m == home || (layer == 1 && m == (home + 1) % members);
                if (layer == 2)
                    here = (where >> m & 1) != 0 || (m == members - 1 && !any);
                any = any || here;
                if (here)
                    at[(size_t)of[m] * slots] = (uint16_t)e;
            }
        }
    k->layout = (com_layout){.rows_max = shape->rows_max,
                             .chosen = shape->chosen,
                             .expert_count = shape->experts,
                             .row_bytes = shape->row,
                             .scale_bytes = shape->scale,
                             .output_bytes = shape->output,
                             .layer_count = DK_LAYERS,
                             .slot_count = slots,
                             .rank_mask = mask,
                             .slots = k->slots};
}

static inline void dk_api_ok(const dk_rank *k, int code)
{
    if (code != COM_DEVICE_OK)
        fail_msg("%s: code %d: %s", k->api->name, code, k->api->last_error());
}

/* Once the group is connected. */
static inline void dk_buffers(dk_rank *k)
{
    const dk_shape *s = &k->shape;
    size_t size = com_group_size(k->group), entries = (size_t)s->rows_max * s->chosen;
    k->rows = sl_alloc(s->rows_max, s->row, "dk rows");
    k->scales = sl_alloc(s->rows_max, s->scale, "dk scales");
    k->experts = sl_alloc(entries, sizeof(uint32_t), "dk experts");
    k->places = sl_alloc(entries, sizeof(uint32_t), "dk places");
    k->places_host = sl_alloc(entries, sizeof(uint32_t), "dk places");
    k->outputs = sl_alloc(size * entries, s->output, "dk outputs");
    k->stacked = sl_alloc(size * entries, sizeof(uint32_t), "dk stacked");
    k->returns = sl_alloc(entries, s->output, "dk returns");
    k->returns_host = sl_alloc(size, com_group_return_bytes(k->group), "dk returns");
    k->part = sl_alloc(s->rows_max, s->row + s->scale + 2 + 2 * (size_t)s->chosen, "dk part");
    com_group_set_returns(k->group, k->returns_host);
    dk_api_ok(k, k->api->memory_create((size_t)s->rows_max * s->row, &k->d_rows));
    dk_api_ok(k, k->api->memory_create((size_t)s->rows_max * s->scale + 4, &k->d_scales));
    dk_api_ok(k, k->api->memory_create(entries * sizeof(uint32_t), &k->d_experts));
    dk_api_ok(k, k->api->memory_create(entries * sizeof(uint32_t), &k->d_places));
    dk_api_ok(k, k->api->memory_create(size * entries * s->output, &k->d_outputs));
    dk_api_ok(k, k->api->memory_create(size * entries * sizeof(uint32_t), &k->d_stacked));
    dk_api_ok(k, k->api->memory_create(sizeof(uint32_t), &k->d_fault));
}

static inline void dk_free(dk_rank *k)
{
    void *host[] = {k->rows,    k->scales,       k->experts, k->places, k->places_host, k->outputs,
                    k->returns, k->returns_host, k->part,    k->slots,  k->stacked};
    void *device[] = {k->d_rows,    k->d_scales,  k->d_experts, k->d_places,
                      k->d_outputs, k->d_stacked, k->d_fault};
    com_device_close(k->device);
    com_group_close(k->group);
    for (size_t i = 0; i < sizeof(host) / sizeof(host[0]); i++)
        sl_free(host[i]);
    for (size_t i = 0; i < sizeof(device) / sizeof(device[0]); i++)
        if (device[i])
            k->api->memory_destroy(device[i]);
}

/* bf16, neither NaN nor infinite, of some hundred magnitudes apart: sums depend on their order. */
static inline void dk_expert(const dk_rank *k, const uint8_t *row, const uint8_t *scale,
                             uint32_t expert, uint8_t *out)
{
    uint16_t *to = (uint16_t *)out;
    uint64_t seed = dk_mix(expert + 1);
    for (uint32_t i = 0; i < k->shape.scale; i++)
        seed = dk_mix(seed + scale[i]);
    for (uint32_t i = 0; i < k->shape.output / 2; i++) {
        uint64_t x = dk_mix(seed + i * 3 + row[i % k->shape.row] * 65537ull);
        to[i] = (uint16_t)((x & 0x807F) | (120 + (x >> 16) % 12) << 7);
    }
}

static inline uint32_t dk_fill(dk_rank *k, uint64_t stream)
{
    const dk_shape *s = &k->shape;
    uint32_t count = (uint32_t)(sl_keyed_uniform(stream, 0, 1) * (s->rows_max + 1));
    if (stream % 5 == 0)
        count = stream % 2 ? 0 : s->rows_max;
    for (size_t i = 0; i < (size_t)count * s->row; i++)
        k->rows[i] = (uint8_t)dk_mix(stream * 1000003 + i);
    for (size_t i = 0; i < (size_t)count * s->scale; i++)
        k->scales[i] = (uint8_t)dk_mix(stream * 7000003 + i);
    for (uint32_t row = 0; row < count; row++) {
        uint32_t from = 0; /* ascending, leaving room for the rest */
        for (uint32_t i = 0; i < s->chosen; i++) {
            uint32_t room = (s->experts - from) / (s->chosen - i);
            uint64_t skip = dk_mix(stream * 31 + row * 64 + i) % room;
            k->experts[row * s->chosen + i] = from + (uint32_t)skip;
            from += (uint32_t)skip + 1;
        }
    }
    k->row_count = count;
    return count;
}

static inline sl_status dk_put(dk_rank *k, void *to, const void *from, size_t bytes, sl_err *err)
{
    if (bytes > 0)
        dk_api_ok(k, k->api->copy(to, from, bytes, k->stream));
    return com_device_wait(k->device, err);
}

/* A part of one rank to host memory: with the group's bytes (own part: with none). */
static inline sl_status dk_part(dk_rank *k, const com_part *part, const com_part *host,
                                com_part *out_part, sl_err *err)
{
    size_t rows = (size_t)part->row_count * k->shape.row;
    size_t scales = (size_t)part->row_count * k->shape.scale;
    size_t counts = part->row_count * sizeof(uint16_t), experts = part->entry_count * 2u;
    SL_TRY(dk_put(k, k->part, part->rows, rows, err));
    SL_TRY(dk_put(k, k->part + rows, part->scales, scales, err));
    SL_TRY(dk_put(k, k->part + rows + scales, part->counts, counts, err));
    SL_TRY(dk_put(k, k->part + rows + scales + counts, part->experts, experts, err));
    *out_part = (com_part){.row_count = part->row_count,
                           .entry_count = part->entry_count,
                           .rows = k->part,
                           .scales = k->part + rows,
                           .counts = (uint16_t *)(k->part + rows + scales),
                           .experts = (uint16_t *)(k->part + rows + scales + counts)};
    if (!host)
        return sl_ok();
    assert_int_equal(part->row_count, host->row_count);
    assert_int_equal(part->entry_count, host->entry_count);
    if (part->row_count > 0)
        assert_memory_equal(k->part, host->rows, rows + scales + counts + experts);
    return sl_ok();
}

/* Its rows through the experts that they are here for, stacked in reverse from `top` down. */
static inline void dk_compute(dk_rank *k, const com_part *part, uint32_t first, uint32_t total)
{
    const uint16_t *expert = part->experts;
    for (uint32_t row = 0, at = first; row < part->row_count; row++)
        for (uint32_t i = 0; i < part->counts[row]; i++, at++, expert++) {
            k->stacked[at] = total - 1 - at;
            dk_expert(k, (const uint8_t *)part->rows + (size_t)row * k->shape.row,
                      (const uint8_t *)part->scales + (size_t)row * k->shape.scale, *expert,
                      k->outputs + (size_t)k->stacked[at] * k->shape.output);
        }
}

/* Each entry's output is what the expert makes of the row, and was made where the group has it. */
static inline void dk_check(dk_rank *k)
{
    const dk_shape *s = &k->shape;
    uint8_t *want = sl_alloc(1, s->output, "dk want");
    uint64_t seen = 0;
    for (uint32_t i = 0; i < k->row_count * s->chosen; i++) {
        size_t row = i / s->chosen, place = k->places[i];
        assert_true(place < (size_t)k->row_count * s->chosen);
        seen += place;
        dk_expert(k, k->rows + row * s->row, k->scales + row * s->scale, k->experts[i], want);
        assert_memory_equal(k->returns + place * s->output, want, s->output);
    }
    uint64_t entries = (uint64_t)k->row_count * s->chosen;
    assert_int_equal(seen, entries > 0 ? entries * (entries - 1) / 2 : 0);
    sl_free(want);
}

static inline sl_status dk_combine(dk_rank *k, uint32_t total, uint32_t fault, sl_err *err)
{
    const dk_shape *s = &k->shape;
    size_t entries = (size_t)k->row_count * s->chosen;
    SL_TRY(dk_put(k, k->d_outputs, k->outputs, (size_t)total * s->output, err));
    SL_TRY(dk_put(k, k->d_stacked, k->stacked, total * sizeof(uint32_t), err));
    SL_TRY(dk_put(k, k->d_fault, &fault, sizeof(fault), err));
    SL_TRY(com_device_combine(k->device, k->d_outputs, k->d_stacked, k->d_fault, err));
    SL_TRY(dk_put(k, k->returns, com_device_returns(k->device), entries * s->output, err));
    SL_TRY(dk_put(k, k->places, k->d_places, entries * sizeof(uint32_t), err));
    return dk_put(k, k->faults, com_device_faults(k->device),
                  com_group_size(k->group) * sizeof(uint32_t), err);
}

/* One layer by both ways. Without `oracle`, by the devices alone. */
static inline sl_status dk_layer(dk_rank *k, uint32_t layer, uint64_t stream, uint32_t fault,
                                 bool oracle, sl_err *err)
{
    static _Thread_local com_part parts[COM_RANKS_MAX], host[COM_RANKS_MAX];
    const dk_shape *s = &k->shape;
    uint32_t count = dk_fill(k, stream), total = 0, at = 0, faulty;
    uint32_t size = com_group_size(k->group), own = com_group_rank(k->group);
    const com_rows rows = {layer, count, k->rows, k->scales, k->experts};
    const com_rows on_device = {layer, count, k->d_rows, k->d_scales, k->d_experts};
    SL_TRY(dk_put(k, k->d_rows, k->rows, (size_t)count * s->row, err));
    SL_TRY(dk_put(k, k->d_scales, k->scales, (size_t)count * s->scale, err));
    SL_TRY(dk_put(k, k->d_experts, k->experts, (size_t)count * s->chosen * 4, err));
    SL_TRY(com_device_dispatch_post(k->device, &on_device, k->d_places, err));
    SL_TRY(com_device_dispatch_wait(k->device, parts, err));
    if (oracle) {
        SL_TRY(com_dispatch_post(k->group, &rows, k->places_host, err));
        SL_TRY(com_dispatch_wait(k->group, host, err));
    }
    for (uint32_t r = 0; r < size; r++)
        total += parts[r].entry_count;
    for (uint32_t r = 0; r < size; r++) {
        com_part part;
        SL_TRY(dk_part(k, &parts[r], oracle && r != own ? &host[r] : NULL, &part, err));
        dk_compute(k, &part, at, total);
        at += part.entry_count;
    }
    SL_TRY(dk_combine(k, total, fault, err));
    dk_check(k);
    if (!oracle)
        return sl_ok();
    for (uint32_t r = 0; r < size; r++) /* the host's parts have no own one */
        at -= r < own ? 0 : parts[r].entry_count;
    memmove(k->stacked + at, k->stacked + at + parts[own].entry_count,
            (total - at - parts[own].entry_count) * sizeof(uint32_t));
    SL_TRY(com_combine_post(k->group, k->outputs, k->stacked, false, err));
    SL_TRY(com_combine_wait(k->group, &faulty, err));
    for (uint32_t i = 0; i < count * s->chosen; i++)
        if (k->places_host[i] != COM_LOCAL)
            assert_memory_equal(k->returns + (size_t)k->places[i] * s->output,
                                k->returns_host + (size_t)k->places_host[i] * s->output, s->output);
    return sl_ok();
}

#endif
