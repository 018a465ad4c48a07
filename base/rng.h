/* Random numbers: secrets from the kernel, and the keyed number behind "one answer". */
#ifndef BASE_RNG_H
#define BASE_RNG_H

#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Kernel randomness (nonces, seeds, incarnations). Aborts if the kernel has none. Thread: any. */
void sl_random_bytes(void *out_bytes, size_t size);
uint64_t sl_random_u64(void);

/* SipHash-2-4 of data under a 128-bit key: maps keyed by foreign input, call ids. */
uint64_t sl_siphash(const uint64_t key[2], const void *data, size_t size);

/* One Philox 4x32-10 block (Salmon et al., SC'11): counter and key to four words. */
void sl_philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out_words[4]);

/* The keyed random number: Philox 4x32-10 with key = seed (low word, high word) and counter =
 * (position low, position high, stream, 0); the first two output words make 53 bits: u = ((x0 <<
 * 21) ^ (x1 >> 11)) & (2^53 - 1), times 2^-53, in [0, 1). docs/SAMPLING.md has test vectors. */
double sl_keyed_uniform(uint64_t seed, uint64_t position, uint32_t stream);

#ifdef __cplusplus
}
#endif
#endif
