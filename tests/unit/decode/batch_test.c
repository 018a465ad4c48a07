/* The continuous batch on a nano model: whatever the depth of drafts, the same tokens,
 * log-probabilities, ends and kept pages. */
#include "decode/batch.h"

#include <poll.h>

#include "base/fault.h"
#include "model/constraint.h"
#include "tests/unit/engine/deferred.h"

#define ASKS_MAX   16
#define TOKENS_MAX 256
#define CHUNK      96u

typedef struct ask {
    uint32_t stream; /* of the prompt */
    uint32_t prompt_count;
    uint32_t capacity; /* 0 = prompt and max_tokens */
    bool handed_over;  /* the prompt's pages come from another engine */
    bool fetch_only;   /* and kept, that is all */
    uint32_t verified; /* blocks made known before the rest has come */
    bool handout;      /* routing and masks too */
    bool rows;         /* of the prompt, from rows_first on */
    uint32_t rows_first;
    uint32_t fork_of; /* 1 + index of the ask whose prompt it copies; 0 = none */
    const char *form; /* a request that asks for one; NULL: none */
    mdl_sampling sampling;
} ask;

typedef struct outcome {
    eng_sampled sampled[TOKENS_MAX];
    uint32_t count;
    dec_finish finish;
    sl_err err;    /* of FAILED */
    uint8_t *kept; /* pages that the cache knows at the end */
    size_t kept_bytes;
    sl_buf handout;
    eng_prompt_rows *rows; /* the job's, taken from it */
} outcome;

typedef struct run {
    rig *r;
    uint32_t depth;
    uint32_t rows_max;
    uint32_t cache_pages;        /* 0: enough for all */
    uint32_t overcommit_percent; /* with cache_pages; 0 = 1000 */
    bool tier, no_prefix_cache;
    bool gives_up; /* all give their pages up at once, when all have begun */
    uint32_t gave_up;
    uint32_t context_max; /* with transit pages, late ones, for no more tokens than this; 0: none */
    uint64_t chunk_ns;
    const ask *asks;
    uint32_t count;
    eng_engine *engine, *donor;
    dec_batch *batch;
    dec_job *jobs[ASKS_MAX];
    mdl_grammar *grammars[ASKS_MAX];
    mdl_tokenizer *tokenizer; /* with forms only */
    mdl_masks *masks;
    outcome *outcomes;
    uint32_t done;
    double drafted, accepted, preempted, recomputed;
    uint64_t tier_hits;
    uint32_t refused, events, kept_early;
    uint32_t before;          /* tokens of the first ask before the second one's first */
    dec_job *again[ASKS_MAX]; /* refused, to be opened again */
    uint32_t again_count;
    uint32_t kept; /* pages in the cache at the end */
} run;

static void post(const run *u, dec_command_kind kind, dec_job *job)
{
    assert_true(eng_worker_post(dec_batch_client(u->batch), &(dec_command){kind, job}));
}

/* As kvtransfer would: page bytes of the prompt and h_final of its last token. */
static void hand_over(run *u, dec_job *job)
{
    const eng_cache_layout *layout = eng_engine_layout(u->engine);
    eng_sequence *from = sequence_open(u->donor, job->token_count);
    sequence_feed(u->donor, from, job->tokens, job->token_count, CHUNK, NULL);
    for (uint32_t i = 0; i * ENG_PAGE_TOKENS < job->token_count; i++)
        memcpy(job->places[i],
               eng_engine_cache_base(u->donor) + eng_sequence_page(from, i) * layout->page_bytes,
               layout->page_bytes);
    memcpy(job->h_final, eng_sequence_h_final(from), NANO_HIDDEN * sizeof(uint16_t));
    if (job->handout)
        memcpy(job->handout->first_row, eng_step_routing(u->donor, (job->token_count - 1) % CHUNK),
               job->handout->o.routing->row_bytes);
    eng_sequence_close(from);
}

/* Of a token just told of. */
static void keep_handout(outcome *out, const dec_handout *handout, uint32_t index)
{
    uint32_t row = handout->o.routing->row_bytes;
    sl_span mask = dec_handout_mask(handout, index);
    assert_true(mdl_mask_check(mask, NANO_VOCAB));
    assert_int_equal(dec_handout_bytes(handout, index), row + mask.size);
    sl_buf_append(&out->handout, handout->rows + (size_t)index * row, row);
    sl_buf_append(&out->handout, mask.data, mask.size);
}

