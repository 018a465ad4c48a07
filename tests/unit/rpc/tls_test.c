/* Mutual TLS over loopback, with certificates made by openssl before gRPC starts. Skipped loudly
 * without it. */
#include "tests/unit/rpc/harness.h"

#include "rpc/tls.h"

#include <unistd.h>

static char directory[256];
static char *ca, *other_ca, *cert, *key;
static char *client_cert, *client_key, *nobody_cert, *nobody_key; /* role client; no role at all */

static char *slurp(const char *name)
{
    char path[300];
    snprintf(path, sizeof(path), "%s/%s", directory, name);
    FILE *file = fopen(path, "r");
    if (!file)
        return NULL;
    char *text = sl_alloc(1, 16384, "test pem");
    size_t size = fread(text, 1, 16383, file);
    text[size] = 0;
    fclose(file);
    return text;
}

static int make_certificates(void **state)
{
    (void)state;
    const char *root = getenv("TEST_TMPDIR");
    snprintf(directory, sizeof(directory), "%s/tls-%d", root ? root : "build", getpid());
    char command[2048];
    snprintf(
        command, sizeof(command),
        "mkdir -p %s && cd %s && exec >log 2>&1 &&"
        " new='openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2' &&"
        " $new -keyout ca.key -out ca.pem -subj /CN=ca &&"
        " $new -keyout other.key -out other.pem -subj /CN=other &&"
        " echo subjectAltName=IP:127.0.0.1 >ext &&"
        " issue() { openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
        " -keyout $1.key -out $1.csr -subj \"$2/CN=$1\" &&"
        " openssl x509 -req -in $1.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2"
        " -extfile ext -out $1.pem; } &&"
        " issue node /OU=node && issue client /OU=client && issue nobody ''",
        directory, directory);
    if (system(command) == 0) {
        ca = slurp("ca.pem");
        other_ca = slurp("other.pem");
        cert = slurp("node.pem");
        key = slurp("node.key");
        client_cert = slurp("client.pem");
        client_key = slurp("client.key");
        nobody_cert = slurp("nobody.pem");
        nobody_key = slurp("nobody.key");
    }
    snprintf(command, sizeof(command), "rm -rf %s", directory);
    return system(command);
}

static int free_certificates(void **state)
{
    (void)state;
    sl_free(ca);
    sl_free(other_ca);
    sl_free(cert);
    sl_free(key);
    sl_free(client_cert);
    sl_free(client_key);
    sl_free(nobody_cert);
    sl_free(nobody_key);
    return 0;
}

#define NEED_CERTIFICATES()                                             \
    do {                                                                \
        if (!key) {                                                     \
            fprintf(stderr, "SKIPPED: openssl made no certificates\n"); \
            skip();                                                     \
        }                                                               \
    } while (0)

static void answer(void *context, rpc_server_call *call, const ProtobufCMessage *request)
{
    (void)context;
    (void)request;
    Sluice__V1__NodeStatus reply = SLUICE__V1__NODE_STATUS__INIT;
    reply.name = (char *)(uintptr_t) "secret";
    rpc_server_call_reply(call, &reply.base);
}

static rpc_server *serve(const rpc_tls *tls)
{
    static const rpc_handler HANDLER = {&rpc_method_node_get_status, answer, NULL};
    rpc_server_options options = {
        .listen = "127.0.0.1:0", .handlers = &HANDLER, .handler_count = 1, .tls = tls};
    rpc_server *server = NULL;
    assert_ok(rpc_server_create(runtime, &options, &server, &err), &err);
    return server;
}

