/* Times of the CUDA operations over V3.2 shapes, beside the ceilings measured in the same run.
 *
 * Each row: a graph of LAUNCHES launches over rotating buffer sets (together well past the L2),
 * median of 5 replays. Columns: microseconds a launch, GB/s and % of the copy bandwidth (bytes that
 * must move), TFLOP/s. Data is random. kernels_bench [name part]... runs the matching rows. */
#include "kernels/cuda/load.h"
#include "kernels/numbers.h"

#include <cuda_runtime.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LAUNCHES   24
#define POOL_BYTES (6ull << 30)

static const krn_cuda_api *gpu;
static uint8_t *pool; /* random bytes */
static cudaStream_t stream;
static double copy_rate;     /* bytes a second, read + write */
static char *const *filters; /* ends with NULL; none: all rows */

static void must(int code, const char *what)
{
    if (code != 0) {
        fprintf(stderr, "%s: code %d: %s\n", what, code, gpu->last_error());
        exit(1);
    }
}

typedef void (*launch_fn)(void *context, uint32_t i);

static int by_time(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

static double time_us(launch_fn launch, void *context, int launches)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaEvent_t start, end;
    float ms[5];
    launch(context, 0);
    must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed), "capture");
    for (int i = 0; i < launches; i++)
        launch(context, (uint32_t)i);
    must(cudaStreamEndCapture(stream, &graph), "capture end");
    must(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
    must(cudaEventCreate(&start), "event");
    must(cudaEventCreate(&end), "event");
    must(cudaGraphLaunch(exec, stream), "warm up");
    for (int i = 0; i < 5; i++) {
        must(cudaEventRecord(start, stream), "record");
        must(cudaGraphLaunch(exec, stream), "launch");
        must(cudaEventRecord(end, stream), "record");
        must(cudaEventSynchronize(end), "wait");
        must(cudaEventElapsedTime(&ms[i], start, end), "time");
    }
    qsort(ms, 5, sizeof *ms, by_time);
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    return ms[2] * 1e3 / launches;
}

static bool wanted(const char *name)
{
    bool any = !filters[0];
    for (char *const *part = filters; *part; part++)
        any = any || strstr(name, *part);
    return any;
}
static void row(const char *name, double us, double bytes, double flops)
{
    printf("%-44s %9.2f us %8.0f GB/s %6.1f %% of copy", name, us, bytes / us * 1e-3,
           bytes / us * 1e6 / copy_rate * 100);
    if (flops > 0)
        printf(" %8.1f TFLOP/s", flops / us * 1e-6);
    printf("\n");
    fflush(stdout);
}

/* A part of the pool that set i of `bytes` each uses; aligned to 1 KB. */
static uint8_t *part(uint64_t base, uint64_t bytes, uint32_t i)
{
    bytes = (bytes + 1023) & ~1023ull;
    uint64_t sets = (POOL_BYTES - base) / bytes;
    return pool + base + i % (sets < LAUNCHES ? sets : LAUNCHES) * bytes;
}

/* ---- ceilings ---- */

static void copy_launch(void *context, uint32_t i)
{
    (void)context;
    uint64_t half = POOL_BYTES / 4;
    must(cudaMemcpyAsync(pool + (i % 2 ? 0 : half), pool + (i % 2 ? half : 0), half,
                         cudaMemcpyDeviceToDevice, stream),
         "copy");
}

/* ---- linear ---- */

typedef struct linear_work {
    krn_cuda_linear_params p;
    uint64_t weights, codes;
    uint32_t *experts; /* offsets, counts */
} linear_work;

static void linear_launch(void *context, uint32_t i)
{
    const linear_work *w = context;
    krn_cuda_linear_params p = w->p;
    p.weights = part(1ull << 30, w->weights, i);
    p.codes = part(0, w->codes, i % 4);
    p.scales = (const float *)(pool + (300u << 20));
    p.out = (uint16_t *)(pool + (512u << 20));
    must(gpu->linear_fp8(&p, stream), "linear");
}