static void on_event(void *context, const void *item)
{
    run *u = context;
    const dec_batch_event *event = item;
    dec_job *job = event->job;
    outcome *out = &u->outcomes[job->slot];
    assert_int_equal(out->finish, DEC_FINISH_NONE); /* nothing comes after the end */
    switch (event->kind) {
    case DEC_BATCH_OPENED:
        if (u->asks[job->slot].handed_over)
            hand_over(u, job);
        job->verified_blocks = u->asks[job->slot].verified;
        if (job->verified_blocks > 0)
            post(u, DEC_COMMAND_KEEP, job);
        post(u, u->asks[job->slot].handed_over ? DEC_COMMAND_ADOPT : DEC_COMMAND_RUN_SELF, job);
        break;
    case DEC_BATCH_OPEN_FAILED: /* as a router would: again later */
        assert_int_equal(job->err.code, SL_FULL);
        u->refused++;
        u->again[u->again_count++] = job;
        break;
    case DEC_BATCH_KEPT:
        u->kept_early++;
        break;
    case DEC_BATCH_TOKEN:
        assert_true(out->count < TOKENS_MAX);
        out->sampled[out->count] = event->sampled;
        if (job->handout)
            keep_handout(out, job->handout, out->count);
        out->count++;
        if (job->slot == 1 && out->count == 1)
            u->before = u->outcomes[0].count;
        break;
    case DEC_BATCH_FINISHED:
        out->finish = event->finish;
        out->err = job->err;
        u->done++;
        break;
    default:
        fail_msg("event %d", event->kind);
    }
    if (event->kind != DEC_BATCH_FINISHED &&
        (event->kind == DEC_BATCH_OPEN_FAILED || ++u->events % 10))
        return;
    while (u->again_count > 0)
        post(u, DEC_COMMAND_OPEN, u->again[--u->again_count]);
}

static mdl_grammar *form_grammar(const char *form)
{
    sl_json_doc *doc = NULL;
    mdl_chat *chat = NULL;
    mdl_constraint constraint;
    mdl_grammar *grammar = NULL;
    sl_err err;
    mdl_constraint_init(&constraint);
    assert_ok(sl_json_parse(form, strlen(form), NULL, &doc, &err), &err);
    if (sl_json_get(sl_json_root(doc), "messages"))
        assert_ok(mdl_chat_parse(sl_json_root(doc), NULL, &chat, &err), &err);
    assert_ok(mdl_constraint_parse(sl_json_root(doc), chat, &constraint, &err), &err);
    assert_ok(mdl_constraint_compile(&constraint, &grammar, &err), &err);
    mdl_constraint_fini(&constraint);
    mdl_chat_destroy(chat);
    sl_json_doc_destroy(doc);
    return grammar;
}

static void make_job(run *u, uint32_t index)
{
    const ask *a = &u->asks[index];
    uint32_t capacity =
        a->capacity ? a->capacity : a->prompt_count + (uint32_t)a->sampling.max_tokens;
    dec_job *job = dec_job_create(a->prompt_count, capacity, NANO_HIDDEN);
    stream_fill(a->stream, a->prompt_count, job->tokens);
    job->slot = index;
    job->prompt_count = a->prompt_count;
    /* so that each keeps its own pages */
    job->cache_space = a->fork_of ? a->fork_of - 1 : index;
    job->sampling = a->sampling;
    dec_handout_options handout = {eng_engine_routing(u->engine), NANO_VOCAB,
                                   capacity - a->prompt_count};
    if (a->rows)
        job->prompt_rows =
            eng_prompt_rows_create(&(eng_prompt_want){a->rows_first, a->prompt_count, true, 3},
                                   eng_engine_routing(u->engine));
    if (a->handout)
        job->handout = dec_handout_create(&handout);
    job->fetches = a->handed_over;
    job->fetch_only = a->fetch_only;
    if (a->fork_of)
        job->source = u->jobs[a->fork_of - 1];
    if (a->form) {
        u->grammars[index] = form_grammar(a->form);
        job->cursor.matcher = mdl_matcher_create(u->grammars[index], 0);
    }
    job->rank.priority = (int32_t)index % 3; /* shows only where pages are short */
    u->jobs[index] = job;
}

static void destroy_job(run *u, uint32_t index)
{
    mdl_matcher_destroy(u->jobs[index]->cursor.matcher);
    mdl_grammar_destroy(u->grammars[index]);
    dec_job_destroy(u->jobs[index]);
}

/* What the cache knows of a job's tokens after all: whole blocks, byte by byte. */
static void keep_pages(const run *u, uint32_t index)
{
    const dec_job *job = u->jobs[index];
    outcome *out = &u->outcomes[index];
    eng_sequence *sequence = NULL;
    sl_err err;
    const eng_prefix prefix = {job->tokens, job->token_count, job->cache_space};
    assert_ok(eng_sequence_open_prefix(u->engine, job->token_capacity, job->token_capacity, &prefix,
                                       &sequence, &err),
              &err);
    /* the last token was never stepped */
    uint32_t known = eng_sequence_length(sequence);
    uint32_t stepped = job->token_count - !job->fetch_only;
    assert_int_equal(known, stepped / ENG_PAGE_TOKENS * ENG_PAGE_TOKENS);
    if (known > 0)
        out->kept = sequence_bytes(u->engine, sequence, &out->kept_bytes);
    eng_sequence_close(sequence);
}

static eng_engine *engine_of(const run *u, uint32_t rows_max, const char *tier_path)
{
    eng_options engine = {.kv_bytes = 24 << 20, .rows_max = (int)rows_max, .threads = 1};
    if (u->cache_pages > 0) {
        engine.kv_bytes = eng_model_kv_bytes(u->r->model, (uint64_t)u->cache_pages * 64);
        engine.overcommit_percent = u->overcommit_percent ? (int)u->overcommit_percent : 1000;
    }
    if (u->tier) {
        engine.tier_path = tier_path;
        engine.tier_bytes = 16 << 20;
    }
    if (u->context_max > 0) {
        engine.context_max = u->context_max;
        engine.transit_bytes = eng_model_kv_bytes(u->r->model, u->context_max);
    }
    eng_engine *made = rig_engine(u->r, &engine);
    if (u->context_max > 0)
        deferred_use(made);
    return made;
}

