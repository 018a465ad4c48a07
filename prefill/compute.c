/* Chunked prefill on the engine thread: see compute.h.
 *
 * The first in order (engine/schedule.h) takes the rows it needs, what is left of the chunk goes to
 * the next prompts: short prompts share a step. In a hybrid node a step between those of sequences
 * that generate is as long as the time for it allows. After each layer group the finished blocks'
 * pieces go to their places, sums are made, and the control thread is told, which announces them
 * while the next group is computed. Where going there takes time (a device's cache), it goes on
 * beside the next group, and the control thread is told after that. */
#include "prefill/compute.h"

#include <string.h>

#include "base/alloc.h"
#include "base/array.h"
#include "base/assert.h"
#include "base/clock.h"
#include "base/fault.h"
#include "engine/ledger.h"
#include "engine/transit.h"

struct pre_compute {
    eng_engine *engine;
    const mdl_shape *shape;
    const eng_cache_layout *layout;
    eng_worker_client *client;
    pre_compute_options options;
    pre_task *opening[PRE_JOBS_MAX]; /* their known pages are being read */
    uint32_t opening_count;
    pre_task *active[PRE_JOBS_MAX];
    uint32_t active_count;
    uint64_t rows, next_order; /* computed of all prompts, and how many began */
    eng_load load;             /* of the step */
    eng_span spans[PRE_JOBS_MAX];
    uint32_t span_count;
    bool fault;         /* a fault site asked this step to fail */
    bool out_due;       /* pieces of the step are under way, and to be told of: */
    uint32_t out_group; /* of this group */
};

pre_task *pre_task_create(const uint32_t *tokens, uint32_t token_count, uint32_t group_count,
                          size_t final_bytes)
{
    sl_assert(token_count > 0 && group_count > 0 && group_count <= PRE_GROUPS_MAX);
    pre_task *task = sl_alloc(1, sizeof(*task), "prefill task");
    task->token_count = token_count;
    task->block_count = eng_pages_of(token_count);
    task->tokens = sl_alloc(token_count, sizeof(*task->tokens), "prefill task tokens");
    memcpy(task->tokens, tokens, token_count * sizeof(*tokens));
    task->places = sl_alloc(task->block_count, sizeof(*task->places), "prefill task places");
    task->sums =
        sl_alloc((size_t)task->block_count * group_count, sizeof(*task->sums), "prefill task sums");
    task->final = sl_alloc(1, final_bytes, "prefill task final");
    task->final_bytes = final_bytes;
    return task;
}

void pre_task_destroy(pre_task *task)
{
    if (!task)
        return;
    sl_assert(!task->sequence);
    sl_free(task->tokens);
    sl_free(task->places);
    sl_free(task->sums);
    sl_free(task->final);
    eng_prompt_rows_destroy(task->prompt_rows);
    sl_free(task);
}

static void emit(pre_compute *compute, pre_task *task, pre_compute_event_kind kind, uint32_t group,
                 uint32_t blocks)
{
    pre_compute_event event = {kind, group, blocks, task->tokens_done, task};
    eng_worker_emit(compute->client, &event);
}

/* Rows from here on must be computed, whatever the cache knows: what they chose is wanted. */
static uint32_t rows_wanted_from(const pre_task *task)
{
    if (task->prompt_rows)
        return task->prompt_rows->want.first;
    return task->last_routing ? task->token_count - 1 : task->token_count;
}

static void remove_active(pre_compute *compute, uint32_t index)
{
    sl_array_remove(compute->active, sizeof(compute->active[0]), &compute->active_count, index);
}

static void open_failed(pre_compute *compute, pre_task *task)
{
    task->sequence = NULL;
    emit(compute, task, PRE_COMPUTE_OPEN_FAILED, 0, 0);
}

static void opened(pre_compute *compute, pre_task *task)
{
    sl_status status = eng_transit_take(task->sequence, task->first_block,
                                        task->block_count - task->first_block, &task->err);
    if (!sl_is_ok(status)) {
        eng_sequence_close(task->sequence);
        open_failed(compute, task);
        return;
    }
    for (uint32_t block = 0; block < task->block_count; block++)
        task->places[block] = eng_transit_page(task->sequence, block);
    task->tokens_known = task->tokens_done = eng_sequence_length(task->sequence);
    emit(compute, task, PRE_COMPUTE_OPENED, 0, 0);
}

