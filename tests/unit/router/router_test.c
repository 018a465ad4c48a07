/* The router's process object with a real etcd: start, ListMembers, stop, and starts that fail. */
#include "tests/unit/cluster/harness.h"

#include <pthread.h>
#include <stdatomic.h>

#include "base/log.h"
#include "proto/sluice/v1/cluster.pb-c.h"
#include "router/router.h"

#define MODEL "models/demo"

typedef struct running {
    rtr_options options;
    sl_config *config;
    pthread_t thread;
    int exit_code;
    atomic_bool ended;
    char listen[64], control[64];
} running;

/* As the command line would give them. */
static void parse(running *r, const char *etcd_url, const char *model, const char *more)
{
    int exit_code = 0;
    memset(r, 0, sizeof *r);
    snprintf(r->listen, sizeof r->listen, "127.0.0.1:%d", free_port());
    snprintf(r->control, sizeof r->control, "127.0.0.1:%d", free_port());
    char *argv[] = {
        "sluice-router",  "--listen",  r->listen,     "--control",      r->control, "--etcd",
        (char *)etcd_url, "--model",   (char *)model, "--etcd-timeout", "1s",       "--log-level",
        "error",          "--cluster", "router-test", (char *)more};
    int argc = (int)(sizeof argv / sizeof argv[0]) - (more == NULL);
    assert_int_equal(
        sl_config_parse(&RTR_CONFIG_SPEC, argc, argv, &r->options, &r->config, &exit_code),
        SL_CONFIG_RUN);
}

static void *run_thread(void *context)
{
    running *r = context;
    r->exit_code = rtr_run(&r->options);
    atomic_store(&r->ended, true);
    return NULL;
}

/* Runs it here, where it is expected to end by itself. */
static int run_here(const char *etcd_url, const char *model, const char *listen)
{
    running r;
    parse(&r, etcd_url, model, NULL);
    if (listen)
        r.options.listen = listen;
    int exit_code = rtr_run(&r.options);
    sl_config_destroy(r.config);
    return exit_code;
}

typedef struct members {
    int replies;
    sl_code code;
    size_t count;
    bool etcd_connected;
    char name[64], role[16], state[16], control[64];
} members;

static void on_members(void *context, const ProtobufCMessage *base, const sl_err *error)
{
    members *m = context;
    m->replies++;
    m->code = error->code;
    if (!base)
        return;
    const Sluice__V1__ListMembersReply *reply = (const Sluice__V1__ListMembersReply *)base;
    m->count = reply->n_members;
    m->etcd_connected = reply->etcd_connected;
    if (reply->n_members == 0)
        return;
    snprintf(m->name, sizeof m->name, "%s", reply->members[0]->name);
    snprintf(m->role, sizeof m->role, "%s", reply->members[0]->role);
    snprintf(m->state, sizeof m->state, "%s", reply->members[0]->state);
    snprintf(m->control, sizeof m->control, "%s", reply->members[0]->control);
}

static void list(rpc_channel *channel, members *m)
{
    Sluice__V1__ListMembersRequest request = SLUICE__V1__LIST_MEMBERS_REQUEST__INIT;
    rpc_call_options options = {.wait_for_ready = true, .deadline = sl_now_ns() + HANG_GUARD_NS};
    rpc_call *call;
    memset(m, 0, sizeof *m);
    assert_ok(rpc_unary(channel, &rpc_method_cluster_list_members, &request.base, &options,
                        on_members, m, &call, &err),
              &err);
    wait_for(m->replies == 1);
}

/* The status line of GET path. */
static void http_get(const char *address, const char *path, char *out, size_t size)
{
    struct sockaddr_storage to;
    socklen_t to_size;
    char text[256];
    assert_ok(sl_net_resolve(address, false, &to, &to_size, &err), &err);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&to, to_size), 0);
    snprintf(text, sizeof text, "GET %s HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", path);
    assert_int_equal(send(fd, text, strlen(text), MSG_NOSIGNAL), (ssize_t)strlen(text));
    size_t got = 0;
    ssize_t n;
    while (got + 1 < size && (n = recv(fd, out + got, size - 1 - got, 0)) > 0)
        got += (size_t)n;
    out[got] = 0;
    close(fd);
}

TEST(starts_registers_and_stops)
{
    running r;
    members m;
    rpc_channel *channel;
    char reply[8192];
    NEED_ETCD();
    etcd_start(&etcd);
    assert_ok(sl_loop_create(&loop, &err), &err);
    assert_ok(rpc_runtime_create(loop, &runtime, &err), &err);
    parse(&r, etcd.url, MODEL, "--threads=2");
    r.options.etcd_timeout_ns = HANG_GUARD_NS;
    assert_int_equal(pthread_create(&r.thread, NULL, run_thread, &r), 0);
    assert_ok(rpc_channel_create(runtime, r.control, NULL, &channel, &err), &err);
    do {
        list(channel, &m); /* UNAVAILABLE until the view is there */
        assert_false(atomic_load(&r.ended));
    } while (m.count == 0);
    assert_true(m.etcd_connected);
    assert_string_equal(m.role, "router");
    assert_string_equal(m.state, "ready");
    assert_string_equal(m.control, r.control);
    assert_memory_equal(m.name, "router-", 7);
    http_get(r.listen, "/health", reply, sizeof reply);
    assert_text_contains(reply, "HTTP/1.1 200 ");
    http_get(r.listen, "/ready", reply, sizeof reply);
    assert_text_contains(reply, "HTTP/1.1 503 ");
    http_get(r.listen, "/metrics", reply, sizeof reply);
    assert_text_contains(reply, "sluice_etcd_connected 1\n");
    rpc_channel_destroy(channel);
    kill(getpid(), SIGTERM);
    pthread_join(r.thread, NULL);
    assert_int_equal(r.exit_code, 0);
    sl_config_destroy(r.config);
    rpc_runtime_destroy(runtime);
    sl_loop_destroy(loop);
    etcd_remove(&etcd);
}

TEST(starts_that_fail)
{
    char url[64], busy[SL_ADDRESS_TEXT_MAX];
    int fd;
    snprintf(url, sizeof url, "http://127.0.0.1:%d", free_port());
    assert_int_equal(run_here(url, MODEL, NULL), 1);         /* no etcd */
    assert_int_equal(run_here(url, "models/nope", NULL), 1); /* no model */
    assert_ok(sl_net_listen("127.0.0.1:0", false, &fd, busy, &err), &err);
    assert_int_equal(run_here(url, MODEL, busy), 1); /* the port is taken */
    close(fd);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(starts_registers_and_stops),
    cmocka_unit_test(starts_that_fail),
};
TEST_MAIN(TESTS)