static sl_code ask(const rpc_server *server, const rpc_tls *tls, outcome *out)
{
    rpc_channel_options options = {.own_connection = true, .tls = tls};
    rpc_channel *channel;
    assert_ok(rpc_channel_create(runtime, rpc_server_address(server), &options, &channel, &err),
              &err);
    memset(out, 0, sizeof(*out));
    rpc_call_options call = within_ms(20000);
    Sluice__V1__NodeStatusRequest request = SLUICE__V1__NODE_STATUS_REQUEST__INIT;
    assert_ok(rpc_unary(channel, &rpc_method_node_get_status, &request.base, &call, on_done_status,
                        out, NULL, &err),
              &err);
    wait_for(out->ends);
    rpc_channel_destroy(channel);
    return out->err.code;
}

TEST(mutual)
{
    NEED_CERTIFICATES();
    rpc_tls good = {.ca = ca, .cert = cert, .key = key};
    rpc_tls anonymous = {.ca = ca};
    rpc_tls distrustful = {.ca = other_ca, .cert = cert, .key = key};
    rpc_server *server = serve(&good);
    outcome out;
    assert_int_equal(ask(server, &good, &out), SL_OK);
    assert_string_equal(out.text, "secret");
    assert_int_equal(ask(server, &anonymous, &out), SL_UNAVAILABLE);
    assert_int_equal(ask(server, &distrustful, &out), SL_UNAVAILABLE);
    assert_int_equal(ask(server, NULL, &out), SL_UNAVAILABLE);
    rpc_tls misnamed = good;
    misnamed.server_name = "elsewhere.example";
    assert_int_equal(ask(server, &misnamed, &out), SL_UNAVAILABLE);
}

static void drain(void *context, rpc_server_call *call, const ProtobufCMessage *request)
{
    Sluice__V1__DrainReply reply = SLUICE__V1__DRAIN_REPLY__INIT;
    char actor[RPC_ACTOR_MAX];
    rpc_server_call_actor(call, actor, sizeof(actor));
    assert_string_equal(actor, "node node");
    rpc_server_call_reply(call, &reply.base);
}

static void on_done_plain(void *context, const ProtobufCMessage *reply, const sl_err *why)
{
    outcome *out = context;
    out->ends++;
    out->err = *why;
}

static sl_code ask_drain(const rpc_server *server, const rpc_tls *tls, outcome *out)
{
    rpc_channel_options options = {.own_connection = true, .tls = tls};
    rpc_channel *channel;
    assert_ok(rpc_channel_create(runtime, rpc_server_address(server), &options, &channel, &err),
              &err);
    memset(out, 0, sizeof(*out));
    rpc_call_options call = within_ms(20000);
    Sluice__V1__DrainRequest request = SLUICE__V1__DRAIN_REQUEST__INIT;
    assert_ok(rpc_unary(channel, &rpc_method_node_drain, &request.base, &call, on_done_plain, out,
                        NULL, &err),
              &err);
    wait_for(out->ends);
    rpc_channel_destroy(channel);
    return out->err.code;
}

TEST(roles)
{
    NEED_CERTIFICATES();
    rpc_tls node = {.ca = ca, .cert = cert, .key = key};
    rpc_tls client = {.ca = ca, .cert = client_cert, .key = client_key};
    rpc_tls nobody = {.ca = ca, .cert = nobody_cert, .key = nobody_key};
    rpc_handler handlers[] = {{&rpc_method_node_get_status, answer, NULL},
                              {&rpc_method_node_drain, drain, NULL}};
    rpc_server_options options = {
        .listen = "127.0.0.1:0", .handlers = handlers, .handler_count = 2, .tls = &node};
    rpc_server *server = NULL;
    outcome out;
    assert_ok(rpc_server_create(runtime, &options, &server, &err), &err);
    assert_int_equal(ask(server, &client, &out), SL_OK);
    assert_int_equal(ask_drain(server, &node, &out), SL_OK);
    assert_int_equal(ask_drain(server, &client, &out), SL_DENIED);
    assert_text_contains(out.err.text, "client client may not call /sluice.v1.Node/Drain");
    assert_int_equal(ask(server, &nobody, &out), SL_DENIED);
    assert_text_contains(out.err.text, "nobody nobody may not call");
}

