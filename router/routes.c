/* HTTP paths: what is answered at once, and what becomes a live request. Thread: the loop's. */
#include "router/front_internal.h"

#include "base/alloc.h"
#include "base/json.h"

#include <stdio.h>
#include <string.h>

typedef struct route {
    const char *path;
    rtr_http_method method;
    void (*handler)(rtr_front *front, rtr_http_exchange *exchange);
} route;

void rtr_count_response(const rtr_front *front, int status)
{
    char code[8];
    snprintf(code, sizeof code, "%d", status);
    sl_metric_add(front->shared->metrics.requests, code, 1);
}

static void respond(rtr_http_exchange *exchange, int status, const char *type, const char *text)
{
    rtr_http_respond(exchange, status, type, NULL, 0, text, strlen(text));
}

static void refuse(rtr_front *front, rtr_http_exchange *exchange, int status, const char *type,
                   const char *code, const char *message, const char *retry_after)
{
    rtr_http_pair pair = {retry_after ? "retry-after" : NULL, retry_after};
    rtr_http_respond_error(exchange, status, type, NULL, code, message, &pair, 1);
    rtr_count_response(front, status);
}

static void get_health(rtr_front *front, rtr_http_exchange *exchange)
{
    respond(exchange, 200, "application/json", "{\"status\":\"ok\"}\n");
}

static void get_ready(rtr_front *front, rtr_http_exchange *exchange)
{
    if (!front->leaving && rtr_nodes_ready(front->nodes, front->tuning.self_prefill))
        respond(exchange, 200, "application/json", "{\"status\":\"ready\"}\n");
    else
        rtr_http_respond_error(exchange, 503, "server_error", NULL, "not_ready",
                               front->leaving ? "the router is shutting down"
                                              : "no usable pair of prefill and decode node yet",
                               NULL, 0);
}

static void get_metrics(rtr_front *front, rtr_http_exchange *exchange)
{
    sl_buf text;
    sl_buf_init(&text, 0);
    sl_metric_set(front->shared->metrics.http_connections, NULL,
                  rtr_http_server_connections(front->http));
    sl_metric_set(front->shared->metrics.heap_bytes, NULL, (double)sl_heap_bytes());
    sl_metrics_write(front->shared->metrics.registry, &text);
    rtr_http_respond(exchange, 200, "text/plain; version=0.0.4; charset=utf-8", NULL, 0, text.data,
                     text.size);
    sl_buf_fini(&text);
}

static void put_model(rtr_front *front, sl_buf *out)
{
    const char *name = front->shared->api.model_name;
    sl_buf_puts(out, "{\"id\":");
    sl_json_write_string(out, name, strlen(name));
    sl_buf_printf(out,
                  ",\"object\":\"model\",\"created\":%llu,\"owned_by\":\"sluice\","
                  "\"max_model_len\":%u}",
                  (unsigned long long)front->shared->started_at, front->shared->context_max);
}

static void get_models(rtr_front *front, rtr_http_exchange *exchange)
{
    sl_buf out;
    sl_buf_init(&out, 0);
    sl_buf_puts(&out, "{\"object\":\"list\",\"data\":[");
    put_model(front, &out);
    sl_buf_puts(&out, "]}");
    rtr_http_respond(exchange, 200, "application/json", NULL, 0, out.data, out.size);
    sl_buf_fini(&out);
}

static void get_model(rtr_front *front, rtr_http_exchange *exchange, const char *name)
{
    if (strcmp(name, front->shared->api.model_name) != 0) {
        refuse(front, exchange, 404, "invalid_request_error", "model_not_found",
               "the model does not exist here; /v1/models lists what does", NULL);
        return;
    }
    sl_buf out;
    sl_buf_init(&out, 0);
    put_model(front, &out);
    rtr_http_respond(exchange, 200, "application/json", NULL, 0, out.data, out.size);
    sl_buf_fini(&out);
}

/* Admission at the door: a bound on what waits, whatever it waits for. */
static bool admit(rtr_front *front, rtr_http_exchange *exchange)
{
    if (front->stopping) {
        refuse(front, exchange, 503, "server_error", "shutting_down", "the router is shutting down",
               "1");
        return false;
    }
    if (front->queue.count >= front->tuning.queue_max) {
        refuse(front, exchange, 429, "rate_limit_error", "queue_full",
               "too many requests are waiting; try again later", "1");
        return false;
    }
    return true;
}

static void post_chat(rtr_front *front, rtr_http_exchange *exchange)
{
    if (admit(front, exchange))
        rtr_live_start(front, exchange, RTR_API_CHAT);
}

static void post_completions(rtr_front *front, rtr_http_exchange *exchange)
{
    if (admit(front, exchange))
        rtr_live_start(front, exchange, RTR_API_COMPLETION);
}

static void post_tokenize(rtr_front *front, rtr_http_exchange *exchange)
{
    if (admit(front, exchange))
        rtr_live_start(front, exchange, RTR_API_TOKENIZE);
}

static void post_detokenize(rtr_front *front, rtr_http_exchange *exchange)
{
    if (admit(front, exchange))
        rtr_live_start(front, exchange, RTR_API_DETOKENIZE);
}

static const route ROUTES[] = {
    {"/v1/chat/completions", RTR_HTTP_POST, post_chat},
    {"/v1/completions", RTR_HTTP_POST, post_completions},
    {"/v1/models", RTR_HTTP_GET, get_models},
    {"/tokenize", RTR_HTTP_POST, post_tokenize},
    {"/detokenize", RTR_HTTP_POST, post_detokenize},
    {"/health", RTR_HTTP_GET, get_health},
    {"/ready", RTR_HTTP_GET, get_ready},
    {"/metrics", RTR_HTTP_GET, get_metrics},
};

void rtr_route(void *context, rtr_http_exchange *exchange)
{
    static const char MODELS[] = "/v1/models/";
    rtr_front *front = context;
    const rtr_http_head *head = rtr_http_exchange_head(exchange);
    rtr_http_method method = head->method == RTR_HTTP_HEAD ? RTR_HTTP_GET : head->method;
    for (size_t i = 0; i < sizeof ROUTES / sizeof ROUTES[0]; i++) {
        if (strcmp(head->path, ROUTES[i].path) != 0)
            continue;
        if (method == ROUTES[i].method) {
            ROUTES[i].handler(front, exchange);
            return;
        }
        rtr_http_pair allow = {"allow", ROUTES[i].method == RTR_HTTP_POST ? "POST" : "GET, HEAD"};
        char text[80];
        snprintf(text, sizeof text, "this path takes %s only", allow.value);
        rtr_http_respond_error(exchange, 405, "invalid_request_error", NULL, "method_not_allowed",
                               text, &allow, 1);
        rtr_count_response(front, 405);
        return;
    }
    if (method == RTR_HTTP_GET && strncmp(head->path, MODELS, sizeof MODELS - 1) == 0) {
        get_model(front, exchange, head->path + sizeof MODELS - 1);
        return;
    }
    char text[256];
    snprintf(text, sizeof text, "there is no such path: %.200s", head->path);
    refuse(front, exchange, 404, "invalid_request_error", "not_found", text, NULL);
}
