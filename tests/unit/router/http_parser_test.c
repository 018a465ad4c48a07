/* What the HTTP parser takes, what it refuses, and that the cut of the bytes does not matter. */
#include "tests/unit/test.h"

#include "base/bytes.h"
#include "router/http_parser.h"

#define BODY_MAX 100

typedef struct parsed {
    int error_status;
    bool complete;
    bool head;
    rtr_http_method method;
    char path[256];
    char query[256];
    bool keep_alive, expect_continue, chunked;
    int minor;
    sl_buf body;
    size_t used;
} parsed;

/* Feeds text in pieces of `cut` bytes up to the end of one message. */
static void parse_cut(const char *text, size_t size, size_t cut, parsed *out)
{
    rtr_http_parser parser;
    rtr_http_parser_init(&parser, BODY_MAX);
    memset(out, 0, sizeof *out);
    sl_buf_init(&out->body, 0);
    size_t at = 0, given = 0;
    for (;;) {
        size_t used = 0;
        sl_span piece = {NULL, 0};
        rtr_http_parse result = rtr_http_parser_feed(&parser, text + at, given - at, &used, &piece);
        at += used;
        assert_true(at <= given);
        if (result == RTR_HTTP_HEAD_READY) {
            out->head = true;
            out->method = parser.head.method;
            snprintf(out->path, sizeof out->path, "%s", parser.head.path);
            snprintf(out->query, sizeof out->query, "%s", parser.head.query);
            out->keep_alive = parser.head.keep_alive;
            out->expect_continue = parser.head.expect_continue;
            out->chunked = parser.head.chunked;
            out->minor = parser.head.minor;
        } else if (result == RTR_HTTP_BODY) {
            sl_buf_append(&out->body, piece.data, piece.size);
        } else if (result == RTR_HTTP_COMPLETE) {
            out->complete = true;
            break;
        } else if (result == RTR_HTTP_ERROR) {
            out->error_status = parser.error_status;
            assert_non_null(parser.error_text);
            break;
        } else {
            assert_int_equal(at, given);
            if (given == size)
                break;
            given = given + cut < size ? given + cut : size;
        }
    }
    out->used = at;
    rtr_http_parser_fini(&parser);
}

typedef struct good_case {
    const char *text;
    rtr_http_method method;
    const char *path;
    const char *query;
    bool keep_alive;
    const char *body;
} good_case;

