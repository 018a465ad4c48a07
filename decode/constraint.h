/* The compiled constraints of a decode rank: equal ones are compiled once and kept for a while.
 *
 * The control thread takes and gives back; a matcher belongs to the engine thread as long as a job
 * that uses it is open there. Bounded: one for each sequence, and some that nobody uses now. */
#ifndef DECODE_CONSTRAINT_H
#define DECODE_CONSTRAINT_H

#include "model/matcher.h"
#include "proto/sluice/v1/types.pb-c.h"

#ifdef __cplusplus
extern "C" {
#endif

#define DEC_CONSTRAINTS_IDLE_MAX 32u

typedef struct dec_constraint dec_constraint;
typedef struct dec_constraints dec_constraints;

dec_constraints *dec_constraints_create(uint32_t sequences_max);
void dec_constraints_destroy(dec_constraints *constraints);
/* What the router sent, checked and compiled: errors as mdl_constraint_compile's. */
SL_MUST_USE sl_status dec_constraint_take(dec_constraints *constraints,
                                          const Sluice__V1__Constraint *wire,
                                          dec_constraint **out_constraint, sl_err *err);
void dec_constraint_give(dec_constraint *constraint);
mdl_matcher *dec_constraint_matcher(const dec_constraint *constraint);
/* How many are there, used or not. */
uint32_t dec_constraints_count(const dec_constraints *constraints);

#ifdef __cplusplus
}
#endif
#endif
