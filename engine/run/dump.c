/* Collects logits, hidden states, index sets, experts, cache rows and drafts of one run.
 *
 * Thread: main; the tap's callbacks run inside eng_step. Memory grows with prompt x hidden x
 * layers: for judging, not for serving. */
#include "engine/run/dump.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "kernels/kernels.h"
#include "model/safetensors.h"

#define LAST_ROWS 4u

typedef struct index_set {
    uint32_t count;
    uint32_t *slots;
} index_set;

struct eng_run_dump {
    eng_run_dump_options o;
    eng_tap tap;
    uint32_t layers, moe_layers, moe_first, hidden, vocab, chosen, topk, bits_bytes;
    uint32_t *positions; /* [o.position_count] */
    uint32_t logits_rows;
    float *logits;       /* [rows_max][vocab] */
    float *hidden_all;   /* [layers][n][hidden] */
    float *hidden_last;  /* [layers][hidden] */
    float *normed_last;  /* [hidden] */
    index_set *sets;     /* [layers + 1][position_count] */
    uint8_t *kept_bits;  /* [layers][n][bits_bytes] */
    int32_t *experts;    /* [moe_layers][n][chosen] */
    uint8_t *latent;     /* [layers][last][656] */
    uint8_t *index_rows; /* [layers][last][132] */
    int32_t *drafts;     /* [rows_max] */
    float *mtp_logits;   /* [vocab] */
    uint16_t *layer_x;   /* [n][hidden], the last layer's output */
    uint16_t *layer_res;
    mdl_tensor *tensors;
    uint32_t tensor_count, tensor_capacity;
    char (*names)[64];
};

static float element_at(const eng_run_dump *dump, const void *rows, size_t at)
{
    return dump->o.plain ? ((const float *)rows)[at]
                         : krn_bf16_to_f32(((const uint16_t *)rows)[at]);
}

/* ---- tap ---- */

static void keep_set(eng_run_dump *dump, const eng_tap_layer *shown, uint32_t row, uint32_t layer)
{
    const uint32_t *list = shown->lists + (size_t)row * shown->list_stride;
    uint32_t count = shown->list_counts[row];
    uint32_t shift = layer == dump->layers; /* MTP slots are one above their rows */
    for (uint32_t i = 0; i < dump->o.position_count; i++) {
        if (dump->positions[i] != shown->positions[row])
            continue;
        index_set *set = &dump->sets[layer * dump->o.position_count + i];
        sl_free(set->slots);
        set->slots = sl_alloc(count, sizeof(uint32_t), "dump index set");
        set->count = count;
        for (uint32_t j = 0; j < count; j++)
            set->slots[j] = list[j] - shift;
    }
}

static void keep_bits(eng_run_dump *dump, const eng_tap_layer *shown, uint32_t row, uint32_t layer)
{
    const uint32_t *list = shown->lists + (size_t)row * shown->list_stride;
    uint8_t *bits =
        dump->kept_bits +
        ((size_t)layer * dump->o.prompt_count + shown->positions[row]) * dump->bits_bytes;
    for (uint32_t i = 0; i < shown->list_counts[row]; i++)
        bits[list[i] / 8] |= (uint8_t)(1u << (list[i] % 8));
}

static void keep_experts(eng_run_dump *dump, const eng_tap_layer *shown, uint32_t row)
{
    size_t at = (size_t)(shown->layer - dump->moe_first) * dump->o.prompt_count;
    int32_t *out = dump->experts + (at + shown->positions[row]) * dump->chosen;
    for (uint32_t i = 0; i < dump->chosen; i++)
        out[i] = (int32_t)shown->experts[(size_t)row * dump->chosen + i];
}

static void keep_hidden(eng_run_dump *dump, const eng_tap_layer *shown, uint32_t row,
                        uint32_t layer)
{
    uint32_t position = shown->positions[row], hidden = dump->hidden;
    float *out = dump->hidden_all + ((size_t)layer * dump->o.prompt_count + position) * hidden;
    for (uint32_t i = 0; i < hidden; i++) {
        size_t at = (size_t)row * hidden + i;
        out[i] = element_at(dump, shown->x, at) + element_at(dump, shown->res, at);
    }
    if (position == dump->o.prompt_count - 1)
        memcpy(dump->hidden_last + (size_t)layer * hidden, out, hidden * sizeof(float));
    if (shown->layer == dump->o.layer_end - 1 && !dump->o.plain) {
        size_t bytes = hidden * sizeof(uint16_t);
        memcpy(dump->layer_x + (size_t)position * hidden,
               (const uint16_t *)shown->x + (size_t)row * hidden, bytes);
        memcpy(dump->layer_res + (size_t)position * hidden,
               (const uint16_t *)shown->res + (size_t)row * hidden, bytes);
    }
}

