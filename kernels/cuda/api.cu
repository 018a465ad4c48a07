/* The table of libsluice_cuda.so: versions, errors, memory and streams for start-up. Errors are
 * kept as text per thread. Any thread; device_open first. */
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/operations.cuh"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static thread_local char error_text[256];

KRN_CUDA_LOCAL int krn_cuda_fail(int code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(error_text, sizeof error_text, format, args);
    va_end(args);
    return code;
}

KRN_CUDA_LOCAL int krn_cuda_launched(const char *what)
{
    cudaError_t error = cudaGetLastError();
    if (error == cudaSuccess)
        return KRN_CUDA_OK;
    return krn_cuda_fail(KRN_CUDA_DEVICE, "%s: %s", what, cudaGetErrorString(error));
}

static const char *last_error(void)
{
    return error_text;
}

static int check(cudaError_t error, const char *what)
{
    if (error == cudaSuccess)
        return KRN_CUDA_OK;
    (void)cudaGetLastError();
    return krn_cuda_fail(error == cudaErrorMemoryAllocation ? KRN_CUDA_NO_MEMORY : KRN_CUDA_DEVICE,
                         "%s: %s", what, cudaGetErrorString(error));
}

static int device_open(int32_t device, krn_cuda_device *out_device)
{
    krn_cuda_device d = {};
    cudaDeviceProp prop;
    int count = 0;
    if (cudaDriverGetVersion(&d.driver_version) != cudaSuccess || d.driver_version == 0)
        return krn_cuda_fail(KRN_CUDA_UNSUPPORTED, "no CUDA driver is installed");
    cudaRuntimeGetVersion(&d.runtime_version);
    if (d.driver_version / 1000 < CUDART_VERSION / 1000)
        return krn_cuda_fail(KRN_CUDA_UNSUPPORTED, "the driver offers CUDA %d.%d, needed is %d.0",
                             d.driver_version / 1000, d.driver_version % 1000 / 10,
                             CUDART_VERSION / 1000);
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess || count == 0)
        return krn_cuda_fail(KRN_CUDA_UNSUPPORTED, "no CUDA device: %s", cudaGetErrorString(error));
    if (device < 0 || device >= count)
        return krn_cuda_fail(KRN_CUDA_INVALID, "device %d: there are %d", device, count);
    error = cudaGetDeviceProperties(&prop, device);
    if (error != cudaSuccess)
        return check(error, "device properties");
    if (prop.major != 9 || prop.minor != 0)
        return krn_cuda_fail(KRN_CUDA_UNSUPPORTED,
                             "%s has compute capability %d.%d; these kernels are for 9.0 (Hopper)",
                             prop.name, prop.major, prop.minor);
    error = cudaSetDevice(device);
    if (error != cudaSuccess)
        return check(error, "set device");
    d.multiprocessors = prop.multiProcessorCount;
    d.memory_bytes = prop.totalGlobalMem;
    d.l2_bytes = (uint64_t)prop.l2CacheSize;
    snprintf(d.name, sizeof d.name, "%.63s", prop.name);
    *out_device = d;
    return KRN_CUDA_OK;
}

static int memory_create(uint64_t bytes, void **out_memory)
{
    return check(cudaMalloc(out_memory, bytes), "device memory");
}
static void memory_destroy(void *memory)
{
    (void)cudaFree(memory);
}
static int host_create(uint64_t bytes, void **out_memory)
{
    return check(cudaMallocHost(out_memory, bytes), "pinned memory");
}
static void host_destroy(void *memory)
{
    if (memory)
        (void)cudaFreeHost(memory);
}
static int stream_create(krn_cuda_stream *out_stream)
{
    return check(cudaStreamCreateWithFlags((cudaStream_t *)out_stream, cudaStreamNonBlocking),
                 "stream");
}
static void stream_destroy(krn_cuda_stream stream)
{
    if (stream)
        (void)cudaStreamDestroy((cudaStream_t)stream);
}
static int stream_wait(krn_cuda_stream stream)
{
    return check(cudaStreamSynchronize((cudaStream_t)stream), "stream");
}
static int event_create(krn_cuda_event *out_event)
{
    return check(cudaEventCreateWithFlags((cudaEvent_t *)out_event, cudaEventDisableTiming),
                 "event");
}
static void event_destroy(krn_cuda_event event)
{
    if (event)
        (void)cudaEventDestroy((cudaEvent_t)event);
}
static int event_record(krn_cuda_event event, krn_cuda_stream stream)
{
    return check(cudaEventRecord((cudaEvent_t)event, (cudaStream_t)stream), "event");
}
static int event_done(krn_cuda_event event, int32_t *out_done)
{
    cudaError_t error = cudaEventQuery((cudaEvent_t)event);
    *out_done = error != cudaErrorNotReady;
    if (error == cudaErrorNotReady)
        (void)cudaGetLastError(); /* no error: later launches must not find it */
    return error == cudaErrorNotReady ? KRN_CUDA_OK : check(error, "event");
}
static int event_wait(krn_cuda_event event)
{
    return check(cudaEventSynchronize((cudaEvent_t)event), "event");
}
static int copy(void *to, const void *from, uint64_t bytes, krn_cuda_stream stream)
{
    return check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, (cudaStream_t)stream), "copy");
}
static int fill(void *to, int value, uint64_t bytes, krn_cuda_stream stream)
{
    return check(cudaMemsetAsync(to, value, bytes, (cudaStream_t)stream), "fill");
}

