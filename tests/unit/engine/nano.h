/* A tiny random checkpoint of the real architecture, written to a temporary directory.
 *
 * Every code path of a step in a few hundred kilobytes a layer: one dense layer, two MoE layers,
 * MTP, index_topk 64. The weights mean nothing; the same seed gives the same bytes. */
#ifndef TESTS_UNIT_ENGINE_NANO_H
#define TESTS_UNIT_ENGINE_NANO_H

#include <sys/stat.h>
#include <unistd.h>

#include "base/rng.h"
#include "engine/engine.h"
#include "kernels/numbers.h"
#include "model/safetensors.h"
#include "tests/unit/test.h"

#define NANO_TENSORS_MAX 1024
#define NANO_HIDDEN      128
#define NANO_VOCAB       320
#define NANO_HEADS       2
#define NANO_LORA        128
#define NANO_LAYERS      3
#define NANO_EXPERTS     8
#define NANO_INDEX_HEADS 8
#define NANO_TOPK        64
#define NANO_MOE_WIDTH   128

typedef struct nano_options {
    bool bf16;             /* no fp8 at all */
    bool e8m0;             /* scales as exponent bytes */
    bool scales_u8;        /* whose type is called U8 */
    bool no_copies;        /* without the MTP layer's embedding and head */
    bool echo;             /* layers add little and MTP passes the embedding on, so that its drafts
                              are often right */
    int shared;            /* n_shared_experts; 0 = 1 */
    const char *drop;      /* leaves this tensor out */
    const char *extra;     /* adds a tensor of this name */
    const char *poison;    /* first element of this tensor becomes NaN */
    const char *huge;      /* all elements of this bf16 or E8M0 tensor become the largest one */
    const char *reshape;   /* one row less */
    const char *bad_scale; /* first scale becomes 3 */
    const char *change;    /* lowest bit of the first byte of this tensor flips */
    const char *retype;    /* this tensor says it is of `type` */
    mdl_dtype type;
} nano_options;

typedef struct nano {
    char dir[64];
    mdl_tensor tensors[NANO_TENSORS_MAX];
    char names[NANO_TENSORS_MAX][224];
    uint32_t count;
    uint64_t draw;
    const nano_options *options;
} nano;

/* Uniform in [-size, size]. */
static inline float nano_random(nano *n, float size)
{
    return (float)(sl_keyed_uniform(7, n->draw++, 3) * 2 - 1) * size;
}

static inline mdl_tensor *nano_add(nano *n, const char *prefix, const char *name, mdl_dtype dtype,
                                   int64_t rows, int64_t cols)
{
    assert_true(n->count < NANO_TENSORS_MAX);
    mdl_tensor *t = &n->tensors[n->count];
    snprintf(n->names[n->count], sizeof(n->names[0]), "%s%s", prefix, name);
    int64_t count = rows * (cols ? cols : 1);
    *t = (mdl_tensor){.name = n->names[n->count],
                      .dtype = dtype,
                      .rank = cols ? 2 : 1,
                      .shape = {rows, cols},
                      .bytes = (size_t)count * mdl_dtype_bytes(dtype)};
    t->data = sl_alloc(t->bytes, 1, "nano tensor");
    n->count++;
    return t;
}

static inline void nano_bf16(nano *n, const char *prefix, const char *name, int64_t rows,
                             int64_t cols, float centre, float size)
{
    mdl_tensor *t = nano_add(n, prefix, name, MDL_DTYPE_BF16, rows, cols);
    uint16_t *out = (uint16_t *)(uintptr_t)t->data;
    for (size_t i = 0; i < t->bytes / 2; i++)
        out[i] = krn_f32_to_bf16(centre + nano_random(n, size));
}

static inline void nano_f32(nano *n, const char *prefix, const char *name, int64_t rows,
                            float centre, float size)
{
    mdl_tensor *t = nano_add(n, prefix, name, MDL_DTYPE_F32, rows, 0);
    float *out = (float *)(uintptr_t)t->data;
    for (size_t i = 0; i < t->bytes / 4; i++)
        out[i] = centre + nano_random(n, size);
}

