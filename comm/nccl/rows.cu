/* The kernels of a layer: which rank computes each entry, what goes to each rank, outputs in their
 * order. Their plain form is comm/device_fake.c; all they write is equal to it, byte for byte. */
#include "comm/nccl/inside.h"

#include <cuda_runtime.h>

#define CHOOSE_THREADS 256u
#define LIST_THREADS   1024u
#define COPY_WARPS     8u
#define ALL_LANES      0xFFFFFFFFu

static int launched(const char *what)
{
    cudaError_t error = cudaGetLastError();
    if (error == cudaSuccess)
        return COM_DEVICE_OK;
    return com_nccl_fail(COM_DEVICE_FAILED, "%s: %s", what, cudaGetErrorString(error));
}

/* ---- count */

/* An expert in several slots: its entries take them in turn, in the order of rows. One CTA. */
static __device__ void choose_in_turn(const com_device_rows_params &p, uint32_t expert,
                                      uint32_t first, uint32_t slots)
{
    __shared__ uint32_t found[CHOOSE_THREADS / 32];
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t entries = p.row_count * p.chosen, turn = p.turns[expert];
    for (uint32_t base = 0; base < entries; base += CHOOSE_THREADS) {
        uint32_t i = base + threadIdx.x;
        bool here = i < entries && p.experts[i] == expert;
        uint32_t lanes = __ballot_sync(ALL_LANES, here);
        if (lane == 0)
            found[warp] = __popc(lanes);
        __syncthreads();
        uint32_t before = __popc(lanes & ((1u << lane) - 1)), all = 0;
        for (uint32_t w = 0; w < CHOOSE_THREADS / 32; w++) {
            before += w < warp ? found[w] : 0;
            all += found[w];
        }
        if (here)
            p.choices[i] = p.slot_ranks[first + (turn + before) % slots];
        turn += all;
        __syncthreads();
    }
    if (threadIdx.x == 0)
        p.turns[expert] = turn;
}

/* CTAs 0 .. expert_count - 1: an expert each; those behind: entries whose expert has one slot. */
static __global__ void __launch_bounds__(CHOOSE_THREADS)
    choose_kernel(const com_device_rows_params p)
{
    if (blockIdx.x < p.expert_count) {
        uint32_t first = p.firsts[blockIdx.x], slots = p.firsts[blockIdx.x + 1] - first;
        if (slots > 1)
            choose_in_turn(p, blockIdx.x, first, slots);
        return;
    }
    uint32_t i = (blockIdx.x - p.expert_count) * CHOOSE_THREADS + threadIdx.x;
    if (i >= p.row_count * p.chosen)
        return;
    uint32_t first = p.firsts[p.experts[i]];
    if (p.firsts[p.experts[i] + 1] - first == 1)
        p.choices[i] = p.slot_ranks[first];
}

static __device__ __forceinline__ uint32_t found_in(const com_device_rows_params &p, uint32_t row,
                                                    uint32_t rank)
{
    uint32_t found = 0;
    for (uint32_t i = 0; i < p.chosen && row < p.row_count; i++)
        found += p.choices[row * p.chosen + i] == rank;
    return found;
}

/* One CTA a rank. */
static __global__ void __launch_bounds__(LIST_THREADS) count_kernel(const com_device_rows_params p)
{
    __shared__ uint32_t rows, entries;
    uint32_t some = 0, all = 0;
    if (threadIdx.x == 0)
        rows = entries = 0;
    __syncthreads();
    for (uint32_t row = threadIdx.x; row < p.row_count; row += LIST_THREADS) {
        uint32_t found = found_in(p, row, blockIdx.x);
        some += found > 0;
        all += found;
    }
    some = __reduce_add_sync(ALL_LANES, some);
    all = __reduce_add_sync(ALL_LANES, all);
    if (threadIdx.x % 32 == 0) {
        atomicAdd(&rows, some);
        atomicAdd(&entries, all);
    }
    __syncthreads();
    if (threadIdx.x == 0)
        p.counts[blockIdx.x] = {p.epoch, p.sequence, p.layer, rows, entries, {0, 0}};
}

int com_nccl_count(const com_device_rows_params *p, com_stream on)
{
    cudaStream_t stream = (cudaStream_t)on;
    uint32_t entries = p->row_count * p->chosen;
    uint32_t blocks = p->expert_count + (entries + CHOOSE_THREADS - 1) / CHOOSE_THREADS;
    if (p->row_count > 0)
        choose_kernel<<<blocks, CHOOSE_THREADS, 0, stream>>>(*p);
    count_kernel<<<p->rank_count, LIST_THREADS, 0, stream>>>(*p);
    return launched("count");
}

/* ---- pack */

struct place { /* where something begins, in rows and entries */
    uint32_t rows, entries;
};

static __device__ __forceinline__ place add(place a, place b)
{
    return {a.rows + b.rows, a.entries + b.entries};
}

/* The sum of `own` over all threads before this one; *total: over all. */
static __device__ __forceinline__ place sum_before(place own, place *total)
{
    __shared__ place warps[LIST_THREADS / 32];
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    place sum = own, before = {0, 0}, all = {0, 0};
    for (uint32_t far = 1; far < 32; far *= 2) {
        place other = {__shfl_up_sync(ALL_LANES, sum.rows, far),
                       __shfl_up_sync(ALL_LANES, sum.entries, far)};
        if (lane >= far)
            sum = add(sum, other);
    }
    __syncthreads();
    if (lane == 31)
        warps[warp] = sum;
    __syncthreads();
    for (uint32_t w = 0; w < LIST_THREADS / 32; w++) {
        if (w < warp)
            before = add(before, warps[w]);
        all = add(all, warps[w]);
    }
    *total = all;
    return {before.rows + sum.rows - own.rows, before.entries + sum.entries - own.entries};
}

