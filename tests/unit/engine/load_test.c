/* Loading: checkpoints in several files of which some are not there, layers alone, what the model
 * hash covers, and files that must be refused by tensor and file name. */
#include "tests/unit/engine/support.h"

#include "engine/model.h"
#include "engine/tap.h"
#include "engine/tensor_read.h"

#define PARTS 5 /* embedding and head, layers 0..2, the MTP layer */

/* --- a nano checkpoint in the published form: an index and a file a layer --- */

typedef struct split {
    char dir[64];
} split;

static const char *in_dir(const char *dir, const char *name)
{
    static char path[2][160];
    static unsigned next;
    char *p = path[next++ % 2];
    snprintf(p, sizeof(path[0]), "%s/%s", dir, name);
    return p;
}

static const char *part_name(int part)
{
    static char name[2][64];
    static unsigned next;
    char *p = name[next++ % 2];
    snprintf(p, sizeof(name[0]), "model-%05d-of-%06d.safetensors", part + 1, PARTS);
    return p;
}

static int part_of(const char *tensor)
{
    int layer;
    return sscanf(tensor, "model.layers.%d.", &layer) == 1 ? layer + 1 : 0;
}

static void copy_file(const char *from, const char *to)
{
    static char block[65536];
    FILE *in = fopen(from, "r"), *out = fopen(to, "w");
    size_t size;
    assert_true(in && out);
    while ((size = fread(block, 1, sizeof(block), in)) > 0)
        assert_int_equal(fwrite(block, 1, size, out), size);
    fclose(in);
    assert_int_equal(fclose(out), 0);
}

static void split_write_part(const split *s, const mdl_checkpoint *c, int part, FILE *index)
{
    static mdl_tensor tensors[NANO_TENSORS_MAX];
    size_t count = 0;
    sl_err err;
    for (size_t i = 0; i < mdl_checkpoint_count(c); i++) {
        const mdl_tensor *t = mdl_checkpoint_at(c, i);
        if (part_of(t->name) != part)
            continue;
        tensors[count++] = *t;
        fprintf(index, "%s\"%s\":\"%s\"", part || count > 1 ? "," : "", t->name, part_name(part));
    }
    assert_ok(mdl_safetensors_write(in_dir(s->dir, part_name(part)), tensors, count, &err), &err);
}

static void split_make(split *s, const nano_options *options)
{
    nano files;
    mdl_checkpoint *c = NULL;
    sl_err err;
    nano_make(&files, options);
    snprintf(s->dir, sizeof(s->dir), "/tmp/sluice-split-XXXXXX");
    assert_non_null(mkdtemp(s->dir));
    copy_file(in_dir(files.dir, "config.json"), in_dir(s->dir, "config.json"));
    assert_ok(mdl_checkpoint_open(files.dir, &c, &err), &err);
    FILE *index = fopen(in_dir(s->dir, "model.safetensors.index.json"), "w");
    assert_non_null(index);
    fprintf(index, "{\"weight_map\":{");
    for (int part = 0; part < PARTS; part++)
        split_write_part(s, c, part, index);
    fprintf(index, "}}");
    assert_int_equal(fclose(index), 0);
    mdl_checkpoint_close(c);
    nano_remove(&files);
}

static void split_remove(const split *s)
{
    unlink(in_dir(s->dir, "config.json"));
    unlink(in_dir(s->dir, "model.safetensors.index.json"));
    for (int part = 0; part < PARTS; part++)
        unlink(in_dir(s->dir, part_name(part)));
    assert_int_equal(rmdir(s->dir), 0);
}

static void hash_of(const char *dir, int first, int end, char *out_hash)
{
    eng_model *model = NULL;
    sl_err err;
    eng_model_options options = {.dir = dir, .layer_first = first, .layer_end = end, .threads = 2};
    assert_ok(eng_model_open(&options, &model, &err), &err);
    memcpy(out_hash, model->hash, sizeof(model->hash));
    assert_int_equal(strlen(out_hash), MDL_HASH_CHARS);
    eng_model_close(model);
}

/* --- tests --- */

