/* Loads tokenizer.json. Refuses every feature that the encoder does not have, by name, because a
 * tokenizer that is almost right gives wrong answers without any sign. Start-up. */
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/json.h"
#include "model/tokenizer.h"
#include "model/tokenizer_parts.h"

#define TOKENIZER_BYTES_MAX ((size_t)64 << 20)
#define TOKEN_BYTES_MAX     4096
#define PATTERN_BYTES_MAX   65536
#define MERGES_MAX          (1 << 21)

/* --- the byte-level alphabet --- */

static bool is_printable(unsigned byte)
{
    return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

uint32_t mdl_byte_char(uint8_t byte)
{
    uint32_t other = 0;

    if (is_printable(byte))
        return byte;
    for (unsigned b = 0; b < byte; b++)
        other += !is_printable(b);
    return 0x100 + other;
}

int mdl_char_byte(uint32_t code_point)
{
    uint32_t other = 0x100;

    if (code_point < 0x100)
        return is_printable(code_point) ? (int)code_point : -1;
    for (unsigned b = 0; b < 0x100; b++) {
        if (is_printable(b))
            continue;
        if (other++ == code_point)
            return (int)b;
    }
    return -1;
}

/* --- checks of what is not supported --- */

static const char *type_of(const sl_json *object)
{
    const char *type = sl_json_string(sl_json_get(object, "type"), NULL);

    return type ? type : "none";
}

static bool is_null_or_false(const sl_json *value)
{
    sl_json_type type = sl_json_typeof(value);
    size_t size;

    if (type == SL_JSON_STRING)
        return sl_json_string(value, &size) && size == 0;
    return type == SL_JSON_NULL || type == SL_JSON_FALSE;
}

static bool is_true(const sl_json *value)
{
    return sl_json_typeof(value) == SL_JSON_TRUE;
}

static sl_status check_model(const sl_json *model, sl_err *err)
{
    static const char *const MUST_BE_OFF[] = {
        "dropout",
        "unk_token",
        "continuing_subword_prefix",
        "end_of_word_suffix",
        "fuse_unk",
        "byte_fallback",
        "ignore_merges",
    };

    if (strcmp(type_of(model), "BPE") != 0)
        return sl_fail(err, SL_UNSUPPORTED, "model.type is %.64s, supported is only BPE",
                       type_of(model));
    for (size_t i = 0; i < sizeof(MUST_BE_OFF) / sizeof(MUST_BE_OFF[0]); i++) {
        if (!is_null_or_false(sl_json_get(model, MUST_BE_OFF[i])))
            return sl_fail(err, SL_UNSUPPORTED, "model.%s is set, which is not supported",
                           MUST_BE_OFF[i]);
    }
    if (sl_json_typeof(sl_json_get(model, "vocab")) != SL_JSON_OBJECT)
        return sl_fail(err, SL_INVALID, "model.vocab must be an object");
    if (sl_json_typeof(sl_json_get(model, "merges")) != SL_JSON_ARRAY)
        return sl_fail(err, SL_INVALID, "model.merges must be an array");
    return sl_ok();
}

static sl_status check_rest(const sl_json *root, sl_err *err)
{
    const sl_json *normalizer = sl_json_get(root, "normalizer");
    const sl_json *post = sl_json_get(root, "post_processor");

    if (sl_json_typeof(normalizer) != SL_JSON_NULL &&
        (strcmp(type_of(normalizer), "Sequence") != 0 ||
         sl_json_count(sl_json_get(normalizer, "normalizers")) != 0))
        return sl_fail(err, SL_UNSUPPORTED, "normalizer is not empty, which is not supported");
    if (strcmp(type_of(sl_json_get(root, "decoder")), "ByteLevel") != 0)
        return sl_fail(err, SL_UNSUPPORTED, "decoder is %.64s, supported is only ByteLevel",
                       type_of(sl_json_get(root, "decoder")));
    /* ByteLevel as a post-processor only trims offsets. */
    if (sl_json_typeof(post) != SL_JSON_NULL && strcmp(type_of(post), "ByteLevel") != 0)
        return sl_fail(err, SL_UNSUPPORTED, "post_processor is %.64s, supported is only ByteLevel",
                       type_of(post));
    return sl_ok();
}

/* --- tokens --- */

static sl_status set_token(mdl_tokenizer *t, int64_t id, const void *bytes, size_t size, bool added,
                           sl_err *err)
{
    mdl_token *token;

    if (id < 0 || id >= MDL_VOCAB_MAX)
        return sl_fail(err, SL_INVALID, "token id %lld is out of range", (long long)id);
    if (size == 0 || size > TOKEN_BYTES_MAX)
        return sl_fail(err, SL_INVALID, "token %lld is empty or longer than %d bytes",
                       (long long)id, TOKEN_BYTES_MAX);
    if (id >= t->token_capacity) {
        int32_t capacity = t->token_capacity ? t->token_capacity : 1024;

        while (capacity <= id)
            capacity *= 2;
        t->tokens = sl_realloc(t->tokens, (size_t)capacity, sizeof(*t->tokens), "tokens");
        memset(t->tokens + t->token_capacity, 0,
               (size_t)(capacity - t->token_capacity) * sizeof(*t->tokens));
        t->token_capacity = capacity;
    }
    if (id >= t->id_end)
        t->id_end = (int32_t)id + 1;
    token = &t->tokens[id];
    if (token->size > 0 && (!added || token->added))
        return sl_fail(err, SL_INVALID, "token id %lld occurs twice", (long long)id);
    token->offset = (uint32_t)t->bytes.size;
    token->size = (uint32_t)size;
    token->added = added;
    sl_buf_append(&t->bytes, bytes, size);
    return sl_ok();
}

/* Text in the byte-level alphabet to bytes; as it is when a character is outside of it. */
static size_t map_back(const char *text, size_t size, uint8_t *out_bytes)
{
    size_t at = 0, count = 0;

    while (at < size) {
        uint32_t cp;
        int n = sl_utf8_decode(text + at, size - at, &cp);
        int byte = n > 0 ? mdl_char_byte(cp) : -1;

        if (byte < 0) {
            memcpy(out_bytes, text, size);
            return size;
        }
        out_bytes[count++] = (uint8_t)byte;
        at += (size_t)n;
    }
    return count;
}

static sl_status load_vocab(mdl_tokenizer *t, const sl_json *vocab, sl_err *err)
{
    uint8_t bytes[TOKEN_BYTES_MAX];
    size_t count = sl_json_count(vocab);

    for (size_t i = 0; i < count; i++) {
        size_t size;
        const char *key = sl_json_key(vocab, i, &size);
        int64_t id;

        if (!sl_json_i64(sl_json_at(vocab, i), &id))
            return sl_fail(err, SL_INVALID, "model.vocab: id of \"%.64s\" must be an integer", key);
        if (size > TOKEN_BYTES_MAX)
            return sl_fail(err, SL_INVALID, "model.vocab: token %lld is too long", (long long)id);
        SL_TRY(set_token(t, id, bytes, map_back(key, size, bytes), false, err));
    }
    for (unsigned b = 0; b < 256; b++) {
        char text[5] = {0};
        int64_t id;

        sl_utf8_encode(mdl_byte_char((uint8_t)b), text);
        if (!sl_json_i64(sl_json_get(vocab, text), &id))
            return sl_fail(err, SL_INVALID, "model.vocab: no token for byte 0x%02x", b);
        t->byte_ids[b] = (int32_t)id;
    }
    return sl_ok();
}

/* --- merges --- */

static void add_merge(mdl_tokenizer *t, int32_t left, int32_t right, uint32_t rank, int32_t id)
{
    mdl_merge *m = (mdl_merge *)mdl_merge_find(t, left, right);

    if (!m) { /* the slot where the search ended */
        uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
        size_t mask = t->merge_slot_count - 1;
        size_t at = (size_t)(pair * 0x9E3779B97F4A7C15ull >> 32) & mask;

        while (t->merges[at].pair != UINT64_MAX)
            at = (at + 1) & mask;
        m = &t->merges[at];
        m->pair = pair;
    }
    m->rank = rank;
    m->id = id;
}

static sl_status merge_sides(const sl_json *entry, size_t index, const char **out_left,
                             size_t *out_left_size, const char **out_right, sl_err *err)
{
    size_t size;
    const char *text = sl_json_string(entry, &size);
    const char *space = text ? strchr(text, ' ') : NULL;

    if (space) {
        *out_left = text;
        *out_left_size = (size_t)(space - text);
        *out_right = space + 1;
        return sl_ok();
    }
    text = sl_json_string(sl_json_at(entry, 0), &size);
    if (sl_json_typeof(entry) != SL_JSON_ARRAY || sl_json_count(entry) != 2 || !text ||
        !sl_json_string(sl_json_at(entry, 1), NULL))
        return sl_fail(err, SL_INVALID, "model.merges[%zu] must be \"a b\" or [a, b]", index);
    *out_left = text;
    *out_left_size = size;
    *out_right = sl_json_string(sl_json_at(entry, 1), NULL);
    return sl_ok();
}

static sl_status load_merge(mdl_tokenizer *t, const sl_json *vocab, const sl_json *entry,
                            size_t index, sl_buf *scratch, sl_err *err)
{
    const char *left = NULL, *right = NULL;
    size_t left_size = 0;
    int64_t left_id, right_id, id;
    bool known;

    SL_TRY(merge_sides(entry, index, &left, &left_size, &right, err));
    sl_buf_clear(scratch);
    sl_buf_append(scratch, left, left_size);
    known = sl_json_i64(sl_json_get(vocab, scratch->data), &left_id) &&
            sl_json_i64(sl_json_get(vocab, right), &right_id);
    sl_buf_puts(scratch, right);
    if (!known || !sl_json_i64(sl_json_get(vocab, scratch->data), &id))
        return sl_fail(err, SL_INVALID, "model.merges[%zu]: a side or the result is not in vocab",
                       index);
    add_merge(t, (int32_t)left_id, (int32_t)right_id, (uint32_t)index, (int32_t)id);
    return sl_ok();
}

static sl_status load_merges(mdl_tokenizer *t, const sl_json *model, sl_err *err)
{
    const sl_json *merges = sl_json_get(model, "merges");
    size_t count = sl_json_count(merges);
    sl_buf scratch;
    sl_status status = sl_ok();

    if (count > MERGES_MAX)
        return sl_fail(err, SL_TOO_LARGE, "model.merges has more than %d entries", MERGES_MAX);
    t->merge_slot_count = 64;
    while (t->merge_slot_count < count * 2)
        t->merge_slot_count *= 2;
    t->merges = sl_alloc(t->merge_slot_count, sizeof(*t->merges), "merges");
    memset(t->merges, 0xFF, t->merge_slot_count * sizeof(*t->merges));
    sl_buf_init(&scratch, 2 * TOKEN_BYTES_MAX);
    for (size_t i = 0; i < count && sl_is_ok(status); i++)
        status =
            load_merge(t, sl_json_get(model, "vocab"), sl_json_at(merges, i), i, &scratch, err);
    sl_buf_fini(&scratch);
    return status;
}

/* --- added tokens --- */

static uint32_t trie_child(mdl_tokenizer *t, uint32_t node, uint8_t byte)
{
    uint32_t child = t->trie[node].first_child;

    while (child && t->trie[child].byte != byte)
        child = t->trie[child].next_sibling;
    if (child)
        return child;
    if (t->trie_count == t->trie_capacity) {
        t->trie_capacity *= 2;
        t->trie = sl_realloc(t->trie, t->trie_capacity, sizeof(*t->trie), "added tokens");
    }
    child = (uint32_t)t->trie_count++;
    t->trie[child] = (mdl_trie_node){
        .byte = byte, .id = MDL_TOKEN_NONE, .next_sibling = t->trie[node].first_child};
    t->trie[node].first_child = child;
    return child;
}

static sl_status load_added_token(mdl_tokenizer *t, const sl_json *vocab, const sl_json *entry,
                                  size_t index, sl_err *err)
{
    size_t size = 0;
    const char *content = sl_json_string(sl_json_get(entry, "content"), &size);
    int64_t id, base_id;
    uint32_t node = 0;

    if (!content || size == 0 || strlen(content) != size ||
        !sl_json_i64(sl_json_get(entry, "id"), &id))
        return sl_fail(err, SL_INVALID, "added_tokens[%zu]: content or id is missing", index);
    if (is_true(sl_json_get(entry, "lstrip")) || is_true(sl_json_get(entry, "rstrip")) ||
        is_true(sl_json_get(entry, "single_word")))
        return sl_fail(err, SL_UNSUPPORTED,
                       "added_tokens[%zu]: lstrip, rstrip and single_word are not supported",
                       index);
    if (sl_json_i64(sl_json_get(vocab, content), &base_id) && base_id != id)
        return sl_fail(err, SL_INVALID, "added_tokens[%zu]: id %lld, but %lld in vocab", index,
                       (long long)id, (long long)base_id);
    SL_TRY(set_token(t, id, content, size, true, err));
    for (size_t i = 0; i < size; i++)
        node = trie_child(t, node, (uint8_t)content[i]);
    if (t->trie[node].id != MDL_TOKEN_NONE)
        return sl_fail(err, SL_INVALID, "added_tokens[%zu]: content occurs twice", index);
    t->trie[node].id = (int32_t)id;
    t->trie_first[(uint8_t)content[0]] = true;
    return sl_ok();
}

static sl_status load_added(mdl_tokenizer *t, const sl_json *root, sl_err *err)
{
    const sl_json *list = sl_json_get(root, "added_tokens");
    const sl_json *vocab = sl_json_get(sl_json_get(root, "model"), "vocab");

    t->trie_capacity = 256;
    t->trie = sl_alloc(t->trie_capacity, sizeof(*t->trie), "added tokens");
    t->trie[0].id = MDL_TOKEN_NONE;
    t->trie_count = 1;
    for (size_t i = 0; i < sl_json_count(list); i++)
        SL_TRY(load_added_token(t, vocab, sl_json_at(list, i), i, err));
    return sl_ok();
}

static sl_status find_special(mdl_tokenizer *t, sl_err *err)
{
    const struct {
        const char *content;
        int32_t *out_id;
    } wanted[] = {
        {"<｜begin▁of▁sentence｜>", &t->special.bos},
        {"<｜end▁of▁sentence｜>", &t->special.eos},
        {"<｜User｜>", &t->special.user},
        {"<｜Assistant｜>", &t->special.assistant},
        {"<think>", &t->special.think},
        {"</think>", &t->special.end_think},
        {"｜DSML｜", &t->special.dsml},
    };

    for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++) {
        *wanted[i].out_id = mdl_tokenizer_find_added(t, wanted[i].content);
        if (*wanted[i].out_id == MDL_TOKEN_NONE)
            return sl_fail(err, SL_UNSUPPORTED,
                           "no added token %s: not the tokenizer of a V3.2 model",
                           wanted[i].content);
    }
    return sl_ok();
}

