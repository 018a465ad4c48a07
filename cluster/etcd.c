/* The etcd client: endpoints, unary requests with rotation and deadlines.
 *
 * Owns one channel for each endpoint and the open requests. Thread: the runtime's loop. Never calls
 * back inside a call. */
#include "cluster/etcd.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/net.h"
#include "base/rng.h"
#include "cluster/internal.h"
#include "rpc/methods.h"

#define KEEPALIVE_TIMEOUT_MS 2000
#define LOGIN_POLL_NS        (10 * SL_MS_NS) /* of who waits for the token */
#define LOGIN_PAUSE_NS       SL_S_NS         /* after a refusal */

typedef struct listener {
    clu_connected_fn fn;
    void *context;
} listener;

struct clu_etcd {
    rpc_runtime *runtime;
    rpc_channel *channels[CLU_ENDPOINTS_MAX];
    size_t channel_count;
    size_t current;
    size_t failures; /* attempts without an answer since the last answer */
    bool connected;
    bool told; /* what the listeners know */
    sl_timer *tell_timer;
    uint64_t timeout_ns;
    char *endpoints;
    char last_error[SL_ERR_TEXT_MAX];
    listener listeners[CLU_ETCD_LISTENERS_MAX];
    size_t listener_count;
    size_t open_requests;
    /* who we are */
    char *user, *password;          /* NULL: nobody in particular */
    char token[CLU_ETCD_TOKEN_MAX]; /* "" = none */
    bool no_auth;                   /* etcd has authentication switched off */
    rpc_call *login;
    sl_err login_error; /* of the last attempt; code SL_OK: none */
    sl_time_ns login_again;
};

struct clu_request {
    clu_etcd *etcd;
    const rpc_method *method;
    ProtobufCMessage *message; /* own copy: to send again */
    rpc_call *call;
    sl_timer *timer; /* pause between rounds */
    clu_backoff backoff;
    size_t attempts; /* of this round */
    bool idempotent;
    bool renewed; /* the token, for this request: once */
    sl_time_ns deadline;
    sl_err last;
    rpc_done_fn fn;
    void *context;
};

static void tell_listeners(void *context, sl_time_ns now);

/* ---- back-off ---- */

uint64_t clu_jitter(uint64_t span_ns)
{
    return span_ns ? sl_random_u64() % span_ns : 0;
}

uint64_t clu_backoff_next(clu_backoff *backoff)
{
    uint64_t base = backoff->next_ns ? backoff->next_ns : CLU_BACKOFF_FIRST_NS;
    backoff->next_ns = base * 2 < CLU_BACKOFF_MAX_NS ? base * 2 : CLU_BACKOFF_MAX_NS;
    return base / 2 + clu_jitter(base / 2);
}

void clu_backoff_reset(clu_backoff *backoff)
{
    backoff->next_ns = 0;
}

/* ---- endpoints ---- */

typedef struct endpoint {
    char target[SL_ADDRESS_TEXT_MAX];
    bool https;
} endpoint;

static sl_status parse_endpoint(const char *text, size_t length, bool tls, endpoint *out_endpoint,
                                sl_err *err)
{
    bool https = length > 8 && strncmp(text, "https://", 8) == 0;
    size_t skip = https ? 8 : length > 7 && strncmp(text, "http://", 7) == 0 ? 7 : 0;
    text += skip;
    length -= skip;
    if (length && text[length - 1] == '/')
        length--;
    if (length == 0 || length >= sizeof(out_endpoint->target) || memchr(text, '/', length))
        return sl_fail(err, SL_INVALID, "etcd endpoint \"%.*s\": want http://host:port",
                       (int)(length < 100 ? length : 100), text);
    if (https && !tls)
        return sl_fail(err, SL_INVALID, "etcd endpoint https://%.*s: needs --etcd-ca", (int)length,
                       text);
    char target[SL_ADDRESS_TEXT_MAX];
    snprintf(target, sizeof(target), "%.*s", (int)length, text);
    SL_TRY(sl_wrap(err, sl_net_check(target, false, NULL, err), "etcd endpoint"));
    memcpy(out_endpoint->target, target, length + 1);
    out_endpoint->https = https;
    return sl_ok();
}

static sl_status parse_endpoints(const clu_etcd_options *options,
                                 endpoint out_endpoints[CLU_ENDPOINTS_MAX], size_t *out_count,
                                 sl_err *err)
{
    size_t count = 0;
    for (const char *at = options->endpoints ? options->endpoints : "";; at++) {
        if (count == CLU_ENDPOINTS_MAX)
            return sl_fail(err, SL_TOO_LARGE, "etcd endpoints: more than %d", CLU_ENDPOINTS_MAX);
        size_t length = strcspn(at, ",");
        SL_TRY(parse_endpoint(at, length, options->tls != NULL, &out_endpoints[count], err));
        count++;
        at += length;
        if (!*at)
            break;
    }
    *out_count = count;
    return sl_ok();
}

