/* Process faults over real transports: the sender or the receiver is a child (this program again,
 * executed before any UCX starts in it), which is killed, stopped and continued.
 *
 * KVT_TEST_REPEATS repeats each fault (soak). A duration is printed, never a verdict. By local
 * reads the pages are large, then small ones, which are read several at a time. */
#include <signal.h>

#include "tests/unit/child.h"
#include "tests/unit/kvtransfer/kit_ways.h"

enum { PAGES = 64, BLOCKS = 4096, LARGE_BYTES = 262144, SMALL_BYTES = 16384, WATCHED_BYTES = 4096 };

static uint32_t repeats(void)
{
    const char *text = getenv("KVT_TEST_REPEATS");
    return text ? (uint32_t)atoi(text) : 3;
}

/* UCX 1.13 forgets a table of 100 bytes when it connects to shared memory that a dead process has
 * taken with it (uct_mm_ep_t's creation that fails). */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void)
{
    return "leak:libuct.so\n";
}

/* The children's too. */
static uint64_t page_bytes(void)
{
    return getenv("KVT_TEST_SMALL_PIECES") ? SMALL_BYTES : LARGE_BYTES;
}

static sl_time_ns in_ms(uint64_t ms)
{
    return sl_now_ns() + ms * SL_MS_NS;
}

/* ---- the child */

/* A long transfer over few pages: pages repeat. Sums are right if asked for. */
static void announce_long(const kit_side *side, kvt_send *send, uint32_t first, uint32_t end,
                          bool sums)
{
    sl_err err;
    for (uint32_t i = first * KIT_GROUPS; i < end * KIT_GROUPS; i++) {
        uint32_t block = i / KIT_GROUPS, group = i % KIT_GROUPS;
        const kvt_piece_slice *slice = &side->slices[group];
        const uint8_t *data = kit_page(side, block % side->page_count) + slice->offset;
        uint64_t tweak = kvt_sum_tweak(block, group);
        uint64_t sum = sums ? sl_sum64(KIT_KEY, tweak, data, slice->bytes) : 0;
        sl_status status = kvt_send_announce(send, block, group, data, slice->bytes, sum, &err);
        if (status.code == SL_CONFLICT)
            return; /* it ended meanwhile */
        assert_ok(status, &err);
    }
}

static kvt_recv *recv_long(const kit_side *side, uint32_t blocks, kvt_nonce nonce,
                           sl_time_ns deadline, kvt_sums sums, kit_end *end)
{
    static void *pages[BLOCKS];
    sl_err err;
    kvt_recv *recv = NULL;
    for (uint32_t i = 0; i < blocks; i++)
        pages[i] = kit_page(side, i % PAGES);
    kvt_recv_options options = {.nonce = nonce,
                                .deadline = deadline,
                                .block_count = blocks,
                                .group_count = KIT_GROUPS,
                                .pages = pages,
                                .slices = side->slices,
                                .sums = sums,
                                .sum_key = KIT_KEY,
                                .cookie = end};
    assert_ok(kvt_recv_open(side->context, &options, &recv, &err), &err);
    return recv;
}

/* "send ADDRESS HIGH LOW BLOCKS SUMS COMMIT": sends, then says how it ended; without a commit only
 * a fault ends it. */
static int child_send(char **argv)
{
    kit_side side;
    kit_end end = {0};
    kit_memory(&side, PAGES, page_bytes());
    kit_create(&side, (kvt_options){.name = "child"});
    kit_fill(&side, 11);
    kvt_nonce nonce = {strtoull(argv[3], NULL, 16), strtoull(argv[4], NULL, 16)};
    uint32_t blocks = (uint32_t)atoi(argv[5]);
    kit_shape shape = {.blocks = blocks, .deadline = in_ms(50000)};
    kvt_send *send = kit_send(&side, shape, argv[2], nonce, &end);
    announce_long(&side, send, 0, blocks, argv[6][0] == '1');
    sl_err err;
    kvt_commit commit = {.tokens = blocks * 64, .final = true};
    if (argv[7][0] == '1') {
        sl_status ignored = kvt_send_commit(send, &commit, &err);
        (void)ignored;
    }
    kit_wait((kit_side *const[]){&side}, 1, &end.closed, 1);
    printf("closed %d %s\n", end.code, end.text);
    fflush(stdout);
    kvt_send_release(send);
    kit_assert_rest(&side);
    kit_fini(&side);
    return sl_alloc_live() == 0 ? 0 : 3;
}

