/* Single steps against the reference vectors of shared/vectors/fp8-absorbed/steps.safetensors,
 * exactly. Every variant this CPU has; the run says which it lacks. */
#include "tests/unit/kernels/variants.h"
#include "tests/unit/test.h"

#include "kernels/kernels.h"
#include "model/safetensors.h"

#define STEPS_FILE "../shared/vectors/fp8-absorbed/steps.safetensors"

static mdl_checkpoint *steps;

static const void *data(const char *name)
{
    const mdl_tensor *tensor = mdl_checkpoint_find(steps, name);
    if (tensor == NULL)
        fail_msg("%s: no tensor %s", STEPS_FILE, name);
    return tensor->data;
}

static bool have_steps(void)
{
    static bool told;
    if (steps != NULL)
        return true;
    sl_err err;
    if (sl_is_ok(mdl_checkpoint_open_file(STEPS_FILE, &steps, &err)))
        return true;
    if (!told)
        fprintf(stderr, "SKIPPED: %s: %s\n", STEPS_FILE, err.text);
    told = true;
    return false;
}

static int close_steps(void **state)
{
    (void)state;
    mdl_checkpoint_close(steps);
    steps = NULL;
    return 0;
}

static void to_bf16(const float *values, size_t count, uint16_t *out)
{
    for (size_t i = 0; i < count; i++) {
        out[i] = krn_f32_to_bf16(values[i]);
        assert_true(krn_f32_bits(krn_bf16_to_f32(out[i])) == krn_f32_bits(values[i]));
    }
}

TEST(e4m3_codes_have_their_values)
{
    if (!have_steps())
        skip();
    const float *values = data("e4m3.values_of_codes_0_to_126");
    for (uint32_t code = 0; code < 127; code++) {
        assert_true(krn_e4m3_to_f32((uint8_t)code) == values[code]);
        assert_true(krn_e4m3_to_f32((uint8_t)(code | 0x80)) == -values[code]);
        assert_int_equal(krn_f32_to_e4m3(values[code]), code);
        assert_int_equal(krn_f32_to_e4m3(-values[code]), code | 0x80);
    }
}

TEST(q128_gives_the_reference_codes_and_scales)
{
    if (!have_steps())
        skip();
    uint16_t x[8 * 256];
    uint8_t codes[8 * 256];
    float scales[16];
    to_bf16(data("q128.x"), 8 * 256, x);
    EACH_VARIANT
    {
        assert_true(krn_q128(NULL, x, 8, 256, true, codes, scales));
        assert_memory_equal(codes, data("q128.codes"), sizeof codes);
        assert_memory_equal(scales, data("q128.scales"), sizeof scales);
    }
}

TEST(hadamard_gives_the_reference_values)
{
    if (!have_steps())
        skip();
    uint16_t expected[4 * 128];
    to_bf16(data("hadamard.y"), 4 * 128, expected);
    EACH_VARIANT
    {
        uint16_t x[4 * 128];
        to_bf16(data("hadamard.x"), 4 * 128, x);
        for (int i = 0; i < 4; i++)
            krn_hadamard(x + i * 128);
        assert_memory_equal(x, expected, sizeof x);
    }
}

TEST(rope_gives_the_reference_angles_and_rotations)
{
    if (!have_steps())
        skip();
    krn_rope rope;
    krn_rope_config config = {
        .theta = 10000, .factor = 40, .original_positions = 4096, .beta_fast = 32, .beta_slow = 1};
    krn_rope_init(&config, &rope);
    assert_memory_equal(rope.frequency, data("rope.frequencies"), sizeof rope.frequency);
    const float *where = data("rope.position"), *c = data("rope.cos"), *s = data("rope.sin");
    uint32_t positions[10];
    float table[10 * 64];
    for (int i = 0; i < 10; i++)
        positions[i] = (uint32_t)where[i];
    krn_rope_table(NULL, &rope, positions, 10, table);
    uint16_t x[10 * 64], y[10 * 64], expected[10 * 64];
    to_bf16(data("rope.x"), 10 * 64, x);
    for (int i = 0; i < 10; i++) {
        assert_memory_equal(table + i * 64, c + i * 32, 32 * sizeof(float));
        assert_memory_equal(table + i * 64 + 32, s + i * 32, 32 * sizeof(float));
    }
    memcpy(y, x, sizeof y);
    for (int i = 0; i < 10; i++)
        krn_rope_interleaved(y + i * 64, table + i * 64);
    to_bf16(data("rope.interleaved"), 10 * 64, expected);
    assert_memory_equal(y, expected, sizeof y);
    memcpy(y, x, sizeof y);
    for (int i = 0; i < 10; i++)
        krn_rope_half_split(y + i * 64, table + i * 64);
    to_bf16(data("rope.half_split"), 10 * 64, expected);
    assert_memory_equal(y, expected, sizeof y);
}

