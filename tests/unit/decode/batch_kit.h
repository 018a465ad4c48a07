/* Asks that a continuous batch on a nano model answers, and what came of each: what must not depend
 * on how the batch was run. */
#ifndef TESTS_UNIT_DECODE_BATCH_KIT_H
#define TESTS_UNIT_DECODE_BATCH_KIT_H

#include <poll.h>

#include "decode/batch.h"
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

static inline void post(const run *u, dec_command_kind kind, dec_job *job)
{
    assert_true(eng_worker_post(dec_batch_client(u->batch), &(dec_command){kind, job}));
}

/* As kvtransfer would: page bytes of the prompt and h_final of its last token. */
static inline void hand_over(run *u, dec_job *job)
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
static inline void keep_handout(outcome *out, const dec_handout *handout, uint32_t index)
{
    uint32_t row = handout->o.routing->row_bytes;
    sl_span mask = dec_handout_mask(handout, index);
    assert_true(mdl_mask_check(mask, NANO_VOCAB));
    assert_int_equal(dec_handout_bytes(handout, index), row + mask.size);
    sl_buf_append(&out->handout, handout->rows + (size_t)index * row, row);
    sl_buf_append(&out->handout, mask.data, mask.size);
}

static inline void on_event(void *context, const void *item)
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

static inline mdl_grammar *form_grammar(const char *form)
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

static inline void make_job(run *u, uint32_t index)
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

static inline void destroy_job(run *u, uint32_t index)
{
    mdl_matcher_destroy(u->jobs[index]->cursor.matcher);
    mdl_grammar_destroy(u->grammars[index]);
    dec_job_destroy(u->jobs[index]);
}

/* What the cache knows of a job's tokens after all: whole blocks, byte by byte. */
static inline void keep_pages(const run *u, uint32_t index)
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

static inline eng_engine *engine_of(const run *u, uint32_t rows_max, const char *tier_path)
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

static inline void give_up_all(void *context)
{
    run *u = context;
    dec_batch_give_up_all(u->batch);
}

/* What has not drawn a token yet would be closed before. */
static inline bool may_give_up(const run *u)
{
    bool all = u->gives_up && u->gave_up < 3;
    for (uint32_t i = 0; i < u->count; i++)
        all = all && u->outcomes[i].count > 10 * u->gave_up;
    return all;
}

static inline void run_asks(run *u)
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

static inline void open_forms(run *u)
{
    sl_err err;
    for (uint32_t i = 0; i < u->count && !u->masks; i++) {
        if (!u->asks[i].form)
            continue;
        assert_ok(mdl_tokenizer_load("models/demo", &u->tokenizer, &err), &err);
        u->masks = mdl_masks_create(u->tokenizer, NANO_VOCAB, 1 << 20);
    }
}

static inline run run_at(rig *r, uint32_t depth, uint32_t rows_max, const ask *asks, uint32_t count)
{
    run u = {.r = r, .depth = depth, .rows_max = rows_max, .asks = asks, .count = count};
    u.outcomes = sl_alloc(count, sizeof(outcome), "outcomes of a test");
    open_forms(&u);
    run_asks(&u);
    return u;
}

/* A cache that is too small for all, promised ten times over. */
static inline run run_tight(rig *r, const run *how, const ask *asks, uint32_t count)
{
    run u = *how;
    u.r = r;
    u.asks = asks;
    u.count = count;
    u.outcomes = sl_alloc(count, sizeof(outcome), "outcomes of a test");
    run_asks(&u);
    return u;
}

static inline void run_free(run *u)
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

static inline void assert_same(const outcome *a, const outcome *b)
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

static inline ask ask_of(uint32_t prompt_count, int32_t max_tokens, float temperature)
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

static inline ask fork_of(const ask *asks, uint32_t source, uint64_t seed)
{
    ask a = asks[source];
    a.fork_of = source + 1;
    a.handed_over = false;
    a.sampling.seed = seed;
    return a;
}

static inline rig *rig_of(rig *r, const nano_options *files)
{
    rig_open_options(r, files, &(eng_options){.kv_bytes = 1 << 20, .rows_max = 8, .threads = 1});
    return r;
}

/* The token that comes first as late as possible, within `count`: a stop in the middle. */
static inline uint32_t latest_first(const outcome *out, uint32_t count)
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

#endif
