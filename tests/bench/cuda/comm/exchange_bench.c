/* A layer's exchange over NCCL beside plain sends and receives of the same bytes: V3.2's rows and
 * outputs, 8 of 256 experts spread evenly, one process a GPU. exchange_bench
 *
 * Times are one rank's, from the first call to the end of the stream, medians of 40 after 5; bytes
 * are what it sends to others. post, wait: until those calls have returned. NCCL_COMM_BLOCKING=1
 * shows what it costs that communicators do not block. */
#include "tests/cuda/comm/ranks.h"

enum { ROUNDS = 40, WARM = 5, RANKS_MOST = 8 };

static const uint32_t row_counts[] = {16, 128, 1024, 4096};

typedef struct bench {
    dk_rank k;
    int32_t device;
    com_part parts[COM_RANKS_MAX];
    double times[6][ROUNDS]; /* in us */
} bench;

enum { POST, WAIT, DISPATCH, COMBINE, ROWS_PLAIN, OUTPUTS_PLAIN, TIMES };

static void must(sl_status status, const sl_err *err)
{
    if (sl_is_ok(status))
        return;
    fprintf(stderr, "%s\n", err->text);
    exit(1);
}

static double us_since(sl_time_ns begun)
{
    return (double)(sl_now_ns() - begun) / 1000.0;
}

static void stream_end(bench *b)
{
    sl_err err;
    must(com_device_wait(b->k.device, &err), &err);
}

/* Sends and receives of known sizes, as one: what nothing of ours can be faster than. */
static double plain(bench *b, com_link link, uint8_t *memory, uint64_t bytes, uint32_t rank,
                    uint32_t size)
{
    com_device_move moves[2 * RANKS_MOST];
    uint32_t count = 0, done = 0;
    for (uint32_t r = 0; r < size; r++) {
        if (r == rank)
            continue;
        moves[count++] = (com_device_move){memory + r * bytes, bytes, r, 0};
        moves[count++] = (com_device_move){memory + (size + r) * bytes, bytes, r, 1};
    }
    sl_time_ns begun = sl_now_ns();
    dk_api_ok(&b->k, nccl->exchange(link, moves, count, b->k.stream));
    while (!done)
        dk_api_ok(&b->k, nccl->link_state(link, &done));
    stream_end(b);
    return us_since(begun);
}

static void layer(bench *b, uint32_t rows, uint32_t round)
{
    sl_err err;
    dk_rank *k = &b->k;
    const com_rows sent = {0, rows, k->d_rows, k->d_scales, k->d_experts};
    sl_time_ns begun = sl_now_ns();
    must(com_device_dispatch_post(k->device, &sent, k->d_places, &err), &err);
    b->times[POST][round] = us_since(begun);
    must(com_device_dispatch_wait(k->device, b->parts, &err), &err);
    b->times[WAIT][round] = us_since(begun);
    stream_end(b);
    b->times[DISPATCH][round] = us_since(begun);
    begun = sl_now_ns();
    must(com_device_combine(k->device, k->d_outputs, k->d_stacked, k->d_fault, &err), &err);
    stream_end(b);
    b->times[COMBINE][round] = us_since(begun);
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *times)
{
    qsort(times, ROUNDS, sizeof(*times), by_size);
    return times[ROUNDS / 2];
}

/* An own communicator, for the plain moves: rank 0's id goes round as the group's would. */
static com_link plain_link(bench *b, uint32_t rank, uint32_t size)
{
    uint8_t id[COM_DEVICE_ID_BYTES] = {0}, all[RANKS_MOST][COM_DEVICE_ID_BYTES];
    com_link link = NULL;
    sl_err err;
    uint32_t done = 0;
    dk_api_ok(&b->k, nccl->device_open(b->device));
    if (rank == 0)
        dk_api_ok(&b->k, nccl->id_create(id));
    must(com_gather(b->k.group, id, sizeof(id), all, &err), &err);
    dk_api_ok(&b->k, nccl->link_create(all[0], rank, size, &link));
    while (!done)
        dk_api_ok(&b->k, nccl->link_state(link, &done));
    return link;
}

static void buffers(bench *b, const dk_shape *s, uint32_t size)
{
    dk_rank *k = &b->k;
    size_t entries = (size_t)s->rows_max * s->chosen;
    uint32_t *places = sl_alloc(size * entries, sizeof(uint32_t), "places");
    sl_err err;
    for (size_t i = 0; i < size * entries; i++)
        places[i] = (uint32_t)i;
    k->rows = sl_alloc(s->rows_max, s->row, "rows");
    k->scales = sl_alloc(s->rows_max, s->scale, "scales");
    k->experts = sl_alloc(entries, sizeof(uint32_t), "experts");
    (void)dk_fill(k, 10 + 20 * com_group_rank(k->group)); /* all rows */
    dk_api_ok(k, nccl->memory_create((uint64_t)s->rows_max * s->row, &k->d_rows));
    dk_api_ok(k, nccl->memory_create((uint64_t)s->rows_max * s->scale, &k->d_scales));
    dk_api_ok(k, nccl->memory_create(entries * 4, &k->d_experts));
    dk_api_ok(k, nccl->memory_create(entries * 4, &k->d_places));
    dk_api_ok(k, nccl->memory_create(size * entries * s->output, &k->d_outputs));
    dk_api_ok(k, nccl->memory_create(size * entries * 4, &k->d_stacked));
    dk_api_ok(k, nccl->memory_create(4, &k->d_fault));
    must(dk_put(k, k->d_rows, k->rows, (size_t)s->rows_max * s->row, &err), &err);
    must(dk_put(k, k->d_scales, k->scales, (size_t)s->rows_max * s->scale, &err), &err);
    must(dk_put(k, k->d_experts, k->experts, entries * 4, &err), &err);
    must(dk_put(k, k->d_stacked, places, size * entries * 4, &err), &err);
    sl_free(places);
}