static void tap_layer(void *context, const eng_tap_layer *shown)
{
    eng_run_dump *dump = context;
    uint32_t layer = shown->layer - dump->o.layer_first;
    bool mtp = shown->layer >= dump->o.layer_end;
    for (uint32_t row = 0; row < shown->row_count; row++) {
        keep_set(dump, shown, row, layer);
        if (mtp || shown->positions[row] >= dump->o.prompt_count)
            continue;
        keep_bits(dump, shown, row, layer);
        keep_hidden(dump, shown, row, layer);
        if (shown->experts)
            keep_experts(dump, shown, row);
    }
}

static void tap_normed(void *context, const uint32_t *positions, uint32_t row_count, const void *h)
{
    eng_run_dump *dump = context;
    for (uint32_t row = 0; row < row_count; row++) {
        if (positions[row] != dump->o.prompt_count - 1)
            continue;
        for (uint32_t i = 0; i < dump->hidden; i++)
            dump->normed_last[i] = element_at(dump, h, (size_t)row * dump->hidden + i);
    }
}

static void tap_draft(void *context, const uint32_t *positions, uint32_t row_count,
                      const float *logits)
{
    eng_run_dump *dump = context;
    for (uint32_t row = 0; row < row_count; row++) {
        const float *values = logits + (size_t)row * dump->vocab;
        uint32_t best = 0;
        for (uint32_t i = 1; i < dump->vocab; i++)
            best = values[i] > values[best] ? i : best;
        sl_assert(positions[row] < dump->o.rows_max);
        dump->drafts[positions[row]] = (int32_t)best;
        if (positions[row] == dump->o.prompt_count - 1)
            memcpy(dump->mtp_logits, values, dump->vocab * sizeof(float));
    }
}

/* ---- create ---- */

static void dump_set_sizes(eng_run_dump *dump)
{
    const mdl_shape *shape = dump->o.shape;
    uint32_t dense = (uint32_t)shape->dense_layer_count;
    dump->layers = dump->o.layer_end - dump->o.layer_first;
    dump->moe_first = dense > dump->o.layer_first ? dense : dump->o.layer_first;
    dump->moe_layers =
        dump->o.layer_end > dump->moe_first ? dump->o.layer_end - dump->moe_first : 0;
    dump->hidden = (uint32_t)shape->hidden_size;
    dump->vocab = (uint32_t)shape->vocab_size;
    dump->chosen = (uint32_t)shape->experts_per_token;
    dump->topk = (uint32_t)shape->index_topk;
    dump->bits_bytes = (dump->o.prompt_count + 7) / 8;
}

eng_run_dump *eng_run_dump_create(const eng_run_dump_options *options)
{
    eng_run_dump *dump = sl_alloc(1, sizeof(*dump), "dump");
    dump->o = *options;
    dump_set_sizes(dump);
    dump->tap = (eng_tap){dump, tap_layer, tap_normed, tap_draft};
    size_t n = options->prompt_count, layers = dump->layers, hidden = dump->hidden;
    dump->positions = sl_alloc(options->position_count, sizeof(uint32_t), "dump");
    memcpy(dump->positions, options->positions, options->position_count * sizeof(uint32_t));
    dump->logits = sl_alloc((size_t)options->rows_max * dump->vocab, sizeof(float), "dump");
    dump->hidden_all = sl_alloc(layers * n * hidden, sizeof(float), "dump");
    dump->hidden_last = sl_alloc(layers * hidden, sizeof(float), "dump");
    dump->normed_last = sl_alloc(hidden, sizeof(float), "dump");
    dump->sets = sl_alloc((layers + 1) * options->position_count, sizeof(index_set), "dump");
    dump->kept_bits = sl_alloc(layers * n * dump->bits_bytes, 1, "dump");
    dump->experts = sl_alloc(dump->moe_layers * n * dump->chosen, sizeof(int32_t), "dump");
    dump->latent = sl_alloc(layers * LAST_ROWS * KRN_LATENT_ROW_BYTES, 1, "dump");
    dump->index_rows = sl_alloc(layers * LAST_ROWS * (KRN_INDEX_DIM + 4), 1, "dump");
    dump->drafts = sl_alloc(options->rows_max, sizeof(int32_t), "dump");
    for (uint32_t i = 0; i < options->rows_max; i++)
        dump->drafts[i] = -1;
    dump->mtp_logits = sl_alloc(dump->vocab, sizeof(float), "dump");
    dump->layer_x = sl_alloc(n * hidden, sizeof(uint16_t), "dump");
    dump->layer_res = sl_alloc(n * hidden, sizeof(uint16_t), "dump");
    dump->tensor_capacity = 16 + (dump->layers + 1) * options->position_count;
    dump->tensors = sl_alloc(dump->tensor_capacity, sizeof(mdl_tensor), "dump");
    dump->names = sl_alloc(dump->tensor_capacity, sizeof(*dump->names), "dump");
    return dump;
}

