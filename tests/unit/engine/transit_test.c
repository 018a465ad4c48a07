/* Transit pages: who has which, and that what goes out of one cache and into another continues with
 * the same bits. The caches are the backend's own memory, the host never looks into them. */
#include "engine/transit.h"

#include "tests/unit/engine/deferred.h"

#define TOKENS         300u
#define BLOCKS         ((TOKENS + ENG_PAGE_TOKENS - 1) / ENG_PAGE_TOKENS)
#define CONTEXT_MAX    512u
#define CONTEXT_BLOCKS (CONTEXT_MAX / ENG_PAGE_TOKENS)

/* Room for `blocks` transit pages; 0: none. */
static eng_engine *make_engine(const rig *r, uint32_t blocks)
{
    eng_engine *engine = NULL;
    sl_err err;
    eng_options options = {
        .kv_bytes = 8 << 20,
        .rows_max = 512,
        .layer_group = 2,
        .context_max = CONTEXT_MAX,
        .threads = 2,
        .transit_bytes = eng_model_kv_bytes(r->model, (uint64_t)blocks * ENG_PAGE_TOKENS),
    };
    assert_ok(eng_engine_create(r->model, &options, &engine, &err), &err);
    return engine;
}

static void open_rig(rig *r)
{
    rig_open_options(r, NULL, &(eng_options){.kv_bytes = 4 << 20, .rows_max = 32});
}

TEST(pages_are_taken_and_given_back)
{
    rig r;
    sl_err err;
    open_rig(&r);
    eng_engine *engine = make_engine(&r, CONTEXT_BLOCKS);
    uint8_t *base;
    uint64_t bytes, page_bytes = eng_engine_layout(engine)->page_bytes;
    eng_transit_memory(engine, &base, &bytes);
    assert_int_equal(bytes, CONTEXT_BLOCKS * page_bytes);
    eng_sequence *a = sequence_open(engine, CONTEXT_MAX), *b = sequence_open(engine, TOKENS);
    assert_ok(eng_transit_take(a, 1, CONTEXT_BLOCKS - 2, &err), &err);
    assert_null(eng_transit_page(a, 0));
    assert_null(eng_transit_page(a, CONTEXT_BLOCKS - 1));
    assert_null(eng_transit_page(b, 0));
    for (uint32_t block = 1; block < CONTEXT_BLOCKS - 1; block++) {
        const uint8_t *page = eng_transit_page(a, block);
        assert_true(page >= base && page + page_bytes <= base + bytes);
        assert_int_equal((page - base) % page_bytes, 0);
        for (uint32_t other = 1; other < block; other++)
            assert_ptr_not_equal(page, eng_transit_page(a, other));
    }
    assert_code(eng_transit_take(b, 0, 3, &err), SL_FULL);
    assert_string_equal(err.text, "3 transit pages: 2 are free");
    assert_ok(eng_transit_take(b, 3, 2, &err), &err);
    eng_transit_give(a);
    assert_null(eng_transit_page(a, 1));
    eng_sequence *c = sequence_open(engine, TOKENS);
    assert_ok(eng_transit_take(c, 0, BLOCKS, &err), &err);
    eng_sequence_close(b);
    assert_ok(eng_transit_take(a, 0, 3, &err), &err);
    eng_sequence_close(c); /* gives back too */
    eng_transit_give(a);
    assert_ok(eng_transit_take(a, 0, CONTEXT_BLOCKS, &err), &err);
    eng_sequence_close(a);
    eng_engine_destroy(engine);
    rig_close(&r);
}

TEST(too_little_for_one_sequence_is_refused)
{
    rig r;
    sl_err err;
    open_rig(&r);
    eng_options options = {.kv_bytes = 8 << 20,
                           .context_max = CONTEXT_MAX,
                           .transit_bytes = eng_model_kv_bytes(r.model, CONTEXT_MAX) - 1};
    eng_engine *engine = NULL;
    assert_code(eng_engine_create(r.model, &options, &engine, &err), SL_INVALID);
    assert_text_contains(err.text, "a sequence's 8 pages need");
    rig_close(&r);
}