static void linear_row(const char *what, uint32_t m, uint32_t n, uint32_t k, uint32_t segments,
                       uint32_t groups)
{
    char name[96];
    snprintf(name, sizeof name, "linear %s M%u N%u K%u S%u%s%.0u", what, m, n, k, segments,
             groups > 1 ? " x" : "", groups > 1 ? groups : 0);
    if (!wanted(name))
        return;
    uint32_t tiled = (m + 7) / 8 * 8;
    linear_work w = {.p = {.rows = m,
                           .groups = groups,
                           .n = n,
                           .k = k,
                           .rows_tiled = tiled * groups,
                           .out_stride = n,
                           .segments = segments,
                           .weights_bytes = gpu->weights_bytes(n, k)},
                     .weights = gpu->weights_bytes(n, k) * groups,
                     .codes = (uint64_t)tiled * groups * k};
    if (groups > 1) {
        uint32_t host[2 * 257];
        for (uint32_t g = 0; g <= groups; g++) {
            host[g] = g * tiled;
            host[257 + g % 257] = m;
        }
        uint32_t *at = (uint32_t *)(pool + (900u << 20));
        must(cudaMemcpy(at, host, sizeof host, cudaMemcpyHostToDevice), "offsets");
        w.p.offsets = at;
        w.p.counts = at + 257;
    }
    double us = time_us(linear_launch, &w, LAUNCHES);
    double bytes = (double)groups * ((double)n * k + (double)m * k + 2.0 * m * n);
    row(name, us, bytes, 2.0 * groups * m * n * k);
}

static void linear_rows(void)
{
    const uint32_t few[] = {1, 8, 16, 32, 64, 128}, cuts[] = {1, 2, 4, 8};
    for (int s = 0; s < 4; s++) /* the order probe: q_a, kv_a, wk stacked */
        for (int i = 0; i < 6; i += i ? 4 : 1)
            linear_row("q_a+kv_a+wk", few[i], 2240, 7168, cuts[s], 1);
    for (int s = 0; s < 3; s++) {
        linear_row("q_a+kv_a+wk", 512, 2240, 7168, cuts[s], 1);
        linear_row("q_a+kv_a+wk", 4096, 2240, 7168, cuts[s], 1);
    }
    for (int i = 0; i < 6; i++) {
        linear_row("q_b", few[i], 24576, 1536, 1, 1);
        linear_row("o", few[i], 7168, 16384, 1, 1);
    }
    linear_row("o", 1, 7168, 16384, 2, 1);
    linear_row("o", 1, 7168, 16384, 4, 1);
    linear_row("wq_b", 1, 8192, 1536, 1, 1);
    linear_row("shared down", 1, 7168, 2048, 1, 1);
    linear_row("shared down", 1, 7168, 2048, 2, 1);
    linear_row("shared gate+up", 1, 4096, 7168, 1, 1);
    linear_row("shared gate+up", 1, 4096, 7168, 2, 1);
    linear_row("shared gate+up", 1, 4096, 7168, 4, 1);
    for (int i = 0; i < 6; i++) {
        linear_row("experts gate+up", few[i], 4096, 7168, 1, 9);
        linear_row("experts down", few[i], 7168, 2048, 1, 9);
    }
    for (uint32_t m = 1024; m <= 4096; m *= 4) {
        linear_row("prefill q_a+kv_a+wk", m, 2240, 7168, 2, 1);
        linear_row("prefill q_b", m, 24576, 1536, 1, 1);
        linear_row("prefill o", m, 7168, 16384, 1, 1);
        linear_row("prefill shared gate+up", m, 4096, 7168, 1, 1);
        linear_row("prefill shared down", m, 7168, 2048, 1, 1);
    }
    linear_row("prefill experts gate+up", 1024, 4096, 7168, 1, 8);
    linear_row("prefill experts down", 1024, 7168, 2048, 1, 8);
    linear_row("prefill experts gate+up", 160, 4096, 7168, 1, 32);
    linear_row("prefill square", 8192, 8192, 8192, 1, 1);
}

/* ---- rows ---- */

