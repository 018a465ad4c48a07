/* The keyed sum: against its definition written out plainly, and the faults it must find. */
#include "tests/unit/test.h"

#include "base/rng.h"
#include "base/sum.h"

static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

/* The definition in sum.c, by 16-byte units from the last to the first: order must not matter. */
static uint64_t plain_sum(uint64_t key, uint64_t tweak, const uint8_t *data, size_t size)
{
    const uint64_t g = 0x9e3779b97f4a7c15ull;
    uint64_t s = mix((mix(key + g) ^ tweak) + g), k[8], lane[4];
    for (uint64_t j = 0; j < 8; j++)
        k[j] = mix(s + (j + 1) * g);
    memcpy(lane, k + 4, sizeof(lane));
    size_t units = (size + 31) / 32 * 2;
    for (size_t u = units; u-- > 0;) {
        uint64_t block = u / 2;
        for (size_t half = 0; half < 2; half++) {
            size_t i = 2 * (u % 2) + half;
            uint64_t word = 0;
            for (size_t byte = 0; byte < 8; byte++) {
                size_t at = block * 32 + i * 8 + byte;
                if (at < size)
                    word |= (uint64_t)data[at] << (8 * byte);
            }
            uint64_t x = word ^ (k[i] + block * 0xa0761d6478bd642full);
            lane[i] += (x & 0xffffffffu) * (x >> 32);
            lane[i ^ 1] += word;
        }
    }
    uint64_t h = size;
    for (int i = 0; i < 4; i++)
        h = mix((h ^ lane[i]) + g);
    return h;
}

static void fill(uint8_t *data, size_t size, uint64_t seed)
{
    for (size_t i = 0; i < size; i++)
        data[i] = (uint8_t)(mix(seed + i) >> 13);
}

TEST(equals_its_definition_at_every_size)
{
    uint8_t data[512];
    fill(data, sizeof(data), 1);
    for (size_t size = 0; size <= sizeof(data); size++)
        assert_true(sl_sum64(11, 22, data, size) == plain_sum(11, 22, data, size));
    /* Unaligned, too. */
    for (size_t offset = 1; offset < 32; offset++)
        assert_true(sl_sum64(3, 4, data + offset, 300) == plain_sum(3, 4, data + offset, 300));
}

TEST(equals_its_definition_by_every_instruction_set)
{
    uint8_t data[700];
    uint64_t sum;
    fill(data, sizeof(data), 5);
    for (size_t size = 0; size <= sizeof(data); size++) {
        uint64_t want = plain_sum(9, 10, data, size);
        for (sl_sum_set set = SL_SUM_PLAIN; set <= SL_SUM_AVX512; set++) {
            if (sl_sum64_by(set, 9, 10, data, size, &sum))
                assert_true(sum == want);
        }
    }
    assert_true(sl_sum64_by(SL_SUM_PLAIN, 9, 10, data, 1, &sum));
}

/* Frozen values: a change of the definition breaks caches on disk and mixed clusters. */
TEST(known_values)
{
    uint8_t data[100];
    for (int i = 0; i < 100; i++)
        data[i] = (uint8_t)i;
    assert_true(sl_sum64(0, 0, NULL, 0) == 0x574533f6d39c1953ull);
    assert_true(sl_sum64(1, 2, data, 100) == 0xeeb2557728138cedull);
    assert_true(sl_sum64(UINT64_MAX, UINT64_MAX, data, 32) == 0xf274cc3dbc7b0f17ull);
}

#define PIECE ((size_t)8192)