TEST(without_transit_memory_it_is_the_cache)
{
    rig r;
    sl_err err;
    open_rig(&r);
    eng_engine *engine = make_engine(&r, 0);
    eng_sequence *a = sequence_open(engine, TOKENS);
    if (rig_cuda()) { /* where the host does not reach it */
        assert_code(eng_transit_take(a, 0, BLOCKS, &err), SL_UNSUPPORTED);
    } else {
        uint8_t *base;
        uint64_t bytes, page_bytes = eng_engine_layout(engine)->page_bytes;
        eng_transit_memory(engine, &base, &bytes);
        assert_ptr_equal(base, eng_engine_cache_base(engine));
        assert_int_equal(bytes, page_bytes * eng_engine_layout(engine)->page_count);
        assert_ok(eng_transit_take(a, 0, BLOCKS, &err), &err);
        assert_ptr_equal(eng_transit_page(a, 2), base + eng_sequence_page(a, 2) * page_bytes);
        eng_transit_in(a);
        assert_true(eng_transit_landed(a));
    }
    eng_sequence_close(a);
    eng_engine_destroy(engine);
    rig_close(&r);
}

/* What a prefill rank does beside its steps. */
typedef struct sender {
    eng_sequence *sequence;
    uint32_t from, to; /* blocks that the step completes */
    uint64_t *sums;
} sender;

static void send_group(void *context, uint32_t group)
{
    sender *s = context;
    sl_err err;
    assert_ok(eng_transit_wait(s->sequence->engine, &err), &err); /* the group before */
    eng_transit_out(s->sequence, group, s->from, s->to, s->sums);
}

static void prefill(eng_sequence *sequence, const uint32_t *tokens, uint32_t chunk, uint64_t *sums)
{
    sl_err err;
    for (uint32_t at = 0; at < TOKENS; at += chunk) {
        uint32_t count = TOKENS - at < chunk ? TOKENS - at : chunk, end = at + count;
        sender s = {sequence, at / ENG_PAGE_TOKENS, end == TOKENS ? BLOCKS : end / ENG_PAGE_TOKENS,
                    sums};
        const eng_span span = {sequence, tokens + at, count, ENG_LOGITS_LAST, false, NULL};
        assert_ok(eng_step(sequence->engine, &span, 1, send_group, &s, &err), &err);
        assert_ok(eng_transit_wait(sequence->engine, &err), &err);
    }
}

/* Bytes and sums of all pieces, as the cache has them. */
static void check_pieces(eng_sequence *sequence, const uint64_t *sums)
{
    eng_engine *engine = sequence->engine;
    const eng_cache_layout *layout = eng_engine_layout(engine);
    uint8_t *page = sl_alloc(1, layout->page_bytes, "page of a test");
    for (uint32_t block = 0; block < BLOCKS; block++) {
        eng_engine_read_page(engine, eng_sequence_page(sequence, block), 0, layout->page_bytes,
                             page);
        for (uint32_t group = 0; group < layout->group_count; group++) {
            uint64_t offset, bytes;
            eng_layout_piece(layout, eng_model_shape(engine->model), group, &offset, &bytes);
            const uint8_t *piece = eng_transit_page(sequence, block) + offset;
            assert_memory_equal(piece, page + offset, bytes);
            assert_true(sums[block * layout->group_count + group] ==
                        eng_piece_sum(engine, piece, bytes, block, group));
        }
    }
    sl_free(page);
}

static void check_continues(eng_sequence *a, eng_sequence *b, const uint32_t *tokens)
{
    sl_err err;
    for (uint32_t t = TOKENS; t < TOKENS + 3; t++) {
        const eng_span span_a = {a, tokens + t, 1, ENG_LOGITS_LAST, false, NULL};
        const eng_span span_b = {b, tokens + t, 1, ENG_LOGITS_LAST, false, NULL};
        assert_ok(eng_step(a->engine, &span_a, 1, NULL, NULL, &err), &err);
        assert_ok(eng_step(b->engine, &span_b, 1, NULL, NULL, &err), &err);
        assert_memory_equal(eng_step_logits(a->engine, 0), eng_step_logits(b->engine, 0),
                            NANO_VOCAB * sizeof(float));
    }
}

/* From engine to engine by their transit pages; the receiver has the first `known` blocks from an
 * earlier turn. */