sl_status clu_etcd_check(const clu_etcd_options *options, sl_err *err)
{
    endpoint endpoints[CLU_ENDPOINTS_MAX];
    size_t count;
    return parse_endpoints(options, endpoints, &count, err);
}

static sl_status add_channel(clu_etcd *etcd, const endpoint *to, const rpc_tls *tls, sl_err *err)
{
    rpc_channel_options channel = {
        .keepalive_ms = CLU_ETCD_KEEPALIVE,
        .keepalive_timeout_ms = KEEPALIVE_TIMEOUT_MS,
        .tls = to->https ? tls : NULL,
    };
    SL_TRY(sl_wrap(err,
                   rpc_channel_create(etcd->runtime, to->target, &channel,
                                      &etcd->channels[etcd->channel_count], err),
                   "etcd endpoint"));
    etcd->channel_count++;
    return sl_ok();
}

sl_status clu_etcd_create(rpc_runtime *runtime, const clu_etcd_options *options,
                          clu_etcd **out_etcd, sl_err *err)
{
    endpoint endpoints[CLU_ENDPOINTS_MAX];
    size_t count;
    SL_TRY(parse_endpoints(options, endpoints, &count, err));
    clu_etcd *etcd = sl_alloc(1, sizeof(*etcd), "etcd client");
    etcd->runtime = runtime;
    etcd->tell_timer = sl_timer_create(rpc_runtime_loop(runtime), tell_listeners, etcd);
    etcd->timeout_ns = options->timeout_ns ? options->timeout_ns : CLU_ETCD_TIMEOUT_NS;
    etcd->endpoints = sl_strdup(options->endpoints, "etcd client");
    etcd->user = options->user ? sl_strdup(options->user, "etcd user") : NULL;
    etcd->password = options->user ? sl_strdup(options->password, "etcd password") : NULL;
    for (size_t i = 0; i < count; i++) {
        sl_status status = add_channel(etcd, &endpoints[i], options->tls, err);
        if (!sl_is_ok(status)) {
            clu_etcd_destroy(etcd);
            return status;
        }
    }
    *out_etcd = etcd;
    return sl_ok();
}

void clu_etcd_destroy(clu_etcd *etcd)
{
    if (!etcd)
        return;
    sl_assert(etcd->open_requests == 0 && etcd->listener_count == 0);
    rpc_call_drop(etcd->login);
    for (size_t i = 0; i < etcd->channel_count; i++)
        rpc_channel_destroy(etcd->channels[i]);
    sl_timer_destroy(etcd->tell_timer);
    sl_free(etcd->endpoints);
    sl_free(etcd->user);
    if (etcd->password)
        explicit_bzero(etcd->password, strlen(etcd->password));
    sl_free(etcd->password);
    sl_free(etcd);
}

rpc_runtime *clu_etcd_runtime(const clu_etcd *etcd)
{
    return etcd->runtime;
}

const char *clu_etcd_endpoints(const clu_etcd *etcd)
{
    return etcd->endpoints;
}

uint64_t clu_etcd_timeout_ns(const clu_etcd *etcd)
{
    return etcd->timeout_ns;
}

bool clu_etcd_connected(const clu_etcd *etcd)
{
    return etcd->connected;
}

const char *clu_etcd_last_error(const clu_etcd *etcd)
{
    return etcd->last_error;
}

rpc_channel *clu_etcd_channel(clu_etcd *etcd)
{
    return etcd->channels[etcd->current];
}

/* ---- connected ---- */

sl_status clu_etcd_listen(clu_etcd *etcd, clu_connected_fn fn, void *context, sl_err *err)
{
    if (etcd->listener_count == CLU_ETCD_LISTENERS_MAX)
        return sl_fail(err, SL_FULL, "etcd client: %d listeners", CLU_ETCD_LISTENERS_MAX);
    etcd->listeners[etcd->listener_count++] = (listener){fn, context};
    return sl_ok();
}

void clu_etcd_unlisten(clu_etcd *etcd, clu_connected_fn fn, void *context)
{
    for (size_t i = 0; i < etcd->listener_count; i++) {
        if (etcd->listeners[i].fn != fn || etcd->listeners[i].context != context)
            continue;
        etcd->listeners[i] = etcd->listeners[--etcd->listener_count];
        return;
    }
}

/* Told from a timer: never inside what found it out. */
static void tell_listeners(void *context, sl_time_ns now)
{
    clu_etcd *etcd = context;
    (void)now;
    if (etcd->told == etcd->connected)
        return;
    etcd->told = etcd->connected;
    for (size_t i = etcd->listener_count; i-- > 0;)
        if (i < etcd->listener_count)
            etcd->listeners[i].fn(etcd->listeners[i].context, etcd->told);
}

