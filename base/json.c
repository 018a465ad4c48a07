/* The JSON tree: arena, accessors and number conversion.
 *
 * A document owns all its memory in arena chunks and frees it at once. A tree never changes after
 * parsing: any thread may read it. */
#include "base/json.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/json_tree.h"
#include "base/rng.h"

#define CHUNK_BYTES_FIRST ((size_t)4 << 10)
#define CHUNK_BYTES_MAX   ((size_t)4 << 20)

struct sl_json_chunk {
    sl_json_chunk *next;
    size_t used, size;
    char data[] __attribute__((aligned(8)));
};

void *sl_json_arena_take(sl_json_doc *doc, size_t bytes)
{
    bytes = (bytes + 7) & ~(size_t)7;
    sl_json_chunk *chunk = doc->chunks;
    if (!chunk || chunk->size - chunk->used < bytes) {
        size_t size = chunk ? chunk->size * 2 : CHUNK_BYTES_FIRST;
        if (size > CHUNK_BYTES_MAX)
            size = CHUNK_BYTES_MAX;
        if (size < bytes)
            size = bytes;
        chunk = sl_realloc(NULL, 1, sizeof(*chunk) + size, "json arena");
        chunk->next = doc->chunks;
        chunk->used = 0;
        chunk->size = size;
        doc->chunks = chunk;
    }
    void *piece = chunk->data + chunk->used;
    chunk->used += bytes;
    return piece;
}

void sl_json_arena_trim(sl_json_doc *doc, void *piece, size_t bytes_taken, size_t bytes_kept)
{
    sl_json_chunk *chunk = doc->chunks;
    bytes_taken = (bytes_taken + 7) & ~(size_t)7;
    bytes_kept = (bytes_kept + 7) & ~(size_t)7;
    sl_assert((char *)piece + bytes_taken == chunk->data + chunk->used);
    chunk->used -= bytes_taken - bytes_kept;
}

void sl_json_doc_destroy(sl_json_doc *doc)
{
    if (!doc)
        return;
    while (doc->chunks) {
        sl_json_chunk *next = doc->chunks->next;
        sl_free(doc->chunks);
        doc->chunks = next;
    }
    sl_free(doc);
}

size_t sl_json_table_slots(size_t count)
{
    size_t slots = 64;
    while (slots < count * 2)
        slots *= 2;
    return slots;
}

/* Keyed once per process: keys come from clients, who must not be able to aim at collisions. */
static uint64_t hash_key[2];
static pthread_once_t hash_once = PTHREAD_ONCE_INIT;

static void hash_key_init(void)
{
    sl_random_bytes(hash_key, sizeof(hash_key));
}

uint64_t sl_json_hash(const char *key, size_t size)
{
    pthread_once(&hash_once, hash_key_init);
    return sl_siphash(hash_key, key, size);
}

const sl_json *sl_json_root(const sl_json_doc *doc)
{
    return &doc->root;
}

sl_json_type sl_json_typeof(const sl_json *value)
{
    return value ? (sl_json_type)value->type : SL_JSON_NULL;
}

const char *sl_json_type_name(sl_json_type type)
{
    static const char *const names[] = {"null",   "boolean", "boolean", "number",
                                        "string", "array",   "object"};
    return (unsigned)type <= SL_JSON_OBJECT ? names[type] : "unknown";
}

const char *sl_json_string(const sl_json *value, size_t *out_size)
{
    if (sl_json_typeof(value) != SL_JSON_STRING)
        return NULL;
    if (out_size)
        *out_size = value->count;
    return value->as.text;
}

const char *sl_json_number_text(const sl_json *value)
{
    return sl_json_typeof(value) == SL_JSON_NUMBER ? value->as.text : NULL;
}

bool sl_json_number_is_integer(const sl_json *value)
{
    return sl_json_typeof(value) == SL_JSON_NUMBER && value->is_integer;
}

/* Exponent of a number text, clamped: beyond +-100000 the exact value decides nothing. */
static long exponent_of(const char *text)
{
    const char *mark = strpbrk(text, "eE");
    if (!mark)
        return 0;
    long exponent = strtol(mark + 1, NULL, 10); /* clamps by itself */
    return exponent > 100000 ? 100000 : exponent < -100000 ? -100000 : exponent;
}

