/* Indexer: scores against independent loops, exact selection against sorting, all variants equal,
 * ties, zeros, limits, NaN, page edges, MTP's void slot, the pool. */
#include "tests/unit/test.h"

#include "tests/unit/kernels/data.h"
#include "tests/unit/kernels/variants.h"

#define PAGES 9
#define SLOTS (PAGES * 64)

typedef struct world {
    krn_cache cache;
    uint32_t blocks[PAGES];
} world;

static void world_init(world *w, dice *d)
{
    w->cache.page_bytes = KRN_LAYER_BYTES + 64;
    w->cache.base = aligned(PAGES * w->cache.page_bytes);
    for (uint32_t b = 0; b < PAGES; b++) {
        w->blocks[b] = (b * 5 + 2) % PAGES;
        uint8_t *page = w->cache.base + w->blocks[b] * w->cache.page_bytes;
        float scales[64];
        fill_codes(d, page + KRN_INDEX_CODES_AT, 64 * 128);
        fill_scales(d, scales, 64, true);
        memcpy(page + KRN_INDEX_SCALES_AT, scales, sizeof scales);
    }
}

static float expect_score(const world *w, uint32_t slot, const uint8_t *q, const float *factors,
                          uint32_t heads)
{
    const uint8_t *page = w->cache.base + w->blocks[slot / 64] * w->cache.page_bytes;
    const uint8_t *key = page + 64 * 656 + slot % 64 * 128;
    float scale, sum = 0;
    memcpy(&scale, page + 64 * 656 + 64 * 128 + slot % 64 * 4, 4);
    for (uint32_t h = 0; h < heads; h++) {
        float dot = 0;
        for (int d = 0; d < 128; d++)
            dot += krn_e4m3_to_f32(q[h * 128 + d]) * krn_e4m3_to_f32(key[d]);
        sum += fmaxf(dot, 0) * factors[h];
    }
    return sum * scale;
}

/* The same in the order of cpu-amx-v1: what codes give is never below f32's normal range. */
static float expect_amx_dot(const uint8_t *q, const uint8_t *key)
{
    float dot = 0;
    for (int d = 0; d < 128; d += 32) {
        float even = 0, odd = 0;
        for (int i = d; i < d + 32; i += 2) {
            even = fmaf(krn_e4m3_to_f32(q[i]), krn_e4m3_to_f32(key[i]), even);
            odd = fmaf(krn_e4m3_to_f32(q[i + 1]), krn_e4m3_to_f32(key[i + 1]), odd);
        }
        dot += even + odd;
    }
    return dot;
}

static float expect_amx_score(const world *w, uint32_t slot, const uint8_t *q, const float *factors,
                              uint32_t heads)
{
    const uint8_t *page = w->cache.base + w->blocks[slot / 64] * w->cache.page_bytes;
    const uint8_t *key = page + 64 * 656 + slot % 64 * 128;
    float scale, sum[16] = {0};
    memcpy(&scale, page + 64 * 656 + 64 * 128 + slot % 64 * 4, 4);
    for (uint32_t h = 0; h < heads; h++)
        sum[h % 16] = fmaf(fmaxf(expect_amx_dot(q + h * 128, key), 0), factors[h], sum[h % 16]);
    for (int i = 0; i < 8; i++)
        sum[i] += sum[i + 8];
    for (int i = 0; i < 4; i++)
        sum[i] += sum[i + 4];
    return ((sum[0] + sum[2]) + (sum[1] + sum[3])) * scale;
}

typedef struct order {
    const char *numerics_id;
    float (*score)(const world *w, uint32_t slot, const uint8_t *q, const float *factors,
                   uint32_t heads);
} order;

static const order ORDERS[] = {{KRN_NUMERICS_F32, expect_score},
                               {KRN_NUMERICS_AMX, expect_amx_score}};
#define EACH_ORDER(o) \
    for (const order *o = ORDERS; o < ORDERS + sizeof(ORDERS) / sizeof(ORDERS[0]); o++)

