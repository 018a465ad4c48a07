/* In the place of router/http_server.c, http_answer.c and pool.c, base/net.c and base/daemon.c:
 * what of the router and the nodes meets the operating system beside gRPC. */
#include "tests/sim/http.h"

#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/daemon.h"
#include "base/json.h"
#include "base/net.h"
#include "router/limits.h"
#include "router/pool.h"

#define READ_NS (20 * SL_MS_NS) /* between two reads of a slow client */

struct sim_http {
    sl_loop *loop;
    sim_process *process;
    rtr_http_server_options options;
    rtr_http_exchange *exchanges;
    uint32_t count;
    bool stopped;
};

struct rtr_http_exchange {
    rtr_http_server *server;
    rtr_http_exchange *prev, *next;
    sim_http_call *call;
    rtr_http_head head;
    const rtr_http_owner_ops *ops;
    void *owner;
    sl_buf out; /* not taken by the client's machine yet */
    int status;
    bool streaming, ended, above_high;
};

/* Outlives the exchange and the process. */
struct sim_http_call {
    uint32_t refs;
    sim_process *process;
    uint32_t life;
    rtr_http_exchange *exchange; /* NULL: not begun, or over */
    char *path, *body;
    size_t body_size;
    uint64_t bytes_a_second;
    sim_http_client client;
    void *request;
    bool over;           /* the client heard the end, or went */
    sl_time_ns last_due; /* what it hears stays in order */
    bool reading;
};

struct rtr_http_server {
    sim_http http;
};

static void call_unref(sim_http_call *call)
{
    if (--call->refs > 0)
        return;
    sl_free(call->path);
    sl_free(call->body);
    sl_free(call);
}

/* ---- server */

void rtr_http_server_options_init(rtr_http_server_options *options)
{
    *options = (rtr_http_server_options){0};
}

sl_status rtr_http_server_create(sl_loop *loop, const rtr_http_server_options *options,
                                 rtr_http_server **out_server, sl_err *err)
{
    rtr_http_server *server = sl_alloc(1, sizeof(*server), "sim http");
    server->http =
        (sim_http){.loop = loop, .process = sim_process_of_loop(loop), .options = *options};
    server->http.process->http = &server->http;
    *out_server = server;
    return sl_ok();
}

static void exchange_free(rtr_http_exchange *exchange)
{
    sim_http *http = &exchange->server->http;
    if (exchange->prev)
        exchange->prev->next = exchange->next;
    else
        http->exchanges = exchange->next;
    if (exchange->next)
        exchange->next->prev = exchange->prev;
    http->count--;
    exchange->call->exchange = NULL;
    call_unref(exchange->call);
    sl_buf_fini(&exchange->out);
    sl_free(exchange);
}

static void exchange_gone(rtr_http_exchange *exchange)
{
    const rtr_http_owner_ops *ops = exchange->ops;
    void *owner = exchange->owner;
    exchange->ops = NULL;
    exchange->call->exchange = NULL;
    if (ops)
        ops->gone(owner);
    exchange_free(exchange);
}

static void tell_broken(void *context, uint64_t tag)
{
    sim_http_call *call = context;
    if (!call->over) {
        call->over = true;
        call->client.on_broken(call->request);
    }
    call_unref(call);
}

static void break_call(sim_http_call *call)
{
    call->refs++;
    sl_time_ns at = sim.now + sim.delay_max_ns;
    at = at > call->last_due ? at : call->last_due;
    sim_post(at, tell_broken, call, 0);
}

void rtr_http_server_destroy(rtr_http_server *server)
{
    if (!server)
        return;
    while (server->http.exchanges) {
        break_call(server->http.exchanges->call);
        exchange_gone(server->http.exchanges);
    }
    server->http.process->http = NULL;
    sl_free(server);
}

void rtr_http_server_leave(rtr_http_server *server)
{
    (void)server; /* a client has a connection for each request */
}

void rtr_http_server_stop(rtr_http_server *server)
{
    server->http.stopped = true;
}

uint32_t rtr_http_server_connections(const rtr_http_server *server)
{
    return server->http.count;
}

bool rtr_http_server_quiet(const rtr_http_server *server)
{
    return server->http.count == 0;
}

/* ---- to the client */

typedef struct heard {
    sim_http_call *call;
    sl_buf data;
    bool end;
    int status;
} heard;

static void on_heard(void *context, uint64_t tag)
{
    heard *item = context;
    sim_http_call *call = item->call;
    if (!call->over && item->data.size > 0)
        call->client.on_data(call->request, item->data.data, item->data.size);
    if (!call->over && item->end) {
        call->over = true;
        call->client.on_end(call->request, item->status);
    }
    sl_buf_fini(&item->data);
    sl_free(item);
    call_unref(call);
}

