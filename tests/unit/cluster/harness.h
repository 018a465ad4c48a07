/* What the cluster tests share: a loop with a runtime, and a real etcd process.
 *
 * Without an etcd binary the tests say loudly that they are skipped. */
#ifndef TESTS_UNIT_CLUSTER_HARNESS_H
#define TESTS_UNIT_CLUSTER_HARNESS_H

#include "tests/unit/test.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cluster/cluster.h"
#include "rpc/rpc.h"

#define HANG_GUARD_NS (90 * SL_S_NS) /* a test that waits so long hangs: not a timing verdict */

static sl_loop *loop;
static rpc_runtime *runtime;
static sl_err err;

#define wait_for(condition)                                   \
    do {                                                      \
        sl_time_ns wait_until_ = sl_now_ns() + HANG_GUARD_NS; \
        while (!(condition)) {                                \
            if (sl_now_ns() > wait_until_)                    \
                fail_msg("hangs waiting for %s", #condition); \
            sl_loop_run_once(loop, 50);                       \
        }                                                     \
    } while (0)

typedef struct etcd_process {
    pid_t pid;
    int client_port, peer_port;
    char directory[256];
    char url[64];
} etcd_process;

extern char **environ;
static etcd_process etcd;

static inline bool etcd_present(void)
{
    static int present = -1;
    if (present < 0)
        present = system("command -v etcd >/dev/null 2>&1") == 0;
    return present;
}

/* Below the kernel's own range (and deploy/local/cluster's): no connection and no listener on port
 * 0 takes it before its owner does, nor while etcd is dead. Programs that run side by side have
 * other process ids, hence other ports. */
static inline int free_port(void)
{
    enum { FIRST = 10000, EACH = 16, PROCESSES = 300 };
    static int next;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1, port, failed;
    do {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        port = FIRST + getpid() % PROCESSES * EACH + next++ % EACH;
        address.sin_port = htons((uint16_t)port);
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)); /* as etcd does */
        failed = bind(fd, (struct sockaddr *)&address, sizeof(address));
        close(fd);
        assert_true(next < 1000);
    } while (failed);
    return port;
}

/* Dies with this process (setpriv), so that a killed test leaves nothing behind. */
static inline void etcd_run(etcd_process *e)
{
    char client[64], peer[64], cluster[80], log[300];
    snprintf(client, sizeof(client), "http://127.0.0.1:%d", e->client_port);
    snprintf(peer, sizeof(peer), "http://127.0.0.1:%d", e->peer_port);
    snprintf(cluster, sizeof(cluster), "t=%s", peer);
    snprintf(log, sizeof(log), "%s.log", e->directory);
    char *argv[] = {"setpriv",
                    "--pdeathsig",
                    "KILL",
                    "etcd",
                    "--name",
                    "t",
                    "--data-dir",
                    e->directory,
                    "--listen-client-urls",
                    client,
                    "--advertise-client-urls",
                    client,
                    "--listen-peer-urls",
                    peer,
                    "--initial-advertise-peer-urls",
                    peer,
                    "--initial-cluster",
                    cluster,
                    "--logger",
                    "zap",
                    "--log-level",
                    "error",
                    NULL};
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, log, O_WRONLY | O_CREAT | O_APPEND, 0644);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    int failed = posix_spawnp(&e->pid, argv[0], &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (failed)
        fail_msg("start etcd: %s", strerror(failed));
}

static inline void etcd_start(etcd_process *e)
{
    static int number;
    const char *root = getenv("TEST_TMPDIR");
    snprintf(e->directory, sizeof(e->directory), "%s/etcd-%d-%d", root ? root : "build", getpid(),
             ++number);
    e->client_port = free_port();
    e->peer_port = free_port();
    snprintf(e->url, sizeof(e->url), "http://127.0.0.1:%d", e->client_port);
    etcd_run(e);
}

static inline void etcd_signal(etcd_process *e, int signal_number)
{
    if (e->pid <= 0)
        return;
    kill(e->pid, signal_number);
    if (signal_number != SIGKILL)
        return;
    while (waitpid(e->pid, NULL, 0) < 0 && errno == EINTR)
        ;
    e->pid = 0;
}

static inline void etcd_remove(etcd_process *e)
{
    etcd_signal(e, SIGKILL);
    char command[600];
    snprintf(command, sizeof(command), "rm -rf '%s' '%s.log'", e->directory, e->directory);
    if (e->directory[0] && system(command) != 0)
        fprintf(stderr, "cannot remove %s\n", e->directory);
    e->directory[0] = 0;
}

