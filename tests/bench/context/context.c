/* Context bench: what a token costs at a position, and who it is that costs it.
 *
 *   build/bench/context [--model DIR] [--threads N] [--batch N] [--until TOKENS | --at TOKENS]
 *
 * One sequence of the model, or a batch of them at the same position. Their cache is filled up to
 * each position with random rows (the cost of a row does not depend on how it came), then one chunk
 * of 512 tokens is prefilled and 24 tokens of each are decoded there, each of the decoded ones
 * drawn by the sampler. Every step is timed as a whole and in the kernels it calls (ops.h), by the
 * CPU time of all threads; what is left is the engine around them. "clock": the shortest time that
 * passed, which is that of a quiet machine if it was quiet once. */
#include "base/alloc.h"
#include "engine/engine.h"
#include "engine/sample.h"
#include "kernels/kernels.h"
#include "tests/bench/context/ops.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define CHUNK     512u
#define DECODE    24u
#define BATCH_MAX 256u

typedef struct bench {
    eng_model *model;
    eng_engine *engine;
    eng_sequence *sequences[BATCH_MAX];
    uint32_t batch;
    const char *dir;
    int threads;
    uint32_t until; /* last position */
    bool alone;     /* no other position */
} bench;

static uint64_t dice = 88172645463325252ull;

static uint32_t roll(void)
{
    dice = dice * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)((dice ^ (dice >> 29)) >> 24);
}

static void must(sl_status status, const sl_err *err)
{
    if (sl_is_ok(status))
        return;
    fprintf(stderr, "context bench: %s\n", err->text);
    exit(1);
}

static float roll_float(void)
{
    return (float)(int32_t)roll() * 0x1p-31f;
}

/* Random codes up to 448, bf16 up to 1, scales near 1/448: the size of what a model writes. */
static void fill_layer(uint8_t *layer)
{
    const float scale = 0x1p-8f;
    for (uint32_t i = 0; i < KRN_INDEX_SCALES_AT; i++)
        layer[i] = krn_f32_to_e4m3(448.0f * roll_float());
    for (uint32_t i = 0; i < KRN_PAGE_TOKENS; i++) {
        for (uint32_t d = 0; d < KRN_ROPE_DIM; d++) {
            uint16_t rope = krn_f32_to_bf16(roll_float());
            memcpy(layer + i * KRN_LATENT_ROW_BYTES + KRN_LATENT_ROPE_AT + d * sizeof rope, &rope,
                   sizeof rope);
        }
        for (uint32_t g = 0; g < KRN_LATENT_DIM / KRN_BLOCK; g++)
            memcpy(layer + i * KRN_LATENT_ROW_BYTES + KRN_LATENT_SCALES_AT + g * sizeof scale,
                   &scale, sizeof scale);
        memcpy(layer + KRN_INDEX_SCALES_AT + i * sizeof scale, &scale, sizeof scale);
    }
}

/* The sequence now holds `tokens` tokens, a multiple of the page. */
static void fill_to(bench *b, eng_sequence *sequence, uint32_t tokens)
{
    const eng_cache_layout *layout = eng_engine_layout(b->engine);
    uint32_t hidden = (uint32_t)eng_model_shape(b->model)->hidden_size;
    uint16_t *h = sl_alloc(hidden, sizeof *h, "h_final");
    for (uint32_t i = 0; i < hidden; i++)
        h[i] = krn_f32_to_bf16(roll_float());
    uint32_t first = (eng_sequence_length(sequence) + KRN_PAGE_TOKENS - 1) / KRN_PAGE_TOKENS;
    for (uint32_t block = first; block < tokens / KRN_PAGE_TOKENS; block++) {
        uint8_t *page = eng_engine_cache_base(b->engine) +
                        eng_sequence_page(sequence, block) * layout->page_bytes;
        for (uint32_t layer = 0; layer < layout->layer_count; layer++)
            fill_layer(page + layer * layout->layer_bytes);
    }
    eng_sequence_adopt(sequence, tokens, h);
    sl_free(h);
}

/* ---- steps ---- */

/* Clock time of the shortest step since it was set. */
static double shortest;

