/* HTTP/1.x request parsing (RFC 9112), strict.
 *
 * The head is collected until its empty line, then cut into lines in place; the body is passed
 * through. Never allocates more than RTR_HTTP_HEAD_MAX and never looks at a byte twice. */
#include "router/http_parser.h"

#include "base/alloc.h"
#include "base/assert.h"

#include <string.h>
#include <strings.h>

enum {
    STATE_START, /* before the request line: one empty line is tolerated */
    STATE_HEAD,
    STATE_BODY, /* Content-Length */
    STATE_CHUNK_LINE,
    STATE_CHUNK_DATA,
    STATE_CHUNK_CR,
    STATE_CHUNK_LF,
    STATE_TRAILER,
    STATE_COMPLETE,
    STATE_ERROR,
};

static rtr_http_parse parser_error(rtr_http_parser *parser, int status, const char *text)
{
    parser->state = STATE_ERROR;
    parser->error_status = status;
    parser->error_text = text;
    return RTR_HTTP_ERROR;
}

/* RFC 9110 tchar */
static bool is_token_char(unsigned char c)
{
    if ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'))
        return true;
    return c != 0 && strchr("!#$%&'*+-.^_`|~", c) != NULL;
}

static bool is_token(const char *text)
{
    if (!*text)
        return false;
    for (; *text; text++) {
        if (!is_token_char((unsigned char)*text))
            return false;
    }
    return true;
}

static rtr_http_method method_of(const char *text)
{
    if (strcmp(text, "GET") == 0)
        return RTR_HTTP_GET;
    if (strcmp(text, "HEAD") == 0)
        return RTR_HTTP_HEAD;
    if (strcmp(text, "POST") == 0)
        return RTR_HTTP_POST;
    if (strcmp(text, "OPTIONS") == 0)
        return RTR_HTTP_OPTIONS;
    return RTR_HTTP_OTHER;
}

/* Origin form, the absolute form that proxies send, or "*" of OPTIONS. */
static bool parse_target(rtr_http_head *head, char *target)
{
    for (const char *c = target; *c; c++) {
        if ((unsigned char)*c <= 0x20 || (unsigned char)*c >= 0x7f)
            return false;
    }
    if (strcmp(target, "*") == 0 && head->method == RTR_HTTP_OPTIONS) {
        head->path = target;
        head->query = "";
        return true;
    }
    if (strncasecmp(target, "http://", 7) == 0) {
        target = strchr(target + 7, '/');
        if (!target)
            return false;
    }
    if (target[0] != '/')
        return false;
    head->path = target;
    head->query = "";
    char *fragment = strchr(target, '#');
    if (fragment)
        return false;
    char *question = strchr(target, '?');
    if (question) {
        *question = 0;
        head->query = question + 1;
    }
    return true;
}

static rtr_http_parse parse_request_line(rtr_http_parser *parser, char *line)
{
    rtr_http_head *head = &parser->head;
    char *space = strchr(line, ' ');
    char *last = strrchr(line, ' ');
    if (!space || last == space)
        return parser_error(parser, 400, "the request line is malformed");
    *space = 0;
    *last = 0;
    if (!is_token(line))
        return parser_error(parser, 400, "the request method is malformed");
    head->method_text = line;
    head->method = method_of(line);
    if (strncmp(last + 1, "HTTP/", 5) != 0)
        return parser_error(parser, 400, "the request line is malformed");
    if (strcmp(last + 1, "HTTP/1.1") == 0)
        head->minor = 1;
    else if (strcmp(last + 1, "HTTP/1.0") == 0)
        head->minor = 0;
    else
        return parser_error(parser, 505, "only HTTP/1.0 and HTTP/1.1 are spoken here");
    if (!parse_target(head, space + 1))
        return parser_error(parser, 400, "the request target is malformed");
    return RTR_HTTP_MORE;
}

/* Visits the comma-separated elements of a list header. */
static bool list_has(const char *value, const char *word)
{
    size_t word_size = strlen(word);
    while (*value) {
        value += strspn(value, " \t,");
        size_t size = strcspn(value, ",");
        size_t trimmed = size;
        while (trimmed > 0 && (value[trimmed - 1] == ' ' || value[trimmed - 1] == '\t'))
            trimmed--;
        if (trimmed == word_size && strncasecmp(value, word, word_size) == 0)
            return true;
        value += size;
    }
    return false;
}

