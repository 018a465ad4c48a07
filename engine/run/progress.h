/* What sluice-run shows of a load. Thread: main. */
#ifndef ENGINE_RUN_PROGRESS_H
#define ENGINE_RUN_PROGRESS_H

#include "engine/engine.h"

#ifdef __cplusplus
extern "C" {
#endif

/* For eng_model_options.progress: lines to stderr once a load takes longer than two seconds.
 * context: an eng_load_progress that keeps the last state, or NULL. */
void eng_run_show_progress(void *context, const eng_load_progress *progress);

#ifdef __cplusplus
}
#endif
#endif
