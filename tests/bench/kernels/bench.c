/* Kernel bench: each kernel beside the roof that bounds it, measured in turn in the same run.
 *
 *   build/bench/kernels [FILTER]     SLUICE_CPU chooses the variant
 *
 * Floor: the largest of FLOP by the roof of arithmetic (multiply-adds, or tiles where the variant
 * uses them), bytes from memory by the quickest reading loop and, for few rows, fp8 weights by the
 * roof of converting and multiplying them. One thread, CPU time of that thread (other processes on
 * the machine disturb it little), random data, huge pages as the engine's. Weights are larger than
 * the caches and every row of the fp8 products takes ten experts in turn. Told: medians of 9, the
 * middle of the rounds' shares, the least and the largest, and the least floor by the least time.
 * Only ratios mean something on a shared machine. */
#include "base/alloc.h"
#include "kernels/kernels.h"
#include "tests/bench/kernels/roof.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define ROUNDS 9

#define CONVERT_ROWS_MAX 16u

#define MATRICES_MAX 16

/* Matrices of one shape; a run takes one of them, in turn: weights come from memory. */
typedef struct weights {
    krn_matrix_kind kind;
    uint32_t n, k, count;
    krn_matrix matrices[MATRICES_MAX];
    uint32_t next; /* whoever reads one, a product or a roof, takes the next */
} weights;

typedef struct bench {
    const char *name;
    const char *shape;
    void (*run)(void *state);
    void *state;
    double flops;          /* of one run: not under the roof of arithmetic */
    double bytes;          /* of one run: not under the time to read them */
    weights *memory;       /* they come from there; NULL: from a cache that holds so many */
    double units;          /* rows or so of one run, for the time column */
    uint32_t convert_rows; /* fp8 weights for so few rows: not under converting them either */
    bool fp8;              /* products of fp8 codes: of pairs where the variant has them */
} bench;

static uint64_t dice = 88172645463325252ull;

static uint32_t roll(void)
{
    dice = dice * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)((dice ^ (dice >> 29)) >> 24);
}

static void *memory_of(size_t bytes)
{
    const size_t huge = 2u << 20;
    void *memory = NULL;
    sl_err err;
    /* As the engine's, and from a huge page's beginning on where it is large. */
    if (!sl_is_ok(sl_alloc_pages(bytes < huge ? bytes : bytes + huge, &memory, &err))) {
        fprintf(stderr, "%s\n", err.text);
        exit(1);
    }
    if (bytes >= huge)
        memory = (void *)(((uintptr_t)memory + huge - 1) & ~(uintptr_t)(huge - 1));
    memset(memory, 0, bytes);
    return memory;
}

/* Of sums of four evenly distributed numbers, as large as quantised blocks are. */
static uint8_t random_code(void)
{
    float sum = 0;
    for (int i = 0; i < 4; i++)
        sum += (float)(int32_t)roll() * 0x1p-31f;
    return krn_f32_to_e4m3(sum * 112.0f);
}

static uint8_t *random_codes(size_t count)
{
    uint8_t *codes = memory_of(count);
    for (size_t i = 0; i < count; i++)
        codes[i] = random_code();
    return codes;
}

static uint16_t *random_bf16(size_t count)
{
    uint16_t *values = memory_of(count * 2);
    for (size_t i = 0; i < count; i++)
        values[i] = krn_f32_to_bf16((float)(int32_t)roll() * 0x1p-31f);
    return values;
}

static float *ones(size_t count)
{
    float *values = memory_of(count * 4);
    for (size_t i = 0; i < count; i++)
        values[i] = 1.0f;
    return values;
}

static double thread_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(double *values)
{
    qsort(values, ROUNDS, sizeof *values, by_value);
    return values[ROUNDS / 2];
}

/* ---- roofs ---- */

#define READ_BEST  2                  /* so many of the loops stay in the run */
#define CACHE_READ ((size_t)16 << 20) /* no more of what lies in a cache */

static uint32_t read_loops[READ_BEST];
static const void *cache_memory;
static uint32_t lanes; /* of the variant's vectors */
static roof_path path; /* of its fp8 weights */

static double fma_rate(void)
{
    double before = thread_seconds(), flops = roof_fma(lanes);
    return flops / (thread_seconds() - before);
}