static void open_task(pre_compute *compute, pre_task *task)
{
    const eng_prefix prefix = {
        .tokens = task->tokens,
        .token_count = compute->options.prefix_cache ? rows_wanted_from(task) : 0,
        .space = task->cache_space,
    };
    sl_status status =
        eng_sequence_open_prefix(compute->engine, task->token_count, task->token_count, &prefix,
                                 &task->sequence, &task->err);
    if (!sl_is_ok(status)) {
        open_failed(compute, task);
        return;
    }
    eng_sequence_set_owner(task->sequence, PRE_OWNER_FIRST + task->slot);
    if (eng_sequence_ready(task->sequence)) {
        opened(compute, task);
    } else {
        sl_assert(compute->opening_count < PRE_JOBS_MAX);
        compute->opening[compute->opening_count++] = task;
    }
}

static void poll_opening(pre_compute *compute)
{
    for (uint32_t i = 0; i < compute->opening_count;) {
        pre_task *task = compute->opening[i];
        if (!eng_sequence_ready(task->sequence)) {
            i++;
            continue;
        }
        sl_array_remove(compute->opening, sizeof(compute->opening[0]), &compute->opening_count, i);
        opened(compute, task);
    }
}

static void close_task(pre_compute *compute, pre_task *task)
{
    (void)sl_pointers_remove(compute->opening, &compute->opening_count, task);
    (void)sl_pointers_remove(compute->active, &compute->active_count, task);
    if (task->sequence) /* its OPEN may have failed meanwhile */
        eng_sequence_close(task->sequence);
    task->sequence = NULL;
    emit(compute, task, PRE_COMPUTE_CLOSED, 0, 0);
}

/* Starts to take pieces to their places, for whoever fetches them. */
static void send_out(pre_task *task, uint32_t group, uint32_t from, uint32_t to)
{
    from = from > task->first_block ? from : task->first_block;
    if (from < to)
        eng_transit_out(task->sequence, group, from, to, task->sums);
}

static void finish_task(pre_compute *compute, pre_task *task)
{
    memcpy(task->final, eng_sequence_h_final(task->sequence),
           (size_t)compute->shape->hidden_size * sizeof(uint16_t));
    bool sound = sl_is_ok(eng_engine_check(compute->engine, &task->err));
    emit(compute, task, sound ? PRE_COMPUTE_DONE : PRE_COMPUTE_FAILED, 0, 0);
}

/* What the cache knew already can be announced before anything is computed. */
static sl_status send_known(pre_compute *compute, pre_task *task)
{
    uint32_t blocks = task->tokens_known / ENG_PAGE_TOKENS;
    if (blocks == 0)
        return sl_ok();
    for (uint32_t group = 0; group < compute->layout->group_count; group++)
        send_out(task, group, 0, blocks);
    SL_TRY(eng_transit_wait(compute->engine, &task->err));
    for (uint32_t group = 0; group < compute->layout->group_count; group++)
        emit(compute, task, PRE_COMPUTE_GROUP, group, blocks);
    emit(compute, task, PRE_COMPUTE_PROGRESS, 0, 0);
    return sl_ok();
}

/* Maybe the cache knew it all. */
static void start_task(pre_compute *compute, pre_task *task)
{
    if (!sl_is_ok(send_known(compute, task))) {
        emit(compute, task, PRE_COMPUTE_FAILED, 0, 0);
        return;
    }
    if (task->tokens_done == task->token_count) {
        finish_task(compute, task);
        return;
    }
    sl_assert(compute->active_count < PRE_JOBS_MAX);
    task->since = compute->rows;
    task->order = compute->next_order++;
    compute->active[compute->active_count++] = task;
}

static void on_command(void *context, const void *item)
{
    pre_compute *compute = context;
    const pre_command *command = item;
    switch (command->kind) {
    case PRE_COMMAND_OPEN:
        open_task(compute, command->task);
        break;
    case PRE_COMMAND_COMPUTE:
        start_task(compute, command->task);
        break;
    case PRE_COMMAND_CLOSE:
        close_task(compute, command->task);
        break;
    }
}

