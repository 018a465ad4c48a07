/* Encoding and decoding with a loaded tokenizer. Only reads it: any thread, no locks. */
#include "model/tokenizer.h"

#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "model/tokenizer_parts.h"

#define JIT_STACK_BYTES_MIN ((size_t)32 << 10)
#define JIT_STACK_BYTES_MAX ((size_t)8 << 20)

void mdl_ids_fini(mdl_ids *ids)
{
    sl_free(ids->data);
    memset(ids, 0, sizeof(*ids));
}

void mdl_ids_push(mdl_ids *ids, int32_t id)
{
    if (ids->count == ids->capacity) {
        ids->capacity = ids->capacity ? ids->capacity * 2 : 64;
        ids->data = sl_realloc(ids->data, ids->capacity, sizeof(*ids->data), "token ids");
    }
    ids->data[ids->count++] = id;
}

/* --- encoding --- */

typedef struct encoder {
    const mdl_tokenizer *t;
    const uint8_t *text;
    size_t size;
    const mdl_range *plain;
    size_t plain_count;
    size_t plain_at; /* ranges before it end at or before the current position */
    size_t id_end;   /* the list may not grow beyond */
    mdl_ids *ids;
    pcre2_match_data *match[MDL_SPLITS_MAX];
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
    sl_err *err;
} encoder;

static sl_status encode_piece(encoder *e, const uint8_t *piece, size_t size)
{
    mdl_bpe_encode(e->t, piece, size, e->ids);
    if (e->ids->count > e->id_end)
        return sl_fail(e->err, SL_TOO_LARGE, "text has more than the limit of %zu tokens",
                       e->id_end);
    return sl_ok();
}

/* Splits a piece by pattern `level` into matches and the text between, each of which goes to the
 * next level. The pattern sees only this piece. */
static sl_status split_piece(encoder *e, int level, const uint8_t *piece, size_t size)
{
    size_t done = 0, from = 0;

    if (size == 0)
        return sl_ok();
    if (level == e->t->split_count)
        return encode_piece(e, piece, size);
    while (from < size) {
        int rc = pcre2_match(e->t->splits[level], piece, size, from, PCRE2_NO_UTF_CHECK,
                             e->match[level], e->context);
        const PCRE2_SIZE *ends;
        size_t begin, end;

        if (rc == PCRE2_ERROR_NOMATCH)
            break;
        if (rc < 0)
            return sl_fail(e->err, SL_INTERNAL, "tokenizer: split pattern %d failed (pcre2 %d)",
                           level, rc);
        ends = pcre2_get_ovector_pointer(e->match[level]);
        begin = ends[0];
        end = ends[1];
        if (end <= begin) { /* empty match: goes on behind the next character */
            from = begin + 1;
            while (from < size && (piece[from] & 0xC0) == 0x80)
                from++;
            continue;
        }
        SL_TRY(split_piece(e, level + 1, piece + done, begin - done));
        SL_TRY(split_piece(e, level + 1, piece + begin, end - begin));
        done = from = end;
    }
    return split_piece(e, level + 1, piece + done, size - done);
}

/* True if [begin, end) touches a range in which added tokens are plain text. */
static bool is_plain(encoder *e, size_t begin, size_t end)
{
    while (e->plain_at < e->plain_count && e->plain[e->plain_at].end <= begin)
        e->plain_at++;
    return e->plain_at < e->plain_count && e->plain[e->plain_at].begin < end;
}

/* Longest added token that starts at `at`; 0 = none. */
static size_t match_added(encoder *e, size_t at, int32_t *out_id)
{
    const mdl_trie_node *nodes = e->t->trie;
    uint32_t node = 0;
    size_t longest = 0;

    for (size_t i = at; i < e->size; i++) {
        uint32_t child = nodes[node].first_child;

        while (child && nodes[child].byte != e->text[i])
            child = nodes[child].next_sibling;
        if (!child)
            break;
        node = child;
        if (nodes[node].id != MDL_TOKEN_NONE && !is_plain(e, at, i + 1)) {
            longest = i + 1 - at;
            *out_id = nodes[node].id;
        }
    }
    return longest;
}

static sl_status encode_text(encoder *e)
{
    size_t done = 0, at = 0;

    while (at < e->size) {
        int32_t id = MDL_TOKEN_NONE;
        size_t length = e->t->trie_first[e->text[at]] ? match_added(e, at, &id) : 0;

        if (length == 0) {
            at++;
            continue;
        }
        SL_TRY(split_piece(e, 0, e->text + done, at - done));
        mdl_ids_push(e->ids, id);
        done = at = at + length;
    }
    SL_TRY(split_piece(e, 0, e->text + done, e->size - done));
    return encode_piece(e, NULL, 0); /* the limit also holds for added tokens */
}

static bool encoder_init(encoder *e)
{
    for (int i = 0; i < e->t->split_count; i++) {
        e->match[i] = pcre2_match_data_create(1, NULL);
        if (!e->match[i])
            return false;
    }
    e->context = pcre2_match_context_create(NULL);
    e->stack = pcre2_jit_stack_create(JIT_STACK_BYTES_MIN, JIT_STACK_BYTES_MAX, NULL);
    if (!e->context || !e->stack)
        return false;
    pcre2_jit_stack_assign(e->context, NULL, e->stack);
    return true;
}

static void encoder_fini(encoder *e)
{
    for (int i = 0; i < MDL_SPLITS_MAX; i++)
        pcre2_match_data_free(e->match[i]);
    pcre2_match_context_free(e->context);
    pcre2_jit_stack_free(e->stack);
}

