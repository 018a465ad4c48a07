/* Raw UCX beside kvtransfer: the same pieces by active message and by put, nothing around them.
 *
 * One thread, busy polling: the best that UCX gives on this machine. A server owns the memory that
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
} raw_options;

SL_MUST_USE sl_status raw_server_create(const raw_options *options, const char *listen,
                                        raw_ucx **out_raw, char out_address[SL_ADDRESS_TEXT_MAX],
                                        sl_err *err);
/* Serves until a client said that a round is over. */
void raw_serve(raw_ucx *server);
SL_MUST_USE sl_status raw_client_create(const raw_options *options, const char *address,
                                        raw_ucx **out_raw, sl_err *err);
/* Moves every piece once; the server has confirmed all when it returns. */
SL_MUST_USE sl_status raw_round(raw_ucx *client, bool put, double *out_seconds, sl_err *err);
void raw_destroy(raw_ucx *one);

#endif
