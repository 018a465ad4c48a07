/* Rope, cache insertion, indexer queries and scores on the device against their CPU twins. The
 * cache bytes that come from a norm: 0 differences on data with exact sums, else one step of e4m3
 * in one code of 100. Scores: 2e-3 of the largest; equal bits for every next_n. */
#include "tests/cuda/support.h"

#define ROWS      37u
#define SEQUENCES 3u
#define BLOCKS    64u
#define PAGES     (SEQUENCES * BLOCKS)

typedef struct world {
    uint32_t blocks[SEQUENCES * BLOCKS];
    uint8_t *pages; /* host image */
    krn_cache cache;
    krn_cuda_cache at; /* device */
    krn_row rows[ROWS];
    krn_cuda_row device_rows[ROWS];
    uint32_t positions[ROWS];
    float *table; /* [ROWS][64] */
    const float *device_table;
    const krn_cuda_row *rows_at;
} world;

/* Pages at random places, rows at random slots. */
static void world_init(world *w, dice *d)
{
    krn_rope_config config = {10000, 40, 4096, 32, 1};
    krn_rope rope;
    for (uint32_t i = 0; i < PAGES; i++)
        w->blocks[i] = i * 7 % PAGES;
    w->pages = aligned((size_t)PAGES * KRN_LAYER_BYTES);
    w->cache = (krn_cache){.base = w->pages, .page_bytes = KRN_LAYER_BYTES};
    for (uint32_t i = 0; i < ROWS; i++) {
        uint32_t sequence = i % SEQUENCES, slot = i * 101 % (BLOCKS * 64);
        w->rows[i] = (krn_row){.blocks = w->blocks + sequence * BLOCKS, .slot = slot};
        w->device_rows[i] = (krn_cuda_row){.sequence = sequence, .slot = slot};
        w->positions[i] = roll_below(d, 160000);
    }
    w->table = aligned(ROWS * 64 * 4);
    krn_rope_init(&config, &rope);
    krn_rope_table(NULL, &rope, w->positions, ROWS, w->table);
    w->at = (krn_cuda_cache){.base = gpu_put(w->pages, (size_t)PAGES * KRN_LAYER_BYTES),
                             .page_bytes = KRN_LAYER_BYTES,
                             .blocks = gpu_put(w->blocks, sizeof w->blocks),
                             .block_stride = BLOCKS};
    w->device_table = gpu_put(w->table, ROWS * 64 * 4);
    w->rows_at = gpu_put(w->device_rows, sizeof w->device_rows);
}
static void world_fini(world *w)
{
    free(w->pages);
    free(w->table);
}

TEST(rope_of_queries_is_the_cpu_s)
{
    world w;
    dice d = {3};
    world_init(&w, &d);
    size_t bytes = ROWS * 128 * 192 * 2;
    uint16_t *q = aligned(bytes), *out = aligned(bytes);
    fill_bf16(&d, q, bytes / 2, 1.0f);
    krn_cuda_rope_params p = {
        .q = gpu_put(q, bytes), .table = w.device_table, .rows = ROWS, .heads = 128};
    gpu_ok(gpu->rope_queries(&p, NULL));
    gpu_get(out, p.q, bytes);
    krn_rope_queries(NULL, q, ROWS, 128, w.table);
    assert_equal_bytes(out, q, bytes, "queries");
    free(q), free(out);
    world_fini(&w);
}

/* Codes that differ, at most one step each; scales of differing groups are not compared. */
static size_t code_steps(const uint8_t *a, const uint8_t *b, size_t count)
{
    size_t differ = 0;
    for (size_t i = 0; i < count; i++) {
        int x = a[i] & 0x80 ? -(a[i] & 0x7F) : a[i], y = b[i] & 0x80 ? -(b[i] & 0x7F) : b[i];
        if (abs(x - y) > 1)
            fail_msg("code %zu: %02x, expected %02x", i, a[i], b[i]);
        differ += x != y;
    }
    return differ;
}

