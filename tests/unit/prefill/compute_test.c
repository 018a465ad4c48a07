/* The engine thread's side of a prefill node, on a nano model: what it tells of each prompt and in
 * which order, and that pages, sums and last rows are those of a prompt computed alone and whole.
 *
 * Commands posted before the worker starts are all taken before its first step, so that the order
 * of events does not depend on time. */
#include "prefill/compute.h"

#include <poll.h>
#include <signal.h>

#include "base/fault.h"
#include "engine/tier.h"
#include "tests/unit/engine/deferred.h"

#define TASKS_MAX   5u
#define GROUPS      2u /* two layers each: three and the MTP layer */
#define FINAL_BYTES (NANO_HIDDEN * sizeof(uint16_t))

typedef struct node {
    rig r;
    eng_engine *engine;
    eng_worker *worker;
    pre_compute *compute;
    pre_task *tasks[TASKS_MAX]; /* told of as a, b, c .. */
    bool go;                    /* what is opened is computed at once */
    char trace[4096];
    size_t trace_size;
    bool other_works; /* a second client of the engine, which never ends */
} node;

static void arm(const char *spec)
{
    static const char *const SITES[] = {"prefill.group", "tier.read", "tier.write", NULL};
    sl_err err;
    assert_ok(sl_fault_init(SITES, spec, &err), &err);
}

/* ---- the other client, as a hybrid node has it ---- */

static void other_command(void *context, const void *command)
{
    (void)context;
    (void)command;
}

static bool other_run(void *context)
{
    return ((node *)context)->other_works;
}

static void other_stop(void *context)
{
    (void)context;
}

static const eng_worker_ops OTHER = {
    .command_bytes = 1,
    .command_capacity = 2,
    .event_bytes = 1,
    .event_capacity = 2,
    .command = other_command,
    .run = other_run,
    .stop = other_stop,
};

/* ---- a node ---- */

typedef struct node_options {
    uint32_t pages;         /* of the cache */
    uint32_t transit_pages; /* 0: the cache itself is what others read; else as on a device */
    const char *tier_path;
    pre_compute_options compute;
} node_options;

static void node_engine(node *n, const node_options *options)
{
    sl_err err;
    eng_worker_client *other;
    const eng_model *model = n->r.model;
    n->engine = rig_engine(
        &n->r, &(eng_options){.kv_bytes = eng_model_kv_bytes(model, (uint64_t)options->pages * 64),
                              .transit_bytes =
                                  eng_model_kv_bytes(model, (uint64_t)options->transit_pages * 64),
                              .layer_group = 2,
                              .rows_max = 256,
                              .context_max = options->transit_pages * 64,
                              .threads = 1,
                              .tier_path = options->tier_path,
                              .tier_bytes = 16 << 20});
    if (options->transit_pages > 0)
        deferred_use(n->engine);
    assert_int_equal(eng_engine_layout(n->engine)->group_count, GROUPS);
    assert_ok(eng_worker_create(n->engine, &n->worker, &err), &err);
    assert_ok(eng_worker_attach(n->worker, &OTHER, n, &other, &err), &err);
    assert_ok(pre_compute_create(n->engine, model, n->worker, &options->compute, &n->compute, &err),
              &err);
}

static void node_open(node *n, const node_options *options)
{
    memset(n, 0, sizeof(*n));
    arm(NULL);
    rig_open_options(&n->r, NULL,
                     &(eng_options){.kv_bytes = 4 << 20, .rows_max = 320, .threads = 1});
    node_engine(n, options);
}

static void node_start(node *n)
{
    sl_err err;
    assert_ok(eng_worker_start(n->worker, &err), &err);
}

static void node_stop(node *n)
{
    eng_worker_stop(n->worker);
    for (uint32_t i = 0; i < TASKS_MAX; i++) {
        pre_task_destroy(n->tasks[i]);
        n->tasks[i] = NULL;
    }
    eng_worker_destroy(n->worker);
    pre_compute_destroy(n->compute);
    assert_int_equal(eng_engine_pages_free(n->engine), eng_engine_layout(n->engine)->page_count);
    eng_engine_destroy(n->engine);
}

static void node_close(node *n)
{
    arm(NULL);
    node_stop(n);
    rig_close(&n->r);
}

