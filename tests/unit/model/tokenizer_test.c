/* The tokenizer: demo vectors, committed vectors, splits, added tokens, decoding, refusals. */
#include <dirent.h>
#include <pthread.h>
#include <time.h>

#include "base/json.h"
#include "model/tokenizer.h"
#include "model/tokenizer_parts.h"
#include "tests/unit/model/support.h"

static mdl_tokenizer *demo;

static mdl_tokenizer *demo_tokenizer(void)
{
    sl_err err;

    if (!demo)
        assert_ok(mdl_tokenizer_load(DEMO_MODEL, &demo, &err), &err);
    return demo;
}

static void encode(const char *text, size_t size, mdl_ids *ids)
{
    sl_err err;

    memset(ids, 0, sizeof(*ids));
    assert_ok(mdl_tokenizer_encode(demo_tokenizer(), text, size, NULL, ids, &err), &err);
}

static void check_round_trip(const char *text, size_t size)
{
    mdl_ids ids;
    sl_buf out;
    sl_err err;

    encode(text, size, &ids);
    sl_buf_init(&out, 0);
    assert_ok(mdl_tokenizer_decode(demo_tokenizer(), ids.data, ids.count, &out, &err), &err);
    assert_int_equal(out.size, size);
    assert_memory_equal(out.data, text, size);
    sl_buf_fini(&out);
    mdl_ids_fini(&ids);
}

static void check_ids(const char *what, const mdl_ids *ids, const sl_json *expected)
{
    assert_int_equal(ids->count, sl_json_count(expected));
    for (size_t i = 0; i < ids->count; i++) {
        int64_t id;

        assert_true(sl_json_i64(sl_json_at(expected, i), &id));
        if (id != ids->data[i])
            fail_msg("%s: token %zu is %d, expected %lld", what, i, ids->data[i], (long long)id);
    }
}

static void check_vector_file(const char *path, const char *text_key, const char *ids_key)
{
    sl_json_doc *doc;
    sl_err err;
    size_t size;
    const char *text;
    mdl_ids ids;

    assert_ok(sl_json_parse_file(path, NULL, &doc, &err), &err);
    text = sl_json_string(sl_json_get(sl_json_root(doc), text_key), &size);
    assert_non_null(text);
    encode(text, size, &ids);
    check_ids(path, &ids, sl_json_get(sl_json_root(doc), ids_key));
    mdl_ids_fini(&ids);
    sl_json_doc_destroy(doc);
}

TEST(demo_vectors)
{
    skip_without(SHARED "/demo-model");
    DIR *dir = opendir(SHARED "/demo-model/vectors");
    struct dirent *entry;
    int count = 0;

    assert_non_null(dir);
    while ((entry = readdir(dir))) {
        char path[512];
        size_t n = strlen(entry->d_name);

        if (n < 5 || strcmp(entry->d_name + n - 5, ".json") != 0)
            continue;
        snprintf(path, sizeof(path), SHARED "/demo-model/vectors/%s", entry->d_name);
        check_vector_file(path, "prompt", "token_ids");
        count++;
    }
    closedir(dir);
    assert_true(count >= 10);
}

/* Made with Hugging Face tokenizers; see the file's first member. */
TEST(committed_vectors)
{
    sl_json_doc *doc;
    sl_err err;
    const sl_json *cases;

    assert_ok(sl_json_parse_file("tests/vectors/tokenizer.json", NULL, &doc, &err), &err);
    cases = sl_json_get(sl_json_root(doc), "cases");
    assert_true(sl_json_count(cases) > 100);
    for (size_t i = 0; i < sl_json_count(cases); i++) {
        size_t size;
        const char *text = sl_json_string(sl_json_at(sl_json_at(cases, i), 0), &size);
        mdl_ids ids;

        encode(text, size, &ids);
        check_ids(text, &ids, sl_json_at(sl_json_at(cases, i), 1));
        mdl_ids_fini(&ids);
        check_round_trip(text, size);
    }
    sl_json_doc_destroy(doc);
}

