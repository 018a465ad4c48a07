/* The listener: method table, acceptance of calls, two-stage shutdown.
 *
 * Owns the gRPC server and its calls' list. Thread: the runtime's loop. A destroyed server lives on
 * as an orphan until gRPC holds none of its tags. */
#include <grpc/grpc_security.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "rpc/internal.h"

#define OWN_HANDLERS 3 /* health check, health watch, reflection */

const rpc_handler *rpc_server_find(const rpc_server *server, grpc_slice path)
{
    for (size_t i = 0; i < server->handler_count; i++)
        if (grpc_slice_str_cmp(path, server->handlers[i].method->path) == 0)
            return &server->handlers[i];
    return NULL;
}

static void server_free(rpc_server *server)
{
    rpc_list_remove(&server->link);
    grpc_server_destroy(server->server);
    rpc_health_destroy(server->health);
    sl_timer_destroy(server->drain_timer);
    sl_free(server->handlers);
    sl_free(server);
}

void rpc_server_maybe_stopped(rpc_server *server)
{
    if (server->stopped || !server->shut || server->live_calls || server->armed)
        return;
    server->stopped = true;
    if (server->drain_timer)
        sl_timer_set(server->drain_timer, SL_NEVER);
    if (server->orphaned)
        server_free(server);
    else if (server->on_stopped)
        server->on_stopped(server->stopped_context);
}

static void on_shutdown(void *owner, bool ok)
{
    rpc_server *server = owner;
    (void)ok;
    server->shut = true;
    rpc_server_maybe_stopped(server);
}

static void on_drain_deadline(void *context, sl_time_ns now)
{
    rpc_server *server = context;
    (void)now;
    grpc_server_cancel_all_calls(server->server);
}

static void begin_stop(rpc_server *server)
{
    if (server->stopping)
        return;
    server->stopping = true;
    rpc_health_stop(server->health);
    rpc_op_begin(server->runtime);
    grpc_server_shutdown_and_notify(server->server, server->runtime->queue, &server->op_shutdown);
}

void rpc_server_stop(rpc_server *server, sl_time_ns deadline, void (*on_stopped)(void *context),
                     void *context)
{
    sl_loop_assert_owner(server->runtime->loop);
    server->on_stopped = on_stopped;
    server->stopped_context = context;
    if (!server->drain_timer)
        server->drain_timer = sl_timer_create(server->runtime->loop, on_drain_deadline, server);
    sl_timer_set(server->drain_timer, deadline);
    begin_stop(server);
}

void rpc_server_destroy(rpc_server *server)
{
    if (!server || server->orphaned)
        return;
    sl_loop_assert_owner(server->runtime->loop);
    server->orphaned = true;
    server->on_stopped = NULL;
    if (server->stopped) {
        server_free(server);
        return;
    }
    for (rpc_link *link = server->calls.next, *next; link != &server->calls; link = next) {
        next = link->next;
        rpc_server_call_orphan(link);
    }
    begin_stop(server);
    grpc_server_cancel_all_calls(server->server);
}

/* gRPC only says that the port could not be had: ask the kernel why. */
static sl_status listen_error(const char *listen, sl_err *err)
{
    int fd = -1;
    char bound[SL_ADDRESS_TEXT_MAX];
    sl_err why;
    if (!sl_is_ok(sl_net_listen(listen, false, &fd, bound, &why)))
        return sl_fail(err, SL_IO, "rpc server: %s", why.text);
    close(fd);
    return sl_fail(err, SL_IO, "rpc server: cannot listen on %s", listen);
}