static void check_latent(bool exact, bool pow2)
{
    world w;
    dice d = {exact + 2u * pow2};
    world_init(&w, &d);
    uint16_t *kv = aligned(ROWS * 576 * 2), weight[512];
    for (uint32_t i = 0; i < ROWS * 576; i++)
        kv[i] = krn_f32_to_bf16(exact ? (float)((int)roll_below(&d, 9) - 4) : roll_float(&d, 2));
    fill_bf16(&d, weight, 512, 1.0f);
    krn_cuda_latent_params p = {.cache = w.at,
                                .rows_at = w.rows_at,
                                .kv = gpu_put(kv, ROWS * 576 * 2),
                                .weight = gpu_put(weight, sizeof weight),
                                .table = w.device_table,
                                .fault = gpu_fault(),
                                .rows = ROWS,
                                .stride = 576,
                                .epsilon = 1e-6f,
                                .pow2 = pow2};
    gpu_ok(gpu->latent_put(&p, NULL));
    assert_int_equal(gpu_fault_of(p.fault), 0);
    uint8_t *got = aligned((size_t)PAGES * KRN_LAYER_BYTES);
    gpu_get(got, w.at.base, (size_t)PAGES * KRN_LAYER_BYTES);
    assert_true(krn_latent_put(NULL, &w.cache, w.rows, ROWS, kv, weight, 1e-6f, w.table, pow2));
    if (exact) {
        assert_equal_bytes(got, w.pages, (size_t)PAGES * KRN_LAYER_BYTES, "cache");
    } else {
        size_t differ = 0;
        for (uint32_t i = 0; i < ROWS; i++) {
            uint32_t page = w.rows[i].blocks[w.rows[i].slot / 64];
            size_t at = (size_t)page * KRN_LAYER_BYTES + w.rows[i].slot % 64 * 656;
            differ += code_steps(got + at, w.pages + at, 512);
            assert_equal_bytes(got + at + 528, w.pages + at + 528, 128, "rope");
            memcpy(got + at, w.pages + at, 656);
        }
        if (differ > ROWS * 512 / 100)
            fail_msg("%zu of %u codes differ", differ, ROWS * 512);
        assert_equal_bytes(got, w.pages, (size_t)PAGES * KRN_LAYER_BYTES, "rest of the cache");
    }
    free(kv), free(got);
    world_fini(&w);
}

TEST(latent_put_is_the_cpu_s)
{
    for (int i = 0; i < 4; i++) {
        device_used = 0;
        check_latent(i & 1, i & 2);
    }
}

TEST(latent_put_reports_nan)
{
    world w;
    dice d = {3};
    world_init(&w, &d);
    uint16_t kv[576] = {0}, weight[512] = {0};
    kv[570] = 0x7F80;
    krn_cuda_latent_params p = {.cache = w.at,
                                .rows_at = w.rows_at,
                                .kv = gpu_put(kv, sizeof kv),
                                .weight = gpu_put(weight, sizeof weight),
                                .table = w.device_table,
                                .fault = gpu_fault(),
                                .rows = 1,
                                .stride = 576,
                                .epsilon = 1e-6f};
    gpu_ok(gpu->latent_put(&p, NULL));
    assert_int_equal(gpu_fault_of(p.fault), 1);
    world_fini(&w);
}

