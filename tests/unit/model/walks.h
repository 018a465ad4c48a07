/* Random walks over the masks of a constraint, every bit of some masks checked by stepping. */
#ifndef TESTS_UNIT_MODEL_WALKS_H
#define TESTS_UNIT_MODEL_WALKS_H

#include "base/rng.h"
#include "model/constraint.h"
#include "model/masks.h"
#include "model/tokenizer.h"
#include "tests/unit/model/json_check.h"
#include "tests/unit/model/support.h"

#define WALK_MAX 6000u

static mdl_tokenizer *tokenizer;
static mdl_masks *masks;
static uint64_t draws;

static inline uint32_t draw(uint32_t below)
{
    return (uint32_t)(sl_keyed_uniform(7, draws++, 0) * below);
}

static inline sl_status try_compile(const char *request, mdl_constraint *constraint,
                                    mdl_grammar **out_grammar, sl_err *err)
{
    sl_json_doc *doc = NULL;
    assert_ok(sl_json_parse(request, strlen(request), NULL, &doc, err), err);
    mdl_chat *chat = NULL;
    sl_status status = sl_ok();
    if (sl_json_get(sl_json_root(doc), "messages"))
        status = mdl_chat_parse(sl_json_root(doc), NULL, &chat, err);
    mdl_constraint_init(constraint);
    if (sl_is_ok(status))
        status = mdl_constraint_parse(sl_json_root(doc), chat, constraint, err);
    if (sl_is_ok(status))
        status = mdl_constraint_compile(constraint, out_grammar, err);
    mdl_chat_destroy(chat);
    sl_json_doc_destroy(doc);
    return status;
}

static inline bool allowed(const uint32_t *mask, uint32_t id)
{
    return mask[id / 32] >> (id % 32) & 1;
}

static inline uint32_t token_of(const char *text, size_t size)
{
    for (int32_t id = 0; id < mdl_tokenizer_id_end(tokenizer); id++) {
        sl_span bytes = mdl_tokenizer_bytes(tokenizer, id);
        if (bytes.size == size && memcmp(bytes.data, text, size) == 0)
            return (uint32_t)id;
    }
    fail();
    return 0;
}

/* Any allowed token; or, when it should end soon, one that ends something. */
static inline uint32_t choose(const uint32_t *mask, bool soon)
{
    static const char ENDS[] = "\"}]0abcde.@<\n>/";
    uint32_t end = (uint32_t)mdl_tokenizer_id_end(tokenizer), count = 0, id;
    if (soon && allowed(mask, (uint32_t)mdl_tokenizer_special(tokenizer)->eos))
        return (uint32_t)mdl_tokenizer_special(tokenizer)->eos;
    if (soon && allowed(mask, (uint32_t)mdl_tokenizer_special(tokenizer)->dsml))
        return (uint32_t)mdl_tokenizer_special(tokenizer)->dsml;
    if (soon && allowed(mask, (uint32_t)mdl_tokenizer_special(tokenizer)->end_think))
        return (uint32_t)mdl_tokenizer_special(tokenizer)->end_think;
    /* The first ones end values, any of the others may end a word. */
    bool values = draw(2) > 0;
    if (soon && values && allowed(mask, id = token_of("</", 2)))
        return id;
    for (int turn = 0; soon && turn < 40; turn++) {
        uint32_t at = turn < 3 && values ? (uint32_t)turn : draw(sizeof(ENDS) - 1);
        if (draw(4) > 0 && allowed(mask, id = token_of(&ENDS[at], 1)))
            return id;
    }
    for (id = 0; id < end; id++)
        count += allowed(mask, id);
    assert_true(count > 0);
    uint32_t chosen = draw(count);
    for (id = 0; !allowed(mask, id) || chosen-- > 0; id++)
        ;
    return id;
}

/* Every bit of the mask, by stepping each token's bytes. */
static inline void check_mask(const mdl_cursor *cursor, const uint32_t *mask)
{
    const mdl_special *special = mdl_tokenizer_special(tokenizer);
    for (int32_t id = 0; id < mdl_tokenizer_id_end(tokenizer); id++) {
        sl_span bytes = mdl_tokenizer_bytes(tokenizer, id);
        uint32_t to = cursor->state;
        if (id == special->eos) {
            to = mdl_matcher_accepts(cursor->matcher, to) ? to : MDL_STATE_DEAD;
        } else if (id == special->dsml) {
            to = mdl_matcher_symbol(cursor->matcher, to, MDL_SYMBOL_DSML);
        } else if (id == special->end_think) {
            to = mdl_matcher_symbol(cursor->matcher, to, MDL_SYMBOL_END_THINK);
        } else if (mdl_tokenizer_is_added(tokenizer, id) || bytes.size == 0) {
            to = MDL_STATE_DEAD;
        }
        bool by_bytes = id != special->eos && id != special->dsml && id != special->end_think;
        for (size_t i = 0; by_bytes && i < bytes.size && to > MDL_STATE_DEAD; i++)
            to = mdl_matcher_byte(cursor->matcher, to, bytes.data[i]);
        if (to == MDL_STATE_FULL)
            return; /* the table is full: another state's turn */
        if (allowed(mask, (uint32_t)id) != (to != MDL_STATE_DEAD))
            fail_msg("token %d \"%.*s\": mask says %d", id, (int)bytes.size, bytes.data,
                     allowed(mask, (uint32_t)id));
    }
}