static void send_some(rtr_http_exchange *exchange, size_t bytes_max)
{
    sim_http_call *call = exchange->call;
    size_t bytes = exchange->out.size < bytes_max ? exchange->out.size : bytes_max;
    heard *item = sl_alloc(1, sizeof(*item), "sim http heard");
    *item = (heard){.call = call, .status = exchange->status};
    sl_buf_init(&item->data, 0);
    sl_buf_append(&item->data, exchange->out.data, bytes);
    sl_buf_consume(&exchange->out, bytes);
    item->end = exchange->ended && exchange->out.size == 0;
    sl_time_ns at = sim.now + sim_between(sim.delay_min_ns, sim.delay_max_ns);
    call->last_due = at > call->last_due ? at : call->last_due;
    call->refs++;
    sim_post(call->last_due, on_heard, item, 0);
    if (item->end)
        exchange_free(exchange);
}

static void on_read(void *context, uint64_t tag);

static void drained_run(void *context)
{
    sim_http_call *call = context;
    rtr_http_exchange *exchange = call->exchange;
    if (exchange && exchange->above_high && exchange->out.size <= RTR_HTTP_BACKLOG_HIGH) {
        exchange->above_high = false;
        if (exchange->ops && exchange->ops->drained)
            exchange->ops->drained(exchange->owner);
    }
    call_unref(call);
}

static void drained_drop(void *context)
{
    call_unref(context);
}

static void read_later(sim_http_call *call)
{
    if (call->reading)
        return;
    call->reading = true;
    call->refs++;
    sim_post(sim.now + READ_NS, on_read, call, 0);
}

/* A slow client takes its next bytes. */
static void on_read(void *context, uint64_t tag)
{
    sim_http_call *call = context;
    rtr_http_exchange *exchange = call->exchange;
    call->reading = false;
    if (exchange && (exchange->out.size > 0 || exchange->ended)) {
        bool high = exchange->above_high;
        send_some(exchange, (size_t)(call->bytes_a_second * READ_NS / SL_S_NS) + 1);
        if (call->exchange) {
            if (high && exchange->out.size <= RTR_HTTP_BACKLOG_HIGH) {
                call->refs++;
                sim_deliver(call->process, drained_run, drained_drop, call);
            }
            read_later(call);
        }
    }
    call_unref(call);
}

void rtr_http_server_flush(rtr_http_server *server)
{
    for (rtr_http_exchange *exchange = server->http.exchanges, *next; exchange; exchange = next) {
        next = exchange->next;
        if (exchange->out.size == 0 && !exchange->ended)
            continue;
        if (exchange->call->bytes_a_second)
            read_later(exchange->call);
        else
            send_some(exchange, SIZE_MAX);
    }
}

/* ---- exchange */

const rtr_http_head *rtr_http_exchange_head(const rtr_http_exchange *exchange)
{
    return &exchange->head;
}

sl_span rtr_http_exchange_body(const rtr_http_exchange *exchange)
{
    return (sl_span){(const uint8_t *)exchange->call->body, exchange->call->body_size};
}

char *rtr_http_exchange_take_body(rtr_http_exchange *exchange, size_t *out_size)
{
    *out_size = exchange->call->body_size;
    return sl_strndup(exchange->call->body, exchange->call->body_size, "sim http body");
}

void rtr_http_exchange_drop_body(rtr_http_exchange *exchange)
{
}

void rtr_http_exchange_claim(rtr_http_exchange *exchange, const rtr_http_owner_ops *ops,
                             void *owner)
{
    exchange->ops = ops;
    exchange->owner = owner;
}

static void exchange_end(rtr_http_exchange *exchange)
{
    sl_assert(!exchange->ended);
    exchange->ended = true;
    exchange->ops = NULL;
    exchange->owner = NULL;
}

void rtr_http_respond(rtr_http_exchange *exchange, int status, const char *content_type,
                      const rtr_http_pair *extra, size_t extra_count, const void *body, size_t size)
{
    sl_assert(!exchange->streaming);
    exchange->status = status;
    sl_buf_append(&exchange->out, body, size);
    exchange_end(exchange);
}

void rtr_error_body(sl_buf *buf, const char *type, const char *param, const char *code,
                    const char *message)
{
    sl_buf_puts(buf, "{\"error\":{\"message\":");
    sl_json_write_string(buf, message, strlen(message));
    sl_buf_puts(buf, "}}");
}

void rtr_http_respond_error(rtr_http_exchange *exchange, int status, const char *type,
                            const char *param, const char *code, const char *message,
                            const rtr_http_pair *extra, size_t extra_count)
{
    sl_buf body;
    sl_buf_init(&body, 0);
    rtr_error_body(&body, type, param, code, message);
    rtr_http_respond(exchange, status, "application/json", extra, extra_count, body.data,
                     body.size);
    sl_buf_fini(&body);
}

void rtr_http_stream_begin(rtr_http_exchange *exchange, int status, const char *content_type,
                           const rtr_http_pair *extra, size_t extra_count)
{
    exchange->streaming = true;
    exchange->status = status;
}