static void give_up_all(void *context)
{
    run *u = context;
    dec_batch_give_up_all(u->batch);
}

/* What has not drawn a token yet would be closed before. */
static bool may_give_up(const run *u)
{
    bool all = u->gives_up && u->gave_up < 3;
    for (uint32_t i = 0; i < u->count; i++)
        all = all && u->outcomes[i].count > 10 * u->gave_up;
    return all;
}

static void run_asks(run *u)
{
    sl_err err;
    eng_worker *worker = NULL;
    sl_metrics *metrics = sl_metrics_create();
    dec_batch_options options = {
        .sequences_max = ASKS_MAX,
        .chunk_tokens = CHUNK,
        .chunk_ns = u->chunk_ns,
        .draft_depth = u->depth,
        .rows_max = u->rows_max ? u->rows_max : CHUNK + 4 * ASKS_MAX,
        .eos_id = 1,
        .hidden_size = NANO_HIDDEN,
        .masks = u->masks,
        .prefix_cache = !u->no_prefix_cache,
        .preempted = sl_counter(metrics, "preempted", "", NULL),
        .recomputed = sl_counter(metrics, "recomputed", "", NULL),
        .drafted = sl_counter(metrics, "drafted", "", NULL),
        .accepted = sl_counter(metrics, "accepted", "", NULL),
    };
    char path[80];
    snprintf(path, sizeof(path), "%s/tier", u->r->files.dir);
    u->engine = engine_of(u, options.rows_max, path);
    u->donor =
        rig_engine(u->r, &(eng_options){.kv_bytes = 4 << 20, .rows_max = CHUNK, .threads = 1});
    assert_ok(eng_worker_create(u->engine, &worker, &err), &err);
    assert_ok(dec_batch_create(u->engine, worker, &options, &u->batch, &err), &err);
    assert_ok(eng_worker_start(worker, &err), &err);
    for (uint32_t i = 0; i < u->count; i++) {
        make_job(u, i);
        post(u, DEC_COMMAND_OPEN, u->jobs[i]);
    }
    struct pollfd fd = {.fd = eng_worker_fd(dec_batch_client(u->batch)), .events = POLLIN};
    while (u->done < u->count) {
        assert_true(poll(&fd, 1, -1) >= 0);
        eng_worker_poll(dec_batch_client(u->batch), on_event, u);
        if (may_give_up(u)) {
            eng_worker_call(worker, give_up_all, u);
            u->gave_up += u->done < u->count;
        }
    }
    eng_worker_stop(worker);
    const eng_cache_layout *layout = eng_engine_layout(u->engine);
    assert_int_equal(eng_engine_pages_free(u->engine), layout->page_count);
    u->kept = eng_engine_pages_kept(u->engine);
    for (uint32_t i = 0; i < u->count; i++) {
        if (u->cache_pages == 0)
            keep_pages(u, i);
        u->outcomes[i].rows = u->jobs[i]->prompt_rows;
        u->jobs[i]->prompt_rows = NULL;
        destroy_job(u, i);
    }
    u->drafted = sl_metric_get(options.drafted, NULL);
    u->accepted = sl_metric_get(options.accepted, NULL);
    u->preempted = sl_metric_get(options.preempted, NULL);
    u->recomputed = sl_metric_get(options.recomputed, NULL);
    eng_tier_stats tier = {0};
    if (eng_engine_tier_stats(u->engine, &tier))
        u->tier_hits = tier.hits;
    if (u->tier)
        unlink(path);
    eng_worker_destroy(worker);
    dec_batch_destroy(u->batch);
    eng_engine_destroy(u->engine);
    eng_engine_destroy(u->donor);
    sl_metrics_destroy(metrics);
}

static void open_forms(run *u)
{
    sl_err err;
    for (uint32_t i = 0; i < u->count && !u->masks; i++) {
        if (!u->asks[i].form)
            continue;
        assert_ok(mdl_tokenizer_load("models/demo", &u->tokenizer, &err), &err);
        u->masks = mdl_masks_create(u->tokenizer, NANO_VOCAB, 1 << 20);
    }
}

static run run_at(rig *r, uint32_t depth, uint32_t rows_max, const ask *asks, uint32_t count)
{
    run u = {.r = r, .depth = depth, .rows_max = rows_max, .asks = asks, .count = count};
    u.outcomes = sl_alloc(count, sizeof(outcome), "outcomes of a test");
    open_forms(&u);
    run_asks(&u);
    return u;
}

/* A cache that is too small for all, promised ten times over. */
static run run_tight(rig *r, const run *how, const ask *asks, uint32_t count)
{
    run u = *how;
    u.r = r;
    u.asks = asks;
    u.count = count;
    u.outcomes = sl_alloc(count, sizeof(outcome), "outcomes of a test");
    run_asks(&u);
    return u;
}

