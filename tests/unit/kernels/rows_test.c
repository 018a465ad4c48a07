/* Row operations: number conversions exhaustively, norms, Q128, SwiGLU, Hadamard and combine
 * against independent loops, all variants equal, extremes and faults. */
#include "tests/unit/test.h"

#include "tests/unit/kernels/data.h"
#include "tests/unit/kernels/variants.h"

TEST(bf16_rounds_to_nearest_even)
{
    for (uint32_t i = 0; i < 0x10000; i++) {
        float value = krn_bf16_to_f32((uint16_t)i);
        if (isnan(value)) {
            assert_true(isnan(krn_round_bf16(value)));
            continue;
        }
        assert_int_equal(krn_f32_to_bf16(value), i);
        if ((i & 0x7FFF) >= 0x7F80)
            continue;
        uint32_t bits = i << 16;
        assert_int_equal(krn_f32_to_bf16(krn_bits_f32(bits | 0x7FFF)), i);
        assert_int_equal(krn_f32_to_bf16(krn_bits_f32(bits | 0x8000)), i + (i & 1));
        assert_int_equal(krn_f32_to_bf16(krn_bits_f32(bits | 0x8001)), i + 1);
    }
    /* A NaN whose upper half alone would be infinity. */
    assert_true(isnan(krn_round_bf16(krn_bits_f32(0x7F800001u))));
}

/* Nearest code by search, ties to the even code. */
static uint8_t nearest_e4m3(float value)
{
    float size = fabsf(value);
    uint8_t best = 0;
    for (uint32_t code = 1; code < 0x7F; code++) {
        double distance = fabs((double)krn_e4m3_to_f32((uint8_t)code) - size);
        double best_distance = fabs((double)krn_e4m3_to_f32(best) - size);
        if (distance < best_distance || (distance == best_distance && code % 2 == 0))
            best = (uint8_t)code;
    }
    return (uint8_t)(best | (signbit(value) ? 0x80 : 0));
}

TEST(e4m3_rounds_to_nearest_even_and_saturates)
{
    for (uint32_t i = 0; i < 0x10000; i++) {
        float value = krn_bf16_to_f32((uint16_t)i);
        if (!isnan(value) && fabsf(value) < 1e4f)
            assert_int_equal(krn_f32_to_e4m3(value), nearest_e4m3(value));
    }
    for (uint32_t code = 0; code < 0x7E; code++) { /* midpoints and their neighbours */
        float middle = (krn_e4m3_to_f32((uint8_t)code) + krn_e4m3_to_f32((uint8_t)(code + 1))) / 2;
        assert_int_equal(krn_f32_to_e4m3(middle), code + code % 2);
        assert_int_equal(krn_f32_to_e4m3(nextafterf(middle, 0)), code);
        assert_int_equal(krn_f32_to_e4m3(nextafterf(middle, 1e9f)), code + 1);
    }
    assert_int_equal(krn_f32_to_e4m3(1e30f), 0x7E);
    assert_int_equal(krn_f32_to_e4m3(-INFINITY), 0xFE);
    assert_int_equal(krn_f32_to_e4m3(NAN), 0x7F);
    assert_int_equal(krn_f32_to_e4m3(-0.0f), 0x80);
}