TEST(round_trips)
{
    static const char *const TEXTS[] = {
        "",
        " ",
        "\n",
        "\r\n\r\n  \t x",
        "1234567 12 1 1.5e-3",
        "毕老师！1 + 1 = 2",
        "ひらがなカタカナ漢字 mixed テスト",
        "👩‍👩‍👧‍👦 🇩🇪 e\xCC\x81",
        "a\xC2\xA0"
        "b\xE1\xA0\x8E"
        "c\xE3\x80\x80 d",
        "<think>x</think><｜User｜>",
        "｜DSML｜ <｜DSML｜invoke name=\"f\">\n",
    };

    for (size_t i = 0; i < sizeof(TEXTS) / sizeof(TEXTS[0]); i++)
        check_round_trip(TEXTS[i], strlen(TEXTS[i]));
    check_round_trip("a\0b", 3);
}

/* Every scalar value decodes to itself, alone and in context. */
TEST(every_code_point)
{
    sl_buf text;

    sl_buf_init(&text, 0);
    for (uint32_t cp = 0; cp <= 0x10FFFF; cp++) {
        char bytes[4];

        if (cp >= 0xD800 && cp < 0xE000)
            continue;
        sl_buf_append(&text, bytes, (size_t)sl_utf8_encode(cp, bytes));
        if (text.size > 60000 || cp == 0x10FFFF) {
            check_round_trip(text.data, text.size);
            sl_buf_clear(&text);
        }
    }
    sl_buf_fini(&text);
}

TEST(added_tokens_in_content_can_be_plain)
{
    const char *text = "<｜User｜>a<think>b</think><｜Assistant｜>";
    size_t user = strlen("<｜User｜>"), content = strlen("a<think>b</think>");
    mdl_range plain = {user, user + content};
    mdl_encode_options options = {.plain = &plain, .plain_count = 1};
    const mdl_special *s = mdl_tokenizer_special(demo_tokenizer());
    mdl_ids ids = {0};
    sl_buf out;
    sl_err err;

    assert_ok(mdl_tokenizer_encode(demo, text, strlen(text), &options, &ids, &err), &err);
    assert_int_equal(ids.data[0], s->user);
    assert_int_equal(ids.data[ids.count - 1], s->assistant);
    for (size_t i = 1; i + 1 < ids.count; i++)
        assert_false(mdl_tokenizer_is_added(demo, ids.data[i]));
    sl_buf_init(&out, 0);
    assert_ok(mdl_tokenizer_decode(demo, ids.data, ids.count, &out, &err), &err);
    assert_string_equal(out.data, text);
    sl_buf_fini(&out);
    /* A range that only touches the token protects it as well; one beside it does not. */
    plain = (mdl_range){1, 2};
    ids.count = 0;
    assert_ok(mdl_tokenizer_encode(demo, text, strlen(text), &options, &ids, &err), &err);
    assert_int_not_equal(ids.data[0], s->user);
    plain = (mdl_range){user, user + 1};
    ids.count = 0;
    assert_ok(mdl_tokenizer_encode(demo, text, strlen(text), &options, &ids, &err), &err);
    assert_int_equal(ids.data[0], s->user);
    mdl_ids_fini(&ids);
}

TEST(look_ups)
{
    const mdl_tokenizer *t = demo_tokenizer();
    const mdl_special *s = mdl_tokenizer_special(t);
    uint32_t mask[8200 / 32 + 1];

    assert_int_equal(s->bos, 0);
    assert_int_equal(s->eos, 1);
    assert_int_equal(s->user, 8179);
    assert_int_equal(s->assistant, 8180);
    assert_int_equal(s->think, 8188);
    assert_int_equal(s->end_think, 8189);
    assert_int_equal(s->dsml, 8190);
    assert_int_equal(mdl_tokenizer_id_end(t), 8192);
    assert_int_equal(mdl_tokenizer_find_added(t, "<think"), MDL_TOKEN_NONE);
    assert_int_equal(mdl_tokenizer_find_added(t, ""), MDL_TOKEN_NONE);
    assert_true(mdl_tokenizer_is_added(t, 0));
    assert_false(mdl_tokenizer_is_added(t, 3));
    assert_false(mdl_tokenizer_is_defined(t, -1));
    assert_false(mdl_tokenizer_is_defined(t, 8192));
    assert_null(mdl_tokenizer_bytes(t, 8192).data);
    mdl_tokenizer_undefined_mask(t, 8200, mask);
    assert_int_equal(mask[0], 0);
    assert_int_equal(mask[8191 / 32], 0);
    assert_int_equal(mask[8192 / 32], 0xFF);
}

