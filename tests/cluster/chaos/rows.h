/* What the stub engine computes in the place of a model: a hash chain over the tokens.
 *
 * Each row of a page holds a link of it, all bytes of the row in every layer; what comes next is a
 * function of the chain's end. Rows of another sequence, of an older one, or none at all break the
 * chain. Pure; any thread. */
#ifndef TESTS_CLUSTER_CHAOS_ROWS_H
#define TESTS_CLUSTER_CHAOS_ROWS_H

#include <stdbool.h>
#include <stdint.h>

#define CHAOS_CHAIN_START 0x5eed5eed5eed5eedull

uint64_t chaos_chain_next(uint64_t chain, uint32_t token);
/* Writes row `slot` (0..63) of a layer's slice of a page. */
void chaos_row_put(uint8_t *slice, uint32_t slot, uint32_t layer, uint64_t chain, uint32_t token);
/* Whether all bytes of a row are those of this link. */
bool chaos_row_is(const uint8_t *slice, uint32_t slot, uint32_t layer, uint64_t chain,
                  uint32_t token);
bool chaos_row_is_zero(const uint8_t *slice, uint32_t slot);
/* What the row says it is. */
uint64_t chaos_row_chain(const uint8_t *slice, uint32_t slot);
uint32_t chaos_row_token(const uint8_t *slice, uint32_t slot);
/* f32 [vocab]: four candidates, sometimes the end of the sentence. */
void chaos_logits(uint64_t chain, uint32_t vocab, uint32_t eos, float *out);
/* The most probable next token, as chaos_logits has it but for the end. */
uint32_t chaos_guess(uint64_t chain);

#endif
