/* Random numbers against published vectors, and docs/SAMPLING.md against the code. */
#include "tests/unit/test.h"

#include "base/rng.h"

/* Random123's kat_vectors, philox4x32 with 10 rounds. */
TEST(philox_known_answers)
{
    static const uint32_t cases[][10] = {
        {0, 0, 0, 0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
        {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0x408f276d,
         0x41c83b0e, 0xa20bc7c6, 0x6d5451fd},
        {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0, 0xd16cfe09,
         0x94fdcceb, 0x5001e420, 0x24126ea1}};
    for (size_t i = 0; i < 3; i++) {
        uint32_t out[4];
        sl_philox4x32(cases[i], cases[i] + 4, out);
        assert_memory_equal(out, cases[i] + 6, sizeof(out));
    }
}

/* The SipHash paper's key 00..0f and messages 00, 01, ... */
TEST(siphash_known_answers)
{
    static const uint64_t key[2] = {0x0706050403020100ull, 0x0f0e0d0c0b0a0908ull};
    uint8_t message[15];
    for (uint8_t i = 0; i < 15; i++)
        message[i] = i;
    assert_true(sl_siphash(key, message, 0) == 0x726fdb47dd0e0e31ull);
    assert_true(sl_siphash(key, message, 1) == 0x74f839c593dc67fdull);
    assert_true(sl_siphash(key, message, 15) == 0xa129ca6149be45e5ull);
}

TEST(sampling_document_matches)
{
    char line[512];
    int rows = 0;
    FILE *file = fopen("docs/SAMPLING.md", "r");
    if (!file)
        fail_msg("docs/SAMPLING.md not found: run from the repository's root");
    while (fgets(line, sizeof(line), file)) {
        unsigned long long seed, position, bits;
        unsigned stream, x0, x1;
        double u;
        if (sscanf(line, "| 0x%llx | 0x%llx | 0x%x | %x %x | 0x%llx | %lf |", &seed, &position,
                   &stream, &x0, &x1, &bits, &u) != 7)
            continue;
        rows++;
        uint32_t counter[4] = {(uint32_t)position, (uint32_t)(position >> 32), stream, 0};
        uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)}, out[4];
        sl_philox4x32(counter, key, out);
        assert_int_equal(out[0], x0);
        assert_int_equal(out[1], x1);
        assert_true(sl_keyed_uniform(seed, position, stream) == (double)bits * 0x1p-53);
        assert_true(sl_keyed_uniform(seed, position, stream) == u);
    }
    fclose(file);
    assert_int_equal(rows, 8);
}

TEST(keyed_uniform_is_uniform_and_within_range)
{
    double sum = 0;
    size_t low = 0;
    for (uint64_t i = 0; i < 100000; i++) {
        double u = sl_keyed_uniform(42, i, 0);
        assert_true(u >= 0 && u < 1);
        sum += u;
        low += u < 0.25;
    }
    /* Fixed seed, so no flakes: five standard deviations. */
    assert_true(sum / 100000 > 0.4954 && sum / 100000 < 0.5046);
    assert_true(low > 24300 && low < 25700);
}

TEST(kernel_bytes_fill_everything)
{
    uint8_t bytes[1000] = {0};
    size_t zeros = 0;
    sl_random_bytes(bytes, sizeof(bytes));
    for (size_t i = 0; i < sizeof(bytes); i++)
        zeros += bytes[i] == 0;
    assert_true(zeros < 40); /* expected 4; 2^-100 for a false alarm */
    assert_true(sl_random_u64() != sl_random_u64());
    sl_random_bytes(bytes, 0);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(philox_known_answers),
    cmocka_unit_test(siphash_known_answers),
    cmocka_unit_test(sampling_document_matches),
    cmocka_unit_test(keyed_uniform_is_uniform_and_within_range),
    cmocka_unit_test(kernel_bytes_fill_everything),
};
TEST_MAIN(tests)
