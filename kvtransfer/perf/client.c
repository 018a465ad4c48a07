/* The process that measures: kinds by turns, ratios of neighbours, the tail behind the last group.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/rng.h"
#include "base/sum.h"
#include "kvtransfer/perf/bench.h"

typedef enum kind { KIND_PLAIN, KIND_AM, KIND_CHECKED, KIND_PUT, KIND_COUNT } kind;

typedef struct client { /* the measuring side */
    bench b;
    const perf_options *o;
    char address[SL_ADDRESS_TEXT_MAX];
    uint64_t *sums; /* of the turn's pieces */
    uint32_t turn;  /* pieces a turn moves */
    uint32_t next;  /* first piece of the next turn */
    double seconds[KIND_COUNT][PERF_ROUNDS_MAX];
} client;

static sl_status control_expect(bench *b, const char *text, sl_err *err)
{
    char line[PERF_LINE_MAX];
    if (!perf_read(b, line, sizeof line) || strcmp(line, text) != 0)
        return sl_fail(err, SL_UNAVAILABLE, "the server did not say \"%s\"", text);
    return sl_ok();
}

/* Each turn takes other memory: no cache holds it. */
static uint32_t turn_take(client *c)
{
    if (c->next + c->turn > c->b.pieces)
        c->next = 0;
    uint32_t first = c->next;
    c->next += c->turn;
    return first;
}

/* ---- kvtransfer */

/* Before the clock: P has the sum of a page since it wrote it. */
static void sums_fill(client *c, perf_span span)
{
    for (uint32_t i = 0; i < span.blocks * span.groups; i++)
        c->sums[i] = sl_sum64(PERF_SUM_KEY, kvt_sum_tweak(i / span.groups, i % span.groups),
                              c->b.memory + (span.first + i) * c->b.piece, c->b.piece);
}

static sl_status send_open(client *c, perf_span span, bool checked, sl_err *outcome,
                           kvt_send **out_send, sl_err *err)
{
    kvt_nonce nonce = {sl_random_u64(), sl_random_u64()};
    perf_write(&c->b, "kvt %llx %llx %d %u %u %u", (unsigned long long)nonce.high,
               (unsigned long long)nonce.low, checked, span.first, span.blocks, span.groups);
    SL_TRY(control_expect(&c->b, "ready", err));
    kvt_send_options options = {.address = c->address,
                                .nonce = nonce,
                                .deadline = sl_now_ns() + PERF_ROUND_NS,
                                .block_count = span.blocks,
                                .group_count = span.groups,
                                .cookie = outcome};
    return kvt_send_open(c->b.context, &options, out_send, err);
}

static sl_status announce(client *c, kvt_send *send, perf_span span, uint32_t block, uint32_t group,
                          bool checked, sl_err *err)
{
    uint32_t i = block * span.groups + group;
    return kvt_send_announce(send, block, group, c->b.memory + (span.first + i) * c->b.piece,
                             c->b.piece, checked ? c->sums[i] : 0, err);
}

static sl_status commit_and_wait(client *c, kvt_send *send, uint64_t tokens, sl_err *outcome,
                                 sl_err *err)
{
    kvt_commit commit = {.tokens = tokens, .final = true};
    SL_TRY(kvt_send_commit(send, &commit, err));
    return perf_wait(&c->b, outcome, err);
}

static sl_status transfer_turn(client *c, bool checked, double *out_seconds, sl_err *err)
{
    sl_err outcome = {.code = SL_OK};
    perf_span span = perf_span_of(turn_take(c), c->turn);
    kvt_send *send = NULL;
    if (checked)
        sums_fill(c, span);
    SL_TRY(send_open(c, span, checked, &outcome, &send, err));
    sl_time_ns began = sl_now_ns();
    for (uint32_t i = 0; i < span.blocks * span.groups; i++)
        SL_TRY(announce(c, send, span, i / span.groups, i % span.groups, checked, err));
    SL_TRY(commit_and_wait(c, send, span.blocks, &outcome, err));
    *out_seconds = (double)(sl_now_ns() - began) / 1e9;
    kvt_send_release(send);
    return control_expect(&c->b, "closed", err);
}

/* ---- raw UCX */