/* --- split patterns --- */

/* White_Space, spelled out: pcre2's \s also takes U+180E, which left that set long ago. */
#define SPACE                                                        \
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}" \
    "\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"

/* Length of "\p{X}" with one letter at the start of text, and its class; else 0. */
static size_t property_at(const char *text, size_t size, char *out_category)
{
    if (size < 5 || memcmp(text, "\\p{", 3) != 0 || text[4] != '}')
        return 0;
    *out_category = text[3];
    return 5;
}

/* Copies one escape with what pcre2 understands differently spelled out. Returns its length in the
 * pattern; 0 = not supported (\S inside [...]). */
static size_t spell_out_escape(const char *text, size_t size, bool in_class, sl_buf *out)
{
    char category = 0;
    size_t length = property_at(text, size, &category);
    const char *added = length > 0 ? mdl_unicode_new(category) : NULL;

    if (text[1] == 'S' && in_class)
        return 0;
    if (text[1] == 's') {
        sl_buf_puts(out, in_class ? SPACE : "[" SPACE "]");
        return 2;
    }
    if (text[1] == 'S') {
        sl_buf_puts(out, "[^" SPACE "]");
        return 2;
    }
    if (!added) {
        sl_buf_append(out, text, 2);
        return 2;
    }
    sl_buf_puts(out, in_class ? "" : "[");
    sl_buf_append(out, text, length);
    sl_buf_puts(out, added);
    sl_buf_puts(out, in_class ? "" : "]");
    return length;
}