static void norm_launch(void *context, uint32_t i)
{
    krn_cuda_norm_params p = *(const krn_cuda_norm_params *)context;
    uint64_t bytes = (uint64_t)p.rows * p.n * 2;
    p.x = (uint16_t *)part(0, bytes, i);
    p.res = (uint16_t *)part(2ull << 30, bytes, i);
    p.weight = (uint16_t *)pool;
    p.out_res = (uint16_t *)p.res;
    p.out_codes = part(4ull << 30, bytes / 2, i);
    p.out_scales = (float *)part(5ull << 30, bytes / 64, i);
    must(gpu->norm(&p, stream), "norm");
}
static void silu_launch(void *context, uint32_t i)
{
    krn_cuda_silu_params p = *(const krn_cuda_silu_params *)context;
    uint64_t bytes = (uint64_t)p.rows * p.n * 4;
    p.g = (uint16_t *)part(0, bytes, i);
    p.u = p.g + p.n;
    p.out_codes = part(4ull << 30, bytes / 4, i);
    p.out_scales = (float *)part(5ull << 30, bytes / 128, i);
    must(gpu->silu(&p, stream), "silu");
}
static void combine_launch(void *context, uint32_t i)
{
    krn_cuda_combine_params p = *(const krn_cuda_combine_params *)context;
    uint64_t bytes = (uint64_t)p.rows * p.hidden * 2;
    p.outputs = (uint16_t *)part(1ull << 30, bytes * 8, i);
    p.shared = (uint16_t *)part(0, bytes, i);
    p.weights = (float *)pool;
    p.out = (uint16_t *)part(5ull << 30, bytes, i);
    must(gpu->combine(&p, stream), "combine");
}

static void rows_rows(void)
{
    const uint32_t rows[] = {1, 128, 4096};
    char name[96];
    uint32_t *places = (uint32_t *)malloc(4096 * 8 * 4);
    for (uint32_t i = 0; i < 4096 * 8; i++)
        places[i] = (uint32_t)((uint64_t)i * 2654435761u % (4096 * 8));
    for (int i = 0; i < 3; i++) {
        uint32_t m = rows[i];
        krn_cuda_norm_params norm = {
            .rows = m, .n = 7168, .x_stride = 7168, .rows_tiled = (m + 7) / 8 * 8, .pow2 = 1};
        snprintf(name, sizeof name, "norm+res+q128 M%u N7168", m);
        if (wanted(name))
            row(name, time_us(norm_launch, &norm, LAUNCHES), m * 7168.0 * 7, 0);
        krn_cuda_silu_params silu = {
            .rows = m, .n = 2048, .stride = 4096, .rows_tiled = (m + 7) / 8 * 8, .pow2 = 1};
        snprintf(name, sizeof name, "silu+q128 M%u N2048", m);
        if (wanted(name))
            row(name, time_us(silu_launch, &silu, LAUNCHES), m * 2048.0 * 5, 0);
        uint32_t *at = (uint32_t *)(pool + (900u << 20));
        for (uint32_t j = 0; m < 4096 && j < m * 8; j++)
            places[j] = j * 7 % (m * 8);
        must(cudaMemcpy(at, places, m * 32, cudaMemcpyHostToDevice), "places");
        krn_cuda_combine_params combine = {.rows = m, .chosen = 8, .hidden = 7168, .places = at};
        snprintf(name, sizeof name, "combine M%u H7168", m);
        if (wanted(name))
            row(name, time_us(combine_launch, &combine, LAUNCHES), m * 7168.0 * 20, 0);
        for (uint32_t j = 0; j < 4096 * 8; j++)
            places[j] = (uint32_t)((uint64_t)j * 2654435761u % (4096 * 8));
    }
    free(places);
}

/* ---- indexer and attention over a paged cache of random pages ---- */

/* ---- bf16 products ---- */

typedef struct bf16_work {
    krn_cuda_linear_bf16_params p;
    uint64_t bytes;
} bf16_work;

static void bf16_launch(void *context, uint32_t i)
{
    const bf16_work *w = context;
    krn_cuda_linear_bf16_params p = w->p;
    p.x = (const uint16_t *)pool;
    p.weights = part(1ull << 30, w->bytes, i);
    p.out = pool + (512u << 20);
    must(gpu->linear_bf16(&p, stream), "bf16");
}

