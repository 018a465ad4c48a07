/* Masks: a walk over the vocabulary's tries that leaves a branch as soon as the grammar does.
 *
 * Tokens that are plain text (what a JSON string holds unescaped, whole characters) have a trie of
 * their own: where a state takes any n plain characters, a stored mask stands for all tokens of at
 * most n, and only the few others are walked. Tokens longer than the matcher's reach are few and
 * have a trie of their own too: the mask of the others is shared by states that differ beyond the
 * reach only. Owner's thread; allocates at creation only. */
#include "model/masks.h"

#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"

#define WAYS      4u   /* places where the cache looks for a mask */
#define DEPTH_MAX 256u /* longer tokens are never allowed */

/* A byte of one or more tokens; the nodes of a trie are in preorder. */
typedef struct trie_node {
    uint32_t token;  /* MDL_TOKEN_NONE as UINT32_MAX: none ends here */
    uint32_t behind; /* first node after the ones below this */
    uint16_t depth;  /* 1 = first byte */
    uint8_t byte;
} trie_node;

typedef struct trie {
    trie_node *nodes;
    uint32_t count;
    uint8_t *below;   /* [node]: sets of the bytes below it (mdl_word_set) */
    uint8_t *levels;  /* [node]: below it */
    uint32_t *tokens; /* in the order of the nodes */
    uint8_t *sizes;   /* of the tokens, in bytes less one */
    uint32_t *first;  /* [node]: tokens of the nodes before it; one more for the end */
} trie;

typedef struct cached {
    uint64_t matcher;
    uint32_t epoch, state;
    uint64_t used; /* 0 = empty */
} cached;

