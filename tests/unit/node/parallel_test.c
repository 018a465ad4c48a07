/* One answer with the experts over several processes: ranks are children over UCX (shared memory,
 * TCP), each with streams of its own in mixed batches; every stream's logits, tokens and page bytes
 * equal those of one process. */
#include <signal.h>

#include "comm/ucx.h"
#include "tests/unit/child.h"
#include "tests/unit/engine/parallel_kit.h"

enum { RANKS = 4, LINE = 1024 };

/* ---- the child: "rank DIR RANK SIZE" */

static int child_main(char **argv)
{
    static kit_stream streams[KIT_STREAMS];
    static kit_play play;
    char contacts[RANKS][LINE];
    const char *list[RANKS];
    rig r;
    sl_err err;
    com_group *group;
    uint32_t rank = (uint32_t)atoi(argv[3]), size = (uint32_t)atoi(argv[4]);
    const com_options options = {.instance = "test",
                                 .rank = rank,
                                 .rank_count = size,
                                 .listen = "127.0.0.1:0",
                                 .carries = rank != 2,
                                 .backend = &com_backend_ucx};
    assert_ok(com_group_open(&options, &group, &err), &err);
    printf("%s\n", com_group_contact(group));
    fflush(stdout);
    kit_rank_open(&r, argv[2], group);
    for (uint32_t i = 0; i < size; i++) {
        assert_non_null(fgets(contacts[i], LINE, stdin));
        contacts[i][strcspn(contacts[i], "\n")] = '\0';
        list[i] = contacts[i];
    }
    kit_rank_start(&r, group, list);
    kit_streams(streams);
    kit_play_all(&play, r.engine, streams, rank, size);
    for (uint32_t i = rank; i < KIT_STREAMS; i += size)
        printf("%llx\n", (unsigned long long)streams[i].sum);
    com_stats stats;
    com_stats_get(group, &stats);
    uint64_t runs = eng_engine_runs(r.engine), split = eng_engine_split_runs(r.engine);
    assert_true(split > 0 && split < runs);
    printf("%s %llu %llu %llu %u %u\n", eng_engine_stamp(r.engine)->model_hash,
           (unsigned long long)eng_model_expert_bytes(r.model),
           (unsigned long long)stats.dispatch_bytes, (unsigned long long)stats.combine_bytes,
           play.accepted, play.largest);
    fflush(stdout);
    kit_take_part(r.engine, 0);
    kit_rank_close(&r);
    com_group_close(group);
    return sl_alloc_live() == 0 ? 0 : 3;
}

/* ---- the parent */

static child rank_start(const char *dir, uint32_t rank, uint32_t size, const char *tls)
{
    char numbers[2][16];
    snprintf(numbers[0], sizeof(numbers[0]), "%u", rank);
    snprintf(numbers[1], sizeof(numbers[1]), "%u", size);
    char *arguments[] = {"test", "rank", (char *)(uintptr_t)dir, numbers[0], numbers[1], NULL};
    return child_start(arguments, tls);
}

/* What one process gives. */
typedef struct alone {
    nano files;
    kit_stream streams[KIT_STREAMS];
    char hash[80];
    uint64_t expert_bytes;
} alone;

static void alone_play(alone *a, const nano_options *files)
{
    static kit_play play;
    rig r;
    nano_make(&a->files, files);
    kit_rank_open(&r, a->files.dir, NULL);
    kit_rank_start(&r, NULL, NULL);
    kit_streams(a->streams);
    kit_play_all(&play, r.engine, a->streams, 0, 1);
    snprintf(a->hash, sizeof(a->hash), "%s", eng_engine_stamp(r.engine)->model_hash);
    a->expert_bytes = eng_model_expert_bytes(r.model);
    print_message("one process: %u drafts accepted, at most %u rows\n", play.accepted,
                  play.largest);
    assert_true(play.accepted > 0 && play.largest > KIT_ROWS / 3);
    kit_rank_close(&r);
}

static void children_start(const alone *a, child *children, uint32_t size, const char *tls)
{
    char contacts[RANKS][LINE];
    for (uint32_t r = 0; r < size; r++)
        children[r] = rank_start(a->files.dir, r, size, tls);
    for (uint32_t r = 0; r < size; r++)
        child_line(&children[r], contacts[r], LINE);
    for (uint32_t r = 0; r < size; r++) {
        for (uint32_t i = 0; i < size; i++)
            fputs(contacts[i], children[r].in);
        fflush(children[r].in);
    }
}

static uint64_t check_rank(const alone *a, child *c, uint32_t rank, uint32_t size)
{
    char line[LINE], hash[80];
    unsigned long long expert_bytes, dispatched, combined;
    unsigned accepted, largest;
    for (uint32_t i = rank; i < KIT_STREAMS; i += size) {
        child_line(c, line, LINE);
        if (strtoull(line, NULL, 16) != a->streams[i].sum)
            fail_msg("%u ranks: stream %u differs", size, i);
    }
    child_line(c, line, LINE);
    assert_int_equal(sscanf(line, "%79s %llu %llu %llu %u %u", hash, &expert_bytes, &dispatched,
                            &combined, &accepted, &largest),
                     6);
    assert_string_equal(hash, a->hash);
    assert_true(expert_bytes > 0 && expert_bytes < a->expert_bytes);
    assert_true(dispatched > 0 && combined > 0 && accepted > 0);
    print_message("rank %u of %u: %llu of %llu expert bytes, %llu out, %llu back\n", rank, size,
                  expert_bytes, (unsigned long long)a->expert_bytes, dispatched, combined);
    return expert_bytes;
}

static void ranks_equal_one_process(const alone *a, uint32_t size, const char *tls)
{
    child children[RANKS];
    uint64_t expert_bytes = 0;
    children_start(a, children, size, tls);
    for (uint32_t r = 0; r < size; r++)
        expert_bytes += check_rank(a, &children[r], r, size);
    assert_int_equal(expert_bytes, a->expert_bytes); /* each expert once */
    for (uint32_t r = 0; r < size; r++) {
        fputs("end\n", children[r].in);
        fflush(children[r].in);
    }
    for (uint32_t r = 0; r < size; r++)
        assert_int_equal(child_wait(&children[r]), 0);
}

TEST(two_three_and_four_ranks_equal_one_process)
{
    static alone a;
    alone_play(&a, &(nano_options){.echo = true});
    ranks_equal_one_process(&a, 2, "tcp,shm,self");
    ranks_equal_one_process(&a, 3, "tcp,self");
    ranks_equal_one_process(&a, 4, "tcp,shm,self");
    nano_remove(&a.files);
}

TEST(so_do_ranks_of_a_bf16_model_with_two_shared_experts)
{
    static alone a;
    alone_play(&a, &(nano_options){.bf16 = true, .echo = true, .shared = 2});
    ranks_equal_one_process(&a, 3, "tcp,shm,self");
    nano_remove(&a.files);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(two_three_and_four_ranks_equal_one_process),
    cmocka_unit_test(so_do_ranks_of_a_bf16_model_with_two_shared_experts),
};

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "rank") == 0)
        return child_main(argv);
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    signal(SIGPIPE, SIG_IGN); /* a rank that has lost another may have ended when it is told to */
    int failed = cmocka_run_group_tests_name(__FILE__, tests, NULL, NULL);
    return failed == 0 && sl_alloc_live() != 0 ? 1 : failed;
}
