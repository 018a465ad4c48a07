/* Streams that have nothing to send: comments in them, and the head that comes before its time. */
#include "tests/unit/router/front_kit.h"

#define COMMENT ": keep-alive\n\n"

static void short_silence(rtr_shared *shared)
{
    shared->tuning.keep_alive_ns = 20 * SL_MS_NS;
}

static size_t comments(const kit_client *c)
{
    size_t count = 0;
    for (const char *at = c->text.data; at && (at = strstr(at, COMMENT)) != NULL; at++)
        count++;
    return count;
}

/* The prompt takes long: the head comes early, without nodes, which may change yet; then comments.
 * A stream that is silent between tokens has them too, an answer in one piece never. */
TEST(silent_streams_are_kept_alive)
{
    kit k;
    kit_open(&k, short_silence);
    kit_node *d = kit_add(&k, "d-a", true), *p = kit_add(&k, "p-a", false);
    p->finish_runs = false;
    KIT_UNTIL(&k, kit_ready(&k));
    kit_client whole = kit_post(&k, CHAT, BODY(",\"max_tokens\":5"));
    KIT_UNTIL(&k, p->runs == 1);
    kit_client c = kit_post(&k, CHAT, STREAM);
    KIT_UNTIL(&k, p->runs == 2);
    KIT_UNTIL(&k, (kit_take(&c), comments(&c) >= 3));
    assert_text_contains(c.text.data, "HTTP/1.1 200 OK\r\n");
    assert_text_contains(c.text.data, "content-type: text/event-stream\r\n");
    assert_text_contains(c.text.data, "x-request-id: r-");
    assert_text_contains(c.text.data, "x-sluice-seed: ");
    assert_null(strstr(c.text.data, "-node: "));
    assert_null(strstr(c.text.data, "data: "));
    kit_tokens_of(d, 1, 0, 2, NONE);
    kit_expect(&k, &c, "101]");
    size_t before = comments(&c);
    KIT_UNTIL(&k, (kit_take(&c), comments(&c) >= before + 2));
    kit_tokens_of(d, 1, 2, 3, STOP);
    kit_expect(&k, &c, "data: [DONE]");
    check_tokens(&c, 5);
    kit_take(&whole);
    assert_null(whole.text.data);
    kit_tokens_of(d, 0, 0, 5, LENGTH);
    kit_expect(&k, &whole, "\"usage\":{");
    assert_text_contains(whole.text.data, "x-sluice-decode-node: d-a\r\n");
    assert_int_equal(comments(&whole), 0);
    kit_client_close(&whole);
    kit_client_close(&c);
    kit_close(&k);
}

/* No node comes: too late for a status, so the error is an event, and the only one. */
TEST(a_kept_stream_fails_by_an_event)
{
    kit k;
    kit_open(&k, short_silence);
    kit_client c = kit_post(&k, CHAT, STREAM);
    kit_expect(&k, &c, COMMENT);
    kit_expect(&k, &c, "\r\n0\r\n\r\n");
    assert_text_contains(c.text.data, "HTTP/1.1 200 OK\r\n");
    assert_text_contains(c.text.data, "data: {\"error\":{");
    assert_text_contains(c.text.data, "\"code\":\"unavailable\"");
    assert_null(strstr(c.text.data, "[DONE]"));
    assert_null(strstr(c.text.data, "retry-after"));
    kit_client_close(&c);
    kit_close(&k);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(silent_streams_are_kept_alive),
    cmocka_unit_test(a_kept_stream_fails_by_an_event),
};
API_TEST_MAIN(TESTS)
