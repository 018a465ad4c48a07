/* Roofs of this machine, measured in the same run as the kernels: multiply-add rates from registers
 * and the rate of reading memory. One thread. */
#ifndef TESTS_BENCH_KERNELS_ROOF_H
#define TESTS_BENCH_KERNELS_ROOF_H

#include <stddef.h>
#include <stdint.h>

/* Work done by each call: bench.c times it. */
#define ROOF_STEPS 200000u

/* Fused multiply-adds on 16 chains of the widest vectors; returns the lanes of a vector. */
uint32_t roof_fma(void);
/* The same with a rounded product: what P.V and the norms may use. */
uint32_t roof_mul_add(void);
/* Converts fp8 weights that lie in the first cache as the kernels do, and multiplies each into
 * `rows` sums (1, 2 or 4): what a product of few rows can reach where memory does not hold it back.
 * Returns the bytes of weights. */
size_t roof_convert(uint32_t rows);
/* Reads all of memory [bytes], a multiple of 512. */
void roof_read(const void *memory, size_t bytes);

#endif
