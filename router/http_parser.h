/* A strict, incremental HTTP/1.x request parser.
 *
 * Bytes go in as they come, in any cut; the head is kept inside, the body is handed out as borrowed
 * slices. What is ambiguous is refused (bare LF, folded headers, white space before a colon, both
 * Content-Length and Transfer-Encoding, repeated Content-Length or Host), because two readings of
 * one message are how requests get smuggled. Pure: no I/O, no clock. Thread: owner. */
#ifndef ROUTER_HTTP_PARSER_H
#define ROUTER_HTTP_PARSER_H

#include "base/bytes.h"
#include "router/limits.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum rtr_http_method {
    RTR_HTTP_GET,
    RTR_HTTP_HEAD,
    RTR_HTTP_POST,
    RTR_HTTP_OPTIONS,
    RTR_HTTP_OTHER,
} rtr_http_method;

typedef struct rtr_http_header {
    const char *name; /* lower case, terminated */
    const char *value;
    size_t value_size;
} rtr_http_header;

typedef struct rtr_http_head {
    rtr_http_method method;
    const char *method_text;
    const char *path;  /* begins with '/', terminated, as sent (not percent-decoded) */
    const char *query; /* behind '?'; "" if none */
    int minor;         /* HTTP/1.minor: 0 or 1 */
    bool keep_alive;
    bool expect_continue;
    bool chunked;
    bool has_body;         /* chunked, or a Content-Length above 0 */
    uint64_t content_size; /* Content-Length */
    rtr_http_header headers[RTR_HTTP_HEADERS_MAX];
    size_t header_count;
} rtr_http_head;

typedef enum rtr_http_parse {
    RTR_HTTP_MORE, /* all input was used; more is needed */
    RTR_HTTP_HEAD_READY,
    RTR_HTTP_BODY,     /* a slice of the body */
    RTR_HTTP_COMPLETE, /* the message is over; call rtr_http_parser_reset for the next */
    RTR_HTTP_ERROR,    /* see the error fields; the parser stays there */
} rtr_http_parse;

typedef struct rtr_http_parser {
    rtr_http_head head;
    int error_status;       /* 400, 413, 414, 417, 431, 501, 505 */
    const char *error_text; /* a literal */

    /* private */
    int state;
    uint64_t body_max;
    uint64_t body_left;  /* of the message or of the chunk */
    uint64_t body_taken; /* of all chunks */
    uint32_t line_size;  /* of the chunk line or the trailer */
    uint32_t trailer_size;
    uint32_t digit_count;
    bool in_extension;
    size_t scanned;
    char *text; /* the head; NULL until bytes come */
    size_t text_size;
    size_t text_capacity;
} rtr_http_parser;

void rtr_http_parser_init(rtr_http_parser *parser, uint64_t body_max);
void rtr_http_parser_fini(rtr_http_parser *parser);
void rtr_http_parser_reset(rtr_http_parser *parser);

/* Takes up to `size` bytes; *out_used says how many. *out_body is set for RTR_HTTP_BODY and points
 * into data. Call again with the rest until RTR_HTTP_MORE. size 0 is fine. */
rtr_http_parse rtr_http_parser_feed(rtr_http_parser *parser, const char *data, size_t size,
                                    size_t *out_used, sl_span *out_body);
/* True once a byte of a message came (so the header time limit runs). */
bool rtr_http_parser_begun(const rtr_http_parser *parser);

/* Value of a header by lower-case name, NULL if absent; the first one if repeated. */
const char *rtr_http_head_get(const rtr_http_head *head, const char *name);

#ifdef __cplusplus
}
#endif
#endif