/* The pattern, independent of pcre2's Unicode version. */
static bool spell_out(const char *pattern, size_t size, sl_buf *out)
{
    bool in_class = false;

    for (size_t i = 0; i < size;) {
        if (pattern[i] == '\\' && i + 1 < size) {
            size_t length = spell_out_escape(pattern + i, size - i, in_class, out);

            if (length == 0)
                return false;
            i += length;
            continue;
        }
        if (pattern[i] == '[')
            in_class = true;
        else if (pattern[i] == ']')
            in_class = false;
        sl_buf_putc(out, pattern[i++]);
    }
    return !out->overflow;
}

static sl_status compile_split(mdl_tokenizer *t, const char *pattern, size_t size, int index,
                               sl_err *err)
{
    sl_buf text;
    int code;
    PCRE2_SIZE at;
    PCRE2_UCHAR message[128];
    pcre2_code *compiled = NULL;
    sl_status status = sl_ok();

    sl_buf_init(&text, PATTERN_BYTES_MAX);
    if (!spell_out(pattern, size, &text)) {
        status = sl_fail(err, SL_UNSUPPORTED,
                         "pre_tokenizer %d: \\S inside [] or an overlong pattern", index);
    } else {
        compiled = pcre2_compile((PCRE2_SPTR)text.data, text.size, PCRE2_UTF | PCRE2_UCP, &code,
                                 &at, NULL);
        if (!compiled) {
            pcre2_get_error_message(code, message, sizeof(message));
            status = sl_fail(err, SL_INVALID, "pre_tokenizer %d: pattern at %zu: %s", index,
                             (size_t)at, (const char *)message);
        }
    }
    sl_buf_fini(&text);
    if (!compiled)
        return status;
    /* Without JIT (an odd machine) matching is slower, but the same. */
    (void)pcre2_jit_compile(compiled, PCRE2_JIT_COMPLETE);
    t->splits[t->split_count++] = compiled;
    return sl_ok();
}

