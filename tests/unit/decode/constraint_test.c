/* Compiled constraints of a decode rank: equal ones once, bounded, refusals pass through. */
#include "decode/constraint.h"

#include <stdio.h>

#include "model/constraint.h"
#include "tests/unit/test.h"

static Sluice__V1__Constraint wire_of(mdl_constraint_kind kind, const char *text)
{
    Sluice__V1__Constraint wire = SLUICE__V1__CONSTRAINT__INIT;
    wire.kind = (uint32_t)kind;
    wire.text = (ProtobufCBinaryData){strlen(text), (uint8_t *)text};
    return wire;
}

/* As decode/compiler.h goes about it. */
static sl_status take(dec_constraints *all, const Sluice__V1__Constraint *wire,
                      dec_constraint **out_constraint, sl_err *err)
{
    dec_constraint *found = dec_constraint_find(all, wire);
    dec_compiled compiled;
    if (!found) {
        SL_TRY(dec_constraint_compile(wire, &compiled, err));
        dec_constraint_add(all, wire, &compiled);
        assert_null(compiled.grammar); /* it is theirs now */
        found = dec_constraint_find(all, wire);
        assert_non_null(found);
    }
    *out_constraint = found;
    return sl_ok();
}

TEST(equal_ones_are_compiled_once)
{
    sl_err err;
    dec_constraint *a = NULL, *b = NULL, *c = NULL;
    dec_constraints *all = dec_constraints_create(4);
    Sluice__V1__Constraint x = wire_of(MDL_CONSTRAINT_REGEX, "a+");
    Sluice__V1__Constraint y = wire_of(MDL_CONSTRAINT_REGEX, "a+");
    assert_ok(take(all, &x, &a, &err), &err);
    assert_ok(take(all, &y, &b, &err), &err);
    assert_ptr_equal(a, b);
    y.reasoning = true; /* another answer */
    assert_ok(take(all, &y, &c, &err), &err);
    assert_ptr_not_equal(a, c);
    assert_ptr_not_equal(dec_constraint_matcher(a), dec_constraint_matcher(c));
    assert_int_equal(dec_constraints_count(all), 2);
    dec_constraint_give(a);
    dec_constraint_give(b);
    dec_constraint_give(c);
    dec_constraint_give(NULL);
    assert_int_equal(dec_constraints_count(all), 2); /* kept */
    dec_constraints_destroy(all);
}

TEST(the_longest_unused_go_first)
{
    enum { SEQUENCES = 2, MANY = 3 * (SEQUENCES + DEC_CONSTRAINTS_IDLE_MAX) };
    sl_err err;
    dec_constraint *held = NULL, *one = NULL;
    dec_constraints *all = dec_constraints_create(SEQUENCES);
    Sluice__V1__Constraint first = wire_of(MDL_CONSTRAINT_REGEX, "held");
    assert_ok(take(all, &first, &held, &err), &err);
    mdl_matcher *matcher = dec_constraint_matcher(held);
    for (int i = 0; i < MANY; i++) {
        char text[16];
        snprintf(text, sizeof(text), "x{%d}", i);
        Sluice__V1__Constraint wire = wire_of(MDL_CONSTRAINT_REGEX, text);
        assert_ok(take(all, &wire, &one, &err), &err);
        dec_constraint_give(one);
        assert_true(dec_constraints_count(all) <= SEQUENCES + DEC_CONSTRAINTS_IDLE_MAX);
    }
    assert_ok(take(all, &first, &one, &err), &err);
    assert_ptr_equal(one, held);
    assert_ptr_equal(dec_constraint_matcher(one), matcher);
    dec_constraint_give(one);
    dec_constraint_give(held);
    dec_constraints_destroy(all);
}

TEST(what_is_wrong_is_refused)
{
    sl_err err;
    dec_constraint *none = NULL;
    dec_constraints *all = dec_constraints_create(1);
    Sluice__V1__Constraint wire = wire_of(MDL_CONSTRAINT_REGEX, "(");
    assert_code(take(all, &wire, &none, &err), SL_INVALID);
    wire = wire_of(MDL_CONSTRAINT_KIND_COUNT, "");
    assert_code(take(all, &wire, &none, &err), SL_UNSUPPORTED);
    wire = wire_of(MDL_CONSTRAINT_NONE, "");
    assert_code(take(all, &wire, &none, &err), SL_INVALID);
    wire.calls = MDL_CALLS_COUNT;
    assert_code(take(all, &wire, &none, &err), SL_UNSUPPORTED);
    wire.calls = MDL_CALLS_REQUIRED; /* of no function */
    assert_code(take(all, &wire, &none, &err), SL_INVALID);
    wire.tools = (ProtobufCBinaryData){2, (uint8_t *)"[]"};
    assert_code(take(all, &wire, &none, &err), SL_INVALID);
    char *large = sl_alloc(MDL_CONSTRAINT_BYTES_MAX + 1, 1, "test");
    wire = wire_of(MDL_CONSTRAINT_CHOICE, "");
    wire.text = (ProtobufCBinaryData){MDL_CONSTRAINT_BYTES_MAX + 1, (uint8_t *)large};
    assert_code(take(all, &wire, &none, &err), SL_TOO_LARGE);
    sl_free(large);
    assert_null(none);
    assert_int_equal(dec_constraints_count(all), 0);
    dec_constraints_destroy(all);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(equal_ones_are_compiled_once),
    cmocka_unit_test(the_longest_unused_go_first),
    cmocka_unit_test(what_is_wrong_is_refused),
};
TEST_MAIN(TESTS)