/* value = 0.DIGITS * 10^scale exactly; true if it is an integer within 64 bits. */
static bool decimal_to_i64(const char *text, int64_t *out_value)
{
    bool negative = *text == '-';
    uint64_t magnitude = 0;
    long exponent = exponent_of(text);
    long pending_zeros = 0; /* zeros that only count if another digit follows */
    bool fraction = false;
    for (text += negative; *text && *text != 'e' && *text != 'E'; text++) {
        if (*text == '.') {
            fraction = true;
            continue;
        }
        if (fraction)
            exponent--;
        if (*text == '0') {
            pending_zeros += magnitude != 0;
            continue;
        }
        for (; pending_zeros > 0; pending_zeros--)
            if (__builtin_mul_overflow(magnitude, 10, &magnitude))
                return false;
        if (__builtin_mul_overflow(magnitude, 10, &magnitude) ||
            __builtin_add_overflow(magnitude, (uint64_t)(*text - '0'), &magnitude))
            return false;
    }
    if (magnitude == 0) {
        *out_value = 0;
        return true;
    }
    exponent += pending_zeros;
    if (exponent < 0)
        return false;
    for (; exponent > 0; exponent--)
        if (__builtin_mul_overflow(magnitude, 10, &magnitude))
            return false;
    if (magnitude > (uint64_t)INT64_MAX + (negative ? 1 : 0))
        return false;
    *out_value = negative ? (int64_t)(0 - magnitude) : (int64_t)magnitude;
    return true;
}

bool sl_json_i64(const sl_json *value, int64_t *out_value)
{
    const char *text = sl_json_number_text(value);
    return text && decimal_to_i64(text, out_value);
}

bool sl_json_double(const sl_json *value, double *out_value)
{
    const char *text = sl_json_number_text(value);
    if (!text)
        return false;
    double number = strtod(text, NULL);
    if (!isfinite(number))
        return false;
    *out_value = number;
    return true;
}

bool sl_json_bool(const sl_json *value, bool *out_value)
{
    sl_json_type type = sl_json_typeof(value);
    if (type != SL_JSON_TRUE && type != SL_JSON_FALSE)
        return false;
    *out_value = type == SL_JSON_TRUE;
    return true;
}

size_t sl_json_count(const sl_json *value)
{
    sl_json_type type = sl_json_typeof(value);
    return type == SL_JSON_ARRAY || type == SL_JSON_OBJECT ? value->count : 0;
}

const sl_json *sl_json_at(const sl_json *value, size_t index)
{
    if (index >= sl_json_count(value))
        return NULL;
    return value->type == SL_JSON_ARRAY ? &value->as.items[index] : &value->as.members[index].value;
}

const char *sl_json_key(const sl_json *value, size_t index, size_t *out_size)
{
    if (sl_json_typeof(value) != SL_JSON_OBJECT || index >= value->count)
        return NULL;
    if (out_size)
        *out_size = value->as.members[index].key_size;
    return value->as.members[index].key;
}

const sl_json *sl_json_get(const sl_json *object, const char *key)
{
    if (sl_json_typeof(object) != SL_JSON_OBJECT)
        return NULL;
    const sl_json_member *members = object->as.members;
    size_t size = strlen(key), count = object->count;
    if (count <= SL_JSON_LINEAR_MAX) {
        for (size_t i = 0; i < count; i++)
            if (members[i].key_size == size && memcmp(members[i].key, key, size) == 0)
                return &members[i].value;
        return NULL;
    }
    const uint32_t *table = (const uint32_t *)(members + count);
    size_t slots = sl_json_table_slots(count);
    size_t slot = sl_json_hash(key, size) & (slots - 1);
    for (; table[slot]; slot = (slot + 1) & (slots - 1)) {
        const sl_json_member *member = &members[table[slot] - 1];
        if (member->key_size == size && memcmp(member->key, key, size) == 0)
            return &member->value;
    }
    return NULL;
}
