/* Continuous batching on the engine thread of a decode rank.
 *
 * With drafts (multi-token prediction) a step takes a sequence's last token and up to depth drafts
 * of the next ones; each row's logits draw the token that plain decoding would draw there, and the
 * run goes on as long as the draft was that token. What comes out is the same, in fewer steps.
 *
 * A job is one admitted sequence as the engine sees it. The control thread allocates it, posts
 * commands about it, reads events, and frees it after FINISHED (when it asked for no close) or
 * CLOSED. In between the engine thread owns all fields but those marked control. */
#ifndef DECODE_BATCH_H
#define DECODE_BATCH_H

#include "base/metrics.h"
#include "decode/draft.h"
#include "decode/rank.h"
#include "decode/handout.h"
#include "engine/prompt.h"
#include "engine/worker.h"
#include "model/masks.h"

#ifdef __cplusplus
extern "C" {
#endif

#define DEC_SEQUENCES_MAX 256u
/* The owner of a slot's pages in the engine's ledger: this + slot. */
#define DEC_OWNER_FIRST 1u
/* Outbox; a step emits at most ENG_DRAFTS_MAX + 2 events a sequence. */
#define DEC_EVENTS_MAX 4096u

typedef enum dec_finish {
    DEC_FINISH_NONE,
    DEC_FINISH_STOP,
    DEC_FINISH_LENGTH,
    DEC_FINISH_FAILED
} dec_finish;

typedef struct dec_job {
    uint32_t slot; /* control: index of the sequence */
    mdl_sampling sampling;
    uint32_t *tokens; /* [token_capacity]: prompt, then generated */
    uint32_t token_count;
    uint32_t token_capacity;
    uint32_t
        prompt_count; /* of the original prompt: what lies behind was generated (maybe elsewhere) */
    uint64_t cache_space;
    dec_rank rank;         /* priority: control; seniority: when it was opened */
    uint32_t known_blocks; /* found in the cache by OPEN; never the prompt's last */
    uint16_t
        *h_final; /* bf16 [hidden], set by the control thread before ADOPT, else by the engine's */
    eng_sequence *sequence;
    bool fetches;             /* control, before OPEN: blocks not known here will be fetched */
    bool fetch_only;          /* control, before OPEN: and kept, that is all */
    uint32_t verified_blocks; /* control, before KEEP: fetched so far */
    uint8_t **places;         /* [block_count]: where to, set by OPEN; NULL: a known one */
    uint32_t block_count;
    uint32_t prefilled; /* RUN_SELF: tokens in the cache so far */
    uint64_t since;     /* eng_turn: when it began to be computed */
    /* OPEN copies the prompt of this one, as soon as it is complete there; NULL = none */
    const struct dec_job *source;
    bool prompt_done;  /* the cache holds the tokens it was admitted with; h_final is of the last */
    bool prompt_noted; /* it did once: h_final stays, also while its pages are given up */
    bool given_way;    /* it was generating and its pages were given up */
    bool outdated;     /* h_final is of other weights: nobody copies its prompt */
    dec_draft draft;
    dec_handout *handout; /* NULL: nothing is wanted beside the tokens */
    /* NULL: nothing is wanted. RUN_SELF notes them all before the first token is told of. */
    eng_prompt_rows *prompt_rows;
    struct dec_constraint *constraint; /* control: given back with the job; NULL = none */
    mdl_cursor cursor;                 /* where the answer stands in it */
    sl_err err;                        /* why OPEN failed or the job ended as FAILED */
} dec_job;

typedef enum dec_command_kind {
    DEC_COMMAND_OPEN,
    DEC_COMMAND_ADOPT,
    DEC_COMMAND_RUN_SELF,
    DEC_COMMAND_KEEP, /* makes known what was fetched so far: KEPT */
    DEC_COMMAND_CLOSE
} dec_command_kind;

typedef struct dec_command {
    dec_command_kind kind;
    dec_job *job;
} dec_command;

typedef enum dec_batch_event_kind {
    DEC_BATCH_OPENED,
    DEC_BATCH_OPEN_FAILED,
    DEC_BATCH_KEPT,
    DEC_BATCH_TOKEN,
    DEC_BATCH_FINISHED, /* the sequence is closed, its pages are free */
    DEC_BATCH_CLOSED,   /* answer to CLOSE, also for a job that had finished already */
} dec_batch_event_kind;

typedef struct dec_batch_event {
    dec_batch_event_kind kind;
    dec_finish finish;
    dec_job *job;
    eng_sampled sampled;      /* TOKEN */
    uint32_t weights_version; /* TOKEN: that drew it */
} dec_batch_event;

typedef struct dec_batch dec_batch;

typedef struct dec_batch_options {
    uint32_t sequences_max;
    uint32_t chunk_tokens; /* rows a step spends on prompts computed here */
    uint64_t chunk_ns;     /* and time, while sequences generate; 0 = no limit */
    uint32_t eos_id;
    mdl_masks *masks; /* the engine thread's; NULL: no job is constrained */
    uint32_t hidden_size;
    bool prefix_cache;    /* start from known pages, make a sequence's pages known when it ends */
    uint32_t draft_depth; /* drafts a step and sequence, <= ENG_DRAFTS_MAX; 0 = none */
    uint32_t rows_max;    /* the engine's: drafts get what the other rows leave */
    sl_metric *step_batch_size; /* histogram, may be NULL */
    sl_metric *depth;           /* histogram, may be NULL */
    sl_metric *drafted;         /* counters, may be NULL */
    sl_metric *accepted;
    sl_metric *preempted;
    sl_metric *recomputed; /* tokens that came back neither from memory nor from the second tier */
} dec_batch_options;

/* Attaches a client to the worker (before it starts). */
SL_MUST_USE sl_status dec_batch_create(eng_engine *engine, eng_worker *worker,
                                       const dec_batch_options *options, dec_batch **out_batch,
                                       sl_err *err);
/* After the worker has stopped. */
void dec_batch_destroy(dec_batch *batch);
eng_worker_client *dec_batch_client(dec_batch *batch);

/* Engine thread, between two turns: nothing is open any more, so that the weights can be replaced.
 * What generates gives its pages up and comes back by itself, its tokens computed anew; what has
 * not begun fails to open (SL_FULL). Jobs whose prompt is fetched or computed are closed before. */
void dec_batch_give_up_all(dec_batch *batch);
/* Engine thread: the engine has other weights. */
void dec_batch_note_weights(dec_batch *batch);

dec_job *dec_job_create(uint32_t token_count, uint32_t token_capacity, uint32_t hidden_size);
void dec_job_destroy(dec_job *job);

#ifdef __cplusplus
}
#endif
#endif
