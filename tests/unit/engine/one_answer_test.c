/* One answer under a random schedule: 64 sequences share batches of any size and mix, chunks,
 * drafts, prefix hits, give-ups and resumes, threads and CPU variants; every token's logits equal
 * those of the sequence alone, bit by bit. */
#include "tests/unit/engine/support.h"

#include <sched.h>

#include "base/clock.h"
#include "base/sum.h"
#include "kernels/cuda/sluice_cuda.h"
#include "kernels/kernels.h"

enum {
    STREAMS = 64,
    TEXTS = 5,        /* streams share the beginnings of these: prefix hits */
    PROMPT_MAX = 100, /* past index_topk and a page's edge */
    DRAWN_MAX = 12,
    TOTAL_MAX = PROMPT_MAX + DRAWN_MAX,
    ROWS_MAX = 320,
};

/* What a sequence must give: tokens, and a sum of the logits that each was drawn from. */
typedef struct stream {
    mdl_sampling sampling;
    uint32_t prompt, total;
    uint32_t tokens[TOTAL_MAX];
    uint64_t sums[TOTAL_MAX];
} stream;

/* The same sequence in a run: known tokens, some of them in the cache. */
typedef struct runner {
    stream *want;
    eng_sequence *sequence;
    uint32_t known;
    uint32_t tokens[TOTAL_MAX];
    uint32_t draft_count;
    uint32_t drafts[ENG_DRAFTS_MAX];
} runner;

typedef struct schedule {
    const char *variant; /* NULL: the CPU's best */
    uint32_t streams;
    int threads;
    uint32_t batch, chunk, depth;
    uint32_t give_up; /* one of so many turns ends a sequence, which is opened again; 0 = never */
    uint64_t kv_bytes;
    bool tier; /* what memory gives up goes to a file, pages are promised four times over */
} schedule;

typedef struct trial {
    eng_engine *engine;
    const schedule *plan;
    char path[80];
    uint64_t draws; /* of the schedule's own random numbers */
    uint32_t given_up, hits, accepted, largest, lacked;
    uint32_t drawn; /* tokens that a device drew in the step */
} trial;

static uint32_t pick(trial *t, uint32_t below)
{
    return (uint32_t)(sl_keyed_uniform(31, t->draws++, t->plan->batch) * below);
}

/* Draws the next token; when the stream is known already, checks it against that. drawn: what the
 * device drew from these logits, or NULL. */
static void draw(trial *t, runner *r, float *logits, const eng_sampled *drawn, bool first_run)
{
    stream *s = r->want;
    eng_sampled sampled;
    uint64_t sum = sl_sum64(1, r->known, logits, NANO_VOCAB * sizeof(float));
    eng_sample(t->engine, logits, &s->sampling, r->tokens, r->known, s->prompt, r->known, NULL,
               &sampled);
    t->drawn += drawn != NULL;
    if (drawn && drawn->id != sampled.id)
        fail_msg("position %u (prompt %u): the device draws %u, the host %u", r->known, s->prompt,
                 drawn->id, sampled.id);
    if (first_run) {
        s->tokens[r->known] = sampled.id;
        s->sums[r->known] = sum;
    } else if (s->sums[r->known] != sum || s->tokens[r->known] != sampled.id) {
        fail_msg("%s, %d threads, batch %u, chunk %u, depth %u: position %u (prompt %u) differs",
                 t->plan->variant, t->plan->threads, t->plan->batch, t->plan->chunk, t->plan->depth,
                 r->known, s->prompt);
    }
    r->tokens[r->known++] = sampled.id;
}

/* From wanted row `row` of the step. */
static void draw_row(trial *t, runner *r, uint32_t row, bool first_run)
{
    const eng_sampled *drawn = eng_step_drawn(t->engine, row);
    const eng_sampled kept = drawn ? *drawn : (eng_sampled){0};
    draw(t, r, eng_step_logits(t->engine, row), drawn ? &kept : NULL, first_run);
}

static uint32_t pending(const runner *r)
{
    return r->known - eng_sequence_length(r->sequence);
}

static eng_prefix prefix_of(const runner *r, uint32_t count)
{
    return (eng_prefix){r->tokens, count, 0};
}

static bool runner_open(trial *t, runner *r)
{
    sl_err err;
    eng_prefix prefix = prefix_of(r, r->known);
    sl_status status =
        eng_sequence_open_prefix(t->engine, TOTAL_MAX, r->known, &prefix, &r->sequence, &err);
    if (status.code == SL_FULL)
        return false;
    assert_ok(status, &err);
    while (!eng_sequence_ready(r->sequence)) {
        (void)eng_engine_poll(t->engine, sl_now_ns());
        sched_yield();
    }
    t->hits += eng_sequence_length(r->sequence) > 0;
    return true;
}

