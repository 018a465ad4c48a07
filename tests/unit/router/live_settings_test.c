/* Cluster settings over a router's own options; the ring of events. */
#include "tests/unit/test.h"

#include "router/events.h"
#include "router/live_settings.h"

static sl_err err;

static rtr_options own_options(void)
{
    char *argv[] = {"sluice-router", "--model", "m", "--queue-max", "7"};
    rtr_options options;
    sl_config *config;
    int code;
    memset(&options, 0, sizeof options);
    assert_int_equal(sl_config_parse(&RTR_CONFIG_SPEC, 5, argv, &options, &config, &code),
                     SL_CONFIG_RUN);
    sl_config_destroy(config);
    return options;
}

TEST(settings_lie_over_own_options)
{
    rtr_options own = own_options(), tuned;
    rtr_live_settings settings = {{{0}}}, back;
    uint32_t index;
    sl_buf text, trouble;
    assert_ok(rtr_live_settings_set(&settings, "queue-max", "3", &index, &err), &err);
    assert_ok(rtr_live_settings_set(&settings, "place-timeout", "300ms", &index, &err), &err);
    assert_ok(rtr_live_settings_set(&settings, "self-prefill", "false", &index, &err), &err);
    rtr_live_settings_apply(&settings, &own, &tuned);
    assert_int_equal(tuned.queue_max, 3);
    assert_int_equal(tuned.place_timeout_ns, 300000000);
    assert_false(tuned.self_prefill);
    assert_int_equal(tuned.attempts, own.attempts);
    sl_buf_init(&text, 0);
    sl_buf_init(&trouble, 0);
    rtr_live_settings_write(&text, &settings);
    sl_buf_putc(&text, '\0');
    rtr_live_settings_parse(text.data, &back, &trouble);
    assert_int_equal(trouble.size, 0);
    assert_memory_equal(&settings, &back, sizeof back);
    assert_ok(rtr_live_settings_set(&settings, "queue-max", "", &index, &err), &err);
    rtr_live_settings_apply(&settings, &own, &tuned);
    assert_int_equal(tuned.queue_max, 7);
    sl_buf_fini(&text);
    sl_buf_fini(&trouble);
}

TEST(what_is_wrong_is_refused_or_ignored)
{
    rtr_live_settings settings = {{{0}}};
    uint32_t index = 99;
    sl_buf trouble;
    assert_code(rtr_live_settings_set(&settings, "model", "m", &index, &err), SL_NOT_FOUND);
    assert_text_contains(err.text, "`sluicectl settings get` lists all");
    assert_code(rtr_live_settings_set(&settings, "queue-max", "0", &index, &err), SL_INVALID);
    assert_code(rtr_live_settings_set(&settings, "queue-timeout", "soon", &index, &err),
                SL_INVALID);
    assert_int_equal(index, 99);
    sl_buf_init(&trouble, 0);
    rtr_live_settings_parse("{\"queue-max\":\"9\",\"later\":\"1\",\"attempts\":2}", &settings,
                            &trouble);
    sl_buf_putc(&trouble, '\0');
    assert_text_contains(trouble.data, "no setting \"later\"");
    assert_text_contains(trouble.data, "attempts: want a text");
    sl_buf_clear(&trouble);
    uint32_t set = 0;
    for (uint32_t i = 0; rtr_live_setting(i); i++)
        set += settings.values[i][0] != 0;
    assert_int_equal(set, 1);
    rtr_live_settings_parse("no json", &settings, &trouble);
    assert_true(trouble.size > 0);
    sl_buf_fini(&trouble);
}

/* Each is an option of the router whose value can be told as it is given. */
TEST(every_setting_is_an_option)
{
    rtr_options own = own_options(), back;
    char text[RTR_SETTING_TEXT_MAX], again[RTR_SETTING_TEXT_MAX];
    const sl_option *option;
    uint32_t count = 0;
    for (; (option = rtr_live_setting(count)); count++) {
        sl_config_text(option, &own, text, sizeof text);
        memset(&back, 0xff, sizeof back);
        assert_ok(sl_config_set(option, text, &back, &err), &err);
        sl_config_text(option, &back, again, sizeof again);
        assert_string_equal(text, again);
        if (strcmp(option->name, "ttft-target") == 0)
            assert_string_equal(text, "0s"); /* as help and default say it */
    }
    assert_true(count > 5 && count <= RTR_SETTINGS_MAX);
}

TEST(the_ring_keeps_the_last)
{
    rtr_events_ring *ring = sl_alloc(1, sizeof *ring, "ring");
    assert_null(rtr_events_at(ring, 0));
    for (uint32_t i = 0; i < RTR_EVENTS_MAX + 3; i++)
        rtr_events_add(ring, "member", "n", "%u", i);
    assert_string_equal(rtr_events_at(ring, 0)->text, "3");
    assert_string_equal(rtr_events_at(ring, RTR_EVENTS_MAX - 1)->text, "514");
    assert_null(rtr_events_at(ring, RTR_EVENTS_MAX));
    sl_free(ring);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(settings_lie_over_own_options),
    cmocka_unit_test(what_is_wrong_is_refused_or_ignored),
    cmocka_unit_test(every_setting_is_an_option),
    cmocka_unit_test(the_ring_keeps_the_last),
};
TEST_MAIN(TESTS)