/* By full order: larger first, then lower position. */
static const float *sort_scores;
static int by_score(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    float fx = sort_scores[x], fy = sort_scores[y];
    if (fx != fy)
        return fx > fy ? -1 : 1;
    return x < y ? -1 : 1;
}
static int by_position(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static void expect_topk(const float *scores, uint32_t count, uint32_t k, uint32_t *out)
{
    uint32_t *ranks = aligned(count * 4);
    for (uint32_t i = 0; i < count; i++)
        ranks[i] = i;
    sort_scores = scores;
    qsort(ranks, count, 4, by_score);
    memcpy(out, ranks, (k < count ? k : count) * 4);
    qsort(out, k < count ? k : count, 4, by_position);
    free(ranks);
}

static void check_topk(const float *scores, uint32_t count, uint32_t k)
{
    uint32_t kept = k < count ? k : count;
    uint32_t *expected = aligned(count * 4 + 4), *got = aligned(count * 4 + 4);
    expect_topk(scores, count, k, expected);
    EACH_VARIANT
    {
        memset(got, 0xEE, count * 4 + 4);
        assert_true(krn_topk(scores, count, k, got));
        assert_same_bytes(got, expected, kept * 4, "topk");
        assert_int_equal(got[kept], 0xEEEEEEEE); /* not one more */
    }
    free(expected), free(got);
}

TEST(topk_equals_sorting)
{
    dice d = {21};
    float scores[700];
    static const uint32_t counts[] = {1, 2, 15, 16, 17, 255, 256, 257, 300, 700};
    for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
        for (int kind = 0; kind < 7; kind++) {
            for (uint32_t i = 0; i < counts[c]; i++) {
                float x = roll_float(&d, 1);
                scores[i] = kind == 0   ? x
                            : kind == 1 ? (float)(int)(x * 4) /* many equal, -0.0 too */
                            : kind == 2 ? (i % 2 ? 0.0f : -0.0f)
                            : kind == 3 ? (i % 3 ? -INFINITY : x)
                            : kind == 4 ? (i % 5 ? INFINITY : x)
                            : kind == 5 ? x * 1e-44f
                                        : (i < counts[c] / 2 ? -x * x : -0.0f);
            }
            static const uint32_t keeps[] = {1, 2, 16, 64, 255, 256, 257, 699};
            for (size_t k = 0; k < sizeof keeps / sizeof keeps[0]; k++)
                check_topk(scores, counts[c], keeps[k]);
        }
    }
}

TEST(topk_of_a_long_row)
{
    enum { COUNT = 163840 };
    dice d = {22};
    float *scores = aligned(COUNT * sizeof(float));
    for (uint32_t i = 0; i < COUNT; i++)
        scores[i] = (float)(int)roll_float(&d, 1000);
    check_topk(scores, COUNT, 2048);
    fill_f32(&d, scores, COUNT, 1);
    check_topk(scores, COUNT, 2048);
    free(scores);
}

/* A sample of every 16th score sees only the largest ones, only the smallest ones, nothing but
 * equal ones, all but one of them. */
TEST(topk_whatever_the_sample_says)
{
    enum { COUNT = 20000, KEEP = 256 };
    dice d = {23};
    float *scores = aligned(COUNT * sizeof(float));
    uint32_t out[KEEP];
    for (int kind = 0; kind < 4; kind++) {
        for (uint32_t i = 0; i < COUNT; i++) {
            float x = roll_float(&d, 1);
            bool seen = i % 16 == 8;
            scores[i] = kind == 0 ? x + (seen ? 10 : 0) : kind == 1 ? x - (seen ? 10 : 0) : 0.0f;
        }
        if (kind == 3)
            scores[COUNT - 1] = 1;
        check_topk(scores, COUNT, KEEP);
    }
    for (uint32_t at = 0; at < 40; at++) {
        float saved = scores[COUNT - 1 - at];
        scores[COUNT - 1 - at] = NAN;
        EACH_VARIANT assert_false(krn_topk(scores, COUNT, KEEP, out));
        scores[COUNT - 1 - at] = saved;
    }
    free(scores);
}

TEST(topk_reports_nan)
{
    float scores[300];
    uint32_t out[300];
    EACH_VARIANT
    {
        for (uint32_t i = 0; i < 300; i++) {
            memset(scores, 0, sizeof scores);
            scores[i] = i % 2 ? NAN : -NAN;
            assert_false(krn_topk(scores, 300, 256, out));
            assert_false(krn_topk(scores, 300, 300, out));
        }
    }
}

static void check_scores(uint32_t heads, uint32_t first, uint32_t slot)
{
    dice d = {heads + first * 3ull + slot};
    world w;
    world_init(&w, &d);
    uint8_t *q = aligned((size_t)heads * 128);
    float *factors = aligned(heads * 4), out[SLOTS], ref[SLOTS];
    krn_row row = {.blocks = w.blocks, .slot = slot, .first = first};
    fill_codes(&d, q, (size_t)heads * 128);
    fill_f32(&d, factors, heads, 1);
    EACH_ORDER(o)
    {
        for (uint32_t s = first; s <= slot; s++)
            ref[s - first] = o->score(&w, s, q, factors, heads);
        EACH_VARIANT_OF(o->numerics_id)
        {
            memset(out, 0, sizeof out);
            krn_index_scores(&w.cache, &row, q, factors, heads, out);
            assert_same_bytes(out, ref, (slot + 1 - first) * 4, "scores");
        }
    }
    free(w.cache.base), free(q), free(factors);
}

