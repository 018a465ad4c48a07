/* The device's draw against the engine's sampler: the same token, always; the same alternatives;
 * log-probabilities that differ in what two orders of one sum differ by. */
#include "tests/cuda/support.h"

#include <math.h>

#include "engine/cuda_draw.h"

enum { ROWS = 48, CONTEXT = 600, EDITS = ROWS * 1200, EOS = 1 };

typedef enum logit_kind {
    LOGITS_PEAKED,
    LOGITS_NORMAL,
    LOGITS_FLAT,    /* nearly */
    LOGITS_EQUAL,   /* all, in both zeros */
    LOGITS_TIES,    /* few values, often equal */
    LOGITS_ONE_HOT, /* all others impossible */
    LOGITS_RISING,  /* each term larger than those before, by many powers of two */
    LOGITS_FALLING,
    LOGITS_TINY, /* one likely, all others just above nothing */
    LOGITS_KINDS
} logit_kind;

static const char *const KINDS[] = {"peaked",  "normal", "flat",    "equal", "ties",
                                    "one hot", "rising", "falling", "tiny"};

static float logit(dice *d, logit_kind kind, uint32_t i, uint32_t n)
{
    float at = (float)i / (float)n;
    switch (kind) {
    case LOGITS_PEAKED:
        return roll_float(d, 3.0f) + (roll_below(d, n) < 20 ? 12.0f : 0.0f);
    case LOGITS_NORMAL:
        return roll_float(d, 4.0f);
    case LOGITS_FLAT:
        return roll_float(d, 0.01f);
    case LOGITS_EQUAL:
        return roll_below(d, 2) ? -0.0f : 0.0f;
    case LOGITS_TIES:
        return (float)roll_below(d, 8) * 0.5f;
    case LOGITS_ONE_HOT:
        return i == n / 3 ? 5.0f : -INFINITY;
    case LOGITS_RISING:
        return -100.0f + 100.0f * at;
    case LOGITS_FALLING:
        return -100.0f * at;
    default:
        return i == n / 2 ? 0.0f : -60.0f - 40.0f * at;
    }
}

typedef struct draws {
    uint32_t n;
    float *logits; /* [ROWS][n] */
    mdl_sampling params[ROWS];
    uint32_t context[CONTEXT];
    uint32_t count[ROWS], prompt[ROWS];
    uint32_t *allowed; /* [ROWS][words] */
    bool masked[ROWS];
    uint32_t *undefined;
    eng_sampler sampler;
    /* pinned */
    krn_cuda_draw_row *rows;
    krn_cuda_edit *edits;
    uint32_t *masks;
    krn_cuda_drawn *drawn;
} draws;

static uint32_t words_of(uint32_t n)
{
    return (n + 31) / 32;
}

static void *pinned(uint64_t bytes)
{
    void *memory;
    gpu_ok(gpu->host_create(bytes, &memory));
    return memory;
}

static void params_roll(dice *d, mdl_sampling *p, uint32_t n)
{
    const float heats[] = {0.0f, 0.3f, 0.7f, 1.0f, 1.0f, 2.0f},
                tops[] = {1.0f, 1.0f, 0.95f, 0.5f, 0.9999f, 0.1f, 0.999f};
    const int32_t ks[] = {0, 0, 0, 1, 2, 5, 50, 1000, 100000}, logprobs[] = {-1, -1, -1, 0, 5, 20};
    memset(p, 0, sizeof(*p));
    p->temperature = heats[roll_below(d, 6)];
    p->top_p = tops[roll_below(d, 7)];
    p->top_k = ks[roll_below(d, 9)];
    p->min_p = roll_below(d, 3) ? 0.0f : roll_below(d, 2) ? 0.05f : 1.0f;
    p->repetition_penalty = roll_below(d, 3) ? 1.0f : roll_below(d, 2) ? 1.3f : 0.7f;
    p->presence_penalty = roll_below(d, 3) ? 0.0f : 0.5f;
    p->frequency_penalty = roll_below(d, 3) ? 0.0f : 0.3f;
    p->logprob_count = logprobs[roll_below(d, 6)];
    p->seed = (uint64_t)roll(d) << 32 | roll(d);
    p->min_tokens = roll_below(d, 4) ? 0 : 10000;
    p->stop_id_count = 2;
    p->stop_ids[0] = 5;
    p->stop_ids[1] = (int32_t)n + 5; /* none of this vocabulary */
    p->bias_count = roll_below(d, 3) ? 0 : 3;
    for (int32_t i = 0; i < p->bias_count; i++)
        p->bias[i] = (mdl_logit_bias){3 + i * (int32_t)(n / 4), i == 1 ? 100.0f : -1.5f};
}