/* What goes to one other rank, on all ranks the same for the plain moves: rank 0's. */
static void even_bytes(bench *b, uint32_t rows, uint32_t size, uint64_t out_bytes[2])
{
    com_stats before, after;
    uint64_t all[RANKS_MOST][2];
    sl_err err;
    com_device_stats_get(b->k.device, &before);
    layer(b, rows, 0);
    com_device_stats_get(b->k.device, &after);
    uint32_t others = size > 1 ? size - 1 : 1;
    out_bytes[0] = (after.dispatch_bytes - before.dispatch_bytes) / others;
    out_bytes[1] = (after.combine_bytes - before.combine_bytes) / others;
    must(com_gather(b->k.group, out_bytes, 2 * sizeof(uint64_t), all, &err), &err);
    memcpy(out_bytes, all[0], sizeof(all[0]));
}

static void measure(bench *b, com_link link, uint32_t rows, uint32_t rank, uint32_t size)
{
    uint64_t bytes[2];
    double us[TIMES];
    void *memory;
    even_bytes(b, rows, size, bytes);
    dk_api_ok(&b->k, nccl->memory_create(2 * size * bytes[1] + 16, &memory));
    for (uint32_t i = 0; i < WARM + ROUNDS; i++)
        layer(b, rows, i % ROUNDS);
    for (uint32_t i = 0; i < WARM + ROUNDS && size > 1; i++) {
        b->times[ROWS_PLAIN][i % ROUNDS] = plain(b, link, memory, bytes[0], rank, size);
        b->times[OUTPUTS_PLAIN][i % ROUNDS] = plain(b, link, memory, bytes[1], rank, size);
    }
    for (int i = 0; i < TIMES; i++)
        us[i] = median(b->times[i]);
    double sent = (double)bytes[0] * (size - 1), back = (double)bytes[1] * (size - 1);
    tell("%u rows: dispatch %.2f MB %.1f us (post %.1f, wait %.1f; plain %.1f), %.1f GB/s; combine "
         "%.2f MB %.1f us (plain %.1f), %.1f GB/s",
         rows, sent / 1e6, us[DISPATCH], us[POST], us[WAIT], us[ROWS_PLAIN],
         sent / us[DISPATCH] / 1e3, back / 1e6, us[COMBINE], us[OUTPUTS_PLAIN],
         back / us[COMBINE] / 1e3);
    nccl->memory_destroy(memory);
}

static int rank_main(char **argv)
{
    static bench b;
    sl_err err;
    rank_arguments a = rank_arguments_read(argv);
    const size_t counts = sizeof(row_counts) / sizeof(row_counts[0]);
    const dk_shape shape = {.rows_max = row_counts[counts - 1],
                            .chosen = 8,
                            .experts = 256,
                            .row = 7168,
                            .scale = 224,
                            .output = 14336};
    rank_group(&b.k, &a, &shape);
    b.k.api = nccl;
    b.device = (int32_t)a.device;
    com_link link = plain_link(&b, a.rank, a.size);
    must(rank_device(&b.k, &a, DK_CONNECT_S * 1000, &err), &err);
    buffers(&b, &shape, a.size);
    tell("rank %u of %u: windows and tables %.1f MB", a.rank, a.size,
         (double)com_device_memory_bytes(b.k.device) / 1e6);
    for (size_t i = 0; i < counts; i++)
        measure(&b, link, row_counts[i], a.rank, a.size);
    rank_rest();
    com_device_close(b.k.device);
    nccl->link_abort(link);
    com_group_close(b.k.group);
    return 0;
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN);
    if (argc > 1 && strcmp(argv[1], "rank") == 0)
        return rank_main(argv);
    uint32_t devices = devices_find();
    for (uint32_t size = 1; size <= devices && size <= RANKS_MOST; size *= 2) {
        child children[RANKS_MOST];
        ranks_start(children, size, devices, 20000, "bench");
        for (size_t i = 0; i <= sizeof(row_counts) / sizeof(row_counts[0]); i++)
            for (uint32_t r = 0; r < size; r++) {
                char line[LINE];
                child_line(&children[r], line, LINE);
                if (r == 0)
                    printf("%s", line);
            }
        fflush(stdout);
        ranks_end(children, size, size);
    }
    return 0;
}
