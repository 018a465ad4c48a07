/* Ranks as processes over real UCX, by shared memory and by TCP. Each child is this program again,
 * executed before any UCX starts in it; contacts go through pipes, as they go through etcd in a
 * cluster. */
#include <signal.h>

#include "comm/ucx.h"
#include "tests/unit/child.h"
#include "tests/unit/comm/kit.h"

enum { RANKS = 4, LINE = 1024 };

/* ---- the child: "rank RANK SIZE RUNS WAIT_MS" */

static void child_contacts(uint32_t size, char contacts[][COM_CONTACT_MAX])
{
    for (uint32_t r = 0; r < size; r++) {
        char line[LINE];
        assert_non_null(fgets(line, sizeof(line), stdin));
        line[strcspn(line, "\n")] = '\0';
        snprintf(contacts[r], COM_CONTACT_MAX, "%.300s", line);
    }
}

/* Its message goes while it waits for a word of the parent, which has heard that it is there. */
static void child_carried(kit_rank *r)
{
    sl_err err;
    char line[LINE];
    com_part parts[COM_RANKS_MAX];
    uint32_t count = kit_fill(r, 10), faulty;
    const com_rows rows = {0, count, r->rows, r->scales, r->experts};
    assert_int_equal(count, KIT_ROWS); /* more than is sent at once */
    assert_ok(com_dispatch_post(r->group, &rows, r->places, &err), &err);
    if (com_group_rank(r->group) == 1) {
        com_group_carry(r->group);
        assert_non_null(fgets(line, sizeof(line), stdin));
    }
    assert_ok(com_dispatch_wait(r->group, parts, &err), &err);
    printf("there\n");
    fflush(stdout);
    kit_compute(r, parts);
    assert_ok(com_combine_post(r->group, r->outputs, r->stacked, false, &err), &err);
    com_group_carry(r->group); /* both, and one has nothing to do it with */
    assert_ok(com_combine_wait(r->group, &faulty, &err), &err);
    kit_check(r, 0, count);
}

static int child_rank(char **argv)
{
    static kit_rank r;
    sl_err err;
    char line[LINE];
    char contacts[COM_RANKS_MAX][COM_CONTACT_MAX];
    const char *list[COM_RANKS_MAX];
    uint32_t size = (uint32_t)atoi(argv[3]), runs = (uint32_t)atoi(argv[4]);
    const com_options options = {.instance = "test",
                                 .rank = (uint32_t)atoi(argv[2]),
                                 .rank_count = size,
                                 .listen = "127.0.0.1:0",
                                 .wait_ns = strtoull(argv[5], NULL, 10) * SL_MS_NS,
                                 .carries = atoi(argv[2]) % 2 == 1,
                                 .backend = &com_backend_ucx};
    kit_layout(&r, size);
    assert_ok(com_group_open(&options, &r.group, &err), &err);
    printf("%s\n", com_group_contact(r.group));
    fflush(stdout);
    child_contacts(size, contacts);
    for (uint32_t i = 0; i < size; i++)
        list[i] = contacts[i];
    assert_ok(com_group_connect(r.group, list, &r.layout, sl_now_ns() + KIT_CONNECT_S * SL_S_NS,
                                NULL, &err),
              &err);
    kit_buffers(&r);
    if (runs == 0)
        child_carried(&r);
    sl_status status = sl_ok();
    uint32_t run = 0;
    for (; run < runs && sl_is_ok(status); run++) {
        if (run == 2) {
            printf("running\n");
            fflush(stdout);
        }
        status = kit_run(&r, run, 4, &err);
    }
    com_stats stats;
    com_stats_get(r.group, &stats);
    printf("%d %u %llu %llu %s\n", status.code, run, (unsigned long long)stats.dispatch_bytes,
           (unsigned long long)stats.combine_bytes, sl_is_ok(status) ? "" : err.text);
    fflush(stdout);
    assert_non_null(fgets(line, sizeof(line), stdin)); /* all are done */
    kit_free(&r);
    return sl_alloc_live() == 0 ? 0 : 3;
}

/* ---- the parent */

static child rank_start(uint32_t rank, uint32_t size, uint32_t runs, uint32_t wait_ms,
                        const char *tls)
{
    char numbers[4][16];
    const uint32_t values[4] = {rank, size, runs, wait_ms};
    for (int i = 0; i < 4; i++)
        snprintf(numbers[i], sizeof(numbers[i]), "%u", values[i]);
    char *arguments[] = {"test", "rank", numbers[0], numbers[1], numbers[2], numbers[3], NULL};
    return child_start(arguments, tls);
}

