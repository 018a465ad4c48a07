/* Linear layers: the plain variants against independent loops, all variants of an id equal to them,
 * packing, row lists, strides, partial blocks, few and many rows, the pool. */
#include "tests/unit/test.h"

#include "kernels/cpu/amx_order.h"
#include "tests/unit/kernels/data.h"
#include "tests/unit/kernels/variants.h"

/* Independent of the packed layout: straight from [n][k]. */
static float expect_fp8(const uint8_t *a, const float *sa, const uint8_t *w, const float *sw,
                        uint32_t n_index, uint32_t k)
{
    float acc = 0;
    for (uint32_t b = 0; b < k / 128; b++) {
        float p = 0;
        for (uint32_t j = 0; j < 128; j++)
            p += krn_e4m3_to_f32(a[b * 128 + j]) *
                 krn_e4m3_to_f32(w[(size_t)n_index * k + b * 128 + j]);
        acc += p * (sa[b] * sw[n_index / 128 * (k / 128) + b]);
    }
    return acc;
}

/* The same in the tiles' order. */
static float expect_amx_fp8(const uint8_t *a, const float *sa, const uint8_t *w, const float *sw,
                            uint32_t n_index, uint32_t k)
{
    float acc = 0;
    for (uint32_t b = 0; b < k / 128; b++) {
        float p = 0, x[32], y[32];
        for (uint32_t j = b * 128; j < b * 128 + 128; j += 32) {
            for (uint32_t i = 0; i < 32; i++) {
                x[i] = krn_e4m3_to_f32(a[j + i]);
                y[i] = krn_e4m3_to_f32(w[(size_t)n_index * k + j + i]);
            }
            p = krn_tile_step(x, y, p);
        }
        acc += p * (sa[b] * sw[n_index / 128 * (k / 128) + b]);
    }
    return acc;
}

/* Outputs [rows][n + 5] as the numerics id says. */
typedef float (*expect_fp8_fn)(const uint8_t *a, const float *sa, const uint8_t *w, const float *sw,
                               uint32_t n_index, uint32_t k);

static void check_fp8(uint32_t rows, uint32_t n, uint32_t k, bool pow2, krn_pool *pool)
{
    dice d = {rows * 1000003ull + n * 1009 + k + pow2};
    uint32_t blocks = k / 128, inputs = rows + 3;
    uint8_t *w = aligned((size_t)n * k), *a = aligned((size_t)inputs * k);
    float *sw = aligned((n + 127) / 128 * blocks * 4), *sa = aligned((size_t)inputs * blocks * 4);
    uint32_t *index = aligned((size_t)rows * 4 + 4);
    uint16_t *out = aligned((size_t)rows * (n + 5) * 2), *ref = aligned((size_t)rows * (n + 5) * 2);
    void *memory = aligned(krn_matrix_bytes(KRN_MATRIX_FP8, n, k));
    krn_matrix matrix;
    fill_codes(&d, w, (size_t)n * k);
    fill_codes(&d, a, (size_t)inputs * k);
    fill_scales(&d, sw, (n + 127) / 128 * blocks, pow2);
    fill_scales(&d, sa, (size_t)inputs * blocks, pow2);
    for (uint32_t r = 0; r < rows; r++)
        index[r] = roll_below(&d, inputs);
    krn_matrix_pack_fp8(w, sw, n, k, memory, &matrix);
    for (int id = 0; id < 2; id++) {
        expect_fp8_fn expect = id ? expect_amx_fp8 : expect_fp8;
        for (uint32_t r = 0; r < rows; r++)
            for (uint32_t i = 0; i < n; i++)
                ref[r * (n + 5) + i] = krn_f32_to_bf16(
                    expect(a + (size_t)index[r] * k, sa + index[r] * blocks, w, sw, i, k));
        EACH_VARIANT_OF(id ? KRN_NUMERICS_AMX : KRN_NUMERICS_F32)
        {
            memset(out, 0, (size_t)rows * (n + 5) * 2);
            krn_gemm gemm = {.matrix = &matrix,
                             .input = a,
                             .input_scales = sa,
                             .row_index = index,
                             .rows = rows,
                             .output_stride = n + 5,
                             .output = out};
            krn_linear_fp8(pool, &gemm, 1);
            assert_same_bytes(out, ref, (size_t)rows * (n + 5) * 2, "fp8 linear");
        }
    }
    free(w), free(a), free(sw), free(sa), free(index), free(out), free(ref), free(memory);
}

