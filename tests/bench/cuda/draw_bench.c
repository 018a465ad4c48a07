/* Time of drawing tokens on the device, beside what it replaces: logits over the bus and the host's
 * sampler, one thread. draw_bench [ROWS]
 *
 * Device: a graph of LAUNCHES launches over rotating sets of logits (together past the L2), median
 * of 5 replays; GB/s of logits read once. Host: the copy by events, the sampler by the clock,
 * median of 5. Logits are about normal with 20 likely ones, or nearly flat. */
#include "kernels/cuda/load.h"

#include <cuda_runtime.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/rng.h"
#include "engine/cuda_draw.h"

enum { VOCAB = 129280, ROWS_MAX = 128, LAUNCHES = 16, CONTEXT = 1000 };

typedef struct bench {
    const krn_cuda_api *gpu;
    cudaStream_t stream;
    uint32_t rows, sets;
    float *logits; /* device, [sets][rows][VOCAB] */
    float *pinned; /* [ROWS_MAX][VOCAB] */
    krn_cuda_draw_row *rows_at;
    krn_cuda_edit *edits;
    krn_cuda_drawn *drawn;
    eng_sampler sampler;
} bench;

static void must(int code, const char *what)
{
    if (code != 0) {
        fprintf(stderr, "%s: code %d\n", what, code);
        exit(1);
    }
}

