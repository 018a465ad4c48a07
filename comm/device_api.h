/* What a device backend does for comm/device.c: memory, one communicator, the kernels of a layer.
 * One table of functions: libsluice_nccl.so (comm/nccl/, opened at run time) and, in host memory,
 * comm/device_fake.c, whose kernels are the plain form of those.
 *
 * Return: 0, or a com_device_code with a text in last_error() (per thread). Pointers are device
 * memory unless said otherwise; what is put on a stream returns at once. */
#ifndef COMM_DEVICE_API_H
#define COMM_DEVICE_API_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define COM_DEVICE_API_VERSION 1u
#define COM_DEVICE_SYMBOL      "com_device_api_get"
#define COM_DEVICE_ID_BYTES    128u
#define COM_DEVICE_ALIGN       256u
#define COM_DEVICE_RANKS_MAX   64u

typedef void *com_stream; /* a cudaStream_t */
typedef void *com_event;  /* a cudaEvent_t */
typedef void *com_link;   /* a communicator */

typedef enum com_device_code {
    COM_DEVICE_OK = 0,
    COM_DEVICE_INVALID = 1,     /* the caller's fault */
    COM_DEVICE_UNSUPPORTED = 2, /* no device, no driver */
    COM_DEVICE_FAILED = 3,      /* the runtime or the library reported an error */
    COM_DEVICE_NO_MEMORY = 4,
    COM_DEVICE_LOST = 5, /* another rank is gone, says the library */
} com_device_code;

/* What each rank tells each other one before a layer's rows: 32 bytes, made on the device. */
typedef struct com_device_count {
    uint64_t epoch;
    uint32_t sequence; /* layers since the link was made */
    uint32_t layer;
    uint32_t rows, entries;
    uint32_t reserved[2]; /* 0 */
} com_device_count;

/* Rows of one layer: `count` fills choices and counts, `pack` after it the rest. Regions of `out`
 * lie one after another by rank, each com_device_region long: rows, scales, how many experts each
 * row wants there (u16), those (u16): the bytes of a dispatch between processes. */
typedef struct com_device_rows_params {
    const uint8_t *rows;       /* [row_count][row_bytes] */
    const uint8_t *scales;     /* [row_count][scale_bytes] */
    const uint32_t *experts;   /* [row_count][chosen] ascending */
    const uint32_t *firsts;    /* [expert_count + 1] of this layer, into slot_ranks */
    const uint8_t *slot_ranks; /* the rank of each slot */
    uint32_t *turns;           /* [expert_count] of this layer; goes on */
    uint8_t *choices;          /* [row_count][chosen]: the rank of each entry */
    com_device_count *counts;  /* [rank_count] */
    uint32_t *sources;         /* [rank_count][row_count]: input row of each sent one */
    uint64_t *regions;         /* [rank_count]: where each begins in out */
    uint8_t *out;
    uint32_t *out_places; /* [row_count][chosen]: row of the returns memory */
    uint64_t epoch;
    uint32_t sequence, layer;
    uint32_t row_count, chosen, expert_count, rank_count;
    uint32_t row_bytes, scale_bytes; /* multiples of 16 and of 4 */
} com_device_rows_params;

/* Outputs in the order of the received entries: those of this rank's own entries (own_first ..) to
 * `own`, all others one after another to `out`. */
typedef struct com_device_outputs_params {
    const uint8_t *outputs; /* [..][output_bytes] */
    const uint32_t *places; /* [entry_count]: row of outputs */
    uint8_t *out, *own;
    uint32_t entry_count, own_first, own_count;
    uint32_t output_bytes; /* multiple of 16 */
} com_device_outputs_params;

typedef struct com_device_move {
    void *memory;
    uint64_t bytes;   /* > 0 */
    uint32_t peer;    /* of the communicator */
    uint32_t receive; /* 0: send */
} com_device_move;

typedef struct com_device_api {
    uint32_t version, bytes; /* COM_DEVICE_API_VERSION, sizeof(com_device_api) */
    const char *name;
    const char *(*last_error)(void);
    uint32_t (*library_version)(void); /* of what the ranks talk by; must be equal on all */

    int (*device_count)(uint32_t *out_count);
    int (*device_open)(int32_t device); /* makes it this thread's */
    int (*memory_create)(uint64_t bytes, void **out_memory);
    void (*memory_destroy)(void *memory);
    int (*host_create)(uint64_t bytes, void **out_memory); /* pinned host memory */
    void (*host_destroy)(void *memory);
    int (*event_create)(com_event *out_event);
    void (*event_destroy)(com_event event);
    int (*event_record)(com_event event, com_stream stream);
    int (*event_done)(com_event event, uint32_t *out_done); /* never blocks */
    int (*copy)(void *to, const void *from, uint64_t bytes, com_stream stream);

    int (*id_create)(uint8_t out_id[COM_DEVICE_ID_BYTES]);
    /* Begins; link_state says when it is there. None of these waits for other ranks. */
    int (*link_create)(const uint8_t id[COM_DEVICE_ID_BYTES], uint32_t rank, uint32_t count,
                       com_link *out_link);
    int (*link_state)(com_link link, uint32_t *out_done); /* of what was begun last */
    int (*link_finish)(com_link link); /* begins a proper end: when done, link_destroy */
    void (*link_destroy)(com_link link);
    void (*link_abort)(com_link link); /* ends it at once, kernels that wait too; frees it */
    /* All moves as one, in the stream's order once link_state says done. */
    int (*exchange)(com_link link, const com_device_move *moves, uint32_t count, com_stream stream);

    int (*count)(const com_device_rows_params *params, com_stream stream);
    int (*pack)(const com_device_rows_params *params, com_stream stream);
    int (*gather)(const com_device_outputs_params *params, com_stream stream);
} com_device_api;

typedef const com_device_api *(*com_device_api_get_fn)(uint32_t version);

#ifdef __CUDACC__
#define COM_DEVICE_BOTH __host__ __device__
#else
#define COM_DEVICE_BOTH
#endif

/* Bytes of a region of so many rows and entries. */
static inline COM_DEVICE_BOTH uint64_t com_device_region(uint32_t rows, uint32_t entries,
                                                         uint32_t row_bytes, uint32_t scale_bytes)
{
    uint64_t bytes = (uint64_t)rows * (row_bytes + scale_bytes + 2u) + (uint64_t)entries * 2u;
    return (bytes + COM_DEVICE_ALIGN - 1) / COM_DEVICE_ALIGN * COM_DEVICE_ALIGN;
}

#ifdef __cplusplus
}
#endif
#endif