TEST(fp8_linear_equals_the_loops)
{
    check_fp8(1, 256, 128, true, NULL);
    check_fp8(2, 576, 256, true, NULL);
    check_fp8(3, 576, 256, false, NULL);
    check_fp8(4, 40, 384, true, NULL);
    check_fp8(5, 1, 128, true, NULL);
    check_fp8(13, 128, 128, false, NULL);
    check_fp8(97, 192, 256, true, NULL);
    check_fp8(6, 1160, 256, true, NULL); /* more than one wide task across */
    check_fp8(16, 64, 128, true, NULL);  /* whole tiles and a little more */
    check_fp8(17, 64, 128, true, NULL);
    check_fp8(33, 96, 256, false, NULL);
    check_fp8(300, 72, 128, true, NULL);
    check_fp8(3, 40, 8320, true, NULL); /* more k than inputs are made of at once */
    for (uint32_t rows = 7; rows <= 9; rows++)
        check_fp8(rows, 160, 256, false, NULL);
}

TEST(fp8_linear_is_the_same_on_a_pool)
{
    krn_pool *pool;
    sl_err err;
    assert_ok(krn_pool_create(3, &pool, &err), &err);
    check_fp8(1, 1024, 256, true, pool);
    check_fp8(200, 320, 128, true, pool);
    check_fp8(600, 700, 128, true, pool);
    krn_pool_destroy(pool);
}

static float expect_bf16(const uint16_t *x, const uint16_t *w, uint32_t n_index, uint32_t n,
                         uint32_t k)
{
    float acc = 0;
    for (uint32_t j = 0; j < k; j++)
        acc = fmaf(krn_bf16_to_f32(x[j]), krn_bf16_to_f32(w[(size_t)j * n + n_index]), acc);
    return acc;
}

static float expect_amx_bf16(const uint16_t *x, const uint16_t *w, uint32_t n_index, uint32_t n,
                             uint32_t k)
{
    float acc = 0;
    for (uint32_t j = 0; j < k; j += 32) {
        float a[32] = {0}, b[32] = {0};
        for (uint32_t i = 0; i < 32 && j + i < k; i++) {
            a[i] = krn_bf16_to_f32(x[j + i]);
            b[i] = krn_bf16_to_f32(w[(size_t)(j + i) * n + n_index]);
        }
        acc = krn_tile_step(a, b, acc);
    }
    return acc;
}

typedef float (*expect_bf16_fn)(const uint16_t *x, const uint16_t *w, uint32_t n_index, uint32_t n,
                                uint32_t k);

/* size: of the numbers; 1e-25 puts products below the normal range, where only the fma agrees. */
static void check_bf16(uint32_t rows, uint32_t n, uint32_t k, float size, bool to_bf16)
{
    dice d = {rows * 7919ull + n * 31 + k};
    uint16_t *w = aligned((size_t)n * k * 2), *x = aligned((size_t)rows * (k + 8) * 2);
    void *memory = aligned(krn_matrix_bytes(KRN_MATRIX_BF16, n, k));
    uint8_t *out = aligned((size_t)rows * n * 4), *ref = aligned((size_t)rows * n * 4);
    krn_matrix matrix;
    fill_bf16(&d, w, (size_t)n * k, size);
    fill_bf16(&d, x, (size_t)rows * (k + 8), size);
    /* [k][n] in memory: packed through strides. */
    krn_matrix_pack_bf16(w, 1, n, n, k, memory, &matrix);
    for (int id = 0; id < 2; id++) {
        expect_bf16_fn expect = id ? expect_amx_bf16 : expect_bf16;
        for (uint32_t r = 0; r < rows; r++) {
            for (uint32_t i = 0; i < n; i++) {
                float y = expect(x + r * (k + 8), w, i, n, k);
                if (to_bf16)
                    ((uint16_t *)ref)[r * n + i] = krn_f32_to_bf16(y);
                else
                    ((float *)ref)[r * n + i] = y;
            }
        }
        EACH_VARIANT_OF(id ? KRN_NUMERICS_AMX : KRN_NUMERICS_F32)
        {
            memset(out, 0, (size_t)rows * n * 4);
            krn_gemm gemm = {
                .matrix = &matrix, .input = x, .rows = rows, .input_stride = k + 8, .output = out};
            if (to_bf16)
                krn_linear_bf16(NULL, &gemm, 1);
            else
                krn_linear_f32(NULL, &gemm, 1);
            assert_same_bytes(out, ref, (size_t)rows * n * 4, "bf16 linear");
        }
    }
    free(w), free(x), free(memory), free(out), free(ref);
}

TEST(bf16_linear_equals_the_loops)
{
    for (uint32_t rows = 1; rows <= 6; rows++) {
        check_bf16(rows, 512, 128, 1, true);
        check_bf16(rows, 8, 200, 1, false);
        check_bf16(rows, 130, 37, 1e-25f, false);
        check_bf16(rows, 33, 64, 1e18f, true);
    }
    check_bf16(100, 128, 512, 1, true);
    check_bf16(50, 70, 250, 1e-19f, false);
    check_bf16(25, 16, 256, 1, false);
    check_bf16(2, 40, 8250, 1, false);
    check_bf16(2, 140, 8250, 1, true);
}

