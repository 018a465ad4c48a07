/* The stream of the tcp transport without a socket: any way of cutting it into calls gives the same
 * messages, the same bytes in the same pages, and each request finished with its last byte. */
#include "kvtransfer/stream.h"
#include "kvtransfer/core.h"
#include "tests/unit/kvtransfer/kit_net.h"

enum { STREAM_MAX = 1 << 20 };

/* ---- a stream of bytes, as a sender writes it */

typedef struct text {
    uint8_t bytes[STREAM_MAX];
    size_t size;
} text;

static void text_frame(text *t, kvt_frame frame)
{
    assert_true(t->size + KVT_WIRE_FRAME_SIZE <= STREAM_MAX);
    kvt_wire_pack_frame(&frame, t->bytes + t->size);
    t->size += KVT_WIRE_FRAME_SIZE;
}

static void text_add(text *t, const void *data, size_t size)
{
    assert_true(t->size + size <= STREAM_MAX);
    memcpy(t->bytes + t->size, data, size);
    t->size += size;
}

static void text_message(text *t, const kvt_message *message)
{
    static uint8_t packed[KVT_WIRE_MESSAGE_MAX];
    size_t size = kvt_wire_pack(message, packed, sizeof packed);
    assert_true(size > 0);
    text_frame(t, (kvt_frame){KVT_FRAME_MESSAGE, 0, size});
    text_add(t, packed, size);
}

static void text_piece(text *t, kvt_nonce nonce, kvt_piece_head head, const void *data)
{
    uint8_t packed[KVT_WIRE_PIECE_SIZE];
    kvt_message message = {.type = KVT_MESSAGE_PIECE, .nonce = nonce, .piece = head};
    assert_int_equal(kvt_wire_pack(&message, packed, sizeof packed), sizeof packed);
    text_frame(t, (kvt_frame){KVT_FRAME_PIECE, KVT_WIRE_PIECE_SIZE, head.bytes});
    text_add(t, packed, sizeof packed);
    text_add(t, data, head.bytes);
}

/* ---- D, to whom it comes: connected by the in-process network, fed by hand */

typedef struct fed {
    net n;
    pair t;
    kvt_inflow in;
    uint8_t ahead[KVT_TCP_AHEAD_BYTES];
    uint64_t random;
} fed;

static kvt_peer *peer_of(kvt_core *core)
{
    for (uint32_t i = 0; i < KVT_PEERS_MAX; i++) {
        if (core->peers[i].state == KVT_PEER_READY)
            return &core->peers[i];
    }
    fail_msg("no connection is ready");
    return NULL;
}

static void fed_start(fed *f, uint64_t seed)
{
    net_start(&f->n, seed, 8);
    f->random = seed * 0x9e3779b97f4a7c15ull + 1;
    pair_open(&f->n, &f->t, shape_of(&f->n, 8));
    net_run(&f->n, f->n.now + SL_MS_NS, NULL);
    kvt_inflow_init(&f->in, peer_of(f->t.recv->core), f->ahead);
}

static void fed_stop(fed *f)
{
    kvt_inflow_end(&f->in);
    kvt_send_cancel(f->t.send);
    net_run(&f->n, f->n.now + 5 * SL_S_NS, &f->t.pe.closed);
    kvt_recv_revoke(f->t.recv);
    net_run(&f->n, f->n.now + 5 * SL_S_NS, &f->t.de.closed);
    pair_release(&f->t);
    net_stop(&f->n);
}

static uint64_t dice(fed *f, uint64_t sides)
{
    f->random ^= f->random << 13;
    f->random ^= f->random >> 7;
    f->random ^= f->random << 17;
    return f->random % sides;
}

/* One call that brings at most `cut` bytes; returns how many. */
static size_t fed_call(fed *f, const uint8_t *bytes, size_t left, size_t cut)
{
    struct iovec parts[2];
    uint64_t skip = kvt_inflow_skip(&f->in);
    size_t count = skip > 0 ? 0 : kvt_inflow_parts(&f->in, parts), brought = 0;
    if (cut > left)
        cut = left;
    if (skip > 0)
        brought = skip < cut ? (size_t)skip : cut;
    for (size_t i = 0; i < count; i++) {
        assert_true(parts[i].iov_len > 0);
        size_t size = parts[i].iov_len < cut - brought ? parts[i].iov_len : cut - brought;
        memcpy(parts[i].iov_base, bytes + brought, size);
        brought += size;
    }
    kvt_inflow_took(&f->in, brought);
    kvt_fake_step(f->n.fake, f->n.now); /* the core acts, as between two turns of the transport */
    return brought;
}

