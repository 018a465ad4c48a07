/* Mutual TLS over loopback, with certificates made by openssl before gRPC starts. Skipped loudly
 * without it. */
#include "tests/unit/rpc/harness.h"

#include <unistd.h>

static char directory[256];
static char *ca, *other_ca, *cert, *key;

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
        " openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout node.key"
        " -out node.csr -subj /CN=node &&"
        " echo subjectAltName=IP:127.0.0.1 >ext &&"
        " openssl x509 -req -in node.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2"
        " -extfile ext -out node.pem",
        directory, directory);
    if (system(command) == 0) {
        ca = slurp("ca.pem");
        other_ca = slurp("other.pem");
        cert = slurp("node.pem");
        key = slurp("node.key");
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

static const struct CMUnitTest TESTS[] = {RPC_TEST(mutual), RPC_TEST(server_only),
                                          RPC_TEST(unusable)};

int main(void)
{
    int failed = cmocka_run_group_tests(TESTS, make_certificates, free_certificates);
    return failed || sl_alloc_live() != 0;
}
