/* The options of the node programs: what --check-config and a start refuse before anything is
 * opened, by the option's name and with what to write instead. */
#include "tests/unit/test.h"

#include "node/options.h"
#include "tests/unit/capture.h"

typedef struct outcome {
    sl_config_result result;
    int exit_code;
    char out[8192], err[8192];
} outcome;

/* `more`: further arguments, separated by single spaces. */
static outcome parse(nod_role role, const char *more)
{
    static outcome o;
    nod_options options = {0};
    sl_config *config = NULL;
    char line[1024];
    char *argv[32] = {"sluice-node", "--name", "n-0", "--model", "models/demo"};
    int argc = 5;
    memset(&o, 0, sizeof(o));
    snprintf(line, sizeof(line), "%s", more);
    for (char *word = strtok(line, " "); word; word = strtok(NULL, " "))
        argv[argc++] = word;
    capture c = capture_begin();
    o.result = nod_options_parse(role, argc, argv, &options, &config, &o.exit_code);
    capture_end(&c, o.out, o.err, sizeof(o.out));
    sl_config_destroy(config);
    return o;
}

/* Refused in both programs, whether checked or started. */
static void assert_refused(const char *more, const char *option, const char *advice)
{
    char line[512];
    for (int i = 0; i < 4; i++) {
        snprintf(line, sizeof(line), "%s%s", more, i & 1 ? " --check-config" : "");
        outcome o = parse(i & 2 ? NOD_ROLE_PREFILL : NOD_ROLE_DECODE, line);
        if (o.result != SL_CONFIG_EXIT || o.exit_code != 2)
            fail_msg("\"%s\" is not refused", line);
        assert_string_equal(o.out, "");
        assert_text_contains(o.err, option);
        assert_text_contains(o.err, advice);
    }
}

static void assert_fine(const char *more)
{
    char line[512];
    outcome o = parse(NOD_ROLE_DECODE, more);
    if (o.result != SL_CONFIG_RUN)
        fail_msg("\"%s\": %s", more, o.err);
    snprintf(line, sizeof(line), "%s --check-config", more);
    o = parse(NOD_ROLE_PREFILL, line);
    assert_int_equal(o.result, SL_CONFIG_EXIT);
    assert_int_equal(o.exit_code, 0);
    assert_string_equal(o.out, "settings are fine\n");
    assert_string_equal(o.err, "");
}

TEST(names)
{
    assert_fine("--name decode-0.a_b --cluster prod");
    assert_refused("--name Decode", "--name \"Decode\"", "lower-case letters");
    assert_refused("--name -a", "--name \"-a\"", "the first a letter or digit");
    assert_refused("--name aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
                   "--name", "1 to 63");
    assert_refused("--cluster a/b", "--cluster \"a/b\"", "lower-case letters");
    assert_refused("--cluster=", "--cluster \"\"", "lower-case letters");
}

TEST(addresses)
{
    assert_fine("--control :7000 --metrics [::1]:0 --kv-listen 10.0.0.1:0");
    assert_fine("--control node-3.example:7000 --kv-listen node-3:7001");
    assert_refused("--control localhost", "--control", "write host:port");
    assert_refused("--metrics 127.0.0.1:70000", "--metrics", "0 to 65535");
    assert_refused("--kv-listen 10.0.0.300:0", "--kv-listen", "neither an IP address nor a name");
    assert_refused("--kv-listen ::1:0", "--kv-listen", "brackets");
    assert_refused("--kv-listen 0.0.0.0:7000", "--kv-listen 0.0.0.0:7000", "--kv-allow-wildcard");
    assert_refused("--kv-listen :7000", "--kv-listen :7000", "name one interface");
    assert_refused("--kv-listen [::]:7000", "--kv-listen", "name one interface");
    assert_fine("--kv-listen :7000 --kv-allow-wildcard");
}