static void run_free(run *u)
{
    for (uint32_t i = 0; i < u->count; i++) {
        sl_free(u->outcomes[i].kept);
        sl_buf_fini(&u->outcomes[i].handout);
        eng_prompt_rows_destroy(u->outcomes[i].rows);
    }
    sl_free(u->outcomes);
    mdl_masks_destroy(u->masks);
    mdl_tokenizer_destroy(u->tokenizer);
}

static void assert_same(const outcome *a, const outcome *b)
{
    uint32_t least = a->count < b->count ? a->count : b->count;
    for (uint32_t i = 0; i < least; i++) {
        assert_int_equal(a->sampled[i].id, b->sampled[i].id);
        assert_int_equal(a->sampled[i].top_count, b->sampled[i].top_count);
        assert_memory_equal(&a->sampled[i].logprob, &b->sampled[i].logprob, sizeof(float));
        assert_memory_equal(a->sampled[i].top, b->sampled[i].top,
                            a->sampled[i].top_count * sizeof(eng_logprob));
    }
    assert_int_equal(a->count, b->count);
    assert_int_equal(a->finish, b->finish);
    assert_int_equal(a->handout.size, b->handout.size);
    if (a->handout.size > 0)
        assert_memory_equal(a->handout.data, b->handout.data, a->handout.size);
    assert_int_equal(a->kept_bytes, b->kept_bytes);
    if (a->kept_bytes > 0)
        assert_memory_equal(a->kept, b->kept, a->kept_bytes);
}

static ask ask_of(uint32_t prompt_count, int32_t max_tokens, float temperature)
{
    ask a = {.stream = prompt_count, .prompt_count = prompt_count};
    mdl_sampling_init(&a.sampling);
    a.sampling.temperature = temperature;
    a.sampling.seed = 7 + prompt_count;
    a.sampling.seed_given = true;
    a.sampling.max_tokens = max_tokens;
    a.sampling.ignore_eos = true;
    return a;
}

static ask fork_of(const ask *asks, uint32_t source, uint64_t seed)
{
    ask a = asks[source];
    a.fork_of = source + 1;
    a.handed_over = false;
    a.sampling.seed = seed;
    return a;
}

static rig *rig_of(rig *r, const nano_options *files)
{
    rig_open_options(r, files, &(eng_options){.kv_bytes = 1 << 20, .rows_max = 8, .threads = 1});
    return r;
}

/* The token that comes first as late as possible, within `count`: a stop in the middle. */
static uint32_t latest_first(const outcome *out, uint32_t count)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < count; i++) {
        bool seen = false;
        for (uint32_t j = 0; j < i; j++)
            seen |= out->sampled[j].id == out->sampled[i].id;
        best = seen ? best : i;
    }
    return best;
}

static uint32_t make_asks(rig *r, ask *asks)
{
    uint32_t n = 0;
    asks[n++] = ask_of(50, 100, 0);
    asks[n++] = ask_of(9, 60, 0.2f);
    asks[n++] = ask_of(130, 40, 1.0f);
    asks[n] = ask_of(61, 40, 0.3f); /* everything the sampler can do */
    asks[n].sampling.frequency_penalty = 0.5f;
    asks[n].sampling.presence_penalty = 0.25f;
    asks[n].sampling.repetition_penalty = 1.1f;
    asks[n].sampling.top_k = 20;
    asks[n].sampling.top_p = 0.9f;
    asks[n].sampling.min_p = 0.01f;
    asks[n].sampling.bias_count = 1;
    asks[n].sampling.bias[0] = (mdl_logit_bias){5, 2};
    asks[n++].sampling.logprob_count = 5;
    asks[n] = asks[n - 1]; /* the same, and what it hands out */
    asks[n++].handout = true;
    asks[n] = ask_of(62, 30, 0);
    asks[n++].sampling.logprob_count = 0;
    asks[n] = ask_of(57, 100, 0); /* ends at the window, which is a page's edge */
    asks[n++].capacity = 64;
    asks[n] = ask_of(60, 100, 0);
    asks[n++].capacity = 65;
    asks[n++] = ask_of(63, 1, 0);
    asks[n++] = ask_of(64, 2, 0);
    asks[n++] = ask_of(1, 3, 0);
    asks[n] = ask_of(100, 50, 0.2f);
    asks[n].handout = true;
    asks[n++].handed_over = true;
    run plain = run_at(r, 0, 0, asks, 2);
    for (uint32_t i = 0; i < 2; i++) { /* stop ids: alone, and held back by min_tokens */
        uint32_t at = latest_first(&plain.outcomes[i], 40);
        assert_true(at > 2);
        asks[n] = asks[i];
        asks[n].sampling.stop_id_count = 1;
        asks[n].sampling.stop_ids[0] = (int32_t)plain.outcomes[i].sampled[at].id;
        asks[n].sampling.min_tokens = i ? (int32_t)at + 3 : 0;
        n++;
    }
    run_free(&plain);
    assert_true(n <= ASKS_MAX);
    return n;
}

/* Sequences give way to each other and come back: from memory, from the second tier, from their
 * tokens alone. */