static double mul_add_rate(void)
{
    double before = thread_seconds(), flops = roof_mul_add(lanes);
    return flops / (thread_seconds() - before);
}

static double pair_rate(void)
{
    double before = thread_seconds(), flops = roof_pairs();
    return flops / (thread_seconds() - before);
}

static double tile_rate(void)
{
    double before = thread_seconds(), flops = roof_tiles();
    return flops / (thread_seconds() - before);
}

static const krn_matrix *next_matrix(weights *w)
{
    const krn_matrix *m = &w->matrices[w->next];
    w->next = (w->next + 1) % w->count;
    return m;
}

/* Reads the weights that a product would read. */
static double loop_rate(weights *w, uint32_t loop)
{
    size_t bytes = krn_matrix_bytes(w->kind, w->n, w->k);
    double before = thread_seconds(), done = roof_read(loop, lanes, next_matrix(w)->panels, bytes);
    return done / (thread_seconds() - before);
}

/* The same from a cache: as many bytes again and again. */
static double cache_rate(double bytes)
{
    size_t window = ((size_t)bytes + 511) & ~(size_t)511;
    double done = roof_read_cache(lanes, cache_memory, window);
    double before = thread_seconds(), now;
    done = 0;
    do {
        for (size_t part = 0; part < (1u << 20); part += window)
            done += roof_read_cache(lanes, cache_memory, window);
        now = thread_seconds();
    } while (now - before < 3e-4);
    return done / (now - before);
}

static double convert_rate(uint32_t rows)
{
    double before = thread_seconds(), bytes = roof_convert(path, rows);
    return bytes / (thread_seconds() - before);
}

static double median_rate(double (*rate)(void))
{
    double rates[ROUNDS];
    for (int i = 0; i < ROUNDS; i++)
        rates[i] = rate();
    return median(rates);
}

static double median_convert_rate(uint32_t rows)
{
    double rates[ROUNDS];
    for (int i = 0; i < ROUNDS; i++)
        rates[i] = convert_rate(rows);
    return median(rates);
}

/* Which loops read quickest here. */
static void choose_read_loops(weights *w)
{
    double rates[ROOF_READ_LOOPS] = {0};
    for (int round = 0; round < 7; round++)
        for (uint32_t i = 0; i < ROOF_READ_LOOPS; i++) {
            double rate = loop_rate(w, i);
            rates[i] = rate > rates[i] ? rate : rates[i];
        }
    for (int n = 0; n < READ_BEST; n++) {
        uint32_t best = 0;
        for (uint32_t i = 1; i < ROOF_READ_LOOPS; i++)
            best = rates[i] > rates[best] ? i : best;
        printf("reading by ");
        roof_read_tell(best);
        printf(": %.1f GB/s\n", rates[best] * 1e-9);
        read_loops[n] = best;
        rates[best] = 0;
    }
}

static void tell_roofs(weights *w)
{
    const char *variant = krn_cpu_variant();
    path = strcmp(variant, "amx") == 0    ? ROOF_PATH_TILES
           : strcmp(variant, "zen4") == 0 ? ROOF_PATH_ZEN4
           : strcmp(variant, "zen") == 0  ? ROOF_PATH_ZEN
           : strcmp(variant, "avx2") == 0 ? ROOF_PATH_F32_8
                                          : ROOF_PATH_F32_16;
    lanes = path == ROOF_PATH_F32_8 || path == ROOF_PATH_ZEN ? 8 : 16;
    cache_memory = memory_of(CACHE_READ);
    choose_read_loops(w);
    printf("variant %s, one thread; fma %.1f GFLOP/s, multiply then add %.1f GFLOP/s", variant,
           median_rate(fma_rate) * 1e-9, median_rate(mul_add_rate) * 1e-9);
    if (path == ROOF_PATH_TILES)
        printf(", tiles %.0f GFLOP/s", median_rate(tile_rate) * 1e-9);
    if (path == ROOF_PATH_ZEN4)
        printf(", pairs %.1f GFLOP/s", median_rate(pair_rate) * 1e-9);
    printf("\nfp8 converted and multiplied for");
    for (uint32_t rows = 1; rows <= CONVERT_ROWS_MAX; rows *= 2)
        printf(" %u: %.1f", rows, median_convert_rate(rows) * 1e-9);
    printf(" GB/s\n");
}

