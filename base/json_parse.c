/* JSON text to tree: one pass, recursive by value, strings unescaped into the document's arena.
 *
 * Owns the document until it hands it out, and two scratch stacks that hold the elements of open
 * arrays and objects. Any thread, one per call. Never reads past `size`, never recurses deeper than
 * the limit. */
#include "base/json.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/file.h"
#include "base/json_tree.h"

#define BYTES_MAX_DEFAULT ((size_t)64 << 20)
#define BYTES_MAX_HARD    ((size_t)1 << 30) /* counts are 32 bit */
#define DEPTH_MAX_DEFAULT 128
#define DEPTH_MAX_HARD    1024 /* what the thread's stack carries with room to spare */

typedef struct parser {
    const char *text;
    size_t size;
    size_t at;
    int depth;
    int depth_max;
    sl_json_doc *doc;
    struct sl_json *values; /* scratch of open arrays */
    size_t value_count, value_capacity;
    sl_json_member *members; /* scratch of open objects */
    size_t member_count, member_capacity;
    const char *problem;
    sl_code code;
} parser;

static bool parse_value(parser *p, struct sl_json *out);

static bool refuse(parser *p, const char *problem)
{
    if (!p->problem) {
        p->problem = problem;
        p->code = SL_INVALID;
    }
    return false;
}

static void skip_space(parser *p)
{
    while (p->at < p->size) {
        char c = p->text[p->at];
        if (c != ' ' && c != '\n' && c != '\t' && c != '\r')
            return;
        p->at++;
    }
}

static int peek(const parser *p)
{
    return p->at < p->size ? (unsigned char)p->text[p->at] : -1;
}

static bool parse_literal(parser *p, const char *word, sl_json_type type, struct sl_json *out)
{
    size_t length = strlen(word);
    if (p->size - p->at < length || memcmp(p->text + p->at, word, length) != 0)
        return refuse(p, "expected a value");
    p->at += length;
    out->type = (uint8_t)type;
    return true;
}

static size_t skip_digits(parser *p)
{
    size_t start = p->at;
    while (p->at < p->size && p->text[p->at] >= '0' && p->text[p->at] <= '9')
        p->at++;
    return p->at - start;
}

static bool parse_number(parser *p, struct sl_json *out)
{
    size_t start = p->at;
    bool integer = true;
    if (peek(p) == '-')
        p->at++;
    if (peek(p) == '0') {
        p->at++;
        if (peek(p) >= '0' && peek(p) <= '9')
            return refuse(p, "a number must not begin with 0");
    } else if (skip_digits(p) == 0) {
        return refuse(p, "expected a digit");
    }
    if (peek(p) == '.') {
        integer = false;
        p->at++;
        if (skip_digits(p) == 0)
            return refuse(p, "expected a digit after the decimal point");
    }
    if (peek(p) == 'e' || peek(p) == 'E') {
        integer = false;
        p->at++;
        if (peek(p) == '+' || peek(p) == '-')
            p->at++;
        if (skip_digits(p) == 0)
            return refuse(p, "expected a digit in the exponent");
    }
    size_t length = p->at - start;
    char *copy = sl_json_arena_take(p->doc, length + 1);
    memcpy(copy, p->text + start, length);
    copy[length] = '\0';
    out->type = SL_JSON_NUMBER;
    out->as.text = copy;
    out->count = (uint32_t)length;
    out->is_integer = integer;
    return true;
}

static bool parse_hex4(parser *p, uint32_t *out)
{
    uint32_t value = 0;
    if (p->size - p->at < 4)
        return refuse(p, "\\u needs four hex digits");
    for (int i = 0; i < 4; i++) {
        char c = p->text[p->at];
        uint32_t digit;
        if (c >= '0' && c <= '9')
            digit = (uint32_t)(c - '0');
        else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f')
            digit = (uint32_t)((c | 0x20) - 'a' + 10);
        else
            return refuse(p, "\\u needs four hex digits");
        value = value << 4 | digit;
        p->at++;
    }
    *out = value;
    return true;
}

