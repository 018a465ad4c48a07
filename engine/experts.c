/* Which experts a rank of several holds, and their exchange while it serves.
 *
 * A table says which rank has which experts. Those that a table gives this rank and the model lacks
 * are loaded beside the others, by any thread; the engine thread then puts them in, between two
 * layers of nobody, and what the table takes away goes with the set. Thread: as said in
 * parallel.h. */
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "engine/parallel.h"
#include "engine/ranks.h"

struct eng_experts {
    uint16_t *table;
    uint64_t base; /* swaps before it: what it takes for granted */
    uint32_t load_count, drop_count;
    eng_expert *loads; /* until they are put in */
    eng_expert *drops; /* layer and expert; the rest once they are taken out */
    bool swapped;
};

uint32_t eng_moe_layers(const mdl_shape *shape)
{
    return (uint32_t)(shape->layer_count - shape->dense_layer_count) +
           (shape->mtp_layer_count > 0 ? 1u : 0u);
}

static size_t table_entries(const eng_model *model)
{
    return (size_t)model->moe_layers * model->ep_size * model->ep_slots;
}

bool eng_table_has(const eng_model *model, const uint16_t *table, uint32_t layer, uint32_t rank,
                   uint32_t expert)
{
    const uint16_t *slots = table + ((size_t)layer * model->ep_size + rank) * model->ep_slots;
    for (uint32_t i = 0; i < model->ep_slots; i++)
        if (slots[i] == expert)
            return true;
    return false;
}

void eng_consecutive_table(uint32_t layers, uint32_t experts, uint32_t size, uint32_t slots,
                           uint16_t *out_table)
{
    memset(out_table, 0xff, (size_t)layers * size * slots * sizeof(*out_table));
    for (uint32_t layer = 0; layer < layers; layer++) {
        uint32_t used[COM_RANKS_MAX] = {0};
        for (uint32_t e = 0; e < experts; e++) {
            uint32_t rank = eng_expert_rank(e, experts, size);
            sl_assert(used[rank] < slots);
            out_table[((size_t)layer * size + rank) * slots + used[rank]++] = (uint16_t)e;
        }
    }
}

sl_status eng_model_set_table(eng_model *model, const uint16_t *table, uint32_t slots, sl_err *err)
{
    uint32_t experts = (uint32_t)model->shape.expert_count;
    model->moe_layers = eng_moe_layers(&model->shape);
    model->ep_slots = table ? slots : (experts + model->ep_size - 1) / model->ep_size;
    if (model->ep_slots == 0 || model->ep_slots > COM_SLOTS_MAX ||
        model->moe_layers > COM_LAYERS_MAX)
        return sl_fail(err, SL_INVALID, "%u layers of %u expert slots a rank", model->moe_layers,
                       slots);
    model->ep_table = sl_alloc(table_entries(model), sizeof(uint16_t), "expert table");
    model->expert_memory =
        sl_alloc((size_t)model->moe_layers * experts, sizeof(eng_expert_memory), "expert places");
    if (table)
        memcpy(model->ep_table, table, table_entries(model) * sizeof(uint16_t));
    else
        eng_consecutive_table(model->moe_layers, experts, model->ep_size, model->ep_slots,
                              model->ep_table);
    return sl_ok();
}

void eng_expert_free(eng_expert *expert)
{
    eng_expert_memory *at = &expert->memory;
    if (at->owned && at->memory) {
        sl_free_pages(at->memory, at->bytes);
    } else if (at->memory) { /* the arena's: whole pages of it go back */
        uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
        uintptr_t first = ((uintptr_t)at->memory + page - 1) / page * page;
        uintptr_t end = ((uintptr_t)at->memory + at->bytes) / page * page;
        if (first < end)
            (void)madvise((void *)first, end - first, MADV_DONTNEED);
    }
    *at = (eng_expert_memory){0};
}

void eng_model_free_ranks(eng_model *model)
{
    size_t places =
        model->expert_memory ? model->moe_layers * (size_t)model->shape.expert_count : 0;
    for (size_t i = 0; i < places; i++)
        if (model->expert_memory[i].owned)
            sl_free_pages(model->expert_memory[i].memory, model->expert_memory[i].bytes);
    sl_free(model->expert_memory);
    sl_free(model->ep_table);
    sl_free(model->sums);
    model->expert_memory = NULL;
    model->ep_table = NULL;
    model->sums = NULL;
}