static void check_rmsnorm(uint32_t rows, uint32_t n, bool with_res, float size)
{
    dice d = {rows * 31ull + n + with_res};
    size_t count = (size_t)rows * n;
    uint16_t *x = aligned(count * 2), *res = aligned(count * 2), *w = aligned(n * 2);
    uint16_t *out = aligned(count * 2), *out_res = aligned(count * 2);
    uint16_t *ref = aligned(count * 2), *ref_res = aligned(count * 2);
    fill_bf16(&d, x, count, size);
    fill_bf16(&d, res, count, size);
    fill_bf16(&d, w, n, 1);
    for (uint32_t t = 0; t < rows; t++) {
        float sum = 0;
        for (uint32_t j = 0; j < n; j++) {
            float s = krn_bf16_to_f32(x[t * n + j]);
            if (with_res)
                s += krn_bf16_to_f32(res[t * n + j]);
            sum += s * s;
        }
        float r = 1 / sqrtf(sum / (float)n + 1e-6f);
        for (uint32_t j = 0; j < n; j++) {
            float s = krn_bf16_to_f32(x[t * n + j]);
            if (with_res)
                s += krn_bf16_to_f32(res[t * n + j]);
            ref[t * n + j] = krn_f32_to_bf16(krn_bf16_to_f32(w[j]) * (s * r));
            ref_res[t * n + j] = krn_f32_to_bf16(s);
        }
    }
    EACH_VARIANT
    {
        memcpy(out_res, res, count * 2); /* in place */
        assert_true(
            krn_rmsnorm_add(NULL, x, with_res ? out_res : NULL, w, 1e-6f, rows, n, out, out_res));
        assert_same_bytes(out, ref, count * 2, "rmsnorm");
        assert_same_bytes(out_res, ref_res, count * 2, "residual");
    }
    free(x), free(res), free(w), free(out), free(out_res), free(ref), free(ref_res);
}

TEST(rmsnorm_equals_the_loops)
{
    check_rmsnorm(1, 256, true, 1);
    check_rmsnorm(15, 256, false, 1);
    check_rmsnorm(16, 256, true, 1);
    check_rmsnorm(37, 512, true, 100);
    check_rmsnorm(17, 7168, true, 1e-3f);
    check_rmsnorm(16, 1536, false, 1e-20f);
    check_rmsnorm(16, 13, true, 1);
    check_rmsnorm(3, 0x101, true, 1);
}

TEST(norm_and_q128_report_faults)
{
    static uint16_t x[32 * 128], w[128], out[32 * 128];
    static uint8_t codes[32 * 128];
    float scales[32];
    static const uint16_t faults[] = {0x7F80, 0xFF80, 0x7FC0, 0xFFC1, 0x7F81};
    EACH_VARIANT
    {
        for (size_t i = 0; i < sizeof faults / sizeof faults[0]; i++) {
            for (uint32_t at = 0; at < 32 * 128; at += 517) {
                memset(x, 0, sizeof x);
                assert_true(krn_q128(NULL, x, 32, 128, true, codes, scales));
                assert_true(krn_rmsnorm_add(NULL, x, NULL, w, 1e-6f, 32, 128, out, NULL));
                x[at] = faults[i];
                assert_false(krn_q128(NULL, x, 32, 128, true, codes, scales));
                assert_false(krn_rmsnorm_add(NULL, x, NULL, w, 1e-6f, 32, 128, out, NULL));
            }
        }
    }
}

static void expect_q128(const uint16_t *x, bool pow2, uint8_t *codes, float *scale)
{
    float a = 1e-4f;
    for (int j = 0; j < 128; j++)
        a = fmaxf(a, fabsf(krn_bf16_to_f32(x[j])));
    float s = a * (1.0f / 448.0f);
    if (pow2) {
        int e;
        float m = frexpf(s, &e); /* s = m 2^e, m in [1/2, 1) */
        s = ldexpf(1, m == 0.5f ? e - 1 : e);
    }
    for (int j = 0; j < 128; j++)
        codes[j] = nearest_e4m3(fminf(fmaxf(krn_bf16_to_f32(x[j]) / s, -448), 448));
    *scale = s;
}

TEST(q128_equals_the_definition)
{
    enum { ROWS = 60 };
    static uint16_t x[ROWS * 256];
    static uint8_t codes[ROWS * 256], expected[128];
    float scales[ROWS * 2], scale;
    dice d = {9};
    for (int r = 0; r < ROWS * 2; r++)
        fill_bf16(&d, x + r * 128, 128, ldexpf(1, r * 2 - 120));
    memset(x, 0, 256);                        /* all zero */
    memset(x + 128, 0, 256), x[128] = 0x8000; /* -0 */
    x[256] = 0x7F7F, x[257] = 0xFF7F;         /* the largest bf16 */
    EACH_VARIANT
    {
        for (int pow2 = 0; pow2 < 2; pow2++) {
            assert_true(krn_q128(NULL, x, ROWS, 256, pow2, codes, scales));
            for (int g = 0; g < ROWS * 2; g++) {
                expect_q128(x + g * 128, pow2, expected, &scale);
                assert_same_bytes(codes + g * 128, expected, 128, "q128 codes");
                assert_same_bytes(&scales[g], &scale, sizeof scale, "q128 scale");
            }
        }
        assert_true(krn_q128(NULL, x, 1, 128, true, codes, scales));
        assert_true(scales[0] == 0x1p-22f && codes[0] == 0 && codes[127] == 0);
    }
}

