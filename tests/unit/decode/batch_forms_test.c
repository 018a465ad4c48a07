/* Answers that keep to a form. */
#include "tests/unit/decode/batch_kit.h"

/* Forms of answers. The nano model has the ids of single bytes and little else, so a call's markup
 * cannot be spelled: that is a failure of this sequence, said clearly, and of no other. */
#define FORCED                                                                            \
    "{\"messages\":[{\"role\":\"user\",\"content\":\"q\"}],\"tool_choice\":\"required\"," \
    "\"tools\":[{"                                                                        \
    "\"type\":\"function\",\"function\":{\"name\":\"f\"}}]}"

static uint32_t make_forms(ask *asks)
{
    static const char *const FORMS[] = {
        "{\"guided_regex\":\"([a-f]{3}-){4,30}\"}",
        "{\"guided_json\":{\"type\":\"array\",\"items\":{\"type\":\"boolean\"},\"minItems\":5,"
        "\"maxItems\":9}}",
        "{\"guided_choice\":[\"yes\",\"yesterday\",\"no\"]}",
        "{\"guided_regex\":\"(ab)*\"}",
        FORCED,
        NULL,
    };
    uint32_t n = 0;
    for (uint32_t i = 0; i < 2 * sizeof(FORMS) / sizeof(FORMS[0]); i++) {
        asks[n] = ask_of(20 + i, 130, i % 2 ? 1.0f : 0.0f);
        asks[n].form = FORMS[i / 2];
        asks[n++].sampling.ignore_eos = FORMS[i / 2] == NULL;
    }
    return n;
}

static void check_form(const run *u, uint32_t index)
{
    const outcome *out = &u->outcomes[index];
    sl_buf text;
    sl_buf_init(&text, 0);
    for (uint32_t i = 0; i < out->count; i++) {
        sl_span bytes = mdl_tokenizer_bytes(u->tokenizer, (int32_t)out->sampled[i].id);
        sl_buf_append(&text, bytes.data, out->sampled[i].id == 1 ? 0 : bytes.size);
    }
    if (u->asks[index].form && strcmp(u->asks[index].form, FORCED) == 0) {
        assert_int_equal(out->finish, DEC_FINISH_FAILED);
        assert_int_equal(out->err.code, SL_INTERNAL);
        assert_text_contains(out->err.text, "no token of the vocabulary spells");
        assert_string_equal(text.data, "\n\n<");
    } else if (u->asks[index].form) {
        assert_int_equal(out->finish, DEC_FINISH_STOP);
    } else {
        assert_int_equal(out->finish, DEC_FINISH_LENGTH);
    }
    if (index == 2 || index == 3)
        assert_true(text.data[0] == '[' && text.data[text.size - 1] == ']');
    sl_buf_fini(&text);
}

TEST(forms_at_any_depth)
{
    rig r;
    ask asks[ASKS_MAX];
    rig_of(&r, NULL);
    uint32_t count = make_forms(asks);
    run plain = run_at(&r, 0, 0, asks, count);
    for (uint32_t i = 0; i < count; i++)
        check_form(&plain, i);
    for (uint32_t depth = 1; depth <= ENG_DRAFTS_MAX; depth++) {
        run u = run_at(&r, depth, 0, asks, count);
        for (uint32_t i = 0; i < count; i++)
            assert_same(&u.outcomes[i], &plain.outcomes[i]);
        assert_true(u.drafted > 0);
        run_free(&u);
    }
    run_free(&plain);
    rig_close(&r);
}

/* Where the form leaves one text only, a model that knows nothing drafts it: nothing is wrong but
 * what would come behind the end. */
TEST(drafts_keep_to_the_form)
{
    rig r;
    ask asks[2] = {ask_of(20, 130, 0), ask_of(21, 130, 1)};
    rig_of(&r, NULL);
    for (uint32_t i = 0; i < 2; i++) {
        asks[i].form = "{\"guided_regex\":\"(abc-){20}\"}";
        asks[i].sampling.ignore_eos = false;
    }
    run plain = run_at(&r, 0, 0, asks, 2);
    for (uint32_t depth = 1; depth <= ENG_DRAFTS_MAX; depth++) {
        run u = run_at(&r, depth, 0, asks, 2);
        for (uint32_t i = 0; i < 2; i++) {
            assert_int_equal(u.outcomes[i].finish, DEC_FINISH_STOP);
            assert_same(&u.outcomes[i], &plain.outcomes[i]);
        }
        printf("depth %u: %.0f of %.0f accepted\n", depth, u.accepted, u.drafted);
        assert_true(u.drafted > 0 && u.accepted >= u.drafted - 2 * (depth - 1));
        run_free(&u);
    }
    run_free(&plain);
    rig_close(&r);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(forms_at_any_depth),
    cmocka_unit_test(drafts_keep_to_the_form),
};
TEST_MAIN(TESTS)
