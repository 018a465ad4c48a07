/* Micro-batch bench: a prefill over two ranks, whole and as two overlapped micro-batches.
 * build/bench/micro_batch [MODEL [ROWS [TURNS]]]
 *
 * Each rank is a process with one thread for the model, pinned to a core of its own with the thread
 * that carries its messages; both have a prompt of ROWS tokens, one step. Steps take turns, whole
 * and split, over UCX's shared memory and TCP: first as fast as they go, then as if the wire were
 * so slow that what a step sends takes 1/8, .. of the time that the whole step took. Clock time of
 * the best turn; the two must agree in every bit. That needs a quiet machine: on a busy one others
 * use the time that is waited.
 *
 * What a busy one can tell: CPU times between the messages, each the least of all turns, laid out
 * in time with messages over a wire of that speed whose carrying costs nothing. */
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/sum.h"
#include "engine/parallel.h"
#include "tests/bench/micro_batch/wire.h"

enum { RANKS = 2, KINDS = 2, RECORDED = 2 }; /* whole, split; split, carried by nobody */

static const double SHARES[] = {0, 0.125, 0.25, 0.5, 1};
static const char *const NAMES[KINDS] = {"whole", "split"};

/* A step as a rank computes it. */
typedef struct course {
    uint32_t count;
    double after;
    wire_phase phases[WIRE_PHASES_MAX];
} course;

typedef struct side {
    uint32_t rank;
    int other; /* the other rank's end */
    uint32_t rows, turns;
    eng_model *model;
    com_group *groups[KINDS + 1];
    eng_engine *engines[KINDS + 1];
    course courses[KINDS][RANKS];
} side;

static void must(sl_status status, const sl_err *err)
{
    if (sl_is_ok(status))
        return;
    fprintf(stderr, "micro-batch bench: %s\n", err->text);
    exit(1);
}

static void tell(const side *s, const void *data, size_t size)
{
    if (write(s->other, data, size) != (ssize_t)size)
        exit(1);
}

static void hear(const side *s, void *out, size_t size)
{
    if (recv(s->other, out, size, MSG_WAITALL) != (ssize_t)size)
        exit(1);
}

static void engine_open(side *s, int kind)
{
    char contacts[RANKS][COM_CONTACT_MAX] = {{0}};
    const char *list[RANKS] = {contacts[0], contacts[1]};
    sl_err err;
    com_layout layout;
    const com_options options = {.instance = "bench",
                                 .rank = s->rank,
                                 .rank_count = RANKS,
                                 .listen = "127.0.0.1:0",
                                 .carries = kind == 1,
                                 .backend = &wire_backend};
    must(com_group_open(&options, &s->groups[kind], &err), &err);
    snprintf(contacts[s->rank], COM_CONTACT_MAX, "%s", com_group_contact(s->groups[kind]));
    tell(s, contacts[s->rank], COM_CONTACT_MAX);
    hear(s, contacts[!s->rank], COM_CONTACT_MAX);
    eng_model_ranks_layout(s->model, s->rows, &layout);
    must(com_group_connect(s->groups[kind], list, &layout, sl_now_ns() + 60 * SL_S_NS, NULL, &err),
         &err);
    must(eng_model_join(s->model, s->groups[kind], &err), &err);
    const eng_options engine = {.kv_bytes = 64 << 20,
                                .rows_max = (int)s->rows,
                                .threads = 1,
                                .sequences_max = 1,
                                .micro_batch_rows = kind > 0 ? 1 : UINT32_MAX,
                                .group = s->groups[kind]};
    must(eng_engine_create(s->model, &engine, &s->engines[kind], &err), &err);
}