static int copy_pieces(void *to, uint64_t to_stride, const void *from, uint64_t from_stride,
                       uint64_t bytes, uint64_t count, krn_cuda_stream stream)
{
    return check(cudaMemcpy2DAsync(to, to_stride, from, from_stride, bytes, count,
                                   cudaMemcpyDefault, (cudaStream_t)stream),
                 "copy");
}
static int clear_pieces(void *to, uint64_t stride, uint64_t bytes, uint64_t count,
                        krn_cuda_stream stream)
{
    return check(cudaMemset2DAsync(to, stride, 0, bytes, count, (cudaStream_t)stream), "fill");
}

static int graph_begin(krn_cuda_stream stream)
{
    return check(cudaStreamBeginCapture((cudaStream_t)stream, cudaStreamCaptureModeThreadLocal),
                 "graph");
}
static int graph_end(krn_cuda_stream stream, krn_cuda_graph *out_graph)
{
    cudaGraph_t graph = NULL;
    int code = check(cudaStreamEndCapture((cudaStream_t)stream, &graph), "graph");
    if (code == KRN_CUDA_OK)
        code = check(cudaGraphInstantiate((cudaGraphExec_t *)out_graph, graph, 0), "graph");
    if (graph)
        (void)cudaGraphDestroy(graph);
    return code;
}
static int graph_run(krn_cuda_graph graph, krn_cuda_stream stream)
{
    return check(cudaGraphLaunch((cudaGraphExec_t)graph, (cudaStream_t)stream), "graph");
}
static void graph_destroy(krn_cuda_graph graph)
{
    if (graph)
        (void)cudaGraphExecDestroy((cudaGraphExec_t)graph);
}

extern "C" __attribute__((visibility("default"))) const krn_cuda_api *
krn_cuda_api_get(uint32_t version)
{
    static const krn_cuda_api api = {
        .version = KRN_CUDA_API_VERSION,
        .bytes = sizeof(krn_cuda_api),
        .numerics_id = KRN_CUDA_NUMERICS_ID,
        .last_error = last_error,
        .device_open = device_open,
        .memory_create = memory_create,
        .memory_destroy = memory_destroy,
        .host_create = host_create,
        .host_destroy = host_destroy,
        .stream_create = stream_create,
        .stream_destroy = stream_destroy,
        .stream_wait = stream_wait,
        .event_create = event_create,
        .event_destroy = event_destroy,
        .event_record = event_record,
        .event_done = event_done,
        .event_wait = event_wait,
        .copy = copy,
        .fill = fill,
        .copy_pieces = copy_pieces,
        .clear_pieces = clear_pieces,
        .weights_bytes = krn_cuda_weights_bytes,
        .weights_pack = krn_cuda_weights_pack,
        .segments = krn_cuda_segments,
        .weights_bytes_bf16 = krn_cuda_weights_bytes_bf16,
        .weights_pack_bf16 = krn_cuda_weights_pack_bf16,
        .segments_bf16 = krn_cuda_segments_bf16,
        .graph_begin = graph_begin,
        .graph_end = graph_end,
        .graph_run = graph_run,
        .graph_destroy = graph_destroy,
        .gather = krn_cuda_gather,
        .move = krn_cuda_move,
        .arg_max = krn_cuda_arg_max,
        .draw = krn_cuda_draw,
        .norm = krn_cuda_norm,
        .silu = krn_cuda_silu,
        .quant = krn_cuda_quant,
        .rope_queries = krn_cuda_rope_queries,
        .latent_put = krn_cuda_latent_put,
        .index_put = krn_cuda_index_put,
        .index_query = krn_cuda_index_query,
        .sums = krn_cuda_sums,
        .route = krn_cuda_route,
        .route_group = krn_cuda_route_group,
        .combine = krn_cuda_combine,
        .topk = krn_cuda_topk,
        .linear_fp8 = krn_cuda_linear_fp8,
        .linear_bf16 = krn_cuda_linear_bf16,
        .scores = krn_cuda_scores,
        .attend_workspace_bytes = krn_cuda_attend_workspace_bytes,
        .attend = krn_cuda_attend,
    };
    return version == KRN_CUDA_API_VERSION ? &api : NULL;
}