TEST(giving_way_changes_nothing)
{
    static const run HOW[] = {
        {.depth = 0, .cache_pages = 6},
        {.depth = 2, .cache_pages = 6, .no_prefix_cache = true},
        {.depth = 3, .cache_pages = 6, .tier = true},
    };
    enum { COUNT = 6 };
    ask asks[COUNT];
    rig r;
    rig_of(&r, &(nano_options){.echo = true});
    uint32_t count = COUNT;
    double preempted = 0;
    for (uint32_t i = 0; i < COUNT; i++) {
        asks[i] = ask_of(3 + 5 * i, 150 + (int32_t)i, (float)(i % 3) * 0.3f);
        asks[i].handout = i % 4 == 0;
        asks[i].handed_over = i % 5 == 2;
        asks[i].sampling.logprob_count = (int32_t)(i % 3) * 2;
    }
    run plain = run_at(&r, 0, 0, asks, count);
    for (size_t i = 0; i < sizeof(HOW) / sizeof(HOW[0]); i++) {
        run tight = run_tight(&r, &HOW[i], asks, count);
        printf("depth %u, %u pages%s: %.0f gave way, %.0f tokens computed again, %llu pages from "
               "the second tier, %u refused\n",
               HOW[i].depth, HOW[i].cache_pages, HOW[i].no_prefix_cache ? ", none kept" : "",
               tight.preempted, tight.recomputed, (unsigned long long)tight.tier_hits,
               tight.refused);
        for (uint32_t j = 0; j < count; j++) {
            outcome without = plain.outcomes[j]; /* what is kept differs */
            without.kept_bytes = 0;
            assert_same(&tight.outcomes[j], &without);
        }
        preempted += tight.preempted;
        run_free(&tight);
    }
    assert_true(preempted > 0);
    run_free(&plain);
    rig_close(&r);
}

/* While one generates, a prompt gets the time that is set for it, not whole chunks. */
/* As for other weights: every page goes at once, more than once, and what had begun goes on with
 * the same tokens, in the same choices, whatever the depth. */
TEST(giving_up_all_changes_nothing)
{
    rig r;
    ask asks[ASKS_MAX];
    rig_of(&r, &(nano_options){.echo = true});
    asks[0] = ask_of(50, 200, 0);
    asks[1] = ask_of(130, 200, 1);
    asks[1].handout = true;
    asks[2] = ask_of(70, 200, 1);
    asks[2].handed_over = true;
    asks[3] = fork_of(asks, 1, 5);
    run plain = run_at(&r, 0, 0, asks, 4);
    for (uint32_t depth = 0; depth < 3; depth++) {
        uint32_t gave_up = 0;
        /* the engine's thread may be done before this one sees that all have begun */
        for (int i = 0; i < 50 && gave_up == 0; i++) {
            run u = run_tight(&r, &(run){.depth = depth, .gives_up = true}, asks, 4);
            for (uint32_t j = 0; j < 4; j++)
                assert_same(&plain.outcomes[j], &u.outcomes[j]);
            gave_up = u.gave_up;
            run_free(&u);
        }
        assert_true(gave_up > 0);
    }
    run_free(&plain);
    rig_close(&r);
}

TEST(a_prompt_does_not_hold_up_who_generates)
{
    ask asks[2] = {ask_of(5, 100, 0), ask_of(600, 3, 0)};
    rig r;
    rig_of(&r, NULL);
    run whole = run_tight(&r, &(run){.cache_pages = 40}, asks, 2);
    run bounded = run_tight(&r, &(run){.cache_pages = 40, .chunk_ns = 1}, asks, 2);
    for (uint32_t i = 0; i < 2; i++)
        assert_same(&whole.outcomes[i], &bounded.outcomes[i]);
    printf("%u tokens while 600 were computed whole, %u within bounds\n", whole.before,
           bounded.before);
    assert_true(bounded.before >= 600 / ENG_CHUNK_MIN - 4); /* the first chunk may be whole */
    run_free(&whole);
    run_free(&bounded);
    rig_close(&r);
}

TEST(depth_changes_nothing)
{
    ask asks[ASKS_MAX];
    rig r;
    rig_of(&r, &(nano_options){.echo = true});
    uint32_t count = make_asks(&r, asks);
    run plain = run_at(&r, 0, 0, asks, count);
    assert_true(plain.drafted == 0 && plain.accepted == 0);
    assert_int_equal(plain.outcomes[count - 2].finish, DEC_FINISH_STOP);
    for (uint32_t depth = 1; depth <= ENG_DRAFTS_MAX; depth++) {
        run u = run_at(&r, depth, 0, asks, count);
        print_message("depth %u: %.0f drafted, %.0f accepted\n", depth, u.drafted, u.accepted);
        assert_true(u.accepted > 0 && u.accepted < u.drafted);
        assert_int_equal(u.kept, plain.kept);
        for (uint32_t i = 0; i < count; i++)
            assert_same(&u.outcomes[i], &plain.outcomes[i]);
        run_free(&u);
    }
    /* one at a time, and with rows for some drafts only */
    for (uint32_t i = 0; i < count; i++) {
        run u = run_at(&r, 3, 0, &asks[i], 1);
        assert_int_equal(u.outcomes[0].count, plain.outcomes[i].count);
        assert_same(&u.outcomes[0], &plain.outcomes[i]);
        run_free(&u);
    }
    run u = run_at(&r, 3, CHUNK + 2, asks, count);
    for (uint32_t i = 0; i < count; i++)
        assert_same(&u.outcomes[i], &plain.outcomes[i]);
    run_free(&u);
    run_free(&plain);
    rig_close(&r);
}

