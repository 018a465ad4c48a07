/* Servers that die or stop: children, forked before this process first touches gRPC. */
#include "tests/unit/rpc/harness.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct child {
    pid_t pid;
    char address[SL_ADDRESS_TEXT_MAX];
} child;

static child to_kill, to_stop;

static void ignore_call(void *context, rpc_server_call *call, const ProtobufCMessage *request)
{
    (void)context;
    (void)call;
    (void)request;
}

static void child_main(int out)
{
    sl_loop *l;
    rpc_runtime *r;
    rpc_server *s;
    rpc_handler handlers[] = {{&rpc_method_decode_serve, ignore_call, NULL},
                              {&rpc_method_node_get_status, ignore_call, NULL}};
    rpc_server_options options = {
        .listen = "127.0.0.1:0", .handlers = handlers, .handler_count = 2};
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (!sl_is_ok(sl_loop_create(&l, NULL)) || !sl_is_ok(rpc_runtime_create(l, &r, NULL)) ||
        !sl_is_ok(rpc_server_create(r, &options, &s, NULL)))
        _exit(1);
    const char *address = rpc_server_address(s);
    if (write(out, address, strlen(address) + 1) < 0)
        _exit(1);
    sl_loop_run(l);
    _exit(0);
}

static int start_child(child *c)
{
    int fds[2];
    if (pipe(fds) != 0)
        return -1;
    c->pid = fork();
    if (c->pid == 0)
        child_main(fds[1]);
    close(fds[1]);
    ssize_t got = read(fds[0], c->address, sizeof(c->address) - 1);
    close(fds[0]);
    return got > 0 ? 0 : -1;
}

static void reap(child *c)
{
    kill(c->pid, SIGKILL);
    waitpid(c->pid, NULL, 0);
}

typedef struct view {
    int opened, ends;
    sl_err err;
} view;

static void on_message(void *context, const ProtobufCMessage *message)
{
    (void)context;
    (void)message;
}

static void on_open(void *context)
{
    ((view *)context)->opened++;
}

static void on_end(void *context, const sl_err *why)
{
    view *v = context;
    v->ends++;
    v->err = *why;
}

static const rpc_stream_events EVENTS = {
    .on_message = on_message, .on_open = on_open, .on_end = on_end};

static void stream_then(child *c, int signal_number)
{
    rpc_channel *channel = make_channel(c->address);
    view v = {0};
    rpc_call *call;
    assert_ok(
        rpc_stream_open(channel, &rpc_method_decode_serve, NULL, NULL, &EVENTS, &v, &call, &err),
        &err);
    outcome out = {0};
    Sluice__V1__NodeStatusRequest request = SLUICE__V1__NODE_STATUS_REQUEST__INIT;
    assert_ok(rpc_unary(channel, &rpc_method_node_get_status, &request.base, NULL, on_done_status,
                        &out, NULL, &err),
              &err);
    wait_for(v.opened);
    assert_int_equal(kill(c->pid, signal_number), 0);
    wait_for(v.ends && out.ends);
    assert_int_equal(v.err.code, SL_UNAVAILABLE);
    assert_int_equal(out.err.code, SL_UNAVAILABLE);
    assert_text_contains(v.err.text, c->address);
    rpc_channel_destroy(channel);
}

TEST(server_killed)
{
    stream_then(&to_kill, SIGKILL);
}

/* Nothing closes: keepalive finds it. */
TEST(server_stopped)
{
    stream_then(&to_stop, SIGSTOP);
}

static const struct CMUnitTest TESTS[] = {
    RPC_TEST(server_killed),
    RPC_TEST(server_stopped),
};

int main(void)
{
    if (start_child(&to_kill) != 0 || start_child(&to_stop) != 0) {
        fprintf(stderr, "cannot start the children\n");
        return 1;
    }
    int failed = cmocka_run_group_tests_name(__FILE__, TESTS, NULL, NULL);
    reap(&to_kill);
    reap(&to_stop);
    return failed || sl_alloc_live() != 0;
}