TEST(select_keeps_the_reference_sets)
{
    if (!have_steps())
        skip();
    const float *scores = data("select.scores"), *kept = data("select.kept");
    EACH_VARIANT
    {
        for (int row = 0; row < 6; row++) {
            uint32_t positions[256];
            assert_true(krn_topk(scores + row * 300, 300, 256, positions));
            for (int i = 0; i < 256; i++)
                assert_int_equal(positions[i], (uint32_t)kept[row * 256 + i]);
        }
    }
}

static void check_route(const float *x, uint32_t rows, const float *bias, const float *experts,
                        const float *weights)
{
    uint16_t gate[16 * 256], input[24 * 256];
    _Alignas(64) static uint8_t memory[32 * 256 * 2];
    krn_matrix matrix;
    float logits[24 * 16], out_weights[24 * 4];
    uint32_t out_experts[24 * 4];
    krn_route_args args = {.experts = 16,
                           .groups = 4,
                           .groups_kept = 2,
                           .chosen = 4,
                           .scaling = 2.5f,
                           .normalise = true};
    assert_true(krn_matrix_bytes(KRN_MATRIX_BF16, 16, 256) <= sizeof memory);
    to_bf16(data("route.gate"), 16 * 256, gate);
    to_bf16(x, rows * 256, input);
    krn_matrix_pack_bf16(gate, 256, 1, 16, 256, memory, &matrix);
    krn_gemm gemm = {.matrix = &matrix, .input = input, .rows = rows, .output = logits};
    krn_linear_f32(NULL, &gemm, 1);
    assert_true(krn_route(NULL, &args, logits, bias, rows, out_experts, out_weights));
    for (uint32_t i = 0; i < rows * 4; i++)
        assert_int_equal(out_experts[i], (uint32_t)experts[i]);
    assert_memory_equal(out_weights, weights, rows * 4 * sizeof(float));
}

TEST(route_gives_the_reference_experts_and_weights)
{
    if (!have_steps())
        skip();
    float equal_bias[16];
    for (int i = 0; i < 16; i++)
        equal_bias[i] = -1.0f;
    EACH_VARIANT
    {
        check_route(data("route.x"), 24, data("route.bias"), data("route.experts"),
                    data("route.weights"));
        /* Row 0 is zero: every score equal, ties go to the lower group and expert. */
        check_route(data("route.x"), 1, equal_bias, data("route.equal_experts"),
                    data("route.equal_weights"));
    }
}

TEST(the_softmax_scale_is_the_spec_value)
{
    assert_true(krn_attention_scale(40.0, 1.0) == 0.13523377886f);
    assert_true(krn_attention_scale(1.0, 1.0) == 0.07216878365f);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(e4m3_codes_have_their_values),
        cmocka_unit_test(q128_gives_the_reference_codes_and_scales),
        cmocka_unit_test(hadamard_gives_the_reference_values),
        cmocka_unit_test(rope_gives_the_reference_angles_and_rotations),
        cmocka_unit_test(select_keeps_the_reference_sets),
        cmocka_unit_test(route_gives_the_reference_experts_and_weights),
        cmocka_unit_test(the_softmax_scale_is_the_spec_value),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    int failed = cmocka_run_group_tests_name(__FILE__, tests, NULL, close_steps);
    return failed != 0 || sl_alloc_live() != 0;
}