static pre_task *add_tokens(node *n, uint32_t slot, const uint32_t *tokens, uint32_t count,
                            bool last_routing)
{
    size_t routing = last_routing ? eng_engine_routing(n->engine)->row_bytes : 0;
    pre_task *task = pre_task_create(tokens, count, GROUPS, FINAL_BYTES + routing);
    task->slot = slot;
    task->last_routing = last_routing;
    n->tasks[slot] = task;
    return task;
}

/* The first `count` tokens of stream 1. */
static pre_task *add(node *n, uint32_t slot, uint32_t count)
{
    uint32_t tokens[512];
    stream_fill(1, count, tokens);
    return add_tokens(n, slot, tokens, count, false);
}

static void post(node *n, pre_command_kind kind, uint32_t slot)
{
    assert_true(
        eng_worker_post(pre_compute_client(n->compute), &(pre_command){kind, n->tasks[slot]}));
}

static void open_and_compute(node *n, uint32_t slot)
{
    post(n, PRE_COMMAND_OPEN, slot);
    post(n, PRE_COMMAND_COMPUTE, slot);
}

static void on_event(void *context, const void *item)
{
    static const char *const NAMES[] = {
        [PRE_COMPUTE_OPENED] = "opened", [PRE_COMPUTE_OPEN_FAILED] = "refused",
        [PRE_COMPUTE_GROUP] = "group",   [PRE_COMPUTE_PROGRESS] = "progress",
        [PRE_COMPUTE_DONE] = "done",     [PRE_COMPUTE_FAILED] = "failed",
        [PRE_COMPUTE_CLOSED] = "closed",
    };
    node *n = context;
    const pre_compute_event *event = item;
    char *at = n->trace + n->trace_size;
    size_t left = sizeof(n->trace) - n->trace_size;
    int slot = 'a' + (int)event->task->slot, size;
    assert_ptr_equal(event->task, n->tasks[event->task->slot]);
    if (event->kind == PRE_COMPUTE_GROUP)
        size = snprintf(at, left, "group %c %u %u, ", slot, event->group, event->blocks);
    else if (event->kind == PRE_COMPUTE_OPENED || event->kind == PRE_COMPUTE_PROGRESS)
        size = snprintf(at, left, "%s %c %u, ", NAMES[event->kind], slot, event->tokens);
    else
        size = snprintf(at, left, "%s %c, ", NAMES[event->kind], slot);
    assert_true(size > 0 && (size_t)size < left);
    n->trace_size += (size_t)size;
    if (event->kind == PRE_COMPUTE_OPENED && n->go)
        post(n, PRE_COMMAND_COMPUTE, event->task->slot);
}

static void take_events(node *n, int timeout_ms)
{
    struct pollfd fd = {.fd = eng_worker_fd(pre_compute_client(n->compute)), .events = POLLIN};
    assert_true(poll(&fd, 1, timeout_ms) >= 0);
    eng_worker_poll(pre_compute_client(n->compute), on_event, n);
}

/* Waits for this event, and forgets what was told. */
static void wait_for_told(node *n, const char *event, const char *expected)
{
    while (!strstr(n->trace, event))
        take_events(n, -1);
    if (expected)
        assert_string_equal(n->trace, expected);
    n->trace_size = 0;
    n->trace[0] = '\0';
}

static void close_task(node *n, uint32_t slot)
{
    char closed[16];
    post(n, PRE_COMMAND_CLOSE, slot);
    snprintf(closed, sizeof(closed), "closed %c, ", 'a' + (int)slot);
    wait_for_told(n, closed, closed);
}

/* ---- what a prompt must leave ---- */

static void assert_block(node *n, const pre_task *task, uint32_t block, const uint8_t *expected)
{
    for (uint32_t group = 0; group < GROUPS; group++) {
        uint64_t offset, bytes, sum = task->sums[block * GROUPS + group];
        if (block < task->first_block) { /* the other side has it */
            assert_true(sum == 0);
            continue;
        }
        eng_layout_piece(eng_engine_layout(n->engine), eng_model_shape(n->r.model), group, &offset,
                         &bytes);
        assert_memory_equal(task->places[block] + offset, expected + offset, bytes);
        assert_true(sum == eng_piece_sum(n->engine, expected + offset, bytes, block, group));
    }
}

