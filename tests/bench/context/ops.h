/* Time of the kernels' calls inside a step, taken by wrapping them at link time (build.mk): the
 * engine runs as it is. Calls of the engine thread only; nested calls count as the outer one. */
#ifndef TESTS_BENCH_CONTEXT_OPS_H
#define TESTS_BENCH_CONTEXT_OPS_H

#include <stdint.h>

typedef enum op_group {
    OP_LINEAR, /* fp8 projections and experts, with their inputs' Q128 */
    OP_HEADS,  /* W_UK, W_UV */
    OP_F32,    /* router, index weights, head */
    OP_INDEX,  /* the indexer: key, query, scores and selection (not its projections) */
    OP_ATTEND, /* latent rows, rope, attention */
    OP_ROWS,   /* norms, silu, combine, routing, embedding, checks */
    OP_COUNT,
} op_group;

extern const char *const op_names[OP_COUNT];

/* Seconds and calls of each group since the last reset. */
typedef struct op_times {
    double seconds[OP_COUNT];
    uint64_t calls[OP_COUNT];
} op_times;

/* CPU seconds of the process, all threads: other processes on the machine disturb it little. */
double op_now(void);
void op_reset(void);
op_times op_read(void);

#endif