TEST(limits_and_invalid_text)
{
    const mdl_tokenizer *t = demo_tokenizer();
    mdl_encode_options options = {.id_max = 2};
    mdl_ids ids = {0};
    sl_err err;

    mdl_ids_push(&ids, 7);
    assert_code(mdl_tokenizer_encode(t, "ab\xFFx", 4, NULL, &ids, &err), SL_INVALID);
    assert_text_contains(err.text, "byte 2");
    assert_code(mdl_tokenizer_encode(t, "\xE6\xAF", 2, NULL, &ids, &err), SL_INVALID);
    assert_code(mdl_tokenizer_encode(t, "\xED\xA0\x80", 3, NULL, &ids, &err), SL_INVALID);
    assert_code(mdl_tokenizer_encode(t, "a b c d e f", 11, &options, &ids, &err), SL_TOO_LARGE);
    assert_code(mdl_tokenizer_encode(t, "<think><think><think>", 21, &options, &ids, &err),
                SL_TOO_LARGE);
    assert_int_equal(ids.count, 1); /* as before */
    assert_ok(mdl_tokenizer_encode(t, "<think><think>", 14, &options, &ids, &err), &err);
    assert_int_equal(ids.count, 3);
    mdl_ids_fini(&ids);
}

static void check_decode(const int32_t *ids, size_t count, const char *expected)
{
    sl_buf whole, streamed;
    mdl_detok detok;
    sl_err err;

    sl_buf_init(&whole, 0);
    sl_buf_init(&streamed, 0);
    assert_ok(mdl_tokenizer_decode(demo_tokenizer(), ids, count, &whole, &err), &err);
    mdl_detok_init(&detok, demo_tokenizer());
    for (size_t i = 0; i < count; i++) {
        size_t before = streamed.size;

        mdl_detok_push(&detok, ids[i], &streamed);
        assert_true(sl_utf8_valid(streamed.data + before, streamed.size - before));
    }
    mdl_detok_finish(&detok, &streamed);
    assert_string_equal(whole.data, expected);
    assert_string_equal(streamed.data, expected);
    sl_buf_fini(&streamed);
    sl_buf_fini(&whole);
}

/* The token of a single byte. */
static int32_t byte_id(uint8_t byte)
{
    for (int32_t id = 0; id < mdl_tokenizer_id_end(demo_tokenizer()); id++) {
        sl_span span = mdl_tokenizer_bytes(demo, id);

        if (span.size == 1 && span.data[0] == byte && !mdl_tokenizer_is_added(demo, id))
            return id;
    }
    fail_msg("no token for byte %u", byte);
    return -1;
}

TEST(decoding_of_broken_utf8)
{
    static const struct {
        const char *bytes, *expected;
    } CASES[] = {
        {"\xE6\xAF\x95", "毕"},
        {"\xE6\xAF", "\uFFFD"},
        {"\xE6\xAF!", "\uFFFD!"},
        {"\xE6", "\uFFFD"},
        {"\xFF\xFE", "\uFFFD\uFFFD"},
        {"\x80\x80", "\uFFFD\uFFFD"},
        {"\xF0\x9F\x98\xE6\xAF\x95", "\uFFFD毕"},
        {"\xED\xA0\x80", "\uFFFD\uFFFD\uFFFD"},
        {"\xF0\x9F\x98\x80", "😀"},
        {"\xC0\xAF", "\uFFFD\uFFFD"},
    };

    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
        int32_t ids[8];
        size_t n = strlen(CASES[i].bytes);

        for (size_t k = 0; k < n; k++)
            ids[k] = byte_id((uint8_t)CASES[i].bytes[k]);
        check_decode(ids, n, CASES[i].expected);
    }
    int32_t bad[] = {3, 8192};
    sl_buf out;
    sl_err err;

    sl_buf_init(&out, 0);
    assert_code(mdl_tokenizer_decode(demo, bad, 2, &out, &err), SL_INVALID);
    assert_text_contains(err.text, "8192");
    assert_int_equal(out.size, 0);
    sl_buf_fini(&out);
}

