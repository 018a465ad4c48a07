/* The ring of what happened to requests: what is found, in which order, and what is forgotten. */
#include "tests/unit/test.h"

#include "base/trace.h"

typedef struct seen {
    char text[512];
    uint64_t last_us;
} seen;

static void on_event(void *context, const sl_trace_event *event)
{
    seen *s = context;
    size_t at = strlen(s->text);
    snprintf(s->text + at, sizeof(s->text) - at, "%s %s: %s; ", event->id, event->what,
             event->text);
    assert_true(event->time_us >= s->last_us);
    s->last_us = event->time_us;
}

static void check(const sl_trace *trace, const char *id, uint32_t count, const char *text)
{
    seen s = {.text = ""};
    assert_int_equal(sl_trace_find(trace, id, on_event, &s), count);
    assert_string_equal(s.text, text);
}

TEST(a_request_and_its_choices)
{
    sl_trace *trace = sl_trace_create(16);
    check(trace, "r-1", 0, "");
    sl_trace_note(trace, "r-1", "queued", "%u tokens", 5);
    sl_trace_note(trace, "r-10", "queued", "another");
    sl_trace_note(trace, "r-1-1", "queued", "its choice");
    sl_trace_note(trace, "r-1-", "queued", "no choice");
    sl_trace_note(trace, "r-1-x", "queued", "nor this");
    sl_trace_note(trace, "r-1", "done", "%s", "");
    check(trace, "r-1", 3, "r-1 queued: 5 tokens; r-1-1 queued: its choice; r-1 done: ; ");
    check(trace, "r-1-1", 1, "r-1-1 queued: its choice; ");
    check(trace, "r-", 0, "");
    assert_true(sl_trace_since_us(trace) == 0);
    sl_trace_destroy(trace);
}

TEST(the_oldest_are_written_over)
{
    sl_trace *trace = sl_trace_create(3);
    for (int i = 0; i < 5; i++)
        sl_trace_note(trace, i % 2 ? "b" : "a", "n", "%d", i);
    check(trace, "a", 2, "a n: 2; a n: 4; ");
    check(trace, "b", 1, "b n: 3; ");
    assert_true(sl_trace_since_us(trace) > 0);
    for (int i = 0; i < 3; i++)
        sl_trace_note(trace, "b", "n", "%d", i);
    check(trace, "a", 0, "");
    sl_trace_destroy(trace);
}

TEST(too_long)
{
    char id[SL_TRACE_ID_MAX + 1], text[2 * SL_TRACE_TEXT_MAX];
    sl_trace *trace = sl_trace_create(4);
    seen s = {.text = ""};
    memset(id, 'x', sizeof(id));
    memset(text, 'y', sizeof(text));
    id[SL_TRACE_ID_MAX] = text[sizeof(text) - 1] = '\0';
    sl_trace_note(trace, id, "n", "not noted");
    assert_int_equal(sl_trace_find(trace, id, on_event, &s), 0);
    id[SL_TRACE_ID_MAX - 1] = '\0';
    sl_trace_note(trace, id, "n", "%s", text);
    assert_int_equal(sl_trace_find(trace, id, on_event, &s), 1);
    assert_int_equal(strlen(s.text), SL_TRACE_ID_MAX - 1 + 4 + SL_TRACE_TEXT_MAX - 1 + 2);
    sl_trace_note(NULL, id, "n", "nobody listens");
    sl_trace_destroy(trace);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(a_request_and_its_choices),
    cmocka_unit_test(the_oldest_are_written_over),
    cmocka_unit_test(too_long),
};
TEST_MAIN(TESTS)
