/* Roofs of this machine, measured in the same run as the kernels: what arithmetic reaches from
 * registers, the rate of reading memory, and fp8 weights converted and multiplied out of the first
 * cache. One thread. */
#ifndef TESTS_BENCH_KERNELS_ROOF_H
#define TESTS_BENCH_KERNELS_ROOF_H

#include <stddef.h>
#include <stdint.h>

/* Each call does some work and returns how much of it: bench.c times it. */

/* Fused multiply-adds on 12 chains of vectors of `lanes` f32 (8 or 16); FLOP. */
double roof_fma(uint32_t lanes);
/* The same with a rounded product: what P.V and the norms may use. */
double roof_mul_add(uint32_t lanes);
/* Products of pairs of bf16 numbers, 16 lanes (AVX512_BF16); FLOP. */
double roof_pairs(void);
/* bf16 products on tiles, four sums (krn_amx_usable); FLOP. */
double roof_tiles(void);

/* Reads memory by loop `loop`, in whole panels of weights as many streams at once as the loop has;
 * bytes read. Which loop is quickest depends on the machine. */
#define ROOF_READ_LOOPS 12u
double roof_read(uint32_t loop, uint32_t lanes, const void *memory, size_t bytes);
void roof_read_tell(uint32_t loop);
/* Reads memory [bytes], a multiple of 512, straight on: for what lies in a cache. */
double roof_read_cache(uint32_t lanes, const void *memory, size_t bytes);

/* How a variant turns fp8 weights into operands. */
typedef enum roof_path {
    ROOF_PATH_F32_8,  /* 8 lanes, one chain an output */
    ROOF_PATH_ZEN,    /* the same without care for subnormals */
    ROOF_PATH_F32_16, /* 16 lanes */
    ROOF_PATH_ZEN4,   /* 16 lanes, two k at once */
    ROOF_PATH_TILES,  /* bf16 in the first cache, then tiles */
    ROOF_PATH_COUNT,
} roof_path;
/* Converts fp8 weights that lie in the first cache as the kernels do and multiplies them into the
 * sums of 1, 2, 4, 8 or 16 rows; bytes of weights. */
double roof_convert(roof_path path, uint32_t rows);

#endif