static void runner_close(runner *r)
{
    eng_prefix prefix = prefix_of(r, eng_sequence_length(r->sequence));
    eng_sequence_publish(r->sequence, &prefix);
    eng_sequence_close(r->sequence);
    r->sequence = NULL;
}

/* Drafts for everyone who waits for one token, as many as its depth and end allow. */
static void draft(trial *t, runner *const *chosen, uint32_t count)
{
    eng_drafts drafts[STREAMS];
    runner *owners[STREAMS];
    uint32_t wanted = 0;
    sl_err err;
    for (uint32_t i = 0; i < count; i++) {
        runner *r = chosen[i];
        uint32_t depth = t->plan->depth ? pick(t, t->plan->depth + 1) : 0;
        uint32_t left = r->want->total - r->known;
        r->draft_count = 0;
        if (pending(r) != 1 || eng_sequence_length(r->sequence) == 0)
            continue;
        depth = depth < left ? depth : left;
        if (!sl_is_ok(eng_sequence_bind(r->sequence, r->known + depth, &err)))
            depth = 0;
        if (depth == 0)
            continue;
        r->draft_count = depth;
        owners[wanted] = r;
        drafts[wanted++] = (eng_drafts){
            .sequence = r->sequence, .next_token = r->tokens[r->known - 1], .count = depth};
    }
    if (wanted)
        assert_ok(eng_draft_many(t->engine, drafts, wanted, &err), &err);
    for (uint32_t i = 0; i < wanted; i++)
        memcpy(owners[i]->drafts, drafts[i].tokens, sizeof(owners[i]->drafts));
}

/* Draws from a span's rows as long as the drafts were right, drops the rows of wrong ones. */
static uint32_t take_rows(trial *t, runner *r, const eng_span *span, uint32_t row, bool first_run)
{
    if (span->logits == ENG_LOGITS_NONE)
        return 0;
    if (span->logits == ENG_LOGITS_LAST) {
        draw_row(t, r, row, first_run);
        return 1;
    }
    uint32_t before = eng_sequence_length(r->sequence) - span->token_count;
    for (uint32_t i = 0; i < span->token_count; i++) {
        draw_row(t, r, row + i, first_run);
        if (i == r->draft_count || r->tokens[r->known - 1] != r->drafts[i] ||
            r->known == r->want->total) {
            eng_sequence_truncate(r->sequence, before + i + 1);
            break;
        }
        t->accepted++;
    }
    return span->token_count;
}

static void step(trial *t, runner *const *chosen, uint32_t count, bool first_run)
{
    eng_span spans[STREAMS] = {0};
    eng_draw draws[STREAMS];
    uint32_t used = 0, rows = 0, row = 0;
    sl_err err;
    draft(t, chosen, count);
    for (; used < count; used++) {
        runner *r = chosen[used];
        uint32_t at = eng_sequence_length(r->sequence), wait = r->known - at;
        uint32_t n = wait < t->plan->chunk ? wait : t->plan->chunk;
        draws[used] = (eng_draw){
            .params = &r->want->sampling, .ids = r->tokens, .prompt_count = r->want->prompt};
        spans[used] = (eng_span){
            .sequence = r->sequence,
            .tokens = r->tokens + at,
            .token_count = n,
            .logits = n == wait ? ENG_LOGITS_LAST : ENG_LOGITS_NONE,
            .draw = pick(t, 4) && !first_run ? &draws[used] : NULL,
        };
        if (r->draft_count) {
            memcpy(r->tokens + r->known, r->drafts, r->draft_count * sizeof(uint32_t));
            spans[used].token_count += r->draft_count;
            spans[used].logits = ENG_LOGITS_ALL;
        }
        if (rows + spans[used].token_count > ROWS_MAX)
            break;
        rows += spans[used].token_count;
    }
    /* A draft row that no step follows would be a fault of this schedule. */
    for (uint32_t i = used; i < count; i++)
        assert_int_equal(chosen[i]->draft_count, 0);
    assert_ok(eng_step(t->engine, spans, used, NULL, NULL, &err), &err);
    t->largest = used > t->largest ? used : t->largest;
    for (uint32_t i = 0; i < used; i++)
        row += take_rows(t, chosen[i], &spans[i], row, first_run);
}

