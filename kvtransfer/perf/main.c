/* kvt-perf: kvtransfer beside raw UCX in one run: same pieces, same cold buffers, same depth.
 *
 * Two processes. The server owns the pages that are filled, the client measures; a control
 * connection of text lines tells the server what comes next. `local` starts the server itself. */
#include <arpa/inet.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/config.h"
#include "base/rng.h"
#include "base/sum.h"
#include "kvtransfer/kvtransfer.h"
#include "kvtransfer/perf/raw.h"

#define ROUNDS_MAX 101
#define ROUND_NS   (120 * SL_S_NS)
#define SUM_KEY    77u

typedef struct perf_options {
    int transport;
    int64_t pages, rounds;
    uint64_t piece;
    const char *listen, *connect;
    bool json, skip_raw;
} perf_options;

static const char *const transports[] = {"shm", "tcp", NULL};

static const sl_option option_table[] = {
    {"transport", "Measurement", SL_OPTION_CHOICE, offsetof(perf_options, transport), "shm",
     "shared memory or tcp (UCX_TLS in the environment has the last word)", 0, 0, transports,
     false},
    {"pages", "Measurement", SL_OPTION_INT, offsetof(perf_options, pages), "256",
     "pages a round, one piece each; together more than the caches hold", 1, KVT_PIECES_MAX, NULL,
     false},
    {"piece", "Measurement", SL_OPTION_BYTES, offsetof(perf_options, piece), "403456",
     "bytes of a piece", 0, 0, NULL, false},
    {"rounds", "Measurement", SL_OPTION_INT, offsetof(perf_options, rounds), "5",
     "rounds of each kind, by turns; the median counts", 1, ROUNDS_MAX, NULL, false},
    {"listen", "Two hosts", SL_OPTION_STRING, offsetof(perf_options, listen), "127.0.0.1:0",
     "server: control address; port 0: any, printed", 0, 0, NULL, false},
    {"connect", "Two hosts", SL_OPTION_STRING, offsetof(perf_options, connect), NULL,
     "client: the server's control address", 0, 0, NULL, false},
    {"skip-raw", "Measurement", SL_OPTION_BOOL, offsetof(perf_options, skip_raw), "false",
     "kvtransfer alone, for a profile (the figures of raw UCX are then 0)", 0, 0, NULL, false},
    {"json", "Output", SL_OPTION_BOOL, offsetof(perf_options, json), "false", "one JSON object", 0,
     0, NULL, false},
};

static const sl_config_spec spec = {
    .program = "kvt-perf",
    .summary = "moves pages between two processes: kvtransfer beside raw UCX",
    .positional = "local|server|client",
    .options = option_table,
    .option_count = sizeof option_table / sizeof option_table[0],
};

typedef struct bench { /* either process */
    uint32_t pages, groups, blocks;
    uint64_t piece;
    uint8_t *memory;
    uint64_t bytes;
    kvt_context *context;
    raw_ucx *raw;
    FILE *control;
    char raw_address[SL_ADDRESS_TEXT_MAX];
} bench;

/* ---- both sides */

static uint32_t depth_of(uint64_t piece)
{
    uint64_t depth = KVT_WINDOW_BYTES / piece;
    return depth < 1 ? 1 : depth > KVT_WINDOW_PIECES ? KVT_WINDOW_PIECES : (uint32_t)depth;
}

static sl_status bench_init(bench *b, uint32_t pages, uint64_t piece, const char *listen,
                            sl_err *err)
{
    if (pages == 0 || pages > KVT_PIECES_MAX || piece == 0 || piece > KVT_PIECE_BYTES_MAX)
        return sl_fail(err, SL_INVALID, "a piece has 1 byte to 8 MiB");
    b->pages = pages;
    b->piece = piece;
    b->groups = (pages + KVT_BLOCKS_MAX - 1) / KVT_BLOCKS_MAX;
    b->blocks = pages / b->groups;
    b->pages = b->blocks * b->groups; /* whole blocks */
    b->bytes = b->pages * piece;
    void *memory;
    SL_TRY(sl_alloc_pages(b->bytes, &memory, err));
    b->memory = memory;
    memset(b->memory, listen ? 0 : 0x5a, b->bytes); /* every page is there */
    kvt_region region = {b->memory, b->bytes};
    kvt_options options = {.name = listen ? "perf-server" : "perf-client",
                           .listen = listen,
                           .regions = &region,
                           .region_count = 1};
    return kvt_context_create(&options, &b->context, err);
}

