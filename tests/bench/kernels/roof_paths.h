/* The loops behind roof_convert (roof.h), each compiled for its vectors; bytes of weights. */
#ifndef TESTS_BENCH_KERNELS_ROOF_PATHS_H
#define TESTS_BENCH_KERNELS_ROOF_PATHS_H

#include <stdint.h>

double roof_convert8(uint32_t rows);
double roof_convert_zen(uint32_t rows);
double roof_convert16(uint32_t rows);
double roof_convert_zen4(uint32_t rows);
double roof_convert_tiles(uint32_t rows);

#endif