static inline mdl_dtype nano_scale_type(const nano_options *options)
{
    mdl_dtype bytes = options->scales_u8 ? MDL_DTYPE_U8 : MDL_DTYPE_F8_E8M0;
    return options->e8m0 ? bytes : MDL_DTYPE_F32;
}

static inline void nano_linear(nano *n, const char *prefix, const char *base, int64_t rows,
                               int64_t cols)
{
    char name[128];
    float size = 1.7f / sqrtf((float)cols);
    if (n->options->echo && (strstr(base, "o_proj") || strstr(base, "down_proj")))
        size *= 0.15f;
    snprintf(name, sizeof(name), "%.100s.weight", base);
    if (n->options->bf16) {
        nano_bf16(n, prefix, name, rows, cols, 0, size);
        return;
    }
    mdl_tensor *t = nano_add(n, prefix, name, MDL_DTYPE_F8_E4M3, rows, cols);
    uint8_t *codes = (uint8_t *)(uintptr_t)t->data;
    for (size_t i = 0; i < t->bytes; i++)
        codes[i] = krn_f32_to_e4m3(nano_random(n, size) * 1024.0f);
    snprintf(name, sizeof(name), "%.100s.weight_scale_inv", base);
    int64_t block_rows = (rows + 127) / 128, block_cols = (cols + 127) / 128;
    t = nano_add(n, prefix, name, nano_scale_type(n->options), block_rows, block_cols);
    for (int64_t i = 0; i < block_rows * block_cols; i++) {
        int exponent = -10 - (int)(i % 3);
        if (n->options->e8m0)
            ((uint8_t *)(uintptr_t)t->data)[i] = (uint8_t)(127 + exponent);
        else
            ((float *)(uintptr_t)t->data)[i] = ldexpf(1.0f, exponent);
    }
}

static inline void nano_mlp(nano *n, const char *prefix, const char *base, int64_t width)
{
    char name[128];
    snprintf(name, sizeof(name), "%s.gate_proj", base);
    nano_linear(n, prefix, name, width, NANO_HIDDEN);
    snprintf(name, sizeof(name), "%s.up_proj", base);
    nano_linear(n, prefix, name, width, NANO_HIDDEN);
    snprintf(name, sizeof(name), "%s.down_proj", base);
    nano_linear(n, prefix, name, NANO_HIDDEN, width);
}

static inline void nano_layer(nano *n, int index)
{
    char p[64], name[64];
    snprintf(p, sizeof(p), "model.layers.%d.", index);
    nano_bf16(n, p, "input_layernorm.weight", NANO_HIDDEN, 0, 1, 0.2f);
    nano_bf16(n, p, "post_attention_layernorm.weight", NANO_HIDDEN, 0, 1, 0.2f);
    nano_linear(n, p, "self_attn.q_a_proj", NANO_LORA, NANO_HIDDEN);
    nano_bf16(n, p, "self_attn.q_a_layernorm.weight", NANO_LORA, 0, 1, 0.2f);
    nano_linear(n, p, "self_attn.q_b_proj", NANO_HEADS * 192, NANO_LORA);
    nano_linear(n, p, "self_attn.kv_a_proj_with_mqa", 576, NANO_HIDDEN);
    nano_bf16(n, p, "self_attn.kv_a_layernorm.weight", 512, 0, 1, 0.2f);
    nano_linear(n, p, "self_attn.kv_b_proj", NANO_HEADS * 256, 512);
    nano_linear(n, p, "self_attn.o_proj", NANO_HIDDEN, NANO_HEADS * 128);
    nano_linear(n, p, "self_attn.indexer.wq_b", NANO_INDEX_HEADS * 128, NANO_LORA);
    nano_linear(n, p, "self_attn.indexer.wk", 128, NANO_HIDDEN);
    nano_f32(n, p, "self_attn.indexer.k_norm.weight", 128, 1, 0.2f);
    nano_f32(n, p, "self_attn.indexer.k_norm.bias", 128, 0, 0.2f);
    nano_bf16(n, p, "self_attn.indexer.weights_proj.weight", NANO_INDEX_HEADS, NANO_HIDDEN, 0,
              0.15f);
    if (index == 0) {
        nano_mlp(n, p, "mlp", 256);
        return;
    }
    nano_bf16(n, p, "mlp.gate.weight", NANO_EXPERTS, NANO_HIDDEN, 0, 0.15f);
    nano_f32(n, p, "mlp.gate.e_score_correction_bias", NANO_EXPERTS, 0, 0.5f);
    for (int e = 0; e < NANO_EXPERTS; e++) {
        snprintf(name, sizeof(name), "mlp.experts.%d", e);
        nano_mlp(n, p, name, NANO_MOE_WIDTH);
    }
    int shared = n->options->shared ? n->options->shared : 1;
    nano_mlp(n, p, "mlp.shared_experts", (int64_t)shared * NANO_MOE_WIDTH);
}