TEST(silu_mul_equals_the_loops_for_every_bf16)
{
    static uint16_t g[0x10003], u[0x10003], out[0x10003], ref[0x10003];
    for (uint32_t i = 0; i < 0x10003; i++) {
        g[i] = (uint16_t)i;
        u[i] = (uint16_t)(i * 40503u >> 3 & 0xBFFF);
        float z = krn_bf16_to_f32(g[i]);
        float silu = z / (1 + (float)exp(-(double)z));
        ref[i] = krn_f32_to_bf16(silu * krn_bf16_to_f32(u[i]));
    }
    EACH_VARIANT
    {
        krn_silu_mul(NULL, g, u, 0x10003, out);
        for (uint32_t i = 0; i < 0x10003; i++)
            if (out[i] != ref[i] &&
                !(isnan(krn_bf16_to_f32(out[i])) && isnan(krn_bf16_to_f32(ref[i]))))
                fail_msg("%s: silu(%04x) * %04x = %04x, expected %04x", krn_cpu_variant(), g[i],
                         u[i], out[i], ref[i]);
    }
}

TEST(hadamard_equals_the_matrix)
{
    dice d = {4};
    for (int round = 0; round < 50; round++) {
        uint16_t x[128], y[128], ref[128];
        float exact[128];
        /* Small integers: every sum is exact, so that any order gives the matrix product. */
        for (int i = 0; i < 128; i++)
            x[i] = krn_f32_to_bf16((float)((int)roll_below(&d, 65) - 32));
        for (int i = 0; i < 128; i++) {
            exact[i] = 0;
            for (int j = 0; j < 128; j++)
                exact[i] += __builtin_parity((unsigned)(i & j)) ? -krn_bf16_to_f32(x[j])
                                                                : krn_bf16_to_f32(x[j]);
            ref[i] = krn_f32_to_bf16(exact[i] * 0.08838834764831845f);
        }
        EACH_VARIANT
        {
            memcpy(y, x, sizeof y);
            krn_hadamard(y);
            assert_same_bytes(y, ref, sizeof y, "hadamard of integers");
        }
        /* Any numbers: equal to the plain variant. */
        fill_bf16(&d, x, 128, ldexpf(1, round * 4 - 100));
        EACH_VARIANT
        {
            memcpy(y, x, sizeof y);
            krn_hadamard(y);
            if (v_ == 0)
                memcpy(ref, y, sizeof ref);
            assert_same_bytes(y, ref, sizeof y, "hadamard");
        }
    }
}

TEST(combine_adds_experts_in_order_and_the_shared_last)
{
    enum { ROWS = 9, CHOSEN = 4, HIDDEN = 277, PLACES = ROWS * CHOSEN };
    static uint16_t y[PLACES * HIDDEN], shared[ROWS * HIDDEN], out[ROWS * HIDDEN],
        ref[ROWS * HIDDEN];
    uint32_t places[PLACES];
    float weights[PLACES];
    dice d = {8};
    fill_bf16(&d, y, PLACES * HIDDEN, 1);
    fill_bf16(&d, shared, ROWS * HIDDEN, 1);
    fill_f32(&d, weights, PLACES, 1);
    for (uint32_t i = 0; i < PLACES; i++)
        places[i] = (i * 7) % PLACES;
    for (int with = 0; with < 2; with++) {
        for (uint32_t t = 0; t < ROWS; t++)
            for (uint32_t j = 0; j < HIDDEN; j++) {
                float acc = 0;
                for (uint32_t i = t * CHOSEN; i < (t + 1) * CHOSEN; i++)
                    acc += weights[i] * krn_bf16_to_f32(y[places[i] * HIDDEN + j]);
                if (with)
                    acc += krn_bf16_to_f32(shared[t * HIDDEN + j]);
                ref[t * HIDDEN + j] = krn_f32_to_bf16(acc);
            }
        EACH_VARIANT
        {
            krn_combine(NULL, y, places, weights, CHOSEN, with ? shared : NULL, ROWS, HIDDEN, out);
            assert_same_bytes(out, ref, sizeof out, "combine");
        }
    }
}

