/* The tcp transport and those who are not what they should be: strangers on its port, silent and
 * stuck ends, frames in bits, ends of the other transport, no place left. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "base/net.h"
#include "kvtransfer/wire.h"
#include "tests/unit/kvtransfer/kit.h"

enum { PAGES = 4, PAGE_BYTES = 262144 };

static kit_side d;
static kit_side *const only_d[] = {&d};

static sl_time_ns in_seconds(uint64_t seconds)
{
    return sl_now_ns() + seconds * SL_S_NS;
}

static void receiver_start(kvt_options options)
{
    kit_memory(&d, PAGES, PAGE_BYTES);
    options.name = "d0";
    options.listen = "127.0.0.1:0";
    options.transport = KVT_TRANSPORT_TCP;
    kit_create(&d, options);
}

static kvt_stats stats_of(const kit_side *side)
{
    kvt_stats stats;
    kvt_stats_get(side->context, &stats);
    return stats;
}

static void wait_peers(const kit_side *side, uint32_t count)
{
    sl_time_ns give_up = sl_now_ns() + KIT_WAIT_NS;
    while (stats_of(side).peers_open != count) {
        assert_true(sl_now_ns() < give_up);
        poll(NULL, 0, 1);
    }
}

/* ---- an end made by hand */

static int plain_connect(const char *address)
{
    struct sockaddr_storage to;
    socklen_t size;
    sl_err err;
    assert_text_contains(address, "tcp:");
    assert_ok(sl_net_resolve(kit_listen_text(address), false, &to, &size, &err), &err);
    int fd = socket(to.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&to, size), 0);
    return fd;
}

/* All of it, or as much as the other end lets us. */
static void say(int fd, const void *data, size_t size)
{
    const uint8_t *bytes = data;
    while (size > 0) {
        ssize_t sent = send(fd, bytes, size, MSG_NOSIGNAL);
        if (sent < 0) {
            assert_true(errno == EPIPE || errno == ECONNRESET);
            return;
        }
        bytes += sent;
        size -= (size_t)sent;
    }
}

/* Until the other end closes. */
static void wait_closed(int fd)
{
    uint8_t bytes[512];
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    ssize_t got;
    do {
        assert_int_equal(poll(&wait, 1, (int)(KIT_WAIT_NS / SL_MS_NS)), 1);
        got = recv(fd, bytes, sizeof bytes, 0);
    } while (got > 0);
    assert_true(got == 0 || errno == ECONNRESET);
    close(fd);
}

static size_t frame_of(const kvt_message *message, uint8_t *out, size_t capacity)
{
    size_t size = kvt_wire_pack(message, out + KVT_WIRE_FRAME_SIZE, capacity - KVT_WIRE_FRAME_SIZE);
    bool piece = message->type == KVT_MESSAGE_PIECE;
    kvt_frame frame = {KVT_FRAME_MESSAGE, 0, size};
    if (piece)
        frame = (kvt_frame){KVT_FRAME_PIECE, KVT_WIRE_PIECE_SIZE, message->piece.bytes};
    assert_true(size > 0);
    kvt_wire_pack_frame(&frame, out);
    return KVT_WIRE_FRAME_SIZE + size;
}

/* The next message that comes. */
static void hear(int fd, kvt_message *out_message)
{
    static uint8_t body[KVT_WIRE_MESSAGE_MAX];
    uint8_t head[KVT_WIRE_FRAME_SIZE];
    kvt_frame frame;
    assert_int_equal(recv(fd, head, sizeof head, MSG_WAITALL), sizeof head);
    assert_null(kvt_wire_parse_frame(head, &frame));
    assert_int_equal(frame.kind, KVT_FRAME_MESSAGE);
    assert_int_equal(recv(fd, body, (size_t)frame.bytes, MSG_WAITALL), frame.bytes);
    assert_true(kvt_wire_parse(body, (size_t)frame.bytes, out_message));
}

static int sender_by_hand(void)
{
    uint8_t bytes[256];
    kvt_message hello = {.type = KVT_MESSAGE_HELLO}, answer;
    hello.hello = (kvt_hello){.version = KVT_WIRE_VERSION, .incarnation = 1, .name = "hand"};
    int fd = plain_connect(kvt_context_address(d.context));
    say(fd, bytes, frame_of(&hello, bytes, sizeof bytes));
    hear(fd, &answer);
    assert_int_equal(answer.type, KVT_MESSAGE_HELLO_ACK);
    return fd;
}