TEST(layers_load_without_the_other_files)
{
    static const int RANGES[][2] = {{0, 1}, {1, 3}, {2, 3}, {3, 4}};
    for (size_t i = 0; i < sizeof(RANGES) / sizeof(RANGES[0]); i++) {
        split s;
        char whole[65], alone[65], again[65];
        eng_model *model = NULL;
        sl_err err;
        split_make(&s, NULL);
        hash_of(s.dir, RANGES[i][0], RANGES[i][1], again);
        hash_of(s.dir, 0, 0, whole);
        assert_string_not_equal(again, whole);
        for (int part = 0; part < PARTS; part++)
            if (part - 1 < RANGES[i][0] || part - 1 >= RANGES[i][1])
                unlink(in_dir(s.dir, part_name(part)));
        hash_of(s.dir, RANGES[i][0], RANGES[i][1], alone);
        /* Other headers are there, but the same weights were loaded. */
        assert_memory_not_equal(alone, again, MDL_IDENTITY_CHARS);
        assert_string_equal(alone + MDL_IDENTITY_CHARS, again + MDL_IDENTITY_CHARS);
        eng_model_options options = {.dir = s.dir, .threads = 1};
        assert_code(eng_model_open(&options, &model, &err), SL_CORRUPT);
        assert_text_contains(err.text, "is missing");
        assert_text_contains(err.text, RANGES[i][0] == 0 ? part_name(2) : part_name(1));
        assert_text_contains(err.text, "is not there");
        split_remove(&s);
    }
}

TEST(a_missing_file_names_itself_and_a_tensor)
{
    split s;
    eng_model *model = NULL;
    sl_err err;
    split_make(&s, NULL);
    unlink(in_dir(s.dir, part_name(2)));
    eng_model_options options = {.dir = s.dir, .layer_first = 1, .layer_end = 2, .threads = 1};
    assert_code(eng_model_open(&options, &model, &err), SL_CORRUPT);
    assert_text_contains(err.text, "1 problems: model.layers.1.input_layernorm.weight is missing");
    assert_text_contains(err.text, "model-00003-of-000005.safetensors");
    split_remove(&s);
}

TEST(a_file_cut_short_names_itself_and_a_tensor)
{
    split s;
    eng_model *model = NULL;
    sl_err err;
    struct stat st;
    split_make(&s, NULL);
    assert_int_equal(stat(in_dir(s.dir, part_name(3)), &st), 0);
    assert_int_equal(truncate(in_dir(s.dir, part_name(3)), st.st_size - 1), 0);
    eng_model_options options = {.dir = s.dir, .threads = 1};
    assert_code(eng_model_open(&options, &model, &err), SL_CORRUPT);
    assert_text_contains(err.text, part_name(3));
    assert_text_contains(err.text, "tensor model.layers.2.");
    assert_text_contains(err.text, "cut short");
    split_remove(&s);
}

/* A signal (SIGBUS) would end a node that serves. */
TEST(a_file_cut_short_later_is_an_error_too)
{
    nano files;
    mdl_checkpoint *c = NULL;
    eng_tensor_read read;
    sl_err err;
    nano_make(&files, NULL);
    assert_ok(mdl_checkpoint_open(files.dir, &c, &err), &err);
    const mdl_tensor *last = mdl_checkpoint_at(c, mdl_checkpoint_count(c) - 1);
    assert_true(eng_tensor_look(last, ENG_VALUES_WEIGHTS, &read));
    assert_string_equal(read.fault, "");
    assert_int_equal(truncate(in_dir(files.dir, "model.safetensors"), 4096), 0);
    if (eng_tensor_look(last, ENG_VALUES_WEIGHTS, &read))
        fail_msg("read what is not there");
    assert_text_contains(read.fault, "cut short");
    mdl_checkpoint_close(c);
    nano_remove(&files);
}