/* ---- measuring ---- */

#define SLICES        8 /* of a round: the kernel and its roofs take turns every few milliseconds */
#define SLICE_SECONDS 2e-3 /* of the kernel, at least */

static double timed(const bench *b)
{
    uint32_t repeats = 0;
    double before = thread_seconds(), now;
    do {
        b->run(b->state);
        repeats++;
        now = thread_seconds();
    } while (now - before < SLICE_SECONDS);
    return (now - before) / repeats;
}

/* Least times of a run by each roof. */
typedef struct floors {
    double products, converting, cached;
    double reading[READ_BEST]; /* by each loop */
} floors;

/* Of the arithmetic that the variant uses. */
static double product_rate(const bench *b)
{
    if (path == ROOF_PATH_TILES)
        return tile_rate();
    return path == ROOF_PATH_ZEN4 && b->fp8 ? pair_rate() : fma_rate();
}

static void add_floors(const bench *b, floors *sum)
{
    if (b->flops > 0)
        sum->products += b->flops / product_rate(b);
    if (b->memory)
        for (int i = 0; i < READ_BEST; i++)
            sum->reading[i] += b->bytes / loop_rate(b->memory, read_loops[i]);
    else if (b->bytes > 0)
        sum->cached += b->bytes / cache_rate(b->bytes);
    if (b->convert_rows > 0)
        sum->converting += b->bytes / convert_rate(b->convert_rows);
}

/* The roof that bounds it. */
static double largest_floor(const bench *b, const floors *of, const char **out_roof)
{
    double floor = of->products;
    *out_roof = path == ROOF_PATH_TILES            ? "tiles"
                : path == ROOF_PATH_ZEN4 && b->fp8 ? "pairs"
                                                   : "fma";
    double reading = of->reading[0];
    for (int i = 1; i < READ_BEST; i++)
        reading = of->reading[i] < reading ? of->reading[i] : reading;
    reading = b->memory ? reading : of->cached;
    if (reading > floor) {
        floor = reading;
        *out_roof = b->memory ? "read" : "cache";
    }
    if (of->converting > floor) {
        floor = of->converting;
        *out_roof = "convert";
    }
    return floor;
}

static void measure(const bench *b)
{
    double seconds[ROUNDS], share[ROUNDS], floor[ROUNDS];
    const char *roof = "";
    b->run(b->state);
    for (int i = 0; i < ROUNDS; i++) {
        floors sum = {0};
        seconds[i] = 0;
        for (int slice = 0; slice < SLICES; slice++) {
            add_floors(b, &sum);
            seconds[i] += timed(b) / SLICES;
        }
        floor[i] = largest_floor(b, &sum, &roof) / SLICES;
        share[i] = floor[i] / seconds[i];
    }
    double time = median(seconds), least = median(floor), middle = median(share);
    printf("%-24s %-30s %8.2f MFLOP %6.2f MB %9.2f us/row floor %9.2f (%s) %4.0f %% (%.0f to "
           "%.0f, best %.0f)\n",
           b->name, b->shape, b->flops / b->units * 1e-6, b->bytes / b->units * 1e-6,
           time / b->units * 1e6, least / b->units * 1e6, roof, middle * 100, share[0] * 100,
           share[ROUNDS - 1] * 100, floor[0] / seconds[0] * 100);
    fflush(stdout);
}

/* ---- linear layers ---- */

typedef struct linear_state {
    weights *weights;
    krn_gemm gemm;
    void (*run)(krn_pool *pool, const krn_gemm *gemms, uint32_t count);
} linear_state;

static void run_linear(void *context)
{
    linear_state *s = context;
    s->gemm.matrix = next_matrix(s->weights);
    s->run(NULL, &s->gemm, 1);
}

