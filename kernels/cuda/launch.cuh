/* Launches that overlap: every kernel is launched while the one before it on the stream ends, and
 * waits for that end before it reads or writes what others do: in_turn(), or before it only what no
 * kernel writes (weights). One that returned without having waited would let the next overtake the
 * one before. Private to kernels/cuda. */
#ifndef KERNELS_CUDA_LAUNCH_CUH
#define KERNELS_CUDA_LAUNCH_CUH

#include "kernels/cuda/device.cuh"

/* The next kernel may start, as soon as all CTAs have come here. */
static __device__ __forceinline__ void let_next_start(void)
{
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}
/* What the kernels before wrote is there. */
static __device__ __forceinline__ void wait_for_previous(void)
{
    asm volatile("griddepcontrol.wait;" ::: "memory");
}
static __device__ __forceinline__ void in_turn(void)
{
    let_next_start();
    wait_for_previous();
}

struct launch_shape {
    dim3 grid;
    uint32_t threads, cluster; /* CTAs of a cluster along x */
    int smem_bytes;
    cudaStream_t stream;
};

/* Launches the kernel; its arguments are of the parameters' types. */
template <typename... P>
static inline int launch_in_turn(const char *what, const launch_shape &shape, void (*kernel)(P...),
                                 P... arguments)
{
    cudaLaunchAttribute attributes[2] = {};
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim = {shape.cluster, 1, 1};
    cudaLaunchConfig_t config = {};
    config.gridDim = shape.grid;
    config.blockDim = dim3(shape.threads);
    config.dynamicSmemBytes = (size_t)shape.smem_bytes;
    config.stream = shape.stream;
    config.attrs = attributes;
    config.numAttrs = shape.cluster > 1 ? 2 : 1;
    cudaLaunchKernelEx(&config, kernel, arguments...);
    return krn_cuda_launched(what);
}

#endif
