/* Seeded random traffic: calls opened, written, paused, cancelled and dropped on both sides, in any
 * order. Each call must end exactly once, and nothing may be left. Meant for the sanitizers.
 * RPC_CHAOS_SEED and RPC_CHAOS_ROUNDS choose another run. */
#include "tests/unit/rpc/harness.h"

#define CLIENTS 24
#define SERVERS 64

static uint64_t seed_state;

static uint32_t pick(uint32_t below)
{
    seed_state = seed_state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(seed_state >> 33) % below;
}

/* ---- server ---- */

typedef struct slot {
    rpc_server_call *call;
} slot;

static slot slots[SERVERS];
static int server_open, server_calls;

static void act_on_server_call(rpc_server_call *call);

static void on_server_message(void *context, rpc_server_call *call, const ProtobufCMessage *message)
{
    (void)context;
    (void)message;
    act_on_server_call(call);
}

static void on_server_event(void *context, rpc_server_call *call)
{
    (void)context;
    act_on_server_call(call);
}

static void on_server_closed(void *context, rpc_server_call *call, bool cancelled)
{
    slot *s = context;
    (void)cancelled;
    assert_ptr_equal(s->call, call);
    s->call = NULL;
    server_open--;
}

static void write_reply(rpc_server_call *call)
{
    const rpc_method *method = rpc_server_call_method(call);
    sl_status status;
    if (method->kind == RPC_BIDI) {
        Sluice__V1__DecodeMessage reply = SLUICE__V1__DECODE_MESSAGE__INIT;
        status = rpc_server_call_write(call, &reply.base);
    } else {
        Sluice__V1__PrefillEvent reply = SLUICE__V1__PREFILL_EVENT__INIT;
        status = rpc_server_call_write(call, &reply.base);
    }
    assert_true(status.code == SL_OK || status.code == SL_FULL || status.code == SL_CANCELLED);
}

static void act_on_server_call(rpc_server_call *call)
{
    const rpc_method *method = rpc_server_call_method(call);
    bool unary = method->kind == RPC_UNARY;
    switch (pick(20)) {
    case 0:
        rpc_server_call_finish(call, SL_FULL, "chaos");
        break;
    case 1:
        rpc_server_call_cancel(call);
        break;
    case 2:
        if (!unary)
            rpc_server_call_finish(call, SL_OK, NULL);
        break;
    case 3:
    case 4:
        if (method->kind == RPC_BIDI)
            rpc_server_call_pause(call, pick(2));
        break;
    case 5:
    case 6:
        if (unary) {
            Sluice__V1__NodeStatus reply = SLUICE__V1__NODE_STATUS__INIT;
            rpc_server_call_reply(call, &reply.base);
        }
        break;
    default:
        for (uint32_t i = pick(20); !unary && i > 0; i--)
            write_reply(call);
    }
}

static void on_call(void *context, rpc_server_call *call, const ProtobufCMessage *request)
{
    static const rpc_server_call_events EVENTS = {on_server_message, on_server_event,
                                                  on_server_event, on_server_closed};
    (void)context;
    (void)request;
    for (int i = 0; i < SERVERS; i++) {
        if (slots[i].call)
            continue;
        slots[i].call = call;
        server_open++;
        server_calls++;
        rpc_server_call_set(call, &EVENTS, &slots[i]);
        act_on_server_call(call);
        return;
    }
    rpc_server_call_finish(call, SL_FULL, "no slot");
}

/* ---- client ---- */

typedef struct client {
    rpc_call *call;
    bool unary, bidi, cancelled;
} client;

static client clients[CLIENTS];
static int begun, ended, dropped;

static void act_on_client(client *c);

static void on_done(void *context, const ProtobufCMessage *reply, const sl_err *why)
{
    client *c = context;
    assert_true((reply != NULL) == (why->code == SL_OK));
    assert_non_null(c->call);
    c->call = NULL;
    ended++;
}

static void on_message(void *context, const ProtobufCMessage *message)
{
    client *c = context;
    (void)message;
    assert_false(c->cancelled);
    act_on_client(c);
}

static void on_event(void *context)
{
    act_on_client(context);
}

static void on_end(void *context, const sl_err *why)
{
    (void)why;
    client *c = context;
    assert_non_null(c->call);
    c->call = NULL;
    ended++;
}