static void draws_roll(draws *t, dice *d, logit_kind kind)
{
    uint32_t n = t->n, words = words_of(n);
    for (uint32_t i = 0; i < CONTEXT; i++)
        t->context[i] = roll_below(d, i % 2 ? n : n < 40 ? n : 40);
    for (uint32_t r = 0; r < ROWS; r++) {
        for (uint32_t i = 0; i < n; i++)
            t->logits[(size_t)r * n + i] = logit(d, kind, i, n);
        params_roll(d, &t->params[r], n);
        t->count[r] = roll_below(d, CONTEXT + 1);
        t->prompt[r] = roll_below(d, t->count[r] + 1);
        t->masked[r] = kind != LOGITS_ONE_HOT && roll_below(d, 3) == 0;
        uint32_t only = roll_below(d, 4) ? n : roll_below(d, n - 8) + 6; /* one is left */
        for (uint32_t w = 0; w < words; w++)
            t->allowed[r * words + w] = only < n ? 0 : roll(d) | roll(d) << 1;
        if (only < n)
            t->allowed[r * words + only / 32] |= 1u << only % 32;
        t->allowed[r * words] |= only < n ? 0 : 1u << 7;
        if (kind == LOGITS_ONE_HOT)
            t->params[r].min_tokens = 0, t->params[r].bias_count = 0;
    }
}

static void draws_create(draws *t, uint32_t n)
{
    uint32_t words = words_of(n);
    *t = (draws){.n = n,
                 .logits = aligned((size_t)ROWS * n * sizeof(float)),
                 .allowed = aligned((size_t)ROWS * words * 4),
                 .undefined = aligned((size_t)words * 4),
                 .rows = pinned(ROWS * sizeof(krn_cuda_draw_row)),
                 .edits = pinned(EDITS * sizeof(krn_cuda_edit)),
                 .masks = pinned((uint64_t)ROWS * words * 4),
                 .drawn = pinned(ROWS * sizeof(krn_cuda_drawn))};
    t->undefined[0] = 1u << 2; /* no such id */
    eng_sampler_init(&t->sampler, n, EOS, t->undefined);
}

static void draws_destroy(draws *t)
{
    eng_sampler_fini(&t->sampler);
    gpu->host_destroy(t->rows);
    gpu->host_destroy(t->edits);
    gpu->host_destroy(t->masks);
    gpu->host_destroy(t->drawn);
    free(t->logits), free(t->allowed), free(t->undefined);
}

/* Rows [first, first + rows) on the device. */
static void draws_run(draws *t, uint32_t first, uint32_t rows)
{
    uint32_t words = words_of(t->n);
    eng_cuda_edits edits = {t->edits, 0, EDITS};
    device_used = 0;
    for (uint32_t i = 0; i < rows; i++) {
        uint32_t r = first + i;
        const uint32_t *allowed = t->masked[r] ? t->allowed + r * words : NULL;
        if (allowed)
            memcpy(t->masks + i * words, allowed, words * 4);
        assert_true(eng_cuda_draw_prepare(&t->sampler, &t->params[r], t->context, t->count[r],
                                          t->prompt[r], t->count[r], allowed, i, &edits,
                                          &t->rows[i]));
    }
    memset(t->drawn, 0xEE, rows * sizeof(*t->drawn));
    const krn_cuda_draw_params p = {
        .logits = gpu_put(t->logits + (size_t)first * t->n, (uint64_t)rows * t->n * sizeof(float)),
        .rows_at = t->rows,
        .edits = t->edits,
        .allowed = t->masks,
        .undefined = gpu_put(t->undefined, words * 4),
        .out = t->drawn,
        .rows = rows,
        .n = t->n,
    };
    gpu_ok(gpu->draw(&p, NULL));
    gpu_ok(gpu->stream_wait(NULL));
}

static void logprob_check(float device, float host, const char *what)
{
    float far = fabsf(nextafterf(host, INFINITY) - host);
    far = far > 1e-12f ? far : 1e-12f;
    if (!(fabsf(device - host) <= far))
        fail_msg("%s: %.9g, the host's %.9g", what, (double)device, (double)host);
}