TEST(index_put_is_the_cpu_s)
{
    for (int exact = 0; exact < 2; exact++) {
        world w;
        dice d = {91};
        device_used = 0;
        world_init(&w, &d);
        uint16_t *z = aligned(ROWS * 128 * 2);
        float weight[128], bias[128];
        for (uint32_t i = 0; i < ROWS * 128; i += 2) { /* exact: the mean is 0 */
            float x = exact ? (float)roll_below(&d, 9) : roll_float(&d, 2.0f);
            z[i] = krn_f32_to_bf16(x);
            z[i + 1] = krn_f32_to_bf16(exact ? -x : roll_float(&d, 2.0f));
        }
        fill_f32(&d, weight, 128, 1.0f);
        fill_f32(&d, bias, 128, 0.3f);
        krn_cuda_index_put_params p = {.cache = w.at,
                                       .rows_at = w.rows_at,
                                       .z = gpu_put(z, ROWS * 128 * 2),
                                       .weight = gpu_put(weight, sizeof weight),
                                       .bias = gpu_put(bias, sizeof bias),
                                       .table = w.device_table,
                                       .fault = gpu_fault(),
                                       .rows = ROWS,
                                       .stride = 128,
                                       .epsilon = 1e-6f,
                                       .pow2 = 1};
        gpu_ok(gpu->index_put(&p, NULL));
        assert_int_equal(gpu_fault_of(p.fault), 0);
        uint8_t *got = aligned((size_t)PAGES * KRN_LAYER_BYTES);
        gpu_get(got, w.at.base, (size_t)PAGES * KRN_LAYER_BYTES);
        assert_true(
            krn_index_put(NULL, &w.cache, w.rows, ROWS, z, weight, bias, 1e-6f, w.table, true));
        size_t differ = 0;
        for (uint32_t i = 0; i < ROWS; i++) {
            uint32_t page = w.rows[i].blocks[w.rows[i].slot / 64], in = w.rows[i].slot % 64;
            size_t at = (size_t)page * KRN_LAYER_BYTES + KRN_INDEX_CODES_AT + in * 128;
            differ += code_steps(got + at, w.pages + at, 128);
        }
        if (differ > (exact ? 0 : ROWS * 128 / 50))
            fail_msg("%zu of %u codes differ", differ, ROWS * 128);
        if (exact)
            assert_equal_bytes(got, w.pages, (size_t)PAGES * KRN_LAYER_BYTES, "cache");
        free(z), free(got);
        world_fini(&w);
    }
}

/* Device layout of queries -> [heads of all rows][128]. */
static void unswizzle(const uint8_t *atoms, uint32_t heads, uint8_t *out)
{
    for (uint32_t i = 0; i < heads; i++)
        for (uint32_t j = 0; j < 128; j++)
            out[(size_t)i * 128 + j] =
                atoms[(size_t)i / 8 * 1024 + i % 8 * 128 + (((j / 16) ^ (i % 8)) * 16) + j % 16];
}

TEST(index_query_is_the_cpu_s)
{
    world w;
    dice d = {4};
    world_init(&w, &d);
    size_t count = ROWS * 64 * 128;
    uint16_t *q = aligned(count * 2);
    uint8_t *atoms = aligned(count), *codes = aligned(count), *cpu = aligned(count);
    float wt[ROWS * 64], factors[ROWS * 64], cpu_factors[ROWS * 64];
    for (int pow2 = 0; pow2 < 2; pow2++) {
        fill_bf16(&d, q, count, 1.0f);
        memset(q, 0, 64 * 128 * 2); /* a zero row */
        fill_f32(&d, wt, ROWS * 64, 1.0f);
        krn_cuda_index_query_params p = {.q = gpu_put(q, count * 2),
                                         .wt = gpu_put(wt, sizeof wt),
                                         .table = w.device_table,
                                         .out_codes = gpu_take(count),
                                         .out_factors = gpu_take(sizeof factors),
                                         .fault = gpu_fault(),
                                         .rows = ROWS,
                                         .heads = 64,
                                         .pow2 = (uint32_t)pow2};
        gpu_ok(gpu->index_query(&p, NULL));
        gpu_get(atoms, p.out_codes, count);
        gpu_get(factors, p.out_factors, sizeof factors);
        assert_int_equal(gpu_fault_of(p.fault), 0);
        unswizzle(atoms, ROWS * 64, codes);
        assert_true(krn_index_query(NULL, q, wt, ROWS, 64, w.table, pow2, cpu, cpu_factors));
        assert_equal_bytes(codes, cpu, count, "codes");
        assert_equal_bytes(factors, cpu_factors, sizeof factors, "factors");
    }
    free(q), free(atoms), free(codes), free(cpu);
    world_fini(&w);
}

/* Kind 0: random keys; 1: the largest code everywhere; 2: zeros. */
static void fill_index_pages(world *w, dice *d, int kind)
{
    for (uint32_t i = 0; i < PAGES; i++) {
        uint8_t *page = w->pages + (size_t)i * KRN_LAYER_BYTES;
        fill_codes(d, page + KRN_INDEX_CODES_AT, 8192);
        fill_scales(d, (float *)(page + KRN_INDEX_SCALES_AT), 64, true);
        if (kind == 1)
            memset(page + KRN_INDEX_CODES_AT, 0x7E, 8192); /* 448 everywhere */
        if (kind == 2)
            memset(page + KRN_INDEX_CODES_AT, 0, 8192);
    }
}