/* One prompt, one step; the bits of its logits. */
static uint64_t step(const side *s, int kind, double *out_seconds)
{
    static uint32_t tokens[ENG_BATCH_ROWS_MAX];
    eng_engine *engine = s->engines[kind];
    eng_sequence *sequence;
    uint32_t vocabulary = (uint32_t)eng_model_shape(s->model)->vocab_size;
    sl_err err;
    char ready = 0;
    for (uint32_t i = 0; i < s->rows; i++)
        tokens[i] = 2 + (i * 2654435761u + s->rank * 977u) % (vocabulary - 2);
    must(eng_sequence_open(engine, s->rows, &sequence, &err), &err);
    const eng_span span = {
        .sequence = sequence, .tokens = tokens, .token_count = s->rows, .logits = ENG_LOGITS_LAST};
    tell(s, &ready, 1);
    hear(s, &ready, 1);
    sl_time_ns begun = sl_now_ns();
    must(eng_step(engine, &span, 1, NULL, NULL, &err), &err);
    *out_seconds = (double)(sl_now_ns() - begun) / 1e9;
    uint64_t sum = sl_sum64(1, 0, eng_step_logits(engine, 0), vocabulary * sizeof(float));
    eng_sequence_close(sequence);
    return sum;
}

static uint64_t bytes_sent(const side *s)
{
    com_stats stats;
    com_stats_get(s->groups[0], &stats);
    return stats.dispatch_bytes + stats.combine_bytes;
}

/* All turns with one wire; rank 0 tells how slow it is. */
static void measure(const side *s, double bytes_per_second, double out_best[KINDS])
{
    uint64_t sums[KINDS] = {0};
    if (s->rank == 0)
        tell(s, &bytes_per_second, sizeof(bytes_per_second));
    else
        hear(s, &bytes_per_second, sizeof(bytes_per_second));
    wire_set_limit(bytes_per_second);
    out_best[0] = out_best[1] = 1e9;
    for (uint32_t turn = 0; turn < s->turns; turn++)
        for (int kind = 0; kind < KINDS; kind++) {
            double seconds;
            sums[kind] = step(s, kind, &seconds);
            out_best[kind] = seconds < out_best[kind] ? seconds : out_best[kind];
        }
    wire_set_limit(0);
    if (sums[0] == sums[1])
        return;
    fprintf(stderr, "micro-batch bench: a split step has other bits than a whole one\n");
    exit(1);
}

/* ---- what is computed, laid out in time */

static double least(double a, double b)
{
    return a < b ? a : b;
}

static void record(side *s, int kind)
{
    static course now, best;
    double seconds;
    for (uint32_t turn = 0; turn < s->turns; turn++) {
        wire_record(now.phases);
        (void)step(s, kind == 0 ? 0 : RECORDED, &seconds);
        now.count = wire_record_end(&now.after);
        if (turn == 0)
            best = now;
        for (uint32_t i = 0; i < now.count; i++) {
            best.phases[i].before = least(best.phases[i].before, now.phases[i].before);
            best.phases[i].between = least(best.phases[i].between, now.phases[i].between);
        }
        best.after = least(best.after, now.after);
    }
    s->courses[kind][s->rank] = best;
    if (s->rank == 0)
        hear(s, &s->courses[kind][1], sizeof(best));
    else
        tell(s, &best, sizeof(best));
}

/* Seconds of a step; both ranks are in the same phase, as comm has it. */
static double lay_out(const course courses[RANKS], double bytes_per_second)
{
    double at[RANKS] = {0}, sent[RANKS] = {0};
    for (uint32_t i = 0; i < courses[0].count; i++) {
        for (uint32_t r = 0; r < RANKS; r++) {
            const wire_phase *phase = &courses[r].phases[i];
            at[r] += phase->before;
            sent[r] = sent[r] > at[r] ? sent[r] : at[r];
            sent[r] += bytes_per_second > 0 ? phase->bytes / bytes_per_second : 0;
            at[r] += phase->between;
        }
        double both = sent[0] > sent[1] ? sent[0] : sent[1];
        for (uint32_t r = 0; r < RANKS; r++)
            at[r] = at[r] > both ? at[r] : both;
    }
    for (uint32_t r = 0; r < RANKS; r++)
        at[r] += courses[r].after;
    return at[0] > at[1] ? at[0] : at[1];
}

static void tell_course(const side *s)
{
    double whole = lay_out(s->courses[0], 0), bytes = 0;
    for (uint32_t i = 0; i < s->courses[0][0].count; i++)
        bytes += s->courses[0][0].phases[i].bytes;
    for (size_t i = 0; i < sizeof(SHARES) / sizeof(SHARES[0]); i++) {
        double speed = SHARES[i] > 0 ? bytes / (SHARES[i] * whole) : 0;
        double times[KINDS] = {lay_out(s->courses[0], speed), lay_out(s->courses[1], speed)};
        printf("laid out, wire %5.3f of a step: %s %8.1f ms, %s %8.1f ms, %.3fx\n", SHARES[i],
               NAMES[0], times[0] * 1e3, NAMES[1], times[1] * 1e3, times[0] / times[1]);
    }
}

