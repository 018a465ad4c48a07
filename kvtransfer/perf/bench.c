/* Memory, context and control lines of either process of kvt-perf. */
#include "kvtransfer/perf/bench.h"

#include <poll.h>
#include <stdarg.h>
#include <string.h>

#include "base/alloc.h"
#include "base/rng.h"

uint32_t perf_depth(const perf_options *o)
{
    bool shm = strcmp(perf_transports[o->transport], "shm") == 0;
    bool sockets = o->kv_transport == KVT_TRANSPORT_TCP;
    uint64_t depth = (sockets ? KVT_TCP_WINDOW_BYTES : KVT_WINDOW_BYTES) / o->piece;
    uint64_t most = shm || sockets ? KVT_WINDOW_READS : KVT_WINDOW_PIECES;
    return depth < 1 ? 1 : (uint32_t)(depth > most ? most : depth);
}

perf_span perf_span_of(uint32_t first, uint32_t count)
{
    perf_span span = {.first = first, .groups = (count + KVT_BLOCKS_MAX - 1) / KVT_BLOCKS_MAX};
    span.blocks = count / span.groups;
    return span;
}

/* Zeros flatter: every page has bytes of its own. */
static void fill(uint8_t *memory, uint64_t bytes)
{
    uint64_t *words = (uint64_t *)memory, x = 88172645463325252ull;
    for (uint64_t i = 0; i < bytes / sizeof *words; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        words[i] = x;
    }
}

sl_status perf_init(bench *b, uint32_t pieces, uint64_t piece, int kv_transport, const char *listen,
                    sl_err *err)
{
    if (pieces == 0 || pieces > KVT_PIECES_MAX || piece == 0 || piece > KVT_PIECE_BYTES_MAX)
        return sl_fail(err, SL_INVALID, "a piece has 1 byte to 8 MiB");
    b->pieces = pieces;
    b->piece = piece;
    void *memory;
    SL_TRY(sl_alloc_pages(pieces * piece, &memory, err));
    b->memory = memory;
    if (listen)
        memset(b->memory, 0x5a, pieces * piece); /* every page is there */
    else
        fill(b->memory, pieces * piece);
    kvt_region region = {b->memory, pieces * piece};
    kvt_options options = {.name = listen ? "perf-server" : "perf-client",
                           .listen = listen,
                           .transport = (kvt_transport_kind)kv_transport,
                           .regions = &region,
                           .region_count = 1};
    return kvt_context_create(&options, &b->context, err);
}

void perf_fini(bench *b)
{
    kvt_context_destroy(b->context);
    raw_destroy(b->raw);
    if (b->memory)
        sl_free_pages(b->memory, b->pieces * b->piece);
    if (b->control)
        fclose(b->control);
}

static void on_event(void *context, const kvt_event *event)
{
    if (event->type == KVT_EVENT_SEND_CLOSED || event->type == KVT_EVENT_RECV_CLOSED) {
        sl_err *outcome = event->cookie;
        outcome->code = event->code;
        snprintf(outcome->text, sizeof outcome->text, "closed %s", event->text);
    }
}

sl_status perf_wait(bench *b, sl_err *outcome, sl_err *err)
{
    while (!outcome->text[0]) {
        struct pollfd fd = {.fd = kvt_fd(b->context), .events = POLLIN};
        poll(&fd, 1, 1000);
        kvt_poll(b->context, on_event, NULL);
    }
    return outcome->code == SL_OK ? sl_ok() : sl_fail(err, outcome->code, "%s", outcome->text);
}

bool perf_read(bench *b, char *out_line, size_t size)
{
    if (!fgets(out_line, (int)size, b->control))
        return false;
    out_line[strcspn(out_line, "\n")] = 0;
    return true;
}

void perf_write(bench *b, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fseek(b->control, 0, SEEK_CUR); /* between reading and writing of one stream */
    vfprintf(b->control, format, arguments);
    fputc('\n', b->control);
    fflush(b->control);
    va_end(arguments);
}