TEST(etcd)
{
    assert_fine("--etcd 10.0.0.1:2379,http://etcd-2:2379/ --lease 1s");
    assert_refused("--etcd http://10.0.0.1", "--etcd", "write host:port");
    assert_refused("--etcd http://10.0.0.1:2379,", "--etcd", "want http://host:port");
    assert_refused("--etcd=", "--etcd", "want http://host:port");
    assert_refused("--lease 10ms", "--lease", "1s to 60m");
    assert_refused("--lease 2h", "--lease", "1s to 60m");
}

TEST(engine)
{
    assert_fine("--kv-overcommit 1 --kv-disk a:b.cache:4GiB");
    assert_fine("--kv-overcommit 100");
    assert_refused("--kv-overcommit 0.9", "--kv-overcommit 0.9", "1 to 100");
    assert_refused("--kv-overcommit 101", "--kv-overcommit 101", "1 to 100");
    assert_refused("--kv-overcommit nan", "--kv-overcommit", "");
    assert_refused("--kv-disk kv.cache", "--kv-disk \"kv.cache\"", "want FILE:SIZE");
    assert_refused("--kv-disk :4GiB", "--kv-disk", "want FILE:SIZE");
    assert_refused("--kv-disk kv.cache:0", "--kv-disk", "want FILE:SIZE");
    assert_refused("--kv-disk kv.cache:some", "--kv-disk", "kv.cache:4GiB");
    assert_fine("--backend cuda --kv-transit 1GiB");
}

TEST(sums)
{
    assert_fine("--kv-transport ucx");
    assert_fine("--kv-transport tcp");
    assert_refused("--kv-transport rdma", "--kv-transport", "\"rdma\" is not one of ucx|tcp");
    assert_fine("--kv-sums all");
    assert_fine("--kv-sums sample");
    assert_fine("--kv-sums off");
    assert_refused("--kv-sums some", "--kv-sums", "\"some\" is not one of all|sample|off");
    assert_refused("--kv-sums=", "--kv-sums", "all|sample|off");
}

TEST(instance)
{
    assert_fine("--ep-size 3 --ep-rank 2 --instance decode-0 --ep-timeout 5s");
    assert_refused("--ep-rank 1", "--ep-rank 1", "--ep-size is 1");
    assert_refused("--ep-size 2", "--instance", "a name is needed");
    assert_refused("--ep-size 2 --instance Wrong", "--instance", "lower-case");
    assert_refused("--ep-size 65 --instance a", "--ep-size", "64");
    assert_refused("--ep-size 2 --instance a --backend cuda", "--ep-size 2", "--backend cpu");
    assert_refused("--ep-listen :0", "--ep-listen", "--kv-allow-wildcard");
    assert_refused("--ep-listen nonsense", "--ep-listen", "");
    assert_refused("--ep-size 2 --instance a --ep-timeout 0s", "--ep-timeout", "more than 0");
}

TEST(kv_disk)
{
    char path[NOD_PATH_MAX], text[NOD_PATH_MAX + 8];
    uint64_t bytes;
    sl_err err;
    assert_ok(nod_kv_disk_parse("/var/c:ache:2KiB", path, &bytes, &err), &err);
    assert_string_equal(path, "/var/c:ache");
    assert_int_equal(bytes, 2048);
    memset(text, 'p', NOD_PATH_MAX);
    snprintf(text + NOD_PATH_MAX - 1, 8, ":1GiB");
    assert_ok(nod_kv_disk_parse(text, path, &bytes, &err), &err);
    snprintf(text + NOD_PATH_MAX, 8, ":1GiB");
    text[NOD_PATH_MAX - 1] = 'p';
    assert_code(nod_kv_disk_parse(text, path, &bytes, &err), SL_INVALID);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(names),   cmocka_unit_test(addresses), cmocka_unit_test(etcd),
    cmocka_unit_test(engine),  cmocka_unit_test(sums),      cmocka_unit_test(instance),
    cmocka_unit_test(kv_disk),
};
TEST_MAIN(TESTS)