/* ---- a rank */

static void pin(uint32_t rank)
{
    cpu_set_t all, one;
    uint32_t seen = 0, wanted = rank;
    if (sched_getaffinity(0, sizeof(all), &all) != 0)
        return;
    if (CPU_COUNT(&all) < RANKS)
        wanted = 0;
    CPU_ZERO(&one);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &all) && seen++ == wanted)
            CPU_SET(cpu, &one);
    (void)sched_setaffinity(0, sizeof(one), &one);
}

static void play(side *s, const char *dir, const char *name)
{
    sl_err err;
    double best[KINDS], whole = 0, wire = 0;
    const eng_model_options options = {
        .dir = dir, .threads = 1, .ep_rank = s->rank, .ep_size = RANKS};
    pin(s->rank);
    must(eng_model_open(&options, &s->model, &err), &err);
    for (int kind = 0; kind <= KINDS; kind++)
        engine_open(s, kind);
    for (int kind = 0; kind <= KINDS; kind++)
        (void)step(s, kind, &whole); /* warm */
    uint64_t before = bytes_sent(s);
    for (size_t i = 0; i < sizeof(SHARES) / sizeof(SHARES[0]); i++) {
        measure(s, SHARES[i] > 0 ? wire / (SHARES[i] * whole) : 0, best);
        if (i == 0) {
            whole = best[0];
            wire = (double)(bytes_sent(s) - before) / s->turns;
        }
        if (s->rank != 0)
            continue;
        printf("%-4s wire %5.3f of a step: %s %8.1f ms, %s %8.1f ms, %.3fx\n", name, SHARES[i],
               NAMES[0], best[0] * 1e3, NAMES[1], best[1] * 1e3, best[0] / best[1]);
        fflush(stdout);
    }
    if (s->rank == 0)
        printf("%-4s %u rows a rank and step, %.2f MB sent in it\n", name, s->rows, wire / 1e6);
    for (int kind = 0; kind < KINDS; kind++)
        record(s, kind);
    if (s->rank == 0)
        tell_course(s);
    for (int kind = 0; kind <= KINDS; kind++)
        eng_engine_destroy(s->engines[kind]);
    char end = 0;
    tell(s, &end, 1); /* neither closes before both are through */
    hear(s, &end, 1);
    for (int kind = 0; kind <= KINDS; kind++)
        com_group_close(s->groups[kind]);
    eng_model_close(s->model);
}

static int run(const char *dir, uint32_t rows, uint32_t turns, const char *name, const char *tls)
{
    int ends[2], failed = 0, status;
    fflush(stdout);
    if (setenv("UCX_TLS", tls, 1) != 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0)
        return 1;
    for (uint32_t rank = 0; rank < RANKS; rank++) {
        if (fork() != 0)
            continue;
        static side s;
        s = (side){.rank = rank, .other = ends[rank], .rows = rows, .turns = turns};
        close(ends[!rank]);
        play(&s, dir, name);
        exit(0);
    }
    close(ends[0]);
    close(ends[1]);
    for (uint32_t rank = 0; rank < RANKS; rank++)
        failed |= wait(&status) < 0 || status != 0;
    return failed;
}

int main(int argc, char **argv)
{
    const char *dir = argc > 1 ? argv[1] : "models/demo";
    int rows = argc > 2 ? atoi(argv[2]) : 512, turns = argc > 3 ? atoi(argv[3]) : 3;
    if (rows < 2 || rows > (int)ENG_BATCH_ROWS_MAX || turns < 1) {
        fprintf(stderr, "micro-batch bench: 2 to %u rows, at least one turn\n", ENG_BATCH_ROWS_MAX);
        return 2;
    }
    return run(dir, (uint32_t)rows, (uint32_t)turns, "shm", "tcp,shm,self") ||
           run(dir, (uint32_t)rows, (uint32_t)turns, "tcp", "tcp,self");
}
