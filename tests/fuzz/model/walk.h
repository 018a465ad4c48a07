/* A random walk over a grammar's states, shared by the fuzz targets of constraints. */
#ifndef TESTS_FUZZ_MODEL_WALK_H
#define TESTS_FUZZ_MODEL_WALK_H

#include "base/assert.h"
#include "base/rng.h"
#include "model/constraint.h"
#include "model/matcher.h"

#define FUZZ_WALK_BYTES 200u

typedef void (*fuzz_check_fn)(const char *text, size_t size);

/* The next byte: the first live one from a random start, so that all are tried now and then. -1:
 * none. */
static inline int fuzz_live_byte(mdl_matcher *matcher, uint32_t state, uint32_t start)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t to = mdl_matcher_byte(matcher, state, (uint8_t)(start + i));
        if (to != MDL_STATE_DEAD)
            return (uint8_t)(start + i);
    }
    return -1;
}

static inline void fuzz_walk(const mdl_grammar *grammar, uint64_t seed, fuzz_check_fn check)
{
    static const char ENDS[] = "\"}]e0";
    char text[FUZZ_WALK_BYTES];
    mdl_matcher *matcher = mdl_matcher_create(grammar, 512);
    uint32_t state = mdl_matcher_start(matcher);
    for (uint32_t size = 0; size < FUZZ_WALK_BYTES && state != MDL_STATE_FULL; size++) {
        double u = sl_keyed_uniform(seed, size, 0);
        uint32_t start = u < 0.5 ? (uint8_t)ENDS[(int)(u * 10)] : (uint32_t)(u * 512);
        if (mdl_matcher_accepts(matcher, state))
            check(text, size);
        int byte = fuzz_live_byte(matcher, state, start);
        sl_assert(byte >= 0 || mdl_matcher_accepts(matcher, state)); /* no dead end */
        if (byte < 0)
            break;
        text[size] = (char)byte;
        uint32_t to = mdl_matcher_byte(matcher, state, (uint8_t)byte);
        if (to == MDL_STATE_FULL) { /* once more, with nothing else in the table */
            state = mdl_matcher_keep_only(matcher, state);
            to = mdl_matcher_byte(matcher, state, (uint8_t)byte);
        }
        state = to;
    }
    mdl_matcher_destroy(matcher);
}

#endif