/* Behind the backslash; writes at most 4 bytes, never more than the escape's own length. */
static int parse_escape(parser *p, char *out)
{
    static const char from[] = "\"\\/bfnrt";
    static const char to[] = "\"\\/\b\f\n\r\t";
    int c = peek(p);
    uint32_t code_point, low;
    if (c < 0) {
        refuse(p, "the string does not end");
        return 0;
    }
    if (c != 'u') {
        const char *found = c ? strchr(from, c) : NULL;
        if (!found) {
            refuse(p, "unknown escape");
            return 0;
        }
        p->at++;
        *out = to[found - from];
        return 1;
    }
    p->at++;
    if (!parse_hex4(p, &code_point))
        return 0;
    if (code_point >= 0xd800 && code_point < 0xe000) {
        bool pair = code_point < 0xdc00 && p->size - p->at >= 6 && p->text[p->at] == '\\' &&
                    p->text[p->at + 1] == 'u';
        if (!pair) {
            refuse(p, "lone surrogate");
            return 0;
        }
        p->at += 2;
        if (!parse_hex4(p, &low))
            return 0;
        if (low < 0xdc00 || low >= 0xe000) {
            refuse(p, "lone surrogate");
            return 0;
        }
        code_point = 0x10000 + ((code_point - 0xd800) << 10) + (low - 0xdc00);
    }
    return sl_utf8_encode(code_point, out);
}

/* Index of the closing quote, or size. */
static size_t string_end(const parser *p)
{
    size_t at = p->at;
    while (at < p->size && p->text[at] != '"')
        at += p->text[at] == '\\' ? 2 : 1;
    return at < p->size ? at : p->size;
}

/* At the opening quote. The unescaped text is never longer than the source. */
static bool parse_string(parser *p, const char **out_text, uint32_t *out_size)
{
    p->at++;
    size_t room = string_end(p) - p->at + 1;
    char *text = sl_json_arena_take(p->doc, room);
    size_t used = 0;
    for (;;) {
        int c = peek(p);
        if (c == '"')
            break;
        if (c < 0)
            return refuse(p, "the string does not end");
        if (c < 0x20)
            return refuse(p, "control character in a string");
        if (c == '\\') {
            char bytes[4];
            p->at++;
            int length = parse_escape(p, bytes);
            if (length == 0)
                return false;
            memcpy(text + used, bytes, (size_t)length);
            used += (size_t)length;
            continue;
        }
        if (c < 0x80) {
            text[used++] = (char)c;
            p->at++;
            continue;
        }
        int length = sl_utf8_length(p->text + p->at, p->size - p->at);
        if (length <= 0)
            return refuse(p, "invalid UTF-8");
        memcpy(text + used, p->text + p->at, (size_t)length);
        used += (size_t)length;
        p->at += (size_t)length;
    }
    p->at++;
    sl_assert(used < room);
    text[used] = '\0';
    sl_json_arena_trim(p->doc, text, room, used + 1);
    *out_text = text;
    *out_size = (uint32_t)used;
    return true;
}

static bool parse_array(parser *p, struct sl_json *out)
{
    size_t first = p->value_count;
    p->at++;
    skip_space(p);
    if (peek(p) == ']') {
        p->at++;
    } else {
        for (;;) {
            struct sl_json value;
            if (!parse_value(p, &value))
                return false;
            if (p->value_count == p->value_capacity) {
                p->value_capacity = p->value_capacity ? p->value_capacity * 2 : 64;
                p->values =
                    sl_realloc(p->values, p->value_capacity, sizeof(*p->values), "json scratch");
            }
            p->values[p->value_count++] = value;
            skip_space(p);
            int c = peek(p);
            if (c != ',' && c != ']')
                return refuse(p, "expected ',' or ']'");
            p->at++;
            if (c == ']')
                break;
        }
    }
    size_t count = p->value_count - first;
    struct sl_json *items = sl_json_arena_take(p->doc, count * sizeof(*items));
    if (count)
        memcpy(items, p->values + first, count * sizeof(*items));
    p->value_count = first;
    out->type = SL_JSON_ARRAY;
    out->as.items = items;
    out->count = (uint32_t)count;
    return true;
}

static bool same_key(const sl_json_member *a, const sl_json_member *b)
{
    return a->key_size == b->key_size && memcmp(a->key, b->key, a->key_size) == 0;
}

