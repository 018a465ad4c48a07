/* Attention: cache insertion and sparse attention against independent loops, all variants equal,
 * page edges, list lengths around the register tiles, the pool. */
#include "tests/unit/test.h"

#include "kernels/cpu/amx_attend.h"
#include "tests/unit/kernels/data.h"
#include "tests/unit/kernels/variants.h"

#define PAGES 6

typedef struct world {
    krn_cache cache;
    uint32_t blocks[PAGES];
} world;

/* Pages in a mixed order, with another layer around ours. */
static void world_init(world *w)
{
    static const uint32_t order[PAGES] = {4, 0, 5, 2, 1, 3};
    w->cache.page_bytes = 2 * KRN_LAYER_BYTES;
    w->cache.base = aligned(PAGES * w->cache.page_bytes);
    memcpy(w->blocks, order, sizeof order);
}

static void fill_latents(world *w, dice *d, bool pow2)
{
    for (uint32_t s = 0; s < PAGES * 64; s++) {
        uint8_t *row = w->cache.base + w->blocks[s / 64] * w->cache.page_bytes + s % 64 * 656;
        float scales[4];
        uint16_t rope[64];
        fill_codes(d, row, 512);
        fill_scales(d, scales, 4, pow2);
        for (int i = 0; i < 4; i++)
            scales[i] *= 1.0f / 64;
        fill_bf16(d, rope, 64, 1);
        memcpy(row + 512, scales, sizeof scales);
        memcpy(row + 528, rope, sizeof rope);
    }
}

/* Straight from the spec. */
static void expect_attend(const krn_attend_args *a, uint32_t row, uint32_t h, uint16_t *out)
{
    uint32_t count = a->list_counts[row];
    float *p = aligned(count * sizeof(float)), *o = aligned(512 * sizeof(float));
    float(*c)[576] = aligned(count * sizeof *c);
    const uint16_t *ql = (const uint16_t *)a->q_latent + ((size_t)row * a->heads + h) * 512;
    const uint16_t *q = (const uint16_t *)a->q + ((size_t)row * a->heads + h) * 192;
    float largest = -INFINITY, sum = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t s = a->lists[row * a->list_stride + i];
        const uint8_t *r =
            a->cache->base + a->rows[row].blocks[s / 64] * a->cache->page_bytes + s % 64 * 656;
        float scales[4], latent = 0, rope = 0;
        uint16_t ropes[64];
        memcpy(scales, r + 512, sizeof scales);
        memcpy(ropes, r + 528, sizeof ropes);
        for (int d = 0; d < 512; d++) {
            c[i][d] = krn_round_bf16(krn_e4m3_to_f32(r[d]) * scales[d / 128]);
            latent = fmaf(krn_bf16_to_f32(ql[d]), c[i][d], latent);
        }
        for (int d = 0; d < 64; d++)
            rope = fmaf(krn_bf16_to_f32(q[128 + d]), krn_bf16_to_f32(ropes[d]), rope);
        p[i] = (latent + rope) * a->scale;
        largest = fmaxf(largest, p[i]);
    }
    for (uint32_t i = 0; i < count; i++) {
        p[i] = (float)exp((double)(p[i] - largest));
        sum += p[i];
    }
    for (uint32_t i = 0; i < count; i++)
        for (int d = 0; d < 512; d++)
            o[d] += p[i] / sum * c[i][d];
    for (int d = 0; d < 512; d++)
        out[d] = krn_f32_to_bf16(o[d]);
    free(p), free(o), free(c);
}