/* "recv": opens one transfer, says address and nonce, then how it ended. */
static int child_recv(char **argv)
{
    kit_side side;
    kit_end end = {0};
    kit_memory(&side, PAGES, page_bytes());
    kit_create(&side, (kvt_options){.name = "child", .listen = "127.0.0.1:0"});
    kvt_nonce nonce = kit_nonce();
    kvt_recv *recv = recv_long(&side, BLOCKS, nonce, in_ms(50000), KVT_SUMS_OFF, &end);
    printf("%s %llx %llx\n", kvt_context_address(side.context), (unsigned long long)nonce.high,
           (unsigned long long)nonce.low);
    fflush(stdout);
    kit_wait((kit_side *const[]){&side}, 1, &end.closed, 1);
    kvt_recv_release(recv);
    kit_fini(&side);
    return 0;
}

/* "watch": each piece has a place of its own here; says how it ended, and how many pieces that it
 * called verified are not as the parent first had them. */
static uint8_t watched[BLOCKS][KIT_GROUPS];

static void on_watched(void *context, const kvt_event *event)
{
    if (event->type == KVT_EVENT_RECV_PIECE)
        watched[event->block][event->group] = 1;
    kit_on_event(context, event);
}

static uint32_t watched_wrong(const kit_side *side)
{
    kit_side expected;
    uint32_t wrong = 0;
    kit_memory(&expected, BLOCKS, WATCHED_BYTES);
    kit_fill(&expected, 11);
    for (uint32_t i = 0; i < BLOCKS * KIT_GROUPS; i++) {
        const kvt_piece_slice *slice = &side->slices[i % KIT_GROUPS];
        const uint8_t *got = kit_page(side, i / KIT_GROUPS) + slice->offset;
        const uint8_t *right = kit_page(&expected, i / KIT_GROUPS) + slice->offset;
        wrong += watched[i / KIT_GROUPS][i % KIT_GROUPS] && memcmp(got, right, slice->bytes) != 0;
    }
    sl_free_pages(expected.memory, (uint64_t)BLOCKS * WATCHED_BYTES);
    return wrong;
}

static int child_watch(void)
{
    static void *pages[BLOCKS];
    kit_side side;
    kit_end end = {0};
    sl_err err;
    kvt_recv *recv = NULL;
    kit_memory(&side, BLOCKS, WATCHED_BYTES);
    kit_create(&side, (kvt_options){.name = "child", .listen = "127.0.0.1:0"});
    for (uint32_t i = 0; i < BLOCKS; i++)
        pages[i] = kit_page(&side, i);
    kvt_recv_options options = {.nonce = kit_nonce(),
                                .deadline = in_ms(50000),
                                .block_count = BLOCKS,
                                .group_count = KIT_GROUPS,
                                .pages = pages,
                                .slices = side.slices,
                                .sums = KVT_SUMS_OFF,
                                .piece_events = true,
                                .cookie = &end};
    assert_ok(kvt_recv_open(side.context, &options, &recv, &err), &err);
    printf("%s %llx %llx\n", kvt_context_address(side.context),
           (unsigned long long)options.nonce.high, (unsigned long long)options.nonce.low);
    fflush(stdout);
    while (!end.closed) {
        poll(&(struct pollfd){.fd = kvt_fd(side.context), .events = POLLIN}, 1, 100);
        kvt_poll(side.context, on_watched, NULL);
    }
    printf("closed %d, %u wrong\n", end.code, watched_wrong(&side));
    fflush(stdout);
    kvt_recv_release(recv);
    kit_fini(&side);
    return 0;
}