static inline void nano_mtp(nano *n)
{
    char p[64];
    snprintf(p, sizeof(p), "model.layers.%d.", NANO_LAYERS);
    nano_layer(n, NANO_LAYERS);
    nano_bf16(n, p, "enorm.weight", NANO_HIDDEN, 0, 1, 0.2f);
    nano_bf16(n, p, "hnorm.weight", NANO_HIDDEN, 0, 1, 0.2f);
    nano_bf16(n, p, "shared_head.norm.weight", NANO_HIDDEN, 0, 1, 0.2f);
    nano_bf16(n, p, "eh_proj.weight", NANO_HIDDEN, 2 * NANO_HIDDEN, 0, 0.1f);
    uint16_t *eh = (uint16_t *)(uintptr_t)n->tensors[n->count - 1].data;
    for (int i = 0; n->options->echo && i < NANO_HIDDEN * 2 * NANO_HIDDEN; i++)
        eh[i] = krn_f32_to_bf16(i / (2 * NANO_HIDDEN) == i % (2 * NANO_HIDDEN) ? 1.0f : 0.0f);
    if (n->options->no_copies)
        return;
    for (uint32_t i = 0; i < 2; i++) { /* tensors 0 and 1 are embedding and head */
        mdl_tensor *copy = nano_add(n, p, i ? "shared_head.head.weight" : "embed_tokens.weight",
                                    MDL_DTYPE_BF16, NANO_VOCAB, NANO_HIDDEN);
        memcpy((void *)(uintptr_t)copy->data, n->tensors[i].data, copy->bytes);
    }
}

static inline void nano_write_config(const nano *n)
{
    char path[128];
    snprintf(path, sizeof(path), "%s/config.json", n->dir);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fprintf(file,
            "{\"architectures\":[\"DeepseekV32ForCausalLM\"],\"attention_bias\":false,"
            "\"bos_token_id\":0,\"eos_token_id\":1,\"first_k_dense_replace\":1,"
            "\"hidden_act\":\"silu\",\"hidden_size\":%d,\"index_head_dim\":128,"
            "\"index_n_heads\":%d,\"index_topk\":%d,\"intermediate_size\":256,"
            "\"kv_lora_rank\":512,\"max_position_embeddings\":163840,"
            "\"model_type\":\"deepseek_v32\",\"moe_intermediate_size\":%d,\"moe_layer_freq\":1,"
            "\"n_group\":4,\"n_routed_experts\":%d,\"n_shared_experts\":%d,"
            "\"norm_topk_prob\":true,\"num_attention_heads\":%d,\"num_experts_per_tok\":3,"
            "\"num_hidden_layers\":%d,\"num_key_value_heads\":%d,\"num_nextn_predict_layers\":1,"
            "\"q_lora_rank\":%d,\"qk_nope_head_dim\":128,\"qk_rope_head_dim\":64,%s"
            "\"rms_norm_eps\":1e-06,\"rope_scaling\":{\"beta_fast\":32,\"beta_slow\":1,"
            "\"factor\":40,\"mscale\":1.0,\"mscale_all_dim\":1.0,"
            "\"original_max_position_embeddings\":4096,\"type\":\"yarn\"},\"rope_theta\":10000,"
            "\"routed_scaling_factor\":2.5,\"scoring_func\":\"sigmoid\","
            "\"tie_word_embeddings\":false,\"topk_group\":2,\"topk_method\":\"noaux_tc\","
            "\"torch_dtype\":\"bfloat16\",\"v_head_dim\":128,\"vocab_size\":%d}",
            NANO_HIDDEN, NANO_INDEX_HEADS, NANO_TOPK, NANO_MOE_WIDTH, NANO_EXPERTS,
            n->options->shared ? n->options->shared : 1, NANO_HEADS, NANO_LAYERS, NANO_HEADS,
            NANO_LORA,
            n->options->bf16 ? ""
                             : "\"quantization_config\":{\"activation_scheme\":\"dynamic\","
                               "\"fmt\":\"e4m3\",\"quant_method\":\"fp8\",\"scale_fmt\":"
                               "\"ue8m0\",\"weight_block_size\":[128,128]},",
            NANO_VOCAB);
    assert_int_equal(fclose(file), 0);
}

