/* One answer: chunking, batching, threads, hand-over and drafts change no bit of a step. */
#include "tests/unit/engine/support.h"

#include <math.h>

#include "engine/tap.h"

#include "kernels/kernels.h"

#define PROMPT 200u /* past index_topk and three page edges */

/* SLUICE_TEST_FEW: less of the same, for a race checker, under which a step takes seconds. */
static uint32_t or_few(uint32_t count, uint32_t few)
{
    return getenv("SLUICE_TEST_FEW") ? few : count;
}

TEST(chunk_size_changes_nothing)
{
    static const uint32_t CHUNKS[] = {PROMPT, 1, 7, 64, 63, 65};
    const uint32_t prompt = or_few(PROMPT, NANO_TOPK + 6);
    uint32_t tokens[PROMPT];
    float whole[NANO_VOCAB], logits[NANO_VOCAB];
    uint8_t *whole_bytes = NULL;
    size_t whole_size = 0;
    rig r;
    rig_open(&r);
    stream_fill(1, prompt, tokens);
    for (size_t i = 0; i < sizeof(CHUNKS) / sizeof(CHUNKS[0]); i++) {
        size_t size;
        eng_sequence *sequence = sequence_open(r.engine, PROMPT + 8);
        sequence_feed(r.engine, sequence, tokens, prompt, CHUNKS[i], i ? logits : whole);
        uint8_t *bytes = sequence_bytes(r.engine, sequence, &size);
        if (i == 0) {
            whole_bytes = bytes;
            whole_size = size;
        } else {
            assert_memory_equal(logits, whole, sizeof(whole));
            assert_int_equal(size, whole_size);
            assert_memory_equal(bytes, whole_bytes, size);
            sl_free(bytes);
        }
        assert_memory_equal(eng_head_logits(r.engine, sequence), whole, sizeof(whole));
        eng_sequence_close(sequence);
    }
    sl_free(whole_bytes);
    rig_close(&r);
}

/* Sixteen sequences of unlike lengths step together, prefill beside decode. */
TEST(batch_changes_nothing)
{
    enum { COUNT = 16, TOTAL = 96 };
    float alone[COUNT][NANO_VOCAB];
    uint32_t tokens[COUNT][TOTAL];
    eng_sequence *sequences[COUNT];
    sl_err err;
    rig r;
    rig_open(&r);
    for (uint32_t i = 0; i < or_few(COUNT, 4); i++) {
        stream_fill(100 + i, TOTAL, tokens[i]);
        sequences[i] = sequence_open(r.engine, TOTAL);
        sequence_feed(r.engine, sequences[i], tokens[i], TOTAL - i, TOTAL, alone[i]);
        eng_sequence_close(sequences[i]);
    }
    for (uint32_t batch = 1; batch <= or_few(COUNT, 4); batch++) {
        eng_span spans[COUNT];
        for (uint32_t i = 0; i < batch; i++) {
            /* even ones decode one token, odd ones prefill a chunk of their prompt */
            uint32_t last = i % 2 ? 1 + 3 * i : 1;
            uint32_t before = TOTAL - i - last;
            sequences[i] = sequence_open(r.engine, TOTAL);
            sequence_feed(r.engine, sequences[i], tokens[i], before, 40, NULL);
            spans[i] =
                (eng_span){sequences[i], tokens[i] + before, last, ENG_LOGITS_LAST, false, NULL};
        }
        assert_ok(eng_step(r.engine, spans, batch, NULL, NULL, &err), &err);
        for (uint32_t i = 0; i < batch; i++)
            assert_memory_equal(eng_step_logits(r.engine, i), alone[i], sizeof(alone[i]));
        for (uint32_t i = 0; i < batch; i++)
            eng_sequence_close(sequences[i]);
    }
    rig_close(&r);
}

