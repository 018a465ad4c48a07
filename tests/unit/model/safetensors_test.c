/* Safetensors: the demo checkpoint, writing and reading back, and files that must be refused. */
#include <sys/stat.h>

#include "base/json.h"
#include "model/config.h"
#include "model/safetensors.h"
#include "tests/unit/model/support.h"
#include "tests/unit/model/temp_dir.h"

/* A file with this header text, padded to 8 as usual, and so many data bytes. */
static void write_file(const char *name, const char *text, size_t data_bytes)
{
    char header[512];
    uint64_t size = (strlen(text) + 7) & ~(uint64_t)7;
    char zeros[256] = {0};
    sl_buf buf;

    sl_buf_init(&buf, 0);
    snprintf(header, sizeof(header), "%-*s", (int)size, text);
    sl_buf_append(&buf, &size, 8);
    sl_buf_puts(&buf, header);
    sl_buf_append(&buf, zeros, data_bytes);
    write_whole(in_dir(name), buf.data, buf.size);
    sl_buf_fini(&buf);
}

TEST(demo_checkpoint)
{
    mdl_checkpoint *c;
    mdl_shape shape;
    const mdl_tensor *t;
    int64_t expected[2] = {8192, 256};
    sl_err err;

    assert_ok(mdl_shape_load(DEMO_MODEL, &shape, &err), &err);
    assert_ok(mdl_checkpoint_open(DEMO_MODEL, &c, &err), &err);
    assert_int_equal(mdl_checkpoint_count(c), 285 + 371 + 130);
    assert_ok(mdl_checkpoint_check(c, &shape, NULL, &err), &err);
    assert_ok(
        mdl_checkpoint_get(c, "model.embed_tokens.weight", MDL_DTYPE_BF16, 2, expected, &t, &err),
        &err);
    assert_int_equal(t->bytes, 8192 * 256 * 2);
    assert_code(
        mdl_checkpoint_get(c, "model.embed_tokens.weight", MDL_DTYPE_F32, 2, expected, &t, &err),
        SL_CORRUPT);
    assert_text_contains(err.text, "is BF16 [8192, 256], expected F32 [8192, 256]");
    assert_code(mdl_checkpoint_get(c, "no.such", MDL_DTYPE_F32, 0, NULL, &t, &err), SL_NOT_FOUND);
    mdl_checkpoint_close(c);
}

TEST(shape_that_does_not_fit)
{
    mdl_checkpoint *c;
    mdl_shape shape, changed;
    sl_err err;

    assert_ok(mdl_shape_load(DEMO_MODEL, &shape, &err), &err);
    assert_ok(mdl_checkpoint_open(DEMO_MODEL, &c, &err), &err);
    changed = shape;
    changed.layer_count = 5; /* then layer 5 would be the MTP layer, and 6 surplus */
    assert_code(mdl_checkpoint_check(c, &changed, NULL, &err), SL_CORRUPT);
    assert_text_contains(err.text, "model.layers.5.enorm.weight is missing");
    changed = shape;
    changed.mtp_layer_count = 0;
    assert_code(mdl_checkpoint_check(c, &changed, NULL, &err), SL_CORRUPT);
    assert_text_contains(err.text, "is not part of the model");
    changed = shape;
    changed.head_count = 16;
    assert_code(mdl_checkpoint_check(c, &changed, NULL, &err), SL_CORRUPT);
    assert_text_contains(err.text, "q_b_proj.weight has the wrong shape");
    changed = shape;
    changed.quantised = false;
    assert_code(mdl_checkpoint_check(c, &changed, NULL, &err), SL_CORRUPT);
    assert_text_contains(err.text, "has dtype F8_E4M3");
    mdl_checkpoint_close(c);
}

TEST(vector_files_open)
{
    skip_without(SHARED "/demo-model");
    mdl_checkpoint *c;
    sl_err err;

    assert_ok(mdl_checkpoint_open_file(SHARED "/demo-model/vectors/hello.safetensors", &c, &err),
              &err);
    assert_non_null(mdl_checkpoint_find(c, "fp8.logits_last4"));
    assert_null(mdl_checkpoint_find(c, "fp8.logits_last5"));
    mdl_checkpoint_close(c);
}

