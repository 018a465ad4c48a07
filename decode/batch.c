/* Continuous batching: every sequence that generates is in each step, with its last token and some
 * drafts of the next ones; prompts computed here take a bounded share of the rows.
 *
 * Runs on the engine thread (commands and run); create and destroy on the control thread. Allocates
 * nothing in a step. */
#include "decode/batch.h"

#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/array.h"
#include "base/assert.h"
#include "base/clock.h"
#include "base/fault.h"
#include "base/log.h"
#include "decode/draft_cost.h"
#include "decode/fork.h"
#include "decode/job_draw.h"
#include "engine/ledger.h"
#include "engine/transit.h"

typedef enum job_phase { PHASE_ADOPTED, PHASE_PREFILL, PHASE_DECODE } job_phase;

typedef struct active {
    dec_job *job;
    job_phase phase;
    uint32_t drafted; /* drafts behind the job's tokens, for this step */
    bool in_step;
    bool stalled; /* no page for the next token, and nobody to give way */
} active;

/* Where a token comes from: drawn in the step, or these logits. */
typedef struct draw_source {
    const eng_sampled *drawn;
    float *logits;
} draw_source;

struct dec_batch {
    eng_engine *engine;
    eng_worker_client *client;
    dec_batch_options options;
    dec_job *opening[DEC_SEQUENCES_MAX]; /* their known pages are being read */
    uint32_t opening_count;
    dec_job *arriving[DEC_SEQUENCES_MAX]; /* fetched; their pages are being copied into the cache */
    uint32_t arriving_count;
    dec_job *waiting[DEC_SEQUENCES_MAX]; /* gave way, the first to come back first */
    uint32_t waiting_count;
    uint64_t next_seniority;
    uint32_t weights_version;
    dec_claim claims[DEC_SEQUENCES_MAX];
    uint64_t rows; /* of prompts, computed so far */
    active active[DEC_SEQUENCES_MAX];
    uint32_t active_count;
    eng_span spans[DEC_SEQUENCES_MAX];
    uint32_t span_active[DEC_SEQUENCES_MAX]; /* index into active of each span */
    dec_job_draw draws[DEC_SEQUENCES_MAX];   /* of each span */
    eng_drafts drafts[DEC_SEQUENCES_MAX];
    uint32_t draft_active[DEC_SEQUENCES_MAX]; /* index into active of each */
    eng_sampled sampled;
    dec_forks forks;
    dec_draft_cost draft_cost;
    double draft_price;       /* of this step */
    uint32_t generating_rows; /* of this step: those of sequences that generate */
};

dec_job *dec_job_create(uint32_t token_count, uint32_t token_capacity, uint32_t hidden_size)
{
    sl_assert(token_count > 0 && token_count <= token_capacity);
    dec_job *job = sl_alloc(1, sizeof(*job), "decode job");
    job->tokens = sl_alloc(token_capacity, sizeof(*job->tokens), "decode job tokens");
    job->token_count = token_count;
    job->token_capacity = token_capacity;
    job->h_final = sl_alloc(hidden_size, sizeof(*job->h_final), "decode job h_final");
    job->block_count = eng_pages_of(token_capacity);
    job->places = sl_alloc(job->block_count, sizeof(*job->places), "decode job places");
    return job;
}

void dec_job_destroy(dec_job *job)
{
    if (!job)
        return;
    sl_assert(!job->sequence);
    sl_free(job->tokens);
    sl_free(job->h_final);
    sl_free(job->places);
    dec_handout_destroy(job->handout);
    eng_prompt_rows_destroy(job->prompt_rows);
    sl_free(job);
}

static void emit(dec_batch *batch, dec_job *job, dec_batch_event_kind kind, dec_finish finish)
{
    dec_batch_event event = {.kind = kind, .finish = finish, .job = job};
    if (kind == DEC_BATCH_TOKEN) {
        event.sampled = batch->sampled;
        event.weights_version = batch->weights_version;
    }
    eng_worker_emit(batch->client, &event);
}

static bool wants_routing(const dec_job *job)
{
    return job->handout && job->handout->o.routing;
}

static void open_failed(dec_batch *batch, dec_job *job)
{
    job->sequence = NULL;
    emit(batch, job, DEC_BATCH_OPEN_FAILED, DEC_FINISH_NONE);
}

static void opened(dec_batch *batch, dec_job *job)
{
    dec_forks_add_open(&batch->forks, job);
    emit(batch, job, DEC_BATCH_OPENED, DEC_FINISH_NONE);
}