TEST(threads_change_nothing)
{
    uint32_t tokens[PROMPT];
    float first[NANO_VOCAB], logits[NANO_VOCAB];
    rig r;
    rig_open(&r);
    stream_fill(2, PROMPT, tokens);
    for (int threads = 1; threads <= 3; threads++) {
        eng_engine *engine =
            rig_engine(&r, &(eng_options){.kv_bytes = 4 << 20, .rows_max = 64, .threads = threads});
        eng_sequence *sequence = sequence_open(engine, PROMPT);
        sequence_feed(engine, sequence, tokens, PROMPT, 64, threads > 1 ? logits : first);
        if (threads > 1)
            assert_memory_equal(logits, first, sizeof(first));
        eng_sequence_close(sequence);
        eng_engine_destroy(engine);
    }
    rig_close(&r);
}

/* Skipping the scores of short rows: a batch with a long row scores, its short rows agree. */
TEST(rows_at_the_selection_edge)
{
    uint32_t tokens[PROMPT];
    float alone[NANO_VOCAB];
    sl_err err;
    rig r;
    rig_open(&r);
    stream_fill(3, PROMPT, tokens);
    eng_sequence *longer = sequence_open(r.engine, PROMPT);
    sequence_feed(r.engine, longer, tokens, NANO_TOPK + 40, 64, NULL);
    for (uint32_t n = NANO_TOPK - 1; n <= NANO_TOPK + 2; n++) {
        eng_sequence *a = sequence_open(r.engine, PROMPT), *b = sequence_open(r.engine, PROMPT);
        sequence_feed(r.engine, a, tokens, n, n, alone);
        sequence_feed(r.engine, b, tokens, n - 1, n - 1, NULL);
        const eng_span spans[] = {
            {longer, tokens + NANO_TOPK + 40 + (n - NANO_TOPK + 1), 1, ENG_LOGITS_NONE, false,
             NULL},
            {b, tokens + n - 1, 1, ENG_LOGITS_LAST, false, NULL},
        };
        assert_ok(eng_step(r.engine, spans, 2, NULL, NULL, &err), &err);
        assert_memory_equal(eng_step_logits(r.engine, 0), alone, sizeof(alone));
        eng_sequence_close(a);
        eng_sequence_close(b);
    }
    eng_sequence_close(longer);
    rig_close(&r);
}

/* A hand-over: pieces and sums copied page by page into another engine, as a transfer would. */
static void hand_over(eng_engine *from, const eng_sequence *source, eng_engine *to,
                      eng_sequence *target, const mdl_shape *shape)
{
    const eng_cache_layout *layout = eng_engine_layout(from);
    uint32_t length = eng_sequence_length(source);
    assert_string_equal(eng_engine_stamp(from)->cache_format, eng_engine_stamp(to)->cache_format);
    for (uint32_t block = 0; block * ENG_PAGE_TOKENS < length; block++) {
        for (uint32_t group = 0; group < layout->group_count; group++) {
            uint64_t offset, bytes;
            eng_layout_piece(layout, shape, group, &offset, &bytes);
            uint8_t *in = eng_engine_cache_base(from) +
                          eng_sequence_page(source, block) * layout->page_bytes + offset;
            uint8_t *out = eng_engine_cache_base(to) +
                           eng_sequence_page(target, block) * layout->page_bytes + offset;
            uint64_t sum = eng_piece_sum(from, in, bytes, block, group);
            memcpy(out, in, bytes);
            assert_true(eng_piece_sum(to, out, bytes, block, group) == sum);
            assert_true(eng_piece_sum(to, out, bytes, block + 1, group) != sum);
            out[0] ^= 1;
            assert_true(eng_piece_sum(to, out, bytes, block, group) != sum);
            out[0] ^= 1;
        }
    }
}