/* "claim ADDRESS SIGNAL": takes a place in the other's FIFO of shared memory, and gets the signal
 * before it has filled it: the piece that UCX copies there lies in memory that cannot be read. */
static int claim_signal;
static void *claim_memory;

static void on_claim(int number)
{
    kill(getpid(), claim_signal);
    mprotect(claim_memory, WATCHED_BYTES, PROT_READ);
}

static int child_claim(char **argv)
{
    kvt_context *context;
    kvt_send *send;
    kit_end end = {0};
    sl_err err;
    claim_signal = atoi(argv[3]);
    assert_ok(sl_alloc_pages(WATCHED_BYTES, &claim_memory, &err), &err);
    kvt_region region = {claim_memory, WATCHED_BYTES};
    kvt_options options = {
        .name = "claim", .regions = &region, .region_count = 1, .no_local_reads = true};
    assert_ok(kvt_context_create(&options, &context, &err), &err);
    assert_int_equal(mprotect(claim_memory, WATCHED_BYTES, PROT_NONE), 0);
    signal(SIGSEGV, on_claim);
    kvt_send_options to = {.address = argv[2],
                           .nonce = kit_nonce(),
                           .deadline = in_ms(20000),
                           .block_count = 1,
                           .group_count = 1,
                           .cookie = &end};
    assert_ok(kvt_send_open(context, &to, &send, &err), &err);
    assert_ok(kvt_send_announce(send, 0, 0, claim_memory, WATCHED_BYTES, 0, &err), &err);
    while (!end.closed) {
        poll(&(struct pollfd){.fd = kvt_fd(context), .events = POLLIN}, 1, 100);
        kvt_poll(context, kit_on_event, NULL);
    }
    kvt_send_release(send);
    kvt_context_destroy(context);
    sl_free_pages(claim_memory, WATCHED_BYTES);
    return 0;
}

/* ---- the parent */

static kit_side side;
static kit_side *const alone[] = {&side};

static child sender_begin(kvt_nonce nonce, uint32_t blocks, bool sums, bool commit)
{
    char high[20], low[20], count[16], address[KVT_ADDRESS_MAX];
    snprintf(high, sizeof high, "%llx", (unsigned long long)nonce.high);
    snprintf(low, sizeof low, "%llx", (unsigned long long)nonce.low);
    snprintf(count, sizeof count, "%u", blocks);
    snprintf(address, sizeof address, "%s", kvt_context_address(side.context));
    char *arguments[] = {
        "test", "send", address, high, low, count, sums ? "1" : "0", commit ? "1" : "0", NULL};
    return child_start(arguments, NULL);
}

static child sender_start(kvt_nonce nonce, uint32_t blocks, bool sums)
{
    return sender_begin(nonce, blocks, sums, true);
}

static void wait_pieces(uint64_t wanted)
{
    kvt_stats stats;
    sl_time_ns give_up = sl_now_ns() + KIT_WAIT_NS;
    do {
        poll(NULL, 0, 1);
        kvt_stats_get(side.context, &stats);
        assert_true(sl_now_ns() < give_up);
    } while (stats.pieces_received + stats.pieces_sent < wanted);
}

/* False: it has ended before that. */
static bool pieces_before_end(uint64_t wanted, const kit_end *end)
{
    kvt_stats stats;
    do {
        poll(NULL, 0, 1);
        kvt_poll(side.context, kit_on_event, NULL);
        kvt_stats_get(side.context, &stats);
    } while (stats.pieces_sent < wanted && !end->closed);
    return stats.pieces_sent >= wanted;
}

static void receiver_start(kvt_options options)
{
    kit_memory(&side, PAGES, page_bytes());
    options.name = "parent";
    options.listen = "127.0.0.1:0";
    kit_create(&side, options);
}