/* A done task that was not closed yet. */
static void assert_whole(node *n, uint32_t slot)
{
    const pre_task *task = n->tasks[slot];
    uint64_t page_bytes = eng_engine_layout(n->engine)->page_bytes;
    size_t size;
    eng_sequence *alone = sequence_open(n->r.engine, task->token_count);
    sequence_feed(n->r.engine, alone, task->tokens, task->token_count, 256, NULL);
    uint8_t *pages = sequence_bytes(n->r.engine, alone, &size);
    assert_int_equal(task->tokens_done, task->token_count);
    assert_int_equal(size, task->block_count * page_bytes);
    for (uint32_t block = 0; block < task->block_count; block++)
        assert_block(n, task, block, pages + block * page_bytes);
    assert_memory_equal(task->final, eng_sequence_h_final(alone), FINAL_BYTES);
    if (task->last_routing)
        assert_memory_equal(task->final + FINAL_BYTES,
                            eng_step_routing(n->r.engine, (task->token_count - 1) % 256),
                            eng_engine_routing(n->r.engine)->row_bytes);
    eng_sequence_close(alone);
    sl_free(pages);
}

/* ---- tests ---- */

/* A block is told of once its rows are complete, the tail with the prompt's last token; whatever
 * the chunks, the bytes are the same. */
TEST(a_prompt_in_chunks)
{
    static const struct {
        uint32_t chunk;
        const char *told;
    } CASES[] = {
        {256, "opened a 0, group a 0 4, group a 1 4, progress a 200, done a, "},
        {100, "opened a 0, group a 0 1, group a 1 1, progress a 100, "
              "group a 0 4, group a 1 4, progress a 200, done a, "},
        {64, "opened a 0, group a 0 1, group a 1 1, progress a 64, "
             "group a 0 2, group a 1 2, progress a 128, group a 0 3, group a 1 3, progress a 192, "
             "group a 0 4, group a 1 4, progress a 200, done a, "},
        {60, "opened a 0, progress a 60, group a 0 1, group a 1 1, progress a 120, "
             "group a 0 2, group a 1 2, progress a 180, group a 0 4, group a 1 4, progress a 200, "
             "done a, "},
    };
    for (size_t i = 0; i < 2 * sizeof(CASES) / sizeof(CASES[0]); i++) {
        node n;
        node_open(&n, &(node_options){.pages = 8,
                                      .transit_pages = i & 1 ? 8 : 0,
                                      .compute = {.chunk_tokens = CASES[i / 2].chunk}});
        add(&n, 0, 200)->first_block = i / 2 % 3;
        open_and_compute(&n, 0);
        node_start(&n);
        wait_for_told(&n, "done a", CASES[i / 2].told);
        assert_whole(&n, 0);
        assert_true(n.tasks[0]->compute_ns > 0);
        close_task(&n, 0);
        node_close(&n);
    }
}

/* The first in order takes the rows it needs, the next ones what is left. */
TEST(prompts_share_a_step)
{
    node n;
    node_open(&n, &(node_options){.pages = 8, .compute = {.chunk_tokens = 64}});
    add(&n, 0, 100);
    add(&n, 1, 20);
    add(&n, 2, 30)->priority = -1;
    for (uint32_t i = 0; i < 3; i++)
        open_and_compute(&n, i);
    node_start(&n);
    wait_for_told(&n, "done a",
                  "opened a 0, opened b 0, opened c 0, "
                  "group c 0 1, group b 0 1, group c 1 1, group b 1 1, "
                  "progress a 14, progress b 20, done b, progress c 30, done c, "
                  "group a 0 1, group a 1 1, progress a 78, "
                  "group a 0 2, group a 1 2, progress a 100, done a, ");
    for (uint32_t i = 0; i < 3; i++) {
        assert_whole(&n, i);
        close_task(&n, i);
    }
    node_close(&n);
}

