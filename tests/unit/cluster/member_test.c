/* Member records: JSON both ways. No network. */
#include "tests/unit/test.h"

#include "cluster/member.h"

static sl_err err;

#define GOOD                                                                                \
    "{\"name\":\"decode-0\",\"role\":\"decode\",\"control\":\"10.0.0.1:9000\","             \
    "\"kv\":\"10.0.0.1:9001\",\"metrics\":\"10.0.0.1:9002\","                               \
    "\"incarnation\":\"00ff00ff00ff00ff\",\"stamp\":{\"numerics_id\":\"cpu-f32-v1\","       \
    "\"model_hash\":\"abc\",\"weights_version\":\"w1\",\"cache_format\":\"c1\"},"           \
    "\"capacity\":{\"slots\":8,\"pages\":100},\"context_max\":4096,\"state\":\"draining\"," \
    "\"version\":\"0.1.0\"}"
#define SMALL(fields)                                                          \
    "{\"name\":\"a\",\"role\":\"router\",\"control\":\"h:1\",\"incarnation\":" \
    "\"0000000000000001\","                                                    \
    "\"state\":\"ready\"" fields "}"

static sl_status parse(const char *text, clu_member_info *out_info)
{
    return clu_member_parse_json(text, strlen(text), out_info, &err);
}

TEST(round_trip)
{
    clu_member_info info, again;
    assert_ok(parse(GOOD, &info), &err);
    assert_string_equal(info.name, "decode-0");
    assert_string_equal(info.kv, "10.0.0.1:9001");
    assert_true(info.incarnation == 0x00ff00ff00ff00ffull);
    assert_string_equal(info.stamp.numerics_id, "cpu-f32-v1");
    assert_int_equal(info.slots, 8);
    assert_int_equal(info.pages, 100);
    assert_int_equal(info.context_max, 4096);
    assert_int_equal(info.state, CLU_MEMBER_STATE_DRAINING);
    sl_buf buf;
    sl_buf_init(&buf, 0);
    clu_member_write_json(&buf, &info);
    assert_string_equal(buf.data, GOOD);
    assert_ok(parse(buf.data, &again), &err);
    assert_true(clu_member_equal(&info, &again));
    again.pages++;
    assert_false(clu_member_equal(&info, &again));
    sl_buf_fini(&buf);
}

TEST(mark_of_a_secret)
{
    clu_member_info info, again;
    sl_buf buf;
    sl_buf_init(&buf, 0);
    assert_ok(parse(SMALL(""), &info), &err);
    assert_string_equal(info.secret_mark, "");
    assert_ok(parse(SMALL(",\"secret_mark\":\"0123456789abcdef\""), &info), &err);
    clu_member_write_json(&buf, &info);
    assert_ok(parse(buf.data, &again), &err);
    assert_string_equal(again.secret_mark, "0123456789abcdef");
    assert_true(clu_member_equal(&info, &again));
    again.secret_mark[0] = 0;
    assert_false(clu_member_equal(&info, &again));
    assert_code(parse(SMALL(",\"secret_mark\":\"0123456789abcde\""), &info), SL_INVALID);
    assert_text_contains(err.text, "secret_mark: want 16 lower-case hex digits");
    assert_code(parse(SMALL(",\"secret_mark\":\"0123456789ABCDEF\""), &info), SL_INVALID);
    assert_code(parse(SMALL(",\"secret_mark\":\"0123456789abcdef0\""), &info), SL_INVALID);
    assert_code(parse(SMALL(",\"secret_mark\":7"), &info), SL_INVALID);
    sl_buf_fini(&buf);
}

TEST(difference_of_stamps)
{
    clu_member_info a, b;
    sl_buf buf;
    sl_buf_init(&buf, 0);
    assert_ok(parse(GOOD, &a), &err);
    b = a;
    clu_stamp_tell_difference(&a.stamp, &b.stamp, &buf);
    assert_int_equal(buf.size, 0);
    snprintf(b.stamp.weights_version, CLU_TEXT_MAX, "w2");
    snprintf(b.stamp.numerics_id, CLU_TEXT_MAX, "other");
    clu_stamp_tell_difference(&a.stamp, &b.stamp, &buf);
    assert_string_equal(buf.data, "numerics cpu-f32-v1 and other, weights version w1 and w2");
    sl_buf_clear(&buf);
    b = a;
    snprintf(b.stamp.model_hash, CLU_TEXT_MAX, "abd");
    snprintf(b.stamp.cache_format, CLU_TEXT_MAX, "c2");
    clu_stamp_tell_difference(&a.stamp, &b.stamp, &buf);
    assert_string_equal(buf.data, "other models, cache format c1 and c2");
    sl_buf_fini(&buf);
}

/* The largest record that passes the check fits the named limit. */
TEST(largest_fits)
{
    clu_member_info info, again;
    memset(&info, 0, sizeof(info));
    memset(info.name, 'n', sizeof(info.name) - 1);
    memset(info.role, 'r', sizeof(info.role) - 1);
    memset(info.control, 'c', sizeof(info.control) - 1);
    memcpy(info.control + sizeof(info.control) - 3, ":1", 3);
    memcpy(info.kv, info.control, sizeof(info.kv));
    memcpy(info.metrics, info.control, sizeof(info.metrics));
    memset(info.version, '"', sizeof(info.version) - 1); /* escaped: twice the bytes */
    memset(info.stamp.numerics_id, '\\', sizeof(info.stamp.numerics_id) - 1);
    memset(info.stamp.model_hash, '"', sizeof(info.stamp.model_hash) - 1);
    memset(info.stamp.weights_version, '"', sizeof(info.stamp.weights_version) - 1);
    memset(info.stamp.cache_format, '"', sizeof(info.stamp.cache_format) - 1);
    memset(info.secret_mark, 'f', sizeof(info.secret_mark) - 1);
    info.incarnation = UINT64_MAX;
    info.slots = info.pages = info.context_max = UINT32_MAX;
    assert_ok(clu_member_check(&info, &err), &err);
    sl_buf buf;
    sl_buf_init(&buf, CLU_MEMBER_JSON_MAX);
    clu_member_write_json(&buf, &info);
    assert_false(buf.overflow);
    assert_ok(clu_member_parse_json(buf.data, buf.size, &again, &err), &err);
    assert_true(clu_member_equal(&info, &again));
    sl_buf_fini(&buf);
}

