/* What makes a model this model: a cheap identity and a sum of what was loaded.
 *
 * A checkpoint of 640 GB is not read twice to name it. The model hash in a stamp is the hex of both
 * halves, one after the other:
 *  - the identity covers config.json, tokenizer.json and every tensor's name, dtype and shape: it
 *    needs the headers only, so a router without weights in memory can tell models apart;
 *  - the content covers every byte of the tensors that were loaded: keyed 64-bit sums, made while
 *    loading, in parallel, under SHA-256. It differs for any changed byte (but for one chance in
 *    2^64; against an attacker it proves nothing), and for another set of layers.
 * Neither depends on how the tensors are split into files. Owns nothing; any thread. */
#ifndef MODEL_HASH_H
#define MODEL_HASH_H

#include "model/safetensors.h"

#ifdef __cplusplus
extern "C" {
#endif

#define MDL_IDENTITY_CHARS 32
#define MDL_HASH_CHARS     64

/* dir holds config.json and perhaps tokenizer.json. Absent tensors are not covered (their
 * headers are not there), only counted. */
SL_MUST_USE sl_status mdl_identity(const mdl_checkpoint *checkpoint, const char *dir,
                                   char out_text[MDL_IDENTITY_CHARS + 1], sl_err *err);

/* Sum of one tensor: the sums of its blocks of MDL_SUM_BLOCK bytes, added up. Callers that look at
 * the data anyway make it block by block while a block is in the cache. */
#define MDL_SUM_BLOCK ((size_t)1 << 18)
uint64_t mdl_block_sum(uint64_t block, const void *data, size_t bytes);

typedef struct mdl_tensor_sum {
    const char *name;
    uint64_t sum;
} mdl_tensor_sum;

/* Sorts sums by name. Appends to identity what was loaded. */
SL_MUST_USE sl_status mdl_model_hash(const char *identity, mdl_tensor_sum *sums, size_t count,
                                     char out_text[MDL_HASH_CHARS + 1], sl_err *err);

#ifdef __cplusplus
}
#endif
#endif