static void fed_all(fed *f, const text *t, size_t cut_max)
{
    size_t at = 0;
    while (at < t->size && !f->in.failed)
        at += fed_call(f, t->bytes + at, t->size - at, 1 + dice(f, cut_max));
}

/* Block 3 + row, group: announced as number row * KIT_GROUPS + group. */
static void text_page(text *t, fed *f, uint32_t row, uint32_t group)
{
    const kvt_piece_slice *slice = &f->n.p.slices[group];
    const uint8_t *data = kit_page(&f->n.p, row) + slice->offset;
    kvt_piece_head head = {
        .ordinal = row * KIT_GROUPS + group,
        .block = 3 + row,
        .group = (uint16_t)group,
        .bytes = slice->bytes,
        .sum = sl_sum64(KIT_KEY, kvt_sum_tweak(3 + row, group), data, slice->bytes)};
    text_piece(t, f->t.nonce, head, data);
}

TEST(any_cut_gives_the_same)
{
    static text t;
    static fed f;
    static const size_t cuts[] = {1, 2, 15, 17, 63, 65, 500, 5000, 100000, STREAM_MAX};
    static uint8_t payload[KVT_PAYLOAD_MAX];
    for (size_t i = 0; i < sizeof cuts / sizeof cuts[0]; i++) {
        t.size = 0;
        fed_start(&f, i + 1);
        kvt_message commit = {.type = KVT_MESSAGE_COMMIT, .nonce = f.t.nonce};
        commit.commit = (kvt_commit_head){.payload = {payload, sizeof payload}};
        text_message(&t, &commit); /* the largest message there is */
        for (uint32_t row = 0; row < 8; row++) {
            for (uint32_t group = 0; group < KIT_GROUPS; group++) {
                kvt_piece_head unknown = {.bytes = 1 + dice(&f, 3000)};
                text_page(&t, &f, row, group);
                text_piece(&t, kit_nonce(), unknown, f.n.p.memory);
            }
        }
        commit.commit =
            (kvt_commit_head){.sequence = 1, .pieces = 8 * KIT_GROUPS, .tokens = 9, .final = true};
        text_message(&t, &commit);
        fed_all(&f, &t, cuts[i]);
        assert_false(f.in.failed);
        assert_int_equal(f.in.left, 0);
        net_run(&f.n, f.n.now + SL_S_NS, &f.t.de.closed);
        assert_string_equal(f.t.de.text, "");
        assert_int_equal(f.t.de.commits, 2);
        assert_int_equal(f.t.de.tokens, 9);
        assert_true(kit_equal(&f.n.p, &f.n.d));
        kvt_stats stats;
        kvt_stats_get(f.n.d.context, &stats);
        assert_int_equal(stats.pieces_received, 8 * KIT_GROUPS);
        assert_int_equal(stats.pieces_refused, 8 * KIT_GROUPS);
        fed_stop(&f);
    }
}

/* What is read ahead of a large piece's end is a frame at most, so that the next piece's payload
 * is not copied; and payload goes where the piece goes. */
TEST(large_pieces_go_straight_into_their_page)
{
    static fed f;
    struct iovec parts[2];
    uint8_t *page = f.ahead; /* any memory: nothing is written here */
    fed_start(&f, 30);
    assert_int_equal(kvt_inflow_parts(&f.in, parts), 1);
    assert_int_equal(parts[0].iov_len, KVT_TCP_AHEAD_BYTES);
    f.in.large = true;
    assert_int_equal(kvt_inflow_parts(&f.in, parts), 1);
    assert_int_equal(parts[0].iov_len, KVT_WIRE_FRAME_SIZE + KVT_WIRE_PIECE_SIZE);
    kvt_request request = {.peer = f.in.peer};
    f.in.taken = &request;
    f.in.page = page;
    f.in.left = 403456;
    assert_int_equal(kvt_inflow_parts(&f.in, parts), 2);
    assert_ptr_equal(parts[0].iov_base, page);
    assert_int_equal(parts[0].iov_len, 403456);
    assert_int_equal(parts[1].iov_len, KVT_WIRE_FRAME_SIZE + KVT_WIRE_PIECE_SIZE);
    f.in.left = KVT_PIECE_BYTES_MAX; /* one call does not read without end */
    assert_int_equal(kvt_inflow_parts(&f.in, parts), 1);
    assert_int_equal(parts[0].iov_len, KVT_TCP_CALL_BYTES);
    f.in.taken = NULL;
    assert_int_equal(kvt_inflow_skip(&f.in), KVT_TCP_CALL_BYTES);
    f.in.left = 0;
    fed_stop(&f);
}