/* Beside others that work, a step takes the time that it may, and the first prompt's least rows. */
TEST(a_shared_engine_gets_short_steps)
{
    for (int shared = 0; shared < 2; shared++) {
        node n;
        node_open(&n, &(node_options){.pages = 8, .compute = {.chunk_tokens = 64, .chunk_ns = 1}});
        n.other_works = shared;
        add(&n, 0, 70);
        add(&n, 1, 40);
        open_and_compute(&n, 0);
        open_and_compute(&n, 1);
        node_start(&n);
        wait_for_told(&n, "done a",
                      shared ? "opened a 0, opened b 0, progress b 32, "
                               "group b 0 1, group b 1 1, progress b 40, done b, "
                               "progress a 32, group a 0 1, group a 1 1, progress a 64, "
                               "group a 0 2, group a 1 2, progress a 70, done a, "
                             : "opened a 0, opened b 0, "
                               "group b 0 1, group b 1 1, progress a 24, progress b 40, done b, "
                               "group a 0 2, group a 1 2, progress a 70, done a, ");
        for (uint32_t i = 0; i < 2; i++) {
            assert_whole(&n, i);
            close_task(&n, i);
        }
        node_close(&n);
    }
}

/* Rows [first, 200) of stream 1, computed alone. */
static void assert_rows(node *n, const eng_prompt_rows *got, const uint32_t *tokens)
{
    sl_err err;
    eng_prompt_rows *rows = eng_prompt_rows_create(&got->want, eng_engine_routing(n->r.engine));
    eng_sequence *alone = sequence_open(n->r.engine, 200);
    eng_span span = {alone, tokens, 200, ENG_LOGITS_NONE, false, NULL};
    eng_prompt_ask(rows, 0, &span);
    assert_ok(eng_step(n->r.engine, &span, 1, NULL, NULL, &err), &err);
    eng_prompt_note(rows, n->r.engine, &span, 0, 0, 0, tokens);
    assert_int_equal(got->done, 200);
    size_t count = got->want.end - got->want.first;
    assert_memory_equal(got->scores, rows->scores, count * rows->score_bytes);
    assert_memory_equal(got->routing, rows->routing, count * rows->row_bytes);
    eng_sequence_close(alone);
    eng_prompt_rows_destroy(rows);
}

/* What the cache knows is told at once and not computed, up to the rows that are wanted. */
TEST(known_blocks_come_first)
{
    node n;
    uint32_t tokens[200];
    node_open(&n,
              &(node_options){.pages = 16, .compute = {.chunk_tokens = 100, .prefix_cache = true}});
    stream_fill(1, 200, tokens);
    add(&n, 0, 200);
    open_and_compute(&n, 0);
    node_start(&n);
    wait_for_told(&n, "done a", NULL);
    close_task(&n, 0);

    /* all of it */
    add(&n, 1, 192);
    open_and_compute(&n, 1);
    wait_for_told(&n, "done b", "opened b 192, group b 0 3, group b 1 3, progress b 192, done b, ");
    assert_whole(&n, 1);
    /* all but the row whose experts are asked for */
    add_tokens(&n, 2, tokens, 192, true);
    open_and_compute(&n, 2);
    wait_for_told(&n, "done c",
                  "opened c 128, group c 0 2, group c 1 2, progress c 128, "
                  "group c 0 3, group c 1 3, progress c 192, done c, ");
    assert_whole(&n, 2);
    /* what is before row 70 */
    pre_task *d = add(&n, 3, 200);
    d->prompt_rows =
        eng_prompt_rows_create(&(eng_prompt_want){70, 200, true, 2}, eng_engine_routing(n.engine));
    open_and_compute(&n, 3);
    wait_for_told(&n, "done d",
                  "opened d 64, group d 0 1, group d 1 1, progress d 64, "
                  "group d 0 2, group d 1 2, progress d 164, "
                  "group d 0 4, group d 1 4, progress d 200, done d, ");
    assert_whole(&n, 3);
    assert_rows(&n, d->prompt_rows, tokens);
    /* nothing: another space */
    add(&n, 4, 64)->cache_space = 7;
    open_and_compute(&n, 4);
    wait_for_told(&n, "done e", "opened e 0, group e 0 1, group e 1 1, progress e 64, done e, ");
    assert_whole(&n, 4);
    for (uint32_t i = 1; i < 5; i++)
        close_task(&n, i);
    node_close(&n);
}

