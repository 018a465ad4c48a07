/* The simulated engine: the shipped cache (pages, sequences, prefix index, sampler) around a step
 * that computes a hash instead of a transformer.
 *
 * A row of a page holds a link of a chain over the tokens, in every layer; logits are a function of
 * the chain's end. Rows of another sequence, of an older one, or none at all break the chain, which
 * a step sees when it looks at its context, as attention would. */
#ifndef TESTS_SIM_ENGINE_H
#define TESTS_SIM_ENGINE_H

#include "engine/engine.h"
#include "engine/worker.h"
#include "tests/sim/world.h"

#define SIM_VOCAB 512u
#define SIM_EOS   1u

void sim_engine_note_worker(sim_process *process, eng_worker *worker);
eng_worker *sim_engine_worker(sim_process *process);
/* End of the step that runs, or of the last one. */
sl_time_ns sim_engine_free_at(sim_process *process);
/* After a pause. */
void sim_engine_resume(sim_process *process);

/* What a request must be answered: `out` gets at most max_tokens; returns how many. sampling:
 * max_tokens, seed, temperature and stop ids count. */
uint32_t sim_engine_reference(const uint32_t *prompt, uint32_t prompt_count,
                              const mdl_sampling *sampling, uint32_t *out, bool *out_stopped);
void sim_engine_fini(void);
/* Steps that fail, of a million. */
extern uint32_t sim_step_fail_ppm;

#endif