TEST(write_and_read_back)
{
    float f[6] = {1, 2, 3, 4, 5, 6};
    uint8_t u[3] = {7, 8, 9};
    int64_t n = -5;
    mdl_tensor tensors[] = {
        {.name = "u", .dtype = MDL_DTYPE_U8, .rank = 1, .shape = {3}, .data = u, .bytes = 3},
        {.name = "f\"x",
         .dtype = MDL_DTYPE_F32,
         .rank = 2,
         .shape = {2, 3},
         .data = f,
         .bytes = 24},
        {.name = "n", .dtype = MDL_DTYPE_I64, .rank = 0, .data = &n, .bytes = 8},
        {.name = "empty", .dtype = MDL_DTYPE_F32, .rank = 2, .shape = {0, 4}, .data = f},
    };
    mdl_checkpoint *c;
    const mdl_tensor *t;
    int64_t shape[2] = {2, 3};
    sl_err err;

    assert_ok(mdl_safetensors_write(in_dir("a.safetensors"), tensors, 4, &err), &err);
    assert_ok(mdl_checkpoint_open_file(in_dir("a.safetensors"), &c, &err), &err);
    assert_int_equal(mdl_checkpoint_count(c), 4);
    assert_ok(mdl_checkpoint_get(c, "f\"x", MDL_DTYPE_F32, 2, shape, &t, &err), &err);
    assert_memory_equal(t->data, f, sizeof(f));
    assert_ok(mdl_checkpoint_get(c, "n", MDL_DTYPE_I64, 0, NULL, &t, &err), &err);
    assert_memory_equal(t->data, &n, sizeof(n));
    t = mdl_checkpoint_find(c, "u");
    assert_memory_equal(t->data, u, sizeof(u));
    mdl_checkpoint_close(c);
    tensors[0].bytes = 2;
    assert_code(mdl_safetensors_write(in_dir("a.safetensors"), tensors, 4, &err), SL_INVALID);
    tensors[0].bytes = 3;
    tensors[2].name = "u";
    assert_code(mdl_safetensors_write(in_dir("a.safetensors"), tensors, 4, &err), SL_INVALID);
    assert_code(mdl_safetensors_write("/nonexistent/x", tensors, 2, &err), SL_IO);
}

#define A4 "\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}"
#define B4 "\"b\":{\"dtype\":\"BF16\",\"shape\":[2,2],\"data_offsets\":[8,16]}"

/* The format allows it, real checkpoints hold it (an F32 scale after a one-byte one). */
TEST(unaligned_data_is_copied)
{
    static const char HEADER[] = "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
                                 "\"f\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[1,5]}}";
    mdl_checkpoint *c = NULL;
    sl_err err;

    write_file("a.safetensors", HEADER, 5);
    assert_ok(mdl_checkpoint_open_file(in_dir("a.safetensors"), &c, &err), &err);
    const mdl_tensor *f = mdl_checkpoint_find(c, "f");
    assert_int_equal((uintptr_t)f->data % sizeof(float), 0);
    assert_true(*(const float *)f->data == 0.0f);
    mdl_checkpoint_close(c);
}

