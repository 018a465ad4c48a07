/* Masks: a walk over the vocabulary's tries that leaves a branch as soon as the grammar does.
 *
 * Tokens that are plain text (what a JSON string holds unescaped, whole characters) have a trie of
 * their own: where a state takes any n plain characters, a stored mask stands for all tokens of at
 * most n, and only the few others are walked. So it is with words, which are most of a vocabulary:
 * where a state takes any n small letters, a stored mask stands for all words of at most n. Tokens
 * longer than the matcher's reach are few and have a trie of their own too: the mask of the others
 * is shared by states that differ beyond the reach only. Owner's thread; allocates at creation
 * only. */
#include "model/masks.h"

#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"

#define WAYS      4u            /* places where the cache looks for a mask */
#define DEPTH_MAX MDL_REACH_FAR /* bytes: longer tokens are never allowed */
#define SMALL_MAX 16u           /* small letters of a word */
#define LINE      16u           /* uint32_t of which a mask has a multiple: of a cache line */

/* Tokens that are a word: small letters, and before them a space, a capital or both. */
enum { WORD_BY_SPACE = 1, WORD_BY_CAPITAL = 2, WORD_KINDS = 4 };

/* A byte of one or more tokens. Nodes lie level by level, the children of one side by side: what a
 * state does not allow costs a look at its byte, and no memory beside. */
typedef struct trie_node {
    uint32_t token;      /* MDL_TOKEN_NONE as UINT32_MAX: none ends here */
    uint32_t children;   /* the first */
    uint32_t begin, end; /* tokens that begin like this; its own is the first */
    uint16_t child_count;
    uint8_t depth;  /* 1 = first byte */
    uint8_t below;  /* sets of the bytes below it (mdl_word_set) */
    uint8_t levels; /* below it */
} trie_node;

typedef struct trie {
    trie_node *nodes;
    uint8_t *bytes; /* [node] */
    uint32_t count, root_count;
    uint32_t *tokens; /* in the order of their bytes */
    uint8_t *sizes;   /* of the tokens, in bytes less one */
    uint32_t token_count;
} trie;

typedef struct cached {
    uint64_t matcher;
    uint32_t epoch, state;
    uint64_t used; /* 0 = empty */
} cached;

/* A walk's place at one depth: behind so many bytes. */
typedef struct level {
    uint32_t state;
    uint32_t at, end; /* nodes to be looked at */
} level;

struct mdl_masks {
    const mdl_tokenizer *tokenizer;
    uint32_t vocab_size, words; /* words: uint32_t of a mask */
    uint32_t eos;
    uint32_t symbols[MDL_SYMBOL_COUNT];
    trie plain, other, distant; /* plain: all but words */
    trie word[WORD_KINDS];      /* by WORD_BY_SPACE, WORD_BY_CAPITAL */
    /* [MDL_REACH + 1][words]: plain tokens, words among them, of at most so many characters */
    uint32_t *plain_masks;
    uint32_t *word_masks; /* [WORD_KINDS][SMALL_MAX + 1][words]: of at most so many small letters */
    uint32_t *distant_mask;
    uint32_t *own;               /* the mask last made for one state alone */
    cached own_key;              /* which one */
    level levels[DEPTH_MAX + 1]; /* of the walk */
    cached *entries;
    uint32_t *masks; /* [entry][words] */
    uint32_t set_count;
    uint64_t clock;
    mdl_masks_counts counts;
};

static void allow(uint32_t *mask, uint32_t id)
{
    mask[id / 32] |= 1u << (id % 32);
}

/* ---- the tries ---- */

typedef struct spelled {
    const uint8_t *data;
    uint32_t size;
    uint32_t id;
} spelled;

