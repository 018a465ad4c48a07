/* What the two processes of kvt-perf share: memory full of pieces, a context, the control lines.
 *
 * For kvt-perf only. One thread; the server owns the pages that are filled, the client measures.
 * Lines of the control connection, client -> server: `hello PIECES BYTES SPIN TRANSPORT`, `kvt
 * NONCE NONCE SUMS FIRST BLOCKS GROUPS`, `raw COUNT`, `quit`; the server answers `ready` and, after
 * a transfer, `closed`. */
#ifndef KVTRANSFER_PERF_BENCH_H
#define KVTRANSFER_PERF_BENCH_H

#include <stdio.h>

#include "kvtransfer/kvtransfer.h"
#include "kvtransfer/perf/raw.h"

#define PERF_SUM_KEY    77u
#define PERF_ROUNDS_MAX 1001
#define PERF_ROUND_NS   (120 * SL_S_NS)
#define PERF_LINE_MAX   (2 * SL_ADDRESS_TEXT_MAX + 2)

typedef struct perf_options {
    int transport;    /* perf_transports: UCX's */
    int kv_transport; /* kvt_transport_kind */
    int64_t pages, rounds, groups, group_ms;
    uint64_t piece, turn;
    const char *listen, *connect;
    bool json, skip_raw, raw_spin, steps;
} perf_options;

extern const char *const perf_transports[], *const perf_kv_transports[];

typedef struct bench { /* either process */
    uint32_t pieces;   /* in memory, one behind the other */
    uint64_t piece;
    uint8_t *memory;
    kvt_context *context;
    raw_ucx *raw;
    FILE *control;
    char raw_address[SL_ADDRESS_TEXT_MAX];
} bench;

/* The pieces of one transfer: piece (block, group) is number first + block * groups + group. */
typedef struct perf_span {
    uint32_t first, blocks, groups;
} perf_span;

/* Raw UCX's operations in flight: what kvtransfer's window holds of such pieces. */
uint32_t perf_depth(const perf_options *o);
/* Of `count` pieces in a row; blocks no more than a transfer may have (a few pieces are left out
 * when they do not divide). */
perf_span perf_span_of(uint32_t first, uint32_t count);

/* `listen`: NULL for the client. */
SL_MUST_USE sl_status perf_init(bench *b, uint32_t pieces, uint64_t piece, int kv_transport,
                                const char *listen, sl_err *err);
void perf_fini(bench *b);
/* Until the transfer whose cookie is `outcome` (empty before) has closed. */
SL_MUST_USE sl_status perf_wait(bench *b, sl_err *outcome, sl_err *err);
bool perf_read(bench *b, char *out_line, size_t size);
void perf_write(bench *b, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* server.c, client.c: the whole of either process. */
SL_MUST_USE sl_status perf_server(const perf_options *o, sl_err *err);
SL_MUST_USE sl_status perf_client(const perf_options *o, const char *address, sl_err *err);

#endif