/* Scores of 4 rows of each sequence, next_n together, against the CPU. */
static void check_scores(int kind, uint32_t heads)
{
    enum { COUNT = 12, STRIDE = 4096 };
    world w;
    dice d = {kind + 50u};
    device_used = 0;
    world_init(&w, &d);
    size_t query_bytes = COUNT * heads * 128;
    uint8_t *atoms = aligned(query_bytes), *codes = aligned(query_bytes);
    float factors[COUNT * 64];
    float *got = aligned(COUNT * STRIDE * 4), *first = aligned(COUNT * STRIDE * 4);
    float *cpu = aligned(STRIDE * 4);
    fill_codes(&d, atoms, query_bytes);
    fill_f32(&d, factors, COUNT * 64, 0.01f);
    fill_index_pages(&w, &d, kind);
    if (kind == 1)
        memset(atoms, 0x7E, query_bytes);
    unswizzle(atoms, COUNT * heads, codes);
    krn_row rows[COUNT];
    krn_cuda_row device_rows[COUNT];
    for (uint32_t i = 0; i < COUNT; i++) {
        uint32_t sequence = i / 4, slot = (sequence == 0 ? 4090 : sequence == 1 ? 1 : 2047) + i % 4;
        rows[i] =
            (krn_row){.blocks = w.blocks + sequence * BLOCKS, .slot = slot, .first = sequence == 1};
        device_rows[i] = (krn_cuda_row){.sequence = sequence, .slot = slot, .first = sequence == 1};
    }
    w.at.base = gpu_put(w.pages, (size_t)PAGES * KRN_LAYER_BYTES);
    krn_cuda_scores_params p = {.cache = w.at,
                                .rows_at = gpu_put(device_rows, sizeof device_rows),
                                .queries = gpu_put(atoms, query_bytes),
                                .factors = gpu_put(factors, sizeof factors),
                                .scores = gpu_take(COUNT * STRIDE * 4),
                                .rows = COUNT,
                                .heads = heads,
                                .slots_max = STRIDE,
                                .stride = STRIDE};
    double worst = 0;
    for (p.next_n = 1; p.next_n <= 4; p.next_n++) {
        p.rows = p.next_n == 3 ? 3 : COUNT; /* rows of one sequence */
        gpu_ok(gpu->fill(p.scores, 0xA5, COUNT * STRIDE * 4, NULL));
        gpu_ok(gpu->scores(&p, NULL));
        gpu_get(got, p.scores, COUNT * STRIDE * 4);
        if (p.next_n == 1)
            memcpy(first, got, COUNT * STRIDE * 4);
        assert_equal_bytes(got, first, p.rows * STRIDE * 4, "scores over next_n");
    }
    float largest = 1e-20f; /* of all rows: one alone may be a small rest of large terms */
    for (uint32_t i = 0; i < COUNT; i++) {
        uint32_t seen = rows[i].slot + 1 - rows[i].first;
        krn_index_scores(&w.cache, &rows[i], codes + (size_t)i * heads * 128, factors + i * heads,
                         heads, cpu);
        for (uint32_t s = 0; s < seen; s++)
            largest = fmaxf(largest, fabsf(cpu[s]));
        for (uint32_t s = 0; s < seen; s++) {
            double error = fabs((double)first[(size_t)i * STRIDE + s] - cpu[s]) / largest;
            if (!(error < 2e-3))
                fail_msg("row %u slot %u: %g, expected %g", i, s, first[(size_t)i * STRIDE + s],
                         cpu[s]);
            worst = fmax(worst, error);
        }
    }
    printf("scores kind %d, %u heads: largest error %.2e of the largest score\n", kind, heads,
           worst);
    free(atoms), free(codes), free(got), free(first), free(cpu);
    world_fini(&w);
}