void rtr_http_stream_write(rtr_http_exchange *exchange, const void *data, size_t size)
{
    sl_assert(exchange->streaming && !exchange->ended);
    sl_buf_append(&exchange->out, data, size);
    if (exchange->out.size > RTR_HTTP_BACKLOG_HIGH)
        exchange->above_high = true;
    if (exchange->out.size > RTR_HTTP_BACKLOG_MAX)
        sim_violation("bounded queues", "an answer's backlog is %zu bytes", exchange->out.size);
}

void rtr_http_stream_end(rtr_http_exchange *exchange)
{
    sl_assert(exchange->streaming);
    exchange_end(exchange);
}

size_t rtr_http_backlog(const rtr_http_exchange *exchange)
{
    return exchange->out.size;
}

const char *rtr_http_status_text(int status)
{
    return "";
}

/* ---- from the client */

static void request_run(void *context)
{
    sim_http_call *call = context;
    sim_http *http = call->process->http;
    if (call->over) {
        call_unref(call);
        return;
    }
    if (!http || http->stopped) {
        break_call(call);
        call_unref(call);
        return;
    }
    rtr_http_exchange *exchange = sl_alloc(1, sizeof(*exchange), "sim exchange");
    exchange->server = (rtr_http_server *)http;
    exchange->call = call; /* with the reference of the delivery */
    exchange->head.method = RTR_HTTP_POST;
    exchange->head.method_text = "POST";
    exchange->head.path = call->path;
    exchange->head.query = "";
    exchange->head.minor = 1;
    sl_buf_init(&exchange->out, 0);
    exchange->next = http->exchanges;
    if (exchange->next)
        exchange->next->prev = exchange;
    http->exchanges = exchange;
    http->count++;
    call->exchange = exchange;
    http->options.on_request(http->options.context, exchange);
}

static void request_drop(void *context)
{
    sim_http_call *call = context;
    break_call(call);
    call_unref(call);
}

static void on_request_arrives(void *context, uint64_t tag)
{
    sim_http_call *call = context;
    if (call->process->alive && call->process->http)
        sim_deliver(call->process, request_run, request_drop, call);
    else
        request_drop(call);
}

sim_http_call *sim_http_post(sim_process *router, const char *path, const char *body,
                             uint64_t bytes_a_second, const sim_http_client *client, void *request)
{
    sim_http_call *call = sl_alloc(1, sizeof(*call), "sim http call");
    *call = (sim_http_call){
        .refs = 2, /* the client's, the delivery's */
        .process = router,
        .path = sl_strdup(path, "sim http path"),
        .body = sl_strdup(body, "sim http body"),
        .body_size = strlen(body),
        .bytes_a_second = bytes_a_second,
        .client = *client,
        .request = request,
    };
    sim_post(sim.now + sim_between(sim.delay_min_ns, sim.delay_max_ns), on_request_arrives, call,
             0);
    return call;
}

static void hang_up_run(void *context)
{
    sim_http_call *call = context;
    if (call->exchange)
        exchange_gone(call->exchange);
    call_unref(call);
}

void sim_http_hang_up(sim_http_call *call)
{
    if (!call->over && call->process->alive) {
        call->refs++;
        sim_deliver(call->process, hang_up_run, drained_drop, call);
    }
    call->over = true;
    call_unref(call);
}

/* ---- pool: the work takes a while, on no thread */

struct rtr_pool {
    sim_process *process;
};

static void job_done(void *context)
{
    rtr_pool_job *job = context;
    job->done(job);
}

sl_status rtr_pool_create(uint32_t threads, uint32_t jobs_max, rtr_pool **out_pool, sl_err *err)
{
    *out_pool = sl_alloc(1, sizeof(**out_pool), "sim pool");
    return sl_ok();
}

void rtr_pool_destroy(rtr_pool *pool)
{
    sl_free(pool);
}

bool rtr_pool_submit(rtr_pool *pool, rtr_pool_job *job)
{
    job->work(job);
    return sl_loop_post(job->loop, job_done, job);
}

/* ---- net, daemon */

sl_status __wrap_sl_net_listen(const char *text, bool reuse_port, int *out_fd,
                               char out_bound[SL_ADDRESS_TEXT_MAX], sl_err *err);

sl_status __wrap_sl_net_listen(const char *text, bool reuse_port, int *out_fd,
                               char out_bound[SL_ADDRESS_TEXT_MAX], sl_err *err)
{
    *out_fd = -1;
    memcpy(out_bound, text, strlen(text) + 1);
    return sl_ok();
}

struct sl_daemon {
    sl_daemon_options options;
};

sl_status sl_daemon_start(sl_loop *loop, const sl_daemon_options *options, sl_daemon **out_daemon,
                          sl_err *err)
{
    *out_daemon = sl_alloc(1, sizeof(**out_daemon), "sim daemon");
    (*out_daemon)->options = *options;
    return sl_ok();
}

const char *sl_daemon_metrics_address(const sl_daemon *daemon)
{
    return "";
}

void sl_daemon_destroy(sl_daemon *daemon)
{
    sl_free(daemon);
}