TEST(hash_covers_every_weight_and_no_file_borders)
{
    split s;
    nano files;
    char whole[65], other[65];
    split_make(&s, NULL);
    nano_make(&files, NULL);
    hash_of(s.dir, 0, 0, whole);
    hash_of(files.dir, 0, 0, other);
    assert_string_equal(whole, other);
    split_remove(&s);
    /* One bit of one byte somewhere in the data, 40 times. */
    struct stat st;
    const char *path = in_dir(files.dir, "model.safetensors");
    assert_int_equal(stat(path, &st), 0);
    FILE *file = fopen(path, "r+");
    assert_non_null(file);
    for (uint32_t i = 0; i < 40; i++) {
        long at = (long)(sl_keyed_uniform(11, i, 1) * (double)(st.st_size / 2)) + st.st_size / 2;
        eng_model *model = NULL;
        sl_err err;
        fseek(file, at, SEEK_SET);
        int byte = fgetc(file);
        fseek(file, at, SEEK_SET);
        fputc(byte ^ 1, file);
        fflush(file);
        eng_model_options options = {.dir = files.dir, .threads = 1};
        if (sl_is_ok(eng_model_open(&options, &model, &err))) { /* else: not a number now */
            assert_memory_equal(model->hash, whole, MDL_IDENTITY_CHARS);
            assert_string_not_equal(model->hash, whole);
        }
        eng_model_close(model);
        fseek(file, at, SEEK_SET);
        fputc(byte, file);
        fflush(file);
    }
    fclose(file);
    hash_of(files.dir, 0, 0, other);
    assert_string_equal(whole, other);
    nano_remove(&files);
}

TEST(scales_come_as_f32_or_as_exponent_bytes)
{
    nano files;
    char hashes[2][65];
    const nano_options OPTIONS[2] = {{.e8m0 = true}, {.e8m0 = true, .scales_u8 = true}};
    for (int i = 0; i < 2; i++) {
        nano_make(&files, &OPTIONS[i]);
        hash_of(files.dir, 0, 0, hashes[i]);
        nano_remove(&files);
    }
    /* The same bytes under another type. */
    assert_memory_not_equal(hashes[0], hashes[1], MDL_IDENTITY_CHARS);
    assert_string_equal(hashes[0] + MDL_IDENTITY_CHARS, hashes[1] + MDL_IDENTITY_CHARS);
}

#define EXPERT "model.layers.2.mlp.experts.5.up_proj.weight"
#define KV_B   "model.layers.1.self_attn.kv_b_proj.weight"

TEST(bad_tensors_are_named_with_their_file)
{
    static const struct {
        nano_options nano;
        const char *parts[2];
    } CASES[] = {
        {{.reshape = EXPERT "_scale_inv"}, {EXPERT "_scale_inv has the wrong shape", "[1, 1]"}},
        {{.reshape = KV_B "_scale_inv"}, {KV_B "_scale_inv has the wrong shape", "[4, 4]"}},
        {{.retype = EXPERT, .type = MDL_DTYPE_U8}, {EXPERT " has dtype U8", "expected F8_E4M3"}},
        {{.retype = EXPERT "_scale_inv", .type = MDL_DTYPE_I32},
         {EXPERT "_scale_inv has dtype I32", "expected F32, F8_E8M0 or U8"}},
        {{.e8m0 = true, .poison = EXPERT "_scale_inv"},
         {EXPERT "_scale_inv", "scale 0 is 255, which is NaN"}},
        {{.e8m0 = true, .poison = KV_B "_scale_inv"}, {KV_B "_scale_inv", "is 255"}},
        {{.bad_scale = EXPERT "_scale_inv"},
         {EXPERT "_scale_inv", "scale 0 is 3, not a power of two"}},
        {{.poison = EXPERT}, {EXPERT, "element 0 is NaN"}},
        {{.change = "model.layers.3.embed_tokens.weight"},
         {"model.layers.3.embed_tokens.weight", "differs from model.embed_tokens.weight"}},
        {{.change = "model.layers.3.shared_head.head.weight"},
         {"model.layers.3.shared_head.head.weight", "differs from lm_head.weight"}},
    };
    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
        nano files;
        eng_model *model = NULL;
        sl_err err = {0};
        nano_make(&files, &CASES[i].nano);
        eng_model_options options = {.dir = files.dir, .threads = 1};
        assert_code(eng_model_open(&options, &model, &err), SL_CORRUPT);
        assert_text_contains(err.text, CASES[i].parts[0]);
        assert_text_contains(err.text, CASES[i].parts[1]);
        assert_text_contains(err.text, "model.safetensors");
        assert_null(model);
        nano_remove(&files);
    }
}

static void note_progress(void *context, const eng_load_progress *progress)
{
    *(eng_load_progress *)context = *progress;
}