/* What copies a prompt gives what it gives alone with its seed, also when the source has long ended
 * or gives one token only. */
TEST(forks_give_what_they_give_alone)
{
    enum { COUNT = 9 };
    ask asks[COUNT];
    rig r;
    rig_of(&r, &(nano_options){.echo = true});
    asks[0] = ask_of(130, 40, 1.0f);
    asks[1] = fork_of(asks, 0, 71);
    asks[2] = fork_of(asks, 0, 72);
    asks[3] = ask_of(100, 1, 1.0f);
    asks[3].handed_over = true;
    asks[4] = fork_of(asks, 3, 73);
    asks[4].sampling.max_tokens = 50;
    asks[5] = ask_of(64, 30, 0.7f);
    asks[5].handed_over = asks[5].handout = true;
    asks[6] = fork_of(asks, 5, 74);
    asks[7] = ask_of(1, 12, 1.0f);
    asks[7].handout = true;
    asks[8] = fork_of(asks, 7, 75);
    for (uint32_t depth = 0; depth <= 2; depth += 2) {
        run u = run_at(&r, depth, 0, asks, COUNT);
        for (uint32_t i = 0; i < COUNT; i++) {
            ask alone = asks[i];
            alone.fork_of = 0;
            run v = run_at(&r, 0, 0, &alone, 1);
            assert_same(&u.outcomes[i], &v.outcomes[0]);
            run_free(&v);
        }
        run_free(&u);
    }
    rig_close(&r);
}

/* Choices share the prompt's pages when they are admitted. Those that gave way share nothing until
 * they are back, so that their promises together are more than there may be: they come back all
 * the same. */
TEST(choices_that_gave_way_come_back)
{
    enum { COUNT = 4 };
    ask asks[COUNT];
    rig r;
    rig_of(&r, NULL);
    asks[0] = ask_of(640, 140, 1.0f);
    for (uint32_t i = 1; i < COUNT; i++)
        asks[i] = fork_of(asks, 0, 80 + i);
    run tight = run_tight(&r, &(run){.cache_pages = 14, .overcommit_percent = 165}, asks, COUNT);
    for (uint32_t i = 0; i < COUNT; i++) {
        ask alone = asks[i];
        alone.fork_of = 0;
        run v = run_at(&r, 0, 0, &alone, 1);
        v.outcomes[0].kept_bytes = 0;
        assert_same(&tight.outcomes[i], &v.outcomes[0]);
        run_free(&v);
    }
    assert_true(tight.preempted >= 2);
    run_free(&tight);
    rig_close(&r);
}

static eng_prompt_rows *rows_of(rig *r, const ask *a, uint32_t chunk)
{
    uint32_t tokens[256];
    sl_err err;
    stream_fill(a->stream, a->prompt_count, tokens);
    eng_engine *engine =
        rig_engine(r, &(eng_options){.kv_bytes = 4 << 20, .rows_max = 256, .threads = 1});
    eng_prompt_rows *rows = eng_prompt_rows_create(&(eng_prompt_want){0, a->prompt_count, true, 3},
                                                   eng_engine_routing(engine));
    eng_sequence *sequence = sequence_open(engine, a->prompt_count);
    for (uint32_t at = 0; at < a->prompt_count; at += chunk) {
        uint32_t left = a->prompt_count - at;
        eng_span span = {sequence, tokens + at, left < chunk ? left : chunk, ENG_LOGITS_NONE,
                         false};
        eng_prompt_ask(rows, at, &span);
        assert_ok(eng_step(engine, &span, 1, NULL, NULL, &err), &err);
        eng_prompt_note(rows, engine, &span, at, 0, 0, tokens);
    }
    assert_int_equal(rows->done, a->prompt_count);
    eng_sequence_close(sequence);
    eng_engine_destroy(engine);
    return rows;
}

/* Rows that a prompt tells are the same for every chunking and company, from wherever they are
 * wanted; tokens are what they are without. */
TEST(prompt_rows_are_told)
{
    enum { COUNT = 4 };
    ask asks[COUNT];
    rig r;
    rig_of(&r, &(nano_options){.echo = true});
    asks[0] = ask_of(130, 20, 1.0f);
    asks[1] = ask_of(70, 20, 0);
    asks[2] = ask_of(128, 20, 0.5f);
    asks[3] = ask_of(1, 20, 0.5f);
    run plain = run_at(&r, 0, 0, asks, COUNT);
    for (uint32_t i = 0; i < COUNT; i++)
        asks[i].rows = true;
    asks[1].rows_first = 40;
    run u = run_at(&r, 2, 0, asks, COUNT);
    for (uint32_t i = 0; i < COUNT; i++) {
        assert_same(&u.outcomes[i], &plain.outcomes[i]);
        for (uint32_t chunk = 7; chunk <= 256; chunk += 249) {
            eng_prompt_rows *rows = rows_of(&r, &asks[i], chunk);
            const eng_prompt_rows *told = u.outcomes[i].rows;
            uint32_t first = asks[i].rows_first, count = asks[i].prompt_count - first;
            assert_int_equal(told->done, asks[i].prompt_count);
            assert_memory_equal(told->scores, rows->scores + first * rows->score_bytes,
                                count * rows->score_bytes);
            assert_memory_equal(told->routing, rows->routing + first * rows->row_bytes,
                                count * rows->row_bytes);
            eng_prompt_rows_destroy(rows);
        }
    }
    run_free(&u);
    run_free(&plain);
    rig_close(&r);
}