TEST(scores_are_near_the_cpu_s_and_equal_over_next_n)
{
    for (uint32_t heads = 8; heads <= 64; heads *= 2)
        for (int kind = 0; kind < 3; kind++)
            check_scores(kind, heads);
}

/* Rows of a prefill step: long runs of a sequence, short ones, single rows in between, runs over
 * the edges of tiles; where a run begins, rows may begin to see late. */
static void many_rows(krn_cuda_row *rows, uint32_t count)
{
    static const uint32_t RUNS[][3] = {/* sequence, rows, first slot */
                                       {0, 131, 3960}, {1, 1, 0},    {2, 7, 60},  {1, 2, 4094},
                                       {0, 1, 63},     {2, 90, 100}, {1, 40, 64}, {2, 19, 4000}};
    uint32_t i = 0;
    for (uint32_t r = 0; r < sizeof RUNS / sizeof *RUNS; r++)
        for (uint32_t j = 0; j < RUNS[r][1]; j++, i++)
            rows[i] = (krn_cuda_row){.sequence = RUNS[r][0],
                                     .slot = RUNS[r][2] + j,
                                     .first = RUNS[r][0] == 2 ? j % 61 : 0};
    if (i != count)
        fail_msg("%u rows", i);
}

/* Scored at once and in parts that the schedule for few rows takes. */
static void check_many_scores(int kind, uint32_t heads)
{
    enum { COUNT = 291, STRIDE = 4096, PART = 97 };
    world w;
    dice d = {kind + 70u};
    device_used = 0;
    world_init(&w, &d);
    size_t query_bytes = COUNT * heads * 128, score_bytes = (size_t)COUNT * STRIDE * 4;
    uint8_t *atoms = aligned(query_bytes);
    float *factors = aligned(COUNT * heads * 4);
    float *got = aligned(score_bytes), *expected = aligned(score_bytes);
    krn_cuda_row rows[COUNT];
    fill_codes(&d, atoms, query_bytes);
    fill_f32(&d, factors, COUNT * heads, 0.01f);
    fill_index_pages(&w, &d, kind);
    many_rows(rows, COUNT);
    w.at.base = gpu_put(w.pages, (size_t)PAGES * KRN_LAYER_BYTES);
    krn_cuda_scores_params p = {.cache = w.at,
                                .rows_at = gpu_put(rows, sizeof rows),
                                .queries = gpu_put(atoms, query_bytes),
                                .factors = gpu_put(factors, COUNT * heads * 4),
                                .scores = gpu_take(score_bytes),
                                .rows = COUNT,
                                .next_n = 1,
                                .heads = heads,
                                .slots_max = STRIDE,
                                .stride = STRIDE};
    gpu_ok(gpu->scores(&p, NULL));
    gpu_get(got, p.scores, score_bytes);
    gpu_ok(gpu->fill(p.scores, 0xA5, score_bytes, NULL));
    for (uint32_t i = 0; i < COUNT; i += PART) {
        krn_cuda_scores_params part = p;
        part.rows = PART;
        part.rows_at += i;
        part.queries += (size_t)i * heads * 128;
        part.factors += i * heads;
        part.scores += (size_t)i * STRIDE;
        gpu_ok(gpu->scores(&part, NULL));
    }
    gpu_get(expected, p.scores, score_bytes);
    assert_equal_bytes(got, expected, score_bytes, "scores of many rows");
    free(atoms), free(factors), free(got), free(expected);
    world_fini(&w);
}

TEST(scores_of_many_rows_are_those_of_few)
{
    for (uint32_t heads = 8; heads <= 64; heads *= 2)
        for (int kind = 0; kind < 3; kind++)
            check_many_scores(kind, heads);
}

static const struct CMUnitTest tests[] = {
    GPU_TEST(rope_of_queries_is_the_cpu_s),
    GPU_TEST(latent_put_is_the_cpu_s),
    GPU_TEST(latent_put_reports_nan),
    GPU_TEST(index_put_is_the_cpu_s),
    GPU_TEST(index_query_is_the_cpu_s),
    GPU_TEST(scores_are_near_the_cpu_s_and_equal_over_next_n),
    GPU_TEST(scores_of_many_rows_are_those_of_few),
};
GPU_MAIN(tests)