TEST(two_processes_exact)
{
    kit_end end = {0};
    char line[256];
    receiver_start((kvt_options){.name = NULL});
    kvt_nonce nonce = kit_nonce();
    /* 1,024 pieces into 64 pages: the last write of each place must be the right one, sums prove
     * all */
    kvt_recv *recv = recv_long(&side, 256, nonce, in_ms(50000), KVT_SUMS_ALL, &end);
    child c = sender_start(nonce, 256, true);
    kit_wait(alone, 1, &end.closed, 1);
    assert_string_equal(end.text, "");
    assert_int_equal(end.code, SL_OK);
    assert_int_equal(end.tokens, 256 * 64);
    child_line(&c, line, sizeof(line));
    assert_string_equal(line, "closed 0 \n");
    assert_int_equal(child_wait(&c), 0);
    kit_side expected;
    kit_memory(&expected, PAGES, page_bytes());
    kit_fill(&expected, 11);
    assert_true(kit_equal(&expected, &side));
    kit_fini(&expected);
    kvt_recv_release(recv);
    kit_assert_rest(&side);
    kit_fini(&side);
}

/* D's pages are in use again: not one byte may change from here on. */
static uint8_t *reuse(void)
{
    size_t bytes = (size_t)PAGES * page_bytes();
    kit_fill(&side, 999);
    uint8_t *copy = sl_alloc(1, bytes, "copy");
    memcpy(copy, side.memory, bytes);
    return copy;
}

static void assert_unchanged(uint8_t *copy)
{
    assert_int_equal(memcmp(copy, side.memory, (size_t)PAGES * page_bytes()), 0);
    sl_free(copy);
}

TEST(killed_sender)
{
    for (uint32_t i = 0; i < repeats(); i++) {
        kit_end end = {0};
        kvt_stats stats;
        receiver_start((kvt_options){.name = NULL});
        kvt_nonce nonce = kit_nonce();
        kvt_recv *recv = recv_long(&side, BLOCKS, nonce, in_ms(50000), KVT_SUMS_OFF, &end);
        /* However quick it is, it has not ended before that. */
        child c = sender_begin(nonce, BLOCKS, false, false);
        wait_pieces(100);
        sl_time_ns began = sl_now_ns();
        kill(c.pid, SIGKILL);
        kit_wait(alone, 1, &end.closed, 1);
        sl_time_ns ended = sl_now_ns();
        uint8_t *copy = reuse();
        assert_int_equal(end.code, SL_UNAVAILABLE);
        print_message("sender killed: seen after %.1f ms\n", (double)(ended - began) / 1e6);
        child_wait(&c);
        assert_unchanged(copy);
        kvt_recv_release(recv);
        kit_assert_rest(&side);
        kvt_stats_get(side.context, &stats);
        assert_int_equal(stats.requests_open, 0);
        kit_fini(&side);
    }
}

TEST(killed_receiver)
{
    for (uint32_t i = 0; i < repeats(); i++) {
        char line[400], address[KVT_ADDRESS_MAX];
        unsigned long long high, low;
        kit_end end = {0};
        char *arguments[] = {"test", "recv", NULL};
        child c = child_start(arguments, NULL);
        child_line(&c, line, sizeof(line));
        assert_int_equal(sscanf(line, "%279s %llx %llx", address, &high, &low), 3);
        kit_memory(&side, PAGES, page_bytes());
        kit_create(&side, (kvt_options){.name = "parent"});
        kit_shape shape = {.blocks = BLOCKS, .deadline = in_ms(50000)};
        kvt_send *send = kit_send(&side, shape, address, (kvt_nonce){high, low}, &end);
        announce_long(&side, send, 0, BLOCKS, false);
        wait_pieces(100);
        sl_time_ns began = sl_now_ns();
        kill(c.pid, SIGKILL);
        kit_wait(alone, 1, &end.closed, 1);
        print_message("receiver killed: seen after %.1f ms\n", (double)(sl_now_ns() - began) / 1e6);
        assert_int_equal(end.code, SL_UNAVAILABLE);
        child_wait(&c);
        kvt_send_release(send);
        kit_assert_rest(&side);
        kit_fini(&side);
    }
}