static sl_status raw_turn(client *c, bool put, double *out_seconds, sl_err *err)
{
    perf_span span = perf_span_of(turn_take(c), c->turn);
    uint32_t count = span.blocks * span.groups;
    perf_write(&c->b, "raw %u", put ? 0 : count);
    SL_TRY(control_expect(&c->b, "ready", err));
    return raw_round(c->b.raw, put, span.first, count, out_seconds, err);
}

/* ---- rounds */

static sl_status one_turn(client *c, kind which, double *out_seconds, sl_err *err)
{
    if (which == KIND_PLAIN || which == KIND_CHECKED)
        return transfer_turn(c, which == KIND_CHECKED, out_seconds, err);
    if (c->o->skip_raw)
        return sl_ok();
    return raw_turn(c, which == KIND_PUT, out_seconds, err);
}

/* Kinds by short turns, first another one each round, so that a slow moment of the machine meets
 * them all; the first round warms up. */
static sl_status client_rounds(client *c, sl_err *err)
{
    for (int i = -1; i < (int)c->o->rounds; i++) {
        for (int k = 0; k < KIND_COUNT; k++) {
            kind which = (kind)((k + i + 1) % KIND_COUNT);
            SL_TRY(one_turn(c, which, &c->seconds[which][i < 0 ? 0 : i], err));
        }
    }
    return sl_ok();
}

/* Another program says when: a line with a kind's name, answered by its seconds. */
static sl_status client_steps(client *c, sl_err *err)
{
    static const char *const names[KIND_COUNT] = {"plain\n", "am\n", "checked\n", "put\n"};
    char line[32];
    while (fgets(line, sizeof line, stdin)) {
        double seconds = 0;
        int which = 0;
        while (which < KIND_COUNT && strcmp(line, names[which]) != 0)
            which++;
        if (which == KIND_COUNT)
            return sl_fail(err, SL_INVALID, "a line is plain, checked, am or put");
        SL_TRY(one_turn(c, (kind)which, &seconds, err));
        printf("%.9f\n", seconds);
        fflush(stdout);
    }
    return sl_ok();
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Of `percent` of the values none is larger. Sorts a copy. */
static double quantile(const double *values, int count, int percent)
{
    double sorted[PERF_ROUNDS_MAX];
    memcpy(sorted, values, (size_t)count * sizeof *sorted);
    qsort(sorted, (size_t)count, sizeof *sorted, by_value);
    return sorted[(count - 1) * percent / 100];
}

typedef struct rate { /* gigabits a second */
    double median, best;
} rate;

static rate rate_of(const client *c, kind which)
{
    perf_span span = perf_span_of(0, c->turn);
    double bits = (double)(span.blocks * span.groups * c->b.piece) * 8 / 1e9;
    int rounds = (int)c->o->rounds;
    double median = quantile(c->seconds[which], rounds, 50);
    double best = quantile(c->seconds[which], rounds, 10);
    rate none = {0, 0}, r = {bits / median, bits / best};
    return median > 0 ? r : none;
}

/* Theirs over ours in each round; 25, 50 and 75 of 100. */
typedef struct spread {
    double low, median, high;
} spread;

static spread ratios_of(const client *c, kind ours, kind theirs)
{
    double ratios[PERF_ROUNDS_MAX];
    int rounds = (int)c->o->rounds;
    for (int i = 0; i < rounds; i++)
        ratios[i] = c->seconds[theirs][i] / c->seconds[ours][i];
    spread s = {quantile(ratios, rounds, 25), quantile(ratios, rounds, 50),
                quantile(ratios, rounds, 75)};
    return s;
}

/* Neighbours in time are compared, so that a loaded machine loads both; `best` is the fastest
 * tenth: what remains when nobody disturbs. */
static void client_print(const client *c)
{
    const perf_options *o = c->o;
    rate plain = rate_of(c, KIND_PLAIN), checked = rate_of(c, KIND_CHECKED);
    rate am = rate_of(c, KIND_AM), put = rate_of(c, KIND_PUT);
    kind better = put.median > am.median ? KIND_PUT : KIND_AM;
    rate ucx = better == KIND_PUT ? put : am;
    double ucx_best = put.best > am.best ? put.best : am.best;
    spread ratio = ratios_of(c, KIND_PLAIN, better), with = ratios_of(c, KIND_CHECKED, better);
    double best_ratio = ucx_best > 0 ? plain.best / ucx_best : 0;
    if (o->json) {
        printf("{\"transport\":\"%s\",\"kv_transport\":\"%s\",\"pages\":%u,\"piece\":%llu,"
               "\"depth\":%u,\"turn\":%u,"
               "\"rounds\":%d,\"gbps\":%.2f,\"gbps_checked\":%.2f,\"ucx_gbps\":%.2f,"
               "\"ucx_am_gbps\":%.2f,\"ucx_put_gbps\":%.2f,\"ratio\":%.3f,\"ratio_low\":%.3f,"
               "\"ratio_high\":%.3f,\"ratio_checked\":%.3f,\"best_gbps\":%.2f,"
               "\"best_gbps_checked\":%.2f,\"best_ucx_gbps\":%.2f,\"best_ratio\":%.3f}\n",
               perf_transports[o->transport], perf_kv_transports[o->kv_transport], c->b.pieces,
               (unsigned long long)c->b.piece, perf_depth(o), c->turn, (int)o->rounds, plain.median,
               checked.median, ucx.median, am.median, put.median, ratio.median, ratio.low,
               ratio.high, with.median, plain.best, checked.best, ucx_best, best_ratio);
        return;
    }
    printf("%u pieces of %llu bytes by %s, %u a turn, %u in flight, %d rounds; Gbit/s, median "
           "(fastest tenth)\n",
           c->b.pieces, (unsigned long long)c->b.piece, perf_transports[o->transport], c->turn,
           perf_depth(o), (int)o->rounds);
    printf("  kvtransfer, %s   %8.2f (%.2f)\n", perf_kv_transports[o->kv_transport], plain.median,
           plain.best);
    printf("  with sums         %8.2f (%.2f)\n", checked.median, checked.best);
    printf("  raw UCX message   %8.2f (%.2f)\n", am.median, am.best);
    printf("  raw UCX put       %8.2f (%.2f)\n", put.median, put.best);
    printf("  ratio to the better, round by round %.3f (quartiles %.3f, %.3f); with sums %.3f; "
           "fastest tenths %.3f\n",
           ratio.median, ratio.low, ratio.high, with.median, best_ratio);
}

/* ---- the tail: groups of layers finish one after the other, as a prefill's do */

/* Waits until `at`; a group is computed meanwhile. */
static void compute_until(int timer, sl_time_ns at)
{
    struct itimerspec when = {.it_value = {(time_t)(at / SL_S_NS), (long)(at % SL_S_NS)}};
    uint64_t expired;
    if (timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL) == 0 &&
        read(timer, &expired, sizeof expired) < 0)
        perror("kvt-perf: timer");
}