static int by_time(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void draw_launch(const bench *b, uint32_t set)
{
    const krn_cuda_draw_params p = {
        .logits = b->logits + (size_t)(set % b->sets) * b->rows * VOCAB,
        .rows_at = b->rows_at,
        .edits = b->edits,
        .out = b->drawn,
        .rows = b->rows,
        .n = VOCAB,
    };
    must(b->gpu->draw(&p, b->stream), "draw");
}

static void copy_launch(const bench *b, uint32_t set)
{
    must(b->gpu->copy(b->pinned, b->logits + (size_t)(set % b->sets) * b->rows * VOCAB,
                      (uint64_t)b->rows * VOCAB * sizeof(float), b->stream),
         "copy");
}

static double device_us(const bench *b, void (*launch)(const bench *, uint32_t), int launches)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaEvent_t start, end;
    double us[5];
    launch(b, 0);
    must(cudaStreamBeginCapture(b->stream, cudaStreamCaptureModeRelaxed), "capture");
    for (int i = 0; i < launches; i++)
        launch(b, (uint32_t)i);
    must(cudaStreamEndCapture(b->stream, &graph), "capture end");
    must(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
    must(cudaEventCreate(&start), "event");
    must(cudaEventCreate(&end), "event");
    for (int i = -1; i < 5; i++) {
        float ms;
        must(cudaEventRecord(start, b->stream), "record");
        must(cudaGraphLaunch(exec, b->stream), "launch");
        must(cudaEventRecord(end, b->stream), "record");
        must(cudaEventSynchronize(end), "wait");
        must(cudaEventElapsedTime(&ms, start, end), "time");
        us[i < 0 ? 0 : i] = (double)ms * 1e3 / launches;
    }
    qsort(us, 5, sizeof *us, by_time);
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    return us[2];
}

/* A row of the set that was copied last. */
static double host_us(bench *b, const mdl_sampling *params, const uint32_t *context)
{
    float *copy = sl_alloc(VOCAB, sizeof(float), "logits");
    double us[5];
    for (uint32_t i = 0; i < 5; i++) {
        eng_sampled sampled;
        memcpy(copy, b->pinned, VOCAB * sizeof(float));
        sl_time_ns from = sl_now_ns();
        eng_sampler_draw(&b->sampler, copy, params, context, CONTEXT, CONTEXT / 2, CONTEXT + i,
                         NULL, &sampled);
        us[i] = (double)(sl_now_ns() - from) * 1e-3;
    }
    sl_free(copy);
    qsort(us, 5, sizeof *us, by_time);
    return us[2];
}

static void logits_fill(const bench *b, bool flat)
{
    float *host = sl_alloc((size_t)b->rows * VOCAB, sizeof(float), "logits");
    for (uint32_t set = 0; set < b->sets; set++) {
        for (size_t i = 0; i < (size_t)b->rows * VOCAB; i++) {
            double x = 0;
            for (uint32_t j = 0; j < 2; j++)
                x += sl_keyed_uniform(set, i, j) - 0.5;
            host[i] = (float)(flat ? x * 0.1 : x * 5 + (i % 6464 == 7 ? 12 : 0));
        }
        must(b->gpu->copy(b->logits + (size_t)set * b->rows * VOCAB, host,
                          (uint64_t)b->rows * VOCAB * sizeof(float), NULL),
             "fill");
        must(b->gpu->stream_wait(NULL), "wait");
    }
    sl_free(host);
}

static void row_show(bench *b, const char *name, const mdl_sampling *params, bool flat)
{
    uint32_t context[CONTEXT];
    eng_cuda_edits edits = {b->edits, 0, ROWS_MAX * CONTEXT};
    for (uint32_t i = 0; i < CONTEXT; i++)
        context[i] = i * 7919 % VOCAB;
    for (uint32_t r = 0; r < b->rows; r++)
        if (!eng_cuda_draw_prepare(&b->sampler, params, context, CONTEXT, CONTEXT / 2, CONTEXT + r,
                                   NULL, 0, &edits, &b->rows_at[r]))
            must(1, "prepare");
    double draw = device_us(b, draw_launch, LAUNCHES), copy = device_us(b, copy_launch, 2);
    for (uint32_t r = 0; r < b->rows; r++)
        must(b->drawn[r].code != KRN_CUDA_DRAWN, name);
    double host = host_us(b, params, context) * b->rows;
    double bytes = (double)b->rows * VOCAB * sizeof(float);
    printf("%3u rows, %-28s %-5s %8.1f us %6.0f GB/s; copy %8.1f us, host %9.1f us: %6.1fx\n",
           b->rows, name, flat ? "flat" : "", draw, bytes / draw * 1e-3, copy, host,
           (copy + host) / draw);
    fflush(stdout);
}

static void rows_show(bench *b, uint32_t rows)
{
    static const struct {
        const char *name;
        float temperature, top_p, min_p, presence;
        int32_t top_k, logprobs;
    } KINDS[] = {
        {"greedy", 0, 1, 0, 0, 0, -1},
        {"temperature 1", 1, 1, 0, 0, 0, -1},
        {"temperature 0.7, top_p 0.95", 0.7f, 0.95f, 0, 0, 0, -1},
        {"temperature 1, top_k 50", 1, 1, 0, 0, 50, -1},
        {"temperature 1, min_p 0.05", 1, 1, 0.05f, 0, 0, -1},
        {"top_p 0.95, presence 0.5", 1, 0.95f, 0, 0.5f, 0, -1},
        {"greedy, 5 logprobs", 0, 1, 0, 0, 0, 5},
    };
    b->rows = rows;
    b->sets = rows > 16 ? 4 : 128 / rows < LAUNCHES ? 128 / rows : LAUNCHES;
    for (int flat = 0; flat < 2; flat++) {
        logits_fill(b, flat);
        for (size_t i = 0; i < sizeof(KINDS) / sizeof(KINDS[0]); i++) {
            mdl_sampling params;
            mdl_sampling_init(&params);
            params.temperature = KINDS[i].temperature;
            params.top_p = KINDS[i].top_p;
            params.min_p = KINDS[i].min_p;
            params.presence_penalty = KINDS[i].presence;
            params.top_k = KINDS[i].top_k;
            params.logprob_count = KINDS[i].logprobs;
            params.seed = 3;
            row_show(b, KINDS[i].name, &params, flat);
        }
    }
}

int main(int argc, char **argv)
{
    char path[4096];
    const char *slash = strrchr(argv[0], '/');
    snprintf(path, sizeof path, "%.*s/libsluice_cuda.so", slash ? (int)(slash - argv[0]) : 1,
             slash ? argv[0] : ".");
    sl_err err;
    krn_cuda_device device;
    bench b = {0};
    if (!sl_is_ok(krn_cuda_load(path, 0, &b.gpu, &device, &err))) {
        printf("SKIPPED, NOTHING WAS MEASURED: %s\n", err.text);
        return 0;
    }
    printf("%s\n", device.name);
    eng_sampler_init(&b.sampler, VOCAB, 1, NULL);
    must(cudaStreamCreate(&b.stream), "stream");
    size_t rows = (size_t)ROWS_MAX * VOCAB * sizeof(float);
    must(b.gpu->memory_create(4 * rows, (void **)&b.logits), "logits");
    must(b.gpu->host_create(rows, (void **)&b.pinned), "pinned");
    must(b.gpu->host_create(ROWS_MAX * sizeof(*b.rows_at), (void **)&b.rows_at), "rows");
    must(b.gpu->host_create(ROWS_MAX * CONTEXT * sizeof(*b.edits), (void **)&b.edits), "edits");
    must(b.gpu->host_create(ROWS_MAX * sizeof(*b.drawn), (void **)&b.drawn), "drawn");
    const uint32_t counts[] = {1, 8, 32, 128};
    for (int i = 0; i < 4; i++)
        if (argc < 2 || atoi(argv[1]) == (int)counts[i])
            rows_show(&b, counts[i]);
    eng_sampler_fini(&b.sampler);
    return 0;
}
