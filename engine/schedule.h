/* Which prompts a step computes, and how much of them. Pure: no clock, no engine.
 *
 * Prompts: lower priority numbers first, then the one with the least left to compute, less what was
 * computed of others since it came: a short prompt does not wait behind a long one, and a long one
 * is held up by at most ENG_AGEING times its own length. While sequences generate, a step gives
 * prompts a bounded time, which the cost of earlier steps turns into rows. */
#ifndef ENGINE_SCHEDULE_H
#define ENGINE_SCHEDULE_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ENG_AGEING    4u
#define ENG_CHUNK_MIN 32u /* rows that a prompt gets in any case: it must go on too */

typedef struct eng_turn {
    int32_t priority;
    uint32_t left;  /* rows to compute */
    uint64_t since; /* rows that were computed of all prompts when it came */
    uint64_t order; /* of arrival: decides between equals */
} eng_turn;

/* rows: computed of all prompts so far. */
bool eng_turn_before(const eng_turn *a, const eng_turn *b, uint64_t rows);

/* What makes a step long: its rows, and the cached tokens that they look at (the sum of their
 * positions). */
typedef struct eng_load {
    uint64_t rows;
    uint64_t reads;
} eng_load;

/* Rows [position, position + rows) of one sequence in addition. */
void eng_load_add(eng_load *load, uint32_t position, uint32_t rows);

#define ENG_COST_TERMS 3u

/* Least squares over the steps of late: time = w0 + w1 rows + w2 reads. */
typedef struct eng_cost {
    double products[ENG_COST_TERMS][ENG_COST_TERMS], times[ENG_COST_TERMS];
    double weights[ENG_COST_TERMS]; /* nanoseconds, none negative */
    bool known;
} eng_cost;

void eng_cost_note(eng_cost *cost, const eng_load *load, uint64_t ns);
/* 0 while nothing is known. */
uint64_t eng_cost_predict_ns(const eng_cost *cost, const eng_load *load);
/* How many rows from `position` on a step that has `load` already may take within limit_ns: at most
 * rows_max; at least ENG_CHUNK_MIN of them if it is the step's first prompt, which is also what an
 * unknown cost allows. */
uint32_t eng_cost_rows(const eng_cost *cost, const eng_load *load, uint32_t position,
                       uint32_t rows_max, uint64_t limit_ns, bool first);

#ifdef __cplusplus
}
#endif
#endif