static double clock_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* `count` tokens of each sequence of a batch, the same ones. */
static double step(bench *b, uint32_t batch, const uint32_t *tokens, uint32_t count)
{
    sl_err err;
    eng_span spans[BATCH_MAX];
    for (uint32_t i = 0; i < batch; i++)
        spans[i] = (eng_span){.sequence = b->sequences[i],
                              .tokens = tokens,
                              .token_count = count,
                              .logits = ENG_LOGITS_LAST};
    double before = op_now(), clock = clock_now();
    must(eng_step(b->engine, spans, batch, NULL, NULL, &err), &err);
    clock = clock_now() - clock;
    shortest = clock < shortest ? clock : shortest;
    return op_now() - before;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* What reading the clock costs: half of a call's two reads fall into the call's time. */
static double clock_cost(void)
{
    const int reads = 2000;
    double before = op_now();
    for (int i = 0; i < reads; i++)
        (void)op_now();
    return (op_now() - before) / reads;
}

/* steps: that `times` and `whole` are of. */
static void print_shares(const op_times *times, double whole, uint32_t steps)
{
    double kernels = 0, cost = clock_cost();
    uint64_t calls = 0;
    for (int g = 0; g < OP_COUNT; g++)
        whole -= 2 * cost * (double)times->calls[g];
    for (int g = 0; g < OP_COUNT; g++) {
        double seconds = times->seconds[g] - cost * (double)times->calls[g];
        kernels += seconds;
        printf(" %5.1f", seconds / whole * 100);
    }
    for (int g = 0; g < OP_COUNT; g++)
        calls += times->calls[g];
    printf("   %5.1f %%  %llu\n", (whole - kernels) / whole * 100,
           (unsigned long long)(calls / steps));
    fflush(stdout);
}

static uint32_t random_token(const bench *b)
{
    return roll() % (uint32_t)eng_model_shape(b->model)->vocab_size;
}

static void bench_prefill(bench *b, uint32_t position)
{
    uint32_t tokens[CHUNK];
    for (uint32_t i = 0; i < CHUNK; i++)
        tokens[i] = random_token(b);
    op_reset();
    shortest = 1e9;
    double seconds = step(b, 1, tokens, CHUNK);
    op_times times = op_read();
    printf("prefill at %6u  %9.1f tokens/s (clock %.1f)", position, CHUNK / seconds,
           CHUNK / shortest);
    print_shares(&times, seconds, 1);
}

/* One token for each row of logits -> the first one. */
static uint32_t draw_all(bench *b, const mdl_sampling *params)
{
    eng_sampled sampled;
    uint32_t first = 0;
    for (uint32_t i = 0; i < b->batch; i++) {
        eng_sample(b->engine, eng_step_logits(b->engine, i), params, NULL, 0, 0,
                   eng_sequence_length(b->sequences[i]), NULL, &sampled);
        first = i == 0 ? sampled.id : first;
    }
    return first;
}

static void bench_decode(bench *b, uint32_t position)
{
    double each[DECODE], whole = 0, sampler = 0;
    mdl_sampling params;
    mdl_sampling_init(&params);
    params.temperature = 0.7f;
    params.top_p = 0.95f;
    uint32_t token = random_token(b);
    (void)step(b, b->batch, &token, 1);
    op_reset();
    shortest = 1e9;
    for (uint32_t i = 0; i < DECODE; i++) {
        each[i] = step(b, b->batch, &token, 1);
        double before = op_now();
        token = draw_all(b, &params);
        sampler += op_now() - before;
        whole += each[i];
    }
    op_times times = op_read();
    qsort(each, DECODE, sizeof each[0], by_value);
    printf("decode  at %6u  %8.3f ms (+%.3f draw, clock %.3f)", position, each[DECODE / 2] * 1e3,
           sampler / DECODE * 1e3, shortest * 1e3);
    print_shares(&times, whole, DECODE);
}

static void bench_at(bench *b, uint32_t position)
{
    fill_to(b, b->sequences[0], position);
    bench_prefill(b, position);
    for (uint32_t i = 1; i < b->batch; i++)
        fill_to(b, b->sequences[i], position + CHUNK);
    bench_decode(b, position);
}

/* ---- start ---- */

static void open_all(bench *b)
{
    sl_err err;
    eng_model_options model = {.dir = b->dir, .numerics = ENG_NUMERICS_FP8, .threads = b->threads};
    must(eng_model_open(&model, &b->model, &err), &err);
    uint32_t capacity = b->until + CHUNK + DECODE + 2;
    eng_options options = {.kv_bytes = b->batch * eng_model_kv_bytes(b->model, capacity),
                           .sequences_max = b->batch,
                           .rows_max = CHUNK,
                           .context_max = capacity,
                           .threads = b->threads};
    must(eng_engine_create(b->model, &options, &b->engine, &err), &err);
    for (uint32_t i = 0; i < b->batch; i++)
        must(eng_sequence_open(b->engine, capacity, &b->sequences[i], &err), &err);
    printf("variant %s, %d threads, batch %u, cache %.0f MB\n", krn_cpu_variant(), b->threads,
           b->batch, (double)options.kv_bytes * 1e-6);
    printf("%61s", "");
    for (int g = 0; g < OP_COUNT; g++)
        printf(" %s,", op_names[g]);
    printf(" outside: %% of the step; kernel calls\n");
}

static void parse(int argc, char **argv, bench *b)
{
    static const struct option options[] = {
        {"model", required_argument, NULL, 'm'}, {"threads", required_argument, NULL, 't'},
        {"batch", required_argument, NULL, 'b'}, {"until", required_argument, NULL, 'u'},
        {"at", required_argument, NULL, 'a'},    {0}};
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (c == 'm')
            b->dir = optarg;
        else if (c == 't')
            b->threads = atoi(optarg);
        else if (c == 'b')
            b->batch = (uint32_t)strtoul(optarg, NULL, 10);
        else if (c == 'u' || c == 'a')
            b->until = (uint32_t)strtoul(optarg, NULL, 10) / KRN_PAGE_TOKENS * KRN_PAGE_TOKENS;
        else
            exit(2);
        b->alone = b->alone || c == 'a';
    }
    if (b->batch < 1 || b->batch > BATCH_MAX)
        exit(2);
}

int main(int argc, char **argv)
{
    static const uint32_t positions[] = {512, 2048, 4096, 8192, 32768, 131072};
    bench b = {.dir = "models/demo", .threads = 1, .batch = 1, .until = 131072};
    parse(argc, argv, &b);
    open_all(&b);
    for (size_t i = 0; i < sizeof positions / sizeof positions[0]; i++)
        if (!b.alone && positions[i] <= b.until)
            bench_at(&b, positions[i]);
    if (b.alone)
        bench_at(&b, b.until);
    for (uint32_t i = 0; i < b.batch; i++)
        eng_sequence_close(b.sequences[i]);
    eng_engine_destroy(b.engine);
    eng_model_close(b.model);
    return 0;
}
