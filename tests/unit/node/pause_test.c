/* The state machine of a pause, by scripts: each line is an event and the whole of what follows. */
#include "tests/unit/test.h"

#include "base/rng.h"
#include "node/pause.h"

#define MS(n) ((sl_time_ns)(n)*SL_MS_NS)

typedef struct script {
    nod_pause pause;
    sl_time_ns now;
} script;

static const char *const STATES[NOD_PAUSE_STATE_COUNT] = {"off", "waiting", "stopping", "on"};

static void render(const script *s, nod_pause_outcome out, char *text, size_t size)
{
    static const char *const ACTIONS[] = {"rest", "go", "tell", "reply", "fail", "expired"};
    size_t at = 0;
    text[0] = 0;
    for (int i = 0; i < 6; i++)
        if (out.actions & 1u << i)
            at += (size_t)snprintf(text + at, size - at, "%s ", ACTIONS[i]);
    if (out.actions & NOD_PAUSE_ACTION_FAIL)
        at += (size_t)snprintf(text + at, size - at, "(%s) ", sl_code_name(out.code));
    snprintf(text + at, size - at, "| %s", STATES[s->pause.state]);
}

static bool parse(const char *line, nod_pause_event *e)
{
    static const struct {
        const char *verb;
        nod_pause_event_kind kind;
    } VERBS[] = {{"idle", NOD_PAUSE_EVENT_IDLE},
                 {"rests", NOD_PAUSE_EVENT_RESTS},
                 {"end", NOD_PAUSE_EVENT_END},
                 {"leave", NOD_PAUSE_EVENT_LEAVE},
                 {"tick", NOD_PAUSE_EVENT_TICK}};
    unsigned wait = 0, hold = 0;
    *e = (nod_pause_event){.kind = NOD_PAUSE_EVENT_BEGIN};
    if (sscanf(line, "keep %u for %u", &wait, &hold) == 2 ||
        sscanf(line, "wait %u for %u", &wait, &hold) == 2) {
        e->wait = line[0] == 'w';
        e->wait_ns = MS(wait);
        e->hold_ns = MS(hold);
        return true;
    }
    for (size_t i = 0; i < sizeof(VERBS) / sizeof(VERBS[0]); i++) {
        if (strncmp(line, VERBS[i].verb, strlen(VERBS[i].verb)) != 0)
            continue;
        e->kind = VERBS[i].kind;
        return true;
    }
    return false;
}

static void run(script *s, const char *const *lines)
{
    nod_pause_init(&s->pause);
    s->now = MS(1000);
    for (int i = 0; lines[i]; i++) {
        nod_pause_event event;
        char got[256];
        unsigned passed;
        const char *arrow = strstr(lines[i], " => ");
        if (sscanf(lines[i], "after %u", &passed) == 1) {
            s->now += MS(passed);
            continue;
        }
        assert_non_null(arrow);
        if (!parse(lines[i], &event))
            fail_msg("line %d: %s", i, lines[i]);
        render(s, nod_pause_handle(&s->pause, &event, s->now), got, sizeof(got));
        if (strcmp(got, arrow + 4) != 0)
            fail_msg("line %d: %s\n  got: %s", i, lines[i], got);
    }
}

#define RUN(...)                                                \
    do {                                                        \
        static const char *const LINES[] = {__VA_ARGS__, NULL}; \
        run(&s, LINES);                                         \
    } while (0)

TEST(what_runs_is_kept)
{
    script s;
    RUN("keep 500 for 2000 => rest tell | stopping", "idle => | stopping", "after 100",
        "rests => tell reply | on", "rests => | on", "idle => | on", "after 1999", "tick => | on",
        "end => go tell | off", "end => | off", "rests => | off");
}

TEST(what_runs_ends_first)
{
    script s;
    RUN("wait 500 for 2000 => tell | waiting", "rests => | waiting", "after 499",
        "tick => | waiting", "idle => rest | stopping", "tick => | stopping",
        "rests => tell reply | on", "end => go tell | off");
    RUN("wait 500 for 2000 => tell | waiting", "after 500", "tick => tell fail (deadline) | off",
        "idle => | off");
}

TEST(nothing_lasts_for_ever)
{
    script s;
    RUN("keep 500 for 2000 => rest tell | stopping", "rests => tell reply | on", "after 2000",
        "tick => go tell expired | off", "tick => | off");
    RUN("keep 500 for 2000 => rest tell | stopping", "after 500",
        "tick => go tell fail (deadline) | off", "rests => | off");
}

