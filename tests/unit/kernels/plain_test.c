/* Plain numerics (f32 rows and cache) against independent loops: norm, SwiGLU, cache rows,
 * attention, scores and selection, combine. */
#include "tests/unit/test.h"

#include "tests/unit/kernels/data.h"

#define PAGES 3
#define SLOTS (PAGES * 64)

static krn_cache cache;
static uint32_t blocks[PAGES] = {2, 0, 1};

static void cache_init(dice *d)
{
    cache.page_bytes = KRN_PLAIN_LAYER_BYTES;
    cache.base = aligned(PAGES * cache.page_bytes);
    fill_f32(d, (float *)cache.base, PAGES * cache.page_bytes / 4, 1);
}

static const float *latent(uint32_t slot)
{
    return (const float *)(cache.base + blocks[slot / 64] * cache.page_bytes) + slot % 64 * 576;
}

static const float *index_key(uint32_t slot)
{
    return (const float *)(cache.base + blocks[slot / 64] * cache.page_bytes + 64 * 576 * 4) +
           slot % 64 * 128;
}

TEST(attention_equals_the_loops)
{
    enum { ROWS = 3, HEADS = 5, STRIDE = 40 };
    dice d = {1};
    cache_init(&d);
    static float ql[ROWS * HEADS * 512], q[ROWS * HEADS * 192], out[ROWS * HEADS * 512];
    uint32_t lists[ROWS * STRIDE], counts[ROWS] = {1, 16, 39};
    krn_row rows[ROWS];
    fill_f32(&d, ql, ROWS * HEADS * 512, 0.2f);
    fill_f32(&d, q, ROWS * HEADS * 192, 0.2f);
    for (uint32_t t = 0; t < ROWS; t++) {
        rows[t] = (krn_row){.blocks = blocks, .slot = SLOTS - 1};
        for (uint32_t i = 0; i < counts[t]; i++)
            lists[t * STRIDE + i] = i * 4 + t;
    }
    void *scratch = aligned(krn_attend_scratch_bytes(1, HEADS, STRIDE));
    krn_attend_args args = {.cache = &cache,
                            .rows = rows,
                            .count = ROWS,
                            .heads = HEADS,
                            .q_latent = ql,
                            .q = q,
                            .lists = lists,
                            .list_counts = counts,
                            .list_stride = STRIDE,
                            .scale = 0.135f,
                            .scratch = scratch,
                            .output = out};
    krn_plain_attend(NULL, &args);
    for (uint32_t t = 0; t < ROWS; t++) {
        for (uint32_t h = 0; h < HEADS; h++) {
            const float *a = ql + (t * HEADS + h) * 512, *b = q + (t * HEADS + h) * 192 + 128;
            float p[STRIDE], largest = -INFINITY, sum = 0;
            for (uint32_t i = 0; i < counts[t]; i++) {
                const float *key = latent(lists[t * STRIDE + i]);
                float x = 0, y = 0;
                for (int j = 0; j < 512; j++)
                    x += a[j] * key[j];
                for (int j = 0; j < 64; j++)
                    y += b[j] * key[512 + j];
                p[i] = (x + y) * 0.135f;
                largest = fmaxf(largest, p[i]);
            }
            for (uint32_t i = 0; i < counts[t]; i++)
                sum += p[i] = (float)exp((double)(p[i] - largest));
            for (int j = 0; j < 512; j++) {
                float o = 0;
                for (uint32_t i = 0; i < counts[t]; i++)
                    o += p[i] / sum * latent(lists[t * STRIDE + i])[j];
                assert_true(o == out[(t * HEADS + h) * 512 + j]);
            }
        }
    }
    free(scratch), free(cache.base);
}

TEST(selection_equals_scores_and_topk)
{
    enum { ROWS = 20, HEADS = 3, TOPK = 64 };
    dice d = {2};
    cache_init(&d);
    static float q[ROWS * HEADS * 128];
    float factors[ROWS * HEADS];
    static uint32_t lists[ROWS * TOPK];
    uint32_t counts[ROWS], expected[TOPK];
    krn_row rows[ROWS];
    size_t bytes = krn_select_scratch_bytes(1, HEADS, SLOTS);
    void *scratch = aligned(bytes);
    fill_f32(&d, q, ROWS * HEADS * 128, 1);
    fill_f32(&d, factors, ROWS * HEADS, 1);
    for (uint32_t t = 0; t < ROWS; t++)
        rows[t] = (krn_row){.blocks = blocks, .slot = 55 + t * 7};
    krn_select_args args = {.cache = &cache,
                            .rows = rows,
                            .count = ROWS,
                            .heads = HEADS,
                            .queries = q,
                            .factors = factors,
                            .topk = TOPK,
                            .list_stride = TOPK,
                            .scratch = scratch,
                            .scratch_bytes = bytes,
                            .lists = lists,
                            .list_counts = counts};
    assert_true(krn_plain_index_select(NULL, &args));
    for (uint32_t t = 0; t < ROWS; t++) {
        float scores[SLOTS], got[SLOTS];
        uint32_t seen = rows[t].slot + 1;
        for (uint32_t s = 0; s < seen; s++) {
            scores[s] = 0;
            for (uint32_t h = 0; h < HEADS; h++) {
                float dot = 0;
                for (int j = 0; j < 128; j++)
                    dot += q[(t * HEADS + h) * 128 + (uint32_t)j] * index_key(s)[j];
                scores[s] += fmaxf(dot, 0) * factors[t * HEADS + h];
            }
        }
        krn_plain_index_scores(&cache, &rows[t], q + t * HEADS * 128, factors + t * HEADS, HEADS,
                               got);
        assert_same_bytes(got, scores, seen * 4, "plain scores");
        assert_int_equal(counts[t], seen < TOPK ? seen : TOPK);
        assert_true(krn_topk(scores, seen, TOPK, expected));
        assert_same_bytes(lists + t * TOPK, expected, counts[t] * 4, "plain selection");
    }
    free(scratch), free(cache.base);
}