/* Blocks whose rows are complete once `tokens` tokens are in the cache: the tail block counts when
 * the prompt ends in it. */
static uint32_t blocks_complete(const pre_task *task, uint32_t tokens)
{
    return tokens == task->token_count ? task->block_count : tokens / ENG_PAGE_TOKENS;
}

/* Blocks [from, to) become complete with span `i` of the step. */
static uint32_t span_blocks(const pre_compute *compute, uint32_t i, uint32_t *out_from)
{
    const pre_task *task = compute->active[i];
    *out_from = task->tokens_done / ENG_PAGE_TOKENS;
    return blocks_complete(task, task->tokens_done + compute->spans[i].token_count);
}

/* Pieces that went out are there: tells of them. */
static sl_status tell_group(pre_compute *compute, sl_err *err)
{
    if (!compute->out_due)
        return sl_ok();
    compute->out_due = false;
    SL_TRY(eng_transit_wait(compute->engine, err));
    for (uint32_t i = 0; i < compute->span_count; i++) {
        uint32_t from, to = span_blocks(compute, i, &from);
        if (to > from)
            emit(compute, compute->active[i], PRE_COMPUTE_GROUP, compute->out_group, to);
    }
    return sl_ok();
}

static void on_group(void *context, uint32_t group)
{
    pre_compute *compute = context;
    sl_err err;
    if (sl_fault("prefill.group"))
        compute->fault = true;
    if (!sl_is_ok(tell_group(compute, &err))) /* the group before */
        return;                               /* the device failed: so does the step */
    for (uint32_t i = 0; i < compute->span_count; i++) {
        uint32_t from, to = span_blocks(compute, i, &from);
        send_out(compute->active[i], group, from, to);
    }
    compute->out_due = true;
    compute->out_group = group;
    if (!eng_transit_busy(compute->engine))
        (void)!sl_is_ok(tell_group(compute, &err)); /* nothing to wait for */
}

static eng_turn turn_of(const pre_task *task)
{
    return (eng_turn){task->priority, task->token_count - task->tokens_done, task->since,
                      task->order};
}

/* The next one to compute first. */
static void sort_active(pre_compute *compute)
{
    for (uint32_t i = 1; i < compute->active_count; i++) {
        pre_task *task = compute->active[i];
        eng_turn turn = turn_of(task);
        uint32_t at = i;
        for (; at > 0; at--) {
            eng_turn other = turn_of(compute->active[at - 1]);
            if (!eng_turn_before(&turn, &other, compute->rows))
                break;
            compute->active[at] = compute->active[at - 1];
        }
        compute->active[at] = task;
    }
}

/* Rows of a task in the step that is being built. */
static uint32_t rows_of(pre_compute *compute, const pre_task *task, uint32_t rows_max)
{
    if (compute->options.chunk_ns == 0 || !eng_worker_is_shared(compute->client))
        return rows_max;
    return eng_cost_rows(eng_worker_cost(compute->client), &compute->load, task->tokens_done,
                         rows_max, compute->options.chunk_ns, compute->span_count == 0);
}

static void build_spans(pre_compute *compute)
{
    uint32_t rows_left = compute->options.chunk_tokens;
    compute->span_count = 0;
    compute->load = (eng_load){0};
    sort_active(compute);
    for (uint32_t i = 0; i < compute->active_count && rows_left > 0; i++) {
        pre_task *task = compute->active[i];
        uint32_t left = task->token_count - task->tokens_done;
        uint32_t rows = rows_of(compute, task, left < rows_left ? left : rows_left);
        if (rows == 0)
            break;
        compute->spans[i] = (eng_span){task->sequence,  task->tokens + task->tokens_done,   rows,
                                       ENG_LOGITS_NONE, task->last_routing && rows == left, NULL};
        eng_prompt_ask(task->prompt_rows, task->tokens_done, &compute->spans[i]);
        compute->span_count++;
        eng_load_add(&compute->load, task->tokens_done, rows);
        rows_left -= rows;
    }
}

