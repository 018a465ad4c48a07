/* BF16 products on the device: equal bits for every number of rows, tile and place in a batch; near
 * the CPU twin: 2^-7 of the value and 2^-16 of the largest (f32: 2^-16 of the largest, the order of
 * a long sum). And what only moves: gathered rows, moves, highest logits, exact. */
#include "tests/cuda/support.h"

#define ROWS_MAX 150u

typedef struct product {
    uint32_t n, k, groups, segments;
    bool f32;
    uint16_t *x, *weights;  /* [ROWS_MAX][groups * k], [groups][n][k] */
    float *cpu, *all, *got; /* [ROWS_MAX][groups * n], as f32 */
    krn_cuda_linear_bf16_params p;
} product;

static void product_cpu(product *x)
{
    size_t bytes = krn_matrix_bytes(KRN_MATRIX_BF16, x->n, x->k);
    uint16_t *half = aligned((size_t)ROWS_MAX * x->n * 2);
    for (uint32_t g = 0; g < x->groups; g++) {
        void *memory = aligned(bytes);
        krn_matrix matrix;
        krn_matrix_pack_bf16(x->weights + (size_t)g * x->n * x->k, x->k, 1, x->n, x->k, memory,
                             &matrix);
        krn_gemm gemm = {.matrix = &matrix,
                         .input = x->x + (size_t)g * x->k,
                         .rows = ROWS_MAX,
                         .input_stride = x->groups * x->k,
                         .output_stride = x->groups * x->n,
                         .output = x->cpu + (size_t)g * x->n};
        if (x->f32) {
            krn_linear_f32(NULL, &gemm, 1);
        } else {
            gemm.output_stride = x->n;
            gemm.output = half;
            krn_linear_bf16(NULL, &gemm, 1);
            for (uint32_t r = 0; r < ROWS_MAX; r++)
                for (uint32_t i = 0; i < x->n; i++)
                    x->cpu[((size_t)r * x->groups + g) * x->n + i] =
                        krn_bf16_to_f32(half[(size_t)r * x->n + i]);
        }
        free(memory);
    }
    free(half);
}

static void product_init(product *x, uint32_t n, uint32_t k, uint32_t groups, bool f32)
{
    dice d = {n + k * 3 + groups};
    size_t outputs = (size_t)ROWS_MAX * groups * n;
    *x = (product){.n = n, .k = k, .groups = groups, .f32 = f32};
    x->x = aligned((size_t)ROWS_MAX * groups * k * 2);
    x->weights = aligned((size_t)groups * n * k * 2);
    x->cpu = aligned(outputs * 4), x->all = aligned(outputs * 4), x->got = aligned(outputs * 4);
    fill_bf16(&d, x->x, (size_t)ROWS_MAX * groups * k, 1.0f);
    fill_bf16(&d, x->weights, (size_t)groups * n * k, 0.2f);
    product_cpu(x);
    uint64_t bytes = gpu->weights_bytes_bf16(n, k);
    uint8_t *packed = aligned(bytes * groups);
    for (uint32_t g = 0; g < groups; g++)
        gpu->weights_pack_bf16(x->weights + (size_t)g * n * k, k, 1, n, k, packed + g * bytes);
    x->p = (krn_cuda_linear_bf16_params){
        .x = gpu_put(x->x, (size_t)ROWS_MAX * groups * k * 2),
        .weights = gpu_put(packed, bytes * groups),
        .out = gpu_take(outputs * 4),
        .fault = gpu_fault(),
        .weights_bytes = bytes,
        .rows = ROWS_MAX,
        .groups = groups,
        .n = n,
        .k = k,
        .x_stride = groups * k,
        .x_group = k,
        .out_stride = groups * n,
        .out_group = n,
        .out_f32 = f32,
        .segments = gpu->segments_bf16(n, k),
    };
    free(packed);
}

static void product_fini(product *x)
{
    free(x->x), free(x->weights), free(x->cpu), free(x->all), free(x->got);
}