TEST(prompt_rows_refused)
{
    static const eng_prompt_want CASES[] = {{5, 5, true, -1},
                                            {6, 5, true, -1},
                                            {0, 11, true, -1},
                                            {0, 10, false, -1},
                                            {0, 10, true, 21}};
    sl_err err;
    rig r;
    rig_of(&r, NULL);
    const mdl_routing_layout *layout = eng_engine_routing(r.engine);
    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++)
        assert_code(eng_prompt_want_check(&CASES[i], 10, layout, &err), SL_INVALID);
    const eng_prompt_want large = {0, 1u << 30, false, 20};
    assert_code(eng_prompt_want_check(&large, 1u << 30, layout, &err), SL_TOO_LARGE);
    const eng_prompt_want good = {0, 10, false, 0};
    assert_ok(eng_prompt_want_check(&good, 10, layout, &err), &err);
    rig_close(&r);
}

/* A stop at the last row of a page, in a step whose drafts complete the page: it must not be kept,
 * for its last token was never stepped in plain decoding. */
TEST(dropped_rows_are_never_kept)
{
    enum { COUNT = 9, EDGE = ENG_PAGE_TOKENS - 1 };
    ask asks[COUNT];
    rig r;
    rig_of(&r, &(nano_options){.echo = true});
    for (uint32_t i = 0; i < COUNT; i++)
        asks[i] = ask_of(52 + i, (int32_t)(EDGE + 8 - (52 + i)), 0.5f);
    run plain = run_at(&r, 0, 0, asks, COUNT);
    assert_int_equal(plain.kept, COUNT); /* without the stop, the page is complete */
    uint32_t count = 0;
    for (uint32_t i = 0; i < COUNT; i++) {
        uint32_t at = EDGE - asks[i].prompt_count;
        if (latest_first(&plain.outcomes[i], at + 1) != at)
            continue; /* the token there came before */
        asks[count] = asks[i];
        asks[count].sampling.stop_id_count = 1;
        asks[count++].sampling.stop_ids[0] = (int32_t)plain.outcomes[i].sampled[at].id;
    }
    run_free(&plain);
    assert_true(count > 0);
    for (uint32_t depth = 0; depth <= ENG_DRAFTS_MAX; depth++) {
        run u = run_at(&r, depth, 0, asks, count);
        assert_int_equal(u.kept, 0);
        for (uint32_t i = 0; i < count; i++) {
            assert_int_equal(u.outcomes[i].finish, DEC_FINISH_STOP);
            assert_int_equal(asks[i].prompt_count + u.outcomes[i].count, EDGE + 1);
        }
        run_free(&u);
    }
    rig_close(&r);
}

/* Random weights: nearly every draft is wrong, and drafting gives up. */
TEST(wrong_drafts_change_nothing)
{
    ask asks[2] = {ask_of(50, 120, 0), ask_of(61, 120, 1)};
    rig r;
    rig_of(&r, NULL);
    run plain = run_at(&r, 0, 0, asks, 2), u = run_at(&r, 3, 0, asks, 2);
    print_message("%.0f drafted, %.0f accepted\n", u.drafted, u.accepted);
    assert_true(u.drafted > 0 && u.drafted < 240);
    for (uint32_t i = 0; i < 2; i++)
        assert_same(&u.outcomes[i], &plain.outcomes[i]);
    run_free(&u);
    run_free(&plain);
    rig_close(&r);
}

/* Rows and h_final came with the pages: the first step after them drafts already. */
TEST(drafts_at_once_after_a_hand_over)
{
    ask a = ask_of(100, 3, 0);
    a.handed_over = true;
    rig r;
    rig_of(&r, &(nano_options){.echo = true});
    run u = run_at(&r, 1, 0, &a, 1);
    assert_true(u.drafted == 1);
    run_free(&u);
    rig_close(&r);
}

/* Pages that are fetched for others alone are known afterwards, and nothing is drawn. */
TEST(fetched_and_kept)
{
    ask a = ask_of(2 * ENG_PAGE_TOKENS, 3, 0);
    a.handed_over = a.fetch_only = true;
    a.capacity = a.prompt_count;
    rig r;
    rig_of(&r, &(nano_options){.echo = true});
    run u = run_at(&r, 1, 0, &a, 1);
    assert_int_equal(u.outcomes[0].count, 0);
    assert_int_equal(u.outcomes[0].finish, DEC_FINISH_STOP);
    assert_int_equal(u.kept, 2);
    run_free(&u);
    rig_close(&r);
}

