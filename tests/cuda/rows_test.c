/* Row operations on the device against their CPU twins. 0 differences where no sum is reordered;
 * norms: 1 unit in the last place of bf16, and 0 differences on data whose sums are exact. */
#include "tests/cuda/support.h"

#include "base/sum.h"

#define N_MAX 7168u

typedef enum data_kind {
    DATA_RANDOM,
    DATA_EXACT, /* small integers: every order of a sum gives the same bits */
    DATA_ZERO,
    DATA_ONE_HOT,
    DATA_LARGE,
    DATA_COUNT
} data_kind;

static void fill_kind(dice *d, uint16_t *x, size_t count, data_kind kind)
{
    for (size_t i = 0; i < count; i++) {
        float v = 0.0f;
        if (kind == DATA_RANDOM)
            v = roll_float(d, 1.0f);
        else if (kind == DATA_EXACT)
            v = (float)((int)roll_below(d, 9) - 4);
        else if (kind == DATA_ONE_HOT)
            v = i % 97 == 0 ? 448.0f : 0.0f;
        else if (kind == DATA_LARGE)
            v = roll_float(d, 1e15f);
        x[i] = krn_f32_to_bf16(v);
    }
}

static void check_norm(uint32_t rows, uint32_t n, data_kind kind, bool residual, bool pow2)
{
    dice d = {n + kind * 7 + rows};
    size_t count = (size_t)rows * n, far;
    uint32_t rows_tiled = (rows + 7) / 8 * 8;
    uint16_t *x = aligned(count * 2), *res = aligned(count * 2), *w = aligned(n * 2);
    uint16_t *out = aligned(count * 2), *out_res = aligned(count * 2);
    uint16_t *cpu = aligned(count * 2), *cpu_res = aligned(count * 2);
    uint8_t *tiled = aligned((size_t)rows_tiled * n), *codes = aligned(count);
    uint8_t *cpu_codes = aligned(count);
    float *tiled_scales = aligned((size_t)rows_tiled * n / 32), *scales = aligned(count / 32);
    float *cpu_scales = aligned(count / 32);
    fill_kind(&d, x, count, kind);
    fill_kind(&d, res, count, kind);
    fill_bf16(&d, w, n, 1.0f);
    krn_cuda_norm_params p = {.x = gpu_put(x, count * 2),
                              .res = residual ? gpu_put(res, count * 2) : NULL,
                              .weight = gpu_put(w, n * 2),
                              .out = gpu_take(count * 2),
                              .out_res = gpu_take(count * 2),
                              .out_codes = gpu_take((size_t)rows_tiled * n),
                              .out_scales = gpu_take((size_t)rows_tiled * n / 32),
                              .fault = gpu_fault(),
                              .rows = rows,
                              .n = n,
                              .x_stride = n,
                              .rows_tiled = rows_tiled,
                              .epsilon = 1e-6f,
                              .pow2 = pow2};
    gpu_ok(gpu->norm(&p, NULL));
    gpu_get(out, p.out, count * 2);
    gpu_get(out_res, p.out_res, count * 2);
    gpu_get(tiled, p.out_codes, (size_t)rows_tiled * n);
    gpu_get(tiled_scales, p.out_scales, (size_t)rows_tiled * n / 32);
    assert_int_equal(gpu_fault_of(p.fault), 0);
    assert_true(krn_rmsnorm_add(NULL, x, residual ? res : NULL, w, 1e-6f, rows, n, cpu, cpu_res));
    size_t differ = bf16_differences(out, cpu, count, &far);
    if (far != 0 || differ > (kind == DATA_RANDOM || kind == DATA_LARGE ? count / 100 : 0))
        fail_msg("norm n %u kind %d: %zu of %zu differ, %zu by more than 1", n, kind, differ, count,
                 far);
    assert_equal_bytes(out_res, cpu_res, count * 2, "residual");
    /* Q128 of the device's own norm: no difference. */
    untile(tiled, tiled_scales, rows, n, rows_tiled, codes, scales);
    assert_true(krn_q128(NULL, out, rows, n, pow2, cpu_codes, cpu_scales));
    assert_equal_bytes(codes, cpu_codes, count, "norm codes");
    assert_equal_bytes(scales, cpu_scales, count / 32, "norm scales");
    void *all[] = {x,     res,   w,         out,          out_res, cpu,       cpu_res,
                   tiled, codes, cpu_codes, tiled_scales, scales,  cpu_scales};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

TEST(norm_is_the_cpu_s)
{
    const uint32_t sizes[] = {128, 512, 1536, 2048, 7168};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (data_kind kind = 0; kind < DATA_COUNT; kind++) {
            device_used = 0;
            check_norm(5, sizes[i], kind, kind % 2 == 0, i % 2 == 0);
        }
}

TEST(norm_rows_do_not_depend_on_the_batch)
{
    dice d = {5};
    uint32_t n = 7168, rows = 33;
    uint16_t *x = aligned((size_t)rows * n * 2), *w = aligned(n * 2);
    uint16_t *all = aligned((size_t)rows * n * 2), *one = aligned(n * 2);
    fill_bf16(&d, x, (size_t)rows * n, 1.0f);
    fill_bf16(&d, w, n, 1.0f);
    krn_cuda_norm_params p = {.x = gpu_put(x, (size_t)rows * n * 2),
                              .weight = gpu_put(w, n * 2),
                              .out = gpu_take((size_t)rows * n * 2),
                              .rows = rows,
                              .n = n,
                              .x_stride = n,
                              .epsilon = 1e-6f};
    gpu_ok(gpu->norm(&p, NULL));
    gpu_get(all, p.out, (size_t)rows * n * 2);
    p.x += 17 * n;
    p.rows = 1;
    gpu_ok(gpu->norm(&p, NULL));
    gpu_get(one, p.out, n * 2);
    assert_equal_bytes(one, all + 17 * n, n * 2, "row 17");
    free(x), free(w), free(all), free(one);
}

TEST(norm_reports_nan_and_refuses_bad_sizes)
{
    uint16_t x[128] = {0x7FC0}, w[128] = {0};
    krn_cuda_norm_params p = {.x = gpu_put(x, sizeof x),
                              .weight = gpu_put(w, sizeof w),
                              .out = gpu_take(256),
                              .fault = gpu_fault(),
                              .rows = 1,
                              .n = 128,
                              .x_stride = 128};
    gpu_ok(gpu->norm(&p, NULL));
    assert_int_equal(gpu_fault_of(p.fault), 1);
    p.n = 100;
    assert_int_equal(gpu->norm(&p, NULL), KRN_CUDA_INVALID);
    assert_text_contains(gpu->last_error(), "p->n");
}

TEST(silu_is_the_cpu_s)
{
    for (data_kind kind = 0; kind < DATA_LARGE; kind++) {
        dice d = {77 + kind};
        uint32_t rows = 11, n = 2176, rows_tiled = 16;
        size_t count = (size_t)rows * n;
        uint16_t *gu = aligned(2 * count * 2), *g = aligned(count * 2), *u = aligned(count * 2);
        uint16_t *out = aligned(count * 2), *cpu = aligned(count * 2);
        uint8_t *tiled = aligned((size_t)rows_tiled * n), *codes = aligned(count);
        uint8_t *cpu_codes = aligned(count);
        float *tiled_scales = aligned((size_t)rows_tiled * n / 32), *scales = aligned(count / 32);
        float *cpu_scales = aligned(count / 32);
        fill_kind(&d, gu, 2 * count, kind);
        for (uint32_t i = 0; i < 2 * count; i += 1009) /* far ends of exp */
            gu[i] = krn_f32_to_bf16(i % 2 ? 200.0f : -200.0f);
        for (uint32_t r = 0; r < rows; r++) {
            memcpy(g + (size_t)r * n, gu + (size_t)r * 2 * n, n * 2);
            memcpy(u + (size_t)r * n, gu + (size_t)r * 2 * n + n, n * 2);
        }
        uint16_t *at = gpu_put(gu, 2 * count * 2);
        krn_cuda_silu_params p = {.g = at,
                                  .u = at + n,
                                  .out = gpu_take(count * 2),
                                  .out_codes = gpu_take((size_t)rows_tiled * n),
                                  .out_scales = gpu_take((size_t)rows_tiled * n / 32),
                                  .fault = gpu_fault(),
                                  .rows = rows,
                                  .n = n,
                                  .stride = 2 * n,
                                  .rows_tiled = rows_tiled,
                                  .pow2 = 1};
        gpu_ok(gpu->silu(&p, NULL));
        gpu_get(out, p.out, count * 2);
        gpu_get(tiled, p.out_codes, (size_t)rows_tiled * n);
        gpu_get(tiled_scales, p.out_scales, (size_t)rows_tiled * n / 32);
        assert_int_equal(gpu_fault_of(p.fault), 0);
        krn_silu_mul(NULL, g, u, count, cpu);
        assert_equal_bytes(out, cpu, count * 2, "silu");
        untile(tiled, tiled_scales, rows, n, rows_tiled, codes, scales);
        assert_true(krn_q128(NULL, cpu, rows, n, true, cpu_codes, cpu_scales));
        assert_equal_bytes(codes, cpu_codes, count, "silu codes");
        assert_equal_bytes(scales, cpu_scales, count / 32, "silu scales");
        void *all[] = {gu,           g,      u,         out, cpu, tiled, codes, cpu_codes,
                       tiled_scales, scales, cpu_scales};
        for (size_t i = 0; i < sizeof all / sizeof *all; i++)
            free(all[i]);
    }
}

TEST(quant_of_chosen_rows_is_the_cpu_s)
{
    dice d = {12};
    uint32_t rows = 9, n = 7168, rows_tiled = 16;
    uint16_t *x = aligned((size_t)rows * n * 2), *chosen = aligned((size_t)rows * n * 2);
    uint8_t *tiled = aligned((size_t)rows_tiled * n), *codes = aligned((size_t)rows * n);
    uint8_t *cpu_codes = aligned((size_t)rows * n);
    float *tiled_scales = aligned((size_t)rows_tiled * n / 32), *scales = aligned(rows * n / 32);
    float *cpu_scales = aligned(rows * n / 32);
    uint32_t index[16];
    fill_bf16(&d, x, (size_t)rows * n, 3.0f);
    for (uint32_t i = 0; i < rows; i++) {
        index[i] = roll_below(&d, rows);
        memcpy(chosen + (size_t)i * n, x + (size_t)index[i] * n, n * 2);
    }
    for (int pow2 = 0; pow2 < 2; pow2++) {
        krn_cuda_quant_params p = {.x = gpu_put(x, (size_t)rows * n * 2),
                                   .row_index = gpu_put(index, sizeof index),
                                   .out_codes = gpu_take((size_t)rows_tiled * n),
                                   .out_scales = gpu_take((size_t)rows_tiled * n / 32),
                                   .rows = rows,
                                   .n = n,
                                   .stride = n,
                                   .rows_tiled = rows_tiled,
                                   .pow2 = (uint32_t)pow2};
        gpu_ok(gpu->quant(&p, NULL));
        gpu_get(tiled, p.out_codes, (size_t)rows_tiled * n);
        gpu_get(tiled_scales, p.out_scales, (size_t)rows_tiled * n / 32);
        untile(tiled, tiled_scales, rows, n, rows_tiled, codes, scales);
        assert_true(krn_q128(NULL, chosen, rows, n, pow2, cpu_codes, cpu_scales));
        assert_equal_bytes(codes, cpu_codes, (size_t)rows * n, "codes");
        assert_equal_bytes(scales, cpu_scales, rows * n / 32, "scales");
    }
    void *all[] = {x, chosen, tiled, codes, cpu_codes, tiled_scales, scales, cpu_scales};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

enum { ROUTED = 301, EXPERTS = 256, CHOSEN = 8 };

/* The device's grouping of choices that are on both sides. */
static void check_group(const uint32_t *device_chosen, const uint32_t *chosen, uint32_t align)
{
    uint32_t places = ROUTED * CHOSEN + EXPERTS * 7, assignments = ROUTED * CHOSEN;
    uint32_t *got_rows = aligned(places * 4), *got_places = aligned(assignments * 4);
    uint32_t *cpu_rows = aligned(assignments * 4), *cpu_places = aligned(assignments * 4);
    uint32_t offsets[EXPERTS + 1], cpu_offsets[EXPERTS + 1], counts[EXPERTS];
    krn_cuda_group_params g = {.experts_chosen = device_chosen,
                               .out_offsets = gpu_take(sizeof offsets),
                               .out_rows = gpu_take(places * 4),
                               .out_places = gpu_take(assignments * 4),
                               .out_counts = gpu_take(sizeof counts),
                               .rows = ROUTED,
                               .chosen = CHOSEN,
                               .experts = EXPERTS,
                               .align = align};
    gpu_ok(gpu->route_group(&g, NULL));
    gpu_get(offsets, g.out_offsets, sizeof offsets);
    gpu_get(counts, g.out_counts, sizeof counts);
    gpu_get(got_rows, g.out_rows, places * 4);
    gpu_get(got_places, g.out_places, assignments * 4);
    krn_route_group(chosen, ROUTED, CHOSEN, EXPERTS, cpu_offsets, cpu_rows, cpu_places);
    for (uint32_t e = 0; e < EXPERTS; e++) {
        assert_int_equal(counts[e], cpu_offsets[e + 1] - cpu_offsets[e]);
        assert_int_equal(offsets[e] % align, 0);
        assert_equal_bytes(got_rows + offsets[e], cpu_rows + cpu_offsets[e], counts[e] * 4,
                           "rows of an expert");
        for (uint32_t i = offsets[e] + counts[e]; i < offsets[e + 1]; i++)
            assert_int_equal(got_rows[i], UINT32_MAX);
    }
    for (uint32_t i = 0; i < assignments; i++)
        assert_int_equal(got_places[i] - offsets[chosen[i]],
                         cpu_places[i] - cpu_offsets[chosen[i]]);
    free(got_rows), free(got_places), free(cpu_rows), free(cpu_places);
}

/* kind 0: random; 1: many ties; 2: all equal. */
static void check_route(int kind)
{
    krn_route_args args = {.experts = EXPERTS,
                           .groups = 8,
                           .groups_kept = 4,
                           .chosen = CHOSEN,
                           .scaling = 2.5f,
                           .normalise = true};
    size_t bytes = ROUTED * CHOSEN * 4;
    float *logits = aligned(ROUTED * EXPERTS * 4), *weights = aligned(bytes);
    float *cpu_weights = aligned(bytes), bias[EXPERTS];
    uint32_t *experts = aligned(bytes), *cpu_experts = aligned(bytes);
    dice d = {31};
    for (uint32_t i = 0; i < ROUTED * EXPERTS; i++)
        logits[i] = kind == 0 ? roll_float(&d, 2.0f) : kind == 1 ? (float)roll_below(&d, 4) : 1.0f;
    for (int e = 0; e < EXPERTS; e++)
        bias[e] = kind == 0 ? roll_float(&d, 0.2f) : 0.0f;
    krn_cuda_route_params p = {.logits = gpu_put(logits, ROUTED * EXPERTS * 4),
                               .bias = gpu_put(bias, sizeof bias),
                               .out_experts = gpu_take(bytes),
                               .out_weights = gpu_take(bytes),
                               .fault = gpu_fault(),
                               .rows = ROUTED,
                               .experts = EXPERTS,
                               .groups = 8,
                               .groups_kept = 4,
                               .chosen = CHOSEN,
                               .scaling = 2.5f,
                               .normalise = 1};
    gpu_ok(gpu->route(&p, NULL));
    gpu_get(experts, p.out_experts, bytes);
    gpu_get(weights, p.out_weights, bytes);
    assert_int_equal(gpu_fault_of(p.fault), 0);
    assert_true(krn_route(NULL, &args, logits, bias, ROUTED, cpu_experts, cpu_weights));
    assert_equal_bytes(experts, cpu_experts, bytes, "experts");
    assert_equal_bytes(weights, cpu_weights, bytes, "weights");
    check_group(p.out_experts, experts, 1);
    check_group(p.out_experts, experts, 8);
    free(logits), free(weights), free(cpu_weights), free(experts), free(cpu_experts);
}

TEST(route_and_group_are_the_cpu_s)
{
    for (int kind = 0; kind < 3; kind++)
        check_route(kind);
}

TEST(combine_is_the_cpu_s)
{
    dice d = {8};
    uint32_t rows = 13, chosen = 8, hidden = 7168;
    size_t count = (size_t)rows * hidden;
    uint16_t *outputs = aligned(count * 8 * 2), *shared = aligned(count * 2);
    uint16_t *out = aligned(count * 2), *cpu = aligned(count * 2);
    uint32_t places[13 * 8];
    float weights[13 * 8];
    fill_bf16(&d, outputs, count * 8, 1.0f);
    fill_bf16(&d, shared, count, 1.0f);
    for (uint32_t i = 0; i < rows * chosen; i++) {
        places[i] = i * 7 % (rows * chosen);
        weights[i] = roll_float(&d, 0.5f);
    }
    for (int with_shared = 0; with_shared < 2; with_shared++) {
        krn_cuda_combine_params p = {.outputs = gpu_put(outputs, count * 8 * 2),
                                     .places = gpu_put(places, sizeof places),
                                     .weights = gpu_put(weights, sizeof weights),
                                     .shared = with_shared ? gpu_put(shared, count * 2) : NULL,
                                     .out = gpu_take(count * 2),
                                     .rows = rows,
                                     .chosen = chosen,
                                     .hidden = hidden};
        gpu_ok(gpu->combine(&p, NULL));
        gpu_get(out, p.out, count * 2);
        krn_combine(NULL, outputs, places, weights, chosen, with_shared ? shared : NULL, rows,
                    hidden, cpu);
        assert_equal_bytes(out, cpu, count * 2, "combine");
    }
    free(outputs), free(shared), free(out), free(cpu);
}

/* One row, and many rows of the same scores. */
static void check_topk(const float *scores, uint32_t count, uint32_t topk, uint32_t first,
                       bool expect_fault)
{
    enum { MANY = 140 };
    uint32_t stride = (count + 3) / 4 * 4, kept[MANY];
    uint32_t *list = aligned(MANY * topk * 4), *cpu = aligned(topk * 4);
    krn_cuda_row rows[MANY];
    for (uint32_t i = 0; i < MANY; i++)
        rows[i] = (krn_cuda_row){.slot = first + count - 1, .first = first};
    krn_cuda_topk_params p = {.scores = gpu_put(scores, stride * 4),
                              .rows_at = gpu_put(rows, sizeof rows),
                              .lists = gpu_take(MANY * topk * 4),
                              .list_counts = gpu_take(sizeof kept),
                              .topk = topk,
                              .list_stride = topk};
    for (p.rows = 1; p.rows <= MANY; p.rows += MANY - 1) {
        p.fault = gpu_fault();
        gpu_ok(gpu->topk(&p, NULL));
        gpu_get(list, p.lists, p.rows * topk * 4);
        gpu_get(kept, p.list_counts, p.rows * 4);
        assert_int_equal(gpu_fault_of(p.fault), expect_fault);
        if (expect_fault)
            continue;
        assert_true(krn_topk(scores, count, topk, cpu));
        for (uint32_t i = 0; i < (count < topk ? count : topk); i++)
            cpu[i] += first;
        for (uint32_t i = 0; i < p.rows; i++) {
            assert_int_equal(kept[i], count < topk ? count : topk);
            assert_equal_bytes(list + i * topk, cpu, kept[i] * 4, "positions");
        }
    }
    free(list), free(cpu);
}

TEST(topk_is_the_cpu_s)
{
    const uint32_t counts[] = {2047, 2048, 2049, 4096, 10007, 131072};
    float *scores = aligned(131080 * 4);
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++)
        for (int kind = 0; kind < 7; kind++) {
            dice d = {kind * 100 + c};
            device_used = 0;
            for (uint32_t i = 0; i < counts[c]; i++) {
                float x = roll_float(&d, 4.0f);
                scores[i] = kind == 0   ? x
                            : kind == 1 ? 0.0f /* all equal */
                            : kind == 2 ? (roll_below(&d, 2) ? -0.0f : 0.0f)
                            : kind == 3 ? (x < 1.5f ? (i % 2 ? -0.0f : 0.0f) : x)
                            : kind == 4 ? (float)roll_below(&d, 3) - 1.0f
                            : kind == 5 ? -(float)i * 1e-3f        /* sorted, negative */
                                        : 1.0f + 0.01f * fabsf(x); /* close to each other */
            }
            check_topk(scores, counts[c], 2048, (uint32_t)c % 2, false);
        }
    scores[777] = NAN;
    check_topk(scores, 10007, 2048, 0, true);
    free(scores);
}

TEST(sums_are_base_sum_s)
{
    const uint64_t sizes[] = {16, 32, 48, 8192, 50432, 403456, 3076352};
    dice d = {1};
    uint8_t *data = aligned(3076352 * 2);
    for (size_t i = 0; i < 3076352 * 2; i++)
        data[i] = (uint8_t)roll(&d);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        uint8_t *at = gpu_put(data, 3076352 * 2);
        const uint8_t *pieces[2] = {at, at + sizes[i]};
        uint64_t tweaks[2] = {5, 1ull << 40}, sums[2];
        krn_cuda_sum_params p = {.pieces = gpu_put(pieces, sizeof pieces),
                                 .tweaks = gpu_put(tweaks, sizeof tweaks),
                                 .out_sums = gpu_take(16),
                                 .key = 0x1234567890abcdefull,
                                 .bytes = sizes[i],
                                 .count = 2};
        gpu_ok(gpu->sums(&p, NULL));
        gpu_get(sums, p.out_sums, 16);
        for (int j = 0; j < 2; j++)
            assert_true(sums[j] == sl_sum64(p.key, tweaks[j], data + j * sizes[i], sizes[i]));
        device_used = 0;
    }
    free(data);
}

static const struct CMUnitTest tests[] = {
    GPU_TEST(norm_is_the_cpu_s),
    GPU_TEST(norm_rows_do_not_depend_on_the_batch),
    GPU_TEST(norm_reports_nan_and_refuses_bad_sizes),
    GPU_TEST(silu_is_the_cpu_s),
    GPU_TEST(quant_of_chosen_rows_is_the_cpu_s),
    GPU_TEST(route_and_group_are_the_cpu_s),
    GPU_TEST(combine_is_the_cpu_s),
    GPU_TEST(topk_is_the_cpu_s),
    GPU_TEST(sums_are_base_sum_s),
};
GPU_MAIN(tests)
