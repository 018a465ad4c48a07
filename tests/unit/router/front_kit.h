/* A router loop with false nodes around it: the nodes' gRPC servers, the router's front and the
 * HTTP clients share one loop, which the test turns by hand. */
#ifndef TESTS_UNIT_ROUTER_FRONT_KIT_H
#define TESTS_UNIT_ROUTER_FRONT_KIT_H

#include "router/nodes_internal.h"
#include "tests/unit/router/node_kit.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#define NONE   SLUICE__V1__FINISH__FINISH_NONE
#define STOP   SLUICE__V1__FINISH__FINISH_STOP
#define LENGTH SLUICE__V1__FINISH__FINISH_LENGTH

#define CHAT       "/v1/chat/completions"
#define BODY(more) "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]" more "}"
#define STREAM     BODY(",\"stream\":true,\"return_token_ids\":true,\"max_tokens\":30")

/* ---- prefill node */

static inline void kit_prefill_event(kit_node *n, bool done)
{
    Sluice__V1__PrefillQueued queued = SLUICE__V1__PREFILL_QUEUED__INIT;
    Sluice__V1__PrefillDone end = SLUICE__V1__PREFILL_DONE__INIT;
    Sluice__V1__PrefillEvent event = SLUICE__V1__PREFILL_EVENT__INIT;
    event.body_case =
        done ? SLUICE__V1__PREFILL_EVENT__BODY_DONE : SLUICE__V1__PREFILL_EVENT__BODY_QUEUED;
    end.tokens_computed = n->run_computed;
    if (done)
        event.done = &end;
    else
        event.queued = &queued;
    sl_status status = rpc_server_call_write(n->run, &event.base);
    assert_true(sl_is_ok(status));
    if (done)
        rpc_server_call_finish(n->run, SL_OK, NULL);
}

static inline void kit_on_run_closed(void *context, rpc_server_call *call, bool cancelled)
{
    kit_node *n = context;
    n->runs_cancelled += cancelled;
    if (n->run == call)
        n->run = NULL;
}

static inline void kit_on_run(void *context, rpc_server_call *call, const ProtobufCMessage *base)
{
    static const rpc_server_call_events EVENTS = {.on_closed = kit_on_run_closed};
    kit_node *n = context;
    const Sluice__V1__PrefillRequest *request = (const Sluice__V1__PrefillRequest *)base;
    assert_non_null(request->ticket);
    assert_string_equal(request->ticket->request_id, request->request_id);
    assert_int_equal(request->ticket->epoch, request->epoch);
    snprintf(n->run_id, sizeof n->run_id, "%s", request->request_id);
    n->run_epoch = request->epoch;
    n->run_tokens = (uint32_t)request->n_tokens;
    n->run_offer = request->offer;
    n->runs++;
    n->run = call;
    rpc_server_call_set(call, &EVENTS, n);
    kit_prefill_event(n, false);
    if (n->finish_runs)
        kit_prefill_event(n, true);
}

/* ---- the whole */

static inline void kit_announce(kit *k, kit_node *n, bool suspect)
{
    rtr_nodes_set(rtr_front_nodes(k->front), &n->info, suspect);
}

static inline kit_node *kit_add(kit *k, const char *name, bool decode)
{
    sl_err err;
    assert_true(k->node_count < KIT_NODES);
    kit_node *n = &k->nodes[k->node_count++];
    memset(n, 0, sizeof *n);
    n->owner = k;
    n->decode = decode;
    n->grant = true;
    n->finish_runs = true;
    n->slots_free = 64;
    n->pages_free = 10000;
    snprintf(n->name, sizeof n->name, "%s", name);
    rpc_handler handlers[] = {{&rpc_method_decode_serve, kit_on_serve, n},
                              {&rpc_method_prefill_run, kit_on_run, n}};
    rpc_server_options options = {
        .listen = "127.0.0.1:0", .handlers = handlers, .handler_count = 2};
    assert_ok(rpc_server_create(k->runtime, &options, &n->server, &err), &err);
    snprintf(n->info.name, sizeof n->info.name, "%s", name);
    snprintf(n->info.role, sizeof n->info.role, "%s", decode ? "decode" : "prefill");
    snprintf(n->info.control, sizeof n->info.control, "%s", rpc_server_address(n->server));
    n->info.incarnation = 7000 + k->node_count;
    snprintf(n->info.stamp.numerics_id, CLU_TEXT_MAX, "cpu-test");
    snprintf(n->info.stamp.model_hash, CLU_TEXT_MAX, "hash");
    kit_announce(k, n, false);
    return n;
}

/* As kill -9 does it to its streams. */
static inline void kit_kill(kit_node *n)
{
    rpc_server_destroy(n->server);
    n->server = NULL;
    n->serve = NULL;
    n->run = NULL;
}

