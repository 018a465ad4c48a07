/* What the stub engine must answer: one line in, `MAX_TOKENS TEMPERATURE SEED IGNORE_EOS ID ID ..`,
 * one line out, `ID ID ..`. The sampler is the shipped one. */
#include <stdio.h>
#include <stdlib.h>

#include "base/alloc.h"
#include "engine/sampler.h"
#include "model/config.h"
#include "tests/cluster/chaos/rows.h"

#define TOKENS_MAX (1u << 18)

static void answer(eng_sampler *sampler, const mdl_sampling *sampling, uint32_t *tokens,
                   uint32_t prompt_count, float *logits)
{
    uint64_t chain = CHAOS_CHAIN_START;
    uint32_t count = prompt_count, end = prompt_count + (uint32_t)sampling->max_tokens;
    for (uint32_t i = 0; i < prompt_count; i++)
        chain = chaos_chain_next(chain, tokens[i]);
    for (bool stopped = false; count < end && !stopped; count++) {
        eng_sampled sampled;
        chaos_logits(chain, sampler->vocab_size, sampler->eos_id, logits);
        eng_sampler_draw(sampler, logits, sampling, tokens, count, prompt_count, count, NULL,
                         &sampled);
        tokens[count] = sampled.id;
        chain = chaos_chain_next(chain, sampled.id);
        stopped = sampled.id == sampler->eos_id && !sampling->ignore_eos;
        printf("%u ", sampled.id);
    }
    printf("\n");
    fflush(stdout);
}

int main(int argc, char **argv)
{
    mdl_shape shape;
    sl_err err;
    eng_sampler sampler;
    char *line = NULL;
    size_t size = 0;
    if (argc != 2 || !sl_is_ok(mdl_shape_load(argv[1], &shape, &err))) {
        fprintf(stderr, "usage: chaos-reference MODEL\n");
        return 2;
    }
    uint32_t *tokens = sl_alloc(TOKENS_MAX, sizeof(*tokens), "tokens");
    float *logits = sl_alloc((size_t)shape.vocab_size, sizeof(*logits), "logits");
    eng_sampler_init(&sampler, (uint32_t)shape.vocab_size, (uint32_t)shape.eos_id, NULL);
    while (getline(&line, &size, stdin) > 0) {
        mdl_sampling sampling;
        uint32_t count = 0;
        char *at = line, *end;
        mdl_sampling_init(&sampling);
        sampling.max_tokens = (int32_t)strtol(at, &at, 10);
        sampling.temperature = strtof(at, &at);
        sampling.seed = strtoull(at, &at, 10);
        sampling.seed_given = true;
        sampling.ignore_eos = strtol(at, &at, 10) != 0;
        for (; count < TOKENS_MAX / 2; at = end, count++) {
            tokens[count] = (uint32_t)strtoul(at, &end, 10);
            if (end == at)
                break;
        }
        answer(&sampler, &sampling, tokens, count, logits);
    }
    free(line);
    eng_sampler_fini(&sampler);
    sl_free(logits);
    sl_free(tokens);
    return 0;
}
