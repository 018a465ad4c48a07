/* Keyed 64-bit sum of cache pieces: integrity against faults (not attackers), same value on every
 * backend.
 *
 * Four 64-bit lanes over 32-byte blocks, folded at the end; parallel over 16-byte units on a GPU.
 * Definition in sum.c's head comment. */
#ifndef BASE_SUM_H
#define BASE_SUM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* key: mixes weights version and numerics id; tweak: position and group. Any size (a short last
 * block is zero-padded, the size is mixed in). Thread: any. */
uint64_t sl_sum64(uint64_t key, uint64_t tweak, const void *data, size_t size);

#ifdef __cplusplus
}
#endif
#endif
