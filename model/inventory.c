/* Which tensors a V3.2 checkpoint holds: the table of the spec, walked against a checkpoint.
 *
 * Owns the marks of one walk. Start-up. */
#include "model/safetensors.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/bytes.h"

#define LISTED_MAX 8 /* names in one message */

enum {
    AS_F32 = 1 << MDL_DTYPE_F32,
    AS_BF16 = 1 << MDL_DTYPE_BF16,
    AS_FP8 = 1 << MDL_DTYPE_F8_E4M3,
    AS_E8M0 = 1 << MDL_DTYPE_F8_E8M0,
};

typedef struct walk {
    const mdl_checkpoint *checkpoint;
    const mdl_shape *shape;
    const mdl_tensor *first; /* table base, for marks */
    bool *seen;
    sl_buf problems;
    size_t problem_count;
    char prefix[64]; /* "model.layers.3." */
} walk;

static void problem(walk *w, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void problem(walk *w, const char *format, ...)
{
    char text[400];
    va_list args;

    if (w->problem_count++ >= LISTED_MAX)
        return;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    sl_buf_printf(&w->problems, "%s%s", w->problem_count > 1 ? "; " : "", text);
}

static int64_t blocks(int64_t n)
{
    return (n + MDL_BLOCK - 1) / MDL_BLOCK;
}

/* cols 0 = a vector. Returns NULL when it is missing or wrong (and says so unless optional). */
static const mdl_tensor *want(walk *w, const char *name, int dtypes, int64_t rows, int64_t cols,
                              bool optional)
{
    char full[MDL_TENSOR_NAME_MAX + 1];
    const mdl_tensor *t;

    snprintf(full, sizeof(full), "%s%s", w->prefix, name);
    t = mdl_checkpoint_find(w->checkpoint, full);
    if (!t) {
        if (!optional)
            problem(w, "%s is missing", full);
        return NULL;
    }
    w->seen[t - w->first] = true;
    if (!(dtypes & (1 << t->dtype))) {
        problem(w, "%s has dtype %s", full, mdl_dtype_name(t->dtype));
        return NULL;
    }
    if (t->rank != (cols ? 2 : 1) || t->shape[0] != rows || (cols && t->shape[1] != cols)) {
        problem(w, "%s has the wrong shape, expected [%lld%s%.0lld]", full, (long long)rows,
                cols ? ", " : "", (long long)cols);
        return NULL;
    }
    return t;
}

static void check_scale_values(walk *w, const mdl_tensor *t)
{
    size_t count = t->bytes / mdl_dtype_bytes(t->dtype);

    for (size_t i = 0; i < count; i++) {
        bool good;

        if (t->dtype == MDL_DTYPE_F8_E8M0) {
            good = ((const uint8_t *)t->data)[i] != 0xFF;
        } else {
            uint32_t bits = ((const uint32_t *)t->data)[i];
            uint32_t exponent = bits >> 23; /* the sign bit makes it too large */

            good = exponent > 0 && exponent < 255;
            if (w->shape->scale_ue8m0)
                good = good && (bits & 0x7FFFFF) == 0;
        }
        if (!good) {
            problem(w, "%s: scale %zu is not a %s", t->name, i,
                    w->shape->scale_ue8m0 ? "power of two" : "positive number");
            return;
        }
    }
}

/* A matrix that is FP8 with block scales in a quantised checkpoint, else bf16. name has no
 * ".weight". */
static void want_linear(walk *w, const char *name, int64_t rows, int64_t cols)
{
    char full[128];
    const mdl_tensor *scale;

    snprintf(full, sizeof(full), "%s.weight", name);
    want(w, full, w->shape->quantised ? AS_FP8 : AS_BF16, rows, cols, false);
    if (!w->shape->quantised)
        return;
    snprintf(full, sizeof(full), "%s.weight_scale_inv", name);
    scale = want(w, full, AS_F32 | AS_E8M0, blocks(rows), blocks(cols), false);
    if (scale)
        check_scale_values(w, scale);
}

static void want_mlp(walk *w, const char *name, int64_t width)
{
    int64_t hidden = w->shape->hidden_size;
    char full[96];

    snprintf(full, sizeof(full), "%s.gate_proj", name);
    want_linear(w, full, width, hidden);
    snprintf(full, sizeof(full), "%s.up_proj", name);
    want_linear(w, full, width, hidden);
    snprintf(full, sizeof(full), "%s.down_proj", name);
    want_linear(w, full, hidden, width);
}

static void walk_attention(walk *w)
{
    const mdl_shape *s = w->shape;
    int64_t hidden = s->hidden_size, heads = s->head_count;
    int64_t index_width = (int64_t)s->index_head_count * s->index_head_dim;

    want_linear(w, "self_attn.q_a_proj", s->q_lora_rank, hidden);
    want(w, "self_attn.q_a_layernorm.weight", AS_BF16, s->q_lora_rank, 0, false);
    want_linear(w, "self_attn.q_b_proj", heads * (s->qk_nope_dim + s->qk_rope_dim), s->q_lora_rank);
    want_linear(w, "self_attn.kv_a_proj_with_mqa", s->kv_lora_rank + s->qk_rope_dim, hidden);
    want(w, "self_attn.kv_a_layernorm.weight", AS_BF16, s->kv_lora_rank, 0, false);
    want_linear(w, "self_attn.kv_b_proj", heads * (s->qk_nope_dim + s->v_head_dim),
                s->kv_lora_rank);
    want_linear(w, "self_attn.o_proj", hidden, heads * s->v_head_dim);
    want_linear(w, "self_attn.indexer.wq_b", index_width, s->q_lora_rank);
    want_linear(w, "self_attn.indexer.wk", s->index_head_dim, hidden);
    want(w, "self_attn.indexer.k_norm.weight", AS_F32 | AS_BF16, s->index_head_dim, 0, false);
    want(w, "self_attn.indexer.k_norm.bias", AS_F32 | AS_BF16, s->index_head_dim, 0, false);
    want(w, "self_attn.indexer.weights_proj.weight", AS_BF16, s->index_head_count, hidden, false);
}

static void walk_moe(walk *w)
{
    const mdl_shape *s = w->shape;
    char name[64];

    want(w, "mlp.gate.weight", AS_BF16, s->expert_count, s->hidden_size, false);
    want(w, "mlp.gate.e_score_correction_bias", AS_F32 | AS_BF16, s->expert_count, 0, false);
    for (int32_t e = 0; e < s->expert_count; e++) {
        snprintf(name, sizeof(name), "mlp.experts.%d", e);
        want_mlp(w, name, s->moe_intermediate_size);
    }
    want_mlp(w, "mlp.shared_experts", (int64_t)s->shared_expert_count * s->moe_intermediate_size);
}

static void walk_layer(walk *w, int32_t layer)
{
    const mdl_shape *s = w->shape;

    snprintf(w->prefix, sizeof(w->prefix), "model.layers.%d.", layer);
    want(w, "input_layernorm.weight", AS_BF16, s->hidden_size, 0, false);
    want(w, "post_attention_layernorm.weight", AS_BF16, s->hidden_size, 0, false);
    walk_attention(w);
    if (layer < s->dense_layer_count)
        want_mlp(w, "mlp", s->intermediate_size);
    else
        walk_moe(w);
}

/* The copy may be left out, but it must not differ: the main one is used for both. */
static void want_copy(walk *w, const char *name, const mdl_tensor *original)
{
    const mdl_shape *s = w->shape;
    const mdl_tensor *copy = want(w, name, AS_BF16, s->vocab_size, s->hidden_size, true);

    if (copy && original && memcmp(copy->data, original->data, copy->bytes) != 0)
        problem(w, "%s differs from %s", copy->name, original->name);
}

static void walk_model(walk *w)
{
    const mdl_shape *s = w->shape;
    const mdl_tensor *embedding, *head;

    w->prefix[0] = '\0';
    embedding = want(w, "model.embed_tokens.weight", AS_BF16, s->vocab_size, s->hidden_size, false);
    head = want(w, "lm_head.weight", AS_BF16, s->vocab_size, s->hidden_size, false);
    want(w, "model.norm.weight", AS_BF16, s->hidden_size, 0, false);
    for (int32_t layer = 0; layer < s->layer_count + s->mtp_layer_count; layer++)
        walk_layer(w, layer);
    if (s->mtp_layer_count == 0)
        return;
    want_copy(w, "embed_tokens.weight", embedding);
    want_copy(w, "shared_head.head.weight", head);
    want(w, "enorm.weight", AS_BF16, s->hidden_size, 0, false);
    want(w, "hnorm.weight", AS_BF16, s->hidden_size, 0, false);
    want(w, "shared_head.norm.weight", AS_BF16, s->hidden_size, 0, false);
    want(w, "eh_proj.weight", AS_BF16, s->hidden_size, 2 * (int64_t)s->hidden_size, false);
}

static void list_surplus(walk *w)
{
    static const char IGNORED[] = ".rotary_emb.inv_freq";

    for (size_t i = 0; i < mdl_checkpoint_count(w->checkpoint); i++) {
        const char *name = mdl_checkpoint_at(w->checkpoint, i)->name;
        size_t size = strlen(name), tail = sizeof(IGNORED) - 1;

        if (w->seen[i] || (size > tail && strcmp(name + size - tail, IGNORED) == 0))
            continue;
        problem(w, "%s is not part of the model", name);
    }
}

sl_status mdl_checkpoint_check(const mdl_checkpoint *checkpoint, const mdl_shape *shape,
                               sl_err *err)
{
    walk w = {.checkpoint = checkpoint, .shape = shape};
    sl_status status = sl_ok();

    if (mdl_checkpoint_count(checkpoint) == 0)
        return sl_fail(err, SL_CORRUPT, "checkpoint has no tensors");
    w.first = mdl_checkpoint_at(checkpoint, 0);
    w.seen = sl_alloc(mdl_checkpoint_count(checkpoint), sizeof(*w.seen), "inventory marks");
    sl_buf_init(&w.problems, 8192);
    walk_model(&w);
    list_surplus(&w);
    if (w.problem_count > 0)
        status = sl_fail(err, SL_CORRUPT, "%zu tensors do not fit the model: %s%s", w.problem_count,
                         w.problems.data, w.problem_count > LISTED_MAX ? "; ..." : "");
    sl_buf_fini(&w.problems);
    sl_free(w.seen);
    return status;
}