TEST(adopted_pages_continue_alike)
{
    static const uint32_t LENGTHS[] = {1, 63, 64, 65, 130, 192};
    uint32_t tokens[PROMPT];
    sl_err err;
    rig r;
    rig_open_options(&r, NULL,
                     &(eng_options){.kv_bytes = 8 << 20, .rows_max = 256, .layer_group = 2});
    eng_engine *other =
        rig_engine(&r, &(eng_options){.kv_bytes = 4 << 20, .rows_max = 32, .layer_group = 2});
    stream_fill(4, PROMPT, tokens);
    for (size_t i = 0; i < sizeof(LENGTHS) / sizeof(LENGTHS[0]); i++) {
        uint32_t n = LENGTHS[i], draft_a, draft_b;
        float first[NANO_VOCAB];
        eng_sequence *a = sequence_open(r.engine, PROMPT), *b = sequence_open(other, PROMPT);
        sequence_feed(r.engine, a, tokens, n, 50, first);
        hand_over(r.engine, a, other, b, eng_model_shape(r.model));
        /* with h_final given, and as it came with the pages */
        eng_sequence_adopt(b, n, i % 2 ? eng_sequence_h_final(a) : NULL);
        assert_int_equal(eng_sequence_length(b), n);
        assert_memory_equal(eng_sequence_h_final(a), eng_sequence_h_final(b), 2 * NANO_HIDDEN);
        assert_memory_equal(eng_head_logits(other, b), first, sizeof(first));
        assert_ok(eng_draft(r.engine, &a, &tokens[n], 1, &draft_a, &err), &err);
        assert_ok(eng_draft(other, &b, &tokens[n], 1, &draft_b, &err), &err);
        assert_int_equal(draft_a, draft_b);
        for (uint32_t t = n; t < n + 3; t++) {
            eng_span span = {a, tokens + t, 1, ENG_LOGITS_LAST, false, NULL};
            assert_ok(eng_step(r.engine, &span, 1, NULL, NULL, &err), &err);
            span.sequence = b;
            assert_ok(eng_step(other, &span, 1, NULL, NULL, &err), &err);
            assert_memory_equal(eng_step_logits(r.engine, 0), eng_step_logits(other, 0),
                                NANO_VOCAB * sizeof(float));
        }
        eng_sequence_close(a);
        eng_sequence_close(b);
    }
    eng_engine_destroy(other);
    rig_close(&r);
}

typedef struct group_log {
    eng_engine *engine;
    eng_sequence *sequence;
    uint32_t groups[8];
    uint32_t count;
} group_log;

/* Within a callback, the group's rows are in the page. */
static void note_group(void *context, uint32_t group)
{
    group_log *log = context;
    const eng_cache_layout *layout = eng_engine_layout(log->engine);
    uint8_t *page = eng_engine_cache_base(log->engine) +
                    eng_sequence_page(log->sequence, 0) * layout->page_bytes;
    uint32_t last = (group + 1) * layout->group_layers;
    last = (last < layout->layer_count ? last : layout->layer_count) - 1;
    bool any = false;
    for (uint32_t i = 0; i < 656; i++) /* row 1: slot 0 of MTP is void */
        any |= page[last * layout->layer_bytes + 656 + i] != 0;
    assert_true(any);
    log->groups[log->count++] = group;
}

typedef struct routing_log {
    uint32_t experts[4][64][3];
} routing_log;

static void note_experts(void *context, const eng_tap_layer *shown)
{
    routing_log *log = context;
    for (uint32_t row = 0; shown->experts && shown->layer < 4 && row < shown->row_count; row++)
        memcpy(log->experts[shown->layer][shown->positions[row]], shown->experts + row * 3,
               sizeof(log->experts[0][0]));
}

/* One row says what the tap showed, with weights that add up to the scaling. */
static void check_routing(const mdl_routing_layout *layout, const uint8_t *bytes,
                          const routing_log *log, uint32_t row, float scaling)
{
    sl_reader at = sl_reader_init(bytes, layout->row_bytes);
    for (uint32_t layer = 0; layer < layout->layer_count; layer++)
        for (uint32_t i = 0; i < 3; i++)
            assert_int_equal(sl_read_u16(&at), log->experts[layout->first_layer + layer][row][i]);
    for (uint32_t layer = 0; layer < layout->layer_count; layer++) {
        float sum = 0, weight;
        for (uint32_t i = 0; i < 3; i++) {
            uint32_t bits = sl_read_u32(&at);
            memcpy(&weight, &bits, sizeof(weight));
            assert_true(weight > 0);
            sum += weight;
        }
        assert_true(fabsf(sum - scaling) < 1e-4f);
    }
    assert_true(sl_reader_ok(&at) && sl_reader_left(&at) == 0);
}

