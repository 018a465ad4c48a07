/* See answer_json.h. */
#include "router/answer_json.h"

#include "base/json.h"

#include <math.h>

void rtr_json_text(sl_buf *out, const char *text, size_t size)
{
    sl_json_write_string(out, text ? text : "", size);
}

void rtr_json_ids(sl_buf *out, const uint32_t *ids, size_t count)
{
    sl_buf_putc(out, '[');
    for (size_t i = 0; i < count; i++)
        sl_buf_printf(out, "%s%u", i ? "," : "", ids[i]);
    sl_buf_putc(out, ']');
}

void rtr_json_logprob(sl_buf *out, float logprob)
{
    if (isnan(logprob) || logprob < -9999.0f)
        logprob = -9999.0f;
    sl_buf_printf(out, "%.9g", (double)logprob);
}

/* Tokens that are part of a character show as U+FFFD; "bytes" has the truth. */
void rtr_json_token_text(sl_buf *out, const mdl_tokenizer *tokenizer, uint32_t id)
{
    sl_buf text;
    mdl_detok detok;
    sl_buf_init(&text, RTR_ANSWER_TOKEN_TEXT_MAX);
    mdl_detok_init(&detok, tokenizer);
    mdl_detok_push(&detok, (int32_t)id, &text);
    mdl_detok_finish(&detok, &text);
    rtr_json_text(out, text.data, text.size);
    sl_buf_fini(&text);
}

size_t rtr_token_characters(const mdl_tokenizer *tokenizer, uint32_t id)
{
    sl_span bytes = mdl_tokenizer_bytes(tokenizer, (int32_t)id);
    size_t count = 0;
    for (size_t i = 0; i < bytes.size; i++)
        count += (bytes.data[i] & 0xC0) != 0x80;
    return count;
}

static void put_bytes(sl_buf *out, const mdl_tokenizer *tokenizer, uint32_t id)
{
    sl_span bytes = mdl_tokenizer_bytes(tokenizer, (int32_t)id);
    sl_buf_putc(out, '[');
    for (size_t i = 0; i < bytes.size; i++)
        sl_buf_printf(out, "%s%u", i ? "," : "", bytes.data[i]);
    sl_buf_putc(out, ']');
}

static void put_token(sl_buf *out, const mdl_tokenizer *tokenizer, uint32_t id, float logprob)
{
    sl_buf_puts(out, "{\"token\":");
    rtr_json_token_text(out, tokenizer, id);
    sl_buf_puts(out, ",\"logprob\":");
    rtr_json_logprob(out, logprob);
    sl_buf_puts(out, ",\"bytes\":");
    put_bytes(out, tokenizer, id);
}

void rtr_json_chat_logprob(sl_buf *out, const mdl_tokenizer *tokenizer, uint32_t id,
                           const rtr_token_logprobs *logprobs)
{
    put_token(out, tokenizer, id, logprobs->logprob);
    sl_buf_puts(out, ",\"top_logprobs\":[");
    for (uint32_t i = 0; i < logprobs->top_count; i++) {
        if (i)
            sl_buf_putc(out, ',');
        put_token(out, tokenizer, logprobs->top[i].id, logprobs->top[i].logprob);
        sl_buf_putc(out, '}');
    }
    sl_buf_puts(out, "]}");
}

void rtr_json_top_map(sl_buf *out, const mdl_tokenizer *tokenizer,
                      const rtr_token_logprobs *logprobs)
{
    sl_buf_putc(out, '{');
    for (uint32_t i = 0; i < logprobs->top_count; i++) {
        if (i)
            sl_buf_putc(out, ',');
        rtr_json_token_text(out, tokenizer, logprobs->top[i].id);
        sl_buf_putc(out, ':');
        rtr_json_logprob(out, logprobs->top[i].logprob);
    }
    sl_buf_putc(out, '}');
}

void rtr_json_usage(sl_buf *out, const rtr_answer_usage *usage)
{
    sl_buf_printf(out,
                  "{\"prompt_tokens\":%u,\"completion_tokens\":%u,\"total_tokens\":%u,"
                  "\"prompt_tokens_details\":{\"cached_tokens\":%u},"
                  "\"completion_tokens_details\":{\"reasoning_tokens\":%u}}",
                  usage->prompt_tokens, usage->completion_tokens,
                  usage->prompt_tokens + usage->completion_tokens, usage->cached_tokens,
                  usage->reasoning_tokens);
}