void eng_run_dump_destroy(eng_run_dump *dump)
{
    if (!dump)
        return;
    for (uint32_t i = 0; i < (dump->layers + 1) * dump->o.position_count; i++)
        sl_free(dump->sets[i].slots);
    void *const owned[] = {
        dump->positions,   dump->logits,     dump->hidden_all, dump->hidden_last,
        dump->normed_last, dump->sets,       dump->kept_bits,  dump->experts,
        dump->latent,      dump->index_rows, dump->drafts,     dump->mtp_logits,
        dump->layer_x,     dump->layer_res,  dump->tensors,    dump->names,
    };
    for (size_t i = 0; i < sizeof(owned) / sizeof(owned[0]); i++)
        sl_free(owned[i]);
    sl_free(dump);
}

const eng_tap *eng_run_dump_tap(const eng_run_dump *dump)
{
    return &dump->tap;
}

void eng_run_dump_logits(eng_run_dump *dump, const float *logits)
{
    sl_assert(dump->logits_rows < dump->o.rows_max);
    memcpy(dump->logits + (size_t)dump->logits_rows * dump->vocab, logits,
           dump->vocab * sizeof(float));
    dump->logits_rows++;
}

static uint32_t last_rows(const eng_run_dump *dump)
{
    return dump->o.prompt_count < LAST_ROWS ? dump->o.prompt_count : LAST_ROWS;
}

void eng_run_dump_cache(eng_run_dump *dump, eng_engine *engine, const eng_sequence *sequence)
{
    const eng_cache_layout *layout = eng_engine_layout(engine);
    uint32_t last = last_rows(dump);
    const size_t index_bytes = KRN_INDEX_DIM + sizeof(float);
    for (uint32_t layer = 0; layer < dump->layers; layer++) {
        uint64_t slice = layer * layout->layer_bytes;
        for (uint32_t i = 0; i < last; i++) {
            uint32_t slot = dump->o.prompt_count - last + i, row = slot % ENG_PAGE_TOKENS;
            uint32_t page = eng_sequence_page(sequence, slot / ENG_PAGE_TOKENS);
            eng_engine_read_page(engine, page, slice + (uint64_t)row * KRN_LATENT_ROW_BYTES,
                                 KRN_LATENT_ROW_BYTES,
                                 dump->latent + ((size_t)layer * last + i) * KRN_LATENT_ROW_BYTES);
            uint8_t *out = dump->index_rows + ((size_t)layer * last + i) * index_bytes;
            eng_engine_read_page(engine, page,
                                 slice + KRN_INDEX_CODES_AT + (uint64_t)row * KRN_INDEX_DIM,
                                 KRN_INDEX_DIM, out);
            eng_engine_read_page(engine, page, slice + KRN_INDEX_SCALES_AT + row * sizeof(float),
                                 sizeof(float), out + KRN_INDEX_DIM);
        }
    }
}

/* ---- write ---- */