static weights *random_weights(krn_matrix_kind kind, uint32_t n, uint32_t k, uint32_t count)
{
    weights *w = memory_of(sizeof *w);
    *w = (weights){.kind = kind, .n = n, .k = k, .count = count};
    void *values = kind == KRN_MATRIX_FP8 ? (void *)random_codes((size_t)n * k)
                                          : (void *)random_bf16((size_t)n * k);
    float *scales = ones((size_t)(n + 127) / 128 * (k / 128));
    for (uint32_t i = 0; i < count; i++) {
        void *packed = memory_of(krn_matrix_bytes(kind, n, k));
        if (kind == KRN_MATRIX_FP8)
            krn_matrix_pack_fp8(values, scales, n, k, packed, &w->matrices[i]);
        else
            krn_matrix_pack_bf16(values, k, 1, n, k, packed, &w->matrices[i]);
    }
    return w;
}

static linear_state *linear(weights *w, uint32_t rows, bool f32_output)
{
    linear_state *s = memory_of(sizeof *s);
    size_t inputs = (size_t)rows * w->k;
    *s = (linear_state){.weights = w,
                        .run = w->kind == KRN_MATRIX_FP8 ? krn_linear_fp8
                               : f32_output              ? krn_linear_f32
                                                         : krn_linear_bf16};
    s->gemm = (krn_gemm){.input = w->kind == KRN_MATRIX_FP8 ? (void *)random_codes(inputs)
                                                            : (void *)random_bf16(inputs),
                         .input_scales = ones(inputs / 128),
                         .rows = rows,
                         .output = memory_of((size_t)rows * w->n * 4)};
    return s;
}

/* ---- attention and indexer ---- */

typedef struct attend_state {
    krn_cache cache;
    krn_attend_args args;
    krn_select_args select;
    float *scores;
    uint32_t keys;
    uint32_t *positions;
} attend_state;

static void run_attend(void *context)
{
    attend_state *s = context;
    krn_attend(NULL, &s->args);
}

static void run_select(void *context)
{
    attend_state *s = context;
    if (!krn_index_select(NULL, &s->select))
        abort();
}

static void run_topk(void *context)
{
    attend_state *s = context;
    if (!krn_topk(s->scores, s->keys, s->select.topk, s->positions))
        abort();
}

/* `rows` queries at the end of `slots` cached tokens, topk chosen at even distances. */
static attend_state *attention(uint32_t rows, uint32_t heads, uint32_t index_heads, uint32_t topk,
                               uint32_t slots)
{
    attend_state *s = memory_of(sizeof *s);
    uint32_t pages = (slots + 63) / 64;
    uint32_t *blocks = memory_of(pages * 4), *lists = memory_of((size_t)rows * topk * 4);
    uint32_t *counts = memory_of(rows * 4);
    krn_row *at = memory_of(rows * sizeof *at);
    s->cache = (krn_cache){.base = memory_of((size_t)pages * KRN_LAYER_BYTES),
                           .page_bytes = KRN_LAYER_BYTES};
    for (uint32_t p = 0; p < pages; p++) {
        uint8_t *page = s->cache.base + (size_t)p * KRN_LAYER_BYTES;
        blocks[p] = p;
        for (uint32_t b = 0; b < KRN_INDEX_SCALES_AT; b++)
            page[b] = random_code();
        for (uint32_t i = 0; i < 64; i++) {
            float one = 1.0f, latent_scale = 0x1p-8f;
            for (uint32_t d = 0; d < KRN_ROPE_DIM; d++) {
                uint16_t rope = krn_f32_to_bf16((float)(int32_t)roll() * 0x1p-31f);
                memcpy(page + i * KRN_LATENT_ROW_BYTES + KRN_LATENT_ROPE_AT + d * 2, &rope, 2);
            }
            for (uint32_t g = 0; g < 4; g++)
                memcpy(page + i * 656 + 512 + g * 4, &latent_scale, 4);
            memcpy(page + KRN_INDEX_SCALES_AT + i * 4, &one, 4);
        }
    }
    for (uint32_t t = 0; t < rows; t++) {
        at[t] = (krn_row){.blocks = blocks, .slot = slots - rows + t};
        counts[t] = topk;
        for (uint32_t i = 0; i < topk; i++)
            lists[t * topk + i] = (uint32_t)((uint64_t)i * (slots - rows) / topk);
    }
    s->args = (krn_attend_args){.cache = &s->cache,
                                .rows = at,
                                .count = rows,
                                .heads = heads,
                                .q_latent = random_bf16((size_t)rows * heads * 512),
                                .q = random_bf16((size_t)rows * heads * 192),
                                .lists = lists,
                                .list_counts = counts,
                                .list_stride = topk,
                                .scale = 0.01f,
                                .scratch = memory_of(krn_attend_scratch_bytes(1, heads, topk)),
                                .output = memory_of((size_t)rows * heads * 1024)};
    size_t bytes = krn_select_scratch_bytes(1, index_heads, slots);
    s->select = (krn_select_args){.cache = &s->cache,
                                  .rows = at,
                                  .count = rows,
                                  .heads = index_heads,
                                  .queries = random_codes((size_t)rows * index_heads * 128),
                                  .factors = ones((size_t)rows * index_heads),
                                  .topk = topk,
                                  .list_stride = topk,
                                  .scratch = memory_of(bytes),
                                  .scratch_bytes = bytes,
                                  .lists = memory_of((size_t)rows * topk * 4),
                                  .list_counts = memory_of(rows * 4)};
    s->keys = slots;
    s->positions = memory_of(topk * 4);
    s->scores = memory_of(slots * 4);
    for (uint32_t i = 0; i < slots; i++)
        s->scores[i] = (float)(int32_t)roll() * 0x1p-31f;
    return s;
}