/* The source is open and its prompt complete. */
static void fork_job(dec_batch *batch, dec_job *job)
{
    const dec_job *source = job->source;
    sl_status status = eng_sequence_fork(source->sequence, job->token_count, source->h_final,
                                         job->token_capacity, &job->sequence, &job->err);
    if (!sl_is_ok(status)) {
        open_failed(batch, job);
        return;
    }
    eng_sequence_set_owner(job->sequence, DEC_OWNER_FIRST + job->slot);
    if (wants_routing(job))
        memcpy(job->handout->first_row, source->handout->first_row,
               job->handout->o.routing->row_bytes);
    opened(batch, job);
}

static void open_fork(dec_batch *batch, dec_job *job)
{
    if (!dec_forks_is_open(&batch->forks, job->source) || job->source->outdated) {
        job->err.code = sl_fail(&job->err, SL_UNAVAILABLE, "the source has ended").code;
        open_failed(batch, job);
    } else if (job->source->prompt_done) {
        fork_job(batch, job);
    } else {
        dec_forks_add_waiting(&batch->forks, job);
    }
}

/* The job can draw; who waits for its prompt copies it first. */
static void prompt_done(dec_batch *batch, dec_job *job)
{
    job->prompt_done = true;
    for (dec_job *fork; (fork = dec_forks_take_waiting(&batch->forks, job));)
        fork_job(batch, fork);
}

static void activate(dec_batch *batch, dec_job *job, job_phase phase)
{
    sl_assert(batch->active_count < DEC_SEQUENCES_MAX);
    dec_draft_init(&job->draft, batch->options.draft_depth);
    batch->active[batch->active_count++] = (active){.job = job, .phase = phase};
}

/* Its pages are there as far as they are known; the rest is computed again from its tokens. */
static void resumed(dec_batch *batch, dec_job *job)
{
    job->given_way = false;
    job->since = 0; /* it was generating: before prompts of its priority */
    job->prefilled = eng_sequence_length(job->sequence);
    if (batch->options.recomputed)
        sl_metric_add(batch->options.recomputed, NULL, job->token_count - job->prefilled);
    activate(batch, job, PHASE_PREFILL);
}

/* Where the blocks that the cache does not know will be fetched to. */
static sl_status take_places(dec_job *job)
{
    uint32_t blocks = eng_pages_of(job->token_count);
    if (!job->fetches)
        return sl_ok();
    SL_TRY(
        eng_transit_take(job->sequence, job->known_blocks, blocks - job->known_blocks, &job->err));
    for (uint32_t block = 0; block < blocks; block++)
        job->places[block] = eng_transit_page(job->sequence, block);
    return sl_ok();
}

/* What the cache knew of the tokens is there. */
static void ready(dec_batch *batch, dec_job *job)
{
    if (job->given_way) {
        resumed(batch, job);
        return;
    }
    job->known_blocks = eng_sequence_length(job->sequence) / ENG_PAGE_TOKENS;
    if (sl_is_ok(take_places(job))) {
        opened(batch, job);
        return;
    }
    eng_sequence_close(job->sequence);
    open_failed(batch, job);
}

/* What a job's prompt is to tell; NULL: nothing, or it is told. */
static eng_prompt_rows *rows_wanted(const dec_job *job)
{
    return job->prompt_noted ? NULL : job->prompt_rows;
}

/* Pages for the tokens that there are. The last block of them is never taken from the cache:
 * h_final comes with it, or is computed. Neither are rows that are to tell something. */
static sl_status open_sequence(dec_batch *batch, dec_job *job)
{
    uint32_t known_max = rows_wanted(job) ? job->prompt_rows->want.first : job->token_count - 1;
    const eng_prefix prefix = {
        .tokens = job->tokens,
        .token_count = batch->options.prefix_cache ? known_max : 0,
        .space = job->cache_space,
    };
    sl_status status = eng_sequence_open_prefix(
        batch->engine, job->token_capacity, job->token_count, &prefix, &job->sequence, &job->err);
    if (!sl_is_ok(status)) {
        job->sequence = NULL;
        return status;
    }
    eng_sequence_set_owner(job->sequence, DEC_OWNER_FIRST + job->slot);
    if (eng_sequence_ready(job->sequence)) {
        ready(batch, job);
    } else {
        sl_assert(batch->opening_count < DEC_SEQUENCES_MAX);
        batch->opening[batch->opening_count++] = job;
    }
    return status;
}

static void open_job(dec_batch *batch, dec_job *job)
{
    job->rank.seniority = batch->next_seniority++;
    if (job->source)
        open_fork(batch, job);
    else if (!sl_is_ok(open_sequence(batch, job)))
        open_failed(batch, job);
}

static void poll_opening(dec_batch *batch)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < batch->opening_count; i++) {
        if (eng_sequence_ready(batch->opening[i]->sequence))
            ready(batch, batch->opening[i]);
        else
            batch->opening[count++] = batch->opening[i];
    }
    batch->opening_count = count;
}