static void bf16_row(const char *what, uint32_t m, uint32_t groups, uint32_t n, uint32_t k,
                     bool f32)
{
    char name[96];
    snprintf(name, sizeof name, "bf16 %s M%u %u x N%u K%u", what, m, groups, n, k);
    if (!wanted(name))
        return;
    bf16_work w = {.p = {.weights_bytes = gpu->weights_bytes_bf16(n, k),
                         .rows = m,
                         .groups = groups,
                         .n = n,
                         .k = k,
                         .x_stride = groups * k,
                         .x_group = k,
                         .out_stride = groups * n,
                         .out_group = n,
                         .out_f32 = f32,
                         .segments = gpu->segments_bf16(n, k)},
                   .bytes = gpu->weights_bytes_bf16(n, k) * groups};
    double bytes = groups * (2.0 * n * k + 2.0 * m * k + (f32 ? 4.0 : 2.0) * m * n);
    row(name, time_us(bf16_launch, &w, LAUNCHES), bytes, 2.0 * groups * m * n * k);
}

static void bf16_rows(void)
{
    const uint32_t rows[] = {1, 16, 128};
    for (int i = 0; i < 3; i++) {
        bf16_row("W_UK", rows[i], 128, 512, 128, false);
        bf16_row("W_UV", rows[i], 128, 128, 512, false);
        bf16_row("router", rows[i], 1, 256, 7168, true);
        bf16_row("head", rows[i], 1, 129280, 7168, true);
    }
    bf16_row("router", 4096, 1, 256, 7168, true);
}

typedef struct cache_work {
    uint32_t rows, next_n, context, schedule;
    uint32_t *blocks, *rows_at, *lists, *counts; /* device */
    float *scores;
} cache_work;

#define PAGE_BYTES 50432ull

static void scores_launch(void *context, uint32_t i)
{
    const cache_work *w = context;
    krn_cuda_scores_params p = {.cache = {.base = pool,
                                          .page_bytes = PAGE_BYTES,
                                          .blocks = w->blocks + i % 3,
                                          .block_stride = w->context / 64},
                                .rows_at = (const krn_cuda_row *)w->rows_at,
                                .queries = pool + (1u << 20),
                                .factors = (float *)(pool + (300u << 20)),
                                .scores = w->scores + 65536,
                                .rows = w->rows,
                                .next_n = w->next_n,
                                .heads = 64,
                                .slots_max = w->context,
                                .stride = w->context};
    must(gpu->scores(&p, stream), "scores");
}
static void topk_launch(void *context, uint32_t i)
{
    const cache_work *w = context;
    (void)i;
    krn_cuda_topk_params p = {.scores = w->scores + 65536,
                              .rows_at = (const krn_cuda_row *)w->rows_at,
                              .lists = w->lists,
                              .list_counts = w->counts,
                              .rows = w->rows,
                              .stride = w->context,
                              .topk = 2048,
                              .list_stride = 2048};
    must(gpu->topk(&p, stream), "topk");
}
static void attend_launch(void *context, uint32_t i)
{
    const cache_work *w = context;
    krn_cuda_attend_params p = {.cache = {.base = pool + (2ull << 30),
                                          .page_bytes = PAGE_BYTES,
                                          .blocks = w->blocks + i % 3,
                                          .block_stride = w->context / 64},
                                .rows_at = (const krn_cuda_row *)w->rows_at,
                                .q_latent = (uint16_t *)w->scores,
                                .q = (uint16_t *)w->scores,
                                .lists = w->lists,
                                .list_counts = w->counts,
                                .out = (uint16_t *)(pool + (5ull << 30)),
                                .workspace = pool + (1ull << 30),
                                .rows = w->rows,
                                .heads = 128,
                                .list_stride = 2048,
                                .schedule = w->schedule,
                                .scale = 0.135f};
    must(gpu->attend(&p, stream), "attend");
}