static void draw_head(trial *t, runner *r)
{
    const eng_draw how = {
        .params = &r->want->sampling, .ids = r->tokens, .prompt_count = r->want->prompt};
    const eng_sampled *drawn = eng_head_drawn(t->engine, r->sequence, &how);
    const eng_sampled kept = drawn ? *drawn : (eng_sampled){0};
    draw(t, r, eng_head_logits(t->engine, r->sequence), drawn ? &kept : NULL, false);
}

/* Up to `batch` unfinished runners, those that decode first so that their rows always fit. */
static uint32_t choose(trial *t, runner *runners, uint32_t count, runner **out_chosen)
{
    uint32_t chosen = 0, offset = pick(t, count);
    for (int prefill = 0; prefill < 2; prefill++)
        for (uint32_t i = 0; i < count && chosen < t->plan->batch; i++) {
            runner *r = &runners[(offset + i) % count];
            if (r->known == r->want->total)
                continue;
            if (!r->sequence && (prefill || !runner_open(t, r)))
                continue;
            if (!sl_is_ok(eng_sequence_bind(r->sequence, r->known, NULL))) {
                runner_close(r); /* it gives way itself */
                t->lacked++;
                continue;
            }
            if (pending(r) == 0) { /* everything was a hit: the head alone */
                draw_head(t, r);
                continue;
            }
            if ((pending(r) > 1) == prefill)
                out_chosen[chosen++] = r;
        }
    return chosen;
}

/* Closes those that are at their end, and now and then one that is not. */
static uint32_t close_some(trial *t, runner *runners, uint32_t count)
{
    uint32_t left = 0, victim = UINT32_MAX;
    if (t->plan->give_up && pick(t, t->plan->give_up) == 0)
        victim = pick(t, count);
    for (uint32_t i = 0; i < count; i++) {
        runner *r = &runners[i];
        bool over = r->known == r->want->total;
        left += !over;
        if (!r->sequence || (!over && i != victim))
            continue;
        t->given_up += !over;
        runner_close(r);
    }
    return left;
}

static void run(trial *t, runner *runners, uint32_t count, bool first_run)
{
    runner *chosen[STREAMS];
    do {
        uint32_t n = choose(t, runners, count, chosen);
        if (n)
            step(t, chosen, n, first_run);
        eng_engine_spill(t->engine);
    } while (close_some(t, runners, count));
}

static void trial_open(trial *t, const rig *r, const schedule *plan)
{
    sl_err err;
    *t = (trial){.plan = plan};
    snprintf(t->path, sizeof(t->path), "%s/tier", r->files.dir);
    assert_ok(krn_cpu_select(plan->variant, &err), &err);
    t->engine = rig_engine(r, &(eng_options){.kv_bytes = plan->kv_bytes,
                                             .rows_max = ROWS_MAX,
                                             .sequences_max = STREAMS,
                                             .threads = plan->threads,
                                             .overcommit_percent = plan->tier ? 400 : 100,
                                             .tier_path = plan->tier ? t->path : NULL,
                                             .tier_bytes = 32 << 20});
}

static void stream_make(stream *s, uint32_t index)
{
    mdl_sampling_init(&s->sampling);
    s->sampling.temperature = (float)(index % 3) * 0.5f;
    s->sampling.top_p = index % 4 == 1 ? 0.9f : 1.0f;
    s->sampling.top_k = index % 7 == 3 ? 20 : 0;
    s->sampling.presence_penalty = index % 5 == 2 ? 0.5f : 0.0f;
    s->sampling.repetition_penalty = index % 5 == 3 ? 1.2f : 1.0f;
    s->sampling.seed = index;
    s->sampling.ignore_eos = true;
    s->prompt = 1 + stream_token(900, index) * (PROMPT_MAX - 1) / NANO_VOCAB;
    s->total = s->prompt + 1 + index % DRAWN_MAX;
    stream_fill(500 + index % TEXTS, s->prompt, s->tokens);
}

static void runner_make(runner *r, stream *s)
{
    *r = (runner){.want = s, .known = s->prompt};
    memcpy(r->tokens, s->tokens, s->prompt * sizeof(uint32_t));
}

/* The sequences one after the other, each in one chunk and single steps, by the best variant of a
 * numerics id. */
static void run_alone(const rig *r, const char *numerics_id, stream *streams, uint32_t count)
{
    const schedule alone = {numerics_id, count, 1, 1, PROMPT_MAX, 0, 0, 64 << 20, false};
    trial t;
    trial_open(&t, r, &alone);
    assert_string_equal(eng_engine_stamp(t.engine)->numerics_id,
                        rig_cuda() ? KRN_CUDA_NUMERICS_ID : numerics_id);
    for (uint32_t i = 0; i < count; i++) {
        runner one;
        stream_make(&streams[i], i);
        runner_make(&one, &streams[i]);
        run(&t, &one, 1, true);
        eng_engine_drop_kept(t.engine);
    }
    assert_int_equal(t.hits, 0);
    eng_engine_destroy(t.engine);
}

