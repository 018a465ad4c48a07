/* Named allocations, counted: sl_alloc_live() at exit must be zero (tests check it).
 *
 * An allocation that fails because memory is out aborts with its name: Linux overcommits, so a NULL
 * for a small control-plane object is not a case worth a path of its own. Large data-plane carvings
 * use sl_alloc_pages, which returns an error. Thread: any. */
#ifndef BASE_ALLOC_H
#define BASE_ALLOC_H

#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Zeroed. `name` is a literal ("router request") that groups the counters. Never NULL. size 0 gives
 * a unique pointer. */
void *sl_alloc(size_t count, size_t size, const char *name);
/* Grows or shrinks; new bytes are not zeroed. pointer NULL = sl_alloc without zeroing. */
void *sl_realloc(void *pointer, size_t count, size_t size, const char *name);
char *sl_strdup(const char *text, const char *name);
char *sl_strndup(const char *text, size_t length, const char *name);
char *sl_asprintf(const char *name, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* NULL is fine. Only for what the calls above returned. */
void sl_free(void *pointer);
/* Number of allocations alive. */
uint64_t sl_alloc_live(void);
/* Prints the names that are alive, with counts, to stderr: what a leaking test shows. */
void sl_alloc_print_live(void);

/* Anonymous zeroed pages (mmap, transparent huge pages advised), for caches and staging carved at
 * start. */
SL_MUST_USE sl_status sl_alloc_pages(size_t bytes, void **out_memory, sl_err *err);
void sl_free_pages(void *memory, size_t bytes);
/* Bytes that this machine could still give (free, caches it can drop, swap); UINT64_MAX where the
 * kernel does not tell. */
uint64_t sl_memory_available(void);
/* Bytes that the program and its libraries hold by malloc: what grows where something leaks.
 * Resident memory grows also by what the allocator keeps back. */
uint64_t sl_heap_bytes(void);

#ifdef __cplusplus
}
#endif
#endif