TEST(bad_files)
{
    static const struct {
        const char *header;
        size_t data_bytes;
        sl_code code;
        const char *part;
    } CASES[] = {
        {"{" A4 "," B4 "}", 16, SL_OK, ""},
        {"{" A4 "," B4 "}    ", 16, SL_OK, ""},
        {"{\"__metadata__\":{\"x\":\"y\"}," A4 "," B4 "}", 16, SL_OK, ""},
        {"{" A4 "," B4 "}", 15, SL_CORRUPT, "tensor b: ends at byte 16 of 15"},
        {"{" A4 "," B4 "}", 17, SL_CORRUPT, "1 bytes after"},
        {"{" A4 "}", 16, SL_CORRUPT, "8 bytes after"},
        {"{" B4 "}", 16, SL_CORRUPT, "tensor b: follows a gap"},
        {"{" A4 "," A4 "}", 8, SL_CORRUPT, "occurs twice"},
        {"{" A4 ",\"c\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}", 12, SL_CORRUPT,
         "tensor c: overlaps"},
        {"{" A4 ",\"c\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, SL_CORRUPT,
         "overlaps"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]}}", 8, SL_CORRUPT,
         "tensor a: holds 8 bytes, its shape needs 12"},
        {"{\"a\":{\"dtype\":\"F16\",\"shape\":[4],\"data_offsets\":[0,8]}}", 8, SL_UNSUPPORTED,
         "F16"},
        {"{\"a\":{\"shape\":[2],\"data_offsets\":[0,8]}}", 8, SL_CORRUPT, "dtype"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]}}", 8, SL_CORRUPT,
         "shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":\"2\",\"data_offsets\":[0,8]}}", 8, SL_CORRUPT,
         "shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904,4],\"data_offsets\":[0,0]}}", 0,
         SL_CORRUPT, "shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,2],\"data_offsets\":[0,8]}}", 8, SL_CORRUPT,
         "shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}", 8, SL_CORRUPT,
         "data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[-8,0]}}", 8, SL_CORRUPT,
         "data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0]}}", 8, SL_CORRUPT,
         "data_offsets"},
        {"{\"a\":7}", 0, SL_CORRUPT, "dtype"},
        {"{\"\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, SL_CORRUPT, "name"},
        {"[]", 0, SL_CORRUPT, "not a JSON object"},
        {"{", 0, SL_CORRUPT, "header"},
    };

    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
        mdl_checkpoint *c = NULL;
        sl_err err = {0};

        write_file("a.safetensors", CASES[i].header, CASES[i].data_bytes);
        sl_status status = mdl_checkpoint_open_file(in_dir("a.safetensors"), &c, &err);
        if (status.code != CASES[i].code)
            fail_msg("case %zu: %s: %s", i, sl_code_name(status.code), err.text);
        if (!sl_is_ok(status)) {
            assert_text_contains(err.text, CASES[i].part);
            assert_text_contains(err.text, "a.safetensors");
            assert_null(c);
        }
        mdl_checkpoint_close(c);
    }
}

TEST(short_and_strange_files)
{
    mdl_checkpoint *c = NULL;
    uint64_t huge = UINT64_MAX, large = 1000;
    sl_err err;

    write_whole(in_dir("a.safetensors"), "", 0);
    assert_code(mdl_checkpoint_open_file(in_dir("a.safetensors"), &c, &err), SL_CORRUPT);
    write_whole(in_dir("a.safetensors"), "1234567", 7);
    assert_code(mdl_checkpoint_open_file(in_dir("a.safetensors"), &c, &err), SL_CORRUPT);
    write_whole(in_dir("a.safetensors"), &huge, 8);
    assert_code(mdl_checkpoint_open_file(in_dir("a.safetensors"), &c, &err), SL_CORRUPT);
    assert_text_contains(err.text, "header of");
    write_whole(in_dir("a.safetensors"), &large, 8);
    assert_code(mdl_checkpoint_open_file(in_dir("a.safetensors"), &c, &err), SL_CORRUPT);
    assert_code(mdl_checkpoint_open_file(dir, &c, &err), SL_INVALID);
    assert_code(mdl_checkpoint_open_file(in_dir("no"), &c, &err), SL_NOT_FOUND);
    assert_code(mdl_checkpoint_open(in_dir("no"), &c, &err), SL_NOT_FOUND);
    assert_null(c);
}

static sl_status open_index(const char *text, mdl_checkpoint **c, sl_err *err)
{
    write_whole(in_dir("model.safetensors.index.json"), text, strlen(text));
    return mdl_checkpoint_open(dir, c, err);
}