/* out of `rows` rows as f32. */
static void run(product *x, const krn_cuda_linear_bf16_params *p, float *out)
{
    size_t count = (size_t)p->rows * x->groups * x->n;
    size_t all = (size_t)ROWS_MAX * x->groups * x->n * (x->f32 ? 4 : 2);
    uint8_t *raw = aligned(all);
    gpu_ok(gpu->fill(p->out, 0xA5, all, NULL));
    gpu_ok(gpu->linear_bf16(p, NULL));
    gpu_get(raw, p->out, all);
    for (size_t i = 0; i < count; i++)
        out[i] = x->f32 ? ((float *)raw)[i] : krn_bf16_to_f32(((uint16_t *)raw)[i]);
    for (size_t i = count * (x->f32 ? 4 : 2); i < all; i++)
        assert_int_equal(raw[i], 0xA5); /* nothing behind the last row */
    free(raw);
}

static void check_product(uint32_t n, uint32_t k, uint32_t groups, bool f32)
{
    const uint32_t rows[] = {1, 2, 7, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129};
    product x;
    device_used = 0;
    product_init(&x, n, k, groups, f32);
    size_t width = (size_t)groups * n, count = ROWS_MAX * width;
    run(&x, &x.p, x.all);
    float largest = 0, worst = 0;
    for (size_t i = 0; i < count; i++)
        largest = fmaxf(largest, fabsf(x.cpu[i]));
    for (size_t i = 0; i < count; i++) {
        float error = fabsf(x.all[i] - x.cpu[i]);
        float limit = largest * 0x1p-16f + (f32 ? 0 : fabsf(x.cpu[i]) / 128);
        if (!(error <= limit))
            fail_msg("n %u k %u: element %zu is %g, expected %g", n, k, i, x.all[i], x.cpu[i]);
        worst = fmaxf(worst, error / largest);
    }
    printf("n %u k %u groups %u segments %u %s: largest error %.2e of the largest value\n", n, k,
           groups, x.p.segments, f32 ? "f32" : "bf16", worst);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        krn_cuda_linear_bf16_params p = x.p;
        p.rows = rows[i];
        run(&x, &p, x.got);
        assert_equal_bytes(x.got, x.all, rows[i] * width * 4, "fewer rows");
    }
    uint32_t index[ROWS_MAX];
    for (uint32_t r = 0; r < ROWS_MAX; r++)
        index[r] = (r * 37 + 5) % ROWS_MAX;
    krn_cuda_linear_bf16_params p = x.p;
    p.row_index = gpu_put(index, sizeof index);
    p.rows = 70;
    run(&x, &p, x.got);
    for (uint32_t r = 0; r < p.rows; r++)
        assert_equal_bytes(x.got + r * width, x.all + index[r] * width, width * 4, "chosen rows");
    assert_int_equal(gpu_fault_of(x.p.fault), 0);
    product_fini(&x);
}

TEST(products_are_one_answer_and_near_the_cpu_s)
{
    check_product(512, 128, 8, false); /* W_UK */
    check_product(128, 512, 3, false); /* W_UV */
    check_product(320, 512, 1, true);  /* head */
    check_product(256, 7168, 1, true); /* router: segments */
    check_product(64, 4096, 1, true);
    check_product(16, 256, 1, true); /* the demo model's router */
    check_product(8, 128, 1, true);
    check_product(131, 192, 1, false); /* n is no multiple of anything */
    check_product(256, 14336, 1, false);
}