/* What is handed out is what the tap shows, and the same for every chunking and company. */
TEST(routing_is_handed_out)
{
    enum { N = 40 };
    uint32_t tokens[2][N];
    sl_err err;
    rig r;
    rig_open(&r);
    const mdl_routing_layout *layout = eng_engine_routing(r.engine);
    float scaling = (float)eng_model_shape(r.model)->routed_scaling_factor;
    assert_int_equal(layout->chosen, 3);
    routing_log *log = sl_alloc(1, sizeof(*log), "log of a test");
    uint8_t *whole = sl_alloc(N, layout->row_bytes, "rows of a test");
    const eng_tap tap = {.context = log, .layer = note_experts};
    stream_fill(1, N, tokens[0]);
    stream_fill(2, N, tokens[1]);
    eng_engine_set_tap(r.engine, &tap);
    eng_sequence *a = sequence_open(r.engine, N), *b = sequence_open(r.engine, N);
    eng_span span = {a, tokens[0], N, ENG_LOGITS_NONE, true, NULL};
    assert_ok(eng_step(r.engine, &span, 1, NULL, NULL, &err), &err);
    memcpy(whole, eng_step_routing(r.engine, 0), (size_t)N * layout->row_bytes);
    eng_engine_set_tap(r.engine, NULL);
    for (uint32_t row = 0; row < N; row++)
        check_routing(layout, whole + (size_t)row * layout->row_bytes, log, row, scaling);
    eng_sequence_close(a);
    a = sequence_open(r.engine, N);
    for (uint32_t at = 0; at < N; at += 8) { /* behind another sequence's rows */
        eng_span spans[] = {{b, tokens[1] + at, 8, ENG_LOGITS_NONE, false, NULL},
                            {a, tokens[0] + at, 8, ENG_LOGITS_LAST, true, NULL}};
        assert_ok(eng_step(r.engine, spans, 2, NULL, NULL, &err), &err);
        assert_memory_equal(eng_step_routing(r.engine, 8), whole + (size_t)at * layout->row_bytes,
                            8 * layout->row_bytes);
    }
    eng_sequence_close(a);
    eng_sequence_close(b);
    sl_free(whole);
    sl_free(log);
    rig_close(&r);
}

TEST(groups_are_told_in_order)
{
    uint32_t tokens[4];
    sl_err err;
    rig r;
    stream_fill(5, 4, tokens);
    rig_open_options(&r, NULL, &(eng_options){.kv_bytes = 2 << 20, .layer_group = 1});
    for (int layers = 1; layers <= 5; layers++) { /* 4 layers with MTP */
        eng_engine *engine =
            rig_engine(&r, &(eng_options){.kv_bytes = 2 << 20, .layer_group = layers});
        group_log log = {.engine = engine, .sequence = sequence_open(engine, 8)};
        eng_span span = {log.sequence, tokens, 4, ENG_LOGITS_NONE, false, NULL};
        assert_ok(eng_step(engine, &span, 1, note_group, &log, &err), &err);
        assert_int_equal(log.count, eng_engine_layout(engine)->group_count);
        for (uint32_t i = 0; i < log.count; i++)
            assert_int_equal(log.groups[i], i);
        eng_sequence_close(log.sequence);
        eng_engine_destroy(engine);
    }
    rig_close(&r);
}