static size_t first_invalid_byte(const char *text, size_t size)
{
    size_t at = 0;

    while (at < size) {
        int n = sl_utf8_length(text + at, size - at);

        if (n <= 0)
            break;
        at += (size_t)n;
    }
    return at;
}

sl_status mdl_tokenizer_encode(const mdl_tokenizer *tokenizer, const char *text, size_t size,
                               const mdl_encode_options *options, mdl_ids *ids, sl_err *err)
{
    encoder e = {.t = tokenizer, .text = (const uint8_t *)text, .size = size, .ids = ids};
    size_t count_before = ids->count;
    size_t id_max = MDL_ENCODE_IDS_MAX;
    sl_status status;

    e.err = err;
    if (options) {
        e.plain = options->plain;
        e.plain_count = options->plain_count;
        if (options->id_max)
            id_max = options->id_max;
    }
    e.id_end = count_before + id_max;
    if (!sl_utf8_valid(text, size))
        return sl_fail(err, SL_INVALID, "text is not UTF-8 at byte %zu",
                       first_invalid_byte(text, size));
    if (encoder_init(&e))
        status = encode_text(&e);
    else
        status = sl_fail(err, SL_NO_MEMORY, "tokenizer: no memory for matching");
    if (!sl_is_ok(status))
        ids->count = count_before;
    encoder_fini(&e);
    return status;
}

/* --- decoding --- */

void mdl_detok_init(mdl_detok *detok, const mdl_tokenizer *tokenizer)
{
    memset(detok, 0, sizeof(*detok));
    detok->tokenizer = tokenizer;
}

static void put_replacement(sl_buf *out)
{
    sl_buf_puts(out, "\xEF\xBF\xBD");
}

/* One U+FFFD for each longest piece that could have begun a character, as Unicode recommends and
 * Rust (so the reference) does. */
static void put_byte(mdl_detok *d, uint8_t byte, sl_buf *out)
{
    int length;

    d->held[d->held_count++] = byte;
    length = sl_utf8_length(d->held, d->held_count);
    if (length == 0 && d->held_count > 1) {
        put_replacement(out);
        d->held[0] = byte;
        d->held_count = 1;
        length = sl_utf8_length(d->held, 1);
    }
    if (length < 0)
        return;
    if (length == 0)
        put_replacement(out);
    else
        sl_buf_append(out, d->held, d->held_count);
    d->held_count = 0;
}

void mdl_detok_push(mdl_detok *detok, int32_t id, sl_buf *out_text)
{
    sl_span bytes = mdl_tokenizer_bytes(detok->tokenizer, id);

    for (size_t i = 0; i < bytes.size; i++)
        put_byte(detok, bytes.data[i], out_text);
}

void mdl_detok_finish(mdl_detok *detok, sl_buf *out_text)
{
    if (detok->held_count > 0)
        put_replacement(out_text);
    detok->held_count = 0;
}

sl_status mdl_tokenizer_decode(const mdl_tokenizer *tokenizer, const int32_t *ids, size_t id_count,
                               sl_buf *out_text, sl_err *err)
{
    mdl_detok detok;

    for (size_t i = 0; i < id_count; i++) {
        if (!mdl_tokenizer_is_defined(tokenizer, ids[i]))
            return sl_fail(err, SL_INVALID, "token id %d (number %zu) is not in the tokenizer",
                           ids[i], i);
    }
    mdl_detok_init(&detok, tokenizer);
    for (size_t i = 0; i < id_count; i++)
        mdl_detok_push(&detok, ids[i], out_text);
    mdl_detok_finish(&detok, out_text);
    return sl_ok();
}

/* --- look-up --- */

const mdl_special *mdl_tokenizer_special(const mdl_tokenizer *tokenizer)
{
    return &tokenizer->special;
}

int32_t mdl_tokenizer_id_end(const mdl_tokenizer *tokenizer)
{
    return tokenizer->id_end;
}

bool mdl_tokenizer_is_defined(const mdl_tokenizer *tokenizer, int32_t id)
{
    return id >= 0 && id < tokenizer->id_end && tokenizer->tokens[id].size > 0;
}

bool mdl_tokenizer_is_added(const mdl_tokenizer *tokenizer, int32_t id)
{
    return mdl_tokenizer_is_defined(tokenizer, id) && tokenizer->tokens[id].added;
}

int32_t mdl_tokenizer_find_added(const mdl_tokenizer *tokenizer, const char *content)
{
    encoder e = {.t = tokenizer, .text = (const uint8_t *)content, .size = strlen(content)};
    int32_t id = MDL_TOKEN_NONE;

    return e.size > 0 && match_added(&e, 0, &id) == e.size ? id : MDL_TOKEN_NONE;
}

sl_span mdl_tokenizer_bytes(const mdl_tokenizer *tokenizer, int32_t id)
{
    sl_span span = {NULL, 0};

    if (mdl_tokenizer_is_defined(tokenizer, id)) {
        span.data = (const uint8_t *)tokenizer->bytes.data + tokenizer->tokens[id].offset;
        span.size = tokenizer->tokens[id].size;
    }
    return span;
}

void mdl_tokenizer_undefined_mask(const mdl_tokenizer *tokenizer, int32_t vocab_size,
                                  uint32_t *out_words)
{
    memset(out_words, 0, ((size_t)vocab_size + 31) / 32 * sizeof(*out_words));
    for (int32_t id = 0; id < vocab_size; id++) {
        if (!mdl_tokenizer_is_defined(tokenizer, id))
            out_words[id / 32] |= 1u << (id % 32);
    }
}
