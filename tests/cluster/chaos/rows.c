/* See rows.h. */
#include "tests/cluster/chaos/rows.h"

#include <string.h>

#include "kernels/cache.h"

#define CANDIDATES  4u
#define FIRST_TOKEN 300u /* plain text in the demo model's vocabulary, as all up to: */
#define TOKENS      3700u
#define EOS_ONE_IN  64u
#define ROW_WORDS   (KRN_LATENT_ROW_BYTES / 8)
#define INDEX_WORDS (KRN_INDEX_DIM / 8)

static uint64_t mix(uint64_t a, uint64_t b)
{
    uint64_t z = (a ^ (b * 0x9e3779b97f4a7c15ull)) + 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

uint64_t chaos_chain_next(uint64_t chain, uint32_t token)
{
    return mix(chain, token + 1u);
}

typedef struct row {
    uint64_t latent[ROW_WORDS]; /* [0] chain, [1] token and layer */
    uint64_t index[INDEX_WORDS];
    uint32_t scale;
} row;

static void make(uint32_t layer, uint64_t chain, uint32_t token, row *out)
{
    uint64_t word = mix(chain, layer);
    out->latent[0] = chain;
    out->latent[1] = (uint64_t)token << 32 | layer;
    for (uint32_t i = 2; i < ROW_WORDS; i++)
        out->latent[i] = word + i * 0x9e3779b97f4a7c15ull;
    for (uint32_t i = 0; i < INDEX_WORDS; i++)
        out->index[i] = ~word + i * 0xbf58476d1ce4e5b9ull;
    out->scale = (uint32_t)(word >> 32) | 1u;
}

static const uint8_t *latent_at(const uint8_t *slice, uint32_t slot)
{
    return slice + (size_t)slot * KRN_LATENT_ROW_BYTES;
}

static const uint8_t *index_at(const uint8_t *slice, uint32_t slot)
{
    return slice + KRN_INDEX_CODES_AT + (size_t)slot * KRN_INDEX_DIM;
}

static const uint8_t *scale_at(const uint8_t *slice, uint32_t slot)
{
    return slice + KRN_INDEX_SCALES_AT + (size_t)slot * sizeof(uint32_t);
}

static bool equals(const uint8_t *slice, uint32_t slot, const row *wanted)
{
    return memcmp(latent_at(slice, slot), wanted->latent, sizeof(wanted->latent)) == 0 &&
           memcmp(index_at(slice, slot), wanted->index, sizeof(wanted->index)) == 0 &&
           memcmp(scale_at(slice, slot), &wanted->scale, sizeof(wanted->scale)) == 0;
}

void chaos_row_put(uint8_t *slice, uint32_t slot, uint32_t layer, uint64_t chain, uint32_t token)
{
    row made;
    make(layer, chain, token, &made);
    memcpy((uint8_t *)latent_at(slice, slot), made.latent, sizeof(made.latent));
    memcpy((uint8_t *)index_at(slice, slot), made.index, sizeof(made.index));
    memcpy((uint8_t *)scale_at(slice, slot), &made.scale, sizeof(made.scale));
}

bool chaos_row_is(const uint8_t *slice, uint32_t slot, uint32_t layer, uint64_t chain,
                  uint32_t token)
{
    row wanted;
    make(layer, chain, token, &wanted);
    return equals(slice, slot, &wanted);
}

bool chaos_row_is_zero(const uint8_t *slice, uint32_t slot)
{
    static const row zero;
    return equals(slice, slot, &zero);
}

uint64_t chaos_row_chain(const uint8_t *slice, uint32_t slot)
{
    uint64_t chain;
    memcpy(&chain, latent_at(slice, slot), sizeof(chain));
    return chain;
}

uint32_t chaos_row_token(const uint8_t *slice, uint32_t slot)
{
    uint64_t word;
    memcpy(&word, latent_at(slice, slot) + sizeof(word), sizeof(word));
    return (uint32_t)(word >> 32);
}

static uint32_t candidate(uint64_t chain, uint32_t index)
{
    return FIRST_TOKEN + (uint32_t)(mix(chain, index + 100) % TOKENS);
}

void chaos_logits(uint64_t chain, uint32_t vocab, uint32_t eos, float *out)
{
    for (uint32_t i = 0; i < vocab; i++)
        out[i] = -1e30f; /* no probability at all */
    for (uint32_t i = 0; i < CANDIDATES; i++)
        out[candidate(chain, i)] = 5.0f - 0.25f * (float)i;
    if (mix(chain, 99) % EOS_ONE_IN == 0)
        out[eos] = 6.0f;
}

uint32_t chaos_guess(uint64_t chain)
{
    return candidate(chain, 0);
}