/* Drafted rows that are dropped again leave no trace. */
TEST(truncated_rows_leave_no_trace)
{
    uint32_t tokens[PROMPT];
    sl_err err;
    rig r;
    rig_open(&r);
    stream_fill(6, PROMPT, tokens);
    for (uint32_t n = 60; n <= 68; n++) {
        float plain[NANO_VOCAB], logits[NANO_VOCAB];
        size_t size_a, size_b;
        eng_sequence *a = sequence_open(r.engine, PROMPT), *b = sequence_open(r.engine, PROMPT);
        sequence_feed(r.engine, a, tokens, n, n, NULL);
        sequence_feed(r.engine, a, tokens + n, 1, 1, plain);
        sequence_feed(r.engine, b, tokens, n, n, NULL);
        eng_span span = {b,     tokens + n, 4, ENG_LOGITS_ALL,
                         false, NULL}; /* the last three are "drafts" */
        assert_ok(eng_step(r.engine, &span, 1, NULL, NULL, &err), &err);
        assert_memory_equal(eng_step_logits(r.engine, 0), plain, sizeof(plain));
        eng_sequence_truncate(b, n + 1);
        assert_int_equal(eng_sequence_length(b), n + 1);
        uint8_t *bytes_a = sequence_bytes(r.engine, a, &size_a);
        uint8_t *bytes_b = sequence_bytes(r.engine, b, &size_b);
        assert_int_equal(size_a, size_b);
        assert_memory_equal(bytes_a, bytes_b, size_a);
        sequence_feed(r.engine, a, tokens + n + 1, 1, 1, plain);
        sequence_feed(r.engine, b, tokens + n + 1, 1, 1, logits);
        assert_memory_equal(logits, plain, sizeof(plain));
        sl_free(bytes_a);
        sl_free(bytes_b);
        eng_sequence_close(a);
        eng_sequence_close(b);
    }
    rig_close(&r);
}

TEST(drafts_are_one_answer_too)
{
    enum { COUNT = 5 };
    uint32_t tokens[PROMPT], next[COUNT], together[COUNT];
    eng_sequence *sequences[COUNT];
    sl_err err;
    rig r;
    rig_open(&r);
    stream_fill(8, PROMPT, tokens);
    for (uint32_t i = 0; i < COUNT; i++) {
        uint32_t n = 30 + 33 * i;
        sequences[i] = sequence_open(r.engine, PROMPT);
        sequence_feed(r.engine, sequences[i], tokens, n, 1 + 20 * i, NULL);
        next[i] = tokens[n];
    }
    assert_ok(eng_draft(r.engine, sequences, next, COUNT, together, &err), &err);
    for (uint32_t i = 0; i < COUNT; i++) {
        uint32_t alone;
        assert_ok(eng_draft(r.engine, &sequences[i], &next[i], 1, &alone, &err), &err);
        assert_int_equal(alone, together[i]);
        eng_sequence_close(sequences[i]);
    }
    rig_close(&r);
}

/* Drafts in a row: the first is eng_draft's, none depends on the batch, and a step over all of them
 * leaves what a step without drafts leaves. */
