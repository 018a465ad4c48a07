/* The vectors' exp rounds to f32 exactly as exp in double does: a dense walk over the floats here
 * (EXP_STEP=1 walks all of them, 20 seconds; it was run when the polynomial was chosen). */
#include "tests/unit/test.h"

#include "kernels/kernels.h"

#if defined(__x86_64__)
#include "kernels/cpu/vec8.h"

KRN_VEC_TARGET static uint64_t count_differences(uint32_t first, uint32_t last, uint32_t step)
{
    uint64_t differences = 0;
    for (uint64_t bits = first; bits <= last; bits += 8ull * step) {
        float x[8], y[8];
        for (uint32_t i = 0; i < 8; i++)
            x[i] = krn_bits_f32((uint32_t)(bits + (uint64_t)i * step));
        v8_store(y, v8_exp(v8_load(x)));
        for (int i = 0; i < 8; i++) {
            float expected = (float)exp((double)x[i]);
            if (krn_f32_bits(expected) == krn_f32_bits(y[i]) || (isnan(expected) && isnan(y[i])))
                continue;
            if (differences++ < 5)
                fprintf(stderr, "exp(%a) = %a, expected %a\n", (double)x[i], (double)y[i],
                        (double)expected);
        }
    }
    return differences;
}

TEST(vector_exp_equals_the_rounded_double)
{
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
        fprintf(stderr, "SKIPPED: no AVX2 on this CPU\n");
        skip();
    }
    const char *text = getenv("EXP_STEP");
    uint32_t step = text ? (uint32_t)strtoul(text, NULL, 10) : 997;
    /* 0 .. 128 and -0 .. -128: beyond, results are infinity or zero. */
    assert_int_equal(count_differences(0, 0x43000000u, step), 0);
    assert_int_equal(count_differences(0x80000000u, 0xC3000000u, step), 0);
    /* Large, infinite, NaN. */
    assert_int_equal(count_differences(0x43000000u, 0x7FFFFFFFu, 65537), 0);
    assert_int_equal(count_differences(0xC3000000u, 0xFFFFFFF0u, 65537), 0);
    assert_int_equal(count_differences(0x7F7FFFF8u, 0x7F800008u, 1), 0);
    assert_int_equal(count_differences(0xFF7FFFF8u, 0xFF800008u, 1), 0);
    /* Around the ends: overflow, subnormal results, zero. */
    assert_int_equal(count_differences(0x42B17200u, 0x42B17300u, 1), 0);
    assert_int_equal(count_differences(0xC2AEAC00u, 0xC2AEAD00u, 1), 0);
    assert_int_equal(count_differences(0xC2CFF000u, 0xC2CFF200u, 1), 0);
}
#else
TEST(vector_exp_equals_the_rounded_double)
{
    skip();
}
#endif

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(vector_exp_equals_the_rounded_double),
};
TEST_MAIN(tests)
