/* What a request wants to know of its prompt's rows: log-probabilities of the prompt's tokens, and
 * which experts the rows chose. Filled chunk by chunk, wherever the prompt is computed.
 *
 * Row r is the row of prompt token r: its logits tell the log-probability of token r + 1.
 * Allocated with the job or task (control thread), noted by the engine thread, read by the control
 * thread up to what the engine thread has told of. */
#ifndef ENGINE_PROMPT_H
#define ENGINE_PROMPT_H

#include "engine/engine.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Memory that one request's rows may take. */
#define ENG_PROMPT_BYTES_MAX ((uint64_t)512 << 20)

typedef struct eng_prompt_want {
    uint32_t first, end; /* rows [first, end); end: the prompt's length */
    bool routing;
    int32_t logprob_count; /* -1 = none, else this many alternatives, <= ENG_LOGPROBS_MAX */
} eng_prompt_want;

typedef struct eng_prompt_rows {
    eng_prompt_want want;
    uint32_t row_bytes; /* of routing */
    uint32_t done;      /* rows before it are noted */
    uint32_t score_bytes;
    uint8_t *scores;  /* [end - first][score_bytes] of the token after the row; zeros at the last */
    uint8_t *routing; /* [end - first][row_bytes] */
} eng_prompt_rows;

/* SL_INVALID: no such rows in so many tokens; SL_TOO_LARGE. */
SL_MUST_USE sl_status eng_prompt_want_check(const eng_prompt_want *want, uint32_t token_count,
                                            const mdl_routing_layout *layout, sl_err *err);
eng_prompt_rows *eng_prompt_rows_create(const eng_prompt_want *want,
                                        const mdl_routing_layout *layout);
void eng_prompt_rows_destroy(eng_prompt_rows *rows);
/* Makes a span that starts at position `from` give what is wanted of its rows. NULL is fine. */
void eng_prompt_ask(const eng_prompt_rows *rows, uint32_t from, eng_span *span);
/* After the step: row 0 of the span is row step_row of the step, and row logits_row of its logits.
 * tokens: of the whole sequence. Overwrites logits. NULL is fine. */
void eng_prompt_note(eng_prompt_rows *rows, eng_engine *engine, const eng_span *span, uint32_t from,
                     uint32_t step_row, uint32_t logits_row, const uint32_t *tokens);

#ifdef __cplusplus
}
#endif
#endif