TEST(plain_linear_equals_the_loops)
{
    enum { ROWS = 14, N = 70, K = 150 };
    static float w[N * K], x[ROWS * K], out[ROWS * N], ref[ROWS * N];
    dice d = {5};
    krn_matrix matrix;
    void *memory = aligned(krn_matrix_bytes(KRN_MATRIX_F32, N, K));
    fill_f32(&d, w, N * K, 1);
    fill_f32(&d, x, ROWS * K, 1);
    krn_matrix_pack_f32(w, K, 1, N, K, memory, &matrix);
    for (uint32_t r = 0; r < ROWS; r++)
        for (uint32_t i = 0; i < N; i++) {
            float acc = 0;
            for (uint32_t j = 0; j < K; j++)
                acc = acc + x[r * K + j] * w[i * K + j];
            ref[r * N + i] = acc;
        }
    EACH_VARIANT
    {
        for (uint32_t rows = 1; rows <= ROWS; rows++) {
            memset(out, 0, sizeof out);
            krn_gemm gemm = {.matrix = &matrix, .input = x, .rows = rows, .output = out};
            krn_plain_linear(NULL, &gemm, 1);
            assert_same_bytes(out, ref, rows * N * sizeof(float), "plain linear");
        }
    }
    free(memory);
}

TEST(a_list_of_products_is_each_product_alone)
{
    enum { K = 256, COUNT = 40 };
    dice d = {77};
    krn_pool *pool;
    sl_err err;
    assert_ok(krn_pool_create(2, &pool, &err), &err);
    uint8_t *w = aligned(300 * K), *a = aligned(150 * K);
    float *sw = aligned(3 * 2 * 4), *sa = aligned(150 * 2 * 4);
    uint16_t *out = aligned((size_t)COUNT * 150 * 300 * 2);
    uint16_t *alone = aligned(150 * 300 * 2);
    void *memory[3];
    krn_matrix matrix[3];
    krn_gemm gemms[COUNT];
    static const uint32_t widths[3] = {300, 128, 32};
    fill_codes(&d, w, 300 * K);
    fill_codes(&d, a, 150 * K);
    fill_scales(&d, sw, 6, true);
    fill_scales(&d, sa, 300, true);
    for (int i = 0; i < 3; i++) {
        memory[i] = aligned(krn_matrix_bytes(KRN_MATRIX_FP8, widths[i], K));
        krn_matrix_pack_fp8(w, sw, widths[i], K, memory[i], &matrix[i]);
    }
    EACH_VARIANT_OF(NULL)
    {
        for (int i = 0; i < COUNT; i++)
            gemms[i] = (krn_gemm){.matrix = &matrix[i % 3],
                                  .input = a,
                                  .input_scales = sa,
                                  .rows = i % 5 == 4 ? 0 : roll_below(&d, 150),
                                  .output = out + (size_t)i * 150 * 300};
        krn_linear_fp8(pool, gemms, COUNT);
        for (int i = 0; i < COUNT; i++) {
            krn_gemm one = gemms[i];
            one.output = alone;
            krn_linear_fp8(NULL, &one, 1);
            assert_same_bytes(gemms[i].output, alone,
                              (size_t)one.rows * one.matrix->n * sizeof(uint16_t),
                              "listed product");
        }
    }
    krn_linear_fp8(pool, gemms, 0);
    for (int i = 0; i < 3; i++)
        free(memory[i]);
    free(w), free(a), free(sw), free(sa), free(out), free(alone);
    krn_pool_destroy(pool);
}

TEST(dequantised_weights_are_code_times_scale)
{
    enum { N = 130, K = 140 };
    dice d = {3};
    static uint8_t codes[N * K];
    static uint16_t bf16[N * K];
    static float f32[N * K];
    float scales[4];
    fill_codes(&d, codes, N * K);
    fill_scales(&d, scales, 4, true);
    krn_dequantise_bf16(codes, scales, N, K, bf16);
    krn_dequantise_f32(codes, scales, N, K, f32);
    for (uint32_t i = 0; i < N; i++)
        for (uint32_t j = 0; j < K; j++) {
            float value = krn_e4m3_to_f32(codes[i * K + j]) * scales[i / 128 * 2 + j / 128];
            assert_true(f32[i * K + j] == value);
            assert_true(krn_bf16_to_f32(bf16[i * K + j]) == value);
        }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(fp8_linear_equals_the_loops),
    cmocka_unit_test(fp8_linear_is_the_same_on_a_pool),
    cmocka_unit_test(bf16_linear_equals_the_loops),
    cmocka_unit_test(plain_linear_equals_the_loops),
    cmocka_unit_test(a_list_of_products_is_each_product_alone),
    cmocka_unit_test(dequantised_weights_are_code_times_scale),
};
TEST_MAIN(tests)