TEST(progress_ends_with_everything)
{
    nano files;
    eng_model *model = NULL;
    eng_load_progress last = {0};
    sl_err err;
    struct stat st;
    nano_make(&files, &(nano_options){.no_copies = true});
    assert_int_equal(stat(in_dir(files.dir, "model.safetensors"), &st), 0);
    eng_model_options options = {
        .dir = files.dir, .threads = 2, .progress = note_progress, .progress_context = &last};
    assert_ok(eng_model_open(&options, &model, &err), &err);
    assert_int_equal(last.bytes_done, last.bytes_total);
    assert_true(last.bytes_total <= (uint64_t)st.st_size); /* all but the header */
    assert_true(last.bytes_total > (uint64_t)st.st_size - (256 << 10));
    eng_model_close(model);
    nano_remove(&files);
}

/* --- the MTP layer alone --- */

#define ROWS 20

typedef struct mtp_log {
    uint16_t x[ROWS * NANO_HIDDEN], res[ROWS * NANO_HIDDEN], normed[ROWS * NANO_HIDDEN];
} mtp_log;

static void note_layer(void *context, const eng_tap_layer *shown)
{
    mtp_log *log = context;
    if (shown->layer != NANO_LAYERS)
        return;
    memcpy(log->x, shown->x, shown->row_count * NANO_HIDDEN * 2);
    memcpy(log->res, shown->res, shown->row_count * NANO_HIDDEN * 2);
}

static void note_normed(void *context, const uint32_t *positions, uint32_t row_count, const void *h)
{
    memcpy(((mtp_log *)context)->normed, h, row_count * NANO_HIDDEN * 2);
}

static void ignore_draft(void *context, const uint32_t *positions, uint32_t row_count,
                         const float *logits)
{
}

TEST(the_mtp_layer_alone_equals_the_step)
{
    uint32_t tokens[ROWS];
    static uint16_t next[ROWS * NANO_HIDDEN];
    sl_err err;
    rig r;
    rig_open(&r);
    stream_fill(6, ROWS, tokens);
    mtp_log *log = sl_alloc(2, sizeof(*log), "layer logs"), *alone = log + 1;
    eng_tap tap = {log, note_layer, note_normed, ignore_draft};
    eng_engine_set_tap(r.engine, &tap);
    eng_sequence *sequence = sequence_open(r.engine, ROWS);
    sequence_feed(r.engine, sequence, tokens, ROWS, ROWS, NULL);
    eng_sequence_close(sequence);
    for (uint32_t i = 0; i + 1 < ROWS; i++)
        memcpy(next + i * NANO_HIDDEN,
               (const uint16_t *)r.model->embed + tokens[i + 1] * NANO_HIDDEN, NANO_HIDDEN * 2);
    eng_model_options options = {
        .dir = r.files.dir, .layer_first = NANO_LAYERS, .layer_end = NANO_LAYERS + 1};
    eng_model *model = NULL;
    eng_engine *engine = NULL;
    assert_ok(eng_model_open(&options, &model, &err), &err);
    assert_null(model->embed);
    assert_ok(eng_engine_create(model, &(eng_options){.kv_bytes = 1 << 20}, &engine, &err), &err);
    tap.context = alone;
    eng_engine_set_tap(engine, &tap);
    sequence = sequence_open(engine, ROWS);
    assert_ok(eng_step_layers(engine, sequence, next, log->normed, ROWS - 1, &err), &err);
    assert_memory_equal(alone->x, log->x, (ROWS - 1) * NANO_HIDDEN * 2);
    assert_memory_equal(alone->res, log->res, (ROWS - 1) * NANO_HIDDEN * 2);
    eng_sequence_close(sequence);
    eng_engine_destroy(engine);
    eng_model_close(model);
    sl_free(log);
    rig_close(&r);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(layers_load_without_the_other_files),
    cmocka_unit_test(a_missing_file_names_itself_and_a_tensor),
    cmocka_unit_test(a_file_cut_short_names_itself_and_a_tensor),
    cmocka_unit_test(a_file_cut_short_later_is_an_error_too),
    cmocka_unit_test(hash_covers_every_weight_and_no_file_borders),
    cmocka_unit_test(scales_come_as_f32_or_as_exponent_bytes),
    cmocka_unit_test(bad_tensors_are_named_with_their_file),
    cmocka_unit_test(progress_ends_with_everything),
    cmocka_unit_test(the_mtp_layer_alone_equals_the_step),
};
TEST_MAIN(TESTS)
