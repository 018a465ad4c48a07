/* Admissions that wait for their constraints: the loop goes on meanwhile, all hear in their order,
 * who left hears nothing. The thread is held at a fault site, so that nothing here is a race. */
#include "decode/compiler.h"

#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include "base/fault.h"
#include "model/constraint.h"
#include "tests/unit/test.h"

#define WAITING_MAX 6u

typedef struct heard {
    char ids[32]; /* of the requests, one letter each */
    sl_code codes[32];
    uint32_t count;
    dec_constraints *constraints;

} heard;

static void on_compiled(void *context, void *owner, const Sluice__V1__Admit *admit,
                        sl_status status, const sl_err *err)
{
    heard *h = context;
    assert_non_null(owner);
    h->ids[h->count] = admit->request_id[0];
    h->codes[h->count++] = status.code;
    dec_constraint *found = dec_constraint_find(h->constraints, admit->constraint);
    assert_int_equal(found != NULL, sl_is_ok(status));
    assert_int_equal(admit->n_tokens, 2);
    assert_true(sl_is_ok(status) || err->text[0]);
    dec_constraint_give(found);
}

typedef struct setup {
    sl_loop *loop;
    dec_constraints *constraints;
    dec_compiler *compiler;
    heard heard;
} setup;

static void begin(setup *s)
{
    sl_err err;
    memset(s, 0, sizeof(*s));
    assert_ok(sl_loop_create(&s->loop, &err), &err);
    s->constraints = s->heard.constraints = dec_constraints_create(WAITING_MAX);
    assert_ok(dec_compiler_create(s->loop, s->constraints, WAITING_MAX, on_compiled, &s->heard,
                                  &s->compiler, &err),
              &err);
}

static void end(setup *s)
{
    dec_compiler_destroy(s->compiler);
    dec_constraints_destroy(s->constraints);
    sl_loop_destroy(s->loop);
}

static sl_status wait_for(setup *s, void *owner, const char *request_id, const char *pattern,
                          sl_err *err)
{
    uint32_t tokens[2] = {1, 2};
    Sluice__V1__Constraint constraint = SLUICE__V1__CONSTRAINT__INIT;
    constraint.kind = MDL_CONSTRAINT_REGEX;
    constraint.text = (ProtobufCBinaryData){strlen(pattern), (uint8_t *)pattern};
    Sluice__V1__Admit admit = SLUICE__V1__ADMIT__INIT;
    admit.request_id = (char *)request_id;
    admit.n_tokens = 2;
    admit.tokens = tokens;
    admit.constraint = &constraint;
    return dec_compiler_wait(s->compiler, owner, &admit, err);
}

/* Releases the thread again and again: it may not be at the site yet. */
static void hear(setup *s, uint32_t count)
{
    while (s->heard.count < count) {
        assert_int_equal(kill(getpid(), SIGUSR2), 0);
        sl_loop_run_once(s->loop, 5);
    }
    assert_int_equal(s->heard.count, count);
}

static void arm(const char *spec)
{
    static const char *const SITES[] = {"decode.compile", NULL};
    sl_err err;
    assert_true(signal(SIGUSR2, SIG_IGN) != SIG_ERR);
    assert_ok(sl_fault_init(SITES, spec, &err), &err);
}

TEST(all_hear_in_their_order)
{
    setup s;
    sl_err err;
    int router = 0;
    arm("decode.compile=hold@1");
    begin(&s);
    assert_ok(wait_for(&s, &router, "a", "x+", &err), &err);
    assert_ok(wait_for(&s, &router, "b", "(", &err), &err);
    assert_ok(wait_for(&s, &router, "c", "x+", &err), &err); /* the same as a's */
    assert_ok(wait_for(&s, &router, "d", "y+", &err), &err);
    sl_loop_run_once(s.loop, 0); /* the loop goes on while the thread is held */
    assert_int_equal(s.heard.count, 0);
    hear(&s, 4);
    assert_string_equal(s.heard.ids, "acbd");
    assert_int_equal(s.heard.codes[0], SL_OK);
    assert_int_equal(s.heard.codes[2], SL_INVALID);
    assert_int_equal(dec_constraints_count(s.constraints), 2);
    end(&s);
}

TEST(who_left_hears_nothing)
{
    setup s;
    sl_err err;
    int router = 0, other = 0;
    arm("decode.compile=hold@1");
    begin(&s);
    assert_ok(wait_for(&s, &router, "a", "x+", &err), &err);
    assert_ok(wait_for(&s, &router, "b", "x+", &err), &err);
    assert_ok(wait_for(&s, &other, "c", "x+", &err), &err);
    assert_ok(wait_for(&s, &other, "a", "x+", &err), &err);
    dec_compiler_forget(s.compiler, &router, "a"); /* what is compiled is the others' too */
    dec_compiler_forget(s.compiler, &other, NULL);
    assert_ok(wait_for(&s, &router, "b", "x+", &err), &err); /* once more: the older one goes */
    hear(&s, 1);
    assert_string_equal(s.heard.ids, "b");
    end(&s);
}

TEST(too_many_are_refused)
{
    setup s;
    sl_err err;
    int router = 0;
    arm("decode.compile=hold@1");
    begin(&s);
    for (uint32_t i = 0; i < WAITING_MAX; i++) {
        char id[2] = {(char)('a' + i), 0}, pattern[2] = {(char)('a' + i), 0};
        assert_ok(wait_for(&s, &router, id, pattern, &err), &err);
    }
    assert_code(wait_for(&s, &router, "z", "z", &err), SL_FULL);
    hear(&s, WAITING_MAX);
    assert_ok(wait_for(&s, &router, "z", "z", &err), &err);
    hear(&s, WAITING_MAX + 1);
    end(&s);
}

TEST(a_fault_is_the_requests)
{
    setup s;
    sl_err err;
    int router = 0;
    arm("decode.compile=fail@1");
    begin(&s);
    assert_ok(wait_for(&s, &router, "a", "x+", &err), &err);
    hear(&s, 1);
    assert_int_equal(s.heard.codes[0], SL_INTERNAL);
    assert_ok(wait_for(&s, &router, "b", "x+", &err), &err);
    hear(&s, 2);
    assert_int_equal(s.heard.codes[1], SL_OK);
    end(&s);
}

/* What waits when the node ends is forgotten, whether it is compiled or not. */
TEST(it_ends_with_some_waiting)
{
    setup s;
    sl_err err;
    int router = 0;
    arm(NULL);
    begin(&s);
    for (uint32_t i = 0; i < WAITING_MAX; i++) {
        char id[2] = {(char)('a' + i), 0}, pattern[2] = {(char)('a' + i % 4), 0};
        assert_ok(wait_for(&s, &router, id, pattern, &err), &err);
    }
    end(&s);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(all_hear_in_their_order),   cmocka_unit_test(who_left_hears_nothing),
    cmocka_unit_test(too_many_are_refused),      cmocka_unit_test(a_fault_is_the_requests),
    cmocka_unit_test(it_ends_with_some_waiting),
};
TEST_MAIN(TESTS)