/* The same in the order of cpu-amx-v1: chunks of 256, weights in two parts. */
static void expect_amx_attend(const krn_attend_args *a, uint32_t row, uint32_t h, uint16_t *out)
{
    uint32_t count = a->list_counts[row];
    float(*c)[576] = aligned((count + 32) * sizeof *c), q[576], p[PAGES * 64], part[2][32];
    float largest = -INFINITY, sum = 0, o[2][512] = {{0}};
    for (int d = 0; d < 512; d++)
        q[d] = krn_bf16_to_f32(
            ((const uint16_t *)a->q_latent)[((size_t)row * a->heads + h) * 512 + d]);
    for (int d = 0; d < 64; d++)
        q[512 + d] =
            krn_bf16_to_f32(((const uint16_t *)a->q)[((size_t)row * a->heads + h) * 192 + 128 + d]);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t s = a->lists[row * a->list_stride + i];
        const uint8_t *r =
            a->cache->base + a->rows[row].blocks[s / 64] * a->cache->page_bytes + s % 64 * 656;
        float scales[4], score = 0;
        uint16_t ropes[64];
        memcpy(scales, r + 512, sizeof scales);
        memcpy(ropes, r + 528, sizeof ropes);
        for (int d = 0; d < 512; d++)
            c[i][d] = krn_round_bf16(krn_e4m3_to_f32(r[d]) * scales[d / 128]);
        for (int d = 0; d < 64; d++)
            c[i][512 + d] = krn_bf16_to_f32(ropes[d]);
        for (int d = 0; d < 576; d += 32)
            score = krn_tile_step(c[i] + d, q + d, score);
        p[i] = score * a->scale;
    }
    for (uint32_t i = 0; i < count; i++) {
        if (i % 256 == 0) {
            float before = largest;
            for (uint32_t j = i; j < i + 256 && j < count; j++)
                largest = fmaxf(largest, p[j]);
            before = krn_attend_exp(before - largest);
            sum *= before;
            for (int d = 0; d < 512; d++)
                o[0][d] *= before, o[1][d] *= before;
        }
        if (i % 32 == 0)
            memset(part, 0, sizeof part);
        float e = krn_attend_exp(p[i] - largest);
        sum += e;
        part[0][i % 32] = krn_bits_f32(krn_f32_bits(e) & 0xFFFF0000);
        e -= part[0][i % 32];
        part[1][i % 32] = krn_bits_f32((krn_f32_bits(e) + 0x8000) & 0xFFFF0000);
        if (i % 32 < 31 && i + 1 < count)
            continue;
        for (int d = 0; d < 512; d++) {
            float column[32];
            for (uint32_t j = 0; j < 32; j++)
                column[j] = c[i / 32 * 32 + j][d];
            o[0][d] = krn_tile_step(part[0], column, o[0][d]);
            o[1][d] = krn_tile_step(part[1], column, o[1][d]);
        }
    }
    for (int d = 0; d < 512; d++)
        out[d] = krn_f32_to_bf16((o[0][d] + o[1][d]) * (1.0f / sum));
    free(c);
}

/* Row t keeps counts[t] slots. */
static void check_attend(const uint32_t *counts, uint32_t rows, uint32_t heads, bool pow2,
                         float size, krn_pool *pool)
{
    enum { STRIDE = PAGES * 64 };
    dice d = {rows * 131ull + heads * 7 + pow2 + counts[0]};
    world w;
    world_init(&w);
    fill_latents(&w, &d, pow2);
    uint16_t *ql = aligned((size_t)rows * heads * 1024), *q = aligned((size_t)rows * heads * 384);
    uint16_t *out = aligned((size_t)rows * heads * 1024),
             *ref = aligned((size_t)rows * heads * 1024);
    uint32_t *lists = aligned((size_t)rows * STRIDE * 4);
    krn_row *at = aligned(rows * sizeof *at);
    void *scratch = aligned(krn_attend_scratch_bytes(krn_pool_threads(pool), heads, STRIDE));
    fill_bf16(&d, ql, (size_t)rows * heads * 512, size);
    fill_bf16(&d, q, (size_t)rows * heads * 192, size);
    for (uint32_t t = 0; t < rows; t++) {
        at[t] = (krn_row){.blocks = w.blocks, .slot = STRIDE - 1};
        uint32_t kept = 0; /* counts[t] of STRIDE slots, ascending */
        for (uint32_t s = 0; s < STRIDE; s++)
            if (roll_below(&d, STRIDE - s) < counts[t] - kept)
                lists[t * STRIDE + kept++] = s;
    }
    krn_attend_args args = {.cache = &w.cache,
                            .rows = at,
                            .count = rows,
                            .heads = heads,
                            .q_latent = ql,
                            .q = q,
                            .lists = lists,
                            .list_counts = counts,
                            .list_stride = STRIDE,
                            .scale = 0.13523377886f,
                            .scratch = scratch,
                            .output = out};
    for (int amx = 0; amx < 2; amx++) {
        for (uint32_t t = 0; t < rows; t++)
            for (uint32_t h = 0; h < heads; h++)
                (amx ? expect_amx_attend : expect_attend)(&args, t, h,
                                                          ref + ((size_t)t * heads + h) * 512);
        EACH_VARIANT_OF(amx ? KRN_NUMERICS_AMX : KRN_NUMERICS_F32)
        {
            memset(out, 0xEE, (size_t)rows * heads * 1024);
            krn_attend(pool, &args);
            assert_same_bytes(out, ref, (size_t)rows * heads * 1024, "attention");
        }
    }
    free(w.cache.base), free(ql), free(q), free(out), free(ref), free(lists), free(at);
    free(scratch);
}

