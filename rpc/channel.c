/* Channels to servers. Thread: the runtime's loop. Never waits for a connection. */
#include <grpc/grpc_security.h>
#include <string.h>

#include "base/alloc.h"
#include "rpc/internal.h"

void rpc_args_int(rpc_args *args, const char *key, int value)
{
    sl_assert(args->count < RPC_ARGS_MAX);
    grpc_arg *arg = &args->args[args->count++];
    arg->type = GRPC_ARG_INTEGER;
    arg->key = (char *)(uintptr_t)key; /* gRPC copies it */
    arg->value.integer = value;
}

void rpc_args_common(rpc_args *args, size_t message_bytes_max, uint32_t keepalive_ms,
                     uint32_t keepalive_timeout_ms)
{
    rpc_args_int(args, GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, (int)message_bytes_max);
    rpc_args_int(args, GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, -1); /* rpc_pack checks */
    rpc_args_int(args, GRPC_ARG_KEEPALIVE_TIME_MS,
                 (int)(keepalive_ms ? keepalive_ms : RPC_KEEPALIVE_MS));
    rpc_args_int(args, GRPC_ARG_KEEPALIVE_TIMEOUT_MS,
                 (int)(keepalive_timeout_ms ? keepalive_timeout_ms : RPC_KEEPALIVE_TIMEOUT_MS));
    rpc_args_int(args, GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
    rpc_args_int(args, GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0); /* or keepalive stops early */
    /* Without these the windows grow to megabytes for a reader that does not read. */
    rpc_args_int(args, GRPC_ARG_HTTP2_BDP_PROBE, 0);
    rpc_args_int(args, GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, RPC_STREAM_LOOKAHEAD_BYTES);
}

static grpc_channel_credentials *channel_credentials(const rpc_tls *tls)
{
    if (!tls)
        return grpc_insecure_credentials_create();
    if (!tls->cert != !tls->key)
        return NULL;
    grpc_ssl_pem_key_cert_pair pair = {tls->key, tls->cert};
    return grpc_ssl_credentials_create_ex(tls->ca, tls->cert ? &pair : NULL, NULL, NULL);
}

sl_status rpc_channel_create(rpc_runtime *runtime, const char *target,
                             const rpc_channel_options *options, rpc_channel **out_channel,
                             sl_err *err)
{
    static const rpc_channel_options DEFAULTS;
    sl_loop_assert_owner(runtime->loop);
    if (!options)
        options = &DEFAULTS;
    const char *colon = strrchr(target, ':');
    if (!colon || colon == target || !colon[1] || strlen(target) >= SL_ADDRESS_TEXT_MAX)
        return sl_fail(err, SL_INVALID, "rpc target \"%s\": want host:port", target);
    size_t bytes_max =
        options->message_bytes_max ? options->message_bytes_max : RPC_MESSAGE_BYTES_MAX;
    rpc_args args = {.count = 0};
    rpc_args_common(&args, bytes_max, options->keepalive_ms, options->keepalive_timeout_ms);
    rpc_args_int(&args, GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, RPC_BACKOFF_FIRST_MS);
    rpc_args_int(&args, GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, RPC_CONNECT_TIMEOUT_MS);
    rpc_args_int(&args, GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, RPC_BACKOFF_MAX_MS);
    rpc_args_int(&args, GRPC_ARG_ENABLE_RETRIES, 0); /* retries are the router's decision */
    rpc_args_int(&args, GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1);
    rpc_args_int(&args, GRPC_ARG_ENABLE_HTTP_PROXY, 0); /* cluster traffic ignores $http_proxy */
    if (options->own_connection)
        rpc_args_int(&args, GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    if (options->tls && options->tls->server_name) {
        grpc_arg *arg = &args.args[args.count++];
        arg->type = GRPC_ARG_STRING;
        arg->key = (char *)(uintptr_t)GRPC_SSL_TARGET_NAME_OVERRIDE_ARG;
        arg->value.string = (char *)(uintptr_t)options->tls->server_name;
    }

    grpc_channel_credentials *credentials = channel_credentials(options->tls);
    if (!credentials)
        return sl_fail(err, SL_INVALID, "rpc target \"%s\": TLS certificate or key not usable",
                       target);
    grpc_channel_args channel_args = {args.count, args.args};
    grpc_channel *made = grpc_channel_create(target, credentials, &channel_args);
    grpc_channel_credentials_release(credentials);
    if (!made)
        return sl_fail(err, SL_INVALID, "rpc target \"%s\": no channel", target);

    rpc_channel *channel = sl_alloc(1, sizeof(*channel), "rpc channel");
    channel->runtime = runtime;
    channel->channel = made;
    channel->target = sl_strdup(target, "rpc channel");
    channel->message_bytes_max = bytes_max;
    rpc_list_init(&channel->calls);
    rpc_list_add(&runtime->channels, &channel->link);
    *out_channel = channel;
    return sl_ok();
}

void rpc_channel_destroy(rpc_channel *channel)
{
    if (!channel)
        return;
    sl_loop_assert_owner(channel->runtime->loop);
    while (channel->calls.next != &channel->calls)
        rpc_client_call_drop(channel->calls.next);
    rpc_list_remove(&channel->link);
    grpc_channel_destroy(channel->channel);
    sl_free(channel->target);
    sl_free(channel);
}

const char *rpc_channel_target(const rpc_channel *channel)
{
    return channel->target;
}