TEST(infinity_is_reported_and_bad_products_are_refused)
{
    product x;
    product_init(&x, 64, 64, 1, true);
    uint16_t infinite = 0x7F80;
    gpu_ok(gpu->copy((uint16_t *)x.p.x + 5, &infinite, 2, NULL));
    gpu_ok(gpu->linear_bf16(&x.p, NULL));
    assert_int_equal(gpu_fault_of(x.p.fault), 1);
    krn_cuda_linear_bf16_params p = x.p;
    p.k = 72;
    assert_int_equal(gpu->linear_bf16(&p, NULL), KRN_CUDA_INVALID);
    p = x.p;
    p.segments = 3;
    assert_int_equal(gpu->linear_bf16(&p, NULL), KRN_CUDA_INVALID);
    p = x.p;
    p.rows = 0;
    assert_int_equal(gpu->linear_bf16(&p, NULL), KRN_CUDA_OK);
    product_fini(&x);
}

TEST(rows_are_gathered_and_moved)
{
    enum { TABLE = 50, COUNT = 70, BYTES = 272 };
    dice d = {8};
    uint8_t *table = aligned(TABLE * BYTES), *out = aligned(COUNT * BYTES);
    uint32_t index[COUNT];
    void *moves[COUNT][2];
    fill_codes(&d, table, TABLE * BYTES);
    const uint8_t *at = gpu_put(table, TABLE * BYTES);
    uint8_t *to = gpu_take(COUNT * BYTES);
    for (uint32_t i = 0; i < COUNT; i++) {
        index[i] = roll_below(&d, TABLE);
        moves[i][0] = to + (COUNT - 1 - i) * BYTES;
        moves[i][1] = (void *)(at + index[i] * BYTES);
    }
    krn_cuda_gather_params gather = {.table = at,
                                     .index = gpu_put(index, sizeof index),
                                     .out = to,
                                     .rows = COUNT,
                                     .bytes = BYTES};
    gpu_ok(gpu->gather(&gather, NULL));
    gpu_get(out, to, COUNT * BYTES);
    for (uint32_t i = 0; i < COUNT; i++)
        assert_equal_bytes(out + i * BYTES, table + index[i] * BYTES, BYTES, "gathered");
    krn_cuda_move_params move = {
        .moves = gpu_put(moves, sizeof moves), .count = COUNT, .bytes = BYTES};
    gpu_ok(gpu->move(&move, NULL));
    gpu_get(out, to, COUNT * BYTES);
    for (uint32_t i = 0; i < COUNT; i++)
        assert_equal_bytes(out + (COUNT - 1 - i) * BYTES, table + index[i] * BYTES, BYTES, "moved");
    free(table), free(out);
}

TEST(the_highest_logit_is_found)
{
    enum { ROWS = 9, N = 8195 };
    dice d = {77};
    float *logits = aligned(ROWS * N * 4);
    uint32_t ids[ROWS], got[ROWS];
    fill_f32(&d, logits, ROWS * N, 10.0f);
    for (uint32_t i = 0; i < N; i++) { /* ties: the lowest; -0.0 = +0.0 */
        logits[i] = 3.0f;
        logits[N + i] = i < 1000 ? -1.0f : i % 2 ? 0.0f : -0.0f;
        logits[2 * N + i] = -1e30f;
    }
    logits[2 * N + N - 1] = -1e29f;
    for (uint32_t r = 0; r < ROWS; r++) {
        ids[r] = 0;
        for (uint32_t i = 1; i < N; i++)
            if (logits[r * N + i] > logits[r * N + ids[r]])
                ids[r] = i;
    }
    krn_cuda_arg_max_params p = {.logits = gpu_put(logits, ROWS * N * 4),
                                 .out_ids = gpu_take(sizeof got),
                                 .rows = ROWS,
                                 .n = N};
    gpu_ok(gpu->arg_max(&p, NULL));
    gpu_get(got, p.out_ids, sizeof got);
    assert_equal_bytes(got, ids, sizeof ids, "ids");
    free(logits);
}

static const struct CMUnitTest tests[] = {
    GPU_TEST(products_are_one_answer_and_near_the_cpu_s),
    GPU_TEST(infinity_is_reported_and_bad_products_are_refused),
    GPU_TEST(rows_are_gathered_and_moved),
    GPU_TEST(the_highest_logit_is_found),
};
GPU_MAIN(tests)