TEST(attention_equals_the_loops)
{
    static const uint32_t counts[] = {1, 2, 15, 16, 17, 63, 64, 65, 384};
    static const uint32_t long_counts[] = {255, 257, 320};
    check_attend(counts, 9, 8, true, 1, NULL);
    check_attend(counts + 6, 2, 1, true, 1, NULL);
    check_attend(counts + 3, 2, 4, false, 1, NULL);
    check_attend(counts + 5, 2, 16, true, 3, NULL);
    check_attend(counts + 7, 1, 21, false, 1, NULL);
    check_attend(counts + 4, 2, 64, true, 0.01f, NULL);
    check_attend(long_counts, 3, 9, true, 30, NULL);
    check_attend(long_counts + 1, 1, 33, true, 1, NULL);
}

/* The exp of cpu-amx-v1 beside the exact one. */
TEST(exp_of_the_weights)
{
    double worst = 0;
    for (int i = 0; i <= 870000; i++) {
        float x = -(float)i * 1e-4f;
        double exact = exp((double)x), ulp = ldexp(1, ilogb(exact) - 23);
        worst = fmax(worst, fabs(krn_attend_exp(x) - exact) / ulp);
    }
    assert_true(worst < 1.5);
    assert_true(krn_attend_exp(0.0f) == 1.0f && krn_attend_exp(-0.0f) == 1.0f);
    assert_true(krn_attend_exp(-88.0f) == 0.0f && krn_attend_exp(-INFINITY) == 0.0f);
    assert_true(isnan(krn_attend_exp(NAN)));
}

TEST(attention_is_the_same_on_a_pool)
{
    static const uint32_t counts[] = {100, 33, 1, 384, 7};
    krn_pool *pool;
    sl_err err;
    assert_ok(krn_pool_create(4, &pool, &err), &err);
    check_attend(counts, 1, 40, true, 1, pool);
    check_attend(counts, 5, 8, true, 1, pool);
    krn_pool_destroy(pool);
}

TEST(one_key_gives_that_key)
{
    static const uint32_t one[] = {1};
    world w;
    world_init(&w);
    dice d = {1};
    fill_latents(&w, &d, true);
    uint16_t *ql = aligned(8 * 1024), *q = aligned(8 * 384), *out = aligned(8 * 1024);
    uint32_t list[1] = {130};
    krn_row row = {.blocks = w.blocks, .slot = 200};
    void *scratch = aligned(krn_attend_scratch_bytes(1, 8, 1));
    krn_attend_args args = {.cache = &w.cache,
                            .rows = &row,
                            .count = 1,
                            .heads = 8,
                            .q_latent = ql,
                            .q = q,
                            .lists = list,
                            .list_counts = one,
                            .list_stride = 1,
                            .scale = 0.1f,
                            .scratch = scratch,
                            .output = out};
    fill_bf16(&d, ql, 8 * 512, 5);
    const uint8_t *key = w.cache.base + w.blocks[2] * w.cache.page_bytes + 2 * 656;
    for (int i = 0; i < 2; i++)
        EACH_VARIANT_OF(i ? KRN_NUMERICS_AMX : KRN_NUMERICS_F32)
        {
            krn_attend(NULL, &args);
            for (int j = 0; j < 8 * 512; j++) {
                float scale;
                memcpy(&scale, key + 512 + j % 512 / 128 * 4, 4);
                assert_true(krn_bf16_to_f32(out[j]) == krn_e4m3_to_f32(key[j % 512]) * scale);
            }
        }
    free(w.cache.base), free(ql), free(q), free(out), free(scratch);
}

