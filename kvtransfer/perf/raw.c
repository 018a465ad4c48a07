/* Raw UCX. Owns a UCX context, worker and one endpoint; the calling thread drives it all. */
#include "kvtransfer/perf/raw.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <ucp/api/ucp.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/clock.h"

enum { AM_PIECE = 1, AM_ASK = 2, AM_ANSWER = 3 };
#define RKEY_MAX 1024u
#define WAIT_NS  (60 * SL_S_NS)
#define SPIN_NS  20000u

typedef struct answer { /* server -> client */
    uint64_t address;
    uint32_t rkey_bytes;
    uint8_t rkey[RKEY_MAX];
} answer;

struct raw_ucx {
    raw_options options;
    ucp_context_h context;
    ucp_worker_h worker;
    ucp_listener_h listener;
    ucp_ep_h endpoint;
    ucp_mem_h memory;
    ucp_rkey_h rkey;
    answer answer;
    uint64_t *heads; /* client: offset of each piece, valid until its send ended */
    int wait_fd;
    sl_time_ns idle_since; /* 0: something moved */
    uint32_t open;
    uint32_t received; /* server: pieces of this round */
    bool asked;        /* server: the client waits for an answer */
    bool answered;     /* client */
    bool failed;
};

/* As kvtransfer's thread: looks again for a while, then sleeps until something comes. */
static void raw_progress(raw_ucx *one)
{
    if (ucp_worker_progress(one->worker) != 0) {
        one->idle_since = 0;
        return;
    }
    if (one->options.spin)
        return;
    sl_time_ns now = sl_now_ns();
    if (one->idle_since == 0)
        one->idle_since = now;
    if (now - one->idle_since < SPIN_NS || ucp_worker_arm(one->worker) != UCS_OK)
        return;
    struct pollfd fd = {.fd = one->wait_fd, .events = POLLIN};
    poll(&fd, 1, 1000);
    one->idle_since = 0;
}

static sl_status raw_fail(sl_err *err, ucs_status_t status, const char *what)
{
    return sl_fail(err, SL_IO, "raw UCX: %s: %s", what, ucs_status_string(status));
}

static void on_error(void *argument, ucp_ep_h endpoint, ucs_status_t status)
{
    ((raw_ucx *)argument)->failed = true;
}

static void on_received(void *request, ucs_status_t status, size_t length, void *user_data)
{
    raw_ucx *one = user_data;
    one->received++;
    one->failed |= status != UCS_OK;
    ucp_request_free(request);
}

static ucs_status_t on_piece(void *argument, const void *head, size_t head_size, void *data,
                             size_t size, const ucp_am_recv_param_t *param)
{
    raw_ucx *one = argument;
    uint64_t offset;
    sl_assert(head_size == sizeof offset);
    memcpy(&offset, head, sizeof offset);
    sl_assert(offset + size <= one->options.pieces * one->options.piece_bytes);
    if (!(param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV)) {
        memcpy(one->options.memory + offset, data, size);
        one->received++;
        return UCS_OK;
    }
    ucp_request_param_t receive = {.op_attr_mask =
                                       UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
                                   .cb.recv_am = on_received,
                                   .user_data = one};
    void *request =
        ucp_am_recv_data_nbx(one->worker, data, one->options.memory + offset, size, &receive);
    if (!UCS_PTR_IS_PTR(request)) {
        one->received++;
        one->failed |= request != NULL;
    }
    return UCS_OK;
}

static ucs_status_t on_ask(void *argument, const void *head, size_t head_size, void *data,
                           size_t size, const ucp_am_recv_param_t *param)
{
    raw_ucx *one = argument;
    one->asked = true;
    return UCS_OK;
}

static ucs_status_t on_answer(void *argument, const void *head, size_t head_size, void *data,
                              size_t size, const ucp_am_recv_param_t *param)
{
    raw_ucx *one = argument;
    sl_assert(size <= sizeof one->answer);
    memcpy(&one->answer, data, size);
    one->answered = true;
    return UCS_OK;
}

static void on_connection(ucp_conn_request_h request, void *argument)
{
    raw_ucx *one = argument;
    ucp_ep_params_t params = {.field_mask = UCP_EP_PARAM_FIELD_CONN_REQUEST |
                                            UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                                            UCP_EP_PARAM_FIELD_ERR_HANDLER,
                              .conn_request = request,
                              .err_mode = UCP_ERR_HANDLING_MODE_PEER,
                              .err_handler = {on_error, one}};
    one->failed |= ucp_ep_create(one->worker, &params, &one->endpoint) != UCS_OK;
}

static void on_sent(void *request, ucs_status_t status, void *user_data)
{
    raw_ucx *one = user_data;
    one->open--;
    one->failed |= status != UCS_OK;
    ucp_request_free(request);
}

/* Counts an operation that ended at once. */
static void started(raw_ucx *one, void *request)
{
    if (UCS_PTR_IS_PTR(request))
        one->open++;
    else
        one->failed |= request != NULL;
}