static inline int setup(void **state)
{
    (void)state;
    if (!etcd_present())
        return 0;
    etcd_start(&etcd);
    if (!sl_is_ok(sl_loop_create(&loop, &err)) ||
        !sl_is_ok(rpc_runtime_create(loop, &runtime, &err)))
        return -1;
    return 0;
}

static inline int teardown(void **state)
{
    (void)state;
    if (!etcd_present())
        return 0;
    rpc_runtime_destroy(runtime);
    sl_loop_destroy(loop);
    etcd_remove(&etcd);
    return 0;
}

#define ETCD_TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
#define NEED_ETCD()                                               \
    do {                                                          \
        if (!etcd_present()) {                                    \
            fprintf(stderr, "SKIPPED: no etcd binary in PATH\n"); \
            skip();                                               \
        }                                                         \
    } while (0)

static inline clu_etcd *make_client_with(const char *endpoints, uint64_t timeout_ns)
{
    clu_etcd_options options = {.endpoints = endpoints, .timeout_ns = timeout_ns};
    clu_etcd *client;
    assert_ok(clu_etcd_create(runtime, &options, &client, &err), &err);
    return client;
}

static inline clu_etcd *make_client(void)
{
    return make_client_with(etcd.url, 30 * SL_S_NS);
}

/* ---- one request at a time ---- */

typedef struct answer {
    int count;
    sl_err err;
    ProtobufCMessage *reply; /* taken */
} answer;

static inline void on_answer(void *context, const ProtobufCMessage *reply, const sl_err *why)
{
    answer *a = context;
    a->count++;
    a->err = *why;
    a->reply = (ProtobufCMessage *)(uintptr_t)reply;
    if (reply)
        rpc_message_take(reply);
}

static inline answer ask(clu_etcd *client, const rpc_method *method,
                         const ProtobufCMessage *request, bool idempotent)
{
    answer a = {0};
    clu_request_options options = {.idempotent = idempotent};
    assert_ok(clu_etcd_request(client, method, request, &options, on_answer, &a, NULL, &err), &err);
    assert_int_equal(a.count, 0);
    wait_for(a.count);
    return a;
}

static inline int64_t put_lease(clu_etcd *client, const char *key, const char *value, int64_t lease)
{
    Etcdserverpb__PutRequest request = ETCDSERVERPB__PUT_REQUEST__INIT;
    request.key = clu_bytes(key);
    request.value = clu_bytes(value);
    request.lease = lease;
    answer a = ask(client, &rpc_method_etcd_kv_put, &request.base, true);
    if (a.err.code != SL_OK)
        fail_msg("put: %s", a.err.text);
    int64_t revision = ((Etcdserverpb__PutResponse *)(void *)a.reply)->header->revision;
    rpc_message_free(a.reply);
    return revision;
}

static inline int64_t put(clu_etcd *client, const char *key, const char *value)
{
    return put_lease(client, key, value, 0);
}

static inline void delete_key(clu_etcd *client, const char *key)
{
    Etcdserverpb__DeleteRangeRequest request = ETCDSERVERPB__DELETE_RANGE_REQUEST__INIT;
    request.key = clu_bytes(key);
    answer a = ask(client, &rpc_method_etcd_kv_delete_range, &request.base, true);
    assert_int_equal(a.err.code, SL_OK);
    rpc_message_free(a.reply);
}

/* The value, "" if absent. */
static inline const char *get(clu_etcd *client, const char *key)
{
    static char value[8192];
    Etcdserverpb__RangeRequest request = ETCDSERVERPB__RANGE_REQUEST__INIT;
    request.key = clu_bytes(key);
    answer a = ask(client, &rpc_method_etcd_kv_range, &request.base, true);
    assert_int_equal(a.err.code, SL_OK);
    const Etcdserverpb__RangeResponse *reply = (const void *)a.reply;
    value[0] = 0;
    if (reply->n_kvs)
        snprintf(value, sizeof(value), "%.*s", (int)reply->kvs[0]->value.len,
                 (const char *)reply->kvs[0]->value.data);
    rpc_message_free(a.reply);
    return value;
}

static inline void compact(clu_etcd *client, int64_t revision)
{
    Etcdserverpb__CompactionRequest request = ETCDSERVERPB__COMPACTION_REQUEST__INIT;
    request.revision = revision;
    request.physical = true;
    answer a = ask(client, &rpc_method_etcd_kv_compact, &request.base, false);
    assert_int_equal(a.err.code, SL_OK);
    rpc_message_free(a.reply);
}

#endif