/* All prompts of a failed step fail, others go on. */
TEST(a_step_fails)
{
    node n;
    uint32_t tokens[40];
    node_open(&n, &(node_options){.pages = 8, .compute = {.chunk_tokens = 50}});
    stream_fill(1, 40, tokens);
    tokens[39] = NANO_VOCAB;
    add_tokens(&n, 0, tokens, 40, false);
    add(&n, 1, 50);
    add(&n, 2, 100);
    for (uint32_t i = 0; i < 3; i++)
        open_and_compute(&n, i);
    node_start(&n);
    wait_for_told(&n, "done c",
                  "opened a 0, opened b 0, opened c 0, failed b, failed a, "
                  "progress c 50, group c 0 2, group c 1 2, progress c 100, done c, ");
    assert_int_equal(n.tasks[0]->err.code, SL_INVALID);
    assert_int_equal(n.tasks[1]->err.code, SL_INVALID);
    assert_whole(&n, 2);
    for (uint32_t i = 0; i < 3; i++)
        close_task(&n, i);
    arm("prefill.group=fail@2");
    add(&n, 3, 20);
    open_and_compute(&n, 3);
    wait_for_told(&n, "failed d", "opened d 0, group d 0 1, group d 1 1, failed d, ");
    assert_int_equal(n.tasks[3]->err.code, SL_INTERNAL);
    close_task(&n, 3);
    node_close(&n);
}

TEST(no_pages)
{
    node n;
    node_open(&n, &(node_options){.pages = 3, .compute = {.chunk_tokens = 100}});
    add(&n, 0, 150);
    add(&n, 1, 64);
    add(&n, 2, 300);
    n.go = true;
    for (uint32_t i = 0; i < 3; i++)
        post(&n, PRE_COMMAND_OPEN, i);
    node_start(&n);
    wait_for_told(&n, "done a", NULL);
    assert_int_equal(n.tasks[1]->err.code, SL_FULL);
    assert_int_equal(n.tasks[2]->err.code, SL_TOO_LARGE);
    close_task(&n, 2); /* refused ones may be closed, or opened again */
    post(&n, PRE_COMMAND_OPEN, 1);
    wait_for_told(&n, "refused b", "refused b, ");
    close_task(&n, 0);
    post(&n, PRE_COMMAND_OPEN, 1);
    wait_for_told(&n, "done b", "opened b 0, group b 0 1, group b 1 1, progress b 64, done b, ");
    assert_whole(&n, 1);
    close_task(&n, 1);
    node_close(&n);
}

/* Blocks that are handed over need host memory where the cache is a device's: for all of them, or
 * the prompt waits. */
TEST(no_transit_pages)
{
    node n;
    node_open(&n,
              &(node_options){.pages = 16, .transit_pages = 4, .compute = {.chunk_tokens = 100}});
    add(&n, 0, 200)->first_block = 2;
    add(&n, 1, 200)->first_block = 1;
    n.go = true;
    post(&n, PRE_COMMAND_OPEN, 0);
    post(&n, PRE_COMMAND_OPEN, 1);
    node_start(&n);
    wait_for_told(&n, "done a",
                  "opened a 0, refused b, group a 0 1, group a 1 1, progress a 100, "
                  "group a 0 4, group a 1 4, progress a 200, done a, ");
    assert_int_equal(n.tasks[1]->err.code, SL_FULL);
    assert_null(n.tasks[1]->sequence);
    assert_whole(&n, 0);
    close_task(&n, 0);
    post(&n, PRE_COMMAND_OPEN, 1);
    wait_for_told(&n, "done b", NULL);
    assert_whole(&n, 1);
    close_task(&n, 1);
    node_close(&n);
}

/* No piece is told of that did not arrive: known blocks, and those just computed. */
TEST(the_device_fails)
{
    for (int known = 0; known < 2; known++) {
        node n;
        if (rig_cuda())
            return;
        node_open(&n, &(node_options){.pages = 8,
                                      .transit_pages = 8,
                                      .compute = {.chunk_tokens = 64, .prefix_cache = true}});
        deferred.broken = !known;
        add(&n, 0, 64);
        open_and_compute(&n, 0);
        node_start(&n);
        wait_for_told(&n, known ? "done a" : "failed a", known ? NULL : "opened a 0, failed a, ");
        close_task(&n, 0);
        if (known) {
            deferred.broken = true;
            add(&n, 1, 100);
            open_and_compute(&n, 1);
            wait_for_told(&n, "failed b", "opened b 64, failed b, ");
            close_task(&n, 1);
        }
        assert_text_contains(n.tasks[known]->err.text, "it was unplugged");
        node_close(&n);
    }
}