static bool parse_content_size(const char *value, uint64_t *out_size)
{
    uint64_t size = 0;
    if (!*value)
        return false;
    for (; *value; value++) {
        if (*value < '0' || *value > '9')
            return false;
        if (size > (UINT64_MAX - 9) / 10)
            return false;
        size = size * 10 + (uint64_t)(*value - '0');
    }
    *out_size = size;
    return true;
}

static rtr_http_parse parse_header_line(rtr_http_parser *parser, char *line, size_t size)
{
    rtr_http_head *head = &parser->head;
    if (head->header_count == RTR_HTTP_HEADERS_MAX)
        return parser_error(parser, 431, "too many headers");
    char *colon = memchr(line, ':', size);
    if (!colon)
        return parser_error(parser, 400, "a header line has no colon");
    *colon = 0;
    if (!is_token(line)) /* also folded lines and white space before the colon */
        return parser_error(parser, 400, "a header name is malformed");
    for (char *c = line; *c; c++) {
        if (*c >= 'A' && *c <= 'Z')
            *c = (char)(*c + 32);
    }
    char *value = colon + 1;
    char *end = line + size;
    while (value < end && (*value == ' ' || *value == '\t'))
        value++;
    while (end > value && (end[-1] == ' ' || end[-1] == '\t'))
        end--;
    for (const char *c = value; c < end; c++) {
        if (((unsigned char)*c < 0x20 && *c != '\t') || *c == 0x7f)
            return parser_error(parser, 400, "a header value holds a control character");
    }
    *end = 0;
    rtr_http_header *header = &head->headers[head->header_count++];
    header->name = line;
    header->value = value;
    header->value_size = (size_t)(end - value);
    return RTR_HTTP_MORE;
}

static rtr_http_parse apply_framing(rtr_http_parser *parser, const char *size_text,
                                    const char *coding)
{
    rtr_http_head *head = &parser->head;
    if (coding && size_text)
        return parser_error(parser, 400, "both content-length and transfer-encoding are given");
    if (coding) {
        if (head->minor == 0)
            return parser_error(parser, 400, "transfer-encoding is not part of HTTP/1.0");
        if (strcasecmp(coding, "chunked") != 0)
            return parser_error(parser, 501, "only the transfer encoding chunked is supported");
        head->chunked = true;
        head->has_body = true;
    }
    if (size_text) {
        if (!parse_content_size(size_text, &head->content_size))
            return parser_error(parser, 400, "content-length is not a number");
        head->has_body = head->content_size > 0;
        if (head->content_size > parser->body_max)
            return parser_error(parser, 413, "the request body is over the limit (--body-max)");
    }
    return RTR_HTTP_MORE;
}

/* What the headers mean for framing and connection. */
static rtr_http_parse interpret_headers(rtr_http_parser *parser)
{
    rtr_http_head *head = &parser->head;
    const char *size_text = NULL;
    const char *coding = NULL;
    int host_count = 0;
    head->keep_alive = head->minor == 1;
    for (size_t i = 0; i < head->header_count; i++) {
        const rtr_http_header *h = &head->headers[i];
        if (strcmp(h->name, "host") == 0) {
            host_count++;
        } else if (strcmp(h->name, "content-length") == 0) {
            if (size_text)
                return parser_error(parser, 400, "content-length is given twice");
            size_text = h->value;
        } else if (strcmp(h->name, "transfer-encoding") == 0) {
            if (coding)
                return parser_error(parser, 400, "transfer-encoding is given twice");
            coding = h->value;
        } else if (strcmp(h->name, "connection") == 0) {
            if (list_has(h->value, "close"))
                head->keep_alive = false;
            else if (head->minor == 0 && list_has(h->value, "keep-alive"))
                head->keep_alive = true;
        } else if (strcmp(h->name, "expect") == 0) {
            if (strcasecmp(h->value, "100-continue") != 0)
                return parser_error(parser, 417, "only the expectation 100-continue is known");
            head->expect_continue = head->minor == 1;
        }
    }
    if (host_count > 1 || (host_count == 0 && head->minor == 1))
        return parser_error(parser, 400, "exactly one host header is needed");
    return apply_framing(parser, size_text, coding);
}