/* Stops the sender amid fetches: one was open when it had stopped. Else it goes on, and is stopped
 * again. What D reads by itself out of P's memory is open for microseconds only, hence no sleep.
 * False: the transfer ended before that. */
static bool stop_with_fetches_open(pid_t sender, const kit_end *end)
{
    kvt_stats stats;
    while (!end->closed) {
        do {
            kvt_poll(side.context, kit_on_event, NULL);
            kvt_stats_get(side.context, &stats);
        } while ((stats.pieces_received < 20 || stats.requests_open == 0) && !end->closed);
        kill(sender, SIGSTOP);
        kvt_stats_get(side.context, &stats);
        if (stats.requests_open > 0)
            return true;
        kill(sender, SIGCONT);
    }
    kill(sender, SIGSTOP);
    return false;
}

/* The rule that the whole design rests on: SIGSTOP of P amid fetches, D's deadline and forced
 * close, D uses its pages again, SIGCONT: no byte of them changes. False: the transfer ended before
 * the stop, by its deadline if that is what *out_code says. */
static bool stop_amid_fetches(uint64_t deadline_ms, sl_code *out_code)
{
    kit_end end = {0};
    char line[256];
    receiver_start((kvt_options){.close_grace_ns = 50 * SL_MS_NS});
    kvt_nonce nonce = kit_nonce();
    kvt_recv *recv = recv_long(&side, BLOCKS, nonce, in_ms(deadline_ms), KVT_SUMS_OFF, &end);
    child c = sender_start(nonce, BLOCKS, false);
    bool met = stop_with_fetches_open(c.pid, &end);
    kit_wait(alone, 1, &end.closed, 1);
    if (end.code != SL_OK)
        assert_int_equal(end.code, SL_DEADLINE);
    *out_code = end.code;
    uint8_t *copy = reuse();
    kill(c.pid, SIGCONT);
    /* The child runs on until it knows that its transfer is over. */
    child_line(&c, line, sizeof(line));
    assert_text_contains(line, "closed ");
    assert_int_equal(child_wait(&c), 0);
    assert_unchanged(copy);
    kvt_recv_release(recv);
    kit_assert_rest(&side);
    kit_fini(&side);
    return met;
}

/* Small pieces may all have arrived before a stop that met one under way: again, then. */
TEST(stopped_sender_never_writes_late)
{
    uint32_t met_count = 0;
    for (uint32_t i = 0; i < repeats(); i++) {
        uint64_t deadline_ms = 1000;
        bool met = false;
        for (uint32_t tries = 0; tries < 10 && !met; tries++) {
            sl_code code;
            met = stop_amid_fetches(deadline_ms, &code);
            /* The deadline must come after the stop: a machine too slow for it gets more. */
            if (!met && code == SL_DEADLINE)
                deadline_ms *= 2;
        }
        met_count += met;
    }
    print_message("%u of %u stops met open fetches\n", met_count, repeats());
    assert_true(met_count > 0);
}

/* Until the value is there. */
static void wait_stat(const uint64_t *value, kvt_stats *stats, uint64_t wanted)
{
    sl_time_ns give_up = sl_now_ns() + KIT_WAIT_NS;
    do {
        poll(NULL, 0, 1);
        kvt_poll(side.context, kit_on_event, NULL);
        kvt_stats_get(side.context, stats);
        assert_true(sl_now_ns() < give_up);
    } while (*value < wanted);
}

static child claim_start(int with)
{
    char address[KVT_ADDRESS_MAX], number[16];
    snprintf(address, sizeof address, "%s", kvt_context_address(side.context));
    snprintf(number, sizeof number, "%d", with);
    char *arguments[] = {"test", "claim", address, number, NULL};
    return child_start(arguments, NULL);
}