/* Keeps the order of arrival: the batch's order must not matter, but logs read better. */
static void remove_active(dec_batch *batch, uint32_t index)
{
    sl_array_remove(batch->active, sizeof(batch->active[0]), &batch->active_count, index);
}

/* Lets go of the pages; complete blocks stay known. */
static void close_sequence(const dec_batch *batch, dec_job *job)
{
    if (!job->sequence)
        return;
    uint32_t length = eng_sequence_length(job->sequence);
    if (batch->options.prefix_cache)
        eng_sequence_publish(
            job->sequence,
            &(eng_prefix){.tokens = job->tokens, .token_count = length, .space = job->cache_space});
    eng_sequence_close(job->sequence);
    job->sequence = NULL;
}

static void release(dec_batch *batch, dec_job *job)
{
    dec_forks_remove_open(&batch->forks, job);
    for (dec_job *fork; (fork = dec_forks_take_waiting(&batch->forks, job));)
        open_fork(batch, fork); /* fails: its source is gone */
    close_sequence(batch, job);
}

/* For those that wait to come back: what the first one needs to go on, and all that was promised.
 */
static void set_reserve(const dec_batch *batch)
{
    eng_reserve reserve = {0};
    for (uint32_t i = 0; i < batch->waiting_count; i++)
        reserve.promised += eng_pages_of(batch->waiting[i]->token_capacity);
    if (batch->waiting_count > 0)
        reserve.pages = eng_pages_of(batch->waiting[0]->token_count);
    eng_engine_set_reserve(batch->engine, reserve);
}

static void close_job(dec_batch *batch, dec_job *job)
{
    for (uint32_t i = 0; i < batch->active_count; i++) {
        if (batch->active[i].job == job) {
            remove_active(batch, i);
            break;
        }
    }
    (void)sl_pointers_remove(batch->opening, &batch->opening_count, job);
    (void)sl_pointers_remove(batch->arriving, &batch->arriving_count, job);
    if (sl_pointers_remove(batch->waiting, &batch->waiting_count, job))
        set_reserve(batch);
    release(batch, job);
    emit(batch, job, DEC_BATCH_CLOSED, DEC_FINISH_NONE);
}

/* ---- giving way ---- */

/* It holds nothing any more, and comes back in its order. */
static void wait_to_resume(dec_batch *batch, dec_job *job)
{
    uint32_t at = batch->waiting_count++;
    close_sequence(batch, job);
    job->given_way = true;
    job->prompt_done = false; /* forks wait until it is there again */
    for (; at > 0 && dec_rank_before(job->rank, batch->waiting[at - 1]->rank); at--)
        batch->waiting[at] = batch->waiting[at - 1];
    batch->waiting[at] = job;
    set_reserve(batch);
}

static void give_way(dec_batch *batch, uint32_t index)
{
    dec_job *job = batch->active[index].job;
    remove_active(batch, index);
    wait_to_resume(batch, job);
    if (batch->options.preempted)
        sl_metric_add(batch->options.preempted, NULL, 1);
}

/* Its known pages are being read, or its source's prompt is awaited: nothing is lost with it. */
static void refuse_open(dec_batch *batch, dec_job *job)
{
    job->err.code = sl_fail(&job->err, SL_FULL, "the weights are replaced at this moment").code;
    close_sequence(batch, job);
    open_failed(batch, job);
}

void dec_batch_give_up_all(dec_batch *batch)
{
    sl_assert(batch->arriving_count == 0);
    while (batch->forks.waiting_count > 0)
        refuse_open(batch, dec_forks_take_waiting(&batch->forks, batch->forks.waiting[0]->source));
    while (batch->opening_count > 0) {
        dec_job *job = batch->opening[--batch->opening_count];
        if (job->given_way)
            wait_to_resume(batch, job);
        else
            refuse_open(batch, job);
    }
    while (batch->active_count > 0) {
        dec_job *job = batch->active[--batch->active_count].job;
        sl_assert(job->prompt_noted);
        wait_to_resume(batch, job);
    }
    for (uint32_t i = 0; i < batch->waiting_count; i++)
        batch->waiting[i]->outdated = true;
}

void dec_batch_note_weights(dec_batch *batch)
{
    batch->weights_version =
        (uint32_t)strtoul(eng_engine_stamp(batch->engine)->weights_version, NULL, 10);
}

/* In order of rank, nobody overtakes: the first one is the next to find room. What was promised to
 * the others does not count against it: it has its promise already, and without the pages that they
 * shared the promises of all may be more than there may be. */
static void resume(dec_batch *batch)
{
    bool room = true;
    while (room && batch->waiting_count > 0) {
        dec_job *job = batch->waiting[0];
        eng_engine_set_reserve(batch->engine, (eng_reserve){0});
        room = sl_is_ok(open_sequence(batch, job));
        if (room)
            (void)sl_pointers_remove(batch->waiting, &batch->waiting_count, job);
        set_reserve(batch);
    }
}

