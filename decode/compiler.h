/* Admissions whose constraint must be compiled first wait here, so that neither the control loop
 * nor any sequence's step does.
 *
 * One thread compiles, one constraint after another; admissions with equal ones wait for the same
 * result. Compiled ones are added to the rank's (decode/constraint.h). Bounded by as many
 * admissions as there could be sequences. Thread: control loop; the compiling thread touches
 * nothing else. */
#ifndef DECODE_COMPILER_H
#define DECODE_COMPILER_H

#include "base/loop.h"
#include "decode/constraint.h"
#include "proto/sluice/v1/decode.pb-c.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dec_compiler dec_compiler;

/* An admission's constraint is compiled, or refused (status). In the order in which they came, with
 * what was given to dec_compiler_wait. The admission is freed afterwards. */
typedef void (*dec_compiler_fn)(void *context, void *owner, const Sluice__V1__Admit *admit,
                                sl_status status, const sl_err *err);

SL_MUST_USE sl_status dec_compiler_create(sl_loop *loop, dec_constraints *constraints,
                                          uint32_t waiting_max, dec_compiler_fn fn, void *context,
                                          dec_compiler **out_compiler, sl_err *err);
/* Waits for the constraint in work; who waits is forgotten. NULL is fine. */
void dec_compiler_destroy(dec_compiler *compiler);
/* Copies the admission; an older one of the same owner and request is forgotten. owner: not NULL.
 * SL_FULL: too many wait. */
SL_MUST_USE sl_status dec_compiler_wait(dec_compiler *compiler, void *owner,
                                        const Sluice__V1__Admit *admit, sl_err *err);
/* Forgets the owner's request, or all that it has (NULL). */
void dec_compiler_forget(dec_compiler *compiler, const void *owner, const char *request_id);

#ifdef __cplusplus
}
#endif
#endif
