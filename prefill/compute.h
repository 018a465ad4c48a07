/* The engine thread's side of a prefill rank: chunks of prompts, packed into steps in the order of
 * engine/schedule.h.
 *
 * A task is one prompt as the engine sees it. The control thread allocates it, posts commands about
 * it, reads events, and frees it after CLOSED (or OPEN_FAILED). In between the engine thread owns
 * all fields but those marked control. */
#ifndef PREFILL_COMPUTE_H
#define PREFILL_COMPUTE_H

#include "engine/prompt.h"
#include "engine/worker.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PRE_JOBS_MAX 256u
/* The owner of a slot's pages in the engine's ledger: this + slot; decode nodes' are lower. */
#define PRE_OWNER_FIRST (1u << 16)
#define PRE_EVENTS_MAX  4096u
#define PRE_GROUPS_MAX  128u

typedef struct pre_task {
    uint32_t slot; /* control */
    uint32_t *tokens;
    uint32_t token_count;
    uint32_t block_count;
    uint32_t first_block;         /* control: only blocks from here on are handed over */
    uint64_t cache_space;         /* of the request */
    bool last_routing;            /* `final` ends with what the last token's row chose */
    eng_prompt_rows *prompt_rows; /* NULL: nothing is wanted; noted up to PROGRESS's tokens */
    uint32_t tokens_known;        /* found in the cache by OPEN */
    uint32_t tokens_done;
    int32_t priority;      /* control: lower ones first */
    uint64_t since, order; /* eng_turn: when it began to be computed */
    eng_sequence *sequence;
    uint8_t **places; /* [block_count]: host memory of each block, set by OPEN, filled before the
                         GROUP event that covers it; NULL before first_block */
    uint64_t *sums;   /* [block_count][group_count]; likewise */
    uint8_t *final; /* of the last commit: h_final, bf16 [hidden], then routing; set before DONE */
    size_t final_bytes;
    uint64_t compute_ns;
    sl_err err; /* why OPEN or a step failed */
} pre_task;

typedef enum pre_command_kind {
    PRE_COMMAND_OPEN,
    PRE_COMMAND_COMPUTE,
    PRE_COMMAND_CLOSE
} pre_command_kind;

typedef struct pre_command {
    pre_command_kind kind;
    pre_task *task;
} pre_command;

typedef enum pre_compute_event_kind {
    PRE_COMPUTE_OPENED,
    PRE_COMPUTE_OPEN_FAILED, /* task->err; SL_FULL may pass */
    PRE_COMPUTE_GROUP,       /* `group` of the first `blocks` blocks is at its places */
    PRE_COMPUTE_PROGRESS,    /* a chunk is done: `tokens` in all */
    PRE_COMPUTE_DONE,        /* the last chunk is done, h_final is set */
    PRE_COMPUTE_FAILED,      /* task->err */
    PRE_COMPUTE_CLOSED,      /* answer to CLOSE: pages are free */
} pre_compute_event_kind;

typedef struct pre_compute_event {
    pre_compute_event_kind kind;
    uint32_t group;
    uint32_t blocks;
    uint32_t tokens;
    pre_task *task;
} pre_compute_event;

typedef struct pre_compute pre_compute;

typedef struct pre_compute_options {
    uint32_t chunk_tokens; /* rows of one step */
    bool prefix_cache;     /* start from known pages, make computed ones known */
    uint64_t chunk_ns;     /* time of a step while others use the engine too; 0 = whole chunks */
} pre_compute_options;

/* Attaches a client to the worker (before it starts). */
SL_MUST_USE sl_status pre_compute_create(eng_engine *engine, const eng_model *model,
                                         eng_worker *worker, const pre_compute_options *options,
                                         pre_compute **out_compute, sl_err *err);
/* After the worker has stopped. */
void pre_compute_destroy(pre_compute *compute);
eng_worker_client *pre_compute_client(pre_compute *compute);

/* tokens: [token_count], copied. */
pre_task *pre_task_create(const uint32_t *tokens, uint32_t token_count, uint32_t group_count,
                          size_t final_bytes);
void pre_task_destroy(pre_task *task);

#ifdef __cplusplus
}
#endif
#endif