/* Last value, first position; compacts in place and returns the new count. */
static size_t merge_linear(sl_json_member *members, size_t count)
{
    size_t kept = 0;
    for (size_t i = 0; i < count; i++) {
        size_t j = 0;
        while (j < kept && !same_key(&members[j], &members[i]))
            j++;
        if (j < kept)
            members[j].value = members[i].value;
        else
            members[kept++] = members[i];
    }
    return kept;
}

static size_t merge_hashed(sl_json_member *members, size_t count, uint32_t *table, size_t slots)
{
    size_t kept = 0;
    memset(table, 0, slots * sizeof(*table));
    for (size_t i = 0; i < count; i++) {
        size_t slot = sl_json_hash(members[i].key, members[i].key_size) & (slots - 1);
        while (table[slot] && !same_key(&members[table[slot] - 1], &members[i]))
            slot = (slot + 1) & (slots - 1);
        if (table[slot]) {
            members[table[slot] - 1].value = members[i].value;
        } else {
            members[kept++] = members[i];
            table[slot] = (uint32_t)kept;
        }
    }
    return kept;
}

static void close_object(parser *p, size_t first, struct sl_json *out)
{
    size_t count = p->member_count - first;
    sl_json_member *open = count ? p->members + first : NULL; /* no scratch yet for "{}" */
    p->member_count = first;
    out->type = SL_JSON_OBJECT;
    if (count <= SL_JSON_LINEAR_MAX) {
        count = merge_linear(open, count);
        sl_json_member *copy = sl_json_arena_take(p->doc, count * sizeof(*copy));
        if (count)
            memcpy(copy, open, count * sizeof(*copy));
        out->as.members = copy;
        out->count = (uint32_t)count;
        return;
    }
    /* Merging may leave fewer members than the table was sized for, so the table is built for the
     * final count: merge with a scratch table first, then fill the one behind the members. */
    size_t slots = sl_json_table_slots(count);
    uint32_t *scratch = sl_alloc(slots, sizeof(*scratch), "json scratch");
    size_t kept = merge_hashed(open, count, scratch, slots);
    size_t final_slots = kept > SL_JSON_LINEAR_MAX ? sl_json_table_slots(kept) : 0;
    sl_json_member *copy =
        sl_json_arena_take(p->doc, kept * sizeof(*copy) + final_slots * sizeof(uint32_t));
    memcpy(copy, open, kept * sizeof(*copy));
    if (final_slots == slots)
        memcpy(copy + kept, scratch, slots * sizeof(*scratch));
    else if (final_slots)
        sl_assert(merge_hashed(copy, kept, (uint32_t *)(copy + kept), final_slots) == kept);
    sl_free(scratch);
    out->as.members = copy;
    out->count = (uint32_t)kept;
}

static bool parse_member(parser *p, sl_json_member *member)
{
    skip_space(p);
    if (peek(p) != '"')
        return refuse(p, "expected a key in quotes");
    if (!parse_string(p, &member->key, &member->key_size))
        return false;
    skip_space(p);
    if (peek(p) != ':')
        return refuse(p, "expected ':'");
    p->at++;
    return parse_value(p, &member->value);
}

static bool parse_object(parser *p, struct sl_json *out)
{
    size_t first = p->member_count;
    p->at++;
    skip_space(p);
    if (peek(p) == '}') {
        p->at++;
        close_object(p, first, out);
        return true;
    }
    for (;;) {
        sl_json_member member = {0};
        if (!parse_member(p, &member))
            return false;
        if (p->member_count == p->member_capacity) {
            p->member_capacity = p->member_capacity ? p->member_capacity * 2 : 64;
            p->members =
                sl_realloc(p->members, p->member_capacity, sizeof(*p->members), "json scratch");
        }
        p->members[p->member_count++] = member;
        skip_space(p);
        int c = peek(p);
        if (c != ',' && c != '}')
            return refuse(p, "expected ',' or '}'");
        p->at++;
        if (c == '}')
            break;
    }
    close_object(p, first, out);
    return true;
}

static bool parse_nested(parser *p, struct sl_json *out, bool object)
{
    if (p->depth >= p->depth_max) {
        refuse(p, "nested too deeply");
        p->code = SL_TOO_LARGE;
        return false;
    }
    p->depth++;
    bool done = object ? parse_object(p, out) : parse_array(p, out);
    p->depth--;
    return done;
}