/* Whether the device has drawn row r, record i. */
static bool row_check(draws *t, uint32_t r, uint32_t i, const char *what)
{
    const mdl_sampling *p = &t->params[r];
    eng_sampled device, host;
    float *copy = aligned(t->n * sizeof(float));
    memcpy(copy, t->logits + (size_t)r * t->n, t->n * sizeof(float));
    eng_sampler_draw(&t->sampler, copy, p, t->context, t->count[r], t->prompt[r], t->count[r],
                     t->masked[r] ? t->allowed + r * words_of(t->n) : NULL, &host);
    free(copy);
    if (!eng_cuda_draw_take(&t->drawn[i], &t->rows[i], &device)) {
        assert_int_equal(t->drawn[i].code, KRN_CUDA_DRAW_LONG);
        assert_true(p->top_p < 1.0f && p->top_p > 0.999f);
        return false;
    }
    if (device.id != host.id)
        fail_msg("%s, n %u row %u: %u, the host's %u (T %g top_k %d top_p %g min_p %g)", what, t->n,
                 r, device.id, host.id, (double)p->temperature, p->top_k, (double)p->top_p,
                 (double)p->min_p);
    if (p->logprob_count < 0)
        return true;
    logprob_check(device.logprob, host.logprob, what);
    assert_int_equal(device.top_count, host.top_count);
    for (uint32_t a = 0; a < host.top_count; a++) {
        assert_int_equal(device.top[a].id, host.top[a].id);
        logprob_check(device.top[a].logprob, host.top[a].logprob, what);
    }
    return true;
}

TEST(draw_is_the_cpu_s)
{
    const uint32_t sizes[] = {64, 1000, 8192, 129280, 131072};
    uint32_t drawn = 0, all = 0;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        draws t;
        draws_create(&t, sizes[i]);
        for (logit_kind kind = 0; kind < LOGITS_KINDS; kind++) {
            dice d = {i * 100 + kind};
            draws_roll(&t, &d, kind);
            draws_run(&t, 0, ROWS);
            for (uint32_t r = 0; r < ROWS; r++, all++)
                drawn += row_check(&t, r, r, KINDS[kind]);
        }
        draws_destroy(&t);
    }
    printf("%u of %u rows drawn on the device, the others left to the host\n", drawn, all);
    assert_true(drawn * 10 > all * 9);
}

TEST(rows_do_not_depend_on_the_batch)
{
    draws t;
    dice d = {77};
    draws_create(&t, 129280);
    draws_roll(&t, &d, LOGITS_PEAKED);
    krn_cuda_drawn *together = aligned(ROWS * sizeof(*together));
    draws_run(&t, 0, ROWS);
    memcpy(together, t.drawn, ROWS * sizeof(*together));
    for (uint32_t r = 0; r < ROWS; r++) {
        draws_run(&t, r, 1);
        assert_equal_bytes(&t.drawn[0], &together[r], sizeof(*together), "a row alone");
    }
    free(together);
    draws_destroy(&t);
}

TEST(rows_left_out_and_nothing_to_draw)
{
    draws t;
    dice d = {78};
    draws_create(&t, 1000);
    draws_roll(&t, &d, LOGITS_NORMAL);
    for (uint32_t i = 0; i < t.n; i++)
        t.logits[i] = -INFINITY;
    t.params[0].bias_count = 0;
    draws_run(&t, 0, 2);
    assert_int_equal(t.drawn[0].code, KRN_CUDA_DRAW_NOTHING);
    t.rows[1].drawn = 0;
    t.drawn[1].code = 12345;
    krn_cuda_draw_params p = {.logits = gpu_put(t.logits, 2 * t.n * sizeof(float)),
                              .rows_at = t.rows,
                              .edits = t.edits,
                              .allowed = t.masks,
                              .out = t.drawn,
                              .rows = 2,
                              .n = t.n};
    gpu_ok(gpu->draw(&p, NULL));
    gpu_ok(gpu->stream_wait(NULL));
    assert_int_equal(t.drawn[1].code, 12345);
    p.n = KRN_CUDA_DRAW_MAX + 1;
    assert_int_equal(gpu->draw(&p, NULL), KRN_CUDA_INVALID);
    draws_destroy(&t);
}

static const struct CMUnitTest tests[] = {
    GPU_TEST(draw_is_the_cpu_s),
    GPU_TEST(rows_do_not_depend_on_the_batch),
    GPU_TEST(rows_left_out_and_nothing_to_draw),
};

GPU_MAIN(tests)