/* A page for the next token of each sequence that generates; in order of rank, the last ones give
 * theirs up if there are not enough. */
static void bind_next(dec_batch *batch)
{
    sl_err err;
    for (;;) {
        for (uint32_t i = 0; i < batch->active_count; i++) {
            active *entry = &batch->active[i];
            const dec_job *job = entry->job;
            entry->stalled = false;
            batch->claims[i].rank = job->rank;
            batch->claims[i].lacks =
                entry->phase == PHASE_DECODE &&
                eng_sequence_room(job->sequence) == eng_sequence_length(job->sequence);
        }
        uint32_t index = dec_claim_first_lacking(batch->claims, batch->active_count);
        if (index == DEC_NOBODY)
            return;
        active *entry = &batch->active[index];
        entry->stalled =
            !sl_is_ok(eng_sequence_bind(entry->job->sequence, entry->job->token_count, &err));
        if (!entry->stalled)
            continue;
        uint32_t victim = dec_claim_victim(batch->claims, batch->active_count);
        if (victim == DEC_NOBODY) /* others hold pages that will come back */
            return;
        give_way(batch, victim);
    }
}

/* h_final of all tokens is there: keeps it, because the sequence's own moves on. routing: of the
 * row it is of; NULL: not wanted, or there already. */
static void note_prompt(dec_batch *batch, dec_job *job, const uint8_t *routing)
{
    if (routing)
        memcpy(job->handout->first_row, routing, job->handout->o.routing->row_bytes);
    memcpy(job->h_final, eng_sequence_h_final(job->sequence),
           batch->options.hidden_size * sizeof(job->h_final[0]));
    job->prompt_noted = true;
    prompt_done(batch, job);
}

/* The prompt was fetched and is in the cache. */
static void adopt(dec_batch *batch, dec_job *job)
{
    eng_transit_give(job->sequence);
    eng_sequence_adopt(job->sequence, job->token_count, job->h_final);
    activate(batch, job, PHASE_ADOPTED);
    job->prompt_noted = true;
    prompt_done(batch, job);
}

/* What was fetched becomes known, so that others can start from it. */
static void keep(dec_batch *batch, dec_job *job)
{
    uint32_t tokens = job->verified_blocks * ENG_PAGE_TOKENS;
    emit(batch, job, DEC_BATCH_KEPT, DEC_FINISH_NONE);
    if (!batch->options.prefix_cache || !eng_transit_is_cache(batch->engine) ||
        tokens <= eng_sequence_length(job->sequence))
        return;
    eng_sequence_adopt(job->sequence, tokens, NULL);
    eng_sequence_publish(
        job->sequence,
        &(eng_prefix){.tokens = job->tokens, .token_count = tokens, .space = job->cache_space});
}

/* All was fetched that was wanted, and nothing is generated. */
static void keep_all(dec_batch *batch, dec_job *job)
{
    eng_transit_give(job->sequence);
    eng_sequence_adopt(job->sequence, job->token_count, job->h_final);
    release(batch, job);
    emit(batch, job, DEC_BATCH_FINISHED, DEC_FINISH_STOP);
}

static void poll_arriving(dec_batch *batch)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < batch->arriving_count; i++) {
        dec_job *job = batch->arriving[i];
        if (eng_transit_landed(job->sequence) && job->fetch_only)
            keep_all(batch, job);
        else if (eng_transit_landed(job->sequence))
            adopt(batch, job);
        else
            batch->arriving[count++] = batch->arriving[i];
    }
    batch->arriving_count = count;
}

/* A fork lacks nothing. */
static void run_self(dec_batch *batch, dec_job *job)
{
    eng_transit_give(job->sequence); /* maybe it was to be fetched first */
    job->since = batch->rows;
    job->prefilled = eng_sequence_length(job->sequence);
    bool complete = job->prefilled == job->token_count;
    activate(batch, job, complete ? PHASE_ADOPTED : PHASE_PREFILL);
    if (complete)
        note_prompt(batch, job, NULL);
}

static void on_command(void *context, const void *item)
{
    dec_batch *batch = context;
    const dec_command *command = item;
    dec_job *job = command->job;
    switch (command->kind) {
    case DEC_COMMAND_OPEN:
        open_job(batch, job);
        break;
    case DEC_COMMAND_ADOPT:
        sl_assert(batch->arriving_count < DEC_SEQUENCES_MAX);
        eng_transit_in(job->sequence);
        batch->arriving[batch->arriving_count++] = job;
        break;
    case DEC_COMMAND_RUN_SELF:
        run_self(batch, job);
        break;
    case DEC_COMMAND_KEEP:
        keep(batch, job);
        break;
    case DEC_COMMAND_CLOSE:
        close_job(batch, job);
        break;
    }
}

