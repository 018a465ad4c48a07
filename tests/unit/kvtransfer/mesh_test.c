/* Many processes over real transports, each sender to each receiver at once. KVT_TEST_MESH: how
 * many of either kind (soak; 3 by default). The parent never starts UCX, so its children may be
 * forked. */
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/kvtransfer/kit_ways.h"

enum { MESH_MAX = 32, PAGES_EACH = 4, PAGE_BYTES = 131072 };

typedef struct mesh_line { /* receiver -> parent, once each */
    char address[KVT_ADDRESS_MAX];
} mesh_line;

static uint32_t mesh_side(void)
{
    const char *text = getenv("KVT_TEST_MESH");
    uint32_t side = text ? (uint32_t)atoi(text) : 3;
    return side < 1 ? 1 : side > MESH_MAX ? MESH_MAX : side;
}

static kvt_nonce mesh_nonce(uint32_t sender, uint32_t receiver)
{
    kvt_nonce nonce = {sender + 1, receiver + 1};
    return nonce;
}

static kit_shape mesh_shape(uint32_t page)
{
    kit_shape shape = {.blocks = PAGES_EACH, .page = page, .deadline = sl_now_ns() + KIT_WAIT_NS};
    return shape;
}

/* Until the end of `stop`: a receiver that is gone resets connections whose last answer is still
 * under way. */
static void receiver(uint32_t me, uint32_t side, int out, int stop)
{
    static kit_end ends[MESH_MAX];
    kvt_recv *recvs[MESH_MAX];
    kit_side d, expected;
    mesh_line line;
    kit_memory(&d, side * PAGES_EACH, PAGE_BYTES);
    kit_memory(&expected, PAGES_EACH, PAGE_BYTES);
    kit_create(&d, (kvt_options){.name = "d", .listen = "127.0.0.1:0", .connect_ns = KIT_WAIT_NS});
    for (uint32_t i = 0; i < side; i++)
        recvs[i] = kit_recv(&d, mesh_shape(i * PAGES_EACH), mesh_nonce(i, me), &ends[i]);
    snprintf(line.address, sizeof line.address, "%s", kvt_context_address(d.context));
    assert_int_equal(write(out, &line, sizeof line), sizeof line);
    for (uint32_t i = 0; i < side; i++) {
        kit_wait((kit_side *const[]){&d}, 1, &ends[i].closed, 1);
        assert_string_equal(ends[i].text, "");
        assert_int_equal(ends[i].code, SL_OK);
        kit_fill(&expected, i);
        assert_memory_equal(kit_page(&d, i * PAGES_EACH), expected.memory, PAGES_EACH * PAGE_BYTES);
        kvt_recv_release(recvs[i]);
    }
    kit_assert_rest(&d);
    char byte;
    assert_int_equal(read(stop, &byte, 1), 0);
    kit_fini(&d);
    sl_free_pages(expected.memory, PAGES_EACH * PAGE_BYTES);
}

static void sender(uint32_t me, uint32_t side, const mesh_line *lines)
{
    static kit_end ends[MESH_MAX];
    kvt_send *sends[MESH_MAX];
    kit_side p;
    kit_memory(&p, PAGES_EACH, PAGE_BYTES);
    kit_fill(&p, me);
    kit_create(&p, (kvt_options){.name = "p", .connect_ns = KIT_WAIT_NS});
    for (uint32_t i = 0; i < side; i++) {
        kit_shape shape = mesh_shape(0);
        sends[i] = kit_send(&p, shape, lines[i].address, mesh_nonce(me, i), &ends[i]);
        kit_announce_all(&p, sends[i], shape);
        kit_commit_final(sends[i], PAGES_EACH * 64);
    }
    for (uint32_t i = 0; i < side; i++) {
        kit_wait((kit_side *const[]){&p}, 1, &ends[i].closed, 1);
        assert_string_equal(ends[i].text, "");
        kvt_send_release(sends[i]);
    }
    kit_assert_rest(&p);
    kit_fini(&p);
}

/* True: it ended well. */
static bool child_ended(pid_t pid)
{
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status == 0;
}

TEST(each_to_each)
{
    static mesh_line lines[MESH_MAX];
    uint32_t side = mesh_side(), well = 0;
    int stop[2], fds[2];
    pid_t pids[2 * MESH_MAX];
    assert_int_equal(pipe(stop), 0);
    for (uint32_t i = 0; i < 2 * side; i++) {
        assert_int_equal(pipe(fds), 0);
        pids[i] = fork();
        assert_true(pids[i] >= 0);
        if (pids[i] == 0) { /* a failed assertion ends as a failed test of the child */
            close(stop[1]);
            if (i < side)
                receiver(i, side, fds[1], stop[0]);
            else
                sender(i - side, side, lines);
            _exit(sl_alloc_live() == 0 ? 0 : 3);
        }
        close(fds[1]);
        if (i < side)
            assert_int_equal(read(fds[0], &lines[i], sizeof lines[i]), sizeof lines[i]);
        close(fds[0]);
    }
    for (uint32_t i = side; i < 2 * side; i++)
        well += child_ended(pids[i]);
    close(stop[0]);
    close(stop[1]);
    for (uint32_t i = 0; i < side; i++)
        well += child_ended(pids[i]);
    assert_int_equal(well, 2 * side);
    print_message("%u x %u processes\n", side, side);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(each_to_each),
};

int main(int argc, char **argv)
{
    int failed = 0;
    kit_main(argv);
    for (kit_way way = 0; way < KIT_WAY_COUNT; way++) {
        if (way == KIT_WAY_UCX_SHM)
            continue;
        kit_way_set(way);
        failed |= cmocka_run_group_tests_name(kit_ways[way].name, tests, NULL, NULL);
    }
    return failed;
}