TEST(many_drafts_leave_no_trace)
{
    enum { COUNT = 4 };
    uint32_t tokens[PROMPT];
    eng_drafts drafts[COUNT];
    sl_err err;
    rig r;
    rig_open(&r);
    stream_fill(12, PROMPT, tokens);
    for (uint32_t i = 0; i < COUNT; i++) {
        uint32_t n = 61 + i, first; /* the drafts of each lie across a page's edge, or end at it */
        drafts[i] = (eng_drafts){.sequence = sequence_open(r.engine, PROMPT),
                                 .next_token = tokens[n],
                                 .count = 1 + (i + 1) % 3};
        sequence_feed(r.engine, drafts[i].sequence, tokens, n, n, NULL);
        eng_drafts alone = drafts[i];
        alone.count = ENG_DRAFTS_MAX;
        assert_ok(eng_draft_many(r.engine, &alone, 1, &err), &err);
        assert_ok(eng_draft(r.engine, &alone.sequence, &tokens[n], 1, &first, &err), &err);
        assert_int_equal(alone.tokens[0], first);
        memcpy(drafts[i].tokens, alone.tokens, sizeof(alone.tokens));
        eng_span span = {
            alone.sequence, (uint32_t[4]){tokens[n], 1, 2, 3}, 4, ENG_LOGITS_ALL, false, NULL};
        assert_ok(eng_step(r.engine, &span, 1, NULL, NULL, &err), &err);
        eng_sequence_truncate(alone.sequence, n + 1);
        assert_int_equal(eng_sequence_length(alone.sequence), n + 1);
        size_t size, plain_size;
        eng_sequence *plain = sequence_open(r.engine, PROMPT);
        sequence_feed(r.engine, plain, tokens, n + 1, n + 1, NULL);
        uint8_t *bytes = sequence_bytes(r.engine, drafts[i].sequence, &size);
        uint8_t *plain_bytes = sequence_bytes(r.engine, plain, &plain_size);
        assert_int_equal(size, plain_size);
        assert_memory_equal(bytes, plain_bytes, size);
        sl_free(bytes);
        sl_free(plain_bytes);
        eng_sequence_close(plain);
        eng_sequence_close(drafts[i].sequence);
        drafts[i].sequence = sequence_open(r.engine, PROMPT);
        sequence_feed(r.engine, drafts[i].sequence, tokens, n, 7, NULL);
    }
    eng_drafts together[COUNT];
    memcpy(together, drafts, sizeof(drafts));
    for (uint32_t i = 0; i < COUNT; i++)
        memset(together[i].tokens, 0xff, sizeof(together[i].tokens));
    assert_ok(eng_draft_many(r.engine, together, COUNT, &err), &err);
    for (uint32_t i = 0; i < COUNT; i++) {
        assert_memory_equal(together[i].tokens, drafts[i].tokens,
                            drafts[i].count * sizeof(uint32_t));
        eng_sequence_close(drafts[i].sequence);
    }
    rig_close(&r);
}

typedef struct barred {
    uint32_t mask[(NANO_VOCAB + 31) / 32];
    uint32_t only[ENG_DRAFTS_MAX]; /* UINT32_MAX: no mask; NANO_VOCAB: all but what came first */
    uint32_t seen[ENG_DRAFTS_MAX]; /* the draft before */
    uint32_t first;
} barred;

static const uint32_t *barred_mask(void *context, const eng_drafts *drafts, uint32_t at)
{
    barred *b = context;
    b->seen[at] = at > 0 ? drafts->tokens[at - 1] : drafts->next_token;
    if (b->only[at] == UINT32_MAX)
        return NULL;
    bool but = b->only[at] == NANO_VOCAB;
    uint32_t id = but ? b->first : b->only[at];
    memset(b->mask, but ? 0xff : 0, sizeof(b->mask));
    b->mask[id / 32] ^= 1u << (id % 32);
    return b->mask;
}

/* A mask is looked at for its own draft only: what it leaves is the arg-max of the rest, and what
 * the layer is fed next. Those beside it draft as they do alone. */
