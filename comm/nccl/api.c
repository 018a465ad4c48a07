/* The table of libsluice_nccl.so: memory, events, non-blocking communicators. Errors are kept as
 * text per thread. Thread: any; a communicator is its rank's. */
#include "comm/nccl/inside.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cuda_runtime.h>
#include <nccl.h>

_Static_assert(NCCL_UNIQUE_ID_BYTES == COM_DEVICE_ID_BYTES, "an id travels in a greeting");

static _Thread_local char error_text[256];

int com_nccl_fail(int code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(error_text, sizeof(error_text), format, args);
    va_end(args);
    return code;
}

static const char *last_error(void)
{
    return error_text;
}

static int check(cudaError_t error, const char *what)
{
    if (error == cudaSuccess)
        return COM_DEVICE_OK;
    (void)cudaGetLastError();
    return com_nccl_fail(error == cudaErrorMemoryAllocation ? COM_DEVICE_NO_MEMORY
                                                            : COM_DEVICE_FAILED,
                         "%s: %s", what, cudaGetErrorString(error));
}

/* In progress is no error: link_state tells how it goes on. */
static int check_nccl(ncclResult_t result, ncclComm_t comm)
{
    if (result == ncclSuccess || result == ncclInProgress)
        return COM_DEVICE_OK;
    return com_nccl_fail(result == ncclRemoteError       ? COM_DEVICE_LOST
                         : result == ncclInvalidArgument ? COM_DEVICE_INVALID
                                                         : COM_DEVICE_FAILED,
                         "%s (%.180s)", ncclGetErrorString(result), ncclGetLastError(comm));
}

static uint32_t library_version(void)
{
    int version = 0;
    return ncclGetVersion(&version) == ncclSuccess ? (uint32_t)version : 0;
}

static int device_count(uint32_t *out_count)
{
    int count = 0, driver = 0;
    if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0)
        return com_nccl_fail(COM_DEVICE_UNSUPPORTED, "no CUDA driver is installed");
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0)
        return com_nccl_fail(COM_DEVICE_UNSUPPORTED, "no CUDA device");
    *out_count = (uint32_t)count;
    return COM_DEVICE_OK;
}

static int device_open(int32_t device)
{
    uint32_t count;
    int code = device_count(&count);
    if (code != COM_DEVICE_OK)
        return code;
    if (device < 0 || (uint32_t)device >= count)
        return com_nccl_fail(COM_DEVICE_INVALID, "device %d: there are %u", device, count);
    return check(cudaSetDevice(device), "set device");
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
    (void)cudaFreeHost(memory);
}

static int event_create(com_event *out_event)
{
    return check(cudaEventCreateWithFlags((cudaEvent_t *)out_event, cudaEventDisableTiming),
                 "event");
}

static void event_destroy(com_event event)
{
    (void)cudaEventDestroy(event);
}

static int event_record(com_event event, com_stream stream)
{
    return check(cudaEventRecord(event, stream), "event");
}

static int event_done(com_event event, uint32_t *out_done)
{
    cudaError_t error = cudaEventQuery(event);
    *out_done = error == cudaSuccess;
    if (error != cudaErrorNotReady)
        return check(error, "event");
    (void)cudaGetLastError(); /* no error: later launches must not find it */
    return COM_DEVICE_OK;
}

static int copy(void *to, const void *from, uint64_t bytes, com_stream stream)
{
    return check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream), "copy");
}

/* ---- communicators */

static int id_create(uint8_t out_id[COM_DEVICE_ID_BYTES])
{
    ncclUniqueId id;
    int code = check_nccl(ncclGetUniqueId(&id), NULL);
    if (code == COM_DEVICE_OK)
        memcpy(out_id, id.internal, COM_DEVICE_ID_BYTES);
    return code;
}

static int link_create(const uint8_t id[COM_DEVICE_ID_BYTES], uint32_t rank, uint32_t count,
                       com_link *out_link)
{
    ncclUniqueId unique;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    ncclComm_t comm = NULL;
    config.blocking = 0;
    memcpy(unique.internal, id, COM_DEVICE_ID_BYTES);
    int code =
        check_nccl(ncclCommInitRankConfig(&comm, (int)count, unique, (int)rank, &config), NULL);
    if (code == COM_DEVICE_OK)
        *out_link = comm;
    else if (comm)
        (void)ncclCommAbort(comm);
    return code;
}

static int link_state(com_link link, uint32_t *out_done)
{
    ncclResult_t state = ncclSuccess, asked = ncclCommGetAsyncError(link, &state);
    *out_done = asked == ncclSuccess && state == ncclSuccess;
    return asked == ncclSuccess ? check_nccl(state, link) : check_nccl(asked, link);
}

static int link_finish(com_link link)
{
    return check_nccl(ncclCommFinalize(link), link);
}

static void link_destroy(com_link link)
{
    (void)ncclCommDestroy(link);
}

static void link_abort(com_link link)
{
    (void)ncclCommAbort(link);
}

static int exchange(com_link link, const com_device_move *moves, uint32_t count, com_stream stream)
{
    ncclResult_t result = ncclGroupStart();
    for (uint32_t i = 0; i < count && result == ncclSuccess; i++) {
        const com_device_move *m = &moves[i];
        result = m->receive ? ncclRecv(m->memory, m->bytes, ncclInt8, (int)m->peer, link, stream)
                            : ncclSend(m->memory, m->bytes, ncclInt8, (int)m->peer, link, stream);
    }
    ncclResult_t ended = ncclGroupEnd();
    int code = check_nccl(result, link);
    return code == COM_DEVICE_OK ? check_nccl(ended, link) : code;
}

__attribute__((visibility("default"))) const com_device_api *com_device_api_get(uint32_t version);

const com_device_api *com_device_api_get(uint32_t version)
{
    static const com_device_api api = {
        .version = COM_DEVICE_API_VERSION,
        .bytes = sizeof(com_device_api),
        .name = "nccl",
        .last_error = last_error,
        .library_version = library_version,
        .device_count = device_count,
        .device_open = device_open,
        .memory_create = memory_create,
        .memory_destroy = memory_destroy,
        .host_create = host_create,
        .host_destroy = host_destroy,
        .event_create = event_create,
        .event_destroy = event_destroy,
        .event_record = event_record,
        .event_done = event_done,
        .copy = copy,
        .id_create = id_create,
        .link_create = link_create,
        .link_state = link_state,
        .link_finish = link_finish,
        .link_destroy = link_destroy,
        .link_abort = link_abort,
        .exchange = exchange,
        .count = com_nccl_count,
        .pack = com_nccl_pack,
        .gather = com_nccl_gather,
    };
    return version == COM_DEVICE_API_VERSION ? &api : NULL;
}