/* `sequences` of rows / sequences rows each, that end at the context; next_n 1: as a prefill. */
static void cache_rows(uint32_t sequences, uint32_t rows, uint32_t next_n, uint32_t context)
{
    char name[96];
    uint64_t pages = (2ull << 30) / PAGE_BYTES;
    uint32_t each = rows / sequences, blocks = context / 64, seed = 1;
    uint32_t *host = malloc(((size_t)sequences * blocks + 3) * 4), *at = malloc(rows * 12);
    for (size_t i = 0; i < (size_t)sequences * blocks + 3; i++) {
        seed = seed * 1664525u + 1013904223u;
        host[i] = (uint32_t)((uint64_t)seed * pages >> 32);
    }
    for (uint32_t i = 0; i < rows; i++) {
        at[3 * i] = i / each;
        at[3 * i + 1] = context - each + i % each;
        at[3 * i + 2] = 0;
    }
    cache_work w = {.rows = rows, .next_n = next_n, .context = context};
    uint64_t score_bytes = (uint64_t)rows * context * 4 + (1u << 20);
    uint64_t query_bytes = (rows < 128 ? rows : 128) * 128 * 1024;
    must(cudaMalloc((void **)&w.blocks, ((size_t)sequences * blocks + 3) * 4), "blocks");
    must(cudaMalloc((void **)&w.rows_at, rows * 12), "rows");
    must(cudaMalloc((void **)&w.lists, rows * 2048 * 4 + rows * 4), "lists");
    must(cudaMalloc((void **)&w.scores, score_bytes + query_bytes), "scores");
    w.counts = w.lists + rows * 2048;
    must(cudaMemcpy(w.blocks, host, ((size_t)sequences * blocks + 3) * 4, cudaMemcpyHostToDevice),
         "blocks");
    must(cudaMemcpy(w.rows_at, at, rows * 12, cudaMemcpyHostToDevice), "rows");
    /* Factors and queries: small finite numbers. */
    uint64_t fill_bytes = score_bytes + query_bytes;
    uint8_t *finite = malloc(fill_bytes);
    for (uint64_t i = 0; i < fill_bytes; i += 2) {
        seed = seed * 1664525u + 1013904223u;
        finite[i] = (uint8_t)(seed >> 24);
        finite[i + 1] = (uint8_t)(0x3C | (seed >> 16 & 0x83));
    }
    must(cudaMemcpy(w.scores, finite, fill_bytes, cudaMemcpyHostToDevice), "scores");
    snprintf(name, sizeof name, "scores b%u x%u next_n%u L%u", sequences, each, next_n, context);
    if (wanted(name))
        row(name, time_us(scores_launch, &w, LAUNCHES),
            (double)sequences * context * (132 + 4.0 * next_n), 2.0 * rows * context * 64 * 128);
    snprintf(name, sizeof name, "topk 2048 rows%u L%u", rows, context);
    if (wanted(name))
        row(name, time_us(topk_launch, &w, LAUNCHES), (double)rows * (context * 4.0 + 8192), 0);
    static const char *const SCHEDULES[] = {"", " walked", " split"};
    for (w.schedule = 0; w.schedule < 3; w.schedule++) {
        snprintf(name, sizeof name, "attend b%u s_q%u k2048 h128%s", sequences, each,
                 SCHEDULES[w.schedule]);
        if (!wanted(name) || context != 32768 || rows > 128)
            continue;
        topk_launch(&w, 0);
        row(name, time_us(attend_launch, &w, LAUNCHES), rows * (2048.0 * 656 + 128 * 2176),
            rows * 570.4e6);
    }
    cudaFree(w.blocks), cudaFree(w.rows_at), cudaFree(w.lists), cudaFree(w.scores);
    free(host), free(at), free(finite);
}