/* Seconds from the last group's end to the end of the transfer. `apart`: 0, all groups at once. */
static sl_status tail_turn(client *c, int timer, uint64_t apart_ns, double *out_seconds,
                           sl_err *err)
{
    sl_err outcome = {.code = SL_OK};
    uint32_t groups = (uint32_t)c->o->groups;
    perf_span span = {turn_take(c), c->turn / groups, groups};
    kvt_send *send = NULL;
    sums_fill(c, span);
    SL_TRY(send_open(c, span, true, &outcome, &send, err));
    sl_time_ns began = sl_now_ns(), last = began;
    for (uint32_t group = 0; group < groups; group++) {
        if (apart_ns > 0)
            compute_until(timer, began + (group + 1) * apart_ns);
        last = sl_now_ns();
        for (uint32_t block = 0; block < span.blocks; block++)
            SL_TRY(announce(c, send, span, block, group, true, err));
    }
    SL_TRY(commit_and_wait(c, send, span.blocks, &outcome, err));
    *out_seconds = (double)(sl_now_ns() - (apart_ns > 0 ? last : began)) / 1e9;
    kvt_send_release(send);
    return control_expect(&c->b, "closed", err);
}

static sl_status client_tail(client *c, sl_err *err)
{
    const perf_options *o = c->o;
    int rounds = (int)o->rounds, timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    uint64_t apart_ns = (uint64_t)o->group_ms * SL_MS_NS;
    double *tail = c->seconds[KIND_PLAIN], *whole = c->seconds[KIND_CHECKED];
    if (timer < 0)
        return sl_fail_errno(err, SL_IO, "create a timer");
    sl_status status = sl_ok();
    for (int i = -1; i < rounds && sl_is_ok(status); i++) {
        status = tail_turn(c, timer, apart_ns, &tail[i < 0 ? 0 : i], err);
        if (sl_is_ok(status))
            status = tail_turn(c, timer, 0, &whole[i < 0 ? 0 : i], err);
    }
    close(timer);
    SL_TRY(status);
    double tail_ms = quantile(tail, rounds, 50) * 1e3, high_ms = quantile(tail, rounds, 90) * 1e3;
    double whole_ms = quantile(whole, rounds, 50) * 1e3;
    printf(o->json ? "{\"transport\":\"%s\",\"groups\":%d,\"group_ms\":%d,\"blocks\":%u,"
                     "\"piece\":%llu,\"rounds\":%d,\"tail_ms\":%.3f,\"tail_p90_ms\":%.3f,"
                     "\"whole_ms\":%.3f,\"tail_of_whole\":%.3f,\"tail_of_group\":%.3f}\n"
                   : "%s: %d groups, one each %d ms, %u blocks, pieces of %llu bytes, %d rounds, "
                     "sums on\n  behind the last group %.3f ms (p90 %.3f); all at once %.3f ms; "
                     "%.3f of it, %.3f of a group's time\n",
           perf_transports[o->transport], (int)o->groups, (int)o->group_ms,
           c->turn / (uint32_t)o->groups, (unsigned long long)c->b.piece, rounds, tail_ms, high_ms,
           whole_ms, tail_ms / whole_ms, tail_ms / (double)o->group_ms);
    return sl_ok();
}

