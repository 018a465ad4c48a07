/* What a sequence hands out beside its tokens: which experts they were routed to, and what their
 * draws could have given. Allocated with the job (control thread), filled by the engine thread
 * before it tells of the token; what was told of may be read by the control thread. */
#ifndef DECODE_HANDOUT_H
#define DECODE_HANDOUT_H

#include "engine/engine.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Memory that one sequence's may take; untouched pages of it cost nothing. */
#define DEC_HANDOUT_BYTES_MAX ((uint64_t)512 << 20)

typedef struct dec_handout_options {
    const mdl_routing_layout *routing; /* NULL: not wanted; borrowed */
    uint32_t mask_vocab;               /* 0: masks not wanted */
    uint32_t token_capacity;           /* tokens that are generated here at most */
} dec_handout_options;

typedef struct dec_handout {
    dec_handout_options o;
    uint32_t count;      /* tokens noted */
    uint8_t *first_row;  /* [row_bytes] of the row that draws the first token: comes with h_final */
    uint8_t *rows;       /* [token_capacity][row_bytes] */
    uint8_t *masks;      /* records, one behind the other */
    uint32_t *mask_ends; /* [token_capacity] */
} dec_handout;

/* SL_TOO_LARGE: over DEC_HANDOUT_BYTES_MAX. */
SL_MUST_USE sl_status dec_handout_check(const dec_handout_options *options, sl_err *err);
dec_handout *dec_handout_create(const dec_handout_options *options);
void dec_handout_destroy(dec_handout *handout);
/* Right after eng_sample drew a token from the row with this routing (NULL: not wanted). */
void dec_handout_note(dec_handout *handout, eng_engine *engine, const uint8_t *routing);
/* Of token `index`, counted from the first one noted. */
sl_span dec_handout_mask(const dec_handout *handout, uint32_t index);
/* Bytes that token `index` takes on the wire. */
uint32_t dec_handout_bytes(const dec_handout *handout, uint32_t index);

#ifdef __cplusplus
}
#endif
#endif