/* What the step's rows tell beside what they leave in the cache. */
static void note_rows(pre_compute *compute)
{
    uint32_t row = 0, logits_row = 0;
    for (uint32_t i = 0; i < compute->span_count; i++) {
        pre_task *task = compute->active[i];
        const eng_span *span = &compute->spans[i];
        eng_prompt_note(task->prompt_rows, compute->engine, span, task->tokens_done, row,
                        logits_row, task->tokens);
        row += span->token_count;
        logits_row += span->logits == ENG_LOGITS_ALL ? span->token_count : 0;
        if (!task->last_routing || task->tokens_done + span->token_count < task->token_count)
            continue;
        size_t bytes = eng_engine_routing(compute->engine)->row_bytes;
        memcpy(task->final + task->final_bytes - bytes, eng_step_routing(compute->engine, row - 1),
               bytes);
    }
}

/* The step's spans belong to the first span_count active tasks. */
static void after_step(pre_compute *compute, sl_status status, sl_err *err, uint64_t step_ns)
{
    if (sl_is_ok(status)) {
        note_rows(compute);
        status = eng_engine_check(compute->engine, err);
    }
    for (uint32_t i = compute->span_count; i-- > 0;) {
        pre_task *task = compute->active[i];
        if (!sl_is_ok(status)) {
            task->err = *err;
            remove_active(compute, i);
            emit(compute, task, PRE_COMPUTE_FAILED, 0, 0);
            continue;
        }
        task->tokens_done += compute->spans[i].token_count;
        task->compute_ns += step_ns;
        if (compute->options.prefix_cache)
            eng_sequence_publish(task->sequence, &(eng_prefix){.tokens = task->tokens,
                                                               .token_count = task->tokens_done,
                                                               .space = task->cache_space});
        emit(compute, task, PRE_COMPUTE_PROGRESS, 0, 0);
        if (task->tokens_done < task->token_count)
            continue;
        remove_active(compute, i);
        finish_task(compute, task);
    }
}

static bool on_run(void *context)
{
    pre_compute *compute = context;
    poll_opening(compute);
    if (compute->active_count == 0)
        return false;
    build_spans(compute);
    sl_err err;
    sl_time_ns start = sl_now_ns();
    compute->fault = false;
    sl_status status =
        eng_step(compute->engine, compute->spans, compute->span_count, on_group, compute, &err);
    sl_err out_err;
    sl_status out_status = tell_group(compute, &out_err); /* nothing may be under way after this */
    if (sl_is_ok(status) && !sl_is_ok(out_status)) {
        status = out_status;
        err = out_err;
    }
    if (sl_is_ok(status) && compute->fault)
        status = sl_fail(&err, SL_INTERNAL, "fault site prefill.group");
    sl_time_ns step_ns = sl_now_ns() - start;
    compute->rows += compute->load.rows;
    eng_cost_note(eng_worker_cost(compute->client), &compute->load, step_ns);
    after_step(compute, status, &err, step_ns);
    return compute->active_count > 0;
}

static void on_stop(void *context)
{
    pre_compute *compute = context;
    compute->opening_count = 0;
    compute->active_count = 0;
}

static const eng_worker_ops COMPUTE_OPS = {
    .command_bytes = sizeof(pre_command),
    .command_capacity = 4 * PRE_JOBS_MAX,
    .event_bytes = sizeof(pre_compute_event),
    .event_capacity = PRE_EVENTS_MAX,
    .command = on_command,
    .run = on_run,
    .stop = on_stop,
};

sl_status pre_compute_create(eng_engine *engine, const eng_model *model, eng_worker *worker,
                             const pre_compute_options *options, pre_compute **out_compute,
                             sl_err *err)
{
    pre_compute *compute = sl_alloc(1, sizeof(*compute), "prefill compute");
    compute->engine = engine;
    compute->shape = eng_model_shape(model);
    compute->layout = eng_engine_layout(engine);
    compute->options = *options;
    sl_assert(compute->layout->group_count <= PRE_GROUPS_MAX);
    sl_status status = eng_worker_attach(worker, &COMPUTE_OPS, compute, &compute->client, err);
    if (!sl_is_ok(status)) {
        sl_free(compute);
        return status;
    }
    *out_compute = compute;
    return sl_ok();
}

void pre_compute_destroy(pre_compute *compute)
{
    sl_free(compute);
}

eng_worker_client *pre_compute_client(pre_compute *compute)
{
    return compute->client;
}