static ucp_request_param_t sent_param(raw_ucx *one)
{
    ucp_request_param_t param = {.op_attr_mask =
                                     UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
                                 .cb.send = on_sent,
                                 .user_data = one};
    return param;
}

static void handler(raw_ucx *one, unsigned id, ucp_am_recv_callback_t cb)
{
    ucp_am_handler_param_t param = {
        .field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_FLAGS |
                      UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG,
        .id = id,
        .flags = UCP_AM_FLAG_WHOLE_MSG,
        .cb = cb,
        .arg = one};
    one->failed |= ucp_worker_set_am_recv_handler(one->worker, &param) != UCS_OK;
}

/* UCX as kvtransfer sets it up, so that the difference is kvtransfer. */
static sl_status raw_create(const raw_options *options, raw_ucx **out_raw, sl_err *err)
{
    raw_ucx *one = sl_alloc(1, sizeof *one, "raw");
    one->options = *options;
    *out_raw = one;
    ucp_config_t *config;
    ucs_status_t status = ucp_config_read(NULL, NULL, &config);
    if (status != UCS_OK)
        return raw_fail(err, status, "configuration");
    const char *tls = getenv("UCX_TLS");
    if (tls && strstr(tls, "shm")) {
        ucp_config_modify(config, "MM_ERROR_HANDLING", "y");
        ucp_config_modify(config, "MM_FIFO_SIZE", "512");
        ucp_config_modify(config, "MM_FIFO_RELEASE_FACTOR", "0.125");
    }
    if (tls && strstr(tls, "tcp")) {
        ucp_config_modify(config, "TX_SEG_SIZE", "64k");
        ucp_config_modify(config, "RX_SEG_SIZE", "256k");
    }
    ucp_config_modify(config, "RNDV_SCHEME", "get_zcopy");
    ucp_params_t params = {.field_mask = UCP_PARAM_FIELD_FEATURES,
                           .features = UCP_FEATURE_AM | UCP_FEATURE_RMA | UCP_FEATURE_WAKEUP};
    status = ucp_init(&params, config, &one->context);
    ucp_config_release(config);
    if (status != UCS_OK)
        return raw_fail(err, status, "init");
    ucp_worker_params_t worker = {.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE,
                                  .thread_mode = UCS_THREAD_MODE_SINGLE};
    status = ucp_worker_create(one->context, &worker, &one->worker);
    if (status != UCS_OK)
        return raw_fail(err, status, "worker");
    status = ucp_worker_get_efd(one->worker, &one->wait_fd);
    if (status != UCS_OK)
        return raw_fail(err, status, "event descriptor");
    handler(one, AM_PIECE, on_piece);
    handler(one, AM_ASK, on_ask);
    handler(one, AM_ANSWER, on_answer);
    ucp_mem_map_params_t map = {.field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS |
                                              UCP_MEM_MAP_PARAM_FIELD_LENGTH,
                                .address = options->memory,
                                .length = options->pieces * options->piece_bytes};
    status = ucp_mem_map(one->context, &map, &one->memory);
    return status == UCS_OK && !one->failed ? sl_ok() : raw_fail(err, status, "memory");
}

sl_status raw_server_create(const raw_options *options, const char *listen, raw_ucx **out_raw,
                            char out_address[SL_ADDRESS_TEXT_MAX], sl_err *err)
{
    struct sockaddr_storage at;
    socklen_t size;
    void *key;
    size_t key_bytes;
    SL_TRY(sl_net_resolve(listen, true, &at, &size, err));
    SL_TRY(raw_create(options, out_raw, err));
    raw_ucx *one = *out_raw;
    ucp_listener_params_t params = {.field_mask = UCP_LISTENER_PARAM_FIELD_SOCK_ADDR |
                                                  UCP_LISTENER_PARAM_FIELD_CONN_HANDLER,
                                    .sockaddr = {(const struct sockaddr *)&at, size},
                                    .conn_handler = {on_connection, one}};
    ucs_status_t status = ucp_listener_create(one->worker, &params, &one->listener);
    if (status != UCS_OK)
        return raw_fail(err, status, "listen");
    ucp_listener_attr_t attr = {.field_mask = UCP_LISTENER_ATTR_FIELD_SOCKADDR};
    ucp_listener_query(one->listener, &attr);
    sl_net_format((const struct sockaddr *)&attr.sockaddr, out_address);
    status = ucp_rkey_pack(one->context, one->memory, &key, &key_bytes);
    if (status != UCS_OK)
        return raw_fail(err, status, "pack a key");
    sl_assert(key_bytes <= RKEY_MAX);
    memcpy(one->answer.rkey, key, key_bytes);
    one->answer.rkey_bytes = (uint32_t)key_bytes;
    one->answer.address = (uint64_t)(uintptr_t)options->memory;
    ucp_rkey_buffer_release(key);
    return sl_ok();
}