/* A frame that cannot be ends the stream; what stands behind it is not looked at. */
TEST(malformed_frames_end_the_stream)
{
    static const struct {
        size_t at;
        uint8_t value;
        const char *text;
    } wrong[] = {{0, 'G', "no kvtransfer"},  {3, 0, "no kvtransfer"},    {4, 9, "another version"},
                 {5, 0, "no known kind"},    {5, 3, "no known kind"},    {6, 1, "no possible size"},
                 {7, 1, "no possible size"}, {15, 1, "no possible size"}};
    static fed f;
    static text t;
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        kvt_stats stats;
        t.size = 0;
        fed_start(&f, 40 + i);
        text_frame(&t, (kvt_frame){KVT_FRAME_MESSAGE, 0, 1});
        t.bytes[wrong[i].at] = wrong[i].value;
        text_page(&t, &f, 0, 0);
        fed_all(&f, &t, 7);
        assert_true(f.in.failed);
        kvt_stats_get(f.n.d.context, &stats);
        assert_int_equal(stats.messages_invalid, 1);
        assert_int_equal(stats.pieces_received, 0);
        assert_text_contains(f.in.peer->text, wrong[i].text);
        fed_stop(&f);
    }
}

TEST(frames_have_bounds)
{
    uint8_t data[KVT_WIRE_FRAME_SIZE];
    const uint64_t piece = KVT_PIECE_BYTES_MAX, message = KVT_WIRE_MESSAGE_MAX;
    const struct {
        kvt_frame frame;
        bool fine;
    } cases[] = {{{KVT_FRAME_PIECE, KVT_WIRE_PIECE_SIZE, piece}, true},
                 {{KVT_FRAME_PIECE, KVT_WIRE_PIECE_SIZE, 1}, true},
                 {{KVT_FRAME_PIECE, KVT_WIRE_PIECE_SIZE, piece + 1}, false},
                 {{KVT_FRAME_PIECE, KVT_WIRE_PIECE_SIZE, 0}, false},
                 {{KVT_FRAME_PIECE, 0, 1}, false},
                 {{KVT_FRAME_MESSAGE, 0, message}, true},
                 {{KVT_FRAME_MESSAGE, 0, message + 1}, false},
                 {{KVT_FRAME_MESSAGE, 0, 0}, false},
                 {{KVT_FRAME_MESSAGE, 1, 1}, false},
                 {{KVT_FRAME_MESSAGE, 0, UINT64_MAX}, false}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        kvt_frame out;
        kvt_wire_pack_frame(&cases[i].frame, data);
        assert_int_equal(kvt_wire_parse_frame(data, &out) == NULL, cases[i].fine);
        assert_int_equal(out.kind, cases[i].frame.kind);
        assert_int_equal(out.bytes, cases[i].frame.bytes);
    }
}

/* ---- what goes */

enum { PIECES = 20, MESSAGES = 6 };

typedef struct sending {
    kvt_core core; /* only its list of finished requests is used */
    kvt_peer peer;
    kvt_outflow out;
    kvt_request pieces[PIECES], messages[MESSAGES];
    uint8_t data[PIECES][3000];
    uint8_t words[MESSAGES][40];
    uint8_t written[STREAM_MAX];
    size_t written_size;
} sending;

static void sending_start(sending *s)
{
    memset(s, 0, sizeof *s);
    s->peer.core = &s->core;
    kvt_outflow_init(&s->out);
    for (uint32_t i = 0; i < PIECES; i++) {
        s->pieces[i].peer = &s->peer;
        memset(s->data[i], (int)(100 + i), sizeof s->data[i]);
    }
    for (uint32_t i = 0; i < MESSAGES; i++) {
        s->messages[i].peer = &s->peer;
        memset(s->words[i], (int)(1 + i), sizeof s->words[i]);
    }
}

static void sending_piece(sending *s, uint32_t i)
{
    uint8_t head[KVT_WIRE_PIECE_SIZE];
    memset(head, (int)(200 + i), sizeof head);
    kvt_outflow_piece(&s->out, (sl_span){head, sizeof head}, s->data[i], sizeof s->data[i],
                      &s->pieces[i]);
}

static void sending_message(sending *s, uint32_t i)
{
    kvt_outflow_message(&s->out, (sl_span){s->words[i], sizeof s->words[i]}, &s->messages[i]);
}

/* The kernel takes at most `cut` bytes of what is named to it. */
static void sending_call(sending *s, size_t cut, size_t capacity)
{
    struct iovec parts[KVT_TCP_PARTS_MAX];
    size_t count = kvt_outflow_parts(&s->out, parts, capacity), taken = 0;
    assert_true(count <= capacity);
    for (size_t i = 0; i < count && taken < cut; i++) {
        size_t size = parts[i].iov_len < cut - taken ? parts[i].iov_len : cut - taken;
        assert_true(s->written_size + size <= STREAM_MAX);
        memcpy(s->written + s->written_size, parts[i].iov_base, size);
        s->written_size += size;
        taken += size;
    }
    kvt_outflow_took(&s->out, taken);
}

