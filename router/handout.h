/* What one choice hands out beside its tokens, as it comes from the decode ranks and as the answer
 * tells it: routing rows, sampling masks, and which weights drew which tokens. docs/HANDOUT.md has
 * the bytes. Thread: owner. */
#ifndef ROUTER_HANDOUT_H
#define ROUTER_HANDOUT_H

#include "model/handout.h"
#include "proto/sluice/v1/decode.pb-c.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct rtr_handout_options {
    const mdl_shape *shape; /* borrowed for the call */
    bool routing, masks;
    uint64_t bytes_max;
} rtr_handout_options;

typedef struct rtr_handout rtr_handout;

rtr_handout *rtr_handout_create(const rtr_handout_options *options);
void rtr_handout_destroy(rtr_handout *handout);
/* Tokens [skip, skip + count) of the run come next. SL_UNSUPPORTED: the rank did not hand out what
 * was asked for; SL_CORRUPT: not in this form; SL_TOO_LARGE: over bytes_max. */
SL_MUST_USE sl_status rtr_handout_take(rtr_handout *handout, const Sluice__V1__TokenRun *run,
                                       uint32_t skip, uint32_t count, sl_err *err);
/* The members of the "sluice" object about tokens [from, to). */
void rtr_handout_write(const rtr_handout *handout, uint32_t from, uint32_t to, sl_buf *out);

#ifdef __cplusplus
}
#endif
#endif