void raw_serve(raw_ucx *server, uint32_t count)
{
    ucp_request_param_t param = sent_param(server);
    server->received = 0;
    while (!server->asked || server->received < count) {
        raw_progress(server);
        if (server->failed)
            return;
    }
    server->asked = false;
    started(server, ucp_am_send_nbx(server->endpoint, AM_ANSWER, NULL, 0, &server->answer,
                                    sizeof server->answer, &param));
    while (server->open > 0)
        raw_progress(server);
}

/* Asks and waits for the answer: all before it has arrived. */
static sl_status raw_ask(raw_ucx *one, sl_err *err)
{
    ucp_request_param_t param = sent_param(one);
    uint8_t what = 1;
    sl_time_ns give_up = sl_now_ns() + WAIT_NS;
    one->answered = false;
    started(one, ucp_am_send_nbx(one->endpoint, AM_ASK, NULL, 0, &what, 1, &param));
    while (!one->answered && !one->failed) {
        raw_progress(one);
        if (sl_now_ns() > give_up)
            return sl_fail(err, SL_DEADLINE, "raw UCX: no answer");
    }
    return one->failed ? sl_fail(err, SL_IO, "raw UCX: the connection failed") : sl_ok();
}

sl_status raw_client_create(const raw_options *options, const char *address, raw_ucx **out_raw,
                            sl_err *err)
{
    struct sockaddr_storage to;
    socklen_t size;
    SL_TRY(sl_net_resolve(address, false, &to, &size, err));
    SL_TRY(raw_create(options, out_raw, err));
    raw_ucx *one = *out_raw;
    one->heads = sl_alloc(options->pieces, sizeof *one->heads, "raw heads");
    for (uint32_t i = 0; i < options->pieces; i++)
        one->heads[i] = i * options->piece_bytes;
    ucp_ep_params_t params = {
        .field_mask = UCP_EP_PARAM_FIELD_FLAGS | UCP_EP_PARAM_FIELD_SOCK_ADDR |
                      UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER,
        .flags = UCP_EP_PARAMS_FLAGS_CLIENT_SERVER,
        .sockaddr = {(const struct sockaddr *)&to, size},
        .err_mode = UCP_ERR_HANDLING_MODE_PEER,
        .err_handler = {on_error, one}};
    ucs_status_t status = ucp_ep_create(one->worker, &params, &one->endpoint);
    if (status != UCS_OK)
        return raw_fail(err, status, "connect");
    SL_TRY(raw_ask(one, err));
    status = ucp_ep_rkey_unpack(one->endpoint, one->answer.rkey, &one->rkey);
    return status == UCS_OK ? sl_ok() : raw_fail(err, status, "unpack a key");
}

static void raw_flush(raw_ucx *one)
{
    ucp_request_param_t param = sent_param(one);
    started(one, ucp_ep_flush_nbx(one->endpoint, &param));
    while (one->open > 0 && !one->failed)
        raw_progress(one);
}

sl_status raw_round(raw_ucx *client, bool put, uint32_t first, uint32_t count, double *out_seconds,
                    sl_err *err)
{
    ucp_request_param_t param = sent_param(client);
    const raw_options *options = &client->options;
    sl_time_ns began = sl_now_ns();
    for (uint32_t i = first; i < first + count; i++) {
        const uint8_t *data = options->memory + client->heads[i];
        while (client->open >= options->depth && !client->failed)
            raw_progress(client);
        started(client,
                put ? ucp_put_nbx(client->endpoint, data, options->piece_bytes,
                                  client->answer.address + client->heads[i], client->rkey, &param)
                    : ucp_am_send_nbx(client->endpoint, AM_PIECE, &client->heads[i],
                                      sizeof client->heads[i], data, options->piece_bytes, &param));
    }
    raw_flush(client);
    SL_TRY(raw_ask(client, err));
    *out_seconds = (double)(sl_now_ns() - began) / 1e9;
    return sl_ok();
}

void raw_destroy(raw_ucx *one)
{
    if (!one)
        return;
    if (one->rkey)
        ucp_rkey_destroy(one->rkey);
    if (one->endpoint) {
        ucp_request_param_t param = {.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS,
                                     .flags = UCP_EP_CLOSE_FLAG_FORCE};
        void *request = ucp_ep_close_nbx(one->endpoint, &param);
        while (UCS_PTR_IS_PTR(request) && ucp_request_check_status(request) == UCS_INPROGRESS)
            ucp_worker_progress(one->worker);
        if (UCS_PTR_IS_PTR(request))
            ucp_request_free(request);
    }
    if (one->listener)
        ucp_listener_destroy(one->listener);
    if (one->memory)
        ucp_mem_unmap(one->context, one->memory);
    if (one->worker)
        ucp_worker_destroy(one->worker);
    if (one->context)
        ucp_cleanup(one->context);
    sl_free(one->heads);
    sl_free(one);
}