static sl_status load_split(mdl_tokenizer *t, const sl_json *step, int index, sl_err *err)
{
    size_t size = 0;
    const char *pattern = sl_json_string(sl_json_get(sl_json_get(step, "pattern"), "Regex"), &size);
    const char *behavior = sl_json_string(sl_json_get(step, "behavior"), NULL);

    if (strcmp(type_of(step), "Split") != 0)
        return sl_fail(err, SL_UNSUPPORTED,
                       "pre_tokenizer %d is %.64s, supported are Split steps and a last ByteLevel",
                       index, type_of(step));
    if (!pattern)
        return sl_fail(err, SL_UNSUPPORTED, "pre_tokenizer %d: pattern must be a Regex", index);
    if (!behavior || strcmp(behavior, "Isolated") != 0 || is_true(sl_json_get(step, "invert")))
        return sl_fail(err, SL_UNSUPPORTED,
                       "pre_tokenizer %d: supported is only behavior Isolated, not inverted",
                       index);
    if (t->split_count == MDL_SPLITS_MAX)
        return sl_fail(err, SL_UNSUPPORTED, "pre_tokenizer has more than %d Split steps",
                       MDL_SPLITS_MAX);
    return compile_split(t, pattern, size, index, err);
}

static sl_status load_pre_tokenizer(mdl_tokenizer *t, const sl_json *root, sl_err *err)
{
    const sl_json *pre = sl_json_get(root, "pre_tokenizer");
    const sl_json *steps = sl_json_get(pre, "pretokenizers");
    const sl_json *last;
    size_t count = sl_json_count(steps);

    if (strcmp(type_of(pre), "Sequence") != 0 || count == 0)
        return sl_fail(err, SL_UNSUPPORTED, "pre_tokenizer must be a Sequence");
    for (size_t i = 0; i + 1 < count; i++)
        SL_TRY(load_split(t, sl_json_at(steps, i), (int)i, err));
    last = sl_json_at(steps, count - 1);
    if (strcmp(type_of(last), "ByteLevel") != 0 ||
        !is_null_or_false(sl_json_get(last, "add_prefix_space")) ||
        sl_json_typeof(sl_json_get(last, "use_regex")) != SL_JSON_FALSE)
        return sl_fail(err, SL_UNSUPPORTED,
                       "pre_tokenizer must end in ByteLevel without prefix space and regex");
    return sl_ok();
}