typedef struct walk {
    uint32_t ids[WALK_MAX];
    uint32_t count;
    sl_buf text;
} walk;

/* One random answer behind what it begins with, the end of sentence left out. */
static inline void walk_behind(mdl_matcher *matcher, const mdl_ids *begin, uint32_t soon_after,
                               walk *w)
{
    mdl_cursor cursor = {.matcher = matcher};
    sl_err err;
    w->count = 0;
    sl_buf_init(&w->text, 0);
    for (;;) {
        const uint32_t *mask;
        assert_ok(mdl_cursor_mask(&cursor, masks, w->ids, w->count, &mask, &err), &err);
        if (w->count % 5 == 0)
            check_mask(&cursor, mask);
        uint32_t id = w->count < begin->count ? (uint32_t)begin->data[w->count]
                                              : choose(mask, w->count >= soon_after);
        assert_true(allowed(mask, id));
        if (id == (uint32_t)mdl_tokenizer_special(tokenizer)->eos)
            break;
        sl_span bytes = mdl_tokenizer_bytes(tokenizer, (int32_t)id);
        sl_buf_append(&w->text, bytes.data, bytes.size);
        if (w->count == WALK_MAX)
            fail_msg("no end: %.400s", w->text.data);
        w->ids[w->count++] = id;
    }
    /* Rebuilt from the tokens alone, the last state is the same. */
    mdl_cursor again = {.matcher = matcher};
    const uint32_t *mask;
    assert_ok(mdl_cursor_mask(&again, masks, w->ids, w->count, &mask, &err), &err);
    assert_true(allowed(mask, (uint32_t)mdl_tokenizer_special(tokenizer)->eos));
}

static inline void walk_once(mdl_matcher *matcher, uint32_t soon_after, walk *w)
{
    walk_behind(matcher, &(mdl_ids){0}, soon_after, w);
}

typedef void (*check_fn)(const char *text, size_t size, const void *context);

static inline void walk_many(const char *request, uint32_t turns, uint32_t states_max,
                             check_fn check, const void *context)
{
    mdl_constraint constraint;
    mdl_grammar *grammar = NULL;
    sl_err err = {0};
    sl_status status = try_compile(request, &constraint, &grammar, &err);
    if (!sl_is_ok(status))
        fail_msg("%s: %s", request, err.text);
    mdl_matcher *matcher = mdl_matcher_create(grammar, states_max);
    walk *w = sl_alloc(1, sizeof(*w), "test");
    for (uint32_t turn = 0; turn < turns; turn++) {
        walk_once(matcher, turn % 4 * 12, w);
        if (getenv("SHOW"))
            printf("%.*s\n", (int)w->text.size, w->text.data);
        check(w->text.data ? w->text.data : "", w->text.size, context);
        sl_buf_fini(&w->text);
    }
    sl_free(w);
    mdl_matcher_destroy(matcher);
    mdl_grammar_destroy(grammar);
    mdl_constraint_fini(&constraint);
}

static inline void check_json(const char *text, size_t size, const void *context)
{
    sl_json_doc *doc = NULL;
    sl_err err;
    const sl_json *schema = context;
    if (!sl_is_ok(sl_json_parse(text, size, NULL, &doc, &err)))
        fail_msg("%s: %.*s", err.text, (int)size, text);
    if (!judge(schema, schema, sl_json_root(doc)))
        fail_msg("breaks the schema: %.*s", (int)size, text);
    sl_json_doc_destroy(doc);
}

#define TOOL_F                                                                                    \
    "{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"type\":\"object\","    \
    "\"required\":[\"s\",\"n\"],\"properties\":{\"s\":{\"type\":\"string\"},\"n\":{\"type\":"     \
    "\"integer\","                                                                                \
    "\"minimum\":1,\"maximum\":9},\"c\":{\"type\":\"string\",\"enum\":[\"a b\",\"<c>\"]},\"o\":{" \
    "\"type\":\"array\",\"items\":{\"type\":[\"string\",\"null\"],\"maxLength\":3}},\"m\":{"      \
    "\"anyOf\":["                                                                                 \
    "{\"type\":\"string\",\"maxLength\":5},{\"type\":\"null\"}]},\"any\":{}}}}}"
#define TOOL_G "{\"type\":\"function\",\"function\":{\"name\":\"g\"}}"
#define ASK(tools, rest) \
    "{\"messages\":[{\"role\":\"user\",\"content\":\"q\"}],\"tools\":[" tools "]," rest "}"

/* Runs a group with the demo model's tokenizer; its allocations must be balanced at the end. */
static inline int walks_main(int argc, char **argv, int (*run)(void))
{
    sl_err err;
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    if (!sl_is_ok(mdl_tokenizer_load(DEMO_MODEL, &tokenizer, &err))) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    masks = mdl_masks_create(tokenizer, 8192, 4 << 20);
    int failed = run();
    mdl_masks_destroy(masks);
    mdl_tokenizer_destroy(tokenizer);
    if (failed == 0 && sl_alloc_live() != 0) {
        sl_alloc_print_live();
        return 1;
    }
    return failed;
}

#endif