/* The address takes a sender, and all of its pieces are right. */
static void assert_heard(void)
{
    kit_end end = {0};
    char line[256];
    kvt_nonce nonce = kit_nonce();
    kvt_recv *recv = recv_long(&side, PAGES, nonce, in_ms(50000), KVT_SUMS_ALL, &end);
    child c = sender_start(nonce, PAGES, true);
    child_line(&c, line, sizeof(line));
    assert_string_equal(line, "closed 0 \n");
    kit_wait(alone, 1, &end.closed, 1);
    assert_string_equal(end.text, "");
    assert_int_equal(child_wait(&c), 0);
    kvt_recv_release(recv);
}

/* Kills receivers of ours amid their transfers until UCX has kept requests of one, `most` at most.
 * Each next one is heard, and our address takes a sender at the end. */
static void kill_receivers(uint32_t most)
{
    kvt_stats stats;
    uint32_t killed = 0;
    receiver_start((kvt_options){.close_grace_ns = 50 * SL_MS_NS});
    if (kit_by_shm())
        wait_stat(&stats.probes_heard, &stats, 1);
    kvt_stats_get(side.context, &stats);
    while (killed < most && stats.restarts == stats.restarts_deaf) {
        char line[400], address[KVT_ADDRESS_MAX];
        unsigned long long high, low;
        kit_end end = {0};
        char *arguments[] = {"test", "recv", NULL};
        child c = child_start(arguments, NULL);
        child_line(&c, line, sizeof(line));
        assert_int_equal(sscanf(line, "%279s %llx %llx", address, &high, &low), 3);
        kit_shape shape = {.blocks = BLOCKS, .deadline = in_ms(50000)};
        kvt_send *send = kit_send(&side, shape, address, (kvt_nonce){high, low}, &end);
        announce_long(&side, send, 0, BLOCKS, false);
        assert_true(pieces_before_end(stats.pieces_sent + 100, &end));
        kill(c.pid, SIGKILL);
        kit_wait(alone, 1, &end.closed, 1);
        assert_int_equal(end.code, SL_UNAVAILABLE);
        child_wait(&c);
        kvt_send_release(send);
        kit_assert_rest(&side);
        killed++;
        /* It has listened to itself since, as after each connection's end. */
        if (kit_by_shm())
            wait_stat(&stats.probes_heard, &stats, stats.probes_heard + 1);
        kvt_stats_get(side.context, &stats);
    }
    print_message("%u killed: %u requests abandoned, %u restarts, %u of them deaf\n", killed,
                  (unsigned)stats.requests_abandoned, (unsigned)stats.restarts,
                  (unsigned)stats.restarts_deaf);
    assert_heard();
    kit_assert_rest(&side);
    kit_fini(&side);
}

/* A FIFO too small for the window: UCX keeps requests of a dead peer for ever, so the context gives
 * them up and starts its transport anew, with the same address. */
TEST(requests_kept_by_the_transport_come_back)
{
    setenv("UCX_MM_FIFO_SIZE", "64", 1);
    kill_receivers(repeats() > 6 ? repeats() : 6);
    unsetenv("UCX_MM_FIFO_SIZE"); /* all processes of a host must agree on it */
}

TEST(killed_receivers_leave_their_sender_hearing)
{
    kill_receivers(repeats());
}

/* A process dies amid a message to us by shared memory: whoever speaks to us so is not heard any
 * more. We find out, and start the transport anew; what was open ends, and may be asked for again,
 * by the same address. */
