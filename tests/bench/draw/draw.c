/* Draw bench: what drawing a token costs by vocabulary and parameters. build/bench/draw
 *
 * The logits are about normal with a few likely tokens on top, as a model's are, or nearly flat.
 * One thread, CPU time, medians over positions; the first row is one pass over the logits. */
#include "base/alloc.h"
#include "base/rng.h"
#include "engine/sampler.h"
#include "kernels/kernels.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define DRAWS 101

static const struct {
    const char *name;
    float temperature, top_p, min_p;
    int32_t top_k, logprobs;
} CASES[] = {
    {"greedy", 0, 1, 0, 0, -1},
    {"temperature 0.7, top_p 0.95", 0.7f, 0.95f, 0, 0, -1},
    {"temperature 1, nothing cut", 1, 1, 0, 0, -1},
    {"temperature 1, top_k 50", 1, 1, 0, 50, -1},
    {"temperature 1, min_p 0.05", 1, 1, 0.05f, 0, -1},
    {"temperature 1, top_p 0.9999", 1, 0.9999f, 0, 0, -1},
    {"greedy, 5 logprobs", 0, 1, 0, 0, 5},
};

static double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Sums of four evenly distributed numbers of deviation `spread`; 20 likely ones. */
static void fill(float *logits, uint32_t count, float spread, uint64_t seed)
{
    for (uint32_t i = 0; i < count; i++) {
        double sum = 0;
        for (uint32_t j = 0; j < 4; j++)
            sum += sl_keyed_uniform(seed, i, j) - 0.5;
        logits[i] = (float)(sum * 1.732) * spread;
    }
    for (uint32_t i = 0; i < 20 && spread > 1; i++)
        logits[(uint32_t)(sl_keyed_uniform(seed, i, 9) * count)] = 4 * spread - 0.4f * (float)i;
}

static double draw_us(uint32_t vocab, float spread, size_t which)
{
    double times[DRAWS];
    eng_sampler sampler;
    eng_sampled sampled;
    mdl_sampling params;
    float *logits = sl_alloc(vocab, sizeof(float), "logits");
    float *copy = sl_alloc(vocab, sizeof(float), "logits");
    eng_sampler_init(&sampler, vocab, 1, NULL);
    mdl_sampling_init(&params);
    params.temperature = CASES[which].temperature;
    params.top_p = CASES[which].top_p;
    params.min_p = CASES[which].min_p;
    params.top_k = CASES[which].top_k;
    params.logprob_count = CASES[which].logprobs;
    fill(logits, vocab, spread, 7);
    for (uint32_t i = 0; i < DRAWS; i++) {
        memcpy(copy, logits, vocab * sizeof(float));
        double before = now_us();
        eng_sampler_draw(&sampler, copy, &params, NULL, 0, 0, i, NULL, &sampled);
        times[i] = now_us() - before;
    }
    eng_sampler_fini(&sampler);
    sl_free(logits);
    sl_free(copy);
    qsort(times, DRAWS, sizeof times[0], by_value);
    return times[DRAWS / 2];
}

int main(void)
{
    static const uint32_t VOCABS[] = {8192, 129280};
    printf("variant %s; us a draw: 8192 ids, 129280 ids; nearly flat logits: the same\n",
           krn_cpu_variant());
    for (size_t c = 0; c < sizeof CASES / sizeof CASES[0]; c++) {
        printf("%-32s", CASES[c].name);
        for (int flat = 0; flat < 2; flat++)
            for (size_t v = 0; v < 2; v++)
                printf(" %9.1f", draw_us(VOCABS[v], flat ? 0.2f : 3.0f, c));
        printf("\n");
        fflush(stdout);
    }
    return 0;
}