TEST(drafts_keep_to_what_is_allowed)
{
    uint32_t tokens[PROMPT];
    sl_err err;
    rig r;
    rig_open(&r);
    stream_fill(14, PROMPT, tokens);
    eng_drafts free[3], masked[3];
    barred b[3] = {{.only = {UINT32_MAX, UINT32_MAX, UINT32_MAX}},
                   {.only = {77, UINT32_MAX, 5}},
                   {.only = {NANO_VOCAB, UINT32_MAX, UINT32_MAX}}};
    for (uint32_t i = 0; i < 3; i++) {
        free[i] = (eng_drafts){.sequence = sequence_open(r.engine, PROMPT),
                               .next_token = tokens[20 + i],
                               .count = ENG_DRAFTS_MAX};
        sequence_feed(r.engine, free[i].sequence, tokens, 20 + i, 20 + i, NULL);
        masked[i] = free[i];
        masked[i].allowed = i == 0 ? NULL : barred_mask;
        masked[i].context = &b[i];
    }
    assert_ok(eng_draft_many(r.engine, free, 3, &err), &err);
    b[2].first = free[2].tokens[0];
    assert_ok(eng_draft_many(r.engine, masked, 3, &err), &err);
    for (int turn = 0; turn < 3; turn++) { /* a device records the second run and repeats it */
        eng_drafts once_more[3];
        memcpy(once_more, masked, sizeof(masked));
        assert_ok(eng_draft_many(r.engine, once_more, 3, &err), &err);
        for (uint32_t i = 0; i < 3; i++)
            assert_memory_equal(once_more[i].tokens, masked[i].tokens, sizeof(masked[i].tokens));
    }
    assert_memory_equal(masked[0].tokens, free[0].tokens, sizeof(free[0].tokens));
    assert_int_equal(masked[1].tokens[0], 77);
    assert_int_equal(masked[1].tokens[2], 5);
    assert_int_not_equal(masked[2].tokens[0], free[2].tokens[0]);
    assert_true(masked[2].tokens[0] < NANO_VOCAB);
    for (uint32_t i = 1; i < 3; i++) {
        assert_int_equal(b[i].seen[0], masked[i].next_token);
        for (uint32_t at = 1; at < ENG_DRAFTS_MAX; at++)
            assert_int_equal(b[i].seen[at], masked[i].tokens[at - 1]);
    }
    eng_drafts again = free[1]; /* alone, and no mask behind the first one */
    barred first = {.only = {77, UINT32_MAX, UINT32_MAX}};
    again.allowed = barred_mask;
    again.context = &first;
    assert_ok(eng_draft_many(r.engine, &again, 1, &err), &err);
    assert_int_equal(again.tokens[1], masked[1].tokens[1]);
    for (uint32_t i = 0; i < 3; i++)
        eng_sequence_close(free[i].sequence);
    rig_close(&r);
}

/* Drafts are what sampling would make of the layer's logits: bias, and the first one drawn by its
 * position's key. They are put behind the ids. */
TEST(drafts_follow_the_sampling)
{
    enum { ROUNDS = 16 };
    uint32_t tokens[PROMPT], ids[24 + ENG_DRAFTS_MAX], differ = 0;
    sl_err err;
    rig r;
    rig_open(&r);
    stream_fill(15, PROMPT, tokens);
    eng_drafts free = {.sequence = sequence_open(r.engine, PROMPT),
                       .next_token = tokens[23],
                       .count = ENG_DRAFTS_MAX};
    sequence_feed(r.engine, free.sequence, tokens, 23, 23, NULL);
    assert_ok(eng_draft_many(r.engine, &free, 1, &err), &err);
    mdl_sampling sampling;
    mdl_sampling_init(&sampling);
    sampling.temperature = 0;
    eng_drafts sampled = free;
    memcpy(ids, tokens, 24 * sizeof(*ids));
    sampled.sampling = &sampling;
    sampled.ids = ids;
    sampled.id_count = 24;
    sampled.prompt_count = 20;
    assert_ok(eng_draft_many(r.engine, &sampled, 1, &err), &err);
    assert_memory_equal(sampled.tokens, free.tokens, sizeof(free.tokens));
    sampling.bias_count = 1;
    sampling.bias[0] = (mdl_logit_bias){77, 100};
    assert_ok(eng_draft_many(r.engine, &sampled, 1, &err), &err);
    for (uint32_t at = 0; at < ENG_DRAFTS_MAX; at++)
        assert_int_equal(sampled.tokens[at], 77);
    assert_memory_equal(ids + 24, sampled.tokens, sizeof(sampled.tokens));
    sampling.bias_count = 0;
    sampling.temperature = 1;
    for (uint32_t i = 0; i < or_few(ROUNDS, 4); i++) {
        eng_drafts again = sampled;
        sampling.seed = i;
        assert_ok(eng_draft_many(r.engine, &sampled, 1, &err), &err);
        assert_ok(eng_draft_many(r.engine, &again, 1, &err), &err);
        assert_memory_equal(again.tokens, sampled.tokens, sizeof(again.tokens));
        differ += sampled.tokens[0] != free.tokens[0];
    }
    assert_true(differ > 0);
    eng_sequence_close(free.sequence);
    rig_close(&r);
}

