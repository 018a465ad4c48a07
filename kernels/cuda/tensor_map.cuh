/* Tensor maps for the bulk copy engine, made on the host. Private to kernels/cuda. */
#ifndef KERNELS_CUDA_TENSOR_MAP_CUH
#define KERNELS_CUDA_TENSOR_MAP_CUH

#include "kernels/cuda/device.cuh"

#include <cuda.h>

typedef CUresult (*tensor_map_encode)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                                      const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                                      const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                                      CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

/* The driver's function: the library is not linked with the driver. */
static inline tensor_map_encode tensor_map_encode_find(void)
{
    void *found = NULL;
    cudaDriverEntryPointQueryResult result;
    cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000,
                                                         cudaEnableDefault, &result);
    return error == cudaSuccess && result == cudaDriverEntryPointSuccess ? (tensor_map_encode)found
                                                                         : NULL;
}

/* dims and box: [rank] in elements of `type`, the innermost first; apart: [rank - 1] in bytes. What
 * lies outside of the dims is read as zero; nothing looks whether all inside exists. */
static inline int tensor_map_init(CUtensorMap *map, const char *what, CUtensorMapDataType type,
                                  const void *base, uint32_t rank, const cuuint64_t *dims,
                                  const cuuint64_t *apart, const cuuint32_t *box,
                                  CUtensorMapSwizzle swizzle)
{
    static const tensor_map_encode encode = tensor_map_encode_find();
    const cuuint32_t steps[] = {1, 1, 1, 1, 1};
    if (!encode)
        return krn_cuda_fail(KRN_CUDA_DEVICE, "%s: the driver has no cuTensorMapEncodeTiled", what);
    CUresult code = encode(map, type, rank, (void *)base, dims, apart, box, steps,
                           CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                           CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return code == CUDA_SUCCESS ? KRN_CUDA_OK
                                : krn_cuda_fail(KRN_CUDA_INVALID, "%s: tensor map: %d", what, code);
}

#endif