static bool is_stop(const dec_batch *batch, const dec_job *job, uint32_t id)
{
    if (id == batch->options.eos_id)
        return !job->sampling.ignore_eos;
    for (int32_t i = 0; i < job->sampling.stop_id_count; i++)
        if ((uint32_t)job->sampling.stop_ids[i] == id)
            return true;
    return false;
}

/* Of a row of the step; NULL: not wanted. */
static const uint8_t *routing_of(const dec_batch *batch, const dec_job *job, uint32_t row)
{
    return wants_routing(job) ? eng_step_routing(batch->engine, row) : NULL;
}

static draw_source from_step(const dec_batch *batch, uint32_t row)
{
    const eng_sampled *drawn = eng_step_drawn(batch->engine, row);
    return (draw_source){drawn, drawn ? NULL : eng_step_logits(batch->engine, row)};
}

static draw_source from_head(const dec_batch *batch, dec_job *job)
{
    dec_job_draw how;
    const eng_draw *draw = dec_job_draw_init(&how, job, batch->options.masks);
    const eng_sampled *drawn = draw ? eng_head_drawn(batch->engine, job->sequence, draw) : NULL;
    return (draw_source){drawn, drawn ? NULL : eng_head_logits(batch->engine, job->sequence)};
}

/* Draws the next token, tells the control thread; the result says whether the job goes on. FAILED:
 * there is no token. */
static dec_finish draw(dec_batch *batch, dec_job *job, draw_source from, const uint8_t *routing)
{
    uint32_t position = job->token_count;
    const uint32_t *allowed = NULL;
    sl_assert(position < job->token_capacity);
    if (!sl_is_ok(eng_engine_check(batch->engine, &job->err)))
        return DEC_FINISH_FAILED;
    if (!from.drawn && job->cursor.matcher &&
        !sl_is_ok(mdl_cursor_mask(&job->cursor, batch->options.masks,
                                  job->tokens + job->prompt_count, position - job->prompt_count,
                                  &allowed, &job->err)))
        return DEC_FINISH_FAILED;
    if (from.drawn)
        batch->sampled = *from.drawn;
    else
        eng_sample(batch->engine, from.logits, &job->sampling, job->tokens, job->token_count,
                   job->prompt_count, position, allowed, &batch->sampled);
    if (job->handout)
        dec_handout_note(job->handout, batch->engine, routing);
    uint32_t id = batch->sampled.id;
    job->tokens[job->token_count++] = id;
    emit(batch, job, DEC_BATCH_TOKEN, DEC_FINISH_NONE);
    if (is_stop(batch, job, id))
        return DEC_FINISH_STOP;
    uint32_t generated = job->token_count - job->prompt_count;
    if (job->token_count == job->token_capacity || generated >= (uint32_t)job->sampling.max_tokens)
        return DEC_FINISH_LENGTH;
    return DEC_FINISH_NONE;
}

static void finish(dec_batch *batch, uint32_t index, dec_finish why)
{
    dec_job *job = batch->active[index].job;
    remove_active(batch, index);
    release(batch, job);
    emit(batch, job, DEC_BATCH_FINISHED, why);
}

/* First tokens of sequences that arrived with their pages: h_final is enough. */
static void draw_adopted(dec_batch *batch)
{
    for (uint32_t i = 0; i < batch->active_count;) {
        active *entry = &batch->active[i];
        if (entry->phase != PHASE_ADOPTED) {
            i++;
            continue;
        }
        dec_job *job = entry->job;
        dec_finish why =
            draw(batch, job, from_head(batch, job), job->handout ? job->handout->first_row : NULL);
        if (why == DEC_FINISH_NONE) {
            entry->phase = PHASE_DECODE;
            i++;
        } else {
            finish(batch, i, why);
        }
    }
}

static void add_span(dec_batch *batch, uint32_t index, uint32_t count, uint32_t token_count,
                     eng_logits_want logits)
{
    dec_job *job = batch->active[index].job;
    uint32_t from = eng_sequence_length(job->sequence);
    bool routing = wants_routing(job) && logits != ENG_LOGITS_NONE;
    const eng_draw *how = dec_job_draw_init(&batch->draws[count], job, batch->options.masks);
    batch->spans[count] =
        (eng_span){job->sequence, job->tokens + from, token_count, logits, routing, how};
    batch->span_active[count] = index;
    batch->active[index].in_step = true;
}

/* Tokens that the job may still generate. */
static uint32_t tokens_left(const dec_job *job)
{
    uint32_t room = job->token_capacity - job->token_count;
    uint32_t generated = job->token_count - job->prompt_count;
    uint32_t wanted = (uint32_t)job->sampling.max_tokens - generated;
    return room < wanted ? room : wanted;
}

