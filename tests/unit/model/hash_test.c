/* The model hash: what its halves cover. */
#include "model/hash.h"
#include "tests/unit/model/support.h"
#include "tests/unit/model/temp_dir.h"

static void identity_of(const mdl_tensor *tensors, size_t count, char *out_text)
{
    mdl_checkpoint *c;
    sl_err err;

    assert_ok(mdl_safetensors_write(in_dir("model.safetensors"), tensors, count, &err), &err);
    assert_ok(mdl_checkpoint_open(dir, &c, &err), &err);
    assert_ok(mdl_identity(c, dir, out_text, &err), &err);
    assert_int_equal(strlen(out_text), MDL_IDENTITY_CHARS);
    mdl_checkpoint_close(c);
}

TEST(identity_covers_headers_and_the_small_files)
{
    float f[2] = {1, 2};
    mdl_tensor t[2] = {
        {.name = "a", .dtype = MDL_DTYPE_F32, .rank = 1, .shape = {1}, .data = &f[0], .bytes = 4},
        {.name = "b", .dtype = MDL_DTYPE_F32, .rank = 1, .shape = {1}, .data = &f[1], .bytes = 4},
    };
    mdl_tensor swapped[2] = {t[1], t[0]};
    char first[MDL_IDENTITY_CHARS + 1], other[MDL_IDENTITY_CHARS + 1];
    mdl_checkpoint *c;
    sl_err err;

    write_whole(in_dir("config.json"), "{}", 2);
    identity_of(t, 2, first);
    identity_of(swapped, 2, other);
    assert_string_equal(first, other);
    f[1] = 3; /* what the weights are is the other half's business */
    identity_of(t, 2, other);
    assert_string_equal(first, other);
    t[1].rank = 0;
    identity_of(t, 2, other);
    assert_string_not_equal(first, other);
    t[1].rank = 1;
    t[1].dtype = MDL_DTYPE_I32;
    identity_of(t, 2, other);
    assert_string_not_equal(first, other);
    t[1].dtype = MDL_DTYPE_F32;
    write_whole(in_dir("config.json"), "{ }", 3);
    identity_of(t, 2, other);
    assert_string_not_equal(first, other);
    write_whole(in_dir("config.json"), "{}", 2);
    write_whole(in_dir("tokenizer.json"), "{}", 2);
    identity_of(t, 2, other);
    assert_string_not_equal(first, other);
    unlink(in_dir("tokenizer.json"));
    identity_of(t, 2, other);
    assert_string_equal(first, other);
    unlink(in_dir("config.json"));
    assert_ok(mdl_checkpoint_open(dir, &c, &err), &err);
    assert_code(mdl_identity(c, dir, other, &err), SL_IO);
    assert_text_contains(err.text, "config.json");
    mdl_checkpoint_close(c);
}

TEST(hash_covers_the_sums_in_any_order)
{
    const char identity[] = "0123456789abcdef0123456789abcdef";
    mdl_tensor_sum sums[3] = {{"c", 1}, {"a", 2}, {"b", 3}};
    mdl_tensor_sum again[3] = {{"b", 3}, {"c", 1}, {"a", 2}};
    char first[MDL_HASH_CHARS + 1], second[MDL_HASH_CHARS + 1];
    sl_err err;

    assert_ok(mdl_model_hash(identity, sums, 3, first, &err), &err);
    assert_int_equal(strlen(first), MDL_HASH_CHARS);
    assert_memory_equal(first, identity, MDL_IDENTITY_CHARS);
    assert_ok(mdl_model_hash(identity, again, 3, second, &err), &err);
    assert_string_equal(first, second);
    again[1].sum++;
    assert_ok(mdl_model_hash(identity, again, 3, second, &err), &err);
    assert_string_not_equal(first, second);
    assert_ok(mdl_model_hash(identity, sums, 2, second, &err), &err);
    assert_string_not_equal(first, second);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(identity_covers_headers_and_the_small_files),
        cmocka_unit_test(hash_covers_the_sums_in_any_order),
    };
    int failed;

    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    failed = cmocka_run_group_tests_name(__FILE__, tests, set_up, tear_down);
    if (failed == 0 && sl_alloc_live() != 0) {
        fprintf(stderr, "%llu allocations are left\n", (unsigned long long)sl_alloc_live());
        failed = 1;
    }
    return failed;
}
