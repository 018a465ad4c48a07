/* Other weights in place: the engine is then as one that was created with them, and whatever is
 * wrong leaves the old ones. */
#include "tests/unit/engine/support.h"

#include <sys/stat.h>
#include <unistd.h>

#include "engine/reload.h"

#define COUNT    150u
#define REPEATED 5u /* steps of one shape, which a backend may have recorded */

static const nano_options CHANGED = {.change = "model.layers.1.input_layernorm.weight"};

static eng_model *open_model(nano *files, const nano_options *options)
{
    eng_model *model = NULL;
    sl_err err;
    nano_make(files, options);
    eng_model_options open = {
        .dir = files->dir,
        .threads = 1,
        .backend = rig_cuda() ? ENG_BACKEND_CUDA : ENG_BACKEND_CPU,
        .cuda_object = rig_cuda(),
    };
    assert_ok(eng_model_open(&open, &model, &err), &err);
    return model;
}

static void last_logits(eng_engine *engine, float *out_logits)
{
    uint32_t tokens[COUNT];
    sl_err err;
    stream_fill(3, COUNT, tokens);
    eng_sequence *sequence = sequence_open(engine, COUNT);
    sequence_feed(engine, sequence, tokens, COUNT - REPEATED, 64, NULL);
    for (uint32_t i = COUNT - REPEATED; i < COUNT; i++) {
        const eng_span span = {sequence, tokens + i, 1, ENG_LOGITS_LAST, false, NULL};
        assert_ok(eng_step(engine, &span, 1, NULL, NULL, &err), &err);
    }
    memcpy(out_logits, eng_step_logits(engine, 0), NANO_VOCAB * sizeof(float));
    eng_sequence_publish(sequence, &(eng_prefix){tokens, COUNT, 0});
    eng_sequence_close(sequence);
}

TEST(reloaded_is_as_created)
{
    float before[NANO_VOCAB], after[NANO_VOCAB], expected[NANO_VOCAB];
    sl_err err;
    rig r;
    nano files;
    rig_open(&r);
    eng_model *fresh = open_model(&files, &CHANGED);
    eng_options options = {.kv_bytes = 4 << 20, .rows_max = 64, .threads = 1, .weights_version = 2};
    eng_engine *other = NULL;
    assert_ok(eng_engine_create(fresh, &options, &other, &err), &err);
    last_logits(other, expected);
    const eng_stamp stamp = *eng_engine_stamp(other);
    uint64_t key = eng_engine_sum_key(other);
    eng_engine_destroy(other);
    last_logits(r.engine, before);
    assert_memory_not_equal(before, expected, sizeof(before));
    assert_true(eng_engine_pages_kept(r.engine) > 0);
    assert_string_equal(eng_engine_stamp(r.engine)->weights_version, "1");
    assert_ok(eng_engine_reload(r.engine, r.model, fresh, 2, &err), &err);
    assert_int_equal(eng_engine_pages_kept(r.engine), 0);
    assert_memory_equal(eng_engine_stamp(r.engine), &stamp, sizeof(stamp));
    assert_true(eng_engine_sum_key(r.engine) == key);
    eng_model_close(fresh); /* the old weights */
    nano_remove(&files);
    last_logits(r.engine, after);
    assert_memory_equal(after, expected, sizeof(after));
    rig_close(&r);
}

TEST(refusals_change_nothing)
{
    float before[NANO_VOCAB], after[NANO_VOCAB];
    sl_err err;
    rig r;
    nano files, other_files;
    rig_open(&r);
    eng_model *fresh = open_model(&files, &CHANGED);
    eng_model *other = open_model(&other_files, &(nano_options){.e8m0 = true});
    last_logits(r.engine, before);
    uint32_t kept = eng_engine_pages_kept(r.engine);
    eng_sequence *open = sequence_open(r.engine, 10);
    assert_code(eng_engine_reload(r.engine, r.model, fresh, 2, &err), SL_CONFLICT);
    eng_sequence_close(open);
    assert_code(eng_engine_reload(r.engine, r.model, fresh, 1, &err), SL_INVALID);
    assert_code(eng_engine_reload(r.engine, r.model, other, 2, &err), SL_INCOMPATIBLE);
    assert_text_contains(err.text, "config.json");
    assert_int_equal(eng_engine_pages_kept(r.engine), kept);
    assert_string_equal(eng_engine_stamp(r.engine)->weights_version, "1");
    last_logits(r.engine, after);
    assert_memory_equal(after, before, sizeof(after));
    eng_model_close(fresh);
    eng_model_close(other);
    nano_remove(&files);
    nano_remove(&other_files);
    rig_close(&r);
}

/* The second tier is begun anew for the new weights; when it cannot be, the old ones stay. */
TEST(with_a_second_tier)
{
    char path[] = "/tmp/sluice-reload-XXXXXX";
    float before[NANO_VOCAB], after[NANO_VOCAB];
    eng_tier_stats stats;
    sl_err err;
    rig r;
    nano files;
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    rig_open_options(&r, NULL,
                     &(eng_options){.kv_bytes = 2 << 20,
                                    .rows_max = 64,
                                    .threads = 1,
                                    .tier_path = path,
                                    .tier_bytes = 8 << 20});
    eng_model *fresh = open_model(&files, &CHANGED);
    last_logits(r.engine, before);
    assert_true(eng_engine_tier_stats(r.engine, &stats));
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkdir(path, 0700), 0);
    sl_status status = eng_engine_reload(r.engine, r.model, fresh, 2, &err);
    assert_false(sl_is_ok(status));
    assert_text_contains(err.text, path);
    assert_false(eng_engine_tier_stats(r.engine, &stats)); /* nor for the old ones */
    assert_string_equal(eng_engine_stamp(r.engine)->weights_version, "1");
    last_logits(r.engine, after);
    assert_memory_equal(after, before, sizeof(after));
    assert_int_equal(rmdir(path), 0);
    assert_ok(eng_engine_reload(r.engine, r.model, fresh, 2, &err), &err);
    assert_true(eng_engine_tier_stats(r.engine, &stats));
    assert_int_equal(stats.pages, 0);
    last_logits(r.engine, after);
    assert_memory_not_equal(after, before, sizeof(after));
    eng_model_close(fresh);
    nano_remove(&files);
    rig_close(&r);
    unlink(path);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(reloaded_is_as_created),
    cmocka_unit_test(refusals_change_nothing),
    cmocka_unit_test(with_a_second_tier),
};
TEST_MAIN(TESTS)
