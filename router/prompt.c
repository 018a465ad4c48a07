/* See prompt.h. */
#include "router/prompt.h"

#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "model/sampling.h"
#include "router/answer_json.h"

struct rtr_prompt {
    rtr_prompt_options o;
    mdl_routing_layout layout;
    uint32_t vocab_size;
    uint32_t count;       /* rows that are here */
    uint32_t score_bytes; /* 0: not wanted */
    uint8_t *scores;      /* [token_count][score_bytes] of the token after the row */
    uint8_t *routing;     /* [token_count][row_bytes], NULL: not wanted */
};

rtr_prompt *rtr_prompt_create(const rtr_prompt_options *options)
{
    rtr_prompt *prompt = sl_alloc(1, sizeof *prompt, "router prompt");
    prompt->o = *options;
    prompt->vocab_size = (uint32_t)options->shape->vocab_size;
    mdl_routing_layout_init(options->shape, &prompt->layout);
    if (options->logprob_count >= 0) {
        prompt->score_bytes = mdl_score_bytes((uint32_t)options->logprob_count);
        prompt->scores = sl_alloc(options->token_count, prompt->score_bytes, "router prompt");
    }
    if (options->routing)
        prompt->routing = sl_alloc(options->token_count, prompt->layout.row_bytes, "router prompt");
    return prompt;
}

void rtr_prompt_destroy(rtr_prompt *prompt)
{
    if (!prompt)
        return;
    sl_free(prompt->scores);
    sl_free(prompt->routing);
    sl_free(prompt);
}

static bool scores_ok(const rtr_prompt *p, const Sluice__V1__PromptRows *rows)
{
    mdl_score_top top[MDL_LOGPROBS_MAX];
    mdl_score score;
    for (uint32_t i = 0; p->scores && i < rows->count; i++) {
        const uint8_t *data = rows->scores.data + (size_t)i * p->score_bytes;
        if (!mdl_score_unpack(data, (uint32_t)p->o.logprob_count, p->vocab_size, top, &score))
            return false;
        if ((score.rank == 0) != (rows->first + i + 1 == p->o.token_count))
            return false;
    }
    return true;
}

sl_status rtr_prompt_take(rtr_prompt *p, const Sluice__V1__PromptRows *rows, sl_err *err)
{
    uint64_t end = (uint64_t)rows->first + rows->count;
    uint64_t row_bytes = p->routing ? p->layout.row_bytes : 0;
    if (rows->first > p->count || end > p->o.token_count ||
        rows->scores.len != (uint64_t)rows->count * p->score_bytes ||
        rows->routing.len != rows->count * row_bytes || !scores_ok(p, rows))
        return sl_fail(err, SL_CORRUPT,
                       "rows %u to %llu of the prompt are not as asked for (next is %u of %u)",
                       rows->first, (unsigned long long)end, p->count, p->o.token_count);
    if (end <= p->count)
        return sl_ok(); /* known from another node */
    uint32_t skip = p->count - rows->first, fresh = rows->count - skip;
    if (p->scores)
        memcpy(p->scores + (size_t)p->count * p->score_bytes,
               rows->scores.data + (size_t)skip * p->score_bytes, (size_t)fresh * p->score_bytes);
    if (p->routing)
        memcpy(p->routing + p->count * row_bytes, rows->routing.data + skip * row_bytes,
               fresh * row_bytes);
    p->count += fresh;
    return sl_ok();
}

uint32_t rtr_prompt_next(const rtr_prompt *prompt)
{
    return prompt->count;
}

bool rtr_prompt_complete(const rtr_prompt *prompt)
{
    return prompt->count == prompt->o.token_count;
}

void rtr_prompt_fill_want(const rtr_prompt *prompt, Sluice__V1__PromptWant *out_want)
{
    sluice__v1__prompt_want__init(out_want);
    out_want->first = prompt->count;
    out_want->end = prompt->o.token_count;
    out_want->routing = prompt->o.routing;
    out_want->logprobs = prompt->o.logprob_count >= 0;
    out_want->top_logprobs = out_want->logprobs ? (uint32_t)prompt->o.logprob_count : 0;
}

mdl_score rtr_prompt_score(const rtr_prompt *p, uint32_t token, uint32_t alternatives,
                           mdl_score_top *top)
{
    mdl_score score = {0};
    sl_assert(rtr_prompt_complete(p) && p->scores && token > 0 && token < p->o.token_count);
    const uint8_t *data = p->scores + (size_t)(token - 1) * p->score_bytes;
    bool ok = mdl_score_unpack(data, (uint32_t)p->o.logprob_count, p->vocab_size, top, &score);
    sl_assert(ok); /* as it was when it came */
    if (score.top_count > alternatives)
        score.top_count = alternatives;
    return score;
}

static void put_entry(sl_buf *out, const mdl_tokenizer *tokenizer, uint32_t id, float logprob,
                      uint32_t rank)
{
    sl_buf_printf(out, "\"%u\":{\"logprob\":", id);
    rtr_json_logprob(out, logprob);
    sl_buf_printf(out, ",\"rank\":%u,\"decoded_token\":", rank);
    rtr_json_token_text(out, tokenizer, id);
    sl_buf_putc(out, '}');
}

void rtr_prompt_write_logprobs(const rtr_prompt *p, const mdl_tokenizer *tokenizer,
                               const mdl_ids *ids, uint32_t alternatives, sl_buf *out)
{
    mdl_score_top top[MDL_LOGPROBS_MAX];
    sl_assert(ids->count == p->o.token_count);
    sl_buf_puts(out, "[null");
    for (uint32_t token = 1; token < p->o.token_count; token++) {
        mdl_score score = rtr_prompt_score(p, token, alternatives, top);
        uint32_t id = (uint32_t)ids->data[token];
        sl_buf_puts(out, ",{");
        put_entry(out, tokenizer, id, score.logprob, score.rank);
        for (uint32_t i = 0; i < score.top_count; i++) {
            if (top[i].id == id)
                continue;
            sl_buf_putc(out, ',');
            put_entry(out, tokenizer, top[i].id, top[i].logprob, i + 1);
        }
        sl_buf_putc(out, '}');
    }
    sl_buf_putc(out, ']');
}

void rtr_prompt_write_routing(const rtr_prompt *p, sl_buf *out)
{
    sl_buf bytes;
    sl_assert(rtr_prompt_complete(p) && p->routing);
    sl_buf_init(&bytes, 0);
    mdl_routing_header(&p->layout, p->o.token_count, &bytes);
    sl_buf_append(&bytes, p->routing, (size_t)p->o.token_count * p->layout.row_bytes);
    sl_buf_putc(out, '"');
    sl_buf_base64(out, bytes.data, bytes.size);
    sl_buf_putc(out, '"');
    sl_buf_fini(&bytes);
}