/* The frames as written: m and p with their numbers. */
static void sending_order(const sending *s, char *out, size_t size)
{
    size_t at = 0, length = 0;
    out[0] = 0;
    while (at < s->written_size) {
        kvt_frame frame;
        assert_null(kvt_wire_parse_frame(s->written + at, &frame));
        at += KVT_WIRE_FRAME_SIZE;
        bool piece = frame.kind == KVT_FRAME_PIECE;
        uint8_t first = s->written[at + frame.head_size];
        assert_int_equal(frame.bytes, piece ? 3000 : 40);
        for (size_t i = 0; i < frame.head_size; i++)
            assert_int_equal(s->written[at + i], 200 + first - 100);
        for (size_t i = 0; i < frame.bytes; i++)
            assert_int_equal(s->written[at + frame.head_size + i], first);
        at += frame.head_size + frame.bytes;
        length += (size_t)snprintf(out + length, size - length, "%c%d ", piece ? 'p' : 'm',
                                   piece ? first - 100 : first - 1);
    }
    assert_int_equal(at, s->written_size);
}

TEST(messages_overtake_pieces_at_a_frame)
{
    static sending s;
    char order[400];
    sending_start(&s);
    for (uint32_t i = 0; i < 3; i++)
        sending_piece(&s, i);
    sending_call(&s, 10, KVT_TCP_PARTS_MAX); /* amid the first piece's frame */
    sending_message(&s, 0);
    sending_message(&s, 1);
    assert_false(s.pieces[0].answered);
    sending_call(&s, STREAM_MAX, KVT_TCP_PARTS_MAX);
    sending_order(&s, order, sizeof order);
    assert_string_equal(order, "p0 m0 m1 p1 p2 ");
    assert_true(kvt_outflow_empty(&s.out));
    sending_message(&s, 2);
    sending_call(&s, 20, KVT_TCP_PARTS_MAX); /* amid a message */
    sending_message(&s, 3);
    sending_piece(&s, 3);
    sending_call(&s, STREAM_MAX, KVT_TCP_PARTS_MAX);
    sending_order(&s, order, sizeof order);
    assert_string_equal(order, "p0 m0 m1 p1 p2 m2 m3 p3 ");
    assert_int_equal(s.pieces[3].code, SL_OK);
}

TEST(any_cut_sends_the_same)
{
    static sending s;
    char order[400];
    for (size_t cut = 1; cut < 9000; cut = cut * 3 + 1) {
        for (size_t capacity = 2; capacity <= 16; capacity *= 2) {
            sending_start(&s);
            for (uint32_t i = 0; i < PIECES; i++)
                sending_piece(&s, i);
            while (!kvt_outflow_empty(&s.out)) {
                size_t whole = s.written_size / 3064; /* pieces of which all is written */
                if (whole > 0)
                    assert_true(s.pieces[whole - 1].answered);
                assert_true(whole == PIECES || !s.pieces[whole].answered);
                sending_call(&s, cut, capacity);
            }
            sending_order(&s, order, sizeof order);
            assert_string_equal(order, "p0 p1 p2 p3 p4 p5 p6 p7 p8 p9 p10 p11 p12 p13 p14 p15 p16 "
                                       "p17 p18 p19 ");
        }
    }
}

TEST(an_ended_connection_answers_all)
{
    static sending s;
    sending_start(&s);
    for (uint32_t i = 0; i < 5; i++)
        sending_piece(&s, i);
    sending_call(&s, 4000, KVT_TCP_PARTS_MAX);
    sending_message(&s, 0);
    kvt_outflow_end(&s.out);
    assert_true(kvt_outflow_empty(&s.out));
    assert_int_equal(s.pieces[0].code, SL_OK);
    for (uint32_t i = 1; i < 5; i++) {
        assert_true(s.pieces[i].answered);
        assert_int_equal(s.pieces[i].code, SL_UNAVAILABLE);
    }
    assert_int_equal(s.messages[0].code, SL_UNAVAILABLE);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(any_cut_gives_the_same),
    cmocka_unit_test(large_pieces_go_straight_into_their_page),
    cmocka_unit_test(malformed_frames_end_the_stream),
    cmocka_unit_test(frames_have_bounds),
    cmocka_unit_test(messages_overtake_pieces_at_a_frame),
    cmocka_unit_test(any_cut_sends_the_same),
    cmocka_unit_test(an_ended_connection_answers_all),
};

TEST_MAIN(tests)
