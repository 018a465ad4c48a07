/* See prompt.h. Threads: as said there. */
#include "engine/prompt.h"

#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"

static uint32_t score_bytes(const eng_prompt_want *want)
{
    return want->logprob_count >= 0 ? mdl_score_bytes((uint32_t)want->logprob_count) : 0;
}

sl_status eng_prompt_want_check(const eng_prompt_want *want, uint32_t token_count,
                                const mdl_routing_layout *layout, sl_err *err)
{
    if (want->first >= want->end || want->end > token_count ||
        want->logprob_count > ENG_LOGPROBS_MAX)
        return sl_fail(err, SL_INVALID, "rows %u to %u of a prompt of %u tokens, %d alternatives",
                       want->first, want->end, token_count, want->logprob_count);
    uint64_t row = score_bytes(want) + (want->routing ? layout->row_bytes : 0);
    if (row == 0)
        return sl_fail(err, SL_INVALID, "prompt rows, of which nothing is wanted");
    if (row * (want->end - want->first) > ENG_PROMPT_BYTES_MAX)
        return sl_fail(err, SL_TOO_LARGE, "what is wanted of %u prompt rows takes over %llu MiB",
                       want->end - want->first, (unsigned long long)(ENG_PROMPT_BYTES_MAX >> 20));
    return sl_ok();
}

eng_prompt_rows *eng_prompt_rows_create(const eng_prompt_want *want,
                                        const mdl_routing_layout *layout)
{
    eng_prompt_rows *rows = sl_alloc(1, sizeof(*rows), "prompt rows");
    uint32_t count = want->end - want->first;
    rows->want = *want;
    rows->done = want->first;
    rows->row_bytes = layout->row_bytes;
    rows->score_bytes = score_bytes(want);
    if (want->logprob_count >= 0)
        rows->scores = sl_alloc(count, rows->score_bytes, "prompt rows");
    if (want->routing)
        rows->routing = sl_alloc(count, layout->row_bytes, "prompt rows");
    return rows;
}

void eng_prompt_rows_destroy(eng_prompt_rows *rows)
{
    if (!rows)
        return;
    sl_free(rows->scores);
    sl_free(rows->routing);
    sl_free(rows);
}

void eng_prompt_ask(const eng_prompt_rows *rows, uint32_t from, eng_span *span)
{
    if (!rows || from >= rows->want.end || from + span->token_count <= rows->want.first)
        return;
    if (rows->scores)
        span->logits = ENG_LOGITS_ALL;
    if (rows->routing)
        span->routing = true;
}

void eng_prompt_note(eng_prompt_rows *rows, eng_engine *engine, const eng_span *span, uint32_t from,
                     uint32_t step_row, uint32_t logits_row, const uint32_t *tokens)
{
    if (!rows)
        return;
    for (uint32_t i = 0; i < span->token_count; i++) {
        uint32_t row = from + i;
        if (row != rows->done || row >= rows->want.end)
            continue;
        uint32_t at = row - rows->want.first;
        if (rows->routing)
            memcpy(rows->routing + (size_t)at * rows->row_bytes,
                   eng_step_routing(engine, step_row + i), rows->row_bytes);
        if (rows->scores && row + 1 < rows->want.end)
            eng_score(engine, eng_step_logits(engine, logits_row + i), tokens[row + 1],
                      (uint32_t)rows->want.logprob_count,
                      rows->scores + (size_t)at * rows->score_bytes);
        rows->done++;
    }
}