static void set_connected(clu_etcd *etcd, bool connected)
{
    if (etcd->connected == connected)
        return;
    etcd->connected = connected;
    sl_timer_set(etcd->tell_timer, sl_now_ns());
}

void clu_etcd_note(clu_etcd *etcd, const sl_err *err)
{
    bool no_answer = err->code == SL_UNAVAILABLE || err->code == SL_DEADLINE;
    if (err->code != SL_OK)
        snprintf(etcd->last_error, sizeof(etcd->last_error), "%s", err->text);
    if (!no_answer) {
        etcd->failures = 0;
        set_connected(etcd, true);
        return;
    }
    etcd->current = (etcd->current + 1) % etcd->channel_count;
    etcd->failures++;
    /* One endpoint of several down is not etcd lost. */
    if (etcd->failures >= etcd->channel_count)
        set_connected(etcd, false);
}

/* ---- who we are ---- */

static void on_login(void *context, const ProtobufCMessage *message, const sl_err *err)
{
    clu_etcd *etcd = context;
    const Etcdserverpb__AuthenticateResponse *reply = (const void *)message;
    etcd->login = NULL;
    etcd->login_error.code = SL_OK;
    clu_etcd_note(etcd, err);
    if (reply && strlen(reply->token) < sizeof(etcd->token)) {
        memcpy(etcd->token, reply->token, strlen(reply->token) + 1);
        return;
    }
    etcd->no_auth = strstr(err->text, "authentication is not enabled") != NULL;
    if (etcd->no_auth)
        return;
    bool refused = err->code == SL_INVALID || err->code == SL_DENIED || err->code == SL_OK;
    (void)sl_fail(&etcd->login_error, refused ? SL_DENIED : err->code, "etcd, as user %s: %.300s%s",
                  etcd->user, err->code == SL_OK ? "its token is too long" : err->text,
                  refused ? ": are --etcd-user and --etcd-password-file right?" : "");
    etcd->login_again = sl_now_ns() + (refused ? LOGIN_PAUSE_NS : LOGIN_POLL_NS);
    clu_etcd_note(etcd, &etcd->login_error);
}

/* false: the token is being asked for, or was refused a moment ago. */
static bool logged_in(clu_etcd *etcd)
{
    if (!etcd->user || etcd->no_auth || etcd->token[0])
        return true;
    if (etcd->login || sl_now_ns() < etcd->login_again)
        return false;
    Etcdserverpb__AuthenticateRequest request = ETCDSERVERPB__AUTHENTICATE_REQUEST__INIT;
    rpc_call_options options = {.deadline = sl_now_ns() + CLU_ETCD_ATTEMPT_NS};
    sl_err err;
    request.name = etcd->user;
    request.password = etcd->password;
    if (!sl_is_ok(rpc_unary(clu_etcd_channel(etcd), &rpc_method_etcd_auth_authenticate,
                            &request.base, &options, on_login, etcd, &etcd->login, &err)))
        etcd->login_again = sl_now_ns() + LOGIN_POLL_NS;
    return false;
}

static void add_token(const clu_etcd *etcd, rpc_call_options *options, rpc_metadata *metadata)
{
    if (!etcd->token[0])
        return;
    *metadata = (rpc_metadata){"token", etcd->token};
    options->metadata = metadata;
    options->metadata_count = 1;
}

bool clu_etcd_stream_options(clu_etcd *etcd, rpc_call_options *out_options,
                             rpc_metadata *out_metadata)
{
    *out_options = (rpc_call_options){0};
    if (!logged_in(etcd))
        return false;
    add_token(etcd, out_options, out_metadata);
    return true;
}

void clu_etcd_forget_token(clu_etcd *etcd)
{
    etcd->token[0] = '\0';
}

/* Tokens end, and so does what they stood for when rights change: then the request did not take
 * place. */
static bool token_is_old(const clu_etcd *etcd, const sl_err *err)
{
    return etcd->token[0] && err->code != SL_OK &&
           (strstr(err->text, "invalid auth token") || strstr(err->text, "auth store is old"));
}

/* ---- requests ---- */

static void attempt(clu_request *request);

static void request_free(clu_request *request)
{
    request->etcd->open_requests--;
    sl_timer_destroy(request->timer);
    rpc_message_free(request->message);
    sl_free(request);
}

static void request_end(clu_request *request, const ProtobufCMessage *reply, const sl_err *err)
{
    rpc_done_fn fn = request->fn;
    void *context = request->context;
    sl_err copy = *err;
    request_free(request);
    fn(context, reply, &copy);
}