/* The definition, as slow as it is. */
static void merge_plainly(const mdl_tokenizer *t, const char *text, size_t size, mdl_ids *ids)
{
    for (size_t i = 0; i < size; i++)
        mdl_ids_push(ids, t->byte_ids[(uint8_t)text[i]]);
    for (;;) {
        const mdl_merge *best = NULL;
        size_t at = 0;

        for (size_t i = 0; i + 1 < ids->count; i++) {
            const mdl_merge *m = mdl_merge_find(t, ids->data[i], ids->data[i + 1]);

            if (m && (!best || m->rank < best->rank)) {
                best = m;
                at = i;
            }
        }
        if (!best)
            return;
        ids->data[at] = best->id;
        ids->count--;
        memmove(&ids->data[at + 1], &ids->data[at + 2], (ids->count - at - 1) * sizeof(*ids->data));
    }
}

/* Long pieces go through a heap, short ones through scanning. */
TEST(pieces_of_all_sizes_merge_as_defined)
{
    static const char *const ALPHABETS[] = {"etaoinshrdlu ", "ae", "a", "0 1", "\n\t ="};
    uint64_t random = 12345;
    char text[700];

    for (size_t round = 0; round < 400; round++) {
        const char *alphabet = ALPHABETS[round % 5];
        size_t n = 1 + round * 3 / 2;
        mdl_ids got = {0}, expected = {0};

        for (size_t i = 0; i < n; i++) {
            random = random * 6364136223846793005ull + 1442695040888963407ull;
            text[i] = alphabet[(random >> 33) % strlen(alphabet)];
        }
        mdl_bpe_encode(demo_tokenizer(), (const uint8_t *)text, n, &got);
        merge_plainly(demo, text, n, &expected);
        assert_int_equal(got.count, expected.count);
        assert_memory_equal(got.data, expected.data, got.count * sizeof(*got.data));
        mdl_ids_fini(&got);
        mdl_ids_fini(&expected);
    }
}

static void *encode_often(void *context)
{
    const char *text = context;

    for (int i = 0; i < 20; i++) {
        mdl_ids ids = {0};
        sl_err err;
        sl_status status = mdl_tokenizer_encode(demo, text, strlen(text), NULL, &ids, &err);
        bool good = sl_is_ok(status) && ids.count > 0;

        mdl_ids_fini(&ids);
        if (!good)
            return context;
    }
    return NULL;
}

TEST(threads_share_one_tokenizer)
{
    static char texts[4][32] = {"Hello, world 123", "<think>x</think>", "毕老师！", "a  b\n\nc"};
    pthread_t threads[4];

    demo_tokenizer();
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, encode_often, texts[i]), 0);
    for (int i = 0; i < 4; i++) {
        void *failed;

        assert_int_equal(pthread_join(threads[i], &failed), 0);
        assert_null(failed);
    }
}

/* No piece is so odd that encoding takes long: a megabyte of one kind each. */
TEST(megabytes_of_one_kind)
{
    static const char *const UNITS[] = {"a",      " ",    "\n",  "1",  "\t",   "!",   "<",   "毕",
                                        "\u3000", "\x01", " \n", "｜", "the ", "<｜", "ab1 "};
    sl_buf text;

    sl_buf_init(&text, 0);
    for (size_t i = 0; i < sizeof(UNITS) / sizeof(UNITS[0]); i++) {
        mdl_ids ids;
        struct timespec begin, end;

        sl_buf_clear(&text);
        while (text.size < (size_t)1 << 20)
            sl_buf_puts(&text, UNITS[i]);
        clock_gettime(CLOCK_MONOTONIC, &begin);
        encode(text.data, text.size, &ids);
        clock_gettime(CLOCK_MONOTONIC, &end);
        fprintf(stderr, "1 MiB of unit %zu: %zu tokens, %.0f ms\n", i, ids.count,
                (double)(end.tv_sec - begin.tv_sec) * 1e3 +
                    (double)(end.tv_nsec - begin.tv_nsec) * 1e-6);
        mdl_ids_fini(&ids);
    }
    sl_buf_fini(&text);
}

/* --- refusals --- */

