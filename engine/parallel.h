/* Expert parallelism: an engine as one rank of an instance (comm/comm.h).
 *
 * Each rank has all attention weights and some of the experts. A step's rows go to the ranks of
 * their experts and the outputs come back, so that a token's bits are those of one process. All
 * ranks run together: eng_step and eng_draft wait for the others, which take part with
 * eng_engine_take_part when they have nothing to compute themselves.
 *
 * A step in which a rank brings many rows is *split* on all of them: two micro-batches, of which
 * one computes while the other's rows are on their way. That changes no bit.
 *
 * Which ranks step together, and which experts each holds, is a *formation*: a connected group and
 * a table. Another one is made ready beside it and offered; all ranks go over to it between two
 * runs, in the first whose headers say that everybody is ready. When a group fails its runs wait
 * for another formation and are then run again from their beginning, which gives the same bytes; an
 * engine whose group is fixed (eng_options.group), or whose owner gives up, is to its owner a
 * device that failed: eng_engine_broken has the words. Thread: the engine thread, but where said.
 */
#ifndef ENGINE_PARALLEL_H
#define ENGINE_PARALLEL_H

#include "base/clock.h"
#include "comm/comm.h"
#include "engine/engine.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Which of `size` ranks holds expert `expert` of `expert_count`: consecutive ones together. */
static inline uint32_t eng_expert_rank(uint32_t expert, uint32_t expert_count, uint32_t size)
{
    return expert * size / expert_count;
}

/* Layers with experts, the MTP layer (the last of them) included: those of tables. Any thread. */
uint32_t eng_moe_layers(const mdl_shape *shape);
/* The table of eng_expert_rank; slots >= the largest share. Any thread. */
void eng_consecutive_table(uint32_t layers, uint32_t experts, uint32_t size, uint32_t slots,
                           uint16_t *out_table);

/* How the ranks of this model exchange rows, for com_group_connect: steps of at most rows_max rows
 * (0: the default of eng_options). Slots are those of the table that the model was opened with, or
 * has now. Borrows the model. Any thread, while no formation is taken. */
void eng_model_ranks_layout(const eng_model *model, uint32_t rows_max, com_layout *out_layout);
/* Once ranks are connected: sums of tensors that others loaded come from them, and complete the
 * model's hash, which is that of one process. Again with each new group: those who know all tell
 * those who have just started. SL_INCOMPATIBLE: a rank has loaded other weights, tensor and rank
 * are named. Any thread. */
SL_MUST_USE sl_status eng_model_join(eng_model *model, com_group *group, sl_err *err);
/* Memory of the routed experts' weights in this process. Any thread. */
uint64_t eng_model_expert_bytes(const eng_model *model);

/* ---- formations */

typedef struct eng_experts eng_experts;

/* Loads what `table` (of the form that the model was opened with) gives this rank and the model
 * lacks; each tensor must have the sum that the ranks have told each other. *stop (may be NULL)
 * ends it early, SL_CANCELLED. Any thread, once joined, while no formation is taken. */
SL_MUST_USE sl_status eng_experts_load(const eng_model *model, const uint16_t *table,
                                       const volatile bool *stop, eng_experts **out_set,
                                       sl_err *err);
uint32_t eng_experts_count(const eng_experts *set); /* that were loaded */
/* Whatever is not in use: what was loaded, or after it was taken what it replaced. Any thread. */
void eng_experts_destroy(eng_experts *set);

typedef struct eng_formation {
    uint64_t number;  /* higher than any before */
    com_group *group; /* connected and joined, for the rows_max of the engine */
    eng_experts *experts;
    eng_model *model; /* the engine's */
} eng_formation;

/* The engine goes over to it as soon as all ranks of the group in use say that they are ready, or
 * at once where none is in use. Borrowed until a later one is in use: then the engine knows neither
 * it nor those before. Any thread. */
void eng_engine_offer(eng_engine *engine, eng_formation *formation);
/* No other formation will come: a group that has failed is a device that failed, with these words
 * (a literal). Any thread. */
void eng_engine_give_up(eng_engine *engine, const char *text);

typedef struct eng_ranks_state {
    uint64_t used; /* formation; 0: none yet */
    uint64_t
        settled;     /* the newest that all its ranks have gone over to: the one before may close */
    uint64_t failed; /* formations up to this one have failed; less than used: it has not */
    uint64_t lost;   /* the ranks that this one missed, as bits */
    const char *why; /* NULL: it has not failed. Until the group is closed */
    sl_time_ns failed_at, again_at; /* of the last failure, and of the first run after it ended */
} eng_ranks_state;

/* Any thread. */
void eng_engine_ranks_state(eng_engine *engine, eng_ranks_state *out_state);
/* Told on the engine thread when the state has changed. Before the first offer. */
void eng_engine_on_ranks(eng_engine *engine, void (*fn)(void *context), void *context);

/* Rows that this rank's experts have worked on since the start: [eng_moe_layers][expert_count]. Any
 * thread; each is right. */
void eng_engine_expert_loads(const eng_engine *engine, uint64_t *out_rows);

/* ---- runs */

/* Takes part in a run that another rank wants, if one does: the experts of this rank compute. true:
 * one was run, or the group has failed. Between steps, often; false at once for one process alone.
 */
bool eng_engine_take_part(eng_engine *engine);
/* Runs so far, own ones and those of others. */
uint64_t eng_engine_runs(const eng_engine *engine);
/* Of them those of two micro-batches. */
uint64_t eng_engine_split_runs(const eng_engine *engine);
/* To sleep until another rank may want a run: readable once arm has returned true; false: there is
 * something already. -1: one process alone, or none is in use. */
int eng_engine_ranks_fd(const eng_engine *engine);
bool eng_engine_ranks_arm(eng_engine *engine);

#ifdef __cplusplus
}
#endif
#endif
