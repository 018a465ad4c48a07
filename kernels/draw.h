/* What drawing a token does over a whole vocabulary: arg-max, softmax, selection by a limit.
 *
 * docs/SAMPLING.md is the definition. One row, one thread: these are called between steps. Sums are
 * one chain in double, ascending; every variant and every numerics id has the same bits. Values are
 * no NaN. Any thread. */
#ifndef KERNELS_DRAW_H
#define KERNELS_DRAW_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The lowest index of the largest. count >= 1. */
uint32_t krn_arg_max(const float *values, uint32_t count);
/* out_terms[i] = exp((logits[i] - max) / temperature), correctly rounded to f32 (the difference and
 * the quotient are f32); returns their sum. */
double krn_softmax_terms(const float *logits, uint32_t count, float max, float temperature,
                         float *out_terms);
/* out[i] = terms[i] / sum in double, rounded to f32. sum >= 1. */
void krn_softmax_divide(const float *terms, uint32_t count, double sum, float *out);
/* Indices with low <= value < high, ascending -> how many. out_indices: room for `count`. */
uint32_t krn_in_range(const float *values, uint32_t count, float low, float high,
                      uint32_t *out_indices);
/* Bit i of out_bits: values[i] >= low; the last word's other bits are zero. */
void krn_reaching(const float *values, uint32_t count, float low, uint64_t *out_bits);
/* Sum and number of the values >= low. The order of the sum is open: only for values whose sums are
 * exact in double (multiples of 2^-52 that stay below 2, say). */
double krn_sum_reaching(const float *values, uint32_t count, float low, uint32_t *out_count);

#ifdef __cplusplus
}
#endif
#endif
