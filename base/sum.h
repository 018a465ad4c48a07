/* Keyed 64-bit sum of cache pieces: integrity against faults (not attackers), same value on every
 * backend.
 *
 * Four 64-bit lanes over 32-byte blocks, folded at the end; parallel over 16-byte units on a GPU.
 * Definition in sum.c's head comment. */
#ifndef BASE_SUM_H
#define BASE_SUM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* key: mixes weights version and numerics id; tweak: position and group. Any size (a short last
 * block is zero-padded, the size is mixed in). Thread: any. */
uint64_t sl_sum64(uint64_t key, uint64_t tweak, const void *data, size_t size);

typedef enum sl_sum_set { SL_SUM_PLAIN, SL_SUM_AVX2, SL_SUM_AVX512 } sl_sum_set;

/* The same by one instruction set: sl_sum64 takes the last that there is. False: this machine does
 * not have it, *out_sum is as it was. */
bool sl_sum64_by(sl_sum_set set, uint64_t key, uint64_t tweak, const void *data, size_t size,
                 uint64_t *out_sum);

#ifdef __cplusplus
}
#endif
#endif