static const good_case GOOD[] = {
    {"GET / HTTP/1.1\r\nHost: a\r\n\r\n", RTR_HTTP_GET, "/", "", true, ""},
    {"\r\nGET /x?y=1&z HTTP/1.1\r\nHost: a\r\n\r\n", RTR_HTTP_GET, "/x", "y=1&z", true, ""},
    {"GET http://host:80/p?q HTTP/1.1\r\nHost: a\r\n\r\n", RTR_HTTP_GET, "/p", "q", true, ""},
    {"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", RTR_HTTP_OPTIONS, "*", "", true, ""},
    {"HEAD / HTTP/1.0\r\n\r\n", RTR_HTTP_HEAD, "/", "", false, ""},
    {"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", RTR_HTTP_GET, "/", "", true, ""},
    {"GET / HTTP/1.1\r\nHost: a\r\nConnection: foo ,  close\r\n\r\n", RTR_HTTP_GET, "/", "", false,
     ""},
    {"PATCH / HTTP/1.1\r\nHost: a\r\n\r\n", RTR_HTTP_OTHER, "/", "", true, ""},
    {"POST / HTTP/1.1\r\nhost:a\r\ncontent-LENGTH:\t5 \r\n\r\nhello", RTR_HTTP_POST, "/", "", true,
     "hello"},
    {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", RTR_HTTP_POST, "/", "", true, ""},
    {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n"
     "5;a=b\r\nhello\r\n06\r\n world\r\n0\r\n\r\n",
     RTR_HTTP_POST, "/", "", true, "hello world"},
    {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
     "a\r\n0123456789\r\n000\r\nTrailer: x\r\nOther: y\r\n\r\n",
     RTR_HTTP_POST, "/", "", true, "0123456789"},
    {"GET / HTTP/1.1\r\nHost: a\r\nX-Empty:\r\nX-Utf: \xc3\xa9\r\n\r\n", RTR_HTTP_GET, "/", "",
     true, ""},
};

TEST(good_requests_in_every_cut)
{
    for (size_t i = 0; i < sizeof GOOD / sizeof GOOD[0]; i++) {
        const good_case *c = &GOOD[i];
        size_t size = strlen(c->text);
        for (size_t cut = 1; cut <= size; cut++) {
            parsed p;
            parse_cut(c->text, size, cut, &p);
            if (!p.complete)
                fail_msg("case %zu cut %zu: error %d", i, cut, p.error_status);
            assert_int_equal(p.method, c->method);
            assert_string_equal(p.path, c->path);
            assert_string_equal(p.query, c->query);
            assert_int_equal(p.keep_alive, c->keep_alive);
            assert_string_equal(p.body.data ? p.body.data : "", c->body);
            assert_int_equal(p.used, size);
            sl_buf_fini(&p.body);
        }
    }
}

typedef struct bad_case {
    int status;
    const char *text;
} bad_case;

#define H "Host: a\r\n"

static const bad_case BAD[] = {
    {400, "GET\r\n\r\n"},
    {400, "GET /\r\n\r\n"},
    {400, "GET / HTTP/1.1\n\n"},
    {400, "GET / HTTP/1.1\r\nHost: a\n\r\n"},
    {400, "GET / HTTP/1.1\rHost: a\r\n\r\n"},
    {400, "GET  / HTTP/1.1\r\n" H "\r\n"},
    {400, "GET / FTP/1.1\r\n" H "\r\n"},
    {505, "GET / HTTP/2.0\r\n" H "\r\n"},
    {505, "GET / HTTP/1.2\r\n" H "\r\n"},
    {400, "G(T / HTTP/1.1\r\n" H "\r\n"},
    {400, " GET / HTTP/1.1\r\n" H "\r\n"},
    {400, "GET x HTTP/1.1\r\n" H "\r\n"},
    {400, "GET /a#b HTTP/1.1\r\n" H "\r\n"},
    {400, "GET /\x7f HTTP/1.1\r\n" H "\r\n"},
    {400, "GET /\xc3\xa9 HTTP/1.1\r\n" H "\r\n"},
    {400, "GET * HTTP/1.1\r\n" H "\r\n"},
    {400, "GET https://h/ HTTP/1.1\r\n" H "\r\n"},
    {400, "GET http://h HTTP/1.1\r\n" H "\r\n"},
    {400, "\r\n\r\n"},
    {400, "GET / HTTP/1.1\r\n\r\n"},
    {400, "GET / HTTP/1.1\r\n" H H "\r\n"},
    {400, "GET / HTTP/1.1\r\n" H "no colon\r\n\r\n"},
    {400, "GET / HTTP/1.1\r\n" H ": x\r\n\r\n"},
    {400, "GET / HTTP/1.1\r\n" H "a : x\r\n\r\n"},
    {400, "GET / HTTP/1.1\r\n" H "a: x\r\n folded\r\n\r\n"},
    {400, "GET / HTTP/1.1\r\n" H "a: x\x01y\r\n\r\n"},
    {400, "POST / HTTP/1.1\r\n" H "Content-Length: x\r\n\r\n"},
    {400, "POST / HTTP/1.1\r\n" H "Content-Length: +1\r\n\r\n"},
    {400, "POST / HTTP/1.1\r\n" H "Content-Length: -1\r\n\r\n"},
    {400, "POST / HTTP/1.1\r\n" H "Content-Length: 1, 1\r\n\r\n"},
    {400, "POST / HTTP/1.1\r\n" H "Content-Length:\r\n\r\n"},
    {400, "POST / HTTP/1.1\r\n" H "Content-Length: 1\r\nContent-Length: 1\r\n\r\nx"},
    {400, "POST / HTTP/1.1\r\n" H "Content-Length: 99999999999999999999\r\n\r\n"},
    {413, "POST / HTTP/1.1\r\n" H "Content-Length: 101\r\n\r\n"},
    {413, "POST / HTTP/1.1\r\n" H "Content-Length: 18446744073709551609\r\n\r\n"},
    {400, "POST / HTTP/1.1\r\n" H "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"},
    {400,
     "POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"},
    {400, "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"},
    {501, "POST / HTTP/1.1\r\n" H "Transfer-Encoding: gzip, chunked\r\n\r\n"},
    {417, "POST / HTTP/1.1\r\n" H "Expect: 200-ok\r\nContent-Length: 1\r\n\r\n"},
    {400, "POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n\r\n"},
    {400, "POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\nx\r\n"},
    {400, "POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n;a\r\n"},
    {400, "POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n1\nx"},
    {400, "POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n1\r\nxy\r\n"},
    {400, "POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n1\r\nx\n\n"},
    {400, "POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n1 \r\nx\r\n"},
    {413, "POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n65\r\n"},
    {413, "POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n"
          "64\r\n0123456789012345678901234567890123456789012345678901234567890123456789012345678901"
          "234567890123456789\r\n1\r\n"},
    {413, "POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n"},
    {400, "POST / HTTP/1.1\r\n" H "Transfer-Encoding: chunked\r\n\r\n0\r\na\nb\r\n\r\n"},
};

TEST(bad_requests_in_every_cut)
{
    for (size_t i = 0; i < sizeof BAD / sizeof BAD[0]; i++) {
        size_t size = strlen(BAD[i].text);
        for (size_t cut = 1; cut <= size; cut++) {
            parsed p;
            parse_cut(BAD[i].text, size, cut, &p);
            if (p.error_status != BAD[i].status)
                fail_msg("case %zu cut %zu: status %d, expected %d", i, cut, p.error_status,
                         BAD[i].status);
            sl_buf_fini(&p.body);
        }
    }
}

TEST(nul_in_head)
{
    static const char TEXT[] = "GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n";
    parsed p;
    parse_cut(TEXT, sizeof TEXT - 1, 7, &p);
    assert_int_equal(p.error_status, 400);
    sl_buf_fini(&p.body);
}

static int status_of(sl_buf *text)
{
    parsed p;
    parse_cut(text->data, text->size, 1000, &p);
    sl_buf_fini(&p.body);
    return p.error_status;
}

TEST(limits)
{
    sl_buf text;
    sl_buf_init(&text, 0);
    sl_buf_puts(&text, "GET /");
    for (int i = 0; i < 9000; i++)
        sl_buf_putc(&text, 'a');
    assert_int_equal(status_of(&text), 414);

    sl_buf_clear(&text);
    sl_buf_puts(&text, "GET / HTTP/1.1\r\nHost: a\r\nX: ");
    for (int i = 0; i < 40000; i++)
        sl_buf_putc(&text, 'a');
    assert_int_equal(status_of(&text), 431);

    sl_buf_clear(&text);
    sl_buf_puts(&text, "GET / HTTP/1.1\r\nHost: a\r\n");
    for (int i = 0; i < 100; i++)
        sl_buf_printf(&text, "x%d: y\r\n", i);
    sl_buf_puts(&text, "\r\n");
    assert_int_equal(status_of(&text), 431);

    sl_buf_clear(&text);
    sl_buf_puts(&text, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;");
    for (int i = 0; i < 300; i++)
        sl_buf_putc(&text, 'a');
    assert_int_equal(status_of(&text), 400);

    sl_buf_clear(&text);
    sl_buf_puts(&text, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ");
    for (int i = 0; i < 9000; i++)
        sl_buf_putc(&text, 'a');
    assert_int_equal(status_of(&text), 431);
    sl_buf_fini(&text);
}

TEST(headers_are_found_and_the_next_request_is_left)
{
    static const char TEXT[] = "GET /a HTTP/1.1\r\nHost: h\r\nX-Thing:  two words \r\n\r\nGET /b";
    rtr_http_parser parser;
    size_t used;
    sl_span piece;
    rtr_http_parser_init(&parser, BODY_MAX);
    assert_false(rtr_http_parser_begun(&parser));
    assert_int_equal(rtr_http_parser_feed(&parser, TEXT, sizeof TEXT - 1, &used, &piece),
                     RTR_HTTP_HEAD_READY);
    assert_true(rtr_http_parser_begun(&parser));
    assert_string_equal(rtr_http_head_get(&parser.head, "x-thing"), "two words");
    assert_null(rtr_http_head_get(&parser.head, "x-other"));
    size_t at = used;
    assert_int_equal(rtr_http_parser_feed(&parser, TEXT + at, sizeof TEXT - 1 - at, &used, &piece),
                     RTR_HTTP_COMPLETE);
    assert_int_equal(used, 0);
    assert_string_equal(TEXT + at, "GET /b");
    rtr_http_parser_reset(&parser);
    assert_false(rtr_http_parser_begun(&parser));
    rtr_http_parser_fini(&parser);
}

static const struct CMUnitTest TESTS[] = {
    cmocka_unit_test(good_requests_in_every_cut),
    cmocka_unit_test(bad_requests_in_every_cut),
    cmocka_unit_test(nul_in_head),
    cmocka_unit_test(limits),
    cmocka_unit_test(headers_are_found_and_the_next_request_is_left),
};
TEST_MAIN(TESTS)