/* ---- row operations ---- */

typedef struct rows_state {
    uint32_t rows, n;
    uint16_t *x, *res, *weight, *out, *out_res;
    uint8_t *codes;
    float *scales;
} rows_state;

static rows_state *row_operands(uint32_t rows, uint32_t n)
{
    rows_state *s = memory_of(sizeof *s);
    size_t count = (size_t)rows * n;
    *s = (rows_state){.rows = rows,
                      .n = n,
                      .x = random_bf16(count),
                      .res = random_bf16(count),
                      .weight = random_bf16(n),
                      .out = memory_of(count * 2),
                      .out_res = memory_of(count * 2),
                      .codes = memory_of(count),
                      .scales = memory_of(count / 128 * 4)};
    return s;
}

static void run_norm(void *context)
{
    rows_state *s = context;
    if (!krn_rmsnorm_add(NULL, s->x, s->res, s->weight, 1e-6f, s->rows, s->n, s->out, s->out_res))
        abort();
}

static void run_q128(void *context)
{
    rows_state *s = context;
    if (!krn_q128(NULL, s->x, s->rows, s->n, true, s->codes, s->scales))
        abort();
}

static void run_silu(void *context)
{
    rows_state *s = context;
    krn_silu_mul(NULL, s->x, s->res, (size_t)s->rows * s->n, s->out);
}

static const char *filter;

static bool wanted(const char *name)
{
    return filter == NULL || strstr(name, filter) != NULL;
}

/* Products of `rows` rows; from memory: the weights are not in a cache. */
static void measure_linear(const char *name, const char *shape, weights *w, uint32_t rows,
                           bool f32_output)
{
    char text[64];
    if (!wanted(name))
        return;
    snprintf(text, sizeof text, "%s: %u x %u x %u", shape, rows, w->n, w->k);
    bool fp8 = w->kind == KRN_MATRIX_FP8;
    bench b = {.name = name,
               .shape = text,
               .run = run_linear,
               .state = linear(w, rows, f32_output),
               .flops = 2.0 * rows * w->n * w->k,
               .bytes = (double)w->n * w->k * (fp8 ? 1 : 2),
               .memory = w->count > 1 ? w : NULL,
               .units = rows,
               .convert_rows = fp8 && rows <= CONVERT_ROWS_MAX ? rows : 0,
               .fp8 = fp8};
    measure(&b);
}