/* Dimensions of 0 at the end are none. */
static void add_tensor(eng_run_dump *dump, const char *name, mdl_dtype dtype, const void *data,
                       const int64_t shape[3])
{
    sl_assert(dump->tensor_count < dump->tensor_capacity);
    uint32_t at = dump->tensor_count++;
    mdl_tensor *tensor = &dump->tensors[at];
    snprintf(dump->names[at], sizeof(dump->names[at]), "%s", name);
    *tensor = (mdl_tensor){.name = dump->names[at], .dtype = dtype, .data = data};
    tensor->bytes = mdl_dtype_bytes(dtype);
    for (uint32_t i = 0; i < 3 && shape[i] > 0; i++) {
        tensor->shape[tensor->rank++] = shape[i];
        tensor->bytes *= (size_t)shape[i];
    }
}

static void add_sets(eng_run_dump *dump)
{
    for (uint32_t i = 0; i < (dump->layers + 1) * dump->o.position_count; i++) {
        char name[64];
        if (dump->sets[i].count == 0)
            continue;
        snprintf(name, sizeof(name), "index_set_%u_%u",
                 dump->o.layer_first + i / dump->o.position_count,
                 dump->positions[i % dump->o.position_count]);
        add_tensor(dump, name, MDL_DTYPE_I32, dump->sets[i].slots,
                   (int64_t[3]){dump->sets[i].count});
    }
}

static void add_common(eng_run_dump *dump)
{
    int64_t n = dump->o.prompt_count, layers = dump->layers;
    add_tensor(dump, "kept_bits", MDL_DTYPE_U8, dump->kept_bits,
               (int64_t[3]){layers, n, dump->bits_bytes});
    if (dump->moe_layers > 0)
        add_tensor(dump, "experts", MDL_DTYPE_I32, dump->experts,
                   (int64_t[3]){dump->moe_layers, n, dump->chosen});
}

sl_status eng_run_dump_write(eng_run_dump *dump, const char *path, sl_err *err)
{
    int64_t n = dump->o.prompt_count, layers = dump->layers, hidden = dump->hidden;
    int64_t vocab = dump->vocab, last = last_rows(dump);
    add_tensor(dump, "logits", MDL_DTYPE_F32, dump->logits, (int64_t[3]){dump->logits_rows, vocab});
    add_tensor(dump, "logits_last4", MDL_DTYPE_F32, dump->logits + (size_t)((n - last) * vocab),
               (int64_t[3]){last, vocab});
    add_tensor(dump, "hidden_all", MDL_DTYPE_F32, dump->hidden_all,
               (int64_t[3]){layers, n, hidden});
    add_tensor(dump, "hidden_last", MDL_DTYPE_F32, dump->hidden_last, (int64_t[3]){layers, hidden});
    add_tensor(dump, "normed_last", MDL_DTYPE_F32, dump->normed_last, (int64_t[3]){hidden});
    add_common(dump);
    if (!dump->o.plain) {
        add_tensor(dump, "cache_latent_last4", MDL_DTYPE_U8, dump->latent,
                   (int64_t[3]){layers, last, KRN_LATENT_ROW_BYTES});
        add_tensor(dump, "cache_index_last4", MDL_DTYPE_U8, dump->index_rows,
                   (int64_t[3]){layers, last, KRN_INDEX_DIM + 4});
    }
    if (dump->o.shape->mtp_layer_count > 0) {
        add_tensor(dump, "mtp_drafts", MDL_DTYPE_I32, dump->drafts,
                   (int64_t[3]){dump->logits_rows});
        add_tensor(dump, "mtp_logits_last", MDL_DTYPE_F32, dump->mtp_logits, (int64_t[3]){vocab});
    }
    add_sets(dump);
    return mdl_safetensors_write(path, dump->tensors, dump->tensor_count, err);
}

sl_status eng_run_dump_write_layers(eng_run_dump *dump, const char *path, sl_err *err)
{
    int64_t n = dump->o.prompt_count, hidden = dump->hidden;
    add_tensor(dump, "layer_x", MDL_DTYPE_BF16, dump->layer_x, (int64_t[3]){n, hidden});
    add_tensor(dump, "layer_res", MDL_DTYPE_BF16, dump->layer_res, (int64_t[3]){n, hidden});
    if ((int64_t)dump->o.layer_first == dump->o.shape->layer_count) /* the MTP layer */
        add_tensor(dump, "normed_last", MDL_DTYPE_F32, dump->normed_last, (int64_t[3]){hidden});
    add_common(dump);
    return mdl_safetensors_write(path, dump->tensors, dump->tensor_count, err);
}
