/* grpc.health.v1: Check and Watch, for the server and each named service.
 *
 * Owns the table of services and the list of watchers. Thread: the runtime's loop. */
#include <string.h>

#include "base/alloc.h"
#include "proto/grpc/health/v1/health.pb-c.h"
#include "rpc/internal.h"
#include "rpc/methods.h"

#define SERVICES_MAX 32
#define SERVICE_NAME 96

typedef Grpc__Health__V1__HealthCheckResponse__ServingStatus serving_status;
#define STATUS(x) GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__##x

typedef struct watcher {
    rpc_link link;
    rpc_health *health;
    rpc_server_call *call;
    char service[SERVICE_NAME];
    int sent;   /* last status written, -1 = none */
    bool stale; /* the queue was full: write again when it is not */
} watcher;

struct rpc_health {
    rpc_server *server;
    struct {
        char name[SERVICE_NAME];
        bool serving;
    } services[SERVICES_MAX];
    size_t service_count;
    rpc_link watchers;
    bool stopping;
};

static serving_status status_of(const rpc_health *health, const char *service)
{
    for (size_t i = 0; i < health->service_count; i++)
        if (strcmp(health->services[i].name, service) == 0)
            return health->services[i].serving && !health->stopping ? STATUS(SERVING)
                                                                    : STATUS(NOT_SERVING);
    return STATUS(SERVICE_UNKNOWN);
}

static void tell(watcher *w)
{
    serving_status status = status_of(w->health, w->service);
    if ((int)status == w->sent)
        return;
    Grpc__Health__V1__HealthCheckResponse reply = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
    reply.status = status;
    w->stale = rpc_server_call_write(w->call, &reply.base).code == SL_FULL;
    if (!w->stale)
        w->sent = (int)status;
}

static void on_check(void *context, rpc_server_call *call, const ProtobufCMessage *request)
{
    const rpc_health *health = context;
    const Grpc__Health__V1__HealthCheckRequest *check = (const void *)request;
    serving_status status = status_of(health, check->service);
    if (status == STATUS(SERVICE_UNKNOWN)) {
        rpc_server_call_finish(call, SL_NOT_FOUND, "unknown service");
        return;
    }
    Grpc__Health__V1__HealthCheckResponse reply = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
    reply.status = status;
    rpc_server_call_reply(call, &reply.base);
}

static void on_watch_writable(void *context, rpc_server_call *call)
{
    watcher *w = context;
    (void)call;
    if (w->stale)
        tell(w);
}

static void on_watch_closed(void *context, rpc_server_call *call, bool cancelled)
{
    watcher *w = context;
    (void)call;
    (void)cancelled;
    rpc_list_remove(&w->link);
    sl_free(w);
}

static void on_watch(void *context, rpc_server_call *call, const ProtobufCMessage *request)
{
    rpc_health *health = context;
    const Grpc__Health__V1__HealthCheckRequest *check = (const void *)request;
    if (strlen(check->service) >= SERVICE_NAME) {
        rpc_server_call_finish(call, SL_INVALID, "service name too long");
        return;
    }
    watcher *w = sl_alloc(1, sizeof(*w), "rpc health watcher");
    w->health = health;
    w->call = call;
    w->sent = -1;
    snprintf(w->service, sizeof(w->service), "%s", check->service);
    rpc_list_add(&health->watchers, &w->link);
    static const rpc_server_call_events EVENTS = {
        .on_writable = on_watch_writable,
        .on_closed = on_watch_closed,
    };
    rpc_server_call_set(call, &EVENTS, w);
    tell(w);
    if (health->stopping)
        rpc_server_call_finish(call, SL_UNAVAILABLE, "the server is stopping");
}

rpc_health *rpc_health_create(rpc_server *server)
{
    rpc_health *health = sl_alloc(1, sizeof(*health), "rpc health");
    health->server = server;
    health->services[0].serving = true; /* "" = the server */
    health->service_count = 1;
    rpc_list_init(&health->watchers);
    return health;
}

void rpc_health_destroy(rpc_health *health)
{
    if (!health)
        return;
    /* Watchers of a server that was destroyed under them got no on_closed. */
    for (rpc_link *link = health->watchers.next, *next; link != &health->watchers; link = next) {
        next = link->next;
        sl_free(rpc_list_entry(link, watcher, link));
    }
    sl_free(health);
}

void rpc_health_set(rpc_health *health, const char *service, bool serving)
{
    size_t at = 0;
    while (at < health->service_count && strcmp(health->services[at].name, service) != 0)
        at++;
    if (at == health->service_count) {
        sl_assert(at < SERVICES_MAX && strlen(service) < SERVICE_NAME);
        snprintf(health->services[at].name, SERVICE_NAME, "%s", service);
        health->service_count++;
    }
    health->services[at].serving = serving;
    for (rpc_link *link = health->watchers.next; link != &health->watchers; link = link->next)
        tell(rpc_list_entry(link, watcher, link));
}

void rpc_health_stop(rpc_health *health)
{
    health->stopping = true;
    for (rpc_link *link = health->watchers.next; link != &health->watchers; link = link->next) {
        watcher *w = rpc_list_entry(link, watcher, link);
        if (health->server->orphaned)
            continue; /* its calls are ended already */
        tell(w);
        rpc_server_call_finish(w->call, SL_UNAVAILABLE, "the server is stopping");
    }
}

void rpc_health_handlers(rpc_health *health, rpc_handler out_handlers[2])
{
    out_handlers[0] = (rpc_handler){&rpc_method_health_check, on_check, health};
    out_handlers[1] = (rpc_handler){&rpc_method_health_watch, on_watch, health};
}