static void hand_over(eng_engine *from, eng_engine *to, uint32_t chunk, uint32_t known)
{
    uint32_t tokens[TOKENS + 3];
    sl_err err;
    stream_fill(3, TOKENS + 3, tokens);
    const eng_cache_layout *layout = eng_engine_layout(from);
    uint64_t *sums = sl_alloc((size_t)BLOCKS * layout->group_count, sizeof(*sums), "sums");
    eng_sequence *a = sequence_open(from, CONTEXT_MAX), *b = sequence_open(to, CONTEXT_MAX);
    assert_ok(eng_transit_take(a, 0, BLOCKS, &err), &err);
    prefill(a, tokens, chunk, sums);
    check_pieces(a, sums);
    if (known > 0)
        sequence_feed(to, b, tokens, known * ENG_PAGE_TOKENS, 200, NULL);
    assert_ok(eng_transit_take(b, known, BLOCKS - known, &err), &err);
    for (uint32_t block = known; block < BLOCKS; block++)
        memcpy(eng_transit_page(b, block), eng_transit_page(a, block), layout->page_bytes);
    eng_transit_in(b);
    while (!eng_transit_landed(b))
        assert_true(eng_engine_poll_ns(to) > 0);
    assert_int_equal(eng_engine_poll_ns(to), 0);
    eng_transit_give(b);
    eng_sequence_adopt(b, TOKENS, eng_sequence_h_final(a));
    check_continues(a, b, tokens);
    eng_sequence_close(a);
    eng_sequence_close(b);
    sl_free(sums);
}

TEST(what_goes_out_and_in_continues_alike)
{
    rig r;
    open_rig(&r);
    for (uint32_t deferring = 0; deferring < 3; deferring++) {
        eng_engine *from = make_engine(&r, CONTEXT_BLOCKS), *to = make_engine(&r, CONTEXT_BLOCKS);
        if (deferring > 0)
            deferred_use(deferring == 1 ? from : to);
        for (uint32_t known = 0; known < BLOCKS; known += 2)
            hand_over(from, to, 50 + 70 * known, known);
        if (deferring > 0 && !rig_cuda())
            assert_true(deferring == 1 ? deferred.waits > 0 : deferred.landings > 0);
        eng_engine_destroy(from);
        eng_engine_destroy(to);
    }
    rig_close(&r);
}

/* A sequence may be closed while its pages are being copied: they are nobody else's before the end.
 */
TEST(closed_while_landing)
{
    rig r;
    sl_err err;
    open_rig(&r);
    eng_engine *engine = make_engine(&r, CONTEXT_BLOCKS);
    deferred_use(engine);
    eng_sequence *a = sequence_open(engine, TOKENS);
    assert_ok(eng_transit_take(a, 0, BLOCKS, &err), &err);
    eng_transit_in(a);
    eng_sequence_close(a);
    assert_int_equal(eng_engine_poll_ns(engine), 0);
    assert_int_equal(deferred.in_count, 0);
    a = sequence_open(engine, CONTEXT_MAX);
    assert_ok(eng_transit_take(a, 0, CONTEXT_BLOCKS, &err), &err);
    eng_sequence_close(a);
    eng_engine_destroy(engine);
    rig_close(&r);
}

TEST(a_device_that_fails_is_told)
{
    rig r;
    sl_err err;
    open_rig(&r);
    if (rig_cuda()) { /* no device is broken for a test */
        rig_close(&r);
        return;
    }
    uint32_t tokens[TOKENS];
    uint64_t sums[64];
    stream_fill(3, TOKENS, tokens);
    eng_engine *engine = make_engine(&r, CONTEXT_BLOCKS);
    deferred_use(engine);
    eng_sequence *a = sequence_open(engine, TOKENS);
    sequence_feed(engine, a, tokens, 64, 64, NULL);
    assert_ok(eng_transit_take(a, 0, 1, &err), &err);
    eng_transit_out(a, 0, 0, 1, sums);
    assert_true(eng_transit_busy(engine));
    deferred.broken = true;
    assert_code(eng_transit_wait(engine, &err), SL_INTERNAL);
    assert_string_equal(err.text, "the device failed: it was unplugged");
    assert_false(eng_transit_busy(engine));
    eng_sequence_close(a);
    eng_engine_destroy(engine);
    rig_close(&r);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(pages_are_taken_and_given_back),
    cmocka_unit_test(too_little_for_one_sequence_is_refused),
    cmocka_unit_test(without_transit_memory_it_is_the_cache),
    cmocka_unit_test(what_goes_out_and_in_continues_alike),
    cmocka_unit_test(closed_while_landing),
    cmocka_unit_test(a_device_that_fails_is_told),
};

TEST_MAIN(TESTS)