struct mdl_masks {
    const mdl_tokenizer *tokenizer;
    uint32_t vocab_size, words;
    uint32_t eos;
    uint32_t symbols[MDL_SYMBOL_COUNT];
    trie plain, other, distant;
    uint32_t *plain_masks; /* [MDL_REACH + 1][words]: plain tokens of at most so many characters */
    uint32_t *distant_mask;
    uint32_t *own;                  /* the mask last made for one state alone */
    uint32_t states[DEPTH_MAX + 1]; /* of the walk, by depth */
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

/* Which of the tries a token belongs to. */
static const trie *trie_of(const mdl_masks *m, const spelled *token)
{
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

/* Nodes of one token behind those it shares with the one before. Tokens that are spelled alike get
 * a node each: the later one's last byte once more, as a sibling. */
static void add_token(trie *t, const spelled *token, const spelled *before)
{
    uint32_t shared = before ? shared_prefix(before, token) : 0, made = 0;
    if (shared == token->size)
        shared--;
    for (uint32_t depth = shared; depth < token->size; depth++, made++)
        if (t->nodes)
            t->nodes[t->count + made] = (trie_node){
                .token = UINT32_MAX, .depth = (uint16_t)(depth + 1), .byte = token->data[depth]};
    if (t->nodes)
        t->nodes[t->count + made - 1].token = token->id;
    t->count += made;
}

static void link_behind(trie *t, uint32_t *open)
{
    uint32_t depth = 0;
    for (uint32_t i = 0; i < t->count; i++) {
        while (depth >= t->nodes[i].depth)
            t->nodes[open[depth--]].behind = i;
        open[++depth] = i;
    }
    while (depth > 0)
        t->nodes[open[depth--]].behind = t->count;
}

/* What is below each node, for branches that are taken whole. */
static void sum_up(trie *t)
{
    uint32_t count = 0;
    t->below = sl_alloc(t->count + 1, sizeof(*t->below), "token trie");
    t->levels = sl_alloc(t->count + 1, sizeof(*t->levels), "token trie");
    t->first = sl_alloc(t->count + 1, sizeof(*t->first), "token trie");
    t->tokens = sl_alloc(t->count + 1, sizeof(*t->tokens), "token trie");
    t->sizes = sl_alloc(t->count + 1, sizeof(*t->sizes), "token trie");
    for (uint32_t i = 0; i < t->count; i++) {
        t->first[i] = count;
        if (t->nodes[i].token == UINT32_MAX)
            continue;
        t->sizes[count] = (uint8_t)(t->nodes[i].depth - 1);
        t->tokens[count++] = t->nodes[i].token;
    }
    t->first[t->count] = count;
    for (uint32_t i = t->count; i-- > 0;)
        for (uint32_t child = i + 1; child < t->nodes[i].behind; child = t->nodes[child].behind) {
            t->below[i] |= t->below[child] | (uint8_t)mdl_word_set_of(t->nodes[child].byte);
            if (t->levels[i] <= t->levels[child])
                t->levels[i] = (uint8_t)(t->levels[child] + 1);
        }
}

static void build_trie(mdl_masks *m, trie *t, const spelled *tokens, uint32_t count)
{
    for (int pass = 0; pass < 2; pass++) { /* counts, then fills */
        const spelled *before = NULL;
        t->count = 0;
        for (uint32_t i = 0; i < count; i++) {
            if (trie_of(m, &tokens[i]) != t)
                continue;
            add_token(t, &tokens[i], before);
            before = &tokens[i];
        }
        if (pass == 0)
            t->nodes = sl_alloc(t->count + 1, sizeof(trie_node), "token trie");
    }
    link_behind(t, m->states);
    sum_up(t);
}

static void trie_fini(trie *t)
{
    sl_free(t->nodes);
    sl_free(t->below);
    sl_free(t->levels);
    sl_free(t->tokens);
    sl_free(t->sizes);
    sl_free(t->first);
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
    build_trie(m, &m->plain, tokens, count);
    build_trie(m, &m->other, tokens, count);
    build_trie(m, &m->distant, tokens, count);
    for (uint32_t i = 0; i < count; i++) {
        if (trie_of(m, &tokens[i]) == &m->distant)
            allow(m->distant_mask, tokens[i].id);
        uint32_t characters = plain_characters(&tokens[i]);
        for (uint32_t n = characters; characters > 0 && n <= MDL_REACH; n++)
            allow(m->plain_masks + (size_t)n * m->words, tokens[i].id);
    }
    sl_free(tokens);
}

mdl_masks *mdl_masks_create(const mdl_tokenizer *tokenizer, uint32_t vocab_size, size_t cache_bytes)
{
    const mdl_special *special = mdl_tokenizer_special(tokenizer);
    mdl_masks *m = sl_alloc(1, sizeof(*m), "masks");
    m->tokenizer = tokenizer;
    m->vocab_size = vocab_size;
    m->words = (vocab_size + 31) / 32;
    m->eos = (uint32_t)special->eos;
    m->symbols[MDL_SYMBOL_END_THINK] = (uint32_t)special->end_think;
    m->symbols[MDL_SYMBOL_DSML] = (uint32_t)special->dsml;
    m->plain_masks = sl_alloc((size_t)(MDL_REACH + 1) * m->words, sizeof(uint32_t), "masks");
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
    sl_free(masks->plain_masks);
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
static bool take_branch(const trie *t, uint32_t node, mdl_matcher *matcher, uint32_t state,
                        uint32_t *mask)
{
    uint32_t run = MDL_RUN_MIXED, depth = t->nodes[node].depth;
    if (t->below[node] < MDL_WORD_OTHER)
        run = mdl_matcher_word_run(matcher, state, t->below[node], t->levels[node]);
    if (run == MDL_RUN_MIXED)
        return false;
    for (uint32_t i = t->first[node + 1]; i < t->first[t->nodes[node].behind]; i++)
        if (t->sizes[i] < depth + run)
            allow(mask, t->tokens[i]);
    return true;
}

/* False: the matcher is full. */
static bool walk(mdl_masks *m, const trie *t, mdl_matcher *matcher, uint32_t *mask)
{
    const mdl_matcher_rows rows = mdl_matcher_rows_of(matcher);
    for (uint32_t i = 0; i < t->count;) {
        const trie_node *node = &t->nodes[i];
        uint32_t to = step(&rows, matcher, m->states[node->depth - 1], node->byte);
        if (to == MDL_STATE_FULL)
            return false;
        if (to == MDL_STATE_DEAD) {
            i = node->behind;
            continue;
        }
        m->states[node->depth] = to;
        if (node->token != UINT32_MAX)
            allow(mask, node->token);
        /* The first byte below, which is due anyway, says whether asking for all is worth it. */
        bool whole = node->behind > i + 1 && t == &m->plain &&
                     step(&rows, matcher, to, node[1].byte) > MDL_STATE_DEAD &&
                     take_branch(t, i, matcher, to, mask);
        i = whole ? node->behind : i + 1;
    }
    return true;
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
    m->states[0] = state;
    uint32_t run = mdl_matcher_plain_run(matcher, state);
    if (run == MDL_RUN_MIXED) {
        if (!walk(m, &m->plain, matcher, mask))
            return false;
    } else {
        for (uint32_t i = 0; i < m->words; i++)
            mask[i] |= m->plain_masks[(size_t)run * m->words + i];
    }
    return walk(m, &m->other, matcher, mask) && walk(m, &m->distant, matcher, mask);
}

/* The entry of a key, or the one to be replaced; *out_found says which. */
static uint32_t cache_entry(const mdl_masks *m, const cached *key, bool *out_found)
{
    uint64_t hash = (key->matcher * 0x9e3779b97f4a7c15ull ^ key->epoch) * 0xff51afd7ed558ccdull +
                    key->state * 0xc4ceb9fe1a85ec53ull;
    uint32_t first = (uint32_t)((hash >> 32) % m->set_count) * WAYS, oldest = first;
    for (uint32_t i = first; i < first + WAYS; i++) {
        const cached *e = &m->entries[i];
        if (e->used && e->matcher == key->matcher && e->epoch == key->epoch &&
            e->state == key->state) {
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

/* NULL: the matcher is full. */
static const uint32_t *mask_of(mdl_masks *m, mdl_matcher *matcher, uint32_t state)
{
    uint32_t near = mdl_matcher_near(matcher, state);
    if (near == MDL_STATE_FULL)
        return NULL;
    const uint32_t *mask = cached_mask(m, matcher, near);
    if (!mask || near == state || m->distant.count == 0)
        return mask;
    for (uint32_t i = 0; i < m->words; i++)
        m->own[i] = mask[i] & ~m->distant_mask[i];
    m->states[0] = state;
    return walk(m, &m->distant, matcher, m->own) ? m->own : NULL;
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