/* --- all together --- */

static sl_status load_all(mdl_tokenizer *t, const sl_json *root, sl_err *err)
{
    const sl_json *model = sl_json_get(root, "model");

    SL_TRY(check_rest(root, err));
    SL_TRY(check_model(model, err));
    SL_TRY(load_vocab(t, sl_json_get(model, "vocab"), err));
    SL_TRY(load_merges(t, model, err));
    SL_TRY(load_added(t, root, err));
    SL_TRY(load_pre_tokenizer(t, root, err));
    SL_TRY(find_special(t, err));
    if (t->bytes.overflow)
        return sl_fail(err, SL_TOO_LARGE, "vocabulary is too large");
    return sl_ok();
}

sl_status mdl_tokenizer_load(const char *path, mdl_tokenizer **out_tokenizer, sl_err *err)
{
    sl_json_limits limits = {.bytes_max = TOKENIZER_BYTES_MAX};
    struct stat st;
    bool is_dir = stat(path, &st) == 0 && S_ISDIR(st.st_mode);
    char *file = sl_asprintf("tokenizer path", "%s%s", path, is_dir ? "/tokenizer.json" : "");
    mdl_tokenizer *t = sl_alloc(1, sizeof(*t), "tokenizer");
    sl_json_doc *doc = NULL;
    sl_status status;

    sl_buf_init(&t->bytes, TOKENIZER_BYTES_MAX);
    status = sl_json_parse_file(file, &limits, &doc, err);
    if (sl_is_ok(status)) {
        status = load_all(t, sl_json_root(doc), err);
        if (!sl_is_ok(status))
            status = sl_wrap(err, status, "%s", file);
    }
    sl_json_doc_destroy(doc);
    sl_free(file);
    if (!sl_is_ok(status)) {
        mdl_tokenizer_destroy(t);
        return status;
    }
    *out_tokenizer = t;
    return sl_ok();
}

void mdl_tokenizer_destroy(mdl_tokenizer *tokenizer)
{
    if (!tokenizer)
        return;
    for (int i = 0; i < tokenizer->split_count; i++)
        pcre2_code_free(tokenizer->splits[i]);
    sl_free(tokenizer->trie);
    sl_free(tokenizer->merges);
    sl_free(tokenizer->tokens);
    sl_buf_fini(&tokenizer->bytes);
    sl_free(tokenizer);
}