static void on_done(void *context, const ProtobufCMessage *reply, const sl_err *err)
{
    clu_request *request = context;
    clu_etcd *etcd = request->etcd;
    request->call = NULL;
    clu_etcd_note(etcd, err);
    if (token_is_old(etcd, err) && !request->renewed) {
        clu_etcd_forget_token(etcd);
        request->renewed = true;
        attempt(request);
        return;
    }
    bool no_answer = err->code == SL_UNAVAILABLE || err->code == SL_DEADLINE;
    if (!no_answer || !request->idempotent || sl_now_ns() >= request->deadline) {
        request_end(request, reply, err);
        return;
    }
    request->last = *err;
    request->attempts++;
    if (request->attempts < etcd->channel_count) {
        attempt(request);
        return;
    }
    request->attempts = 0;
    sl_time_ns again = sl_now_ns() + clu_backoff_next(&request->backoff);
    sl_timer_set(request->timer, again < request->deadline ? again : request->deadline);
}

static void on_timer(void *context, sl_time_ns now)
{
    clu_request *request = context;
    const sl_err *refused = &request->etcd->login_error;
    if (request->call)
        return;
    if (refused->code == SL_DENIED && !request->etcd->login && !request->etcd->token[0])
        request_end(request, NULL, refused);
    else if (now >= request->deadline)
        request_end(request, NULL, &request->last);
    else
        attempt(request);
}

static void attempt(clu_request *request)
{
    clu_etcd *etcd = request->etcd;
    rpc_call_options options = {.deadline = request->deadline};
    rpc_metadata metadata;
    if (!logged_in(etcd)) {
        request->last = etcd->login_error;
        if (request->last.code == SL_OK)
            (void)sl_fail(&request->last, SL_DEADLINE, "etcd, as user %s: no token in time",
                          etcd->user);
        sl_timer_set(request->timer, sl_now_ns() + LOGIN_POLL_NS);
        return;
    }
    add_token(etcd, &options, &metadata);
    sl_time_ns share = sl_now_ns() + CLU_ETCD_ATTEMPT_NS;
    if (request->idempotent && etcd->channel_count > 1 && share < request->deadline)
        options.deadline = share;
    sl_err err;
    sl_status status = rpc_unary(clu_etcd_channel(etcd), request->method, request->message,
                                 &options, on_done, request, &request->call, &err);
    if (sl_is_ok(status))
        return;
    /* Cannot be sent now (too many calls): try until the deadline. */
    request->last = err;
    sl_timer_set(request->timer, sl_now_ns() + clu_backoff_next(&request->backoff));
}

static sl_status copy_message(const ProtobufCMessage *message, ProtobufCMessage **out_copy,
                              sl_err *err)
{
    size_t size = protobuf_c_message_get_packed_size(message);
    uint8_t *bytes = sl_alloc(1, size + 1, "etcd request");
    protobuf_c_message_pack(message, bytes);
    sl_status status = rpc_message_unpack(message->descriptor, bytes, size, out_copy, err);
    sl_free(bytes);
    return status;
}

sl_status clu_etcd_request(clu_etcd *etcd, const rpc_method *method,
                           const ProtobufCMessage *message, const clu_request_options *options,
                           rpc_done_fn fn, void *context, clu_request **out_request, sl_err *err)
{
    static const clu_request_options DEFAULTS;
    sl_assert(method->kind == RPC_UNARY && message->descriptor == method->request);
    if (!options)
        options = &DEFAULTS;
    ProtobufCMessage *copy;
    SL_TRY(copy_message(message, &copy, err));
    clu_request *request = sl_alloc(1, sizeof(*request), "etcd request");
    request->etcd = etcd;
    request->method = method;
    request->message = copy;
    request->idempotent = options->idempotent;
    request->deadline =
        sl_now_ns() + (options->timeout_ns ? options->timeout_ns : etcd->timeout_ns);
    request->fn = fn;
    request->context = context;
    request->timer = sl_timer_create(rpc_runtime_loop(etcd->runtime), on_timer, request);
    etcd->open_requests++;
    attempt(request);
    if (out_request)
        *out_request = request;
    return sl_ok();
}

void clu_request_drop(clu_request *request)
{
    if (!request)
        return;
    rpc_call_drop(request->call);
    request_free(request);
}

/* ---- bytes ---- */

ProtobufCBinaryData clu_bytes(const char *text)
{
    ProtobufCBinaryData bytes = {strlen(text), (uint8_t *)(uintptr_t)text};
    return bytes;
}

ProtobufCBinaryData clu_prefix_end(const char *prefix, char *buffer, size_t buffer_size)
{
    size_t length = strlen(prefix);
    sl_assert(length > 0 && length < buffer_size);
    memcpy(buffer, prefix, length + 1);
    sl_assert((uint8_t)buffer[length - 1] < 0xff);
    buffer[length - 1]++;
    ProtobufCBinaryData bytes = {length, (uint8_t *)buffer};
    return bytes;
}