TEST(drafts_refused)
{
    uint32_t tokens[64];
    sl_err err;
    rig r;
    rig_open(&r);
    stream_fill(13, 64, tokens);
    eng_drafts drafts = {
        .sequence = sequence_open(r.engine, 64), .next_token = tokens[62], .count = 2};
    sequence_feed(r.engine, drafts.sequence, tokens, 62, 62, NULL);
    assert_ok(eng_draft_many(r.engine, &drafts, 1, &err), &err); /* the last two slots */
    drafts.count = 3;
    assert_code(eng_draft_many(r.engine, &drafts, 1, &err), SL_TOO_LARGE);
    drafts.count = 0;
    assert_code(eng_draft_many(r.engine, &drafts, 1, &err), SL_INVALID);
    drafts.count = ENG_DRAFTS_MAX + 1;
    assert_code(eng_draft_many(r.engine, &drafts, 1, &err), SL_INVALID);
    drafts.count = 1;
    assert_code(eng_draft_many(r.engine, &drafts, 0, &err), SL_INVALID);
    drafts.next_token = NANO_VOCAB;
    assert_code(eng_draft_many(r.engine, &drafts, 1, &err), SL_INVALID);
    eng_sequence_close(drafts.sequence);
    rig_close(&r);
}

/* bf16 checkpoints, E8M0 scales, no MTP copies, two shared experts: all load and run. */
TEST(kinds_of_checkpoints)
{
    static const nano_options KINDS[] = {
        {.bf16 = true}, {.e8m0 = true}, {.no_copies = true}, {.shared = 2}};
    uint32_t tokens[PROMPT];
    float expected[NANO_VOCAB], logits[NANO_VOCAB];
    rig r;
    stream_fill(9, PROMPT, tokens);
    rig_open(&r);
    eng_sequence *sequence = sequence_open(r.engine, PROMPT);
    sequence_feed(r.engine, sequence, tokens, PROMPT, 100, expected);
    eng_sequence_close(sequence);
    rig_close(&r);
    for (size_t i = rig_cuda() ? 1 : 0; i < sizeof(KINDS) / sizeof(KINDS[0]); i++) {
        float again[NANO_VOCAB];
        rig_open_options(&r, &KINDS[i], &(eng_options){.kv_bytes = 8 << 20, .rows_max = 256});
        sequence = sequence_open(r.engine, PROMPT);
        sequence_feed(r.engine, sequence, tokens, PROMPT, 200, logits);
        eng_sequence_close(sequence);
        sequence = sequence_open(r.engine, PROMPT);
        sequence_feed(r.engine, sequence, tokens, PROMPT, 9, again);
        assert_memory_equal(again, logits, sizeof(logits));
        if (KINDS[i].e8m0 || KINDS[i].no_copies) /* another spelling of the same model */
            assert_memory_equal(logits, expected, sizeof(expected));
        eng_sequence_close(sequence);
        rig_close(&r);
    }
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(chunk_size_changes_nothing),
    cmocka_unit_test(batch_changes_nothing),
    cmocka_unit_test(threads_change_nothing),
    cmocka_unit_test(rows_at_the_selection_edge),
    cmocka_unit_test(adopted_pages_continue_alike),
    cmocka_unit_test(routing_is_handed_out),
    cmocka_unit_test(groups_are_told_in_order),
    cmocka_unit_test(truncated_rows_leave_no_trace),
    cmocka_unit_test(drafts_are_one_answer_too),
    cmocka_unit_test(many_drafts_leave_no_trace),
    cmocka_unit_test(drafts_keep_to_what_is_allowed),
    cmocka_unit_test(drafts_follow_the_sampling),
    cmocka_unit_test(drafts_refused),
    cmocka_unit_test(kinds_of_checkpoints),
};
TEST_MAIN(TESTS)
