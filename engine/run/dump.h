/* --dump: collects what the steps show and writes it as safetensors.
 *
 * Tensor names and shapes: tests/vectors/README.md. Everything about prompt rows unless said there.
 * Thread: main. */
#ifndef ENGINE_RUN_DUMP_H
#define ENGINE_RUN_DUMP_H

#include "engine/engine.h"
#include "engine/tap.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct eng_run_dump eng_run_dump;

typedef struct eng_run_dump_options {
    const mdl_shape *shape;
    bool plain;
    uint32_t layer_first, layer_end; /* main layers shown */
    uint32_t prompt_count;
    uint32_t rows_max; /* rows that may be forwarded */
    const uint32_t *positions;
    uint32_t position_count;
} eng_run_dump_options;

eng_run_dump *eng_run_dump_create(const eng_run_dump_options *options);
void eng_run_dump_destroy(eng_run_dump *dump);
const eng_tap *eng_run_dump_tap(const eng_run_dump *dump);
/* Logits of the next forwarded row. */
void eng_run_dump_logits(eng_run_dump *dump, const float *logits);
/* The last prompt tokens' cache rows, read from the pages. */
void eng_run_dump_cache(eng_run_dump *dump, eng_engine *engine, const eng_sequence *sequence);
/* A whole run's tensors. */
SL_MUST_USE sl_status eng_run_dump_write(eng_run_dump *dump, const char *path, sl_err *err);
/* What --layers A:B leaves. */
SL_MUST_USE sl_status eng_run_dump_write_layers(eng_run_dump *dump, const char *path, sl_err *err);

#ifdef __cplusplus
}
#endif
#endif
