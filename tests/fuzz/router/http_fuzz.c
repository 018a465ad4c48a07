/* The HTTP parser on any bytes: it never crashes, never runs past its input, and gives the same
 * messages for another cut of the same bytes. The first byte chooses the cut. */
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "router/http_parser.h"

#define BODY_MAX 4096

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Writes down what was seen, up to the first error. */
static void parse(const char *data, size_t size, size_t cut, sl_buf *out)
{
    rtr_http_parser parser;
    size_t at = 0, given = 0;
    rtr_http_parser_init(&parser, BODY_MAX);
    for (;;) {
        size_t used = 0;
        sl_span piece = {NULL, 0};
        rtr_http_parse result = rtr_http_parser_feed(&parser, data + at, given - at, &used, &piece);
        sl_assert(used <= given - at);
        if (result == RTR_HTTP_HEAD_READY) {
            const rtr_http_head *head = &parser.head;
            sl_assert(head->header_count <= RTR_HTTP_HEADERS_MAX && head->path && head->query);
            sl_buf_printf(out, "head %s %s?%s %d %d %zu %llu;", head->method_text, head->path,
                          head->query, head->minor, head->keep_alive, head->header_count,
                          (unsigned long long)head->content_size);
            for (size_t i = 0; i < head->header_count; i++)
                sl_buf_printf(out, "%s=%s;", head->headers[i].name, head->headers[i].value);
        } else if (result == RTR_HTTP_BODY) {
            sl_assert(piece.size > 0 && piece.size <= used);
            sl_buf_append(out, piece.data, piece.size);
        } else if (result == RTR_HTTP_COMPLETE) {
            sl_buf_puts(out, ";complete;");
            rtr_http_parser_reset(&parser);
        } else if (result == RTR_HTTP_ERROR) {
            sl_assert(parser.error_status >= 400 && parser.error_text);
            sl_buf_printf(out, "error %d;", parser.error_status);
            break;
        }
        at += used;
        if (result != RTR_HTTP_MORE)
            continue;
        sl_assert(at == given);
        if (given == size)
            break;
        given = given + cut < size ? given + cut : size;
    }
    rtr_http_parser_fini(&parser);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    sl_buf whole, pieces;
    if (size == 0)
        return 0;
    sl_buf_init(&whole, 0);
    sl_buf_init(&pieces, 0);
    parse((const char *)data + 1, size - 1, size, &whole);
    parse((const char *)data + 1, size - 1, 1 + data[0] % 64u, &pieces);
    sl_assert(whole.size == pieces.size &&
              (whole.size == 0 || memcmp(whole.data, pieces.data, whole.size) == 0));
    sl_buf_fini(&whole);
    sl_buf_fini(&pieces);
    return 0;
}
