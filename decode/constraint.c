/* See constraint.h. A table searched from the front: it is short, and searched once a request. */
#include "decode/constraint.h"

#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "model/constraint.h"

struct dec_constraint {
    uint8_t *key; /* the wire form; NULL: free */
    size_t key_size;
    dec_compiled compiled;
    uint32_t users;
    uint64_t used; /* when it was last taken, in takes */
};

struct dec_constraints {
    dec_constraint *entries;
    uint32_t capacity;
    uint64_t takes;
};

dec_constraints *dec_constraints_create(uint32_t sequences_max)
{
    dec_constraints *c = sl_alloc(1, sizeof(*c), "decode constraints");
    c->capacity = sequences_max + DEC_CONSTRAINTS_IDLE_MAX;
    c->entries = sl_alloc(c->capacity, sizeof(*c->entries), "decode constraints");
    return c;
}

static void clear(dec_constraint *entry)
{
    dec_compiled_fini(&entry->compiled);
    sl_free(entry->key);
    *entry = (dec_constraint){0};
}

void dec_constraints_destroy(dec_constraints *constraints)
{
    if (!constraints)
        return;
    for (uint32_t i = 0; i < constraints->capacity; i++) {
        sl_assert(constraints->entries[i].users == 0);
        clear(&constraints->entries[i]);
    }
    sl_free(constraints->entries);
    sl_free(constraints);
}

void dec_compiled_fini(dec_compiled *compiled)
{
    mdl_matcher_destroy(compiled->matcher);
    mdl_grammar_destroy(compiled->grammar);
    *compiled = (dec_compiled){0};
}

sl_status dec_constraint_compile(const Sluice__V1__Constraint *wire, dec_compiled *out_compiled,
                                 sl_err *err)
{
    mdl_constraint constraint;
    mdl_grammar *grammar = NULL;
    if (wire->kind >= MDL_CONSTRAINT_KIND_COUNT || wire->calls >= MDL_CALLS_COUNT)
        return sl_fail(err, SL_UNSUPPORTED,
                       "constraint: kind %u with calls %u is not known to this node", wire->kind,
                       wire->calls);
    if (wire->text.len > MDL_CONSTRAINT_BYTES_MAX || wire->tools.len > MDL_CONSTRAINT_BYTES_MAX)
        return sl_fail(err, SL_TOO_LARGE, "constraint: more than %zu bytes",
                       MDL_CONSTRAINT_BYTES_MAX);
    mdl_constraint_init(&constraint);
    constraint.kind = (mdl_constraint_kind)wire->kind;
    constraint.calls = (mdl_constraint_calls)wire->calls;
    constraint.reasoning = wire->reasoning;
    constraint.strict = wire->strict;
    constraint.one_call = wire->one_call;
    sl_buf_append(&constraint.text, wire->text.data, wire->text.len);
    sl_buf_append(&constraint.tools, wire->tools.data, wire->tools.len);
    sl_status status = mdl_constraint_is_set(&constraint)
                           ? mdl_constraint_compile(&constraint, &grammar, err)
                           : sl_fail(err, SL_INVALID, "constraint: says nothing");
    mdl_constraint_fini(&constraint);
    if (sl_is_ok(status))
        *out_compiled = (dec_compiled){grammar, mdl_matcher_create(grammar, 0)};
    return status;
}

/* A free entry, or the idle one that was used longest ago. */
static dec_constraint *make_room(dec_constraints *c)
{
    dec_constraint *oldest = NULL;
    for (uint32_t i = 0; i < c->capacity; i++) {
        dec_constraint *entry = &c->entries[i];
        if (!entry->key)
            return entry;
        if (entry->users == 0 && (!oldest || entry->used < oldest->used))
            oldest = entry;
    }
    sl_assert(oldest); /* more entries than sequences */
    clear(oldest);
    return oldest;
}

static uint8_t *key_of(const Sluice__V1__Constraint *wire, size_t *out_size)
{
    *out_size = sluice__v1__constraint__get_packed_size(wire);
    uint8_t *key = sl_alloc(*out_size + 1, 1, "decode constraint key");
    sluice__v1__constraint__pack(wire, key);
    return key;
}

dec_constraint *dec_constraint_find(dec_constraints *c, const Sluice__V1__Constraint *wire)
{
    size_t size;
    uint8_t *key = key_of(wire, &size);
    dec_constraint *found = NULL;
    for (uint32_t i = 0; i < c->capacity && !found; i++) {
        dec_constraint *entry = &c->entries[i];
        if (entry->key && entry->key_size == size && memcmp(entry->key, key, size) == 0)
            found = entry;
    }
    sl_free(key);
    if (found) {
        found->users++;
        found->used = ++c->takes;
    }
    return found;
}

void dec_constraint_add(dec_constraints *c, const Sluice__V1__Constraint *wire,
                        dec_compiled *take_compiled)
{
    dec_constraint *entry = make_room(c);
    entry->key = key_of(wire, &entry->key_size);
    entry->compiled = *take_compiled;
    entry->used = ++c->takes;
    *take_compiled = (dec_compiled){0};
}

void dec_constraint_give(dec_constraint *constraint)
{
    if (!constraint)
        return;
    sl_assert(constraint->users > 0);
    constraint->users--;
}

mdl_matcher *dec_constraint_matcher(const dec_constraint *constraint)
{
    return constraint->compiled.matcher;
}

uint32_t dec_constraints_count(const dec_constraints *c)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < c->capacity; i++)
        count += c->entries[i].key != NULL;
    return count;
}
