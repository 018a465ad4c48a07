/* The wrapped kernels: see ops.h. __wrap_X stands where the engine calls X, __real_X is X. */
#include "tests/bench/context/ops.h"

#include "kernels/kernels.h"

#include <time.h>

const char *const op_names[OP_COUNT] = {"linear fp8", "W_UK, W_UV", "f32 out",
                                        "indexer",    "attention",  "rows"};

static op_times times;
static int depth;

double op_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void op_reset(void)
{
    times = (op_times){0};
}

op_times op_read(void)
{
    return times;
}

static double begin(void)
{
    return depth++ == 0 ? op_now() : 0;
}

static void end(op_group group, double before)
{
    if (--depth != 0)
        return;
    times.seconds[group] += op_now() - before;
    times.calls[group]++;
}

#define WRAP(group, name, parameters, arguments) \
    void __real_##name parameters;               \
    void __wrap_##name parameters;               \
    void __wrap_##name parameters                \
    {                                            \
        double before = begin();                 \
        __real_##name arguments;                 \
        end(group, before);                      \
    }
#define WRAP_BOOL(group, name, parameters, arguments) \
    bool __real_##name parameters;                    \
    bool __wrap_##name parameters;                    \
    bool __wrap_##name parameters                     \
    {                                                 \
        double before = begin();                      \
        bool result = __real_##name arguments;        \
        end(group, before);                           \
        return result;                                \
    }

WRAP(OP_LINEAR, krn_linear_fp8, (krn_pool * pool, const krn_gemm *gemms, uint32_t count),
     (pool, gemms, count))
WRAP(OP_HEADS, krn_linear_bf16, (krn_pool * pool, const krn_gemm *gemms, uint32_t count),
     (pool, gemms, count))
WRAP(OP_F32, krn_linear_f32, (krn_pool * pool, const krn_gemm *gemms, uint32_t count),
     (pool, gemms, count))
WRAP_BOOL(OP_LINEAR, krn_q128,
          (krn_pool * pool, const uint16_t *x, uint32_t rows, uint32_t k, bool pow2, uint8_t *codes,
           float *scales),
          (pool, x, rows, k, pow2, codes, scales))
WRAP_BOOL(OP_INDEX, krn_index_put,
          (krn_pool * pool, const krn_cache *cache, const krn_row *rows, uint32_t count,
           const uint16_t *z, const float *weight, const float *bias, float epsilon,
           const float *table, bool pow2),
          (pool, cache, rows, count, z, weight, bias, epsilon, table, pow2))
WRAP_BOOL(OP_INDEX, krn_index_query,
          (krn_pool * pool, uint16_t *q, const float *wt, uint32_t rows, uint32_t heads,
           const float *table, bool pow2, uint8_t *codes, float *factors),
          (pool, q, wt, rows, heads, table, pow2, codes, factors))
WRAP_BOOL(OP_INDEX, krn_index_select, (krn_pool * pool, const krn_select_args *args), (pool, args))
WRAP_BOOL(OP_ATTEND, krn_latent_put,
          (krn_pool * pool, const krn_cache *cache, const krn_row *rows, uint32_t count,
           const uint16_t *kv, const uint16_t *weight, float epsilon, const float *table,
           bool pow2),
          (pool, cache, rows, count, kv, weight, epsilon, table, pow2))
WRAP(OP_ATTEND, krn_rope_table,
     (krn_pool * pool, const krn_rope *rope, const uint32_t *positions, uint32_t count,
      float *table),
     (pool, rope, positions, count, table))
WRAP(OP_ATTEND, krn_rope_queries,
     (krn_pool * pool, uint16_t *q, uint32_t rows, uint32_t heads, const float *table),
     (pool, q, rows, heads, table))
WRAP(OP_ATTEND, krn_attend, (krn_pool * pool, const krn_attend_args *args), (pool, args))
WRAP_BOOL(OP_ROWS, krn_rmsnorm_add,
          (krn_pool * pool, const uint16_t *x, const uint16_t *res, const uint16_t *weight,
           float epsilon, uint32_t rows, uint32_t n, uint16_t *out, uint16_t *out_res),
          (pool, x, res, weight, epsilon, rows, n, out, out_res))
WRAP(OP_ROWS, krn_silu_mul,
     (krn_pool * pool, const uint16_t *g, const uint16_t *u, size_t count, uint16_t *out),
     (pool, g, u, count, out))
WRAP(OP_ROWS, krn_embed,
     (const uint16_t *table, const uint32_t *ids, uint32_t rows, uint32_t hidden, uint16_t *out),
     (table, ids, rows, hidden, out))
WRAP_BOOL(OP_ROWS, krn_finite, (const float *values, size_t count), (values, count))
WRAP_BOOL(OP_ROWS, krn_route,
          (krn_pool * pool, const krn_route_args *args, const float *logits, const float *bias,
           uint32_t rows, uint32_t *experts, float *weights),
          (pool, args, logits, bias, rows, experts, weights))
WRAP(OP_ROWS, krn_route_group,
     (const uint32_t *chosen, uint32_t rows, uint32_t count, uint32_t experts, uint32_t *offsets,
      uint32_t *out_rows, uint32_t *places),
     (chosen, rows, count, experts, offsets, out_rows, places))
WRAP(OP_ROWS, krn_combine,
     (krn_pool * pool, const uint16_t *outputs, const uint32_t *places, const float *weights,
      uint32_t chosen, const uint16_t *shared, uint32_t rows, uint32_t hidden, uint16_t *y),
     (pool, outputs, places, weights, chosen, shared, rows, hidden, y))