TEST(cache_rows_are_norm_and_rope)
{
    enum { ROWS = 4 };
    dice d = {3};
    cache_init(&d);
    float kv[ROWS * 576], z[ROWS * 128], weight[512], bias[128], table[ROWS * 64];
    krn_row rows[ROWS];
    fill_f32(&d, kv, ROWS * 576, 1);
    fill_f32(&d, z, ROWS * 128, 1);
    fill_f32(&d, weight, 512, 1);
    fill_f32(&d, bias, 128, 1);
    fill_f32(&d, table, ROWS * 64, 1);
    for (uint32_t t = 0; t < ROWS; t++)
        rows[t] = (krn_row){.blocks = blocks, .slot = 62 + t};
    krn_plain_latent_put(NULL, &cache, rows, ROWS, kv, weight, 1e-6f, table);
    krn_plain_index_put(NULL, &cache, rows, ROWS, z, weight, bias, 1e-6f, table);
    for (uint32_t t = 0; t < ROWS; t++) {
        float c[512], k[128];
        const float *row = latent(62 + t), *in = kv + t * 576 + 512, *at = table + t * 64;
        assert_true(
            krn_plain_rmsnorm_add(NULL, kv + t * 576, NULL, weight, 1e-6f, 1, 512, c, NULL));
        assert_same_bytes(row, c, sizeof c, "plain latent");
        for (int j = 0; j < 32; j++) {
            assert_true(row[512 + 2 * j] == in[2 * j] * at[j] - in[2 * j + 1] * at[32 + j]);
            assert_true(row[513 + 2 * j] == in[2 * j] * at[32 + j] + in[2 * j + 1] * at[j]);
        }
        krn_plain_layernorm(z + t * 128, weight, bias, 1e-6f, 128, k);
        for (int j = 0; j < 32; j++) {
            assert_true(index_key(62 + t)[j] == k[j] * at[j] - k[j + 32] * at[32 + j]);
            assert_true(index_key(62 + t)[j + 32] == k[j] * at[32 + j] + k[j + 32] * at[j]);
        }
        assert_same_bytes(index_key(62 + t) + 64, k + 64, 256, "plain index key");
    }
    free(cache.base);
}

TEST(small_operations_equal_the_loops)
{
    enum { ROWS = 3, N = 50 };
    dice d = {4};
    float x[ROWS * N], res[ROWS * N], w[N], out[ROWS * N], out_res[ROWS * N];
    float weights[ROWS * 2] = {0.1f, 0.2f, 0.3f, 0.4f, 0.5f, 0.6f};
    float stacked[ROWS * 2 * N];
    uint32_t places[ROWS * 2] = {3, 1, 0, 5, 2, 4};
    fill_f32(&d, x, ROWS * N, 1);
    fill_f32(&d, res, ROWS * N, 1);
    fill_f32(&d, w, N, 1);
    fill_f32(&d, stacked, ROWS * 2 * N, 1);
    assert_true(krn_plain_rmsnorm_add(NULL, x, res, w, 1e-6f, ROWS, N, out, out_res));
    for (int t = 0; t < ROWS; t++) {
        float sum = 0;
        for (int j = 0; j < N; j++) {
            assert_true(out_res[t * N + j] == x[t * N + j] + res[t * N + j]);
            sum += out_res[t * N + j] * out_res[t * N + j];
        }
        float r = 1 / sqrtf(sum / N + 1e-6f);
        for (int j = 0; j < N; j++)
            assert_true(out[t * N + j] == w[j] * (out_res[t * N + j] * r));
    }
    krn_plain_silu_mul(NULL, x, res, ROWS * N, out);
    for (int i = 0; i < ROWS * N; i++)
        assert_true(out[i] == x[i] / (1 + (float)exp(-(double)x[i])) * res[i]);
    krn_plain_combine(NULL, stacked, places, weights, 2, res, ROWS, N, out);
    for (int t = 0; t < ROWS; t++)
        for (int j = 0; j < N; j++) {
            float y = 0;
            for (int i = 0; i < 2; i++)
                y += weights[t * 2 + i] * stacked[places[t * 2 + i] * N + (uint32_t)j];
            assert_true(out[t * N + j] == y + res[t * N + j]);
        }
    x[N + 3] = INFINITY;
    assert_false(krn_plain_rmsnorm_add(NULL, x, res, w, 1e-6f, ROWS, N, out, out_res));
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(attention_equals_the_loops),
    cmocka_unit_test(selection_equals_scores_and_topk),
    cmocka_unit_test(cache_rows_are_norm_and_rope),
    cmocka_unit_test(small_operations_equal_the_loops),
};
TEST_MAIN(tests)