/* ---- start */

static sl_status client_run(client *c, sl_err *err)
{
    const perf_options *o = c->o;
    bench *b = &c->b;
    char line[PERF_LINE_MAX];
    perf_write(b, "hello %u %llu %d %d", (unsigned)o->pages, (unsigned long long)o->piece,
               o->raw_spin, o->kv_transport);
    SL_TRY(perf_init(b, (uint32_t)o->pages, o->piece, o->kv_transport, NULL, err));
    if (!perf_read(b, line, sizeof line) ||
        sscanf(line, "%279s %279s", c->address, b->raw_address) != 2)
        return sl_fail(err, SL_UNAVAILABLE, "the server did not start");
    uint64_t turn = o->turn > 0 ? o->turn / o->piece : b->pieces;
    c->turn = turn < 1 ? 1 : turn > b->pieces ? b->pieces : (uint32_t)turn;
    c->sums = sl_alloc(c->turn, sizeof *c->sums, "perf sums");
    if (o->groups > 0) {
        if (c->turn / (uint32_t)o->groups == 0 || c->turn / (uint32_t)o->groups > KVT_BLOCKS_MAX)
            return sl_fail(err, SL_INVALID, "a turn holds 1 to %u pieces a group", KVT_BLOCKS_MAX);
        SL_TRY(client_tail(c, err));
        perf_write(b, "quit");
        return sl_ok();
    }
    raw_options ends = {b->memory, b->pieces, b->piece, perf_depth(o), o->raw_spin};
    perf_write(b, "raw 0"); /* it asks for the key first */
    SL_TRY(control_expect(b, "ready", err));
    SL_TRY(raw_client_create(&ends, b->raw_address, &b->raw, err));
    SL_TRY(o->steps ? client_steps(c, err) : client_rounds(c, err));
    perf_write(b, "quit");
    if (!o->steps)
        client_print(c);
    return sl_ok();
}

sl_status perf_client(const perf_options *o, const char *address, sl_err *err)
{
    struct sockaddr_storage to;
    socklen_t size;
    SL_TRY(sl_net_resolve(address, false, &to, &size, err));
    int fd = socket(to.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (const struct sockaddr *)&to, size) != 0) {
        sl_status failed = sl_fail_errno(err, SL_UNAVAILABLE, "connect to %s", address);
        if (fd >= 0)
            close(fd);
        return failed;
    }
    client *c = sl_alloc(1, sizeof *c, "perf client");
    c->o = o;
    c->b.control = fdopen(fd, "r+");
    sl_status status = client_run(c, err);
    perf_fini(&c->b);
    sl_free(c->sums);
    sl_free(c);
    return status;
}
