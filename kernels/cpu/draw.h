/* The table of draw.h's operations over whole vectors; what is left over is done by the plain ones.
 * Private to kernels/. */
#ifndef KERNELS_CPU_DRAW_H
#define KERNELS_CPU_DRAW_H

#include "kernels/draw.h"

typedef struct krn_draw {
    uint32_t (*arg_max)(const float *values, uint32_t count);
    double (*terms)(const float *logits, uint32_t count, float max, float temperature,
                    float *out_terms);
    void (*divide)(const float *terms, uint32_t count, double sum, float *out);
    uint32_t (*in_range)(const float *values, uint32_t count, float low, float high,
                         uint32_t *out_indices);
    void (*reaching)(const float *values, uint32_t count, float low, uint64_t *out_bits);
    double (*sum_reaching)(const float *values, uint32_t count, float low, uint32_t *out_count);
} krn_draw;

extern const krn_draw krn_draw_ref;
#if defined(__x86_64__)
extern const krn_draw krn_draw_avx2, krn_draw_avx512;
#endif

/* The plain ones' single steps, for the ends that fill no vector. */
float krn_draw_term(float logit, float max, float temperature);

#endif
