/* What every kernel file shares: number formats, reductions in a fixed order, copy and barrier
 * instructions, launch checks. Device code is compiled for sm_90a only. Private to kernels/cuda. */
#ifndef KERNELS_CUDA_DEVICE_CUH
#define KERNELS_CUDA_DEVICE_CUH

#include "kernels/cuda/sluice_cuda.h"

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#define KRN_CUDA_LOCAL extern "C" __attribute__((visibility("hidden")))

#define PAGE_TOKENS     64u
#define LATENT_ROW      656u
#define LATENT_SCALES   512u
#define LATENT_ROPE     528u
#define INDEX_CODES_AT  41984u
#define INDEX_SCALES_AT 50176u
#define INDEX_ROOT      0.08838834764831845f /* 128^-0.5 */

/* ---- host: errors ---- */

/* Fills last_error and returns the code. */
KRN_CUDA_LOCAL int krn_cuda_fail(int code, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* KRN_CUDA_OK, or the launch's error as text. */
KRN_CUDA_LOCAL int krn_cuda_launched(const char *what);

#define KRN_CUDA_ENSURE(condition)                                                            \
    do {                                                                                      \
        if (!(condition))                                                                     \
            return krn_cuda_fail(KRN_CUDA_INVALID, "%s: not true: %s", __func__, #condition); \
    } while (0)

/* ---- numbers ---- */

static __device__ __forceinline__ float bf16_f32(uint16_t x)
{
    return __uint_as_float((uint32_t)x << 16);
}
/* Nearest even; a NaN stays a NaN. */
static __device__ __forceinline__ uint16_t f32_bf16(float x)
{
    return __bfloat16_as_ushort(__float2bfloat16_rn(x));
}
static __device__ __forceinline__ uint32_t bf16_pair(float low, float high)
{
    return (uint32_t)f32_bf16(low) | (uint32_t)f32_bf16(high) << 16;
}
/* 8 bf16 of one 16-byte word. */
static __device__ __forceinline__ void bf16x8_f32(uint4 word, float *out)
{
    const uint32_t w[4] = {word.x, word.y, word.z, word.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        out[2 * i] = __uint_as_float(w[i] << 16);
        out[2 * i + 1] = __uint_as_float(w[i] & 0xFFFF0000u);
    }
}
static __device__ __forceinline__ uint4 f32_bf16x8(const float *x)
{
    return make_uint4(bf16_pair(x[0], x[1]), bf16_pair(x[2], x[3]), bf16_pair(x[4], x[5]),
                      bf16_pair(x[6], x[7]));
}
/* e4m3, nearest even, saturating: byte 0 = low. */
static __device__ __forceinline__ uint32_t e4m3_pair(float low, float high)
{
    uint16_t codes;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
    return codes;
}
static __device__ __forceinline__ float q128_scale(float largest, uint32_t pow2)
{
    float scale = __fmul_rn(largest > 1e-4f ? largest : 1e-4f, 1.0f / 448.0f);
    if (!pow2)
        return scale;
    uint32_t bits = __float_as_uint(scale);
    return __uint_as_float((bits & 0x7F800000u) + ((bits & 0x7FFFFFu) != 0 ? 0x800000u : 0u));
}
static __device__ __forceinline__ bool is_finite(float x)
{
    return (__float_as_uint(x) & 0x7F800000u) != 0x7F800000u;
}
/* Bits that order like the float; -0.0 counts as +0.0. */
static __device__ __forceinline__ uint32_t ordered(float value)
{
    uint32_t bits = __float_as_uint(__fadd_rn(value, 0.0f));
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
/* exp correctly rounded to f32 (up to the double's own last bit), as on the CPU. */
static __device__ __forceinline__ float exp_rounded(float x)
{
    return (float)exp((double)x);
}
static __device__ __forceinline__ void report(uint32_t *fault, bool bad)
{
    if (bad && fault)
        atomicOr(fault, 1u);
}

/* ---- reductions: the same tree for every row of a kernel ---- */

static __device__ __forceinline__ float warp_sum(float x)
{
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2)
        x = __fadd_rn(x, __shfl_xor_sync(0xFFFFFFFFu, x, lane));
    return x;
}
/* Largest over aligned sets of `lanes` lanes. */
static __device__ __forceinline__ float lanes_max(float x, int lanes)
{
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2)
        if (lane < lanes)
            x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, lane));
    return x;
}

/* ---- rope ---- */

/* (a, b) turned by the angle whose cosine and sine are c and s; products and sums rounded apart. */
static __device__ __forceinline__ void rotate(float &a, float &b, float c, float s)
{
    float x = __fsub_rn(__fmul_rn(a, c), __fmul_rn(b, s));
    float y = __fadd_rn(__fmul_rn(a, s), __fmul_rn(b, c));
    a = x;
    b = y;
}

/* ---- tiled codes ---- */

