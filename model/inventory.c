/* Which tensors a V3.2 checkpoint holds: the table of the spec, walked against a checkpoint.
 *
 * Owns the marks of one walk. Start-up. Looks at headers only, never at tensor data. */
#include "model/safetensors.h"

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
    AS_SCALE = 1 << MDL_DTYPE_F32 | 1 << MDL_DTYPE_F8_E8M0 | 1 << MDL_DTYPE_U8,
};

typedef struct walk {
    const mdl_checkpoint *checkpoint;
    const mdl_shape *shape;
    const mdl_part *part;    /* NULL: everything is needed */
    const mdl_tensor *first; /* table base, for marks */
    bool *seen;
    bool needed; /* what is walked now */
    sl_buf problems;
    size_t problem_count;
    const char *absent_file; /* the last one that a problem named */
    char prefix[64];         /* "model.layers.3." */
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

static const char *dtypes_text(int dtypes)
{
    switch (dtypes) {
    case AS_FP8:
        return "F8_E4M3";
    case AS_BF16:
        return "BF16";
    case AS_SCALE:
        return "F32, F8_E8M0 or U8";
    default:
        return "F32 or BF16";
    }
}

/* The directory stands in front of the whole message. */
static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* One problem names one missing file, not each of its thousands of tensors. */
static void problem_missing(walk *w, const char *full)
{
    const char *file;
    bool there;

    if (!mdl_checkpoint_absent(w->checkpoint, full, &file, &there)) {
        problem(w, "%s is missing", full);
    } else if (w->absent_file != file) {
        w->absent_file = file;
        problem(w, "%s is missing, perhaps more: %s %s", full, base_name(file),
                there ? "does not hold it" : "is not there");
    }
}

/* cols 0 = a vector. Marks and judges the tensor. */
static void want(walk *w, const char *name, int dtypes, int64_t rows, int64_t cols, bool optional)
{
    char full[MDL_TENSOR_NAME_MAX + 1];
    const mdl_tensor *t;

    snprintf(full, sizeof(full), "%s%s", w->prefix, name);
    t = mdl_checkpoint_find(w->checkpoint, full);
    if (!t) {
        if (!optional && w->needed)
            problem_missing(w, full);
        return;
    }
    w->seen[t - w->first] = true;
    if (!(dtypes & (1 << t->dtype)))
        problem(w, "%s has dtype %s, expected %s (%s)", full, mdl_dtype_name(t->dtype),
                dtypes_text(dtypes), base_name(t->file));
    else if (t->rank != (cols ? 2 : 1) || t->shape[0] != rows || (cols && t->shape[1] != cols))
        problem(w, "%s has the wrong shape, expected [%lld%s%.0lld] (%s)", full, (long long)rows,
                cols ? ", " : "", (long long)cols, base_name(t->file));
}

/* A matrix that is FP8 with block scales in a quantised checkpoint, else bf16. name has no
 * ".weight". */
static void want_linear(walk *w, const char *name, int64_t rows, int64_t cols)
{
    char full[128];

    snprintf(full, sizeof(full), "%s.weight", name);
    want(w, full, w->shape->quantised ? AS_FP8 : AS_BF16, rows, cols, false);
    if (!w->shape->quantised)
        return;
    snprintf(full, sizeof(full), "%s.weight_scale_inv", name);
    want(w, full, AS_SCALE, blocks(rows), blocks(cols), false);
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
    w->needed = !w->part || (layer >= w->part->layer_first && layer < w->part->layer_end);
    want(w, "input_layernorm.weight", AS_BF16, s->hidden_size, 0, false);
    want(w, "post_attention_layernorm.weight", AS_BF16, s->hidden_size, 0, false);
    walk_attention(w);
    if (layer < s->dense_layer_count)
        want_mlp(w, "mlp", s->intermediate_size);
    else
        walk_moe(w);
}

static void walk_model(walk *w)
{
    const mdl_shape *s = w->shape;

    w->prefix[0] = '\0';
    w->needed = !w->part || w->part->ends;
    want(w, "model.embed_tokens.weight", AS_BF16, s->vocab_size, s->hidden_size, false);
    want(w, "lm_head.weight", AS_BF16, s->vocab_size, s->hidden_size, false);
    want(w, "model.norm.weight", AS_BF16, s->hidden_size, 0, false);
    for (int32_t layer = 0; layer < s->layer_count + s->mtp_layer_count; layer++)
        walk_layer(w, layer);
    if (s->mtp_layer_count == 0)
        return;
    /* Copies of embedding and head may be left out. */
    want(w, "embed_tokens.weight", AS_BF16, s->vocab_size, s->hidden_size, true);
    want(w, "shared_head.head.weight", AS_BF16, s->vocab_size, s->hidden_size, true);
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
        problem(w, "%s is not part of the model (%s)", name,
                base_name(mdl_checkpoint_at(w->checkpoint, i)->file));
    }
}

sl_status mdl_checkpoint_check(const mdl_checkpoint *checkpoint, const mdl_shape *shape,
                               const mdl_part *part, sl_err *err)
{
    walk w = {.checkpoint = checkpoint, .shape = shape, .part = part};
    sl_status status = sl_ok();

    if (mdl_checkpoint_count(checkpoint) == 0)
        return sl_fail(err, SL_CORRUPT, "checkpoint has no tensors%s",
                       mdl_checkpoint_absent_count(checkpoint) > 0
                           ? ": none of the files that the index names is there"
                           : "");
    w.first = mdl_checkpoint_at(checkpoint, 0);
    w.seen = sl_alloc(mdl_checkpoint_count(checkpoint), sizeof(*w.seen), "inventory marks");
    sl_buf_init(&w.problems, 8192);
    walk_model(&w);
    list_surplus(&w);
    if (w.problem_count > 0)
        status = sl_fail(err, SL_CORRUPT, "%zu problems: %s%s", w.problem_count, w.problems.data,
                         w.problem_count > LISTED_MAX ? "; ..." : "");
    sl_buf_fini(&w.problems);
    sl_free(w.seen);
    return status;
}
