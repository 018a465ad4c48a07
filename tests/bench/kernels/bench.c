/* Kernel bench: each kernel beside the roof that bounds it, measured in turn in the same run.
 *
 *   build/bench/kernels [FILTER]     SLUICE_CPU chooses the variant
 *
 * Floor: the largest of FLOP by the multiply-add roof, bytes from memory by the reading roof and,
 * for few rows, fp8 weights by the roof of converting them. One thread, CPU time of that thread
 * (other processes on the machine disturb it little), random data, medians of 7. Weights of the
 * decode rows are larger than the caches. Only ratios mean something on a shared machine. */
#include "kernels/kernels.h"
#include "tests/bench/kernels/roof.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define ROUNDS 7

typedef struct bench {
    const char *name;
    const char *shape;
    void (*run)(void *state);
    void *state;
    double flops; /* of one run: not under the multiply-add roof */
    double bytes; /* of one run that come from memory: not under the time to read them */
    double units; /* rows or so of one run, for the time column */
    const char *unit;
    uint32_t convert_rows; /* fp8 weights for so few rows: not under converting them either */
} bench;

static uint64_t dice = 88172645463325252ull;

static uint32_t roll(void)
{
    dice = dice * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)((dice ^ (dice >> 29)) >> 24);
}

static void *memory_of(size_t bytes)
{
    void *memory = NULL;
    if (posix_memalign(&memory, 64, (bytes + 63) & ~(size_t)63) != 0)
        abort();
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

static uint8_t *read_memory;
#define READ_BYTES ((size_t)128 << 20)

static double fma_rate(bool fused)
{
    double before = thread_seconds();
    uint32_t lanes = fused ? roof_fma() : roof_mul_add();
    return 2.0 * 16 * lanes * ROOF_STEPS / (thread_seconds() - before);
}

static double read_rate(void)
{
    double before = thread_seconds();
    roof_read(read_memory, READ_BYTES);
    return (double)READ_BYTES / (thread_seconds() - before);
}

static double timed(const bench *b)
{
    /* At least 20 ms a sample. */
    uint32_t repeats = 0;
    double before = thread_seconds(), now;
    do {
        b->run(b->state);
        repeats++;
        now = thread_seconds();
    } while (now - before < 0.02);
    return (now - before) / repeats;
}

static double convert_rate(uint32_t rows)
{
    double before = thread_seconds();
    double bytes = (double)roof_convert(rows);
    return bytes / (thread_seconds() - before);
}

/* The least time of one run, by the roofs as they are now, and which of them it is. */
static double floor_seconds(const bench *b, const char **out_roof)
{
    double floor = b->flops > 0 ? b->flops / fma_rate(true) : 0;
    double reading = b->bytes > 0 ? b->bytes / read_rate() : 0;
    double converting = b->convert_rows > 0 ? b->bytes / convert_rate(b->convert_rows) : 0;
    *out_roof = "fma";
    if (reading > floor) {
        floor = reading;
        *out_roof = "read";
    }
    if (converting > floor) {
        floor = converting;
        *out_roof = "convert";
    }
    return floor;
}

static void measure(const bench *b)
{
    double seconds[ROUNDS], ratio[ROUNDS], floors[ROUNDS];
    const char *roof = "";
    b->run(b->state);
    for (int i = 0; i < ROUNDS; i++) {
        floors[i] = floor_seconds(b, &roof);
        seconds[i] = timed(b);
        ratio[i] = floors[i] / seconds[i];
    }
    double time = median(seconds), share = median(ratio), floor = median(floors);
    printf("%-26s %-34s %9.2f MFLOP %7.2f MB %9.2f us/%-4s floor %9.2f (%s)  %5.1f %%\n", b->name,
           b->shape, b->flops / b->units * 1e-6, b->bytes / b->units * 1e-6, time / b->units * 1e6,
           b->unit, floor / b->units * 1e6, roof, share * 100);
    fflush(stdout);
}

/* ---- linear layers ---- */

typedef struct linear_state {
    krn_gemm gemms[64];
    krn_matrix matrices[64];
    uint32_t count, next;
    bool rotate; /* one matrix a run, in turn: weights come from memory */
    void (*run)(krn_pool *pool, const krn_gemm *gemms, uint32_t count);
} linear_state;

static void run_linear(void *context)
{
    linear_state *s = context;
    if (!s->rotate) {
        s->run(NULL, s->gemms, s->count);
        return;
    }
    s->run(NULL, &s->gemms[s->next], 1);
    s->next = (s->next + 1) % s->count;
}

static linear_state *linear(krn_matrix_kind kind, uint32_t rows, uint32_t n, uint32_t k,
                            uint32_t count, bool f32_output)
{
    linear_state *s = memory_of(sizeof *s);
    uint8_t *codes = kind == KRN_MATRIX_FP8 ? random_codes((size_t)n * k) : NULL;
    uint16_t *weights = kind == KRN_MATRIX_BF16 ? random_bf16((size_t)n * k) : NULL;
    float *scales = ones((size_t)(n + 127) / 128 * (k / 128));
    void *input = kind == KRN_MATRIX_FP8 ? (void *)random_codes((size_t)rows * k)
                                         : (void *)random_bf16((size_t)rows * k);
    float *input_scales = ones((size_t)rows * (k / 128));
    s->count = count;
    s->rotate = count > 1;
    s->run = kind == KRN_MATRIX_FP8 ? krn_linear_fp8
             : f32_output           ? krn_linear_f32
                                    : krn_linear_bf16;
    for (uint32_t i = 0; i < count; i++) {
        void *packed = memory_of(krn_matrix_bytes(kind, n, k));
        if (kind == KRN_MATRIX_FP8)
            krn_matrix_pack_fp8(codes, scales, n, k, packed, &s->matrices[i]);
        else
            krn_matrix_pack_bf16(weights, k, 1, n, k, packed, &s->matrices[i]);
        s->gemms[i] = (krn_gemm){.matrix = &s->matrices[i],
                                 .input = input,
                                 .input_scales = input_scales,
                                 .rows = rows,
                                 .output = memory_of((size_t)rows * n * 4)};
    }
    free(codes), free(weights);
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

static void bench_linear(void)
{
    bench b[] = {
        {.name = "linear fp8, prefill",
         .shape = "demo q_b: 512 x 1536 x 256",
         .units = 512,
         .state = linear(KRN_MATRIX_FP8, 512, 1536, 256, 1, false),
         .flops = 2.0 * 512 * 1536 * 256,
         .unit = "row"},
        {.name = "linear fp8, prefill",
         .shape = "full q_a: 256 x 1536 x 7168",
         .units = 256,
         .state = linear(KRN_MATRIX_FP8, 256, 1536, 7168, 1, false),
         .flops = 2.0 * 256 * 1536 * 7168,
         .unit = "row"},
        {.name = "linear fp8, 16 rows",
         .shape = "full expert: 16 x 2048 x 7168",
         .units = 16,
         .state = linear(KRN_MATRIX_FP8, 16, 2048, 7168, 1, false),
         .flops = 2.0 * 16 * 2048 * 7168,
         .unit = "row"},
        {.name = "linear bf16, prefill",
         .shape = "W_UK: 512 x 512 x 128",
         .units = 512,
         .state = linear(KRN_MATRIX_BF16, 512, 512, 128, 1, false),
         .flops = 2.0 * 512 * 512 * 128,
         .unit = "row"},
        {.name = "linear fp8, 1 row",
         .shape = "10 full experts: 1 x 2048 x 7168",
         .units = 1,
         .state = linear(KRN_MATRIX_FP8, 1, 2048, 7168, 10, false),
         .flops = 2.0 * 2048 * 7168,
         .bytes = 2048.0 * 7168,
         .convert_rows = 1,
         .unit = "row"},
        {.name = "linear fp8, 2 rows",
         .shape = "10 full experts: 2 x 2048 x 7168",
         .units = 2,
         .state = linear(KRN_MATRIX_FP8, 2, 2048, 7168, 10, false),
         .flops = 2.0 * 2 * 2048 * 7168,
         .bytes = 2048.0 * 7168,
         .convert_rows = 2,
         .unit = "row"},
        {.name = "linear fp8, 4 rows",
         .shape = "10 full experts: 4 x 2048 x 7168",
         .units = 4,
         .state = linear(KRN_MATRIX_FP8, 4, 2048, 7168, 10, false),
         .flops = 2.0 * 4 * 2048 * 7168,
         .bytes = 2048.0 * 7168,
         .convert_rows = 4,
         .unit = "row"},
        {.name = "linear bf16 to f32, 1 row",
         .shape = "4 heads' parts: 1 x 4096 x 7168",
         .units = 1,
         .state = linear(KRN_MATRIX_BF16, 1, 4096, 7168, 4, true),
         .flops = 2.0 * 4096 * 7168,
         .bytes = 4096.0 * 7168 * 2,
         .unit = "row"},
    };
    for (size_t i = 0; i < sizeof b / sizeof b[0]; i++) {
        b[i].run = run_linear;
        if (wanted(b[i].name))
            measure(&b[i]);
    }
}

static void bench_attention(void)
{
    attend_state *demo = attention(16, 8, 8, 256, 4096);
    attend_state *full = attention(16, 128, 64, 2048, 8192);
    attend_state *far = attention(1, 128, 64, 2048, 65536);
    attend_state *demo_far = attention(1, 8, 8, 256, 16384);
    bench b[] = {
        {"attention", "demo: 8 heads, 256 keys", run_attend, demo, 16 * 2.0 * 8 * 256 * 1088, 0, 16,
         "row", 0},
        {"attention", "full: 128 heads, 2048 keys", run_attend, full, 16 * 2.0 * 128 * 2048 * 1088,
         0, 16, "row", 0},
        {"index score and select", "demo, prefill: 16 rows, 4K keys", run_select, demo,
         16 * 2.0 * 8 * 4096 * 128, 0, 16, "row", 0},
        {"index score and select", "full, prefill: 16 rows, 8K keys", run_select, full,
         16 * 2.0 * 64 * 8192 * 128, 0, 16, "row", 0},
        {"index score and select", "demo, decode: 1 row, 16K keys", run_select, demo_far,
         2.0 * 8 * 16384 * 128, 0, 1, "row", 0},
        {"index score and select", "full, decode: 1 row, 64K keys", run_select, far,
         2.0 * 64 * 65536 * 128, 0, 1, "row", 0},
        {"top-k alone", "2048 of 64K", run_topk, far, 0, 65536 * 4.0, 1, "row", 0},
        {"top-k alone", "256 of 4K", run_topk, demo, 0, 4096 * 4.0, 1, "row", 0},
    };
    for (size_t i = 0; i < sizeof b / sizeof b[0]; i++)
        if (wanted(b[i].name))
            measure(&b[i]);
}

static void bench_rows(void)
{
    rows_state *demo = row_operands(512, 256), *full = row_operands(64, 7168);
    rows_state *one = row_operands(1, 7168);
    bench b[] = {
        {"rows: rmsnorm_add", "512 x 256", run_norm, demo, 0, 512 * 256 * 8.0, 512, "row", 0},
        {"rows: rmsnorm_add", "64 x 7168", run_norm, full, 0, 64 * 7168 * 8.0, 64, "row", 0},
        {"rows: rmsnorm_add", "1 x 7168 (one chain)", run_norm, one, 0, 7168 * 8.0, 1, "row", 0},
        {"rows: q128", "64 x 7168", run_q128, full, 0, 64 * 7168 * 3.0, 64, "row", 0},
        {"rows: silu_mul", "64 x 7168", run_silu, full, 0, 64 * 7168 * 6.0, 64, "row", 0},
    };
    for (size_t i = 0; i < sizeof b / sizeof b[0]; i++)
        if (wanted(b[i].name))
            measure(&b[i]);
}

int main(int argc, char **argv)
{
    sl_err err;
    filter = argc > 1 ? argv[1] : NULL;
    if (!sl_is_ok(krn_cpu_select(NULL, &err))) {
        fprintf(stderr, "%s\n", err.text);
        return 2;
    }
    read_memory = memory_of(READ_BYTES);
    double fused[ROUNDS], rounded[ROUNDS], reading[ROUNDS];
    for (int i = 0; i < ROUNDS; i++) {
        fused[i] = fma_rate(true);
        rounded[i] = fma_rate(false);
        reading[i] = read_rate();
    }
    printf("variant %s, one thread; fma %.1f GFLOP/s, multiply then add %.1f GFLOP/s, read %.1f "
           "GB/s; fp8 converted and multiplied for 1, 2, 4 rows %.1f, %.1f, %.1f GB/s\n",
           krn_cpu_variant(), median(fused) * 1e-9, median(rounded) * 1e-9, median(reading) * 1e-9,
           convert_rate(1) * 1e-9, convert_rate(2) * 1e-9, convert_rate(4) * 1e-9);
    bench_linear();
    bench_attention();
    bench_rows();
    return 0;
}