TEST(latent_rows_are_the_steps_one_after_another)
{
    enum { ROWS = 20 };
    static uint16_t kv[ROWS * 576], weight[512];
    float table[ROWS * 64];
    krn_row rows[ROWS];
    uint32_t positions[ROWS];
    krn_rope rope;
    dice d = {12};
    world w;
    world_init(&w);
    krn_rope_init(&(krn_rope_config){.theta = 10000,
                                     .factor = 40,
                                     .original_positions = 4096,
                                     .beta_fast = 32,
                                     .beta_slow = 1},
                  &rope);
    fill_bf16(&d, kv, ROWS * 576, 2);
    fill_bf16(&d, weight, 512, 1);
    for (uint32_t t = 0; t < ROWS; t++) { /* across the edge of pages 0 and 1 */
        rows[t] = (krn_row){.blocks = w.blocks, .slot = 54 + t};
        positions[t] = 54 + t;
    }
    krn_rope_table(NULL, &rope, positions, ROWS, table);
    uint8_t *before = aligned(PAGES * w.cache.page_bytes);
    memset(w.cache.base, 0xA5, PAGES * w.cache.page_bytes);
    EACH_VARIANT
    {
        memset(w.cache.base, 0xA5, PAGES * w.cache.page_bytes);
        memset(before, 0xA5, PAGES * w.cache.page_bytes);
        assert_true(krn_latent_put(NULL, &w.cache, rows, ROWS, kv, weight, 1e-6f, table, true));
        for (uint32_t t = 0; t < ROWS; t++) {
            uint16_t c[512], k[64];
            uint8_t *row =
                before + w.blocks[(54 + t) / 64] * w.cache.page_bytes + (54 + t) % 64 * 656;
            float scales[4];
            assert_true(krn_rmsnorm_add(NULL, kv + t * 576, NULL, weight, 1e-6f, 1, 512, c, NULL));
            assert_true(krn_q128(NULL, c, 1, 512, true, row, scales));
            memcpy(row + 512, scales, 16);
            memcpy(k, kv + t * 576 + 512, 128);
            krn_rope_interleaved(k, table + t * 64);
            memcpy(row + 528, k, 128);
        }
        assert_same_bytes(w.cache.base, before, PAGES * w.cache.page_bytes, "latent rows");
    }
    kv[3 * 576 + 570] = 0x7F80; /* an infinity in the rope part is a fault too */
    assert_false(krn_latent_put(NULL, &w.cache, rows, ROWS, kv, weight, 1e-6f, table, true));
    free(before), free(w.cache.base);
}

TEST(queries_rotate_their_last_64)
{
    enum { ROWS = 5, HEADS = 3 };
    static uint16_t q[ROWS * HEADS * 192], ref[ROWS * HEADS * 192];
    float table[ROWS * 64];
    dice d = {2};
    fill_bf16(&d, q, ROWS * HEADS * 192, 1);
    fill_f32(&d, table, ROWS * 64, 1);
    memcpy(ref, q, sizeof q);
    for (int i = 0; i < ROWS * HEADS; i++)
        krn_rope_interleaved(ref + i * 192 + 128, table + i / HEADS * 64);
    krn_rope_queries(NULL, q, ROWS, HEADS, table);
    assert_memory_equal(q, ref, sizeof q);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(attention_equals_the_loops),
    cmocka_unit_test(exp_of_the_weights),
    cmocka_unit_test(attention_is_the_same_on_a_pool),
    cmocka_unit_test(one_key_gives_that_key),
    cmocka_unit_test(latent_rows_are_the_steps_one_after_another),
    cmocka_unit_test(queries_rotate_their_last_64),
};
TEST_MAIN(tests)