TEST(route_group_sorts_rows_by_expert)
{
    enum { ROWS = 50, CHOSEN = 3, EXPERTS = 11 };
    uint32_t chosen[ROWS * CHOSEN], offsets[EXPERTS + 1], rows[ROWS * CHOSEN],
        places[ROWS * CHOSEN];
    dice d = {6};
    for (uint32_t t = 0; t < ROWS; t++) {
        uint32_t first = roll_below(&d, EXPERTS - CHOSEN);
        for (uint32_t i = 0; i < CHOSEN; i++)
            chosen[t * CHOSEN + i] = first + i;
    }
    krn_route_group(chosen, ROWS, CHOSEN, EXPERTS, offsets, rows, places);
    assert_int_equal(offsets[0], 0);
    assert_int_equal(offsets[EXPERTS], ROWS * CHOSEN);
    for (uint32_t t = 0; t < ROWS; t++)
        for (uint32_t i = 0; i < CHOSEN; i++) {
            uint32_t place = places[t * CHOSEN + i], e = chosen[t * CHOSEN + i];
            assert_int_equal(rows[place], t);
            assert_true(place >= offsets[e] && place < offsets[e + 1]);
        }
    for (uint32_t e = 0; e < EXPERTS; e++)
        for (uint32_t p = offsets[e] + 1; p < offsets[e + 1]; p++)
            assert_true(rows[p - 1] < rows[p]);
}

TEST(finite_sees_every_place)
{
    float values[70] = {0};
    assert_true(krn_finite(values, 70));
    for (int i = 0; i < 70; i++) {
        values[i] = i % 2 ? NAN : -INFINITY;
        assert_false(krn_finite(values, 70));
        values[i] = 3e38f;
        assert_true(krn_finite(values, 70));
    }
    assert_true(krn_finite(values, 0));
}

TEST(select_refuses_unknown_variants)
{
    sl_err err;
    assert_code(krn_cpu_select("mmx", &err), SL_INVALID);
    assert_text_contains(err.text, "mmx");
    setenv("SLUICE_CPU", "ref", 1);
    assert_ok(krn_cpu_select(NULL, &err), &err);
    assert_string_equal(krn_cpu_variant(), "ref");
    assert_string_equal(krn_numerics_id(), KRN_NUMERICS_F32);
    /* The best variant of an id: there always is one. */
    assert_ok(krn_cpu_select(KRN_NUMERICS_AMX, &err), &err);
    assert_string_equal(krn_numerics_id(), KRN_NUMERICS_AMX);
    assert_ok(krn_cpu_ready(&err), &err); /* one was chosen: it stays */
    assert_string_equal(krn_numerics_id(), KRN_NUMERICS_AMX);
    assert_ok(krn_cpu_select(KRN_NUMERICS_F32, &err), &err);
    assert_string_equal(krn_numerics_id(), KRN_NUMERICS_F32);
    unsetenv("SLUICE_CPU");
    assert_ok(krn_cpu_select(NULL, &err), &err);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(bf16_rounds_to_nearest_even),
    cmocka_unit_test(e4m3_rounds_to_nearest_even_and_saturates),
    cmocka_unit_test(rmsnorm_equals_the_loops),
    cmocka_unit_test(norm_and_q128_report_faults),
    cmocka_unit_test(q128_equals_the_definition),
    cmocka_unit_test(silu_mul_equals_the_loops_for_every_bf16),
    cmocka_unit_test(hadamard_equals_the_matrix),
    cmocka_unit_test(combine_adds_experts_in_order_and_the_shared_last),
    cmocka_unit_test(route_group_sorts_rows_by_expert),
    cmocka_unit_test(finite_sees_every_place),
    cmocka_unit_test(select_refuses_unknown_variants),
};
TEST_MAIN(tests)