static inline void kit_open(kit *k, void (*change)(rtr_shared *shared))
{
    sl_err err;
    char bound[SL_ADDRESS_TEXT_MAX];
    memset(k, 0, sizeof *k);
    sl_log_set_level(SL_LOG_ERROR);
    assert_ok(sl_loop_create(&k->loop, &err), &err);
    assert_ok(rpc_runtime_create(k->loop, &k->runtime, &err), &err);
    assert_ok(sl_net_listen("127.0.0.1:0", false, &k->listen_fd, bound, &err), &err);
    k->port = (uint16_t)atoi(strrchr(bound, ':') + 1);
    k->metrics = sl_metrics_create();
    k->shared.api = kit_settings;
    k->shared.api.max_tokens_default = 50;
    rtr_metrics_init(&k->shared.metrics, k->metrics);
    assert_ok(rtr_pool_create(2, 8, &k->shared.pool, &err), &err);
    k->shared.tuning.limits = (rtr_request_limits){
        .place_timeout_ns = 500 * SL_MS_NS,
        .queue_timeout_ns = 10 * SL_S_NS,
        .admit_timeout_ns = 10 * SL_S_NS,
        .progress_timeout_ns = 10 * SL_S_NS,
        .self_timeout_ns = 10 * SL_S_NS,
        .token_timeout_ns = 10 * SL_S_NS,
        .attach_timeout_ns = 10 * SL_S_NS,
        .refusal_pause_ns = 20 * SL_MS_NS,
        .attempts_max = 3,
    };
    k->shared.router_name = "router-test";
    k->shared.incarnation = 5;
    k->shared.model_identity = "hash";
    k->shared.tuning.queue_max = 4;
    k->shared.context_max = 100000;
    k->shared.inline_bytes = 32768;
    if (change)
        change(&k->shared);
    rtr_front_options options = {
        .loop = k->loop, .runtime = k->runtime, .shared = &k->shared, .index = 0};
    rtr_http_server_options_init(&options.http);
    options.http.listen_fd = k->listen_fd;
    assert_ok(rtr_front_create(&options, &k->front, &err), &err);
}

static inline void kit_close(kit *k)
{
    rtr_front_destroy(k->front);
    for (size_t i = 0; i < k->node_count; i++)
        rpc_server_destroy(k->nodes[i].server);
    rpc_runtime_destroy(k->runtime);
    rtr_pool_destroy(k->shared.pool);
    sl_loop_destroy(k->loop);
    sl_metrics_destroy(k->metrics);
    close(k->listen_fd);
}

static inline bool kit_ready(kit *k)
{
    return rtr_nodes_ready(rtr_front_nodes(k->front), false);
}

/* What the router knows of it; NULL: nothing. */
static inline const rtr_node *kit_known(const kit *k, const kit_node *n)
{
    const rtr_node *node = rtr_front_nodes(k->front)->first;
    while (node && node->info.incarnation != n->info.incarnation)
        node = node->next;
    return node;
}

/* The router has a stream to it. */
static inline bool kit_heard(const kit *k, const kit_node *n)
{
    const rtr_node *node = kit_known(k, n);
    return node && node->stream_id != 0;
}

/* The router has heard that it takes prompts. */
static inline bool kit_serving(const kit *k, const kit_node *n)
{
    const rtr_node *node = kit_known(k, n);
    return node && node->serving;
}

/* ---- clients */

typedef struct kit_client {
    int fd;
    sl_buf text;
    bool eof;
} kit_client;

static inline void kit_send(kit *k, int fd, const char *data, size_t size)
{
    sl_time_ns limit = sl_now_ns() + KIT_WAIT_NS;
    while (size > 0) {
        ssize_t n = send(fd, data, size, MSG_NOSIGNAL);
        if (n > 0) {
            data += n;
            size -= (size_t)n;
            continue;
        }
        assert_true(errno == EAGAIN || errno == ENOTCONN);
        assert_true(sl_now_ns() < limit);
        kit_turn(k);
    }
}

static inline kit_client kit_post(kit *k, const char *path, const char *body)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(k->port)};
    char head[256];
    kit_client c = {0};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    c.fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    assert_true(c.fd >= 0);
    int rc = connect(c.fd, (struct sockaddr *)&address, sizeof address);
    assert_true(rc == 0 || errno == EINPROGRESS);
    snprintf(head, sizeof head, "POST %s HTTP/1.1\r\nHost: h\r\nContent-Length: %zu\r\n\r\n", path,
             strlen(body));
    kit_send(k, c.fd, head, strlen(head));
    kit_send(k, c.fd, body, strlen(body));
    return c;
}

static inline void kit_take(kit_client *c)
{
    char buffer[65536];
    ssize_t n;
    while ((n = recv(c->fd, buffer, sizeof buffer, 0)) > 0)
        sl_buf_append(&c->text, buffer, (size_t)n);
    c->eof = c->eof || n == 0;
}

static inline void kit_expect(kit *k, kit_client *c, const char *text)
{
    sl_time_ns limit = sl_now_ns() + KIT_WAIT_NS;
    while (kit_take(c), !(c->text.data && strstr(c->text.data, text))) {
        if (sl_now_ns() > limit)
            fail_msg("did not come: %s; came: %s", text, c->text.data ? c->text.data : "nothing");
        kit_turn(k);
    }
}

static inline void kit_client_close(kit_client *c)
{
    close(c->fd);
    sl_buf_fini(&c->text);
}

/* ---- what came of it */

static inline double migrations(kit *k, const char *reason)
{
    return sl_metric_get(k->shared.metrics.migrations, reason);
}

/* All ids of "token_ids" lists in order. */
static inline size_t token_ids(const kit_client *c, uint32_t *ids, size_t max)
{
    static const char KEY[] = "\"token_ids\":[";
    size_t count = 0;
    const char *at = c->text.data;
    while (at && (at = strstr(at, KEY)) != NULL) {
        at += sizeof KEY - 1;
        while (*at && *at != ']') {
            assert_true(count < max);
            ids[count++] = (uint32_t)strtoul(at, (char **)&at, 10);
            at += *at == ',';
        }
    }
    return count;
}

static inline void check_tokens(const kit_client *c, uint32_t expected)
{
    uint32_t *ids = sl_alloc(expected + 1, sizeof *ids, "test ids");
    size_t count = token_ids(c, ids, expected + 1);
    assert_int_equal(count, expected);
    for (uint32_t i = 0; i < expected; i++)
        assert_int_equal(ids[i], 100 + i % 1000);
    sl_free(ids);
}

#endif
