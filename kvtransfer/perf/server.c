/* The process whose pages are filled: does what the control lines say. */
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/alloc.h"
#include "kvtransfer/perf/bench.h"

static sl_status serve_transfer(bench *b, const char *line, sl_err *err)
{
    unsigned long long high, low;
    int checked;
    perf_span span;
    if (sscanf(line, "kvt %llx %llx %d %u %u %u", &high, &low, &checked, &span.first, &span.blocks,
               &span.groups) != 6)
        return sl_fail(err, SL_INVALID, "not understood: %s", line);
    if (span.groups == 0 || span.groups > KVT_GROUPS_MAX || span.blocks > KVT_BLOCKS_MAX)
        return sl_fail(err, SL_INVALID, "not understood: %s", line);
    void **pages = sl_alloc(span.blocks, sizeof *pages, "perf pages");
    kvt_piece_slice *slices = sl_alloc(span.groups, sizeof *slices, "perf slices");
    for (uint32_t i = 0; i < span.blocks; i++)
        pages[i] = b->memory + (span.first + (uint64_t)i * span.groups) * b->piece;
    for (uint32_t i = 0; i < span.groups; i++)
        slices[i] = (kvt_piece_slice){i * b->piece, b->piece};
    sl_err outcome = {.code = SL_OK};
    kvt_recv_options options = {.nonce = {high, low},
                                .deadline = sl_now_ns() + PERF_ROUND_NS,
                                .block_count = span.blocks,
                                .group_count = span.groups,
                                .pages = pages,
                                .slices = slices,
                                .sums = checked ? KVT_SUMS_ALL : KVT_SUMS_OFF,
                                .sum_key = PERF_SUM_KEY,
                                .cookie = &outcome};
    kvt_recv *recv = NULL;
    sl_status status = kvt_recv_open(b->context, &options, &recv, err);
    sl_free(pages);
    sl_free(slices);
    if (!sl_is_ok(status))
        return status;
    perf_write(b, "ready");
    status = perf_wait(b, &outcome, err);
    kvt_recv_release(recv);
    perf_write(b, "closed");
    return status;
}

/* `any`: a free port of the interface that the control connection came to. */
static sl_status serve_lines(bench *b, const char *any, sl_err *err)
{
    char line[PERF_LINE_MAX];
    unsigned pieces, count;
    unsigned long long piece;
    int spin, kv_transport;
    if (!perf_read(b, line, sizeof line) ||
        sscanf(line, "hello %u %llu %d %d", &pieces, &piece, &spin, &kv_transport) != 4)
        return sl_fail(err, SL_INVALID, "no hello on the control connection");
    SL_TRY(perf_init(b, pieces, piece, kv_transport, any, err));
    raw_options ends = {b->memory, b->pieces, b->piece, 0, spin != 0};
    SL_TRY(raw_server_create(&ends, any, &b->raw, b->raw_address, err));
    perf_write(b, "%s %s", kvt_context_address(b->context), b->raw_address);
    while (perf_read(b, line, sizeof line) && strcmp(line, "quit") != 0) {
        if (sscanf(line, "raw %u", &count) == 1) {
            perf_write(b, "ready");
            raw_serve(b->raw, count);
        } else {
            SL_TRY(serve_transfer(b, line, err));
        }
    }
    return sl_ok();
}

sl_status perf_server(const perf_options *o, sl_err *err)
{
    int listener;
    char bound[SL_ADDRESS_TEXT_MAX], any[SL_ADDRESS_TEXT_MAX + 2];
    bench b = {.memory = NULL};
    SL_TRY(sl_net_listen(o->listen, false, &listener, bound, err));
    printf("%s\n", bound);
    fflush(stdout);
    struct pollfd fd = {.fd = listener, .events = POLLIN};
    int client = poll(&fd, 1, 60000) == 1 ? accept(listener, NULL, NULL) : -1;
    close(listener);
    if (client < 0)
        return sl_fail_errno(err, SL_UNAVAILABLE, "no client came");
    b.control = fdopen(client, "r+");
    *strrchr(bound, ':') = 0;
    snprintf(any, sizeof any, "%s:0", bound);
    sl_status status = serve_lines(&b, any, err);
    perf_fini(&b);
    return status;
}