typedef struct sum_work {
    krn_cuda_sum_params p;
} sum_work;
static void sum_launch(void *context, uint32_t i)
{
    (void)i;
    must(gpu->sums(&((sum_work *)context)->p, stream), "sums");
}
static void sum_row(uint64_t bytes, uint32_t count)
{
    char name[96];
    snprintf(name, sizeof name, "sums %u pieces of %llu B", count, (unsigned long long)bytes);
    if (!wanted(name))
        return;
    const uint8_t **host = malloc(count * 8);
    for (uint32_t i = 0; i < count; i++)
        host[i] = pool + (uint64_t)i * bytes;
    uint8_t *at = pool + POOL_BYTES - (16u << 20);
    must(cudaMemcpy(at, host, count * 8, cudaMemcpyHostToDevice), "pieces");
    sum_work w = {{.pieces = (const uint8_t *const *)at,
                   .tweaks = (uint64_t *)(at + (4u << 20)),
                   .out_sums = (uint64_t *)(at + (8u << 20)),
                   .bytes = bytes,
                   .count = count}};
    row(name, time_us(sum_launch, &w, 4), (double)bytes * count, 0);
    free(host);
}

/* ---- pages between host and device ---- */

enum { TRANSIT_PIECES = 64 }; /* one group of a chunk of 4,096 tokens, or as many pages */

typedef struct transit_work {
    uint8_t *host; /* pinned */
    krn_cuda_sum_params sums;
    uint64_t bytes;  /* of a copy */
    uint32_t copies; /* `stride` apart on the device */
    uint64_t stride;
    bool out;
} transit_work;

static void transit_launch(void *context, uint32_t i)
{
    const transit_work *w = context;
    uint8_t *device = pool + i % 4 * (1ull << 30);
    if (w->sums.count > 0)
        must(gpu->sums(&w->sums, stream), "sums");
    for (uint32_t j = 0; j < w->copies; j++) {
        uint8_t *host = w->host + j * w->bytes, *at = device + j * w->stride;
        must(gpu->copy(w->out ? host : at, w->out ? at : host, w->bytes, stream), "copy");
    }
}

static void transit_row(const char *name, const transit_work *w)
{
    double us = time_us(transit_launch, (void *)w, 4), bytes = (double)w->bytes * w->copies;
    printf("%-44s %9.2f us %8.1f GB/s over the bus\n", name, us, bytes / us * 1e-3);
    fflush(stdout);
}

static void transit_rows(uint64_t page, uint64_t piece)
{
    if (!wanted("transit"))
        return;
    transit_work w = {.bytes = TRANSIT_PIECES * piece, .copies = 1, .out = true};
    void *words;
    must(gpu->host_create(TRANSIT_PIECES * page, (void **)&w.host), "pinned");
    must(gpu->host_create(3 * TRANSIT_PIECES * 8, &words), "pinned");
    transit_row("transit out, one copy of as many bytes", &w);
    uint64_t *tweaks = (uint64_t *)words + TRANSIT_PIECES;
    for (uint32_t i = 0; i < TRANSIT_PIECES; i++) {
        ((const uint8_t **)words)[i] = pool + i * page;
        tweaks[i] = i;
    }
    w = (transit_work){.host = w.host,
                       .sums = {.pieces = words,
                                .tweaks = tweaks,
                                .out_sums = tweaks + TRANSIT_PIECES,
                                .bytes = piece,
                                .count = TRANSIT_PIECES},
                       .bytes = piece,
                       .copies = TRANSIT_PIECES,
                       .stride = page,
                       .out = true};
    transit_row("transit out, 64 pieces and their sums", &w);
    w = (transit_work){.host = w.host, .bytes = TRANSIT_PIECES * page, .copies = 1};
    transit_row("transit in, one copy of as many bytes", &w);
    w = (transit_work){.host = w.host, .bytes = page, .copies = TRANSIT_PIECES, .stride = page};
    transit_row("transit in, 64 pages", &w);
    gpu->host_destroy(words);
    gpu->host_destroy(w.host);
}