TEST(scores_equal_the_loops)
{
    check_scores(8, 0, 0);
    check_scores(8, 0, 63);
    check_scores(8, 0, 64);
    check_scores(8, 1, 1);
    check_scores(8, 1, 200);
    check_scores(64, 0, 130);
    check_scores(3, 0, 95);
    check_scores(13, 70, 71);
    check_scores(16, 5, 300);
    check_scores(24, 0, 127);
    check_scores(40, 3, 17);
    check_scores(128, 60, 140);
}

enum { SELECT_ROWS = 70, TOPK = 128, LIST = TOPK + 2 };

/* What each row must keep. */
static void expect_lists(const order *o, const world *w, const krn_select_args *a, uint32_t *out)
{
    for (uint32_t t = 0; t < SELECT_ROWS; t++) {
        float scores[SLOTS];
        uint32_t first = a->rows[t].first, seen = a->rows[t].slot + 1 - first;
        const uint8_t *q = (const uint8_t *)a->queries + (size_t)t * a->heads * 128;
        for (uint32_t i = 0; i < seen; i++)
            scores[i] = o->score(w, first + i, q, a->factors + t * a->heads, a->heads);
        expect_topk(scores, seen, TOPK, out + t * TOPK);
        for (uint32_t i = 0; i < TOPK && i < seen; i++)
            out[t * TOPK + i] += first;
    }
}

static void check_lists(krn_pool *pool, const krn_select_args *args, const uint32_t *expected)
{
    memset(args->lists, 0, SELECT_ROWS * LIST * 4);
    assert_true(krn_index_select(pool, args));
    for (uint32_t t = 0; t < SELECT_ROWS; t++) {
        uint32_t seen = args->rows[t].slot + 1 - args->rows[t].first;
        assert_int_equal(args->list_counts[t], seen < TOPK ? seen : TOPK);
        assert_same_bytes(args->lists + t * LIST, expected + t * TOPK, args->list_counts[t] * 4,
                          "list");
    }
    /* One row alone: pages are split over the pool instead of rows. Other numbers of rows. */
    for (uint32_t count = 1; count < 20; count = 3 * count + 2) {
        uint32_t lists[20 * LIST], counts[20], from = 45;
        krn_select_args some = *args;
        some.rows += from, some.factors += from * args->heads;
        some.queries = (const uint8_t *)args->queries + (size_t)from * args->heads * 128;
        some.count = count, some.lists = lists, some.list_counts = counts;
        assert_true(krn_index_select(pool, &some));
        for (uint32_t t = 0; t < count; t++)
            assert_same_bytes(lists + t * LIST, expected + (from + t) * TOPK, TOPK * 4,
                              "rows in other numbers");
    }
}

/* Two sequences and rows on both sides of topk; whatever rows go together, each has its list. */
static void check_select(uint32_t first, uint32_t heads, krn_pool *pool)
{
    dice d = {first + 400};
    world w;
    world_init(&w, &d);
    uint32_t other[PAGES], counts[SELECT_ROWS], lists[SELECT_ROWS * LIST],
        expected[SELECT_ROWS * TOPK];
    krn_row rows[SELECT_ROWS];
    uint8_t *q = aligned((size_t)SELECT_ROWS * heads * 128);
    float *factors = aligned((size_t)SELECT_ROWS * heads * 4);
    size_t bytes = krn_select_scratch_bytes(krn_pool_threads(pool), heads, SLOTS);
    void *scratch = aligned(bytes);
    memcpy(other, w.blocks, sizeof other);
    for (uint32_t t = 0; t < SELECT_ROWS; t++)
        rows[t] = t < 40 ? (krn_row){.blocks = w.blocks, .slot = first + 110 + t, .first = first}
                         : (krn_row){.blocks = other, .slot = first + 440 + t, .first = first};
    fill_codes(&d, q, (size_t)SELECT_ROWS * heads * 128);
    fill_f32(&d, factors, (size_t)SELECT_ROWS * heads, 1);
    memset(factors + 50 * heads, 0, heads * 4); /* all scores equal */
    krn_select_args args = {.cache = &w.cache,
                            .rows = rows,
                            .count = SELECT_ROWS,
                            .heads = heads,
                            .queries = q,
                            .factors = factors,
                            .topk = TOPK,
                            .list_stride = LIST,
                            .scratch = scratch,
                            .scratch_bytes = bytes,
                            .lists = lists,
                            .list_counts = counts};
    EACH_ORDER(o)
    {
        expect_lists(o, &w, &args, expected);
        EACH_VARIANT_OF(o->numerics_id) check_lists(pool, &args, expected);
    }
    factors[65 * heads + 1] = NAN;
    EACH_ORDER(o)
    EACH_VARIANT_OF(o->numerics_id) assert_false(krn_index_select(pool, &args));
    free(w.cache.base), free(scratch), free(q), free(factors);
}