static bool parse_value(parser *p, struct sl_json *out)
{
    memset(out, 0, sizeof(*out));
    skip_space(p);
    switch (peek(p)) {
    case '{':
        return parse_nested(p, out, true);
    case '[':
        return parse_nested(p, out, false);
    case '"':
        out->type = SL_JSON_STRING;
        return parse_string(p, &out->as.text, &out->count);
    case 't':
        return parse_literal(p, "true", SL_JSON_TRUE, out);
    case 'f':
        return parse_literal(p, "false", SL_JSON_FALSE, out);
    case 'n':
        return parse_literal(p, "null", SL_JSON_NULL, out);
    case '-':
    case '0' ... '9':
        return parse_number(p, out);
    case -1:
        return refuse(p, "the text ends early");
    default:
        return refuse(p, "expected a value");
    }
}

/* Line and column (in characters, from 1) of the place where the parser stopped. */
static sl_status problem_status(const parser *p, sl_err *err)
{
    size_t line = 1, column = 1;
    for (size_t i = 0; i < p->at && i < p->size; i++) {
        if (p->text[i] == '\n') {
            line++;
            column = 1;
        } else if (((unsigned char)p->text[i] & 0xc0) != 0x80) {
            column++;
        }
    }
    return sl_fail(err, p->code, "line %zu, column %zu: %s", line, column, p->problem);
}

sl_status sl_json_parse(const char *text, size_t size, const sl_json_limits *limits,
                        sl_json_doc **out_doc, sl_err *err)
{
    size_t bytes_max = limits && limits->bytes_max ? limits->bytes_max : BYTES_MAX_DEFAULT;
    int depth_max = limits && limits->depth_max ? limits->depth_max : DEPTH_MAX_DEFAULT;
    if (bytes_max > BYTES_MAX_HARD)
        bytes_max = BYTES_MAX_HARD;
    if (size > bytes_max)
        return sl_fail(err, SL_TOO_LARGE, "JSON text of %zu bytes is over the limit of %zu", size,
                       bytes_max);
    parser p = {.text = text, .size = size};
    p.depth_max = depth_max < DEPTH_MAX_HARD ? depth_max : DEPTH_MAX_HARD;
    p.doc = sl_alloc(1, sizeof(*p.doc), "json document");
    bool done = parse_value(&p, &p.doc->root);
    if (done) {
        skip_space(&p);
        if (p.at < p.size)
            done = refuse(&p, "text after the value");
    }
    sl_free(p.values);
    sl_free(p.members);
    if (!done) {
        sl_json_doc_destroy(p.doc);
        return problem_status(&p, err);
    }
    *out_doc = p.doc;
    return sl_ok();
}

static sl_status read_all(int fd, char *text, size_t size, const char *path, sl_err *err)
{
    for (size_t at = 0; at < size;) {
        ssize_t got = read(fd, text + at, size - at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return sl_fail_errno(err, SL_IO, "read %s", path);
        if (got == 0)
            return sl_fail(err, SL_IO, "read %s: it became shorter while being read", path);
        at += (size_t)got;
    }
    return sl_ok();
}

sl_status sl_json_parse_file(const char *path, const sl_json_limits *limits, sl_json_doc **out_doc,
                             sl_err *err)
{
    size_t bytes_max = limits && limits->bytes_max ? limits->bytes_max : BYTES_MAX_DEFAULT;
    char *text = NULL;
    uint64_t bytes;
    int fd;
    sl_status status;
    SL_TRY(sl_file_open(path, &fd, &bytes, err));
    if (bytes > bytes_max) {
        status = sl_fail(err, SL_TOO_LARGE, "%s: %llu bytes are over the limit of %zu", path,
                         (unsigned long long)bytes, bytes_max);
    } else {
        text = sl_realloc(NULL, (size_t)bytes + 1, 1, "json file");
        status = read_all(fd, text, (size_t)bytes, path, err);
        if (sl_is_ok(status)) {
            status = sl_json_parse(text, (size_t)bytes, limits, out_doc, err);
            if (!sl_is_ok(status))
                status = sl_wrap(err, status, "%s", path);
        }
    }
    sl_free(text);
    close(fd);
    return status;
}