static void fill_pool(bool codes)
{
    uint64_t chunk = 64ull << 20;
    uint8_t *host = malloc(chunk);
    uint64_t state = 88172645463325252ull;
    for (uint64_t i = 0; i < chunk; i += 4) { /* bytes as e4m3: no NaN; as bf16: about 1 */
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        uint32_t word = (uint32_t)state & 0xBFFFBFFFu;
        word = (word & 0x80FF80FFu) | ((word & 0x03000300u) + 0x3C003C00u);
        if ((word & 0x7F) == 0x7F)
            word ^= 1;
        if ((word >> 16 & 0x7F) == 0x7F)
            word ^= 1u << 16;
        memcpy(host + i, &word, 4);
    }
    for (uint64_t i = 0; codes && i < chunk; i++) { /* about normal, deviation 8: as the peer's */
        float sum = 0;
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        for (int j = 0; j < 4; j++)
            sum += (float)(state >> 16 * j & 0xFFFF) - 32767.5f;
        host[i] = krn_f32_to_e4m3(sum * (8.0f / 37837.0f));
    }
    for (uint64_t i = 0; i < POOL_BYTES; i += chunk)
        must(cudaMemcpy(pool + i, host, chunk, cudaMemcpyHostToDevice), "fill");
    free(host);
}

/* Latent scales of the pages that attention reads: powers of two, as V3.2 has them. */
static void fill_pages(void)
{
    enum { PAGES = 1024 };
    uint8_t *host = malloc(PAGES * PAGE_BYTES);
    must(cudaMemcpy(host, pool, PAGES * PAGE_BYTES, cudaMemcpyDeviceToHost), "pages");
    for (uint32_t i = 0; i < PAGES * 64; i++)
        for (uint32_t g = 0; g < 4; g++) {
            uint32_t bits = (120 + (i + g) % 5) << 23;
            memcpy(host + i / 64 * PAGE_BYTES + i % 64 * 656 + 512 + g * 4, &bits, 4);
        }
    for (uint64_t at = 2ull << 30; at + PAGES * PAGE_BYTES <= 5ull << 30; at += PAGES * PAGE_BYTES)
        must(cudaMemcpy(pool + at, host, PAGES * PAGE_BYTES, cudaMemcpyHostToDevice), "pages");
    free(host);
}

int main(int argc, char **argv)
{
    char path[4096];
    const char *slash = strrchr(argv[0], '/');
    snprintf(path, sizeof path, "%.*s/libsluice_cuda.so", slash ? (int)(slash - argv[0]) : 1,
             slash ? argv[0] : ".");
    sl_err err;
    krn_cuda_device device;
    if (!sl_is_ok(krn_cuda_load(path, 0, &gpu, &device, &err))) {
        printf("SKIPPED, NOTHING WAS MEASURED: %s\n", err.text);
        return 0;
    }
    filters = argv + (argc > 0);
    must(cudaStreamCreate(&stream), "stream");
    must(cudaMalloc((void **)&pool, POOL_BYTES), "pool");
    fill_pool(true);
    for (int i = 0; i < 20; i++) /* clocks up */
        copy_launch(NULL, (uint32_t)i);
    copy_rate = POOL_BYTES / 4 * 2 / (time_us(copy_launch, NULL, 4) * 1e-6);
    printf("%s; copy %.0f GB/s (read + write)\n", device.name, copy_rate * 1e-9);
    linear_rows();
    fill_pool(false);
    bf16_rows();
    rows_rows();
    const uint32_t contexts[] = {4096, 32768, 131072};
    fill_pages();
    for (int i = 0; i < 3; i++)
        cache_rows(1, 1, 1, contexts[i]);
    cache_rows(1, 2, 2, 32768);
    for (uint32_t rows = 2; rows <= 64; rows *= 2)
        cache_rows(rows, rows, 1, 32768);
    cache_rows(128, 128, 1, 4096);
    cache_rows(128, 128, 1, 32768);
    cache_rows(64, 128, 2, 32768);
    cache_rows(32, 128, 4, 32768);
    cache_rows(1, 4096, 1, 4096); /* what a prefill chunk scores at a time */
    cache_rows(1, 2048, 1, 32768);
    cache_rows(1, 512, 1, 131072);
    sum_row(50432, 1024);
    sum_row(403456, 1024);
    transit_rows(62 * 50432 + 14336, 8 * 50432); /* V3.2's page, groups of 8 layers */
    cudaFree(pool);
    return 0;
}