/* text holds the whole head with its final empty line. */
static rtr_http_parse parse_head(rtr_http_parser *parser)
{
    char *at = parser->text;
    char *end = parser->text + parser->text_size - 2; /* without the empty line */
    bool first = true;
    while (at < end) {
        char *cr = memchr(at, '\r', (size_t)(end - at));
        sl_assert(cr && cr[1] == '\n');
        size_t size = (size_t)(cr - at);
        *cr = 0;
        if (memchr(at, 0, size))
            return parser_error(parser, 400, "the head holds a NUL");
        rtr_http_parse result =
            first ? parse_request_line(parser, at) : parse_header_line(parser, at, size);
        if (result == RTR_HTTP_ERROR)
            return result;
        first = false;
        at = cr + 2;
    }
    if (first)
        return parser_error(parser, 400, "the request line is missing");
    if (interpret_headers(parser) == RTR_HTTP_ERROR)
        return RTR_HTTP_ERROR;
    if (!parser->head.has_body) {
        parser->state = STATE_COMPLETE;
    } else if (parser->head.chunked) {
        parser->state = STATE_CHUNK_LINE;
    } else {
        parser->state = STATE_BODY;
        parser->body_left = parser->head.content_size;
    }
    return RTR_HTTP_HEAD_READY;
}

static void head_append(rtr_http_parser *parser, char c)
{
    if (parser->text_size == parser->text_capacity) {
        size_t capacity = parser->text_capacity ? parser->text_capacity * 2 : 1024;
        parser->text = sl_realloc(parser->text, capacity, 1, "http head");
        parser->text_capacity = capacity;
    }
    parser->text[parser->text_size++] = c;
}

/* Collects head bytes up to the empty line. `scanned` = start of the current line. */
static rtr_http_parse feed_head(rtr_http_parser *parser, const char *data, size_t size,
                                size_t *out_used)
{
    for (size_t i = 0; i < size; i++) {
        char c = data[i];
        size_t n = parser->text_size;
        *out_used = i + 1;
        bool after_cr = n > 0 && parser->text[n - 1] == '\r';
        if ((c == '\n') != after_cr)
            return parser_error(parser, 400, "lines must end with CR LF");
        if (n == RTR_HTTP_HEAD_MAX)
            return parser_error(parser, 431, "the request head is over the limit");
        head_append(parser, c);
        n++;
        if (parser->scanned == 0 && n > RTR_HTTP_LINE_MAX)
            return parser_error(parser, 414, "the request line is over the limit");
        if (c != '\n')
            continue;
        if (n - parser->scanned == 2) { /* an empty line */
            if (n == 2 && parser->state == STATE_START) {
                parser->text_size = 0; /* tolerated before a request line, once */
                parser->state = STATE_HEAD;
                continue;
            }
            return parse_head(parser);
        }
        parser->state = STATE_HEAD;
        parser->scanned = n;
    }
    return RTR_HTTP_MORE;
}