/* Rows of the next step that neither sequences nor prompts take. */
static uint32_t rows_for_drafts(const dec_batch *batch)
{
    uint64_t decode = 0, prefill = 0;
    for (uint32_t i = 0; i < batch->active_count; i++) {
        const dec_job *job = batch->active[i].job;
        decode += batch->active[i].phase == PHASE_DECODE;
        if (batch->active[i].phase == PHASE_PREFILL)
            prefill += job->token_count - job->prefilled;
    }
    uint64_t rows = decode + prefill, chunk = batch->options.chunk_tokens;
    if (prefill > 0 && rows > chunk)
        rows = decode > chunk ? decode : chunk;
    return rows < batch->options.rows_max ? batch->options.rows_max - (uint32_t)rows : 0;
}

/* Drafts that have room in bound pages; nobody gives way for them. */
static uint32_t room_for_drafts(const dec_batch *batch, const dec_job *job, uint32_t wanted)
{
    sl_err err;
    if (batch->waiting_count == 0 &&
        sl_is_ok(eng_sequence_bind(job->sequence, job->token_count + wanted, &err)))
        return wanted;
    uint32_t room = eng_sequence_room(job->sequence);
    return room > job->token_count ? room - job->token_count : 0;
}

static bool generates(const active *entry)
{
    return entry->phase == PHASE_DECODE && !entry->stalled;
}

/* What a constraint leaves of a draft, as far as it can be told at no great cost. */
static const uint32_t *draft_allowed(void *context, const eng_drafts *drafts, uint32_t at)
{
    dec_batch *batch = context;
    dec_job *job = batch->active[batch->draft_active[drafts - batch->drafts]].job;
    const mdl_cursor_ahead ahead = {
        .generated = job->tokens + job->prompt_count,
        .count = job->token_count - job->prompt_count,
        .drafts = drafts->tokens,
        .draft_count = at,
    };
    return mdl_cursor_mask_ahead(&job->cursor, batch->options.masks, &ahead);
}

/* Who drafts in this step, and how much: at most what the job may still generate after the token
 * that the step draws anyway. */
static uint32_t plan_drafts(dec_batch *batch)
{
    uint32_t count = 0, rows_left = rows_for_drafts(batch), generating = 0;
    for (uint32_t i = 0; i < batch->active_count; i++) {
        batch->active[i].drafted = 0;
        generating += generates(&batch->active[i]);
    }
    batch->draft_price = dec_draft_price(&batch->draft_cost, generating);
    if (dec_draft_cost_looks(&batch->draft_cost, generating))
        return 0;
    for (uint32_t i = 0; i < batch->active_count; i++) {
        dec_job *job = batch->active[i].job;
        if (!generates(&batch->active[i]))
            continue;
        uint32_t depth = dec_draft_depth(&job->draft, batch->draft_price);
        uint32_t useful = tokens_left(job) - 1;
        depth = depth < useful ? depth : useful;
        depth = depth < rows_left ? depth : rows_left;
        uint32_t room = room_for_drafts(batch, job, depth);
        depth = depth < room ? depth : room;
        if (depth == 0)
            continue;
        rows_left -= depth;
        batch->draft_active[count] = i;
        batch->drafts[count++] = (eng_drafts){.sequence = job->sequence,
                                              .next_token = job->tokens[job->token_count - 1],
                                              .count = depth,
                                              .allowed = job->cursor.matcher ? draft_allowed : NULL,
                                              .context = batch,
                                              .sampling = &job->sampling,
                                              .ids = job->tokens,
                                              .id_count = job->token_count,
                                              .prompt_count = job->prompt_count};
    }
    return count;
}

/* Puts drafts behind the tokens of the jobs, where their spans find them. */
static void make_drafts(dec_batch *batch)
{
    uint32_t count = plan_drafts(batch), drafts = 0;
    if (count == 0)
        return;
    sl_err err;
    sl_time_ns start = sl_now_ns();
    if (!sl_is_ok(eng_draft_many(batch->engine, batch->drafts, count, &err))) {
        /* The step itself may be sound: it goes on without drafts, and says if it is not. */
        sl_warn("no drafts: %s", err.text);
        for (uint32_t i = 0; i < count; i++)
            dec_draft_init(&batch->active[batch->draft_active[i]].job->draft, 0);
        return;
    }
    for (uint32_t i = 0; i < count; i++) {
        active *entry = &batch->active[batch->draft_active[i]];
        entry->drafted = batch->drafts[i].count;
        drafts += entry->drafted;
        memcpy(entry->job->tokens + entry->job->token_count, batch->drafts[i].tokens,
               entry->drafted * sizeof(uint32_t));
    }
    dec_draft_cost_note_drafts(&batch->draft_cost, drafts, sl_now_ns() - start);
}

