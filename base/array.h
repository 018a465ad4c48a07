/* Arrays that keep their order when an item leaves. Thread: any. */
#ifndef BASE_ARRAY_H
#define BASE_ARRAY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

static inline void sl_array_remove(void *items, size_t item_bytes, uint32_t *count, uint32_t index)
{
    char *at = (char *)items + index * item_bytes;
    --*count;
    memmove(at, at + item_bytes, (*count - index) * item_bytes);
}

/* An array of pointers; false: this one is not in it. */
static inline bool sl_pointers_remove(void *pointers, uint32_t *count, const void *pointer)
{
    const char *at = (const char *)pointers;
    for (uint32_t i = 0; i < *count; i++) {
        if (memcmp(at + i * sizeof(pointer), &pointer, sizeof(pointer)) == 0) {
            sl_array_remove(pointers, sizeof(pointer), count, i);
            return true;
        }
    }
    return false;
}

#ifdef __cplusplus
}
#endif
#endif