/* The faults that options ask for. */
static inline void nano_spoil(nano *n)
{
    const nano_options *o = n->options;
    for (uint32_t i = 0; i < n->count; i++) {
        mdl_tensor *t = &n->tensors[i];
        void *data = (void *)(uintptr_t)t->data;
        if (o->poison && strcmp(t->name, o->poison) == 0)
            memset(data, 0xff, mdl_dtype_bytes(t->dtype)); /* NaN in every type */
        for (size_t k = 0; o->huge && strcmp(t->name, o->huge) == 0 && k < t->bytes / 2; k++)
            ((uint16_t *)data)[k] = 0x7f7f;
        if (o->huge && strcmp(t->name, o->huge) == 0 && t->dtype == MDL_DTYPE_F8_E8M0)
            memset(data, 0xfe, t->bytes);
        if (o->bad_scale && strcmp(t->name, o->bad_scale) == 0)
            *(float *)data = 3.0f;
        if (o->change && strcmp(t->name, o->change) == 0)
            *(uint8_t *)data ^= 1;
        if (o->retype && strcmp(t->name, o->retype) == 0)
            t->dtype = o->type;
        if (o->reshape && strcmp(t->name, o->reshape) == 0) {
            t->bytes -= t->bytes / (size_t)t->shape[0];
            t->shape[0]--;
        }
        if (o->drop && strcmp(t->name, o->drop) == 0) {
            sl_free(data);
            n->tensors[i--] = n->tensors[--n->count];
        }
    }
    if (o->extra)
        nano_bf16(n, "", o->extra, 4, 0, 0, 1);
}

/* Writes the checkpoint; nano_remove deletes it. */
static inline void nano_make(nano *n, const nano_options *options)
{
    static const nano_options none;
    char path[128];
    memset(n, 0, sizeof(*n));
    n->options = options ? options : &none;
    snprintf(n->dir, sizeof(n->dir), "/tmp/sluice-nano-XXXXXX");
    assert_non_null(mkdtemp(n->dir));
    nano_bf16(n, "", "model.embed_tokens.weight", NANO_VOCAB, NANO_HIDDEN, 0, 1);
    nano_bf16(n, "", "lm_head.weight", NANO_VOCAB, NANO_HIDDEN, 0, 0.3f);
    nano_bf16(n, "", "model.norm.weight", NANO_HIDDEN, 0, 1, 0.2f);
    for (int i = 0; i < NANO_LAYERS; i++)
        nano_layer(n, i);
    nano_mtp(n);
    nano_spoil(n);
    nano_write_config(n);
    snprintf(path, sizeof(path), "%s/model.safetensors", n->dir);
    sl_err err;
    assert_ok(mdl_safetensors_write(path, n->tensors, n->count, &err), &err);
    for (uint32_t i = 0; i < n->count; i++)
        sl_free((void *)(uintptr_t)n->tensors[i].data);
    n->count = 0;
}

static inline void nano_remove(const nano *n)
{
    char path[128];
    snprintf(path, sizeof(path), "%s/config.json", n->dir);
    unlink(path);
    snprintf(path, sizeof(path), "%s/model.safetensors", n->dir);
    unlink(path);
    assert_int_equal(rmdir(n->dir), 0);
}

#endif