/* Offset of the 16 bytes that hold columns k .. k + 15 of row r. */
static __device__ __forceinline__ uint64_t tiled_at(uint32_t r, uint32_t k, uint32_t rows_tiled)
{
    uint32_t c = k % 128 / 16, in = r % 8;
    return ((uint64_t)(k / 128) * (rows_tiled / 8) + r / 8) * 1024 + in * 128 + ((c ^ in) * 16);
}

static __device__ __forceinline__ uint8_t *cache_page(const krn_cuda_cache &cache,
                                                      uint32_t sequence, uint32_t slot)
{
    uint32_t page = cache.blocks[(size_t)sequence * cache.block_stride + slot / PAGE_TOKENS];
    return cache.base + (uint64_t)page * cache.page_bytes;
}

/* ---- shared memory, barriers, bulk copies ---- */

static __device__ __forceinline__ uint32_t smem_at(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}
static __device__ __forceinline__ void barrier_init(uint64_t *barrier, uint32_t count)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem_at(barrier)), "r"(count)
                 : "memory");
}
static __device__ __forceinline__ void barrier_expect(uint64_t *barrier, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem_at(barrier)),
                 "r"(bytes)
                 : "memory");
}
static __device__ __forceinline__ void barrier_arrive(uint64_t *barrier)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(smem_at(barrier)) : "memory");
}
static __device__ __forceinline__ void barrier_wait_at(uint32_t barrier, uint32_t parity)
{
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@done bra over;\n"
                 "bra again;\n"
                 "over:\n"
                 "}" ::"r"(barrier),
                 "r"(parity)
                 : "memory");
}
static __device__ __forceinline__ void barrier_wait(uint64_t *barrier, uint32_t parity)
{
    barrier_wait_at(smem_at(barrier), parity);
}
/* 16-byte aligned, a multiple of 16 bytes, global to this CTA's shared memory. */
static __device__ __forceinline__ void bulk_copy(void *to, const void *from, uint32_t bytes,
                                                 uint64_t *barrier)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], "
                 "%2, [%3];" ::"r"(smem_at(to)),
                 "l"(from), "r"(bytes), "r"(smem_at(barrier))
                 : "memory");
}
static __device__ __forceinline__ void copy16(void *to, const void *from)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(smem_at(to)), "l"(from)
                 : "memory");
}
static __device__ __forceinline__ void copy_commit(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int LEFT> static __device__ __forceinline__ void copy_wait(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}
/* Ordinary writes to shared memory, before wgmma or a bulk copy reads them. */
static __device__ __forceinline__ void fence_async(void)
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
/* One lane of a whole warp: the compiler knows that it is one. */
static __device__ __forceinline__ bool elected(void)
{
    uint32_t is;
    asm volatile("{\n"
                 ".reg .pred one;\n"
                 "elect.sync _|one, 0xFFFFFFFF;\n"
                 "selp.u32 %0, 1, 0, one;\n"
                 "}"
                 : "=r"(is)
                 :
                 : "memory");
    return is != 0;
}
static __device__ __forceinline__ void bar_sync(int id, int threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
static __device__ __forceinline__ void cluster_sync(void)
{
    asm volatile("barrier.cluster.arrive.release.aligned;\n"
                 "barrier.cluster.wait.acquire.aligned;" ::
                     : "memory");
}
/* Barriers set up by barrier_init become the cluster's; nothing else is ordered, which a release
 * over the cluster would do by a fence of the whole device. */
static __device__ __forceinline__ void cluster_barriers_ready(void)
{
    asm volatile("fence.mbarrier_init.release.cluster;\n"
                 "barrier.cluster.arrive.relaxed.aligned;\n"
                 "barrier.cluster.wait.acquire.aligned;" ::
                     : "memory");
}
/* All have come here: none goes while another still copies to it or tells it. */
static __device__ __forceinline__ void cluster_end(void)
{
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\n"
                 "barrier.cluster.wait.aligned;" ::
                     : "memory");
}
/* The same place of shared memory of CTA `rank` of the cluster. */
static __device__ __forceinline__ uint32_t peer_at(const void *p, uint32_t rank)
{
    uint32_t at;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(smem_at(p)), "r"(rank));
    return at;
}
static __device__ __forceinline__ float4 peer_load(const float *p, uint32_t rank)
{
    float4 x;
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
                 : "r"(peer_at(p, rank))
                 : "memory");
    return x;
}
/* Tells a peer that what it will overwrite has been read: no release over the cluster, which would
 * cost a fence of the whole device. */
static __device__ __forceinline__ void peer_arrive(uint64_t *barrier, uint32_t rank)
{
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(peer_at(barrier, rank))
                 : "memory");
}
/* This CTA's shared memory to the same place of a peer's, and to its barrier. */
static __device__ __forceinline__ void peer_copy(void *p, uint32_t rank, uint32_t bytes,
                                                 uint64_t *barrier)
{
    asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], "
                 "[%1], %2, [%3];" ::"r"(peer_at(p, rank)),
                 "r"(smem_at(p)), "r"(bytes), "r"(peer_at(barrier, rank))
                 : "memory");
}

#endif
