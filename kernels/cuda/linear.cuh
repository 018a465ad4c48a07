/* What both schedules of the fp8 products share: arguments, tiles of rows. Private to kernels/cuda.
 */
#ifndef KERNELS_CUDA_LINEAR_CUH
#define KERNELS_CUDA_LINEAR_CUH

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mma.cuh"

#define TILE_N      64 /* columns of y of one tile of weights */
#define WEIGHT_TILE 8192

struct linear_args {
    const uint8_t *codes;
    const float *scales;
    const uint8_t *weights;
    uint16_t *out;
    const uint32_t *offsets, *counts;
    uint64_t weights_bytes;
    uint32_t rows, n, blocks, rows_tiled, out_stride;
};

/* One tile of one group: rows row .. row + rows - 1 of x and y. */
struct row_tile {
    uint32_t row, rows;
};

static __device__ __forceinline__ row_tile tile_of(const linear_args &args, uint32_t group,
                                                   uint32_t at, uint32_t rows_max)
{
    uint32_t first = args.offsets ? args.offsets[group] : 0;
    uint32_t count = args.counts ? args.counts[group] : args.rows;
    row_tile tile = {first + at, at < count ? count - at : 0};
    tile.rows = tile.rows < rows_max ? tile.rows : rows_max;
    return tile;
}

/* Whole atoms that hold `rows` rows. */
static __device__ __forceinline__ uint32_t atoms_of(uint32_t rows)
{
    return (rows + 7) / 8;
}

/* More rows than few_kernel takes in one tile (linear_many.cu). */
KRN_CUDA_LOCAL int krn_cuda_linear_many(const linear_args &args, uint32_t groups, uint32_t segments,
                                        cudaStream_t stream);

#endif
