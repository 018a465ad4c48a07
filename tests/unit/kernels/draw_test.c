/* Drawing's passes: every variant against loops, at lengths around its vectors. */
#include "tests/unit/test.h"

#include <math.h>

#include "tests/unit/kernels/data.h"
#include "tests/unit/kernels/variants.h"

#define COUNT_MAX 700u

static const uint32_t COUNTS[] = {1, 7, 8, 15, 16, 17, 63, 64, 65, 200, 699};

#define EACH_COUNT(n)                                                \
    for (size_t c_ = 0; c_ < sizeof COUNTS / sizeof COUNTS[0]; c_++) \
        for (uint32_t n = COUNTS[c_], once_ = 1; once_; once_ = 0)

TEST(arg_max_is_the_lowest_of_the_largest)
{
    float values[COUNT_MAX];
    EACH_VARIANT EACH_COUNT(n)
    {
        dice d = {n};
        for (uint32_t round = 0; round < 20; round++) {
            uint32_t best = 0;
            for (uint32_t i = 0; i < n; i++) {
                values[i] = (float)roll_below(&d, 9) - 4.0f;
                if (roll_below(&d, 3) == 0)
                    values[i] = round % 2 ? -INFINITY : -0.0f;
                best = values[i] > values[best] ? i : best;
            }
            assert_int_equal(krn_arg_max(values, n), best);
        }
    }
}

TEST(softmax_terms_and_quotients)
{
    float logits[COUNT_MAX], terms[COUNT_MAX], out[COUNT_MAX];
    static const float SPREADS[] = {1, 20, 110, 1e30f};
    EACH_VARIANT EACH_COUNT(n)
    {
        dice d = {n};
        for (int s = 0; s < 4; s++) {
            double sum = 0;
            fill_f32(&d, logits, n, SPREADS[s]);
            logits[n / 2] = -INFINITY;
            logits[n / 3] = 3 * SPREADS[s];
            double have = krn_softmax_terms(logits, n, 3 * SPREADS[s], 0.7f, terms);
            for (uint32_t i = 0; i < n; i++) {
                float x = (logits[i] - 3 * SPREADS[s]) / 0.7f;
                float term = x < -104.0f ? 0.0f : (float)exp((double)x);
                assert_true(krn_f32_bits(terms[i]) == krn_f32_bits(term));
                sum += (double)term;
            }
            assert_true(have == sum);
            krn_softmax_divide(terms, n, sum > 1 ? sum : 1, out);
            for (uint32_t i = 0; i < n; i++)
                assert_true(out[i] == (float)((double)terms[i] / (sum > 1 ? sum : 1)));
        }
    }
}

/* exp of every variant is the rounded double: a dense walk (EXP_STEP=1: all floats; it was run). */
TEST(terms_are_the_rounded_exponentials)
{
    static const struct {
        uint32_t first, last;
    } RANGES[] = {{0, 0x43000000u}, {0x80000000u, 0xC3000000u}};
    static float x[4096], terms[4096];
    const char *text = getenv("EXP_STEP");
    uint32_t step = text ? (uint32_t)strtoul(text, NULL, 10) : 997;
    EACH_VARIANT
    for (int r = 0; r < 2; r++) {
        for (uint64_t bits = RANGES[r].first; bits < RANGES[r].last; bits += 4096ull * step) {
            for (uint32_t i = 0; i < 4096; i++)
                x[i] = krn_bits_f32((uint32_t)(bits + (uint64_t)i * step));
            (void)krn_softmax_terms(x, 4096, 0, 1, terms);
            for (uint32_t i = 0; i < 4096; i++)
                assert_true(krn_f32_bits(terms[i]) == krn_f32_bits((float)exp((double)x[i])));
        }
    }
}

/* Quotients next to the middle of two floats, where a product with the reciprocal errs. */
TEST(quotients_at_the_middle)
{
    float terms[16], out[16];
    EACH_VARIANT
    {
        dice d = {5};
        for (uint32_t round = 0; round < 20000; round++) {
            /* sum: the term over a middle, so that the quotient is as near to it as can be. */
            float p = krn_bits_f32(0x3C000000u + roll_below(&d, 1u << 23));
            double middle = ((double)p + (double)nextafterf(p, 1)) / 2;
            float term = krn_bits_f32(0x3F000000u + roll_below(&d, 1u << 23));
            double sum = (double)term / middle;
            for (int i = 0; i < 16; i++)
                terms[i] = i % 3 == 0 ? term : krn_bits_f32(roll_below(&d, 0x3F800000u));
            krn_softmax_divide(terms, 16, sum, out);
            for (int i = 0; i < 16; i++)
                assert_true(out[i] == (float)((double)terms[i] / sum));
        }
    }
}

TEST(selections_by_a_limit)
{
    float values[COUNT_MAX];
    uint32_t indices[COUNT_MAX], found;
    uint64_t bits[COUNT_MAX / 64 + 1];
    EACH_VARIANT EACH_COUNT(n)
    {
        dice d = {n};
        for (uint32_t i = 0; i < n; i++) /* multiples of 2^-20: exact sums */
            values[i] = (float)roll_below(&d, 64) * 0x1p-20f;
        for (uint32_t low = 0; low < 70; low += 7) {
            uint32_t at = 0, reached = 0;
            double sum = 0;
            found = krn_in_range(values, n, (float)low * 0x1p-20f, 40 * 0x1p-20f, indices);
            krn_reaching(values, n, (float)low * 0x1p-20f, bits);
            for (uint32_t i = 0; i < n; i++) {
                bool reaches = values[i] >= (float)low * 0x1p-20f;
                assert_int_equal(bits[i / 64] >> (i % 64) & 1, reaches);
                reached += reaches;
                sum += reaches ? (double)values[i] : 0.0;
                if (reaches && values[i] < 40 * 0x1p-20f)
                    assert_int_equal(indices[at++], i);
            }
            assert_int_equal(found, at);
            assert_true(n % 64 == 0 || bits[n / 64] >> (n % 64) == 0);
            assert_true(krn_sum_reaching(values, n, (float)low * 0x1p-20f, &found) == sum);
            assert_int_equal(found, reached);
        }
    }
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(arg_max_is_the_lowest_of_the_largest),
    cmocka_unit_test(softmax_terms_and_quotients),
    cmocka_unit_test(terms_are_the_rounded_exponentials),
    cmocka_unit_test(quotients_at_the_middle),
    cmocka_unit_test(selections_by_a_limit),
};
TEST_MAIN(TESTS)