static void bench_fini(bench *b)
{
    kvt_context_destroy(b->context);
    raw_destroy(b->raw);
    if (b->memory)
        sl_free_pages(b->memory, b->bytes);
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

/* Until the transfer whose cookie is *outcome has closed. */
static sl_status bench_wait(bench *b, sl_err *outcome, sl_err *err)
{
    while (!outcome->text[0]) {
        struct pollfd fd = {.fd = kvt_fd(b->context), .events = POLLIN};
        poll(&fd, 1, 1000);
        kvt_poll(b->context, on_event, NULL);
    }
    return outcome->code == SL_OK ? sl_ok() : sl_fail(err, outcome->code, "%s", outcome->text);
}

static bool control_read(bench *b, char *out_line, size_t size)
{
    if (!fgets(out_line, (int)size, b->control))
        return false;
    out_line[strcspn(out_line, "\n")] = 0;
    return true;
}

static void control_write(bench *b, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void control_write(bench *b, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fseek(b->control, 0, SEEK_CUR); /* between reading and writing of one stream */
    vfprintf(b->control, format, arguments);
    fputc('\n', b->control);
    fflush(b->control);
    va_end(arguments);
}

/* ---- server */

static sl_status serve_transfer(bench *b, const char *line, sl_err *err)
{
    unsigned long long high, low;
    int checked;
    if (sscanf(line, "kvt %llx %llx %d", &high, &low, &checked) != 3)
        return sl_fail(err, SL_INVALID, "not understood: %s", line);
    void **pages = sl_alloc(b->blocks, sizeof *pages, "perf pages");
    kvt_piece_slice *slices = sl_alloc(b->groups, sizeof *slices, "perf slices");
    for (uint32_t i = 0; i < b->blocks; i++)
        pages[i] = b->memory + (uint64_t)i * b->groups * b->piece;
    for (uint32_t i = 0; i < b->groups; i++)
        slices[i] = (kvt_piece_slice){i * b->piece, b->piece};
    sl_err outcome = {.code = SL_OK};
    kvt_recv_options options = {.nonce = {high, low},
                                .deadline = sl_now_ns() + ROUND_NS,
                                .block_count = b->blocks,
                                .group_count = b->groups,
                                .pages = pages,
                                .slices = slices,
                                .sums = checked ? KVT_SUMS_ALL : KVT_SUMS_OFF,
                                .sum_key = SUM_KEY,
                                .cookie = &outcome};
    kvt_recv *recv = NULL;
    sl_status status = kvt_recv_open(b->context, &options, &recv, err);
    sl_free(pages);
    sl_free(slices);
    if (!sl_is_ok(status))
        return status;
    control_write(b, "ready");
    status = bench_wait(b, &outcome, err);
    kvt_recv_release(recv);
    control_write(b, "closed");
    return status;
}

/* `any`: a free port of the interface that the control connection came to. */
static sl_status serve_lines(bench *b, const char *any, sl_err *err)
{
    char line[400];
    unsigned pages;
    unsigned long long piece;
    if (!control_read(b, line, sizeof line) || sscanf(line, "hello %u %llu", &pages, &piece) != 2)
        return sl_fail(err, SL_INVALID, "no hello on the control connection");
    SL_TRY(bench_init(b, pages, piece, any, err));
    raw_options ends = {b->memory, b->pages, b->piece, 0};
    SL_TRY(raw_server_create(&ends, any, &b->raw, b->raw_address, err));
    control_write(b, "%s %s", kvt_context_address(b->context), b->raw_address);
    while (control_read(b, line, sizeof line) && strcmp(line, "quit") != 0) {
        if (strcmp(line, "raw") == 0) {
            control_write(b, "ready");
            raw_serve(b->raw);
        } else {
            SL_TRY(serve_transfer(b, line, err));
        }
    }
    return sl_ok();
}

static sl_status server(const perf_options *o, sl_err *err)
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
    bench_fini(&b);
    return status;
}

/* ---- client */

static sl_status control_expect(bench *b, const char *text, sl_err *err)
{
    char line[400];
    if (!control_read(b, line, sizeof line) || strcmp(line, text) != 0)
        return sl_fail(err, SL_UNAVAILABLE, "the server did not say \"%s\"", text);
    return sl_ok();
}

static sl_status transfer_round(bench *b, const char *address, const uint64_t *sums,
                                double *out_seconds, sl_err *err)
{
    sl_err outcome = {.code = SL_OK};
    kvt_nonce nonce = {sl_random_u64(), sl_random_u64()};
    control_write(b, "kvt %llx %llx %d", (unsigned long long)nonce.high,
                  (unsigned long long)nonce.low, sums != NULL);
    SL_TRY(control_expect(b, "ready", err));
    kvt_send_options options = {.address = address,
                                .nonce = nonce,
                                .deadline = sl_now_ns() + ROUND_NS,
                                .block_count = b->blocks,
                                .group_count = b->groups,
                                .cookie = &outcome};
    kvt_send *send = NULL;
    sl_time_ns began = sl_now_ns();
    SL_TRY(kvt_send_open(b->context, &options, &send, err));
    for (uint32_t i = 0; i < b->pages; i++)
        SL_TRY(kvt_send_announce(send, i / b->groups, i % b->groups, b->memory + i * b->piece,
                                 b->piece, sums ? sums[i] : 0, err));
    kvt_commit commit = {.tokens = b->pages, .final = true};
    SL_TRY(kvt_send_commit(send, &commit, err));
    SL_TRY(bench_wait(b, &outcome, err));
    *out_seconds = (double)(sl_now_ns() - began) / 1e9;
    kvt_send_release(send);
    return control_expect(b, "closed", err);
}

typedef struct figures { /* seconds of each round */
    double plain[ROUNDS_MAX], checked[ROUNDS_MAX], am[ROUNDS_MAX], put[ROUNDS_MAX];
} figures;

static sl_status raw_one(bench *b, bool put, double *out_seconds, sl_err *err)
{
    control_write(b, "raw");
    SL_TRY(control_expect(b, "ready", err));
    return raw_round(b->raw, put, out_seconds, err);
}

/* Kinds by turns, so that a slow moment of the machine meets them all; the first round warms up. */
static sl_status client_rounds(bench *b, const char *address, const perf_options *o, figures *f,
                               sl_err *err)
{
    int rounds = (int)o->rounds;
    uint64_t *sums = sl_alloc(b->pages, sizeof *sums, "perf sums");
    for (uint32_t i = 0; i < b->pages; i++)
        sums[i] = sl_sum64(SUM_KEY, kvt_sum_tweak(i / b->groups, i % b->groups),
                           b->memory + i * b->piece, b->piece);
    sl_status status = sl_ok();
    for (int i = -1; i < rounds && sl_is_ok(status); i++) {
        int at = i < 0 ? 0 : i;
        status = transfer_round(b, address, NULL, &f->plain[at], err);
        if (sl_is_ok(status) && !o->skip_raw)
            status = raw_one(b, false, &f->am[at], err);
        if (sl_is_ok(status))
            status = transfer_round(b, address, sums, &f->checked[at], err);
        if (sl_is_ok(status) && !o->skip_raw)
            status = raw_one(b, true, &f->put[at], err);
    }
    sl_free(sums);
    return status;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

typedef struct rate { /* gigabits a second */
    double median, best;
} rate;

static rate rate_of(const bench *b, double *seconds, int rounds)
{
    double bits = (double)b->bytes * 8 / 1e9;
    qsort(seconds, (size_t)rounds, sizeof *seconds, by_value);
    rate r = {bits / seconds[rounds / 2], bits / seconds[0]};
    return r;
}

static double larger(double a, double b)
{
    return a > b ? a : b;
}

static double ratio_of(double ours, double theirs)
{
    return theirs > 0 ? ours / theirs : 0;
}

/* The median counts; the best round is what remains when other programs disturb. */
static void client_print(const perf_options *o, const bench *b, figures *f)
{
    int rounds = (int)o->rounds;
    rate plain = rate_of(b, f->plain, rounds), checked = rate_of(b, f->checked, rounds);
    rate am = {0, 0}, put = {0, 0};
    if (!o->skip_raw) {
        am = rate_of(b, f->am, rounds);
        put = rate_of(b, f->put, rounds);
    }
    double ucx = larger(am.median, put.median), ucx_best = larger(am.best, put.best);
    if (o->json) {
        printf("{\"transport\":\"%s\",\"pages\":%u,\"piece\":%llu,\"depth\":%u,\"rounds\":%d,"
               "\"gbps\":%.2f,\"gbps_checked\":%.2f,\"ucx_gbps\":%.2f,\"ucx_am_gbps\":%.2f,"
               "\"ucx_put_gbps\":%.2f,\"ratio\":%.3f,\"best_gbps\":%.2f,\"best_gbps_checked\":%.2f,"
               "\"best_ucx_gbps\":%.2f,\"best_ratio\":%.3f}\n",
               transports[o->transport], b->pages, (unsigned long long)b->piece, depth_of(b->piece),
               rounds, plain.median, checked.median, ucx, am.median, put.median,
               ratio_of(plain.median, ucx), plain.best, checked.best, ucx_best,
               ratio_of(plain.best, ucx_best));
        return;
    }
    printf("%u pages of %llu bytes by %s, %u in flight, %d rounds; Gbit/s, median (best)\n",
           b->pages, (unsigned long long)b->piece, transports[o->transport], depth_of(b->piece),
           rounds);
    printf("  kvtransfer        %8.2f (%.2f)\n", plain.median, plain.best);
    printf("  with sums         %8.2f (%.2f)\n", checked.median, checked.best);
    printf("  raw UCX message   %8.2f (%.2f)\n", am.median, am.best);
    printf("  raw UCX put       %8.2f (%.2f)\n", put.median, put.best);
    printf("  ratio to the better %6.3f (%.3f)\n", ratio_of(plain.median, ucx),
           ratio_of(plain.best, ucx_best));
}

static sl_status client_run(const perf_options *o, bench *b, sl_err *err)
{
    char line[2 * SL_ADDRESS_TEXT_MAX + 2], address[SL_ADDRESS_TEXT_MAX];
    static figures f;
    control_write(b, "hello %u %llu", (unsigned)o->pages, (unsigned long long)o->piece);
    SL_TRY(bench_init(b, (uint32_t)o->pages, o->piece, NULL, err));
    if (!control_read(b, line, sizeof line) ||
        sscanf(line, "%279s %279s", address, b->raw_address) != 2)
        return sl_fail(err, SL_UNAVAILABLE, "the server did not start");
    raw_options ends = {b->memory, b->pages, b->piece, depth_of(b->piece)};
    control_write(b, "raw"); /* it asks for the key first */
    SL_TRY(control_expect(b, "ready", err));
    SL_TRY(raw_client_create(&ends, b->raw_address, &b->raw, err));
    SL_TRY(client_rounds(b, address, o, &f, err));
    control_write(b, "quit");
    client_print(o, b, &f);
    return sl_ok();
}

static sl_status client(const perf_options *o, const char *address, sl_err *err)
{
    struct sockaddr_storage to;
    socklen_t size;
    bench b = {.memory = NULL};
    SL_TRY(sl_net_resolve(address, false, &to, &size, err));
    int fd = socket(to.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (const struct sockaddr *)&to, size) != 0)
        return sl_fail_errno(err, SL_UNAVAILABLE, "connect to %s", address);
    b.control = fdopen(fd, "r+");
    sl_status status = client_run(o, &b, err);
    bench_fini(&b);
    return status;
}

/* ---- local: this program again as the server, before UCX starts here */

static sl_status local(const perf_options *o, sl_err *err)
{
    int out[2];
    char address[SL_ADDRESS_TEXT_MAX];
    setenv("UCX_TLS", o->transport == 0 ? "shm,tcp,self" : "tcp,self", 0);
    if (pipe(out) != 0)
        return sl_fail_errno(err, SL_IO, "create a pipe");
    pid_t pid = fork();
    if (pid < 0)
        return sl_fail_errno(err, SL_IO, "start the server");
    if (pid == 0) {
        dup2(out[1], 1);
        close(out[0]);
        close(out[1]);
        execl("/proc/self/exe", "kvt-perf", "server", (char *)NULL);
        _exit(127);
    }
    close(out[1]);
    FILE *from = fdopen(out[0], "r");
    sl_status status = sl_ok();
    if (!fgets(address, sizeof address, from))
        status = sl_fail(err, SL_UNAVAILABLE, "the server process did not start");
    address[strcspn(address, "\n")] = 0;
    fclose(from);
    if (sl_is_ok(status))
        status = client(o, address, err);
    if (!sl_is_ok(status))
        kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    return status;
}

int main(int argc, char **argv)
{
    perf_options o;
    sl_config *config = NULL;
    sl_err err = {.code = SL_OK};
    int exit_code = 0;
    if (sl_config_parse(&spec, argc, argv, &o, &config, &exit_code) == SL_CONFIG_EXIT)
        return exit_code;
    const char *what =
        sl_config_positional_count(config) == 1 ? sl_config_positional(config, 0) : "";
    sl_status status = sl_ok();
    signal(SIGPIPE, SIG_IGN);
    if (strcmp(what, "local") == 0) {
        status = local(&o, &err);
    } else if (strcmp(what, "server") == 0) {
        status = server(&o, &err);
    } else if (strcmp(what, "client") == 0 && o.connect) {
        status = client(&o, o.connect, &err);
    } else {
        fprintf(stderr, "kvt-perf: say local, server, or client --connect HOST:PORT\n");
        exit_code = 2;
    }
    if (!sl_is_ok(status)) {
        fprintf(stderr, "kvt-perf: %s\n", err.text);
        exit_code = 1;
    }
    sl_config_destroy(config);
    return exit_code;
}