static void child_end(child *c, bool well)
{
    fputs("end\n", c->in);
    fflush(c->in);
    int status = child_wait(c);
    if (well && (!WIFEXITED(status) || WEXITSTATUS(status) != 0))
        fail_msg("a rank ended with status %d", status);
}

static void children_start(child *children, uint32_t size, uint32_t runs, uint32_t wait_ms,
                           const char *tls)
{
    char contacts[RANKS][LINE];
    for (uint32_t r = 0; r < size; r++)
        children[r] = rank_start(r, size, runs, wait_ms, tls);
    for (uint32_t r = 0; r < size; r++)
        child_line(&children[r], contacts[r], LINE);
    for (uint32_t r = 0; r < size; r++) {
        for (uint32_t i = 0; i < size; i++)
            fputs(contacts[i], children[r].in);
        fflush(children[r].in);
    }
}

static void exchange(uint32_t size, const char *tls)
{
    child children[RANKS];
    children_start(children, size, 25, 20000, tls);
    for (uint32_t r = 0; r < size; r++) {
        char line[LINE];
        int code;
        unsigned runs;
        unsigned long long dispatched, combined;
        child_line(&children[r], line, LINE); /* running */
        child_line(&children[r], line, LINE);
        assert_int_equal(sscanf(line, "%d %u %llu %llu", &code, &runs, &dispatched, &combined), 4);
        if (code != 0)
            fail_msg("rank %u: %s", r, line);
        assert_int_equal(runs, 25);
        assert_true(dispatched > 0 && combined > 0);
    }
    for (uint32_t r = 0; r < size; r++)
        child_end(&children[r], true);
}

TEST(processes_exchange_rows_by_shared_memory)
{
    exchange(2, "tcp,shm,self");
    exchange(4, "tcp,shm,self");
}

TEST(processes_exchange_rows_by_tcp)
{
    exchange(3, "tcp,self");
}

/* A message goes while its sender does something else: large ones need it or its carrier. */
static void carried(const char *tls)
{
    child children[2];
    char line[LINE];
    children_start(children, 2, 0, 20000, tls);
    child_line(&children[0], line, LINE);
    assert_string_equal(line, "there\n");
    fputs("go on\n", children[1].in);
    fflush(children[1].in);
    child_line(&children[1], line, LINE);
    assert_string_equal(line, "there\n");
    for (uint32_t r = 0; r < 2; r++) { /* nobody ends before both are done */
        child_line(&children[r], line, LINE);
        if (atoi(line) != 0)
            fail_msg("rank %u: %s", r, line);
    }
    for (uint32_t r = 0; r < 2; r++)
        child_end(&children[r], true);
}

TEST(what_is_carried_goes_while_its_sender_rests)
{
    carried("tcp,shm,self");
    carried("tcp,self");
}

/* A dead one is heard of by its connections; only a stopped one takes the whole wait. */
static void fault(int signal_number)
{
    child children[3];
    char line[LINE];
    uint32_t wait_ms = signal_number == SIGSTOP ? 3000 : 20000;
    children_start(children, 3, 100000000, wait_ms, "tcp,shm,self");
    for (uint32_t r = 0; r < 3; r++)
        child_line(&children[r], line, LINE); /* running */
    kill(children[1].pid, signal_number);
    for (uint32_t r = 0; r < 3; r += 2) {
        child_line(&children[r], line, LINE);
        if (atoi(line) == 0)
            fail_msg("rank %u: %s", r, line);
    }
    if (signal_number == SIGSTOP)
        kill(children[1].pid, SIGKILL);
    for (uint32_t r = 0; r < 3; r++)
        child_end(&children[r], r != 1);
}

TEST(a_killed_rank_fails_the_others)
{
    fault(SIGKILL);
}

TEST(a_stopped_rank_fails_the_others_at_the_deadline)
{
    fault(SIGSTOP);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(processes_exchange_rows_by_shared_memory),
    cmocka_unit_test(processes_exchange_rows_by_tcp),
    cmocka_unit_test(what_is_carried_goes_while_its_sender_rests),
    cmocka_unit_test(a_killed_rank_fails_the_others),
    cmocka_unit_test(a_stopped_rank_fails_the_others_at_the_deadline),
};

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN);
    if (argc > 1 && strcmp(argv[1], "rank") == 0)
        return child_rank(argv);
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    int failed = cmocka_run_group_tests_name(__FILE__, tests, NULL, NULL);
    return failed == 0 && sl_alloc_live() != 0 ? 1 : failed;
}