/* What has come of a prompt may become known before the rest does: nothing else changes. */
TEST(fetched_in_parts)
{
    enum { COUNT = 4 };
    ask asks[COUNT];
    for (uint32_t i = 0; i < COUNT; i++) {
        asks[i] = ask_of(100 + 30 * i, 20, i % 2 ? 0.5f : 0);
        asks[i].handed_over = i > 0;
    }
    rig r;
    rig_of(&r, &(nano_options){.echo = true});
    run plain = run_at(&r, 1, 0, asks, COUNT);
    for (uint32_t i = 1; i < COUNT; i++)
        asks[i].verified = i % 2 + 1;
    run u = run_at(&r, 1, 0, asks, COUNT);
    assert_int_equal(u.kept_early, COUNT - 1);
    for (uint32_t i = 0; i < COUNT; i++)
        assert_same(&u.outcomes[i], &plain.outcomes[i]);
    run_free(&u);
    run_free(&plain);
    rig_close(&r);
}

/* Fetched prompts go through transit pages that are fewer than they ask for; others generate, and
 * end, meanwhile. */
TEST(fetched_through_transit_pages)
{
    enum { COUNT = 9 };
    ask asks[COUNT];
    for (uint32_t i = 0; i < COUNT; i++) {
        asks[i] = ask_of(30 + 25 * i, 20 + 7 * (i % 4), i % 2 ? 0.5f : 0);
        asks[i].handed_over = i % 3 != 0;
        asks[i].handout = i == 4;
    }
    rig r;
    rig_of(&r, &(nano_options){.echo = true});
    run plain = run_at(&r, 0, 0, asks, COUNT);
    for (uint32_t depth = 0; depth <= 2; depth++) {
        run u = run_tight(&r, &(run){.depth = depth, .context_max = 300}, asks, COUNT);
        assert_true(u.refused > 0 && deferred.landings >= 6);
        for (uint32_t i = 0; i < COUNT; i++)
            assert_same(&u.outcomes[i], &plain.outcomes[i]);
        run_free(&u);
    }
    run_free(&plain);
    rig_close(&r);
}

TEST(drafts_that_fail_are_done_without)
{
    const nano_options files = {.huge = "model.layers.3.post_attention_layernorm.weight"};
    ask asks[2] = {ask_of(50, 30, 0), ask_of(61, 30, 1)};
    rig r;
    rig_of(&r, &files);
    run plain = run_at(&r, 0, 0, asks, 2), u = run_at(&r, 2, 0, asks, 2);
    assert_true(u.drafted == 0);
    for (uint32_t i = 0; i < 2; i++) {
        assert_int_equal(plain.outcomes[i].finish, DEC_FINISH_LENGTH);
        assert_same(&u.outcomes[i], &plain.outcomes[i]);
    }
    run_free(&u);
    run_free(&plain);
    rig_close(&r);
}

TEST(failed_step_leaves_what_was_right)
{
    static const char *const SITES[] = {"decode.step", NULL};
    ask asks[3] = {ask_of(50, 30, 0), ask_of(61, 30, 1), ask_of(1, 8, 0)};
    sl_err err;
    rig r;
    rig_of(&r, &(nano_options){.echo = true});
    assert_ok(sl_fault_init(SITES, "decode.step=fail@5", &err), &err);
    run u = run_at(&r, 3, 0, asks, 3); /* checks that every page is free */
    assert_ok(sl_fault_init(SITES, NULL, &err), &err);
    run plain = run_at(&r, 0, 0, asks, 3);
    uint32_t failed = 0;
    for (uint32_t i = 0; i < 3; i++) {
        const outcome *out = &u.outcomes[i], *whole = &plain.outcomes[i];
        failed += out->finish == DEC_FINISH_FAILED;
        assert_true(out->count <= whole->count && out->kept_bytes <= whole->kept_bytes);
        for (uint32_t j = 0; j < out->count; j++)
            assert_int_equal(out->sampled[j].id, whole->sampled[j].id);
        if (out->kept_bytes > 0)
            assert_memory_equal(out->kept, whole->kept, out->kept_bytes);
    }
    assert_true(failed > 0);
    run_free(&plain);
    run_free(&u);
    rig_close(&r);
}

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
    cmocka_unit_test(depth_changes_nothing),
    cmocka_unit_test(giving_way_changes_nothing),
    cmocka_unit_test(giving_up_all_changes_nothing),
    cmocka_unit_test(a_prompt_does_not_hold_up_who_generates),
    cmocka_unit_test(forks_give_what_they_give_alone),
    cmocka_unit_test(choices_that_gave_way_come_back),
    cmocka_unit_test(prompt_rows_are_told),
    cmocka_unit_test(prompt_rows_refused),
    cmocka_unit_test(dropped_rows_are_never_kept),
    cmocka_unit_test(wrong_drafts_change_nothing),
    cmocka_unit_test(drafts_at_once_after_a_hand_over),
    cmocka_unit_test(fetched_and_kept),
    cmocka_unit_test(fetched_in_parts),
    cmocka_unit_test(fetched_through_transit_pages),
    cmocka_unit_test(drafts_that_fail_are_done_without),
    cmocka_unit_test(failed_step_leaves_what_was_right),
    cmocka_unit_test(forms_at_any_depth),
    cmocka_unit_test(drafts_keep_to_the_form),
};
TEST_MAIN(TESTS)
