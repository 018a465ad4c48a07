/* The compiled constraints of a decode rank: equal ones are compiled once and kept for a while.
 *
 * The control thread finds, adds and gives back; compiling is for any thread (decode/compiler.h). A
 * matcher belongs to the engine thread as long as a job that uses it is open there. Bounded: one
 * for each sequence, and some that nobody uses now. */
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

typedef struct dec_compiled {
    mdl_grammar *grammar;
    mdl_matcher *matcher;
} dec_compiled;

/* What the router sent, checked and compiled: errors as mdl_constraint_compile's. Any thread. */
SL_MUST_USE sl_status dec_constraint_compile(const Sluice__V1__Constraint *wire,
                                             dec_compiled *out_compiled, sl_err *err);
void dec_compiled_fini(dec_compiled *compiled);

/* Takes an equal one that is here; NULL: there is none. */
dec_constraint *dec_constraint_find(dec_constraints *constraints,
                                    const Sluice__V1__Constraint *wire);
/* Keeps what was compiled of one that is not here, and owns it from now on. */
void dec_constraint_add(dec_constraints *constraints, const Sluice__V1__Constraint *wire,
                        dec_compiled *take_compiled);
void dec_constraint_give(dec_constraint *constraint);
mdl_matcher *dec_constraint_matcher(const dec_constraint *constraint);
/* How many are there, used or not. */
uint32_t dec_constraints_count(const dec_constraints *constraints);

#ifdef __cplusplus
}
#endif
#endif
