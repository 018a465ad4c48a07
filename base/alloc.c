/* Named, counted allocations over malloc.
 *
 * Owns the table of names and their live counters (atomics, filled once per name). Any thread.
 * Each block carries a 16-byte head {size, name slot, magic}, so a wild or double free aborts with
 * a message instead of corrupting the heap. This is the only file that calls malloc and free. */
#include "base/alloc.h"

#include <errno.h>
#include <malloc.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/assert.h"

#define NAMES_MAX  1024 /* power of two; names beyond it share the last slot's counter */
#define HEAD_MAGIC 0x51a110c8u
#define HEAD_FREED 0xdeadf4eeu

typedef struct alloc_head {
    uint64_t size;
    uint32_t slot;
    uint32_t magic;
} alloc_head;
_Static_assert(sizeof(alloc_head) == 16, "keeps malloc's 16-byte alignment");

typedef struct name_slot {
    _Atomic(const char *) name;
    _Atomic uint64_t live;
} name_slot;

static name_slot name_slots[NAMES_MAX];
static _Atomic uint64_t live_total;

/* Slots are claimed once by compare-and-swap and never given back. Literals: compared by address
 * (the same text in two files may take two slots). */
static uint32_t slot_of(const char *name)
{
    uint64_t hash = (uint64_t)(uintptr_t)name * 0x9e3779b97f4a7c15ull;
    for (uint32_t probe = 0; probe < NAMES_MAX - 1; probe++) {
        uint32_t slot = (uint32_t)((hash >> 40) + probe) & (NAMES_MAX - 1);
        const char *seen = atomic_load_explicit(&name_slots[slot].name, memory_order_acquire);
        if (!seen && atomic_compare_exchange_strong(&name_slots[slot].name, &seen, name))
            return slot;
        if (seen == name)
            return slot;
    }
    return NAMES_MAX - 1;
}

static void out_of_memory(const char *name, size_t size)
{
    fprintf(stderr, "out of memory: %zu bytes for %s\n", size, name);
    abort();
}

static size_t total_bytes(size_t count, size_t size, const char *name)
{
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes) ||
        __builtin_add_overflow(bytes, sizeof(alloc_head), &bytes))
        out_of_memory(name, SIZE_MAX);
    return bytes;
}

static void *block_open(alloc_head *head, size_t bytes, const char *name)
{
    head->size = bytes - sizeof(alloc_head);
    head->slot = slot_of(name);
    head->magic = HEAD_MAGIC;
    atomic_fetch_add_explicit(&name_slots[head->slot].live, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&live_total, 1, memory_order_relaxed);
    return head + 1;
}

static alloc_head *block_head(void *pointer)
{
    alloc_head *head = (alloc_head *)pointer - 1;
    sl_assert(head->magic == HEAD_MAGIC);
    return head;
}

void *sl_alloc(size_t count, size_t size, const char *name)
{
    size_t bytes = total_bytes(count, size, name);
    alloc_head *head = calloc(1, bytes);
    if (!head)
        out_of_memory(name, bytes);
    return block_open(head, bytes, name);
}

void *sl_realloc(void *pointer, size_t count, size_t size, const char *name)
{
    size_t bytes = total_bytes(count, size, name);
    alloc_head *head = pointer ? block_head(pointer) : NULL;
    alloc_head *moved = realloc(head, bytes);
    if (!moved)
        out_of_memory(name, bytes);
    if (!pointer)
        return block_open(moved, bytes, name);
    moved->size = bytes - sizeof(alloc_head);
    return moved + 1;
}

char *sl_strndup(const char *text, size_t length, const char *name)
{
    char *copy = sl_realloc(NULL, length + 1, 1, name);
    if (length)
        memcpy(copy, text, length);
    copy[length] = '\0';
    return copy;
}

char *sl_strdup(const char *text, const char *name)
{
    return sl_strndup(text, strlen(text), name);
}

char *sl_asprintf(const char *name, const char *format, ...)
{
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int size = vsnprintf(NULL, 0, format, args);
    va_end(args);
    sl_assert(size >= 0);
    char *text = sl_realloc(NULL, (size_t)size + 1, 1, name);
    vsnprintf(text, (size_t)size + 1, format, again);
    va_end(again);
    return text;
}

void sl_free(void *pointer)
{
    if (!pointer)
        return;
    alloc_head *head = block_head(pointer);
    head->magic = HEAD_FREED;
    atomic_fetch_sub_explicit(&name_slots[head->slot].live, 1, memory_order_relaxed);
    atomic_fetch_sub_explicit(&live_total, 1, memory_order_relaxed);
    free(head);
}

uint64_t sl_alloc_live(void)
{
    return atomic_load_explicit(&live_total, memory_order_relaxed);
}

void sl_alloc_print_live(void)
{
    for (size_t i = 0; i < NAMES_MAX; i++) {
        const char *name = atomic_load_explicit(&name_slots[i].name, memory_order_acquire);
        uint64_t live = atomic_load_explicit(&name_slots[i].live, memory_order_relaxed);
        if (live)
            fprintf(stderr, "  %llu x %s\n", (unsigned long long)live, name ? name : "other");
    }
}

sl_status sl_alloc_pages(size_t bytes, void **out_memory, sl_err *err)
{
    if (bytes == 0)
        return sl_fail(err, SL_INVALID, "cannot map 0 bytes");
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return sl_fail_errno(err, SL_NO_MEMORY, "map %zu bytes", bytes);
    /* Advice only: a kernel without huge pages still serves. */
    (void)madvise(memory, bytes, MADV_HUGEPAGE);
    atomic_fetch_add_explicit(&live_total, 1, memory_order_relaxed);
    *out_memory = memory;
    return sl_ok();
}

void sl_free_pages(void *memory, size_t bytes)
{
    if (!memory)
        return;
    sl_assert(munmap(memory, bytes) == 0);
    atomic_fetch_sub_explicit(&live_total, 1, memory_order_relaxed);
}

uint64_t sl_memory_available(void)
{
    FILE *file = fopen("/proc/meminfo", "re");
    char line[128];
    unsigned long long kilobytes;
    uint64_t total = 0;
    bool told = false;
    while (file && fgets(line, sizeof(line), file)) {
        bool memory = sscanf(line, "MemAvailable: %llu", &kilobytes) == 1;
        if (!memory && sscanf(line, "SwapFree: %llu", &kilobytes) != 1)
            continue;
        told = told || memory;
        total += (uint64_t)kilobytes * 1024;
    }
    if (file)
        fclose(file);
    return told ? total : UINT64_MAX;
}

/* There under the address sanitizer, whose malloc glibc knows nothing of. */
size_t __sanitizer_get_current_allocated_bytes(void) __attribute__((weak));

uint64_t sl_heap_bytes(void)
{
    if (__sanitizer_get_current_allocated_bytes)
        return __sanitizer_get_current_allocated_bytes();
    struct mallinfo2 info = mallinfo2();
    return (uint64_t)info.uordblks + info.hblkhd;
}
