/* The tree behind json.h, shared by json.c, json_parse.c and json_write.c only. */
#ifndef BASE_JSON_TREE_H
#define BASE_JSON_TREE_H

#include "base/json.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Objects with more members than this carry a hash table. */
#define SL_JSON_LINEAR_MAX 16

typedef struct sl_json_member sl_json_member;

struct sl_json {
    union {
        const char *text;              /* string bytes or number text, NUL-terminated */
        const struct sl_json *items;   /* array */
        const sl_json_member *members; /* object; the hash table lies behind the last member */
    } as;
    uint32_t count;     /* bytes, elements or members */
    uint8_t type;       /* sl_json_type */
    uint8_t is_integer; /* number without '.' and exponent */
    uint16_t unused;
};

struct sl_json_member {
    struct sl_json value;
    const char *key;
    uint32_t key_size;
    uint32_t unused;
};

typedef struct sl_json_chunk sl_json_chunk;

struct sl_json_doc {
    struct sl_json root;
    sl_json_chunk *chunks; /* newest first */
};

/* Arena memory, 8-byte aligned, not zeroed. */
void *sl_json_arena_take(sl_json_doc *doc, size_t bytes);
/* Gives back the tail of the newest piece. */
void sl_json_arena_trim(sl_json_doc *doc, void *piece, size_t bytes_taken, size_t bytes_kept);

/* The hash table of an object of `count` members: slots hold index + 1, 0 = empty. */
size_t sl_json_table_slots(size_t count);
uint64_t sl_json_hash(const char *key, size_t size);

#ifdef __cplusplus
}
#endif
#endif
