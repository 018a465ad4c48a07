/* Memory nodes: lists of sysfs, made-up machines, shares of threads. */
#include "base/numa.h"

#include <sys/stat.h>
#include <unistd.h>

#include "tests/unit/test.h"

static char root[64];

static void write_text(const char *name, const char *text)
{
    char path[256];
    snprintf(path, sizeof(path), "%s/%s", root, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    assert_int_equal(fclose(file), 0);
}

static void make_node(uint32_t id, const char *cpus)
{
    char name[128];
    snprintf(name, sizeof(name), "%s/node%u", root, id);
    assert_int_equal(mkdir(name, 0700), 0);
    snprintf(name, sizeof(name), "node%u/cpulist", id);
    write_text(name, cpus);
}

static void remove_nodes(void)
{
    char path[256];
    for (uint32_t id = 0; id < 8; id++) {
        snprintf(path, sizeof(path), "%s/node%u/cpulist", root, id);
        unlink(path);
        snprintf(path, sizeof(path), "%s/node%u", root, id);
        rmdir(path);
    }
    snprintf(path, sizeof(path), "%s/online", root);
    unlink(path);
    assert_int_equal(rmdir(root), 0);
}

TEST(lists)
{
    static const char *const BAD[] = {"x", "1-", "3-1", "-1", "1,,2", "1 2", "99999", "1-99999"};
    cpu_set_t cpus;
    assert_true(sl_numa_parse_list("0-3,8,10-11\n", &cpus));
    assert_int_equal(CPU_COUNT(&cpus), 7);
    assert_true(CPU_ISSET(3, &cpus) && CPU_ISSET(8, &cpus) && CPU_ISSET(11, &cpus));
    assert_false(CPU_ISSET(9, &cpus));
    assert_true(sl_numa_parse_list("\n", &cpus)); /* a node without CPUs */
    assert_int_equal(CPU_COUNT(&cpus), 0);
    for (size_t i = 0; i < sizeof(BAD) / sizeof(BAD[0]); i++)
        assert_false(sl_numa_parse_list(BAD[i], &cpus));
}

TEST(nodes_with_usable_cpus_count)
{
    sl_numa numa;
    cpu_set_t usable;
    snprintf(root, sizeof(root), "/tmp/sluice-numa-XXXXXX");
    assert_non_null(mkdtemp(root));
    write_text("online", "0-3,6\n");
    make_node(0, "0-1\n");
    make_node(1, "\n"); /* memory only */
    make_node(2, "2-3\n");
    make_node(3, "4-5\n");
    make_node(6, "8-9\n");
    make_node(7, "10\n"); /* not online */
    assert_true(sl_numa_parse_list("0-3,9-10", &usable));
    sl_numa_read(root, &usable, &numa);
    assert_int_equal(numa.node_count, 3);
    assert_int_equal(numa.ids[0], 0);
    assert_int_equal(numa.ids[1], 2);
    assert_int_equal(numa.ids[2], 6);
    assert_int_equal(CPU_COUNT(&numa.cpus[1]), 2);
    assert_int_equal(CPU_COUNT(&numa.cpus[2]), 1); /* 8 is not ours */
    assert_true(CPU_ISSET(9, &numa.cpus[2]));
    remove_nodes();
}

TEST(a_kernel_that_does_not_tell_is_one_node)
{
    sl_numa numa;
    cpu_set_t usable;
    CPU_ZERO(&usable);
    sl_numa_read("/no/such/folder", &usable, &numa);
    assert_int_equal(numa.node_count, 1);
    sl_numa_pin(&numa, 0, 1); /* and nothing is pinned */
}

TEST(shares_are_equal)
{
    static const struct {
        uint32_t nodes, threads;
    } CASES[] = {{1, 5}, {2, 8}, {2, 3}, {4, 4}, {3, 64}, {4, 2}};
    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
        sl_numa numa = {.node_count = CASES[i].nodes};
        uint32_t counts[SL_NUMA_NODES_MAX] = {0}, least = UINT32_MAX, most = 0, last = 0;
        for (uint32_t t = 0; t < CASES[i].threads; t++) {
            uint32_t node = sl_numa_node_of(&numa, t, CASES[i].threads);
            assert_true(node < CASES[i].nodes && node >= last);
            last = node;
            counts[node]++;
        }
        for (uint32_t n = 0; n < CASES[i].nodes; n++) {
            least = counts[n] < least ? counts[n] : least;
            most = counts[n] > most ? counts[n] : most;
        }
        assert_true(most - least <= 1);
    }
}

/* Pinning on this machine: as two nodes that share its first CPU. */
TEST(a_pinned_thread_keeps_to_its_cpus)
{
    sl_numa here, numa = {.node_count = 2};
    cpu_set_t before, after;
    sl_numa_here(&here);
    assert_true(here.node_count >= 1);
    assert_int_equal(sched_getaffinity(0, sizeof(before), &before), 0);
    int cpu = 0;
    while (!CPU_ISSET(cpu, &before))
        cpu++;
    CPU_SET(cpu, &numa.cpus[0]);
    CPU_SET(cpu, &numa.cpus[1]);
    sl_numa_pin(&numa, 1, 2);
    assert_int_equal(sched_getaffinity(0, sizeof(after), &after), 0);
    assert_int_equal(CPU_COUNT(&after), 1);
    assert_true(CPU_ISSET(cpu, &after));
    assert_int_equal(sched_setaffinity(0, sizeof(before), &before), 0);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(lists),
    cmocka_unit_test(nodes_with_usable_cpus_count),
    cmocka_unit_test(a_kernel_that_does_not_tell_is_one_node),
    cmocka_unit_test(shares_are_equal),
    cmocka_unit_test(a_pinned_thread_keeps_to_its_cpus),
};
TEST_MAIN(tests)