/* The variant is of this id, and this machine has it. */
static bool variant_usable(const char *variant, const char *numerics_id)
{
    sl_err err;
    if (strncmp(variant, "amx", 3) == 0 ? strcmp(numerics_id, KRN_NUMERICS_AMX) != 0
                                        : strcmp(numerics_id, KRN_NUMERICS_F32) != 0)
        return false;
    if (sl_is_ok(krn_cpu_select(variant, &err)))
        return true;
    printf("skipped: %s\n", err.text);
    return false;
}

static void check_schedules(const rig *r, const char *numerics_id)
{
    static const schedule PLANS[] = {
        {"ref", 4, 2, 3, 17, 3, 2, 12 << 20, false},
        {"avx2", STREAMS, 2, 64, 4, 2, 0, 64 << 20, false},
        {"avx2", 12, 1, 5, 3, 3, 2, 12 << 20, false},
        {"avx512", STREAMS, 2, 64, 100, 3, 1, 24 << 20, false},
        {"avx512", STREAMS, 1, 64, 5, 0, 0, 64 << 20, false},
        {"avx512", STREAMS, 2, 17, 33, 3, 1, 8 << 20, false},
        {"avx2", 16, 2, 1, 50, 1, 2, 2 << 20, true},
        {"avx2", STREAMS, 1, 9, 20, 3, 1, 3 << 20, true},
        {"avx2", STREAMS, 2, 64, 100, 2, 1, 5 << 20, true},
        {"amx-ref", 4, 2, 3, 17, 3, 2, 12 << 20, false},
        {"amx", STREAMS, 2, 64, 4, 2, 0, 64 << 20, false},
        {"amx", STREAMS, 2, 64, 100, 3, 1, 24 << 20, false},
        {"amx", STREAMS, 2, 17, 33, 3, 1, 8 << 20, false},
        {"amx", STREAMS, 1, 9, 20, 3, 1, 3 << 20, true},
    };
    static stream streams[STREAMS];
    static runner runners[STREAMS];
    enum { COUNT = sizeof(PLANS) / sizeof(PLANS[0]) };
    bool usable[COUNT];
    uint32_t wanted = 0; /* a plain variant alone is slow: no more of it than is compared */
    for (size_t p = 0; p < COUNT; p++) {
        usable[p] = variant_usable(PLANS[p].variant, numerics_id);
        if (usable[p] && PLANS[p].streams > wanted)
            wanted = PLANS[p].streams;
    }
    run_alone(r, numerics_id, streams, wanted);
    for (size_t p = 0; p < COUNT; p++) {
        trial t;
        if (!usable[p])
            continue;
        trial_open(&t, r, &PLANS[p]);
        for (uint32_t i = 0; i < PLANS[p].streams; i++)
            runner_make(&runners[i], &streams[i]);
        run(&t, runners, PLANS[p].streams, false);
        eng_tier_stats tier = {0};
        (void)eng_engine_tier_stats(t.engine, &tier);
        printf("%s: largest batch %u, %u hits, %u given up, %u for want of pages, %u drafts right, "
               "%llu pages from the file, %u drawn on a device\n",
               PLANS[p].variant, t.largest, t.hits, t.given_up, t.lacked, t.accepted,
               (unsigned long long)tier.hits, t.drawn);
        assert_true(PLANS[p].give_up ? t.hits > 0 : t.largest == PLANS[p].batch);
        assert_int_equal(eng_engine_pages_free(t.engine), eng_engine_layout(t.engine)->page_count);
        eng_engine_destroy(t.engine);
        unlink(t.path);
    }
}

TEST(any_schedule_gives_what_one_sequence_alone_gives)
{
    rig r;
    sl_err err;
    rig_open_options(&r, &(nano_options){.echo = true}, &(eng_options){.kv_bytes = 1 << 20});
    check_schedules(&r, KRN_NUMERICS_F32);
    if (!rig_cuda()) /* a device has one order */
        check_schedules(&r, KRN_NUMERICS_AMX);
    assert_ok(krn_cpu_select(NULL, &err), &err);
    rig_close(&r);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(any_schedule_gives_what_one_sequence_alone_gives),
};
TEST_MAIN(TESTS)
