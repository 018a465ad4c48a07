/* The CPU backend's parts: cpu.c, and the experts in cpu_experts.c and cpu_exchange.c. Internal to
 * engine/. Thread: the engine thread. */
#ifndef ENGINE_CPU_H
#define ENGINE_CPU_H

#include "engine/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One matrix over rows of a shared input. */
typedef struct eng_cpu_product {
    const krn_matrix *matrix;
    const uint32_t *row_index; /* NULL: rows input_row, input_row + 1, ... */
    uint32_t input_row;
    uint32_t rows;
    void *output; /* [rows][matrix->n] */
} eng_cpu_product;

/* input [input_rows][k], k of every matrix; quantised once for all products. */
SL_MUST_USE bool eng_cpu_linear(eng_engine *engine, const void *input, uint32_t input_rows,
                                const eng_cpu_product *products, uint32_t count);
/* The same over an input that is quantised already (fp8), or as it is (scales are not looked at).
 */
void eng_cpu_products(eng_engine *engine, const void *input, const float *scales,
                      const eng_cpu_product *products, uint32_t count);
void eng_cpu_silu_mul(eng_engine *engine, void *gate, const void *up, size_t count);
SL_MUST_USE bool eng_cpu_route(eng_engine *engine, const eng_layer *layer, uint32_t rows);
/* Products of the experts that rows have chosen, as s.expert_rows and s.expert_offsets stack them;
 * return how many. Gate and up of each (at most 2 KRN_EXPERTS_MAX), into s.gate and s.up; down,
 * from s.gate into s.down. */
uint32_t eng_cpu_expert_inputs(const eng_engine *engine, const eng_layer *layer,
                               eng_cpu_product *out_products);
uint32_t eng_cpu_expert_downs(const eng_engine *engine, const eng_layer *layer,
                              eng_cpu_product *out_products);
SL_MUST_USE bool eng_cpu_experts(eng_engine *engine, const eng_layer *layer, uint32_t rows);
extern const eng_exchange_ops eng_cpu_exchange;

#ifdef __cplusplus
}
#endif
#endif