TEST(again_begins_the_time_anew)
{
    script s;
    RUN("keep 500 for 2000 => rest tell | stopping", "keep 500 for 3000 => tell | stopping",
        "rests => tell reply | on", "after 2500", "tick => | on",
        "wait 500 for 1000 => tell reply | on", "after 999", "tick => | on", "after 1",
        "tick => go tell expired | off");
    RUN("wait 500 for 2000 => tell | waiting", "after 400", "wait 500 for 2000 => tell | waiting",
        "after 400", "tick => | waiting", "keep 500 for 2000 => rest tell fail (exists) | stopping",
        "rests => tell reply | on");
    /* somebody who is in more of a hurry takes no time away from those before */
    RUN("wait 500 for 2000 => tell | waiting", "after 100", "wait 200 for 2000 => tell | waiting",
        "after 399", "tick => | waiting", "after 1", "tick => tell fail (deadline) | off");
}

TEST(taken_back_at_any_moment)
{
    script s;
    RUN("wait 500 for 2000 => tell | waiting", "end => tell fail (conflict) | off");
    RUN("keep 500 for 2000 => rest tell | stopping", "end => go tell fail (conflict) | off",
        "rests => | off");
    RUN("leave => | off", "wait 500 for 2000 => tell | waiting",
        "leave => tell fail (unavailable) | off");
    RUN("keep 500 for 2000 => rest tell | stopping", "leave => go tell fail (unavailable) | off");
    RUN("keep 500 for 2000 => rest tell | stopping", "rests => tell reply | on",
        "leave => go tell | off");
}

TEST(until_is_told_ahead)
{
    script s;
    RUN("tick => | off");
    assert_true(nod_pause_until(&s.pause) == 0);
    RUN("wait 500 for 2000 => tell | waiting");
    assert_true(nod_pause_until(&s.pause) == MS(3500));
    RUN("keep 500 for 2000 => rest tell | stopping", "rests => tell reply | on");
    assert_true(nod_pause_until(&s.pause) == MS(3000));
}

/* Whatever comes in whatever order: the engine is told to rest and to go in turns, an answer comes
 * for each pause that was begun, and time alone ends everything. */
TEST(random_events)
{
    for (uint64_t seed = 0; seed < 2000; seed++) {
        script s = {.now = MS(1)};
        bool resting = false, owed = false;
        nod_pause_init(&s.pause);
        for (uint64_t i = 0; i < 60; i++) {
#define DRAW(n, stream) ((uint32_t)(sl_keyed_uniform(seed, i, stream) * (n)))
            nod_pause_event e = {.kind = (nod_pause_event_kind)DRAW(NOD_PAUSE_EVENT_COUNT, 0),
                                 .wait = DRAW(2, 1),
                                 .wait_ns = MS(1 + DRAW(50, 2)),
                                 .hold_ns = MS(1 + DRAW(50, 3))};
            s.now += MS(DRAW(30, 4));
            nod_pause_outcome out = nod_pause_handle(&s.pause, &e, s.now);
            assert_false(resting && (out.actions & NOD_PAUSE_ACTION_REST));
            assert_false(!resting && (out.actions & NOD_PAUSE_ACTION_GO));
            resting = out.actions & NOD_PAUSE_ACTION_REST ? true
                      : out.actions & NOD_PAUSE_ACTION_GO ? false
                                                          : resting;
            owed = owed || e.kind == NOD_PAUSE_EVENT_BEGIN;
            if (out.actions & (NOD_PAUSE_ACTION_REPLY | NOD_PAUSE_ACTION_FAIL))
                owed = false;
            if (s.pause.state == NOD_PAUSE_STATE_OFF || s.pause.state == NOD_PAUSE_STATE_ON)
                assert_false(owed);
            assert_int_equal(resting, s.pause.state >= NOD_PAUSE_STATE_STOPPING);
            assert_true(s.pause.state == NOD_PAUSE_STATE_OFF || s.pause.deadline != SL_NEVER);
        }
    }
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(what_runs_is_kept),
    cmocka_unit_test(what_runs_ends_first),
    cmocka_unit_test(nothing_lasts_for_ever),
    cmocka_unit_test(again_begins_the_time_anew),
    cmocka_unit_test(taken_back_at_any_moment),
    cmocka_unit_test(until_is_told_ahead),
    cmocka_unit_test(random_events),
};
TEST_MAIN(TESTS)