static void check_refused(const char *from, const char *to, sl_code code, const char *part)
{
    char path[] = "/tmp/sluice-tokenizer-XXXXXX";
    int fd = mkstemp(path);
    mdl_tokenizer *t = NULL;
    sl_buf text, changed;
    const char *at;
    sl_err err;

    assert_true(fd >= 0);
    close(fd);
    read_whole(DEMO_MODEL "/tokenizer.json", &text);
    sl_buf_init(&changed, 0);
    at = strstr(text.data, from);
    if (!at)
        fail_msg("\"%s\" is not in tokenizer.json", from);
    sl_buf_append(&changed, text.data, (size_t)(at - text.data));
    sl_buf_puts(&changed, to);
    sl_buf_puts(&changed, at + strlen(from));
    write_whole(path, changed.data, changed.size);
    assert_code(mdl_tokenizer_load(path, &t, &err), code);
    assert_text_contains(err.text, part);
    assert_null(t);
    unlink(path);
    sl_buf_fini(&changed);
    sl_buf_fini(&text);
}

TEST(refusals)
{
    mdl_tokenizer *t = NULL;
    sl_err err;

    check_refused("\"type\": \"BPE\"", "\"type\": \"Unigram\"", SL_UNSUPPORTED, "BPE");
    check_refused("\"byte_fallback\": false", "\"byte_fallback\": true", SL_UNSUPPORTED,
                  "byte_fallback");
    check_refused("\"ignore_merges\": false", "\"ignore_merges\": true", SL_UNSUPPORTED,
                  "ignore_merges");
    check_refused("\"content\": \"｜DSML｜\"", "\"content\": \"｜XXXX｜\"", SL_UNSUPPORTED, "DSML");
    check_refused("\"content\": \"<think>\"", "\"content\": \"<thonk>\"", SL_UNSUPPORTED,
                  "<think>");
    check_refused("\"normalizers\": []", "\"normalizers\": [{\"type\": \"NFC\"}]", SL_UNSUPPORTED,
                  "normalizer");
    check_refused("\"behavior\": \"Isolated\"", "\"behavior\": \"Removed\"", SL_UNSUPPORTED,
                  "Isolated");
    check_refused("\\\\p{N}{1,3}", "\\\\p{Nonsense}", SL_INVALID, "pattern");
    check_refused("\\\\p{N}{1,3}", "[\\\\S]", SL_UNSUPPORTED, "\\S");
    check_refused("\"lstrip\": false", "\"lstrip\": true", SL_UNSUPPORTED, "lstrip");
    check_refused("\"use_regex\": false", "\"use_regex\": true", SL_UNSUPPORTED, "ByteLevel");
    check_refused("\"!\": 3,", "\"!\": 4,", SL_INVALID, "twice");
    check_refused("\"!\": 3,", "", SL_INVALID, "byte 0x21");
    check_refused("\"!\": 3,", "\"!\": -3,", SL_INVALID, "out of range");
    check_refused("\"version\"", "version", SL_INVALID, "line");
    assert_false(sl_is_ok(mdl_tokenizer_load("/nonexistent", &t, &err)));
    assert_null(t);
}

static int tear_down(void **state)
{
    mdl_tokenizer_destroy(demo);
    demo = NULL;
    return 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(demo_vectors),
        cmocka_unit_test(committed_vectors),
        cmocka_unit_test(round_trips),
        cmocka_unit_test(every_code_point),
        cmocka_unit_test(added_tokens_in_content_can_be_plain),
        cmocka_unit_test(look_ups),
        cmocka_unit_test(limits_and_invalid_text),
        cmocka_unit_test(decoding_of_broken_utf8),
        cmocka_unit_test(pieces_of_all_sizes_merge_as_defined),
        cmocka_unit_test(threads_share_one_tokenizer),
        cmocka_unit_test(megabytes_of_one_kind),
        cmocka_unit_test(refusals),
    };
    int failed;

    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    failed = cmocka_run_group_tests_name(__FILE__, tests, NULL, tear_down);
    if (failed == 0 && sl_alloc_live() != 0) {
        fprintf(stderr, "%llu allocations are left\n", (unsigned long long)sl_alloc_live());
        failed = 1;
    }
    return failed;
}