TEST(index_and_files_must_agree)
{
    mdl_checkpoint *c = NULL;
    sl_err err;

    write_file("a.safetensors", "{" A4 "}    ", 8);
    write_file("b.safetensors", "{\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}",
               2);
    assert_ok(
        open_index("{\"weight_map\":{\"a\":\"a.safetensors\",\"b\":\"b.safetensors\"}}", &c, &err),
        &err);
    assert_int_equal(mdl_checkpoint_count(c), 2);
    mdl_checkpoint_close(c);
    c = NULL;
    assert_code(
        open_index("{\"weight_map\":{\"a\":\"b.safetensors\",\"b\":\"a.safetensors\"}}", &c, &err),
        SL_CORRUPT);
    assert_text_contains(err.text, "is not in b.safetensors as the index says");
    assert_code(open_index("{\"weight_map\":{\"c\":\"a.safetensors\"}}", &c, &err), SL_CORRUPT);
    assert_text_contains(err.text, "tensor a is not in the index");
    assert_code(open_index("{\"weight_map\":{\"a\":\"../a.safetensors\"}}", &c, &err), SL_CORRUPT);
    assert_code(open_index("{\"weight_map\":{}}", &c, &err), SL_CORRUPT);
    assert_code(open_index("{}", &c, &err), SL_CORRUPT);
    assert_false(sl_is_ok(open_index("nonsense", &c, &err)));
    /* The same name in two files. */
    write_file("b.safetensors", "{" A4 "}    ", 8);
    assert_code(
        open_index("{\"weight_map\":{\"a\":\"a.safetensors\",\"b\":\"b.safetensors\"}}", &c, &err),
        SL_CORRUPT);
    assert_text_contains(err.text, "is also in");
    /* More in the file than in the index. */
    write_file("a.safetensors", "{" A4 "," B4 "}  ", 16);
    assert_code(open_index("{\"weight_map\":{\"a\":\"a.safetensors\"}}", &c, &err), SL_CORRUPT);
    assert_text_contains(err.text, "tensor b is not in the index");
    assert_null(c);
    unlink(in_dir("model.safetensors.index.json"));
}

TEST(what_no_file_holds_is_absent)
{
    static const struct {
        const char *index, *file;
        bool there;
        const char *part;
    } CASES[] = {
        {"{\"weight_map\":{\"a\":\"a.safetensors\",\"b\":\"c.safetensors\"}}", "c.safetensors",
         false, "which is not there"},
        {"{\"weight_map\":{\"a\":\"a.safetensors\",\"b\":\"a.safetensors\"}}", "a.safetensors",
         true, "which does not hold it"},
    };
    mdl_checkpoint *c;
    const mdl_tensor *t = NULL;
    const char *file;
    bool there;
    sl_err err;

    write_file("a.safetensors", "{" A4 "}    ", 8);
    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
        assert_ok(open_index(CASES[i].index, &c, &err), &err);
        assert_int_equal(mdl_checkpoint_count(c), 1);
        assert_int_equal(mdl_checkpoint_absent_count(c), 1);
        assert_null(mdl_checkpoint_find(c, "b"));
        assert_false(mdl_checkpoint_absent(c, "a", &file, &there));
        assert_false(mdl_checkpoint_absent(c, "no.such", &file, &there));
        assert_true(mdl_checkpoint_absent(c, "b", &file, &there));
        assert_text_contains(file, CASES[i].file);
        assert_true(there == CASES[i].there);
        assert_code(mdl_checkpoint_get(c, "b", MDL_DTYPE_F32, 0, NULL, &t, &err), SL_NOT_FOUND);
        assert_text_contains(err.text, CASES[i].part);
        mdl_checkpoint_close(c);
    }
    /* A file that cannot be opened is not an absent one. */
    unlink(in_dir("b.safetensors"));
    assert_int_equal(mkdir(in_dir("b.safetensors"), 0700), 0);
    assert_code(open_index("{\"weight_map\":{\"b\":\"b.safetensors\"}}", &c, &err), SL_INVALID);
    assert_int_equal(rmdir(in_dir("b.safetensors")), 0);
    unlink(in_dir("model.safetensors.index.json"));
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(demo_checkpoint),
        cmocka_unit_test(shape_that_does_not_fit),
        cmocka_unit_test(vector_files_open),
        cmocka_unit_test(write_and_read_back),
        cmocka_unit_test(unaligned_data_is_copied),
        cmocka_unit_test(bad_files),
        cmocka_unit_test(short_and_strange_files),
        cmocka_unit_test(index_and_files_must_agree),
        cmocka_unit_test(what_no_file_holds_is_absent),
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