TEST(a_place_claimed_by_the_dead_deafens_nobody_for_long)
{
    kvt_stats stats;
    kit_end end = {0};
    char line[256];
    if (!kit_by_shm() || getenv("KVT_TEST_SMALL_PIECES")) /* as with large ones */
        return;
    receiver_start((kvt_options){.name = NULL});
    wait_stat(&stats.probes_heard, &stats, 1);
    kvt_nonce nonce = kit_nonce();
    kvt_recv *recv = recv_long(&side, BLOCKS, nonce, in_ms(50000), KVT_SUMS_OFF, &end);
    child sender = sender_start(nonce, BLOCKS, false);
    wait_pieces(20);
    kill(sender.pid, SIGSTOP);
    bool open = !end.closed;
    int status = 0;
    while (status == 0) { /* not heard: the stop met the sender amid a message */
        child c = claim_start(SIGKILL);
        status = child_wait(&c);
        kill(sender.pid, SIGCONT);
    }
    assert_int_equal(status, SIGKILL);
    wait_stat(&stats.restarts_deaf, &stats, 1);
    kit_wait(alone, 1, &end.closed, 1);
    uint8_t *copy = reuse();
    if (open && end.code != SL_OK) /* OK: all was there before */
        assert_int_equal(end.code, SL_UNAVAILABLE);
    child_line(&sender, line, sizeof(line));
    assert_text_contains(line, "closed ");
    assert_int_equal(child_wait(&sender), 0);
    assert_unchanged(copy);
    kvt_recv_release(recv);
    assert_heard();
    wait_stat(&stats.probes_heard, &stats, 2);
    kit_assert_rest(&side);
    kit_fini(&side);
}

/* The same while it lives, but does not go on: the next that connects waits for its answer in vain,
 * the one after is heard. When the stopped one goes on, nobody looks at that memory any more. */
TEST(a_place_claimed_by_the_stopped_deafens_nobody_for_long)
{
    kvt_stats stats;
    char line[256];
    if (!kit_by_shm() || getenv("KVT_TEST_SMALL_PIECES")) /* as with large ones */
        return;
    receiver_start((kvt_options){.connect_ns = SL_S_NS});
    wait_stat(&stats.probes_heard, &stats, 1);
    child claimer = claim_start(SIGSTOP);
    siginfo_t how;
    assert_int_equal(waitid(P_PID, (id_t)claimer.pid, &how, WSTOPPED | WNOWAIT), 0);
    child c = sender_start(kit_nonce(), 1, false);
    child_line(&c, line, sizeof(line));
    assert_text_contains(line, "closed 30 ");
    assert_int_equal(child_wait(&c), 0);
    wait_stat(&stats.restarts_deaf, &stats, 1);
    assert_heard();
    kill(claimer.pid, SIGCONT);
    assert_int_equal(child_wait(&claimer), 0);
    assert_heard();
    kvt_stats_get(side.context, &stats);
    assert_int_equal(stats.restarts_deaf, 1);
    kit_assert_rest(&side);
    kit_fini(&side);
}

/* The other way round: the receiver stops; the sender's stall deadline ends it. */
TEST(stopped_receiver_ends_by_stall)
{
    char line[400], address[KVT_ADDRESS_MAX];
    unsigned long long high, low;
    kit_end end = {0};
    kvt_stats stats;
    char *arguments[] = {"test", "recv", NULL};
    child c = child_start(arguments, NULL);
    child_line(&c, line, sizeof(line));
    assert_int_equal(sscanf(line, "%279s %llx %llx", address, &high, &low), 3);
    kit_memory(&side, PAGES, page_bytes());
    kit_create(&side, (kvt_options){.name = "parent", .stall_ns = 500 * SL_MS_NS});
    kit_shape shape = {.blocks = BLOCKS, .deadline = in_ms(50000)};
    kvt_send *send = kit_send(&side, shape, address, (kvt_nonce){high, low}, &end);
    announce_long(&side, send, 0, BLOCKS / 2, false);
    wait_pieces(100);
    kill(c.pid, SIGSTOP);
    announce_long(&side, send, BLOCKS / 2, BLOCKS, false); /* however quick it was, some are left */
    kit_wait(alone, 1, &end.closed, 1);
    assert_int_equal(end.code, SL_UNAVAILABLE);
    assert_text_contains(end.text, "stalled");
    kvt_stats_get(side.context, &stats);
    assert_int_equal(stats.closes_forced, 1);
    kill(c.pid, SIGKILL);
    kill(c.pid, SIGCONT);
    child_wait(&c);
    kvt_send_release(send);
    kit_assert_rest(&side);
    kit_fini(&side);
}

