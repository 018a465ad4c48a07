/* The tokenizer of tokenizer.json: text to ids and back, byte for byte as Hugging Face tokenizers.
 *
 * Owns vocabulary, merges, added tokens and compiled split patterns. Immutable after loading and
 * shareable among threads without locks (each encode makes its own scratch). Adds no BOS: the chat
 * encoding writes it as text. Knows no ids by number: all are looked up by content. */
#ifndef MODEL_TOKENIZER_H
#define MODEL_TOKENIZER_H

#include "base/bytes.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mdl_tokenizer mdl_tokenizer;

#define MDL_TOKEN_NONE     (-1)
#define MDL_VOCAB_MAX      (1 << 20)
#define MDL_ENCODE_IDS_MAX ((size_t)4 << 20) /* ids of one encode, unless options say less */

/* Added tokens the rest of the system relies on; loading fails if one is missing. */
typedef struct mdl_special {
    int32_t bos;
    int32_t eos;
    int32_t user;
    int32_t assistant;
    int32_t think;
    int32_t end_think;
    int32_t dsml;
} mdl_special;

/* Growing id list, owned by the caller. Zero-initialised is empty. */
typedef struct mdl_ids {
    int32_t *data;
    size_t count;
    size_t capacity;
} mdl_ids;

void mdl_ids_fini(mdl_ids *ids);
void mdl_ids_push(mdl_ids *ids, int32_t id);

/* Byte range [begin, end) of a text. */
typedef struct mdl_range {
    size_t begin;
    size_t end;
} mdl_range;

typedef struct mdl_encode_options {
    /* Ranges, ascending and disjoint, in which added tokens count as plain text (message content,
     * when the server protects it). NULL: added tokens match everywhere (the reference). */
    const mdl_range *plain;
    size_t plain_count;
    size_t id_max; /* 0 = MDL_ENCODE_IDS_MAX; more ids: SL_TOO_LARGE */
} mdl_encode_options;

/* path: tokenizer.json or the directory that holds it. */
SL_MUST_USE sl_status mdl_tokenizer_load(const char *path, mdl_tokenizer **out_tokenizer,
                                         sl_err *err);
void mdl_tokenizer_destroy(mdl_tokenizer *tokenizer);

const mdl_special *mdl_tokenizer_special(const mdl_tokenizer *tokenizer);
/* One more than the largest id. */
int32_t mdl_tokenizer_id_end(const mdl_tokenizer *tokenizer);
bool mdl_tokenizer_is_defined(const mdl_tokenizer *tokenizer, int32_t id);
bool mdl_tokenizer_is_added(const mdl_tokenizer *tokenizer, int32_t id);
/* The added token with exactly this content, or MDL_TOKEN_NONE. */
int32_t mdl_tokenizer_find_added(const mdl_tokenizer *tokenizer, const char *content);
/* The bytes a token stands for (may be part of a UTF-8 sequence); data NULL when undefined. */
sl_span mdl_tokenizer_bytes(const mdl_tokenizer *tokenizer, int32_t id);
/* Sets bit id of out_words for every id in [0, vocab_size) that has no token. The caller gives
 * (vocab_size + 31) / 32 words. */
void mdl_tokenizer_undefined_mask(const mdl_tokenizer *tokenizer, int32_t vocab_size,
                                  uint32_t *out_words);

/* Appends the ids of text. options may be NULL. SL_INVALID: not UTF-8 (the text says at which
 * byte). On failure the list is as before. */
SL_MUST_USE sl_status mdl_tokenizer_encode(const mdl_tokenizer *tokenizer, const char *text,
                                           size_t size, const mdl_encode_options *options,
                                           mdl_ids *ids, sl_err *err);
/* Appends the text of ids, invalid UTF-8 as U+FFFD. SL_INVALID names the first undefined id. */
SL_MUST_USE sl_status mdl_tokenizer_decode(const mdl_tokenizer *tokenizer, const int32_t *ids,
                                           size_t id_count, sl_buf *out_text, sl_err *err);

/* Incremental decoding of one stream: what it appends is always whole UTF-8 characters, and the
 * concatenation equals mdl_tokenizer_decode of all ids. A plain struct: copy it to fork. */
typedef struct mdl_detok {
    const mdl_tokenizer *tokenizer;
    uint8_t held[4]; /* incomplete UTF-8 */
    uint32_t held_count;
} mdl_detok;

void mdl_detok_init(mdl_detok *detok, const mdl_tokenizer *tokenizer);
/* Undefined ids print nothing. */
void mdl_detok_push(mdl_detok *detok, int32_t id, sl_buf *out_text);
/* What is still incomplete becomes U+FFFD. */
void mdl_detok_finish(mdl_detok *detok, sl_buf *out_text);

#ifdef __cplusplus
}
#endif
#endif