static eng_turn turn_of(const dec_job *job)
{
    return (eng_turn){job->rank.priority, job->token_count - job->prefilled, job->since,
                      job->rank.seniority};
}

/* The prompt that is computed next and not in the step yet; active_count: none. */
static uint32_t next_prompt(const dec_batch *batch)
{
    uint32_t best = batch->active_count;
    eng_turn first = {0};
    for (uint32_t i = 0; i < batch->active_count; i++) {
        const active *entry = &batch->active[i];
        if (entry->phase != PHASE_PREFILL || entry->in_step)
            continue;
        eng_turn turn = turn_of(entry->job);
        if (best < batch->active_count && !eng_turn_before(&turn, &first, batch->rows))
            continue;
        best = i;
        first = turn;
    }
    return best;
}

/* What is left of the chunk goes to prompts, in the order of engine/schedule.h; while sequences
 * generate, as much as there is time for. */
static uint32_t add_prompts(dec_batch *batch, uint32_t count, eng_load *load)
{
    const eng_cost *cost = eng_worker_cost(batch->client);
    bool limited = count > 0 && batch->options.chunk_ns > 0, first = true;
    uint64_t limit_ns = eng_cost_predict_ns(cost, load) + batch->options.chunk_ns;
    uint32_t rows_left =
        batch->options.chunk_tokens > count ? batch->options.chunk_tokens - count : 0;
    for (; rows_left > 0; first = false) {
        uint32_t index = next_prompt(batch);
        if (index == batch->active_count)
            break;
        dec_job *job = batch->active[index].job;
        uint32_t left = job->token_count - job->prefilled;
        uint32_t rows = left < rows_left ? left : rows_left;
        if (limited)
            rows = eng_cost_rows(cost, load, job->prefilled, rows, limit_ns, first);
        if (rows == 0)
            break;
        add_span(batch, index, count, rows, rows == left ? ENG_LOGITS_LAST : ENG_LOGITS_NONE);
        eng_prompt_ask(rows_wanted(job), job->prefilled, &batch->spans[count++]);
        eng_load_add(load, job->prefilled, rows);
        batch->rows += rows;
        rows_left -= rows;
    }
    return count;
}

/* The last token of each sequence that generates, with its drafts, then prompts. */
static uint32_t build_spans(dec_batch *batch, eng_load *out_load)
{
    uint32_t count = 0;
    *out_load = (eng_load){0};
    for (uint32_t i = 0; i < batch->active_count; i++) {
        active *entry = &batch->active[i];
        entry->in_step = false;
        if (!generates(entry))
            continue;
        eng_load_add(out_load, eng_sequence_length(entry->job->sequence), 1 + entry->drafted);
        add_span(batch, i, count++, 1 + entry->drafted, ENG_LOGITS_ALL);
    }
    batch->generating_rows = (uint32_t)out_load->rows;
    return add_prompts(batch, count, out_load);
}

/* How long a step took that went well. */
static void note_time(dec_batch *batch, const eng_load *load, uint64_t ns)
{
    eng_cost_note(eng_worker_cost(batch->client), load, ns);
    if (load->rows == batch->generating_rows)
        dec_draft_cost_note(&batch->draft_cost, batch->generating_rows, ns);
}

static void fail_spans(dec_batch *batch, const sl_err *err)
{
    /* From the last to the first, so that indices stay right while entries go. */
    for (uint32_t i = batch->active_count; i-- > 0;) {
        if (!batch->active[i].in_step)
            continue;
        batch->active[i].job->err = *err;
        finish(batch, i, DEC_FINISH_FAILED);
    }
}

/* The rows of a sequence that generates: the draw of each decides whether the draft after it was
 * right. Rows of wrong drafts go, and so do those behind the end, so that the cache holds what
 * plain decoding leaves: all tokens but the last. */
static dec_finish draw_run(dec_batch *batch, active *entry, uint32_t logits_row, uint32_t row)
{
    dec_job *job = entry->job;
    uint32_t accepted = 0;
    dec_finish why = DEC_FINISH_NONE;
    for (;;) {
        uint32_t draft = job->tokens[job->token_count]; /* the draw takes its place */
        why = draw(batch, job, from_step(batch, logits_row + accepted),
                   routing_of(batch, job, row + accepted));
        if (why == DEC_FINISH_FAILED)
            break;
        bool right = accepted < entry->drafted && job->tokens[job->token_count - 1] == draft;
        if (!right)
            break;
        accepted++;
        if (why != DEC_FINISH_NONE)
            break;
    }
    /* A draw that failed leaves no token without its row. */
    eng_sequence_truncate(job->sequence, job->token_count - (why == DEC_FINISH_FAILED ? 0 : 1));
    dec_draft_note(&job->draft, entry->drafted, accepted, batch->draft_price);
    if (batch->options.depth)
        sl_metric_observe(batch->options.depth, entry->drafted);
    if (batch->options.drafted && entry->drafted > 0)
        sl_metric_add(batch->options.drafted, NULL, entry->drafted);
    if (batch->options.accepted && accepted > 0)
        sl_metric_add(batch->options.accepted, NULL, accepted);
    return why;
}