static void cancel(client *c)
{
    c->cancelled = true;
    rpc_call_cancel(c->call);
}

static void act_on_client(client *c)
{
    if (!c->call)
        return;
    switch (pick(40)) {
    case 0:
        cancel(c);
        break;
    case 1:
        rpc_call_drop(c->call);
        c->call = NULL;
        dropped++;
        break;
    case 2:
    case 3:
    case 4:
        if (!c->unary)
            rpc_stream_pause(c->call, pick(3) == 0);
        break;
    case 5:
        if (c->bidi)
            rpc_stream_writes_done(c->call);
        break;
    default:
        for (uint32_t i = pick(10); c->bidi && i > 0; i--) {
            Sluice__V1__RouterMessage message = SLUICE__V1__ROUTER_MESSAGE__INIT;
            sl_status status = rpc_stream_write(c->call, &message.base);
            assert_true(status.code == SL_OK || status.code == SL_FULL ||
                        status.code == SL_UNAVAILABLE);
        }
    }
}

static void begin(client *c, rpc_channel *channel)
{
    static const rpc_stream_events EVENTS = {on_message, on_event, on_event, on_end};
    rpc_call_options options = {.write_messages_max = 4};
    if (pick(3) == 0)
        options.deadline = sl_now_ns() + pick(30) * SL_MS_NS + 1;
    uint32_t kind = pick(3);
    c->unary = kind == 0;
    c->bidi = kind == 1;
    c->cancelled = false;
    begun++;
    if (c->unary) {
        Sluice__V1__NodeStatusRequest request = SLUICE__V1__NODE_STATUS_REQUEST__INIT;
        assert_ok(rpc_unary(channel, &rpc_method_node_get_status, &request.base, &options, on_done,
                            c, &c->call, &err),
                  &err);
    } else if (c->bidi) {
        assert_ok(rpc_stream_open(channel, &rpc_method_decode_serve, NULL, &options, &EVENTS, c,
                                  &c->call, &err),
                  &err);
    } else {
        Sluice__V1__PrefillRequest request = SLUICE__V1__PREFILL_REQUEST__INIT;
        assert_ok(rpc_stream_open(channel, &rpc_method_prefill_run, &request.base, &options,
                                  &EVENTS, c, &c->call, &err),
                  &err);
    }
}

static void count_stop(void *context)
{
    ++*(int *)context;
}

TEST(chaos)
{
    const char *text = getenv("RPC_CHAOS_SEED");
    seed_state = text ? strtoull(text, NULL, 10) : 1;
    text = getenv("RPC_CHAOS_ROUNDS");
    int rounds = text ? atoi(text) : 3000;
    rpc_handler handlers[] = {{&rpc_method_decode_serve, on_call, NULL},
                              {&rpc_method_prefill_run, on_call, NULL},
                              {&rpc_method_node_get_status, on_call, NULL}};
    rpc_server_options options = {
        .listen = "127.0.0.1:0", .handlers = handlers, .handler_count = 3, .write_messages_max = 8};
    rpc_server *server;
    assert_ok(rpc_server_create(runtime, &options, &server, &err), &err);
    rpc_channel *channels[2] = {make_channel(rpc_server_address(server)),
                                make_channel(rpc_server_address(server))};
    for (int round = 0; round < rounds; round++) {
        client *c = &clients[pick(CLIENTS)];
        if (!c->call)
            begin(c, channels[pick(2)]);
        else
            act_on_client(c);
        slot *s = &slots[pick(SERVERS)];
        if (s->call)
            act_on_server_call(s->call);
        sl_loop_run_once(loop, pick(2) ? 1 : 0);
    }
    /* Whoever is left: streams may wait for each other for ever, so one side gives up. */
    for (int i = 0; i < CLIENTS; i++)
        if (clients[i].call)
            cancel(&clients[i]);
    wait_for(begun == ended + dropped);
    wait_for(server_open == 0);
    wait_for(rpc_runtime_live_calls(runtime) == 0);
    int stopped = 0;
    rpc_server_stop(server, sl_now_ns() + 600 * SL_S_NS, count_stop, &stopped);
    wait_for(stopped);
    print_message("%d calls, %d ended, %d dropped, %d reached the server\n", begun, ended, dropped,
                  server_calls);
}

static const struct CMUnitTest TESTS[] = {RPC_TEST(chaos)};
TEST_MAIN(TESTS)
