/* The inside of a tokenizer, shared by the files that load, encode and decode. Not for others. */
#ifndef MODEL_TOKENIZER_PARTS_H
#define MODEL_TOKENIZER_PARTS_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "model/tokenizer.h"

#define MDL_SPLITS_MAX 8

/* Byte trie of added tokens; children are a linked list. */
typedef struct mdl_trie_node {
    uint32_t first_child; /* 0 = none (node 0 is the root) */
    uint32_t next_sibling;
    int32_t id; /* MDL_TOKEN_NONE when no token ends here */
    uint8_t byte;
} mdl_trie_node;

typedef struct mdl_merge {
    uint64_t pair; /* left id << 32 | right id; UINT64_MAX = free slot */
    uint32_t rank;
    int32_t id;
} mdl_merge;

typedef struct mdl_token {
    uint32_t offset; /* into bytes */
    uint32_t size;   /* 0 = undefined */
    bool added;
} mdl_token;

struct mdl_tokenizer {
    mdl_token *tokens; /* by id */
    int32_t id_end;
    int32_t token_capacity;
    sl_buf bytes;
    int32_t byte_ids[256];
    mdl_merge *merges; /* open addressing */
    size_t merge_slot_count;
    mdl_trie_node *trie;
    size_t trie_count;
    size_t trie_capacity;
    bool trie_first[256];
    pcre2_code *splits[MDL_SPLITS_MAX];
    int split_count;
    mdl_special special;
};

/* NULL when the pair does not merge. */
const mdl_merge *mdl_merge_find(const mdl_tokenizer *tokenizer, int32_t left, int32_t right);
/* Appends the ids of one piece (BPE). */
void mdl_bpe_encode(const mdl_tokenizer *tokenizer, const uint8_t *piece, size_t size,
                    mdl_ids *ids);
/* Byte-level alphabet: the code point that stands for a byte, and back (-1). */
uint32_t mdl_byte_char(uint8_t byte);
int mdl_char_byte(uint32_t code_point);
/* Ranges of new characters of a major category (L, M, N, P, S), for a pcre2 class; else NULL. */
const char *mdl_unicode_new(char category);

#endif