static sl_status bind_port(rpc_server *server, const rpc_server_options *options, sl_err *err)
{
    const char *colon = strrchr(options->listen, ':');
    if (!colon || !colon[1] || strlen(options->listen) + 8 >= SL_ADDRESS_TEXT_MAX)
        return sl_fail(err, SL_INVALID, "rpc server: listen \"%s\": want host:port",
                       options->listen);
    grpc_server_credentials *credentials;
    if (options->tls && (!options->tls->cert || !options->tls->key))
        return sl_fail(err, SL_INVALID, "rpc server: TLS needs a certificate and a key");
    server->checks_roles = options->tls && options->tls->ca;
    if (options->tls) {
        grpc_ssl_pem_key_cert_pair pair = {options->tls->key, options->tls->cert};
        credentials = grpc_ssl_server_credentials_create_ex(
            options->tls->ca, &pair, 1,
            options->tls->ca ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                             : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE,
            NULL);
    } else {
        credentials = grpc_insecure_server_credentials_create();
    }
    if (!credentials)
        return sl_fail(err, SL_INVALID, "rpc server: TLS certificate or key not usable");
    char address[SL_ADDRESS_TEXT_MAX];
    snprintf(address, sizeof(address), "%s%s", colon == options->listen ? "0.0.0.0" : "",
             options->listen);
    int port = grpc_server_add_http2_port(server->server, address, credentials);
    grpc_server_credentials_release(credentials);
    if (port <= 0)
        return listen_error(options->listen, err);
    snprintf(server->address, sizeof(server->address), "%.*s:%d",
             (int)(strrchr(address, ':') - address), address, port);
    return sl_ok();
}

static void take_handlers(rpc_server *server, const rpc_server_options *options)
{
    server->handlers =
        sl_alloc(options->handler_count + OWN_HANDLERS, sizeof(*server->handlers), "rpc server");
    for (size_t i = 0; i < options->handler_count; i++)
        server->handlers[i] = options->handlers[i];
    size_t count = options->handler_count;
    rpc_health_handlers(server->health, server->handlers + count);
    count += 2;
    if (!options->no_reflection)
        server->handlers[count++] = rpc_reflection_handler(server);
    server->handler_count = count;
}

static size_t or_default(size_t value, size_t fallback)
{
    return value ? value : fallback;
}

sl_status rpc_server_create(rpc_runtime *runtime, const rpc_server_options *options,
                            rpc_server **out_server, sl_err *err)
{
    sl_loop_assert_owner(runtime->loop);
    sl_assert(!runtime->closing);
    rpc_server *server = sl_alloc(1, sizeof(*server), "rpc server");
    server->runtime = runtime;
    server->calls_max = or_default(options->calls_max, RPC_SERVER_CALLS_MAX);
    server->message_bytes_max = or_default(options->message_bytes_max, RPC_MESSAGE_BYTES_MAX);
    server->write_messages_max = options->write_messages_max;
    server->write_bytes_max = options->write_bytes_max;
    server->op_shutdown = (rpc_op){on_shutdown, server, NULL};
    rpc_list_init(&server->calls);

    rpc_args args = {.count = 0};
    rpc_args_common(&args, server->message_bytes_max, 0, 0);
    rpc_args_int(&args, GRPC_ARG_ALLOW_REUSEPORT, 0); /* or two servers share a port silently */
    /* Our clients ping every two seconds, also without calls. */
    rpc_args_int(&args, GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 500);
    rpc_args_int(&args, GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
    grpc_channel_args server_args = {args.count, args.args};
    server->server = grpc_server_create(&server_args, NULL);
    grpc_server_register_completion_queue(server->server, runtime->queue, NULL);
    rpc_list_add(&runtime->servers, &server->link);
    server->health = rpc_health_create(server);
    take_handlers(server, options);
    sl_status status = bind_port(server, options, err);
    grpc_server_start(server->server);
    if (!sl_is_ok(status)) {
        rpc_server_destroy(server);
        return status;
    }
    for (int i = 0; i < RPC_SERVER_ARMED; i++)
        rpc_server_call_accept(server);
    *out_server = server;
    return sl_ok();
}

const char *rpc_server_address(const rpc_server *server)
{
    return server->address;
}

size_t rpc_server_live_calls(const rpc_server *server)
{
    return server->live_calls;
}

void rpc_server_set_health(rpc_server *server, const char *service, bool serving)
{
    sl_loop_assert_owner(server->runtime->loop);
    if (!server->stopping)
        rpc_health_set(server->health, service, serving);
}
