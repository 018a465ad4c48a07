/* What training asks for beside the tokens: which experts each token was routed to (Keep Routing),
 * and which ids its draw could have given (Keep Sampling Mask). Their bytes, version 1,
 * little-endian; docs/HANDOUT.md is the definition.
 *
 * Pure layout: knows neither engine nor network. Thread: any. */
#ifndef MODEL_HANDOUT_H
#define MODEL_HANDOUT_H

#include "base/bytes.h"
#include "model/shape.h"

#ifdef __cplusplus
extern "C" {
#endif

#define MDL_HANDOUT_VERSION      1u
#define MDL_HANDOUT_HEADER_BYTES 16u

/* ---- routing: one row a token, of fixed size: for each MoE layer (main ones, ascending) the ids
 * of the chosen experts, ascending, u16; then for each the gate weights in the same order, f32 */

typedef struct mdl_routing_layout {
    uint16_t first_layer; /* the first MoE layer's number */
    uint16_t layer_count;
    uint16_t chosen; /* experts a token and layer */
    uint32_t row_bytes;
} mdl_routing_layout;

void mdl_routing_layout_init(const mdl_shape *shape, mdl_routing_layout *out_layout);
/* What layer `layer` (its number in the model) chose for one token, into that token's row. */
void mdl_routing_put(const mdl_routing_layout *layout, uint32_t layer, const uint32_t *experts,
                     const float *weights, uint8_t *row);
/* Header of `row_count` rows. */
void mdl_routing_header(const mdl_routing_layout *layout, uint32_t row_count, sl_buf *out);

/* ---- scores of given tokens (inside the cluster; clients get JSON): f32 logprob, u32 rank, u32
 * count of alternatives, then `alternatives` pairs (u32 id, f32 logprob), zeros behind the count */

typedef struct mdl_score_top {
    uint32_t id;
    float logprob;
} mdl_score_top;

typedef struct mdl_score {
    float logprob;
    uint32_t rank; /* 1 + ids that are likelier; 0: no such token (behind the prompt's last row) */
    uint32_t top_count;
    const mdl_score_top *top;
} mdl_score;

static inline uint32_t mdl_score_bytes(uint32_t alternatives)
{
    return 12 + 8 * alternatives;
}
/* out: mdl_score_bytes(alternatives); score->top_count <= alternatives. */
void mdl_score_pack(const mdl_score *score, uint32_t alternatives, uint8_t *out);
/* False: malformed. top: [alternatives], where out_score->top will point. */
bool mdl_score_unpack(const uint8_t *data, uint32_t alternatives, uint32_t vocab_size,
                      mdl_score_top *top, mdl_score *out_score);

/* ---- sampling masks: one record a token: u8 kind, u32 count of ids that could be drawn, then for
 * a LIST the ids ascending (u32), for a BITMAP one bit an id (bit id % 8 of byte id / 8) */

typedef enum mdl_mask_kind {
    MDL_MASK_UNCUT, /* no filter took anything away; count is 0, nothing follows */
    MDL_MASK_LIST,
    MDL_MASK_BITMAP,
    MDL_MASK_KIND_COUNT
} mdl_mask_kind;

#define MDL_MASK_HEAD_BYTES 5u

/* Of one record. */
uint32_t mdl_mask_bytes_max(uint32_t vocab_size);
/* Writes the record of `kept` (bits of 64-bit words; NULL: uncut), the smaller of list and bitmap;
 * out has mdl_mask_bytes_max bytes. Returns how many it took. */
uint32_t mdl_mask_pack(const uint64_t *kept, uint32_t vocab_size, uint8_t *out);
/* As mdl_mask_pack of that one id. */
uint32_t mdl_mask_pack_one(uint32_t id, uint8_t *out);
/* Does `record` hold exactly one well-formed record? */
bool mdl_mask_check(sl_span record, uint32_t vocab_size);
void mdl_mask_header(uint32_t vocab_size, uint32_t row_count, sl_buf *out);

#ifdef __cplusplus
}
#endif
#endif