static void draw_spans(dec_batch *batch, uint32_t count)
{
    dec_finish why[DEC_SEQUENCES_MAX] = {DEC_FINISH_NONE};
    uint32_t row = 0, end = 0, logits_row = 0; /* of the span in the step, and among its logits */
    for (uint32_t i = 0; i < count; i++, row = end) {
        uint32_t index = batch->span_active[i];
        active *entry = &batch->active[index];
        dec_job *job = entry->job;
        const eng_span *span = &batch->spans[i];
        end = row + span->token_count;
        if (entry->phase == PHASE_DECODE) {
            why[index] = draw_run(batch, entry, logits_row, row);
            logits_row += span->token_count;
            continue;
        }
        eng_prompt_note(rows_wanted(job), batch->engine, span, job->prefilled, row, logits_row,
                        job->tokens);
        job->prefilled += span->token_count;
        logits_row += span->logits == ENG_LOGITS_ALL ? span->token_count : 0;
        if (job->prefilled < job->token_count)
            continue;
        logits_row += span->logits == ENG_LOGITS_LAST;
        entry->phase = PHASE_DECODE;
        const uint8_t *routing = routing_of(batch, job, end - 1);
        if (job->prompt_noted) /* it is back after it gave way */
            prompt_done(batch, job);
        else
            note_prompt(batch, job, routing);
        why[index] = draw(batch, job, from_step(batch, logits_row - 1), routing);
    }
    for (uint32_t i = batch->active_count; i-- > 0;)
        if (why[i] != DEC_FINISH_NONE)
            finish(batch, i, why[i]);
}

static bool on_run(void *context)
{
    dec_batch *batch = context;
    poll_opening(batch);
    poll_arriving(batch);
    resume(batch);
    if (batch->active_count == 0)
        return false;
    uint32_t before = batch->active_count;
    draw_adopted(batch);
    bind_next(batch);
    make_drafts(batch);
    eng_load load;
    uint32_t count = build_spans(batch, &load);
    if (count == 0) /* whoever has the missing pages wakes the thread when they come back */
        return batch->waiting_count > 0 && batch->active_count < before;
    if (batch->options.step_batch_size)
        sl_metric_observe(batch->options.step_batch_size, count);
    sl_err err;
    sl_time_ns start = sl_now_ns();
    sl_status status = sl_fault("decode.step")
                           ? sl_fail(&err, SL_INTERNAL, "fault site decode.step")
                           : eng_step(batch->engine, batch->spans, count, NULL, NULL, &err);
    if (sl_is_ok(status)) {
        note_time(batch, &load, sl_now_ns() - start);
        draw_spans(batch, count);
    } else {
        fail_spans(batch, &err);
    }
    return batch->active_count + batch->waiting_count > 0;
}

static void on_stop(void *context)
{
    dec_batch *batch = context;
    batch->forks.waiting_count = 0;
    for (uint32_t i = 0; i < batch->active_count; i++)
        release(batch, batch->active[i].job);
    batch->opening_count = 0;
    batch->arriving_count = 0;
    batch->waiting_count = 0;
    batch->active_count = 0;
}

static const eng_worker_ops BATCH_OPS = {
    .command_bytes = sizeof(dec_command),
    .command_capacity = 4 * DEC_SEQUENCES_MAX,
    .event_bytes = sizeof(dec_batch_event),
    .event_capacity = DEC_EVENTS_MAX,
    .command = on_command,
    .run = on_run,
    .stop = on_stop,
};

sl_status dec_batch_create(eng_engine *engine, eng_worker *worker, const dec_batch_options *options,
                           dec_batch **out_batch, sl_err *err)
{
    sl_assert(options->sequences_max <= DEC_SEQUENCES_MAX);
    sl_assert(options->draft_depth <= ENG_DRAFTS_MAX);
    dec_batch *batch = sl_alloc(1, sizeof(*batch), "decode batch");
    batch->engine = engine;
    batch->options = *options;
    sl_status status = eng_worker_attach(worker, &BATCH_OPS, batch, &batch->client, err);
    if (!sl_is_ok(status)) {
        sl_free(batch);
        return status;
    }
    dec_batch_note_weights(batch);
    *out_batch = batch;
    return sl_ok();
}

void dec_batch_destroy(dec_batch *batch)
{
    sl_free(batch);
}

eng_worker_client *dec_batch_client(dec_batch *batch)
{
    return batch->client;
}