/* What no rule names only nodes may call. */
TEST(methods_have_roles)
{
    rpc_method unknown = {.path = "/other.Service/Do"};
    assert_int_equal(rpc_method_roles(&unknown), RPC_ROLE_NODE);
    assert_int_equal(rpc_method_roles(&rpc_method_decode_serve), RPC_ROLE_NODE);
    assert_int_equal(rpc_method_roles(&rpc_method_prefill_run), RPC_ROLE_NODE);
    assert_int_equal(rpc_method_roles(&rpc_method_node_drain), RPC_ROLE_OPERATOR | RPC_ROLE_NODE);
    assert_true(rpc_method_roles(&rpc_method_health_watch) & RPC_ROLE_CLIENT);
    assert_true(rpc_method_roles(&rpc_method_cluster_list_members) & RPC_ROLE_CLIENT);
    assert_false(rpc_method_roles(&rpc_method_cluster_cordon) & RPC_ROLE_CLIENT);
    rpc_method longer = {.path = "/sluice.v1.Cluster/ListMembersAndMore"};
    assert_false(rpc_method_roles(&longer) & RPC_ROLE_CLIENT);
}

TEST(files)
{
    rpc_tls_store *store = (rpc_tls_store *)&err;
    rpc_tls_files none = {NULL, "", NULL}, half = {.ca = "x", .cert = "y"};
    rpc_tls_files absent = {.ca = "/nowhere"}, wrong = {.ca = "Makefile"};
    rpc_identity identity;
    assert_ok(rpc_tls_open(&none, "tls", &store, &err), &err);
    assert_null(store);
    assert_null(rpc_tls_get(store));
    assert_code(rpc_tls_open(&half, "tls", &store, &err), SL_INVALID);
    assert_text_contains(err.text, "--tls-ca, --tls-cert and --tls-key go together");
    assert_code(rpc_tls_open(&absent, "etcd", &store, &err), SL_IO);
    assert_text_contains(err.text, "--etcd-ca: open /nowhere");
    assert_code(rpc_tls_open(&wrong, "tls", &store, &err), SL_INVALID);
    assert_code(rpc_identity_of("nonsense", &identity, &err), SL_INVALID);
    NEED_CERTIFICATES();
    assert_ok(rpc_identity_of(client_cert, &identity, &err), &err);
    assert_int_equal(identity.role, RPC_ROLE_CLIENT);
    assert_string_equal(identity.name, "client");
}

TEST(server_only)
{
    NEED_CERTIFICATES();
    rpc_tls server_side = {.cert = cert, .key = key};
    rpc_tls anonymous = {.ca = ca};
    rpc_server *server = serve(&server_side);
    outcome out;
    assert_int_equal(ask(server, &anonymous, &out), SL_OK);
}

TEST(unusable)
{
    NEED_CERTIFICATES();
    rpc_tls bad = {.ca = ca, .cert = "nonsense", .key = "nonsense"};
    rpc_server_options options = {.listen = "127.0.0.1:0", .tls = &bad};
    rpc_server *server = NULL;
    assert_false(sl_is_ok(rpc_server_create(runtime, &options, &server, &err)));
    assert_null(server);
    bad.key = NULL;
    assert_code(rpc_server_create(runtime, &options, &server, &err), SL_INVALID);
    rpc_channel *channel = NULL;
    rpc_channel_options half = {.tls = &bad};
    assert_code(rpc_channel_create(runtime, "127.0.0.1:1", &half, &channel, &err), SL_INVALID);
}

static const struct CMUnitTest TESTS[] = {
    RPC_TEST(mutual), RPC_TEST(roles),       RPC_TEST(methods_have_roles),
    RPC_TEST(files),  RPC_TEST(server_only), RPC_TEST(unusable)};

int main(void)
{
    int failed = cmocka_run_group_tests(TESTS, make_certificates, free_certificates);
    return failed || sl_alloc_live() != 0;
}