static void bench_linear(weights *experts)
{
    weights *heads = random_weights(KRN_MATRIX_BF16, 4096, 7168, 4);
    weights *q_b = random_weights(KRN_MATRIX_FP8, 1536, 256, 1);
    weights *w_uk = random_weights(KRN_MATRIX_BF16, 512, 128, 1);
    for (uint32_t rows = 1; rows <= 16; rows *= 2)
        measure_linear("linear fp8, few rows", "10 experts", experts, rows, false);
    measure_linear("linear fp8, many rows", "10 experts", experts, 64, false);
    measure_linear("linear fp8, many rows", "10 experts", experts, 256, false);
    measure_linear("linear fp8, many rows", "demo q_b", q_b, 512, false);
    measure_linear("linear bf16, few rows", "W_UK", w_uk, 1, false);
    measure_linear("linear bf16, many rows", "W_UK", w_uk, 512, false);
    measure_linear("linear bf16 to f32, head", "4 parts", heads, 1, true);
    measure_linear("linear bf16 to f32, head", "4 parts", heads, 4, true);
    measure_linear("linear bf16 to f32, head", "4 parts", heads, 16, true);
}

static void measure_attention(const char *shape, attend_state *s)
{
    const krn_attend_args *args = &s->args;
    double keys = (double)args->count * args->list_stride;
    bench b = {.name = "attention",
               .shape = shape,
               .run = run_attend,
               .state = s,
               .flops = 2.0 * args->heads * keys * (576 + 512),
               .bytes = keys * KRN_LATENT_ROW_BYTES,
               .units = args->count};
    if (wanted(b.name))
        measure(&b);
}

static void measure_select(const char *shape, attend_state *s)
{
    const krn_select_args *args = &s->select;
    bench b = {.name = "index score and select",
               .shape = shape,
               .run = run_select,
               .state = s,
               .flops = 2.0 * args->count * args->heads * s->keys * KRN_INDEX_DIM,
               .bytes = (KRN_INDEX_DIM + sizeof(float)) * (double)s->keys,
               .units = args->count,
               .fp8 = true};
    if (wanted(b.name))
        measure(&b);
}

static void measure_topk(const char *shape, attend_state *s)
{
    bench b = {.name = "top-k alone",
               .shape = shape,
               .run = run_topk,
               .state = s,
               .bytes = s->keys * sizeof(float),
               .units = 1};
    if (wanted(b.name))
        measure(&b);
}

static void bench_attention(void)
{
    attend_state *demo = attention(16, 8, 8, 256, 4096);
    attend_state *full = attention(16, 128, 64, 2048, 8192);
    attend_state *demo_one = attention(1, 8, 8, 256, 16384);
    attend_state *full_one = attention(1, 128, 64, 2048, 65536);
    measure_attention("demo: 8 heads, 256 keys", demo);
    measure_attention("demo, 1 row", demo_one);
    measure_attention("full: 128 heads, 2048 keys", full);
    measure_attention("full, 1 row", full_one);
    measure_select("demo: 16 rows, 4K keys", demo);
    measure_select("full: 16 rows, 8K keys", full);
    measure_select("demo: 1 row, 16K keys", demo_one);
    measure_select("full: 1 row, 64K keys", full_one);
    measure_topk("2048 of 64K", full_one);
    measure_topk("256 of 4K", demo);
}

static void measure_rows(const char *name, const char *shape, void (*run)(void *state),
                         rows_state *s, double bytes)
{
    bench b = {.name = name,
               .shape = shape,
               .run = run,
               .state = s,
               .bytes = bytes * s->rows * s->n,
               .units = s->rows};
    if (wanted(name))
        measure(&b);
}

static void bench_rows(void)
{
    rows_state *demo = row_operands(512, 256), *full = row_operands(64, 7168);
    rows_state *one = row_operands(1, 7168);
    measure_rows("rows: rmsnorm_add", "512 x 256", run_norm, demo, 8);
    measure_rows("rows: rmsnorm_add", "64 x 7168", run_norm, full, 8);
    measure_rows("rows: rmsnorm_add", "1 x 7168 (one chain)", run_norm, one, 8);
    measure_rows("rows: q128", "64 x 7168", run_q128, full, 3);
    measure_rows("rows: silu_mul", "64 x 7168", run_silu, full, 6);
}

int main(int argc, char **argv)
{
    sl_err err;
    filter = argc > 1 ? argv[1] : NULL;
    if (!sl_is_ok(krn_cpu_select(NULL, &err))) {
        fprintf(stderr, "%s\n", err.text);
        return 2;
    }
    weights *experts = random_weights(KRN_MATRIX_FP8, 2048, 7168, 10);
    tell_roofs(experts);
    bench_linear(experts);
    bench_attention();
    bench_rows();
    return 0;
}