static kvt_message piece_head(kvt_nonce nonce, uint32_t group, const uint8_t *data)
{
    uint64_t bytes = d.slices[group].bytes;
    kvt_message message = {.type = KVT_MESSAGE_PIECE, .nonce = nonce};
    message.piece =
        (kvt_piece_head){.ordinal = group,
                         .group = (uint16_t)group,
                         .bytes = bytes,
                         .sum = sl_sum64(KIT_KEY, kvt_sum_tweak(0, group), data, bytes)};
    return message;
}

/* A whole transfer by the library itself: the context still serves. */
static void assert_serves(void)
{
    kit_side p;
    kit_end pe = {0}, de = {0};
    kit_memory(&p, PAGES, PAGE_BYTES);
    kit_create(&p, (kvt_options){.name = "p0", .transport = KVT_TRANSPORT_TCP});
    kit_fill(&p, 5);
    kit_shape shape = {.blocks = PAGES, .deadline = in_seconds(60)};
    kvt_nonce nonce = kit_nonce();
    kvt_recv *recv = kit_recv(&d, shape, nonce, &de);
    kvt_send *send = kit_send(&p, shape, kvt_context_address(d.context), nonce, &pe);
    kit_announce_all(&p, send, shape);
    kit_commit_final(send, 1);
    kit_wait((kit_side *const[]){&p, &d}, 2, &de.closed, 1);
    kit_wait((kit_side *const[]){&p, &d}, 2, &pe.closed, 1);
    assert_string_equal(de.text, "");
    assert_true(kit_equal(&p, &d));
    kvt_send_release(send);
    kvt_recv_release(recv);
    kit_fini(&p);
}

/* ---- tests */

