/* Raw UCX beside kvtransfer: the same pieces by active message and by put, nothing around them.
 *
 * One thread. With `spin` it polls without a break: the best that UCX gives where every process has
 * a core of its own. Without, it waits as kvtransfer's thread does: where cores are shared, a
 * process that polls takes the time that its own peer needs. A server owns the memory that
 * pieces go to; a client sends them. For kvt-perf only. */
#ifndef KVTRANSFER_PERF_RAW_H
#define KVTRANSFER_PERF_RAW_H

#include "base/net.h"

typedef struct raw_ucx raw_ucx;

typedef struct raw_options {
    uint8_t *memory;
    uint32_t pieces;
    uint64_t piece_bytes;
    uint32_t depth; /* client: operations in flight */
    bool spin;
} raw_options;

SL_MUST_USE sl_status raw_server_create(const raw_options *options, const char *listen,
                                        raw_ucx **out_raw, char out_address[SL_ADDRESS_TEXT_MAX],
                                        sl_err *err);
/* Serves until the client said that a turn is over and `count` pieces have come by message. */
void raw_serve(raw_ucx *server, uint32_t count);
SL_MUST_USE sl_status raw_client_create(const raw_options *options, const char *address,
                                        raw_ucx **out_raw, sl_err *err);
/* Moves pieces [first, first + count); the server has confirmed all when it returns. */
SL_MUST_USE sl_status raw_round(raw_ucx *client, bool put, uint32_t first, uint32_t count,
                                double *out_seconds, sl_err *err);
void raw_destroy(raw_ucx *one);

#endif