static rtr_http_parse feed_body(rtr_http_parser *parser, const char *data, size_t size,
                                size_t *out_used, sl_span *out_body)
{
    if (size == 0)
        return RTR_HTTP_MORE;
    size_t take = size < parser->body_left ? size : (size_t)parser->body_left;
    parser->body_left -= take;
    *out_used = take;
    out_body->data = (const uint8_t *)data;
    out_body->size = take;
    if (parser->body_left == 0)
        parser->state = parser->state == STATE_BODY ? STATE_COMPLETE : STATE_CHUNK_CR;
    return RTR_HTTP_BODY;
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

static rtr_http_parse chunk_line_end(rtr_http_parser *parser)
{
    if (parser->digit_count == 0)
        return parser_error(parser, 400, "a chunk has no size");
    if (parser->body_left > parser->body_max - parser->body_taken)
        return parser_error(parser, 413, "the request body is over the limit (--body-max)");
    parser->body_taken += parser->body_left;
    parser->state = parser->body_left ? STATE_CHUNK_DATA : STATE_TRAILER;
    parser->line_size = 0;
    parser->trailer_size = 0;
    return RTR_HTTP_MORE;
}

/* chunk-size [ ";" extension ] CR LF; extensions are skipped. */
static rtr_http_parse feed_chunk_line(rtr_http_parser *parser, char c)
{
    if (parser->line_size == 0) {
        parser->body_left = 0;
        parser->digit_count = 0;
        parser->in_extension = false;
        parser->scanned = 0; /* here: 1 after a CR */
    }
    if (++parser->line_size > RTR_HTTP_CHUNK_LINE_MAX)
        return parser_error(parser, 400, "a chunk header is over the limit");
    if (parser->scanned)
        return c == '\n' ? chunk_line_end(parser)
                         : parser_error(parser, 400, "lines must end with CR LF");
    if (c == '\r') {
        parser->scanned = 1;
        return RTR_HTTP_MORE;
    }
    if (parser->in_extension) {
        if ((unsigned char)c < 0x20 && c != '\t')
            return parser_error(parser, 400, "a chunk extension is malformed");
        return RTR_HTTP_MORE;
    }
    int digit = hex_value(c);
    if (digit >= 0) {
        if (++parser->digit_count > 15)
            return parser_error(parser, 413, "the request body is over the limit (--body-max)");
        parser->body_left = parser->body_left * 16 + (uint64_t)digit;
    } else if (c == ';' && parser->digit_count > 0) {
        parser->in_extension = true;
    } else {
        return parser_error(parser, 400, "a chunk size is not hexadecimal");
    }
    return RTR_HTTP_MORE;
}

/* Trailer lines are checked for their line ends and dropped. line_size: bytes of the line so far;
 * scanned: 1 after a CR. */
static rtr_http_parse feed_trailer(rtr_http_parser *parser, char c)
{
    if (parser->line_size == 0)
        parser->scanned = 0;
    if (++parser->trailer_size > RTR_HTTP_TRAILER_MAX)
        return parser_error(parser, 431, "the trailer is over the limit");
    parser->line_size++;
    if (parser->scanned) {
        if (c != '\n')
            return parser_error(parser, 400, "lines must end with CR LF");
        if (parser->line_size == 2)
            parser->state = STATE_COMPLETE;
        parser->line_size = 0;
        return RTR_HTTP_MORE;
    }
    if (c == '\r') {
        parser->scanned = 1;
    } else if (c == '\n' || c == 0) {
        return parser_error(parser, 400, "lines must end with CR LF");
    }
    return RTR_HTTP_MORE;
}

static rtr_http_parse feed_chunk_byte(rtr_http_parser *parser, char c)
{
    switch (parser->state) {
    case STATE_CHUNK_LINE:
        return feed_chunk_line(parser, c);
    case STATE_CHUNK_CR:
        if (c != '\r')
            return parser_error(parser, 400, "a chunk is longer than its size");
        parser->state = STATE_CHUNK_LF;
        return RTR_HTTP_MORE;
    case STATE_CHUNK_LF:
        if (c != '\n')
            return parser_error(parser, 400, "lines must end with CR LF");
        parser->state = STATE_CHUNK_LINE;
        parser->line_size = 0;
        return RTR_HTTP_MORE;
    default:
        sl_assert(parser->state == STATE_TRAILER);
        return feed_trailer(parser, c);
    }
}

void rtr_http_parser_init(rtr_http_parser *parser, uint64_t body_max)
{
    memset(parser, 0, sizeof *parser);
    parser->body_max = body_max;
    parser->state = STATE_START;
}

void rtr_http_parser_fini(rtr_http_parser *parser)
{
    sl_free(parser->text);
    parser->text = NULL;
}

void rtr_http_parser_reset(rtr_http_parser *parser)
{
    char *text = parser->text;
    size_t capacity = parser->text_capacity;
    uint64_t body_max = parser->body_max;
    rtr_http_parser_init(parser, body_max);
    parser->text = text;
    parser->text_capacity = capacity;
}

rtr_http_parse rtr_http_parser_feed(rtr_http_parser *parser, const char *data, size_t size,
                                    size_t *out_used, sl_span *out_body)
{
    size_t used = 0;
    *out_used = 0;
    for (;;) {
        size_t step = 0;
        switch (parser->state) {
        case STATE_ERROR:
            return RTR_HTTP_ERROR;
        case STATE_COMPLETE:
            return RTR_HTTP_COMPLETE;
        case STATE_START:
        case STATE_HEAD: {
            rtr_http_parse result = feed_head(parser, data + used, size - used, &step);
            *out_used = used + step;
            return result;
        }
        case STATE_BODY:
        case STATE_CHUNK_DATA: {
            rtr_http_parse result = feed_body(parser, data + used, size - used, &step, out_body);
            *out_used = used + step;
            return result;
        }
        default:
            if (used == size)
                return RTR_HTTP_MORE;
            if (feed_chunk_byte(parser, data[used]) == RTR_HTTP_ERROR)
                return RTR_HTTP_ERROR;
            *out_used = ++used;
            break;
        }
    }
}

bool rtr_http_parser_begun(const rtr_http_parser *parser)
{
    return parser->state != STATE_START || parser->text_size > 0;
}

const char *rtr_http_head_get(const rtr_http_head *head, const char *name)
{
    for (size_t i = 0; i < head->header_count; i++) {
        if (strcmp(head->headers[i].name, name) == 0)
            return head->headers[i].value;
    }
    return NULL;
}