/* Whoever is no peer is shown the door, and nobody else is disturbed. */
TEST(strangers_are_turned_away)
{
    static const uint8_t zeros[4096],
        ucx[] = {0x2a, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8};
    static const struct {
        const void *bytes;
        size_t size;
    } strangers[] = {{"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 27},
                     {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello", 24},
                     {zeros, sizeof zeros},
                     {ucx, sizeof ucx},
                     {"KVTS\x02\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00x", 17},
                     {"KVTS\x01\x01\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff", 16},
                     {"KVTS\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00?", 17}};
    receiver_start((kvt_options){.name = NULL});
    for (size_t i = 0; i < sizeof strangers / sizeof strangers[0]; i++) {
        int fd = plain_connect(kvt_context_address(d.context));
        say(fd, strangers[i].bytes, strangers[i].size);
        wait_closed(fd);
    }
    wait_peers(&d, 0);
    assert_int_equal(stats_of(&d).messages_invalid, sizeof strangers / sizeof strangers[0]);
    assert_serves();
    kit_fini(&d);
}

/* Nothing, half a frame, or a hello and then bytes that stop amid a frame: the first two end at the
 * deadline for the hello, the last one when its connection does. */
TEST(half_said_is_not_waited_for)
{
    receiver_start((kvt_options){.connect_ns = SL_S_NS});
    int silent = plain_connect(kvt_context_address(d.context));
    int half = plain_connect(kvt_context_address(d.context));
    say(half, "KVTS\x01\x01", 6);
    wait_closed(silent);
    wait_closed(half);
    int stops = sender_by_hand();
    say(stops, "KVTS\x01\x01\x00\x00\x10", 9);
    assert_int_equal(shutdown(stops, SHUT_WR), 0);
    wait_closed(stops);
    wait_peers(&d, 0);
    assert_serves();
    kit_fini(&d);
}

/* A stream in single bytes; among its pieces one that nobody expects, as large as any may be. */
TEST(frames_in_bits)
{
    static uint8_t bytes[512];
    kit_end de = {0};
    receiver_start((kvt_options){.name = NULL});
    kit_shape shape = {.blocks = 1, .deadline = in_seconds(60)};
    kvt_nonce nonce = kit_nonce();
    kvt_recv *recv = kit_recv(&d, shape, nonce, &de);
    uint8_t *data = sl_alloc(1, KVT_PIECE_BYTES_MAX, "data");
    for (size_t i = 0; i < KVT_PIECE_BYTES_MAX; i++)
        data[i] = (uint8_t)(i * 31 >> 3);
    int fd = sender_by_hand();
    for (uint32_t group = 0; group < KIT_GROUPS; group++) {
        kvt_message unknown = {.type = KVT_MESSAGE_PIECE, .nonce = kit_nonce()}, answer;
        unknown.piece.bytes = KVT_PIECE_BYTES_MAX;
        say(fd, bytes, frame_of(&unknown, bytes, sizeof bytes));
        say(fd, data, KVT_PIECE_BYTES_MAX);
        kvt_message head = piece_head(nonce, group, data);
        size_t size = frame_of(&head, bytes, sizeof bytes);
        for (size_t i = 0; i < size; i++)
            say(fd, bytes + i, 1);
        for (size_t i = 0; i < d.slices[group].bytes; i += i < 200 ? 1 : 1000) {
            uint64_t left = d.slices[group].bytes - i;
            say(fd, data + i, i < 200 ? 1 : left < 1000 ? left : 1000);
        }
        hear(fd, &answer);
        assert_int_equal(answer.type, KVT_MESSAGE_REVOKE);
        hear(fd, &answer);
        assert_int_equal(answer.type, KVT_MESSAGE_ACK);
        assert_int_equal(answer.ack.entries[0].result, KVT_RESULT_VERIFIED);
        assert_memory_equal(kit_page(&d, 0) + d.slices[group].offset, data, d.slices[group].bytes);
    }
    assert_int_equal(stats_of(&d).pieces_refused, KIT_GROUPS);
    close(fd);
    kit_wait(only_d, 1, &de.closed, 1);
    assert_int_equal(de.code, SL_UNAVAILABLE);
    kvt_recv_release(recv);
    sl_free(data);
    kit_fini(&d);
}

/* The connection breaks amid a piece: the transfer ends, and its page is never written again. */
TEST(reset_amid_a_piece)
{
    static const struct linger at_once = {.l_onoff = 1, .l_linger = 0};
    static uint8_t bytes[256], data[PAGE_BYTES];
    kit_end de = {0};
    receiver_start((kvt_options){.name = NULL});
    kit_shape shape = {.blocks = 1, .deadline = in_seconds(60)};
    kvt_nonce nonce = kit_nonce();
    kvt_recv *recv = kit_recv(&d, shape, nonce, &de);
    int fd = sender_by_hand();
    kvt_message head = piece_head(nonce, 0, data);
    memset(data, 0x77, sizeof data);
    say(fd, bytes, frame_of(&head, bytes, sizeof bytes));
    say(fd, data, 50000);
    sl_time_ns give_up = sl_now_ns() + KIT_WAIT_NS;
    while (stats_of(&d).requests_open == 0)
        assert_true(sl_now_ns() < give_up);
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close(fd);
    kit_wait(only_d, 1, &de.closed, 1);
    assert_int_equal(de.code, SL_UNAVAILABLE);
    assert_text_contains(de.text, "connection lost");
    kit_assert_rest(&d);
    kvt_recv_release(recv);
    kit_fini(&d);
}

/* A sender that stops amid a piece, D's deadline, and the rest of the piece after that. */
TEST(late_bytes_land_nowhere)
{
    static uint8_t bytes[256], data[PAGE_BYTES], before[PAGE_BYTES];
    kit_end de = {0};
    receiver_start((kvt_options){.close_grace_ns = 20 * SL_MS_NS});
    kit_shape shape = {.blocks = 1, .deadline = in_seconds(1)};
    kvt_nonce nonce = kit_nonce();
    kvt_recv *recv = kit_recv(&d, shape, nonce, &de);
    int fd = sender_by_hand();
    kvt_message head = piece_head(nonce, 0, data);
    say(fd, bytes, frame_of(&head, bytes, sizeof bytes));
    say(fd, data, 1000);
    kit_wait(only_d, 1, &de.closed, 1);
    assert_int_equal(de.code, SL_DEADLINE);
    kit_fill(&d, 9); /* the pages are ours again */
    memcpy(before, d.memory, sizeof before);
    say(fd, data + 1000, sizeof data - 1000);
    wait_closed(fd);
    assert_memory_equal(d.memory, before, sizeof before);
    kvt_recv_release(recv);
    kit_assert_rest(&d);
    kit_fini(&d);
}

static int listener_by_hand(char out_address[KVT_ADDRESS_MAX])
{
    int fd;
    sl_err err;
    char bound[SL_ADDRESS_TEXT_MAX];
    assert_ok(sl_net_listen("127.0.0.1:0", false, &fd, bound, &err), &err);
    snprintf(out_address, KVT_ADDRESS_MAX, "tcp:%.*s", KVT_ADDRESS_MAX - 5, bound);
    assert_int_equal(fcntl(fd, F_SETFL, 0), 0);
    return fd;
}

/* A receiver that says hello and then reads nothing: more is announced than the kernels hold. P
 * ends it by its stall deadline, with every request answered. */
TEST(a_receiver_that_does_not_read)
{
    char address[KVT_ADDRESS_MAX];
    uint8_t bytes[256];
    kit_side p;
    kit_end pe = {0};
    kvt_message hello, answer = {.type = KVT_MESSAGE_HELLO_ACK};
    int listener = listener_by_hand(address), small = 4096;
    setsockopt(listener, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    kit_memory(&p, 64, PAGE_BYTES);
    kit_create(&p, (kvt_options){.name = "p0",
                                 .transport = KVT_TRANSPORT_TCP,
                                 .window_bytes = 16 << 20,
                                 .stall_ns = 300 * SL_MS_NS});
    kit_shape shape = {.blocks = 64, .deadline = in_seconds(60)};
    kvt_send *send = kit_send(&p, shape, address, kit_nonce(), &pe);
    kit_announce_all(&p, send, shape);
    int fd = accept(listener, NULL, NULL);
    assert_true(fd >= 0);
    hear(fd, &hello);
    assert_int_equal(hello.type, KVT_MESSAGE_HELLO);
    answer.hello = (kvt_hello){.version = KVT_WIRE_VERSION, .incarnation = 1, .name = "hand"};
    say(fd, bytes, frame_of(&answer, bytes, sizeof bytes));
    kit_wait((kit_side *const[]){&p}, 1, &pe.closed, 1);
    assert_int_equal(pe.code, SL_UNAVAILABLE);
    assert_text_contains(pe.text, "stalled");
    kvt_send_release(send);
    kit_assert_rest(&p);
    wait_peers(&p, 0);
    close(fd);
    close(listener);
    kit_fini(&p);
}

/* A listener that is not one of us answers something else. */
TEST(a_receiver_that_is_none)
{
    char address[KVT_ADDRESS_MAX];
    kit_side p;
    kit_end pe = {0};
    int listener = listener_by_hand(address);
    kit_memory(&p, 1, 4096);
    kit_create(&p, (kvt_options){.name = "p0", .transport = KVT_TRANSPORT_TCP});
    kvt_send *send =
        kit_send(&p, (kit_shape){.deadline = in_seconds(60)}, address, kit_nonce(), &pe);
    int fd = accept(listener, NULL, NULL);
    say(fd, "SSH-2.0-OpenSSH_9.2\r\n", 21);
    kit_wait((kit_side *const[]){&p}, 1, &pe.closed, 1);
    assert_int_equal(pe.code, SL_INVALID);
    assert_text_contains(pe.text, "no kvtransfer of the tcp transport");
    kvt_send_release(send);
    close(fd);
    close(listener);
    kit_fini(&p);
}

/* Either way round it is said at once, and what to do. */
TEST(both_ends_must_have_the_same_transport)
{
    for (int sender_tcp = 0; sender_tcp < 2; sender_tcp++) {
        kit_side p;
        kit_end pe = {0};
        kvt_transport_kind kinds[2] = {KVT_TRANSPORT_UCX, KVT_TRANSPORT_TCP};
        kit_memory(&p, 1, 4096);
        kit_memory(&d, 1, 4096);
        kit_create(&p, (kvt_options){.name = "p0", .transport = kinds[sender_tcp]});
        kit_create(&d, (kvt_options){
                           .name = "d0", .listen = "127.0.0.1:0", .transport = kinds[!sender_tcp]});
        kit_shape shape = {.deadline = in_seconds(60)};
        kvt_send *send = kit_send(&p, shape, kvt_context_address(d.context), kit_nonce(), &pe);
        kit_wait((kit_side *const[]){&p, &d}, 2, &pe.closed, 1);
        assert_int_equal(pe.code, SL_INCOMPATIBLE);
        assert_text_contains(pe.text, "give both the same");
        kvt_send_release(send);
        kit_fini(&p);
        kit_fini(&d);
    }
}

/* UCX itself on the port, as by an address that lost its scheme: it hears an end, not silence. */
TEST(ucx_on_the_port_is_turned_away)
{
    kit_side p;
    kit_end pe = {0};
    receiver_start((kvt_options){.name = NULL});
    kit_memory(&p, 1, 4096);
    kit_create(&p, (kvt_options){.name = "p0", .connect_ns = KIT_WAIT_NS});
    kit_shape shape = {.deadline = sl_now_ns() + 2 * KIT_WAIT_NS};
    kvt_send *send =
        kit_send(&p, shape, kit_listen_text(kvt_context_address(d.context)), kit_nonce(), &pe);
    kit_wait((kit_side *const[]){&p, &d}, 2, &pe.closed, 1);
    assert_int_equal(pe.code, SL_UNAVAILABLE);
    kvt_send_release(send);
    wait_peers(&d, 0);
    assert_int_equal(stats_of(&d).messages_invalid, 1);
    kit_fini(&p);
    assert_serves();
    kit_fini(&d);
}

/* As many connections as there are places; the next one is turned away, later ones are not. */
TEST(a_full_table_turns_away)
{
    static int fds[KVT_PEERS_MAX];
    receiver_start((kvt_options){.connect_ns = KIT_WAIT_NS});
    for (uint32_t i = 0; i < KVT_PEERS_MAX; i++)
        fds[i] = plain_connect(kvt_context_address(d.context));
    wait_peers(&d, KVT_PEERS_MAX);
    wait_closed(plain_connect(kvt_context_address(d.context)));
    for (uint32_t i = 0; i < KVT_PEERS_MAX; i++)
        close(fds[i]);
    wait_peers(&d, 0);
    assert_serves();
    kit_fini(&d);
}

/* The process has no descriptor left: callers are turned away at once, and welcome afterwards. */
TEST(no_descriptor_left)
{
    struct rlimit limit, none;
    receiver_start((kvt_options){.name = NULL});
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    int last = plain_connect(kvt_context_address(d.context));
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    wait_peers(&d, 1);
    none = limit;
    none.rlim_cur = (rlim_t)fd + 1; /* and every number below it is taken: */
    int filled[256], count = 0;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    while (count < 256 && (filled[count] = dup(last)) >= 0)
        count++;
    struct sockaddr_storage to;
    socklen_t size;
    sl_err err;
    assert_ok(
        sl_net_resolve(kit_listen_text(kvt_context_address(d.context)), false, &to, &size, &err),
        &err);
    assert_int_equal(connect(fd, (struct sockaddr *)&to, size), 0);
    wait_closed(fd);
    while (count > 0)
        close(filled[--count]);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    close(last);
    wait_peers(&d, 0);
    assert_serves();
    kit_fini(&d);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(strangers_are_turned_away),
    cmocka_unit_test(half_said_is_not_waited_for),
    cmocka_unit_test(frames_in_bits),
    cmocka_unit_test(reset_amid_a_piece),
    cmocka_unit_test(late_bytes_land_nowhere),
    cmocka_unit_test(a_receiver_that_does_not_read),
    cmocka_unit_test(a_receiver_that_is_none),
    cmocka_unit_test(both_ends_must_have_the_same_transport),
    cmocka_unit_test(ucx_on_the_port_is_turned_away),
    cmocka_unit_test(a_full_table_turns_away),
    cmocka_unit_test(no_descriptor_left),
};

int main(int argc, char **argv)
{
    kit_main(argv); /* one test has a side with UCX */
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (failed == 0 && sl_alloc_live() != 0) {
        fprintf(stderr, "%llu allocations are left\n", (unsigned long long)sl_alloc_live());
        failed = 1;
    }
    return failed;
}