TEST(optional_and_unknown)
{
    clu_member_info info;
    assert_ok(parse(SMALL(""), &info), &err);
    assert_string_equal(info.kv, "");
    assert_ok(parse(SMALL(",\"new\":[1,{\"x\":null}],\"capacity\":{\"beds\":true}"), &info), &err);
    assert_int_equal(info.slots, 0);
}

static void refuse(const char *text, const char *part)
{
    clu_member_info info;
    memset(&info, 0x5a, sizeof(info));
    clu_member_info before = info;
    assert_code(parse(text, &info), SL_INVALID);
    assert_text_contains(err.text, part);
    assert_memory_equal(&info, &before, sizeof(info)); /* written only on success */
}

TEST(refused)
{
    refuse("", "member record");
    refuse("[]", "object");
    refuse("{}", "name: missing");
    refuse("{\"name\":7}", "name: want a string, got number");
    refuse("{\"name\":\"a\",\"role\":\"b\",\"control\":\"h:1\",\"state\":\"ready\"}",
           "incarnation: missing");
    refuse(SMALL(",\"kv\":null"), "kv: want a string");
    refuse(SMALL(",\"kv\":\"no port\""), "kv");
    refuse(SMALL(",\"kv\":\"h:99999\""), "kv");
    refuse(SMALL(",\"kv\":\"h:0\""), "kv");
    refuse(SMALL(",\"kv\":\"h:1x\""), "kv");
    refuse(SMALL(",\"kv\":\":1\""), "kv");
    refuse(SMALL(",\"version\":\"a\\u0000b\""), "NUL");
    refuse(SMALL(",\"version\":\"a\\nb\""), "control characters");
    refuse(SMALL(",\"context_max\":-1"), "context_max");
    refuse(SMALL(",\"context_max\":1.5"), "context_max");
    refuse(SMALL(",\"context_max\":4294967296"), "context_max");
    refuse(SMALL(",\"context_max\":\"1\""), "context_max");
    refuse(SMALL(",\"capacity\":[]"), "capacity");
    refuse(SMALL(",\"capacity\":{\"slots\":true}"), "capacity.slots");
    refuse(SMALL(",\"stamp\":{\"model_hash\":1}"), "stamp.model_hash");
    refuse("{\"name\":\"A\",\"role\":\"router\",\"control\":\"h:1\","
           "\"incarnation\":\"0000000000000001\",\"state\":\"ready\"}",
           "name");
    refuse("{\"name\":\"a/b\",\"role\":\"router\",\"control\":\"h:1\","
           "\"incarnation\":\"0000000000000001\",\"state\":\"ready\"}",
           "name");
    refuse("{\"name\":\"a\",\"role\":\"router\",\"control\":\"h:1\",\"incarnation\":\"1\","
           "\"state\":\"ready\"}",
           "16 lower-case hex");
    refuse("{\"name\":\"a\",\"role\":\"router\",\"control\":\"h:1\","
           "\"incarnation\":\"0000000000000001\",\"state\":\"asleep\"}",
           "state");
}

TEST(too_long)
{
    char text[CLU_MEMBER_JSON_MAX + 200];
    memset(text, ' ', sizeof(text));
    memcpy(text, GOOD, strlen(GOOD));
    text[sizeof(text) - 1] = 0;
    refuse(text, "over");
    char name[CLU_NAME_MAX + 1];
    memset(name, 'a', sizeof(name));
    name[CLU_NAME_MAX] = 0;
    assert_false(clu_name_valid(name));
    name[CLU_NAME_MAX - 1] = 0;
    assert_true(clu_name_valid(name));
    snprintf(text, sizeof(text), SMALL(",\"version\":\"%s%s%s\""), name, name, name);
    refuse(text, "version");
}

TEST(keys)
{
    char key[CLU_KEY_MAX];
    assert_ok(clu_member_key("demo", "decode-0", key, &err), &err);
    assert_string_equal(key, "/sluice/v1/demo/members/decode-0");
    assert_ok(clu_member_key("demo", "", key, &err), &err);
    assert_string_equal(key, "/sluice/v1/demo/members/");
    assert_code(clu_member_key("de/mo", "x", key, &err), SL_INVALID);
    assert_code(clu_member_key("", "x", key, &err), SL_INVALID);
    assert_code(clu_member_key("demo", "-x", key, &err), SL_INVALID);
    char field[4];
    assert_code(clu_text_set(field, sizeof(field), "abcd", "field", &err), SL_TOO_LARGE);
    assert_ok(clu_text_set(field, sizeof(field), "abc", "field", &err), &err);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(round_trip),
    cmocka_unit_test(mark_of_a_secret),
    cmocka_unit_test(difference_of_stamps),
    cmocka_unit_test(largest_fits),
    cmocka_unit_test(optional_and_unknown),
    cmocka_unit_test(refused),
    cmocka_unit_test(too_long),
    cmocka_unit_test(keys),
};
TEST_MAIN(TESTS)
