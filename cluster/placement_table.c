/* Reads and writes placement tables: see placement_table.h. */
#include "cluster/placement_table.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/json.h"
#include "cluster/member.h"
#include "cluster/fields.h"

uint64_t clu_placement_entries(const clu_place_shape *shape)
{
    return (uint64_t)shape->layers * shape->ranks * shape->slots;
}

static clu_placement *table_alloc(const clu_place_shape *shape, uint64_t version)
{
    clu_placement *table = sl_alloc(1, sizeof(*table), "placement table");
    table->version = version;
    table->shape = *shape;
    table->slots = sl_alloc(clu_placement_entries(shape), sizeof(uint16_t), "placement table");
    return table;
}

sl_status clu_placement_create(const clu_place_shape *shape, uint64_t version,
                               clu_placement **out_table, sl_err *err)
{
    SL_TRY(clu_place_check_shape(shape, err));
    size_t count = (size_t)shape->layers * shape->experts;
    double *loads = sl_alloc(count, sizeof(*loads), "even loads");
    for (size_t i = 0; i < count; i++)
        loads[i] = 1;
    clu_placement *table = table_alloc(shape, version);
    sl_status status = clu_place_plan(shape, loads, table->slots, err);
    sl_free(loads);
    if (!sl_is_ok(status))
        clu_placement_destroy(table);
    else
        *out_table = table;
    return status;
}

clu_placement *clu_placement_copy(const clu_placement *table)
{
    clu_placement *copy = table_alloc(&table->shape, table->version);
    memcpy(copy->slots, table->slots, clu_placement_entries(&table->shape) * sizeof(uint16_t));
    return copy;
}

void clu_placement_destroy(clu_placement *table)
{
    if (!table)
        return;
    sl_free(table->slots);
    sl_free(table);
}

bool clu_placement_fits(const clu_placement *table, const clu_place_shape *shape)
{
    const clu_place_shape *own = &table->shape;
    return own->layers == shape->layers && own->experts == shape->experts &&
           own->ranks == shape->ranks && own->slots == shape->slots;
}

/* ---- JSON ---- */

static void write_rank(sl_buf *buf, const uint16_t *slots, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        sl_buf_printf(buf, "%s%u", i ? "," : "[", slots[i]);
    sl_buf_puts(buf, "]");
}

void clu_placement_write_json(sl_buf *buf, const clu_placement *table)
{
    const clu_place_shape *shape = &table->shape;
    const uint16_t *at = table->slots;
    sl_buf_printf(buf, "{\"version\":%" PRIu64 ",\"experts\":%u,\"groups\":%u,\"slots\":%u",
                  table->version, shape->experts, shape->groups ? shape->groups : 1, shape->slots);
    sl_buf_puts(buf, ",\"layers\":[");
    for (uint32_t layer = 0; layer < shape->layers; layer++) {
        sl_buf_puts(buf, layer ? ",\n[" : "\n[");
        for (uint32_t rank = 0; rank < shape->ranks; rank++, at += shape->slots) {
            sl_buf_puts(buf, rank ? "," : "");
            write_rank(buf, at, shape->slots);
        }
        sl_buf_puts(buf, "]");
    }
    sl_buf_puts(buf, "]}");
}

static sl_status parse_layer(const sl_json *layer, uint32_t index, const clu_place_shape *shape,
                             uint16_t *out_slots, sl_err *err)
{
    if (sl_json_count(layer) != shape->ranks)
        return sl_fail(err, SL_INVALID, "layer %u: want a list for each of %u ranks", index,
                       shape->ranks);
    for (uint32_t rank = 0; rank < shape->ranks; rank++) {
        const sl_json *of = sl_json_at(layer, rank);
        if (sl_json_typeof(of) != SL_JSON_ARRAY || sl_json_count(of) != shape->slots)
            return sl_fail(err, SL_INVALID, "layer %u, rank %u: want %u experts", index, rank,
                           shape->slots);
        for (uint32_t i = 0; i < shape->slots; i++) {
            int64_t expert;
            if (!sl_json_i64(sl_json_at(of, i), &expert) || expert < 0 || expert >= shape->experts)
                return sl_fail(err, SL_INVALID, "layer %u, rank %u: want 0 to %u", index, rank,
                               shape->experts - 1);
            out_slots[rank * shape->slots + i] = (uint16_t)expert;
        }
    }
    return sl_ok();
}

static sl_status parse_root(const sl_json *root, clu_placement **out_table, sl_err *err)
{
    const sl_json *layers = sl_json_get(root, "layers");
    int64_t version = 0, experts = 0, groups = 0, slots = 0;
    SL_TRY(clu_field_number(root, "version", true, 1, INT64_MAX, &version, err));
    SL_TRY(clu_field_number(root, "experts", true, 1, CLU_PLACE_EXPERTS_MAX, &experts, err));
    SL_TRY(clu_field_number(root, "groups", true, 1, CLU_PLACE_EXPERTS_MAX, &groups, err));
    SL_TRY(clu_field_number(root, "slots", true, 1, CLU_PLACE_SLOTS_MAX, &slots, err));
    clu_place_shape shape = {.layers = (uint32_t)sl_json_count(layers),
                             .experts = (uint32_t)experts,
                             .groups = (uint32_t)groups,
                             .slots = (uint32_t)slots,
                             .fragile = true};
    if (sl_json_typeof(layers) != SL_JSON_ARRAY)
        return sl_fail(err, SL_INVALID, "layers: want a list");
    shape.ranks = (uint32_t)sl_json_count(sl_json_at(layers, 0));
    SL_TRY(clu_place_check_shape(&shape, err));
    shape.fragile = shape.ranks > 1 && (shape.ranks - 1) * shape.slots < shape.experts;
    clu_placement *table = table_alloc(&shape, (uint64_t)version);
    sl_status status = sl_ok();
    size_t of_layer = (size_t)shape.ranks * shape.slots;
    for (uint32_t i = 0; i < shape.layers && sl_is_ok(status); i++)
        status = parse_layer(sl_json_at(layers, i), i, &shape, table->slots + i * of_layer, err);
    if (sl_is_ok(status))
        status = clu_place_check(&shape, table->slots, err);
    if (!sl_is_ok(status))
        clu_placement_destroy(table);
    else
        *out_table = table;
    return status;
}

sl_status clu_placement_parse_json(const void *data, size_t size, clu_placement **out_table,
                                   sl_err *err)
{
    static const sl_json_limits LIMITS = {CLU_PLACEMENT_JSON_MAX, 6};
    sl_json_doc *doc;
    if (size > CLU_PLACEMENT_JSON_MAX || !sl_is_ok(sl_json_parse(data, size, &LIMITS, &doc, err)))
        return sl_fail(err, SL_INVALID, "no JSON of at most %u bytes", CLU_PLACEMENT_JSON_MAX);
    sl_status status = parse_root(sl_json_root(doc), out_table, err);
    sl_json_doc_destroy(doc);
    return status;
}

sl_status clu_placement_key(const char *cluster, const char *instance, char out_key[CLU_KEY_MAX],
                            sl_err *err)
{
    char path[sizeof("placement/") + CLU_NAME_MAX];
    if (!clu_name_valid(instance))
        return sl_fail(err, SL_INVALID,
                       "instance name \"%.80s\": want lower-case letters, digits, . _ -", instance);
    snprintf(path, sizeof(path), "placement/%s", instance);
    return clu_key(cluster, path, out_key, err);
}