TEST(finds_every_single_bit)
{
    uint8_t data[256];
    fill(data, sizeof(data), 2);
    uint64_t want = sl_sum64(7, 8, data, sizeof(data));
    for (size_t bit = 0; bit < sizeof(data) * 8; bit++) {
        data[bit / 8] ^= (uint8_t)(1 << bit % 8);
        assert_true(sl_sum64(7, 8, data, sizeof(data)) != want);
        data[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
}

/* Swapped neighbours of every word size up to 1 KiB, at every place of the piece. */
TEST(finds_adjacent_swaps)
{
    uint8_t data[PIECE], half[1024];
    fill(data, sizeof(data), 3);
    uint64_t want = sl_sum64(7, 8, data, sizeof(data));
    for (size_t size = 8; size <= sizeof(half); size *= 2) {
        for (size_t at = 0; at + 2 * size <= sizeof(data); at += size) {
            memcpy(half, data + at, size);
            memmove(data + at, data + at + size, size);
            memcpy(data + at + size, half, size);
            assert_true(sl_sum64(7, 8, data, sizeof(data)) != want);
            memcpy(half, data + at, size);
            memmove(data + at, data + at + size, size);
            memcpy(data + at + size, half, size);
        }
    }
    assert_true(sl_sum64(7, 8, data, sizeof(data)) == want);
}

TEST(finds_truncation_and_zero_extension)
{
    uint8_t data[PIECE] = {0};
    fill(data, 1000, 4);
    uint64_t sums[200];
    for (size_t i = 0; i < 200; i++) {
        sums[i] = sl_sum64(7, 8, data, 900 + i);
        for (size_t j = 0; j < i; j++)
            assert_true(sums[i] != sums[j]);
    }
}

TEST(finds_zeroed_and_repeated_runs)
{
    uint8_t data[PIECE], copy[PIECE];
    fill(data, sizeof(data), 5);
    uint64_t want = sl_sum64(7, 8, data, sizeof(data));
    for (size_t at = 0; at + 256 <= sizeof(data); at += 256) {
        memcpy(copy, data, sizeof(data));
        memset(copy + at, 0, 256);
        assert_true(sl_sum64(7, 8, copy, sizeof(copy)) != want);
        memcpy(copy + at, data + (at + 256) % sizeof(data), 256);
        assert_true(sl_sum64(7, 8, copy, sizeof(copy)) != want);
    }
    memset(copy, 0, sizeof(copy));
    assert_true(sl_sum64(7, 8, copy, 4096) != sl_sum64(7, 8, copy, 8192));
}

TEST(depends_on_key_and_tweak)
{
    uint8_t data[64];
    fill(data, sizeof(data), 6);
    uint64_t seen[128];
    size_t count = 0;
    for (uint64_t key = 0; key < 8; key++)
        for (uint64_t tweak = 0; tweak < 8; tweak++)
            seen[count++] = sl_sum64(key, tweak, data, sizeof(data));
    for (size_t i = 0; i < count; i++)
        for (size_t j = 0; j < i; j++)
            assert_true(seen[i] != seen[j]);
    assert_true(sl_sum64(1, 2, data, 64) != sl_sum64(2, 1, data, 64));
}

/* Random damage of random spans: a sum of 64 bits must not miss one in a few thousand. */
TEST(finds_random_damage)
{
    uint8_t data[1024], copy[1024];
    uint64_t seed = sl_random_u64();
    print_message("seed %llu\n", (unsigned long long)seed);
    fill(data, sizeof(data), 7);
    uint64_t want = sl_sum64(7, 8, data, sizeof(data));
    for (uint64_t round = 0; round < 5000; round++) {
        size_t at = mix(seed + round) % 1000, size = 1 + mix(seed ^ ~round) % 24;
        memcpy(copy, data, sizeof(data));
        fill(copy + at, size, seed + round);
        if (memcmp(copy, data, sizeof(data)) != 0)
            assert_true(sl_sum64(7, 8, copy, sizeof(copy)) != want);
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(equals_its_definition_at_every_size),
    cmocka_unit_test(equals_its_definition_by_every_instruction_set),
    cmocka_unit_test(known_values),
    cmocka_unit_test(finds_every_single_bit),
    cmocka_unit_test(finds_adjacent_swaps),
    cmocka_unit_test(finds_truncation_and_zero_extension),
    cmocka_unit_test(finds_zeroed_and_repeated_runs),
    cmocka_unit_test(depends_on_key_and_tweak),
    cmocka_unit_test(finds_random_damage),
};
TEST_MAIN(tests)