TEST(selection_equals_scoring_and_sorting)
{
    krn_pool *pool;
    sl_err err;
    assert_ok(krn_pool_create(3, &pool, &err), &err);
    check_select(0, 8, NULL);
    check_select(1, 8, pool);
    check_select(0, 20, pool);
    krn_pool_destroy(pool);
}

TEST(keys_and_queries_are_the_steps_one_after_another)
{
    enum { ROWS = 10, HEADS = 8 };
    dice d = {31};
    world w;
    world_init(&w, &d);
    uint16_t z[ROWS * 128], q[ROWS * HEADS * 128], saved[ROWS * HEADS * 128];
    float weight[128], bias[128], table[ROWS * 64], wt[ROWS * HEADS], factors[ROWS * HEADS];
    uint8_t codes[ROWS * HEADS * 128];
    krn_row rows[ROWS];
    fill_bf16(&d, z, ROWS * 128, 2);
    fill_bf16(&d, saved, ROWS * HEADS * 128, 2);
    fill_f32(&d, weight, 128, 1);
    fill_f32(&d, bias, 128, 1);
    fill_f32(&d, table, ROWS * 64, 1);
    fill_f32(&d, wt, ROWS * HEADS, 1);
    for (uint32_t t = 0; t < ROWS; t++)
        rows[t] = (krn_row){.blocks = w.blocks, .slot = 120 + t};
    EACH_VARIANT
    {
        assert_true(krn_index_put(NULL, &w.cache, rows, ROWS, z, weight, bias, 1e-6f, table, true));
        for (uint32_t t = 0; t < ROWS; t++) {
            const uint8_t *page =
                w.cache.base + w.blocks[(120 + t) / 64] * w.cache.page_bytes + 64 * 656;
            uint16_t k[128];
            uint8_t expected[128];
            float scale;
            krn_layernorm(z + t * 128, weight, bias, 1e-6f, 128, k);
            krn_rope_half_split(k, table + t * 64);
            krn_hadamard(k);
            assert_true(krn_q128(NULL, k, 1, 128, true, expected, &scale));
            assert_same_bytes(page + (120 + t) % 64 * 128, expected, 128, "index key");
            assert_same_bytes(page + 64 * 128 + (120 + t) % 64 * 4, &scale, 4, "index key scale");
        }
        memcpy(q, saved, sizeof q);
        assert_true(krn_index_query(NULL, q, wt, ROWS, HEADS, table, true, codes, factors));
        for (uint32_t i = 0; i < ROWS * HEADS; i++) {
            uint16_t k[128];
            uint8_t expected[128];
            float scale;
            memcpy(k, saved + i * 128, sizeof k);
            krn_rope_half_split(k, table + i / HEADS * 64);
            krn_hadamard(k);
            assert_true(krn_q128(NULL, k, 1, 128, true, expected, &scale));
            assert_same_bytes(codes + i * 128, expected, 128, "index query");
            float factor = wt[i] * 0.35355339059f * scale * 0.08838834764f;
            assert_same_bytes(&factors[i], &factor, 4, "index factor");
        }
    }
    z[5] = 0x7FC0;
    assert_false(krn_index_put(NULL, &w.cache, rows, ROWS, z, weight, bias, 1e-6f, table, true));
    free(w.cache.base);
}

TEST(layernorm_equals_the_loops)
{
    dice d = {44};
    uint16_t z[128], out[128];
    float weight[128], bias[128];
    for (int round = 0; round < 20; round++) {
        fill_bf16(&d, z, 128, ldexpf(1, round - 10));
        fill_f32(&d, weight, 128, 1);
        fill_f32(&d, bias, 128, 1);
        float sum = 0, squares = 0;
        for (int j = 0; j < 128; j++)
            sum += krn_bf16_to_f32(z[j]);
        for (int j = 0; j < 128; j++) {
            float x = krn_bf16_to_f32(z[j]) - sum / 128;
            squares += x * x;
        }
        krn_layernorm(z, weight, bias, 1e-6f, 128, out);
        for (int j = 0; j < 128; j++) {
            float x = (krn_bf16_to_f32(z[j]) - sum / 128) / sqrtf(squares / 128 + 1e-6f);
            x = x * weight[j];
            assert_int_equal(out[j], krn_f32_to_bf16(x + bias[j]));
        }
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(topk_equals_sorting),
    cmocka_unit_test(topk_of_a_long_row),
    cmocka_unit_test(topk_whatever_the_sample_says),
    cmocka_unit_test(topk_reports_nan),
    cmocka_unit_test(scores_equal_the_loops),
    cmocka_unit_test(selection_equals_scoring_and_sorting),
    cmocka_unit_test(keys_and_queries_are_the_steps_one_after_another),
    cmocka_unit_test(layernorm_equals_the_loops),
};
TEST_MAIN(tests)
