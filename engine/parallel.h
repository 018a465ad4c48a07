/* Expert parallelism: an engine as one rank of an instance (comm/comm.h).
 *
 * Each rank has all attention weights and some of the experts. A step's rows go to the ranks of
 * their experts and the outputs come back, so that a token's bits are those of one process. All
 * ranks run together: eng_step and eng_draft wait for the others, which take part with
 * eng_engine_take_part when they have nothing to compute themselves. A group that fails is to the
 * engine a device that failed: eng_engine_broken has the words. Thread: the engine thread, but
 * where said. */
#ifndef ENGINE_PARALLEL_H
#define ENGINE_PARALLEL_H

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

/* How the ranks of this model exchange rows, for com_group_connect: steps of at most rows_max rows
 * (0: the default of eng_options). Borrows the model. Any thread. */
void eng_model_ranks_layout(const eng_model *model, uint32_t rows_max, com_layout *out_layout);
/* Once all ranks are connected, before an engine is created: the sums of tensors that others loaded
 * come from them and complete the model's hash, which is that of one process. SL_INCOMPATIBLE: a
 * rank has loaded other weights, tensor and rank are named. */
SL_MUST_USE sl_status eng_model_join(eng_model *model, com_group *group, sl_err *err);
/* Memory of the routed experts' weights in this process. Any thread. */
uint64_t eng_model_expert_bytes(const eng_model *model);

/* Takes part in a run that another rank wants, if one does: the experts of this rank compute. true:
 * one was run, or the group has failed. Between steps, often; false at once for one process alone.
 */
bool eng_engine_take_part(eng_engine *engine);
/* Runs so far, own ones and those of others. */
uint64_t eng_engine_runs(const eng_engine *engine);
/* To sleep until another rank may want a run: readable once arm has returned true; false: there is
 * something already. -1: one process alone. */
int eng_engine_ranks_fd(const eng_engine *engine);
bool eng_engine_ranks_arm(eng_engine *engine);

#ifdef __cplusplus
}
#endif
#endif