static int by_bytes(const void *a, const void *b)
{
    const spelled *x = a, *y = b;
    int order = memcmp(x->data, y->data, x->size < y->size ? x->size : y->size);
    if (order != 0)
        return order;
    if (x->size != y->size)
        return x->size < y->size ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* Characters of a plain token within reach, else 0. */
static uint32_t plain_characters(const spelled *token)
{
    uint32_t at = 0, count = 0;
    for (; at < token->size && token->size <= MDL_REACH; count++) {
        int length = sl_utf8_length(token->data + at, token->size - at);
        if (length <= 0 || token->data[at] < 0x20 || token->data[at] == '"' ||
            token->data[at] == '\\')
            return 0;
        at += (uint32_t)length;
    }
    return count;
}

static bool is_of(uint8_t byte, unsigned set)
{
    return mdl_word_set_of(byte) == set;
}

/* Of a word, its kind and how many small letters it has; WORD_KINDS: it is none. */
static uint32_t word_kind(const spelled *token, uint32_t *out_small)
{
    uint32_t at = token->data[0] == ' ', kind = at ? WORD_BY_SPACE : 0;
    if (at < token->size && is_of(token->data[at], MDL_WORD_UPPER)) {
        kind |= WORD_BY_CAPITAL;
        at++;
    }
    *out_small = token->size - at;
    bool word = token->size - at <= SMALL_MAX && (*out_small > 0 || kind & WORD_BY_CAPITAL);
    for (; at < token->size && word; at++)
        word = is_of(token->data[at], MDL_WORD_LOWER);
    return word ? kind : WORD_KINDS;
}

/* Which of the tries a token belongs to. */
static const trie *trie_of(const mdl_masks *m, const spelled *token)
{
    uint32_t small, kind = word_kind(token, &small);
    if (kind < WORD_KINDS)
        return &m->word[kind];
    if (token->size > MDL_REACH)
        return &m->distant;
    return plain_characters(token) > 0 ? &m->plain : &m->other;
}

static uint32_t shared_prefix(const spelled *a, const spelled *b)
{
    uint32_t n = 0;
    while (n < a->size && n < b->size && a->data[n] == b->data[n])
        n++;
    return n;
}

/* Nodes that a token needs beside those of the one before. */
static uint32_t own_nodes(const spelled *token, const spelled *before)
{
    uint32_t shared = before ? shared_prefix(before, token) : 0;
    return shared == token->size ? 1 : token->size - shared;
}

static void add_node(trie *t, const spelled *tokens, uint32_t depth, uint32_t begin, uint32_t end)
{
    bool ends = tokens[begin].size == depth;
    t->bytes[t->count] = tokens[begin].data[depth - 1];
    t->nodes[t->count++] = (trie_node){.token = ends ? tokens[begin].id : UINT32_MAX,
                                       .begin = begin,
                                       .end = end,
                                       .depth = (uint8_t)depth};
}

/* The nodes of that depth for tokens that are alike before it, each longer; returns how many. Of
 * tokens that are spelled alike, all but the last get a node without children. */
static uint32_t add_children(trie *t, const spelled *tokens, uint32_t depth, uint32_t begin,
                             uint32_t end)
{
    uint32_t before = t->count;
    while (begin < end) {
        uint32_t next = begin + 1;
        while (next < end && tokens[next].data[depth - 1] == tokens[begin].data[depth - 1])
            next++;
        for (; begin + 1 < next && tokens[begin + 1].size == depth; begin++)
            add_node(t, tokens, depth, begin, begin + 1);
        add_node(t, tokens, depth, begin, next);
        begin = next;
    }
    return t->count - before;
}

/* What is below each node, for branches that are taken whole. */
static void sum_up(trie *t)
{
    for (uint32_t i = t->count; i-- > 0;) {
        trie_node *node = &t->nodes[i];
        for (uint32_t child = node->children; child < node->children + node->child_count; child++) {
            node->below |= t->nodes[child].below | (uint8_t)mdl_word_set_of(t->bytes[child]);
            if (node->levels <= t->nodes[child].levels)
                node->levels = (uint8_t)(t->nodes[child].levels + 1);
        }
    }
}

/* tokens: all, sorted; mine: room for as many. */
static void build_trie(mdl_masks *m, trie *t, const spelled *tokens, uint32_t count, spelled *mine)
{
    uint32_t nodes = 0;
    t->tokens = sl_alloc(count + 1, sizeof(*t->tokens), "token trie");
    t->sizes = sl_alloc(count + 1, sizeof(*t->sizes), "token trie");
    for (uint32_t i = 0; i < count; i++) {
        if (trie_of(m, &tokens[i]) != t)
            continue;
        uint32_t at = t->token_count++;
        mine[at] = tokens[i];
        t->tokens[at] = tokens[i].id;
        t->sizes[at] = (uint8_t)(tokens[i].size - 1);
        nodes += own_nodes(&mine[at], at > 0 ? &mine[at - 1] : NULL);
    }
    t->tokens = sl_realloc(t->tokens, t->token_count + 1, sizeof(*t->tokens), "token trie");
    t->sizes = sl_realloc(t->sizes, t->token_count + 1, sizeof(*t->sizes), "token trie");
    t->nodes = sl_alloc(nodes + 1, sizeof(*t->nodes), "token trie");
    t->bytes = sl_alloc(nodes + 1, sizeof(*t->bytes), "token trie");
    t->root_count = add_children(t, mine, 1, 0, t->token_count);
    for (uint32_t i = 0; i < t->count; i++) {
        trie_node *node = &t->nodes[i];
        node->children = t->count;
        uint32_t begin = node->begin + (node->token != UINT32_MAX);
        node->child_count = (uint16_t)add_children(t, mine, node->depth + 1u, begin, node->end);
    }
    sl_assert(t->count == nodes);
    sum_up(t);
}

static void trie_fini(trie *t)
{
    sl_free(t->nodes);
    sl_free(t->bytes);
    sl_free(t->tokens);
    sl_free(t->sizes);
}

static uint32_t *word_mask(const mdl_masks *m, uint32_t kind, uint32_t small)
{
    return m->word_masks + ((size_t)kind * (SMALL_MAX + 1) + small) * m->words;
}

static void build_tries(mdl_masks *m, uint32_t vocab_size)
{
    uint32_t end = (uint32_t)mdl_tokenizer_id_end(m->tokenizer), count = 0;
    spelled *tokens = sl_alloc(end, sizeof(*tokens), "token list");
    for (uint32_t id = 0; id < end && id < vocab_size; id++) {
        sl_span bytes = mdl_tokenizer_bytes(m->tokenizer, (int32_t)id);
        if (!bytes.data || bytes.size == 0 || bytes.size > DEPTH_MAX ||
            mdl_tokenizer_is_added(m->tokenizer, (int32_t)id))
            continue;
        tokens[count++] = (spelled){bytes.data, (uint32_t)bytes.size, id};
    }
    qsort(tokens, count, sizeof(*tokens), by_bytes);
    spelled *room = sl_alloc(count + 1, sizeof(*room), "token list");
    build_trie(m, &m->plain, tokens, count, room);
    build_trie(m, &m->other, tokens, count, room);
    build_trie(m, &m->distant, tokens, count, room);
    for (uint32_t kind = 0; kind < WORD_KINDS; kind++)
        build_trie(m, &m->word[kind], tokens, count, room);
    sl_free(room);
    for (uint32_t i = 0; i < count; i++) {
        if (trie_of(m, &tokens[i]) == &m->distant)
            allow(m->distant_mask, tokens[i].id);
        uint32_t characters = plain_characters(&tokens[i]);
        for (uint32_t n = characters; characters > 0 && n <= MDL_REACH; n++)
            allow(m->plain_masks + (size_t)n * m->words, tokens[i].id);
        uint32_t small, kind = word_kind(&tokens[i], &small);
        for (uint32_t n = small; kind < WORD_KINDS && n <= SMALL_MAX; n++)
            allow(word_mask(m, kind, n), tokens[i].id);
    }
    sl_free(tokens);
}

mdl_masks *mdl_masks_create(const mdl_tokenizer *tokenizer, uint32_t vocab_size, size_t cache_bytes)
{
    const mdl_special *special = mdl_tokenizer_special(tokenizer);
    mdl_masks *m = sl_alloc(1, sizeof(*m), "masks");
    m->tokenizer = tokenizer;
    m->vocab_size = vocab_size;
    m->words = ((vocab_size + 31) / 32 + LINE - 1) / LINE * LINE;
    m->eos = (uint32_t)special->eos;
    m->symbols[MDL_SYMBOL_END_THINK] = (uint32_t)special->end_think;
    m->symbols[MDL_SYMBOL_DSML] = (uint32_t)special->dsml;
    m->plain_masks = sl_alloc((size_t)(MDL_REACH + 1) * m->words, sizeof(uint32_t), "masks");
    m->word_masks =
        sl_alloc((size_t)WORD_KINDS * (SMALL_MAX + 1) * m->words, sizeof(uint32_t), "masks");
    m->distant_mask = sl_alloc(m->words, sizeof(uint32_t), "masks");
    m->own = sl_alloc(m->words, sizeof(uint32_t), "masks");
    build_tries(m, vocab_size);
    size_t bytes = cache_bytes ? cache_bytes : MDL_MASKS_CACHE_BYTES;
    m->set_count = (uint32_t)(bytes / (WAYS * m->words * sizeof(uint32_t)));
    m->set_count = m->set_count ? m->set_count : 1;
    m->entries = sl_alloc((size_t)m->set_count * WAYS, sizeof(cached), "mask cache");
    m->masks = sl_alloc((size_t)m->set_count * WAYS * m->words, sizeof(uint32_t), "mask cache");
    /* Touched now: a page's first use costs as much as what is made in it. */
    memset(m->entries, 0, (size_t)m->set_count * WAYS * sizeof(cached));
    memset(m->masks, 0, (size_t)m->set_count * WAYS * m->words * sizeof(uint32_t));
    return m;
}

void mdl_masks_destroy(mdl_masks *masks)
{
    if (!masks)
        return;
    trie_fini(&masks->plain);
    trie_fini(&masks->other);
    trie_fini(&masks->distant);
    for (uint32_t kind = 0; kind < WORD_KINDS; kind++)
        trie_fini(&masks->word[kind]);
    sl_free(masks->plain_masks);
    sl_free(masks->word_masks);
    sl_free(masks->distant_mask);
    sl_free(masks->own);
    sl_free(masks->entries);
    sl_free(masks->masks);
    sl_free(masks);
}

const mdl_masks_counts *mdl_masks_counts_get(const mdl_masks *masks)
{
    return &masks->counts;
}

/* ---- making a mask ---- */

/* The step that a node's byte makes; looked up here, where it was made before. */
static uint32_t step(const mdl_matcher_rows *rows, mdl_matcher *matcher, uint32_t from,
                     uint8_t byte)
{
    uint32_t to = rows->rows[(size_t)from * rows->stride + rows->class_of[byte]];
    return to == MDL_STATE_FULL ? mdl_matcher_byte(matcher, from, byte) : to;
}

/* The tokens below a node that are as long as the state allows, whichever bytes they are of; false:
 * it depends on the bytes. */
static bool take_branch(const trie *t, const trie_node *node, mdl_matcher *matcher, uint32_t state,
                        uint32_t *mask)
{
    uint32_t run = MDL_RUN_MIXED;
    if (node->below < MDL_WORD_OTHER)
        run = mdl_matcher_word_run(matcher, state, node->below, node->levels);
    if (run == MDL_RUN_MIXED)
        return false;
    for (uint32_t i = node->begin + (node->token != UINT32_MAX); i < node->end; i++)
        if (t->sizes[i] < node->depth + run)
            allow(mask, t->tokens[i]);
    return true;
}

/* Which tokens may come in a state. False: the matcher is full. */
static bool walk(mdl_masks *m, const trie *t, mdl_matcher *matcher, uint32_t state, uint32_t *mask)
{
    const mdl_matcher_rows rows = mdl_matcher_rows_of(matcher);
    level *at = m->levels;
    *at = (level){state, 0, t->root_count};
    for (;;) {
        if (at->at == at->end) {
            if (at == m->levels)
                return true;
            at--;
            continue;
        }
        uint32_t index = at->at++;
        uint32_t to = step(&rows, matcher, at->state, t->bytes[index]);
        if (to == MDL_STATE_FULL)
            return false;
        if (to == MDL_STATE_DEAD)
            continue;
        const trie_node *node = &t->nodes[index];
        if (node->token != UINT32_MAX)
            allow(mask, node->token);
        if (node->child_count == 0)
            continue;
        /* The first byte below, which is due anyway, says whether asking for all is worth it. */
        bool whole = t != &m->other && t != &m->distant &&
                     step(&rows, matcher, to, t->bytes[node->children]) > MDL_STATE_DEAD &&
                     take_branch(t, node, matcher, to, mask);
        if (!whole)
            *++at = (level){to, node->children, node->children + node->child_count};
    }
}

static void allow_all(const mdl_masks *m, uint32_t *restrict mask, const uint32_t *restrict these)
{
    for (uint32_t i = 0; i < m->words; i += LINE)
        for (uint32_t k = 0; k < LINE; k++)
            mask[i + k] |= these[i + k];
}

/* Words of a kind that may come in a state. False: the matcher is full. */
static bool take_words(mdl_masks *m, uint32_t kind, mdl_matcher *matcher, uint32_t state,
                       uint32_t *mask)
{
    uint32_t behind = state, run = MDL_RUN_MIXED;
    if (kind & WORD_BY_SPACE)
        behind = mdl_matcher_byte(matcher, behind, ' ');
    if (kind & WORD_BY_CAPITAL && behind != MDL_STATE_FULL)
        behind = mdl_matcher_behind_word(matcher, behind, MDL_WORD_UPPER);
    if (behind == MDL_STATE_DEAD)
        return true;
    if (behind != MDL_STATE_FULL)
        run = mdl_matcher_word_run(matcher, behind, MDL_WORD_LOWER, SMALL_MAX);
    if (run == MDL_RUN_MIXED)
        return walk(m, &m->word[kind], matcher, state, mask);
    if (run > 0 || kind & WORD_BY_CAPITAL)
        allow_all(m, mask, word_mask(m, kind, run));
    return true;
}

static bool take_plain(mdl_masks *m, mdl_matcher *matcher, uint32_t state, uint32_t *mask)
{
    uint32_t run = mdl_matcher_plain_run(matcher, state);
    if (run != MDL_RUN_MIXED) {
        allow_all(m, mask, m->plain_masks + (size_t)run * m->words);
        return true;
    }
    for (uint32_t kind = 0; kind < WORD_KINDS; kind++)
        if (!take_words(m, kind, matcher, state, mask))
            return false;
    return walk(m, &m->plain, matcher, state, mask);
}

static bool make(mdl_masks *m, mdl_matcher *matcher, uint32_t state, uint32_t *mask)
{
    memset(mask, 0, m->words * sizeof(uint32_t));
    if (mdl_matcher_accepts(matcher, state))
        allow(mask, m->eos);
    for (int symbol = 0; symbol < MDL_SYMBOL_COUNT; symbol++) {
        uint32_t to = mdl_matcher_symbol(matcher, state, (mdl_symbol)symbol);
        if (to == MDL_STATE_FULL)
            return false;
        if (to != MDL_STATE_DEAD && m->symbols[symbol] < m->vocab_size)
            allow(mask, m->symbols[symbol]);
    }
    return take_plain(m, matcher, state, mask) && walk(m, &m->other, matcher, state, mask) &&
           walk(m, &m->distant, matcher, state, mask);
}

static bool is_same(const cached *a, const cached *b)
{
    return a->matcher == b->matcher && a->epoch == b->epoch && a->state == b->state;
}

/* The entry of a key, or the one to be replaced; *out_found says which. */
static uint32_t cache_entry(const mdl_masks *m, const cached *key, bool *out_found)
{
    uint64_t hash = (key->matcher * 0x9e3779b97f4a7c15ull ^ key->epoch) * 0xff51afd7ed558ccdull +
                    key->state * 0xc4ceb9fe1a85ec53ull;
    uint32_t first = (uint32_t)((hash >> 32) % m->set_count) * WAYS, oldest = first;
    for (uint32_t i = first; i < first + WAYS; i++) {
        const cached *e = &m->entries[i];
        if (e->used && is_same(e, key)) {
            *out_found = true;
            return i;
        }
        if (e->used < m->entries[oldest].used)
            oldest = i;
    }
    *out_found = false;
    return oldest;
}

/* NULL: the matcher is full. */
static const uint32_t *cached_mask(mdl_masks *m, mdl_matcher *matcher, uint32_t state)
{
    cached key = {mdl_matcher_id(matcher), mdl_matcher_epoch(matcher), state, ++m->clock};
    bool found;
    uint32_t entry = cache_entry(m, &key, &found);
    uint32_t *mask = m->masks + (size_t)entry * m->words;
    m->entries[entry].used = 0;
    if (!found && !make(m, matcher, state, mask))
        return NULL;
    m->counts.made += !found;
    m->counts.found += found;
    m->entries[entry] = key;
    return mask;
}

/* As the mask of a state nearby, but for the tokens beyond the reach. NULL: the matcher is full. */
static const uint32_t *own_mask(mdl_masks *m, mdl_matcher *matcher, uint32_t state,
                                const uint32_t *nearby)
{
    const cached key = {mdl_matcher_id(matcher), mdl_matcher_epoch(matcher), state, 1};
    if (m->own_key.used && is_same(&m->own_key, &key))
        return m->own;
    m->own_key.used = 0;
    for (uint32_t i = 0; i < m->words; i++)
        m->own[i] = nearby[i] & ~m->distant_mask[i];
    if (!walk(m, &m->distant, matcher, state, m->own))
        return NULL;
    m->own_key = key;
    return m->own;
}

/* NULL: the matcher is full. */
static const uint32_t *mask_of(mdl_masks *m, mdl_matcher *matcher, uint32_t state)
{
    uint32_t near = mdl_matcher_near(matcher, state);
    if (near == MDL_STATE_FULL)
        return NULL;
    const uint32_t *mask = cached_mask(m, matcher, near);
    if (!mask || near == state || m->distant.token_count == 0)
        return mask;
    uint32_t far = mdl_matcher_near_far(matcher, state);
    if (far == MDL_STATE_FULL || far == near)
        return far == near ? mask : NULL;
    return own_mask(m, matcher, far, mask);
}

/* ---- cursors ---- */

/* The state behind one token, FULL or DEAD. */
static uint32_t behind_token(const mdl_masks *m, mdl_matcher *matcher, uint32_t state, uint32_t id)
{
    for (int symbol = 0; symbol < MDL_SYMBOL_COUNT; symbol++)
        if (id == m->symbols[symbol])
            return mdl_matcher_symbol(matcher, state, (mdl_symbol)symbol);
    sl_span bytes = mdl_tokenizer_bytes(m->tokenizer, (int32_t)id);
    if (!bytes.data || mdl_tokenizer_is_added(m->tokenizer, (int32_t)id))
        return MDL_STATE_DEAD;
    for (size_t i = 0; i < bytes.size && state > MDL_STATE_DEAD; i++)
        state = mdl_matcher_byte(matcher, state, bytes.data[i]);
    return state;
}

static void forget_others(mdl_cursor *c)
{
    c->state = mdl_matcher_keep_only(c->matcher, c->state);
    c->epoch = mdl_matcher_epoch(c->matcher);
}

static sl_status too_large(sl_err *err)
{
    return sl_fail(err, SL_TOO_LARGE,
                   "the constraint needs more states at once than there is room for; "
                   "make its alternatives fewer or simpler");
}

static sl_status cursor_take(mdl_cursor *c, const mdl_masks *m, uint32_t id, sl_err *err)
{
    uint32_t to = behind_token(m, c->matcher, c->state, id);
    if (to == MDL_STATE_FULL) {
        forget_others(c);
        to = behind_token(m, c->matcher, c->state, id);
    }
    if (to == MDL_STATE_FULL)
        return too_large(err);
    if (to == MDL_STATE_DEAD)
        return sl_fail(err, SL_CONFLICT, "token %u at %u of the answer breaks the constraint", id,
                       c->taken);
    c->state = to;
    c->taken++;
    return sl_ok();
}

static sl_status cursor_sync(mdl_cursor *c, const mdl_masks *m, const uint32_t *generated,
                             uint32_t count, sl_err *err)
{
    if (c->state == MDL_STATE_FULL || c->epoch != mdl_matcher_epoch(c->matcher) ||
        c->taken > count) {
        c->state = mdl_matcher_start(c->matcher);
        if (c->state == MDL_STATE_FULL) {
            (void)mdl_matcher_keep_only(c->matcher, MDL_STATE_DEAD);
            c->state = mdl_matcher_start(c->matcher);
        }
        c->epoch = mdl_matcher_epoch(c->matcher);
        c->taken = 0;
        if (c->state == MDL_STATE_FULL)
            return too_large(err);
    }
    while (c->taken < count)
        SL_TRY(cursor_take(c, m, generated[c->taken], err));
    return sl_ok();
}

static bool is_empty(const uint32_t *mask, uint32_t words)
{
    for (uint32_t i = 0; i < words; i++)
        if (mask[i])
            return false;
    return true;
}

sl_status mdl_cursor_mask(mdl_cursor *cursor, mdl_masks *masks, const uint32_t *generated,
                          uint32_t count, const uint32_t **out_mask, sl_err *err)
{
    SL_TRY(cursor_sync(cursor, masks, generated, count, err));
    const uint32_t *mask = mask_of(masks, cursor->matcher, cursor->state);
    if (!mask) {
        forget_others(cursor);
        mask = mask_of(masks, cursor->matcher, cursor->state);
    }
    if (!mask)
        return too_large(err);
    if (is_empty(mask, masks->words))
        return sl_fail(err, SL_INTERNAL, "no token of the vocabulary spells what is due next");
    *out_mask = mask;
    return sl_ok();
}

const uint32_t *mdl_cursor_mask_ahead(mdl_cursor *cursor, mdl_masks *masks,
                                      const mdl_cursor_ahead *ahead)
{
    sl_err err; /* the draw will say it */
    if (!sl_is_ok(cursor_sync(cursor, masks, ahead->generated, ahead->count, &err)))
        return NULL;
    uint32_t state = cursor->state;
    for (uint32_t i = 0; i < ahead->draft_count && state > MDL_STATE_DEAD; i++)
        state = behind_token(masks, cursor->matcher, state, ahead->drafts[i]);
    const uint32_t *mask = state > MDL_STATE_DEAD ? mask_of(masks, cursor->matcher, state) : NULL;
    return mask && !is_empty(mask, masks->words) ? mask : NULL;
}