/* And P's rule: D is stopped amid a window of offers, P closes by force and uses its pages again.
 * What D still finds of them is not called verified. */
TEST(stopped_receiver_never_takes_pages_used_again)
{
    for (uint32_t i = 0; i < repeats(); i++) {
        char line[400], address[KVT_ADDRESS_MAX];
        unsigned long long high, low;
        int code, wrong;
        kit_end end = {0};
        char *arguments[] = {"test", "watch", NULL};
        child c = child_start(arguments, NULL);
        child_line(&c, line, sizeof(line));
        assert_int_equal(sscanf(line, "%279s %llx %llx", address, &high, &low), 3);
        kit_memory(&side, BLOCKS, WATCHED_BYTES);
        kit_create(&side, (kvt_options){.name = "parent", .stall_ns = 300 * SL_MS_NS});
        kit_fill(&side, 11);
        kit_shape shape = {.blocks = BLOCKS, .deadline = in_ms(50000)};
        kvt_send *send = kit_send(&side, shape, address, (kvt_nonce){high, low}, &end);
        announce_long(&side, send, 0, BLOCKS / 2, false);
        wait_pieces(100);
        kill(c.pid, SIGSTOP);
        announce_long(&side, send, BLOCKS / 2, BLOCKS, false);
        kit_wait(alone, 1, &end.closed, 1);
        assert_int_equal(end.code, SL_UNAVAILABLE);
        assert_text_contains(end.text, "stalled"); /* so pieces were in flight */
        kit_fill(&side, 999);
        kill(c.pid, SIGCONT);
        child_line(&c, line, sizeof(line));
        assert_int_equal(sscanf(line, "closed %d, %d wrong", &code, &wrong), 2);
        assert_int_not_equal(code, SL_OK);
        assert_int_equal(wrong, 0);
        assert_int_equal(child_wait(&c), 0);
        kvt_send_release(send);
        kit_assert_rest(&side);
        kit_fini(&side);
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(two_processes_exact),
    cmocka_unit_test(killed_sender),
    cmocka_unit_test(killed_receiver),
    cmocka_unit_test(stopped_sender_never_writes_late),
    cmocka_unit_test(requests_kept_by_the_transport_come_back),
    cmocka_unit_test(killed_receivers_leave_their_sender_hearing),
    cmocka_unit_test(a_place_claimed_by_the_dead_deafens_nobody_for_long),
    cmocka_unit_test(a_place_claimed_by_the_stopped_deafens_nobody_for_long),
    cmocka_unit_test(stopped_receiver_ends_by_stall),
    cmocka_unit_test(stopped_receiver_never_takes_pages_used_again),
};

int main(int argc, char **argv)
{
    int failed = 0;
    kit_main(argv);
    if (argc > 1 && strcmp(argv[1], "send") == 0)
        return child_send(argv);
    if (argc > 1 && strcmp(argv[1], "recv") == 0)
        return child_recv(argv);
    if (argc > 1 && strcmp(argv[1], "watch") == 0)
        return child_watch();
    if (argc > 3 && strcmp(argv[1], "claim") == 0)
        return child_claim(argv);
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    for (kit_way way = 0; way < KIT_WAY_COUNT; way++) {
        if (!kit_way_wanted(way))
            continue;
        kit_way_set(way);
        failed |= cmocka_run_group_tests_name(kit_ways[way].name, tests, NULL, NULL);
    }
    kit_way_set(KIT_WAY_LOCAL_READS);
    setenv("KVT_TEST_SMALL_PIECES", "1", 1);
    if (kit_way_wanted(KIT_WAY_LOCAL_READS))
        failed |= cmocka_run_group_tests_name("small pieces", tests, NULL, NULL);
    if (failed == 0 && sl_alloc_live() != 0) {
        fprintf(stderr, "%llu allocations are left\n", (unsigned long long)sl_alloc_live());
        failed = 1;
    }
    return failed;
}