/* A row's experts on this rank, to `experts`; where their outputs will be. */
static __device__ __forceinline__ void write_entries(const com_device_rows_params &p, uint32_t row,
                                                     uint32_t at, uint32_t base, uint16_t *experts)
{
    for (uint32_t i = 0; i < p.chosen; i++) {
        uint32_t entry = row * p.chosen + i;
        if (p.choices[entry] != blockIdx.x)
            continue;
        experts[at] = (uint16_t)p.experts[entry];
        p.out_places[entry] = base + at++;
    }
}

/* The lists of one rank: one CTA. */
static __global__ void __launch_bounds__(LIST_THREADS) list_kernel(const com_device_rows_params p)
{
    uint64_t region = 0;
    uint32_t base = 0;
    for (uint32_t r = 0; r < blockIdx.x; r++) {
        region +=
            com_device_region(p.counts[r].rows, p.counts[r].entries, p.row_bytes, p.scale_bytes);
        base += p.counts[r].entries;
    }
    uint32_t rows = p.counts[blockIdx.x].rows;
    uint16_t *counts = (uint16_t *)(p.out + region + (uint64_t)rows * p.row_bytes +
                                    (uint64_t)rows * p.scale_bytes);
    uint32_t *sources = p.sources + (size_t)blockIdx.x * p.row_count;
    place at = {0, 0};
    if (threadIdx.x == 0)
        p.regions[blockIdx.x] = region;
    for (uint32_t first = 0; first < p.row_count; first += LIST_THREADS) {
        uint32_t row = first + threadIdx.x, found = found_in(p, row, blockIdx.x);
        place all, own = add(at, sum_before({found > 0, found}, &all));
        if (found > 0) {
            sources[own.rows] = row;
            counts[own.rows] = (uint16_t)found;
            write_entries(p, row, own.entries, base, counts + rows);
        }
        at = add(at, all);
    }
}

/* A warp copies a row and its scales; y: the rank. */
static __global__ void __launch_bounds__(COPY_WARPS * 32)
    copy_kernel(const com_device_rows_params p)
{
    uint32_t at = blockIdx.x * COPY_WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t rows = p.counts[blockIdx.y].rows;
    if (at >= rows)
        return;
    uint32_t row = p.sources[(size_t)blockIdx.y * p.row_count + at];
    uint8_t *out = p.out + p.regions[blockIdx.y];
    const uint4 *from = (const uint4 *)(p.rows + (size_t)row * p.row_bytes);
    uint4 *to = (uint4 *)(out + (size_t)at * p.row_bytes);
#pragma unroll 4
    for (uint32_t i = lane; i < p.row_bytes / 16; i += 32)
        to[i] = from[i];
    const uint32_t *scales = (const uint32_t *)(p.scales + (size_t)row * p.scale_bytes);
    uint32_t *to_scales =
        (uint32_t *)(out + (size_t)rows * p.row_bytes + (size_t)at * p.scale_bytes);
    for (uint32_t i = lane; i < p.scale_bytes / 4; i += 32)
        to_scales[i] = scales[i];
}

int com_nccl_pack(const com_device_rows_params *p, com_stream on)
{
    cudaStream_t stream = (cudaStream_t)on;
    dim3 copies((p->row_count + COPY_WARPS - 1) / COPY_WARPS, p->rank_count);
    if (p->row_bytes % 16 != 0 || p->scale_bytes % 4 != 0)
        return com_nccl_fail(COM_DEVICE_INVALID, "rows of %u bytes", p->row_bytes);
    list_kernel<<<p->rank_count, LIST_THREADS, 0, stream>>>(*p);
    if (p->row_count > 0)
        copy_kernel<<<copies, COPY_WARPS * 32, 0, stream>>>(*p);
    return launched("pack");
}

/* ---- gather */

/* A warp copies an output. */
static __global__ void __launch_bounds__(COPY_WARPS * 32)
    gather_kernel(const com_device_outputs_params p)
{
    uint32_t at = blockIdx.x * COPY_WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (at >= p.entry_count)
        return;
    bool own = at >= p.own_first && at - p.own_first < p.own_count;
    uint8_t *out =
        own ? p.own + (size_t)(at - p.own_first) * p.output_bytes
            : p.out + (size_t)(at < p.own_first ? at : at - p.own_count) * p.output_bytes;
    const uint4 *from = (const uint4 *)(p.outputs + (size_t)p.places[at] * p.output_bytes);
    uint4 *to = (uint4 *)out;
#pragma unroll 4
    for (uint32_t i = lane; i < p.output_bytes / 16; i += 32)
        to[i] = from[i];
}

int com_nccl_gather(const com_device_outputs_params *p, com_stream on)
{
    uint32_t blocks = (p->entry_count + COPY_WARPS - 1) / COPY_WARPS;
    if (p->output_bytes % 16 != 0)
        return com_nccl_fail(COM_DEVICE_INVALID, "outputs of %u bytes", p->output_bytes);
    if (blocks > 0)
        gather_kernel<<<blocks, COPY_WARPS * 32, 0, (cudaStream_t)on>>>(*p);
    return launched("gather");
}
