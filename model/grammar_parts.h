/* The inside of a grammar, shared by the files that build and run it. Not for others. */
#ifndef MODEL_GRAMMAR_PARTS_H
#define MODEL_GRAMMAR_PARTS_H

#include "model/grammar.h"

typedef enum mdl_node_kind {
    MDL_NODE_KIND_EMPTY,
    MDL_NODE_KIND_SET,     /* a: set */
    MDL_NODE_KIND_SYMBOL,  /* a: mdl_symbol */
    MDL_NODE_KIND_LITERAL, /* a: offset, b: size > 0 */
    MDL_NODE_KIND_THEN,    /* a, b */
    MDL_NODE_KIND_OR,      /* a, b */
    MDL_NODE_KIND_REPEAT,  /* a: node, b: min, c: max */
    MDL_NODE_KIND_RULE,    /* a: rule */
    MDL_NODE_KIND_DFA,     /* a: dfa */
} mdl_node_kind;

#define MDL_HEIGHT_NONE  0xffffu /* of a node that cannot end */
#define MDL_SHORTEST_MAX 0xffu

typedef struct mdl_grammar_node {
    uint8_t kind;
    uint8_t shortest; /* bytes of its shortest text, a symbol as one; MDL_SHORTEST_MAX or more */
    uint16_t height;  /* rules inside one another that its shortest end needs */
    uint32_t a, b, c;
} mdl_grammar_node;

/* What mdl_grammar_settle made of a node: equal ones share it. */
typedef struct mdl_settled {
    uint8_t *key;
    size_t key_size;
    mdl_node node;
} mdl_settled;

struct mdl_grammar {
    mdl_grammar_node *nodes;
    uint32_t node_count, node_capacity;
    mdl_byte_set *sets;
    uint32_t set_count, set_capacity;
    mdl_node *rules; /* bodies; NONE = not defined yet */
    uint32_t rule_count, rule_capacity;
    char *text; /* of literals */
    uint32_t text_size, text_capacity;
    mdl_dfa **dfas;
    uint32_t dfa_count, dfa_capacity, dfa_states;
    mdl_settled *settled;
    uint32_t settled_count;
    uint64_t work;
    mdl_node root;
    const char *over; /* what passed its bound, NULL = nothing */
};

/* Marks which bytes every part of the grammar treats alike: out_class[byte], numbered from 0.
 * Returns how many classes there are. */
uint32_t mdl_grammar_classes(const mdl_grammar *grammar, uint8_t out_class[256]);

/* Counts the characters of an automaton's texts (counted.c). */
typedef struct mdl_counter {
    uint32_t min, max; /* characters; MDL_REPEAT_ANY: no longest */
    bool *ends;        /* [state_count]: entering it ends a character */
    uint32_t *least;   /* [state_count]: fewest characters left there; UINT32_MAX: over max */
    uint32_t least_max;
    uint32_t *most; /* [state_count]: most that is known to be left there; UINT32_MAX: no end */
    uint64_t *left; /* [left_count][words] sets of states: where so many characters may be left;
                     * without a longest text: so many or more */
    uint32_t words, left_count;
    uint32_t first, period; /* sets from `first` on are a circle; period 0: there is none */
    uint64_t visits;
} mdl_counter;
void mdl_counter_destroy(mdl_counter *counter);
/* As closures; NULL: 0. */
uint64_t mdl_counter_work(const mdl_counter *counter);

/* A deterministic automaton over bytes. State 0 is dead, state 1 the start; from every other state
 * an accepting one can be reached. */
struct mdl_dfa {
    uint32_t state_count;
    uint32_t class_count;
    uint8_t class_of[256];
    uint8_t shortest;     /* as a node's */
    bool *accepts;        /* [state_count] */
    bool *goes_on;        /* [state_count]: some byte leads on; what does not accepts */
    uint32_t *next;       /* [state_count][class_count] */
    mdl_counter *counter; /* NULL: counts nothing */
};

static inline uint32_t mdl_dfa_step(const mdl_dfa *dfa, uint32_t state, unsigned byte)
{
    return dfa->next[state * dfa->class_count + dfa->class_of[byte]];
}

/* Places of a run: a state, or with a counter count * state_count + state. 0 is dead. */
uint32_t mdl_counted_step(const mdl_dfa *dfa, uint32_t place, unsigned byte);
bool mdl_counted_accepts(const mdl_dfa *dfa, uint32_t place);
bool mdl_counted_goes_on(const mdl_dfa *dfa, uint32_t place);
/* A place with the same texts as far as `margin` bytes: one for all that are far from bounds. */
uint32_t mdl_counted_near(const mdl_dfa *dfa, uint32_t place, uint32_t margin);
#define MDL_PLACE_START 1u

static inline uint32_t mdl_dfa_go(const mdl_dfa *dfa, uint32_t place, unsigned byte)
{
    return dfa->counter ? mdl_counted_step(dfa, place, byte) : mdl_dfa_step(dfa, place, byte);
}
static inline bool mdl_dfa_place_accepts(const mdl_dfa *dfa, uint32_t place)
{
    return dfa->counter ? mdl_counted_accepts(dfa, place) : dfa->accepts[place];
}
static inline bool mdl_dfa_place_goes_on(const mdl_dfa *dfa, uint32_t place)
{
    return dfa->counter ? mdl_counted_goes_on(dfa, place) : dfa->goes_on[place];
}

#endif