/* Closed in the midst of a step: that step is told of, then nothing more. */
TEST(closed_while_it_is_computed)
{
    node n;
    node_open(&n, &(node_options){.pages = 8, .compute = {.chunk_tokens = 64}});
    arm("prefill.group=hold@2"); /* the first step's second group */
    add(&n, 0, 200);
    open_and_compute(&n, 0);
    node_start(&n);
    wait_for_told(&n, "group a 0 1", "opened a 0, group a 0 1, ");
    post(&n, PRE_COMMAND_CLOSE, 0);
    while (!strstr(n.trace, "closed a")) {
        raise(SIGUSR2);
        take_events(&n, 1);
    }
    assert_string_equal(n.trace, "group a 1 1, progress a 64, closed a, ");
    node_close(&n);
}

/* Known pages that are in the second tier: opened once they are read, unless closed before. */
TEST(pages_come_from_the_second_tier)
{
    node n;
    char path[96];
    node_options options = {.pages = 8, .compute = {.chunk_tokens = 100, .prefix_cache = true}};
    node_open(&n, &options);
    node_stop(&n);
    snprintf(path, sizeof(path), "%s/tier", n.r.files.dir);
    options.tier_path = path;
    node_engine(&n, &options);
    add(&n, 0, 200);
    open_and_compute(&n, 0);
    node_start(&n);
    wait_for_told(&n, "done a", NULL);
    close_task(&n, 0);
    eng_tier_stats stats = {0};
    while (stats.bytes_written < 3 * eng_engine_layout(n.engine)->page_bytes) {
        assert_true(eng_engine_tier_stats(n.engine, &stats));
        poll(NULL, 0, 1);
    }
    node_stop(&n);

    node_engine(&n, &options);
    n.go = true;
    add(&n, 0, 200);
    add(&n, 1, 200);
    post(&n, PRE_COMMAND_OPEN, 0);
    post(&n, PRE_COMMAND_OPEN, 1);
    post(&n, PRE_COMMAND_CLOSE, 0);
    node_start(&n);
    wait_for_told(&n, "done b",
                  "closed a, opened b 192, group b 0 3, group b 1 3, progress b 192, "
                  "group b 0 4, group b 1 4, progress b 200, done b, ");
    assert_whole(&n, 1);
    close_task(&n, 1);
    node_stop(&n);
    unlink(path);
    rig_close(&n.r);
}

/* What is open when the thread ends belongs to the control thread, which closes it. */
TEST(stopped_with_work_left)
{
    node n;
    node_open(&n, &(node_options){.pages = 8, .compute = {.chunk_tokens = 16}});
    arm("prefill.group=slow=5");
    for (uint32_t i = 0; i < 2; i++) {
        add(&n, i, 200);
        open_and_compute(&n, i);
    }
    node_start(&n);
    wait_for_told(&n, "progress a 16", NULL);
    eng_worker_stop(n.worker);
    for (uint32_t i = 0; i < 2; i++) {
        eng_sequence_close(n.tasks[i]->sequence);
        n.tasks[i]->sequence = NULL;
    }
    node_close(&n);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(a_prompt_in_chunks),
    cmocka_unit_test(prompts_share_a_step),
    cmocka_unit_test(a_shared_engine_gets_short_steps),
    cmocka_unit_test(known_blocks_come_first),
    cmocka_unit_test(a_step_fails),
    cmocka_unit_test(no_pages),
    cmocka_unit_test(no_transit_pages),
    cmocka_unit_test(the_device_fails),
    cmocka_unit_test(closed_while_it_is_computed),
    cmocka_unit_test(pages_come_from_the_second_tier),
    cmocka_unit_test(stopped_with_work_left),
};
TEST_MAIN(TESTS)
