/* A draw as the device takes it (kernels/cuda/draw.cu), and what it hands back. Internal to
 * engine/. Thread: the engine thread. */
#ifndef ENGINE_CUDA_DRAW_H
#define ENGINE_CUDA_DRAW_H

#include "engine/sampler.h"
#include "kernels/cuda/params.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct eng_cuda_edits {
    krn_cuda_edit *at; /* [most] */
    uint32_t used, most;
} eng_cuda_edits;

/* Arguments as eng_sample's. The row's edits are added to `edits`; allowed_row: row of the device's
 * masks that holds `allowed`. false: they do not fit, and the host must draw. */
bool eng_cuda_draw_prepare(eng_sampler *sampler, const mdl_sampling *params,
                           const uint32_t *context, uint32_t context_count, uint32_t prompt_count,
                           uint32_t position, const uint32_t *allowed, uint32_t allowed_row,
                           eng_cuda_edits *edits, krn_cuda_draw_row *out_row);
/* What the device handed back for a row. false: it could not say, and the host must draw. */
bool eng_cuda_draw_take(const krn_cuda_drawn *drawn, const krn_cuda_draw_row *row,
                        eng_sampled *out_sampled);

#ifdef __cplusplus
}
#endif
#endif