/* ---- a set ---- */

static eng_expert_memory *place_of(const eng_model *model, uint32_t layer, uint32_t expert)
{
    return &model->expert_memory[layer * (size_t)model->shape.expert_count + expert];
}

static sl_status load_missing(const eng_model *model, eng_experts *set, const volatile bool *stop,
                              sl_err *err)
{
    for (uint32_t layer = 0; layer < model->moe_layers; layer++) {
        for (uint32_t e = 0; e < (uint32_t)model->shape.expert_count; e++) {
            bool wanted = eng_table_has(model, set->table, layer, model->ep_rank, e);
            bool there = place_of(model, layer, e)->bytes > 0;
            const eng_expert change = {.layer = layer, .expert = e};
            if (there && !wanted)
                set->drops[set->drop_count++] = change;
            if (!wanted || there)
                continue;
            if (stop && __atomic_load_n(stop, __ATOMIC_RELAXED))
                return sl_fail(err, SL_CANCELLED, "told to stop");
            set->loads[set->load_count] = change;
            SL_TRY(eng_expert_load(model, &set->loads[set->load_count], err));
            set->load_count++;
        }
    }
    return sl_ok();
}

sl_status eng_experts_load(const eng_model *model, const uint16_t *table, const volatile bool *stop,
                           eng_experts **out_set, sl_err *err)
{
    sl_assert(model->ep_table);
    size_t places = (size_t)model->moe_layers * (size_t)model->shape.expert_count;
    eng_experts *set = sl_alloc(1, sizeof(*set), "experts");
    set->base = __atomic_load_n(&model->swaps, __ATOMIC_ACQUIRE);
    set->table = sl_alloc(table_entries(model), sizeof(uint16_t), "expert table");
    memcpy(set->table, table, table_entries(model) * sizeof(uint16_t));
    set->loads = sl_alloc(places, sizeof(eng_expert), "experts");
    set->drops = sl_alloc(places, sizeof(eng_expert), "experts");
    sl_status status = load_missing(model, set, stop, err);
    if (!sl_is_ok(status)) {
        eng_experts_destroy(set);
        return status;
    }
    *out_set = set;
    return status;
}

uint32_t eng_experts_count(const eng_experts *set)
{
    return set->load_count;
}

void eng_experts_destroy(eng_experts *set)
{
    if (!set)
        return;
    for (uint32_t i = 0; !set->swapped && i < set->load_count; i++)
        eng_expert_free(&set->loads[i]);
    for (uint32_t i = 0; set->swapped && i < set->drop_count; i++)
        eng_expert_free(&set->drops[i]);
    sl_free(set->loads);
    sl_free(set->drops);
    sl_free(set->table);
    sl_free(set);
}

bool eng_experts_fit(const eng_model *model, const eng_experts *set)
{
    return set->base == __atomic_load_n(&model->swaps, __ATOMIC_ACQUIRE);
}

void eng_experts_swap(eng_model *model, eng_experts *set)
{
    uint64_t bytes = __atomic_load_n(&model->expert_bytes, __ATOMIC_RELAXED);
    sl_assert(!set->swapped && eng_experts_fit(model, set));
    set->swapped = true;
    for (uint32_t i = 0; i < set->load_count; i++) {
        eng_expert *one = &set->loads[i];
        eng_moe_layer(model, one->layer)->experts[one->expert] = one->mlp;
        *place_of(model, one->layer, one->expert) = one->memory;
        bytes += one->memory.bytes;
    }
    for (uint32_t i = 0; i < set->drop_count; i++) {
        eng_expert *one = &set->drops[i];
        eng_mlp *mlp = &eng_moe_layer(model, one->layer)->experts[one->expert];
        one->mlp = *mlp;
        one->memory = *place_of(model, one->layer, one->expert);
        *mlp = (eng_mlp){0};
        *place_of(model, one->layer, one->expert) = (eng_expert_memory){0};
        bytes -= one->memory.bytes;
    }
    uint16_t *before = model->ep_table;
    model->ep_table = set->table;
    set->table = before;
    __atomic_store_n(&model->expert_bytes, bytes, __ATOMIC_RELAXED);
    (void)__atomic_fetch_add(&model->swaps, 1, __ATOMIC_RELEASE);
}
