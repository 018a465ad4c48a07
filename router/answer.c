/* Building answers. One push gives at most a few events: text of one kind is joined, each call's
 * delta has an event of its own, because clients read only the first entry of a delta's calls.
 *
 * Pending = what the next event will say: texts, at most one call delta, and the ids and log
 * probabilities of the tokens behind them. Tokens whose text is still held back stay pending. */
#include "router/answer.h"

#include "base/alloc.h"
#include "base/assert.h"
#include "router/answer_json.h"

#include <stdio.h>
#include <string.h>

typedef struct pending_delta {
    sl_buf reasoning;
    sl_buf content;
    sl_buf name;
    sl_buf arguments;
    bool has_call;
    bool call_begins;
    int32_t call_index;
    char call_id[MDL_CALL_ID_SIZE];
    mdl_ids ids;
    /* log probabilities: chat entries; or the four arrays of completions */
    sl_buf logprobs;
    sl_buf token_texts, token_tops, token_offsets;
} pending_delta;

typedef struct choice {
    rtr_answer *answer;
    uint32_t index;
    mdl_detok detok;
    mdl_output *output;
    mdl_message message; /* not streamed */
    pending_delta delta;
    size_t text_offset;
    rtr_handout *handout;   /* NULL: not wanted */
    uint32_t pushed, shown; /* tokens; of their hand-outs */
    const char *finish;     /* NULL: goes on */
    bool begun;             /* the echo is in it */
    bool prompt_told;
} choice;

struct rtr_answer {
    rtr_answer_options options;
    bool chat, stream, want_logprobs;
    bool first_chunk;
    sl_buf head; /* constant start of a chunk or body: {"id":..,..,"system_fingerprint":".." */
    sl_buf out;
    sl_buf text; /* detokenised, of one token */
    rtr_answer_usage usage;
    rtr_prompt *prompt; /* NULL: nothing is wanted */
    choice *choices;    /* [choice_count] */
    uint32_t choice_count, open_count;
};

/* ---- pending */

static void delta_clear(pending_delta *d)
{
    sl_buf_clear(&d->reasoning);
    sl_buf_clear(&d->content);
    sl_buf_clear(&d->name);
    sl_buf_clear(&d->arguments);
    sl_buf_clear(&d->logprobs);
    sl_buf_clear(&d->token_texts);
    sl_buf_clear(&d->token_tops);
    sl_buf_clear(&d->token_offsets);
    d->has_call = false;
    d->call_begins = false;
    d->ids.count = 0;
}

static void delta_init(pending_delta *d)
{
    sl_buf *bufs[] = {&d->reasoning, &d->content,     &d->name,       &d->arguments,
                      &d->logprobs,  &d->token_texts, &d->token_tops, &d->token_offsets};
    for (size_t i = 0; i < sizeof bufs / sizeof bufs[0]; i++)
        sl_buf_init(bufs[i], 0);
}

static void delta_fini(pending_delta *d)
{
    sl_buf *bufs[] = {&d->reasoning, &d->content,     &d->name,       &d->arguments,
                      &d->logprobs,  &d->token_texts, &d->token_tops, &d->token_offsets};
    for (size_t i = 0; i < sizeof bufs / sizeof bufs[0]; i++)
        sl_buf_fini(bufs[i]);
    mdl_ids_fini(&d->ids);
}

static void put_buf(sl_buf *out, const sl_buf *piece)
{
    if (piece->size)
        sl_buf_append(out, piece->data, piece->size);
}

static void put_logprobs(choice *c)
{
    const rtr_answer *a = c->answer;
    pending_delta *d = &c->delta;
    sl_buf *out = &c->answer->out;
    if (!a->want_logprobs) {
        sl_buf_puts(out, ",\"logprobs\":null");
        return;
    }
    sl_buf_puts(out, a->chat ? ",\"logprobs\":{\"content\":[" : ",\"logprobs\":{\"tokens\":[");
    if (a->chat) {
        put_buf(out, &d->logprobs);
        sl_buf_puts(out, "],\"refusal\":null}");
        return;
    }
    put_buf(out, &d->token_texts);
    sl_buf_puts(out, "],\"token_logprobs\":[");
    put_buf(out, &d->logprobs);
    sl_buf_puts(out, "],\"top_logprobs\":[");
    put_buf(out, &d->token_tops);
    sl_buf_puts(out, "],\"text_offset\":[");
    put_buf(out, &d->token_offsets);
    sl_buf_puts(out, "]}");
}

static void put_token_ids(choice *c)
{
    sl_buf *out = &c->answer->out;
    if (!c->answer->options.request->return_token_ids)
        return;
    sl_buf_puts(out, ",\"token_ids\":");
    rtr_json_ids(out, (const uint32_t *)c->delta.ids.data, c->delta.ids.count);
}

static void put_handout(choice *c)
{
    sl_buf *out = &c->answer->out;
    if (!c->handout || c->shown == c->pushed)
        return;
    sl_buf_puts(out, ",\"sluice\":{");
    rtr_handout_write(c->handout, c->shown, c->pushed, out);
    sl_buf_putc(out, '}');
    c->shown = c->pushed;
}

/* With it the choice can be asked for again, alone. */
static void put_seed(choice *c)
{
    rtr_answer *a = c->answer;
    if (a->choice_count > 1)
        sl_buf_printf(
            &a->out, ",\"seed\":%llu",
            (unsigned long long)mdl_choice_seed(a->options.request->sampling.seed, c->index));
}

static void put_prompt_logprobs(rtr_answer *a)
{
    const rtr_api_request *request = a->options.request;
    if (request->prompt_logprobs < 0)
        return;
    sl_buf_puts(&a->out, ",\"prompt_logprobs\":");
    rtr_prompt_write_logprobs(a->prompt, a->options.tokenizer, &request->prompt,
                              (uint32_t)request->prompt_logprobs, &a->out);
}

/* Once an answer. */
static void put_prompt(rtr_answer *a)
{
    const rtr_api_request *request = a->options.request;
    if (request->return_token_ids) {
        sl_buf_puts(&a->out, ",\"prompt_token_ids\":");
        rtr_json_ids(&a->out, (const uint32_t *)request->prompt.data, request->prompt.count);
    }
    if (request->want_prompt_routing) {
        sl_buf_puts(&a->out, ",\"sluice\":{\"prompt_routing\":");
        rtr_prompt_write_routing(a->prompt, &a->out);
        sl_buf_putc(&a->out, '}');
    }
    if (a->chat)
        put_prompt_logprobs(a);
}

/* Completions have it in each choice, as other servers do. */
static void put_choice_prompt(choice *c)
{
    if (!c->answer->chat && !c->prompt_told)
        put_prompt_logprobs(c->answer);
    c->prompt_told = true;
}

/* Appends pieces of one token to a list, with a comma between entries. */
static void comma(sl_buf *list)
{
    if (list->size)
        sl_buf_putc(list, ',');
}

static void note_token(choice *c, uint32_t id, const rtr_token_logprobs *logprobs)
{
    const rtr_answer *a = c->answer;
    pending_delta *d = &c->delta;
    const mdl_tokenizer *tokenizer = a->options.tokenizer;
    c->pushed++;
    if (a->options.request->return_token_ids)
        mdl_ids_push(&d->ids, (int32_t)id);
    if (!a->want_logprobs || !logprobs)
        return;
    comma(&d->logprobs);
    if (a->chat) {
        rtr_json_chat_logprob(&d->logprobs, tokenizer, id, logprobs);
        return;
    }
    rtr_json_logprob(&d->logprobs, logprobs->logprob);
    comma(&d->token_texts);
    rtr_json_token_text(&d->token_texts, tokenizer, id);
    comma(&d->token_tops);
    rtr_json_top_map(&d->token_tops, tokenizer, logprobs);
    comma(&d->token_offsets);
    sl_buf_printf(&d->token_offsets, "%zu", c->text_offset);
    c->text_offset += rtr_token_characters(tokenizer, id);
}

static rtr_token_logprobs prompt_token_logprobs(const rtr_answer *a, uint32_t token)
{
    mdl_score_top top[MDL_LOGPROBS_MAX];
    uint32_t alternatives = (uint32_t)a->options.request->sampling.logprob_count;
    mdl_score score = rtr_prompt_score(a->prompt, token, alternatives, top);
    rtr_token_logprobs out = {.logprob = score.logprob, .top_count = score.top_count};
    for (uint32_t i = 0; i < score.top_count; i++)
        out.top[i] = (rtr_logprob){top[i].id, top[i].logprob};
    return out;
}

/* BOS is no text, so it has no width. */
static bool is_leading_bos(const rtr_answer *a, uint32_t index)
{
    return index == 0 &&
           a->options.request->prompt.data[0] == mdl_tokenizer_special(a->options.tokenizer)->bos;
}

static void note_prompt_token(choice *c, uint32_t index)
{
    const rtr_answer *a = c->answer;
    const mdl_tokenizer *tokenizer = a->options.tokenizer;
    pending_delta *d = &c->delta;
    uint32_t id = (uint32_t)a->options.request->prompt.data[index];
    comma(&d->token_texts);
    rtr_json_token_text(&d->token_texts, tokenizer, id);
    comma(&d->token_offsets);
    sl_buf_printf(&d->token_offsets, "%zu", c->text_offset);
    c->text_offset += is_leading_bos(a, index) ? 0 : rtr_token_characters(tokenizer, id);
    comma(&d->logprobs);
    comma(&d->token_tops);
    if (index == 0) { /* nothing stands before it */
        sl_buf_puts(&d->logprobs, "null");
        sl_buf_puts(&d->token_tops, "null");
        return;
    }
    rtr_token_logprobs logprobs = prompt_token_logprobs(a, index);
    rtr_json_logprob(&d->logprobs, logprobs.logprob);
    rtr_json_top_map(&d->token_tops, tokenizer, &logprobs);
}

/* Echo: the prompt's text comes first, and stop strings do not look at it. */
static void begin_choice(choice *c)
{
    rtr_answer *a = c->answer;
    const mdl_ids *prompt = &a->options.request->prompt;
    sl_buf *text = a->stream ? &c->delta.content : &c->message.content;
    mdl_detok detok;
    if (c->begun || !a->options.request->echo)
        return;
    c->begun = true;
    mdl_detok_init(&detok, a->options.tokenizer);
    for (uint32_t i = 0; i < prompt->count; i++) {
        if (!is_leading_bos(a, i))
            mdl_detok_push(&detok, prompt->data[i], text);
        if (a->want_logprobs)
            note_prompt_token(c, i);
    }
    mdl_detok_finish(&detok, text);
}

/* ---- chunks of a stream */

static void chunk_open(rtr_answer *a)
{
    sl_buf_puts(&a->out, "data: ");
    put_buf(&a->out, &a->head);
    if (a->first_chunk)
        put_prompt(a);
    a->first_chunk = false;
}

static void chunk_close(rtr_answer *a)
{
    if (a->options.request->include_usage)
        sl_buf_puts(&a->out, ",\"usage\":null");
    sl_buf_puts(&a->out, "}\n\n");
}

static void put_call_delta(choice *c)
{
    pending_delta *d = &c->delta;
    sl_buf *out = &c->answer->out;
    sl_buf_printf(out, "\"tool_calls\":[{\"index\":%d,", d->call_index);
    if (d->call_begins) {
        sl_buf_printf(out, "\"id\":\"%s\",\"type\":\"function\",", d->call_id);
        sl_buf_puts(out, "\"function\":{\"name\":");
        rtr_json_text(out, d->name.data, d->name.size);
        sl_buf_puts(out, ",\"arguments\":");
    } else {
        sl_buf_puts(out, "\"function\":{\"arguments\":");
    }
    rtr_json_text(out, d->arguments.data, d->arguments.size);
    sl_buf_puts(out, "}}]");
}

static void put_delta_text(rtr_answer *a, bool *first, const char *field, const sl_buf *text)
{
    if (!text->size)
        return;
    sl_buf_printf(&a->out, "%s\"%s\":", *first ? "" : ",", field);
    rtr_json_text(&a->out, text->data, text->size);
    *first = false;
}

/* One event with what is pending; finish: NULL while the stream goes on. */
static void write_chunk(choice *c, const char *finish)
{
    rtr_answer *a = c->answer;
    pending_delta *d = &c->delta;
    bool first = true;
    chunk_open(a);
    sl_buf_printf(&a->out, ",\"choices\":[{\"index\":%u,", c->index);
    if (a->chat) {
        sl_buf_puts(&a->out, "\"delta\":{");
        put_delta_text(a, &first, "reasoning_content", &d->reasoning);
        put_delta_text(a, &first, "content", &d->content);
        if (d->has_call) {
            if (!first)
                sl_buf_putc(&a->out, ',');
            put_call_delta(c);
        }
        sl_buf_putc(&a->out, '}');
    } else {
        sl_buf_puts(&a->out, "\"text\":");
        rtr_json_text(&a->out, d->content.data, d->content.size);
    }
    put_logprobs(c);
    sl_buf_puts(&a->out, ",\"finish_reason\":");
    if (finish) {
        rtr_json_text(&a->out, finish, strlen(finish));
        put_seed(c);
    } else {
        sl_buf_puts(&a->out, "null");
    }
    put_token_ids(c);
    put_handout(c);
    put_choice_prompt(c);
    sl_buf_puts(&a->out, "}]");
    chunk_close(a);
    delta_clear(d);
}

static bool delta_has_text(const pending_delta *d)
{
    return d->reasoning.size || d->content.size || d->has_call;
}

/* ---- events of the output parser */

static void on_stream_event(choice *c, const mdl_event *event)
{
    pending_delta *d = &c->delta;
    switch (event->kind) {
    case MDL_EVENT_REASONING:
    case MDL_EVENT_CONTENT:
        if (d->has_call)
            write_chunk(c, NULL);
        sl_buf_append(event->kind == MDL_EVENT_CONTENT ? &d->content : &d->reasoning, event->text,
                      event->size);
        break;
    case MDL_EVENT_CALL_BEGIN:
        if (d->has_call)
            write_chunk(c, NULL);
        d->has_call = true;
        d->call_begins = true;
        d->call_index = event->call_index;
        sl_buf_append(&d->name, event->text, event->size);
        snprintf(d->call_id, sizeof d->call_id, "%s", event->id);
        break;
    case MDL_EVENT_ARGUMENTS:
        if (d->has_call && d->call_index != event->call_index)
            write_chunk(c, NULL);
        d->has_call = true;
        d->call_index = event->call_index;
        sl_buf_append(&d->arguments, event->text, event->size);
        break;
    case MDL_EVENT_CALL_END:
        break;
    case MDL_EVENT_CALL_BROKEN:
        break; /* what was announced cannot be taken back */
    }
}

static void on_event(void *context, const mdl_event *event)
{
    choice *c = context;
    if (c->answer->stream)
        on_stream_event(c, event);
    else
        mdl_message_collect(&c->message, event);
}

/* ---- whole answers */

static void put_message_calls(sl_buf *out, const mdl_message *m)
{
    for (size_t i = 0; i < m->call_count; i++) {
        const mdl_call *call = &m->calls[i];
        sl_buf_puts(out, i ? "," : ",\"tool_calls\":[");
        sl_buf_printf(out,
                      "{\"id\":\"%s\",\"type\":\"function\",\"function\":{\"name\":", call->id);
        rtr_json_text(out, call->name, strlen(call->name));
        sl_buf_puts(out, ",\"arguments\":");
        rtr_json_text(out, call->arguments.data, call->arguments.size);
        sl_buf_puts(out, "}}");
    }
    if (m->call_count)
        sl_buf_putc(out, ']');
}

/* content is null when there are calls or only reasoning and no text. */
static void put_chat_message(sl_buf *out, const mdl_message *m)
{
    sl_buf_puts(out, "\"message\":{\"role\":\"assistant\",\"content\":");
    if (m->content.size || (!m->call_count && !m->reasoning.size))
        rtr_json_text(out, m->content.data, m->content.size);
    else
        sl_buf_puts(out, "null");
    if (m->reasoning.size) {
        sl_buf_puts(out, ",\"reasoning_content\":");
        rtr_json_text(out, m->reasoning.data, m->reasoning.size);
    }
    put_message_calls(out, m);
    sl_buf_putc(out, '}');
}

static void put_choice(choice *c)
{
    sl_buf *out = &c->answer->out;
    sl_buf_printf(out, "{\"index\":%u,", c->index);
    if (c->answer->chat) {
        put_chat_message(out, &c->message);
    } else {
        sl_buf_puts(out, "\"text\":");
        rtr_json_text(out, c->message.content.data, c->message.content.size);
    }
    put_logprobs(c);
    sl_buf_printf(out, ",\"finish_reason\":\"%s\"", c->finish);
    put_seed(c);
    put_token_ids(c);
    put_handout(c);
    put_choice_prompt(c);
    sl_buf_putc(out, '}');
}

static void write_body(rtr_answer *a)
{
    sl_buf *out = &a->out;
    put_buf(out, &a->head);
    put_prompt(a);
    sl_buf_puts(out, ",\"choices\":[");
    for (uint32_t i = 0; i < a->choice_count; i++) {
        if (i)
            sl_buf_putc(out, ',');
        put_choice(&a->choices[i]);
    }
    sl_buf_puts(out, "],\"usage\":");
    rtr_json_usage(out, &a->usage);
    sl_buf_putc(out, '}');
}

static void write_end(rtr_answer *a)
{
    if (a->options.request->include_usage) {
        chunk_open(a);
        sl_buf_puts(&a->out, ",\"choices\":[],\"usage\":");
        rtr_json_usage(&a->out, &a->usage);
        sl_buf_puts(&a->out, "}\n\n");
    }
    sl_buf_puts(&a->out, "data: [DONE]\n\n");
}

/* ---- public */

/* Calls of different choices have different ids. */
static sl_status choice_init(rtr_answer *a, uint32_t index, sl_err *err)
{
    const rtr_api_request *request = a->options.request;
    choice *c = &a->choices[index];
    c->answer = a;
    c->index = index;
    delta_init(&c->delta);
    mdl_message_init(&c->message);
    mdl_detok_init(&c->detok, a->options.tokenizer);
    if (request->want_routing || request->want_mask)
        c->handout = rtr_handout_create(&(rtr_handout_options){
            .shape = a->options.shape,
            .routing = request->want_routing,
            .masks = request->want_mask,
            .bytes_max = RTR_HANDOUT_BYTES_MAX / request->choice_count,
        });
    char id[64];
    snprintf(id, sizeof id, index ? "%s-%u" : "%s", a->options.request_id, index);
    mdl_output_options output = {
        .raw = !a->chat,
        .reasoning_open = a->chat && mdl_chat_reasoning_open(request->chat),
        .parse_calls = a->chat && mdl_chat_calls_expected(request->chat),
        .literal = mdl_constraint_is_set(&request->constraint) &&
                   request->constraint.kind != MDL_CONSTRAINT_TEXT,
        .chat = request->chat,
        .request_id = id,
        .stops = request->stops,
        .stop_count = request->stop_count,
        .include_stop = request->include_stop,
    };
    return mdl_output_create(&output, on_event, c, &c->output, err);
}

sl_status rtr_answer_create(const rtr_answer_options *options, rtr_answer **out_answer, sl_err *err)
{
    const rtr_api_request *request = options->request;
    rtr_answer *a = sl_alloc(1, sizeof *a, "answer");
    a->options = *options;
    a->chat = request->kind == RTR_API_CHAT;
    a->stream = request->stream;
    a->want_logprobs = request->sampling.logprob_count >= 0;
    a->first_chunk = true;
    a->usage.prompt_tokens = (uint32_t)request->prompt.count;
    sl_buf_init(&a->head, 0);
    sl_buf_init(&a->out, 0);
    sl_buf_init(&a->text, 0);
    a->choices = sl_alloc(request->choice_count, sizeof *a->choices, "answer choices");
    a->choice_count = a->open_count = request->choice_count;
    int32_t scores = rtr_api_prompt_scores(request);
    if (scores >= 0 || request->want_prompt_routing)
        a->prompt = rtr_prompt_create(&(rtr_prompt_options){
            .shape = options->shape,
            .token_count = (uint32_t)request->prompt.count,
            .routing = request->want_prompt_routing,
            .logprob_count = scores,
        });
    for (uint32_t i = 0; i < a->choice_count; i++) {
        sl_status status = choice_init(a, i, err);
        if (sl_is_ok(status))
            continue;
        a->choice_count = i + 1;
        rtr_answer_destroy(a);
        return status;
    }
    *out_answer = a;
    return sl_ok();
}

void rtr_answer_destroy(rtr_answer *a)
{
    if (!a)
        return;
    for (uint32_t i = 0; i < a->choice_count; i++) {
        mdl_output_destroy(a->choices[i].output);
        mdl_message_fini(&a->choices[i].message);
        delta_fini(&a->choices[i].delta);
        rtr_handout_destroy(a->choices[i].handout);
    }
    sl_free(a->choices);
    rtr_prompt_destroy(a->prompt);
    sl_buf_fini(&a->text);
    sl_buf_fini(&a->out);
    sl_buf_fini(&a->head);
    sl_free(a);
}

void rtr_answer_begin(rtr_answer *a, const char *fingerprint)
{
    const char *object =
        a->chat ? (a->stream ? "chat.completion.chunk" : "chat.completion") : "text_completion";
    sl_assert(a->head.size == 0);
    sl_buf_printf(&a->head, "{\"id\":\"%s-%s\",\"object\":\"%s\",\"created\":%llu,\"model\":",
                  a->chat ? "chatcmpl" : "cmpl", a->options.request_id, object,
                  (unsigned long long)a->options.created);
    rtr_json_text(&a->head, a->options.model, strlen(a->options.model));
    sl_buf_puts(&a->head, ",\"system_fingerprint\":");
    rtr_json_text(&a->head, fingerprint, strlen(fingerprint));
    for (uint32_t i = 0; a->stream && a->chat && i < a->choice_count; i++) {
        chunk_open(a);
        sl_buf_printf(&a->out,
                      ",\"choices\":[{\"index\":%u,\"delta\":{\"role\":\"assistant\","
                      "\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null}]",
                      i);
        chunk_close(a);
    }
}

void rtr_answer_set_cached(rtr_answer *a, uint32_t cached_tokens)
{
    a->usage.cached_tokens = cached_tokens;
}

rtr_prompt *rtr_answer_prompt(rtr_answer *a)
{
    return a->prompt;
}

rtr_handout *rtr_answer_handout(rtr_answer *a, uint32_t index)
{
    sl_assert(index < a->choice_count);
    return a->choices[index].handout;
}

bool rtr_answer_push(rtr_answer *a, uint32_t index, const uint32_t *ids,
                     const rtr_token_logprobs *logprobs, size_t count)
{
    sl_assert(index < a->choice_count && !a->choices[index].finish);
    choice *c = &a->choices[index];
    int32_t eos = mdl_tokenizer_special(a->options.tokenizer)->eos;
    uint32_t min_tokens = (uint32_t)a->options.request->sampling.min_tokens;
    bool go_on = true;
    begin_choice(c);
    if (a->options.request->sampling.nothing)
        return true;
    for (size_t i = 0; i < count && go_on; i++) {
        a->usage.completion_tokens++;
        if (mdl_output_in_reasoning(c->output))
            a->usage.reasoning_tokens++;
        note_token(c, ids[i], logprobs ? &logprobs[i] : NULL);
        if ((int32_t)ids[i] == eos)
            continue; /* it ends the text and is not part of it */
        sl_buf_clear(&a->text);
        mdl_detok_push(&c->detok, (int32_t)ids[i], &a->text);
        mdl_output_hold_stops(c->output, c->pushed < min_tokens);
        if (a->text.size)
            go_on = mdl_output_push(c->output, a->text.data, a->text.size);
    }
    if (a->stream && delta_has_text(&c->delta))
        write_chunk(c, NULL);
    return go_on;
}

bool rtr_answer_finish(rtr_answer *a, uint32_t index, mdl_finish cause)
{
    sl_assert(index < a->choice_count && !a->choices[index].finish);
    choice *c = &a->choices[index];
    begin_choice(c);
    if (a->options.request->sampling.nothing)
        cause = MDL_FINISH_LENGTH;
    sl_buf_clear(&a->text);
    mdl_detok_finish(&c->detok, &a->text);
    if (a->text.size && !mdl_output_push(c->output, a->text.data, a->text.size))
        cause = MDL_FINISH_STOP;
    c->message.length_limited = cause == MDL_FINISH_LENGTH;
    c->finish = mdl_finish_name(mdl_output_finish(c->output, cause));
    if (a->stream && delta_has_text(&c->delta))
        write_chunk(c, NULL);
    if (a->stream)
        write_chunk(c, c->finish);
    if (--a->open_count > 0)
        return false;
    if (a->stream)
        write_end(a);
    else
        write_body(a);
    return true;
}

void rtr_answer_fail(rtr_answer *a, const rtr_api_error *error)
{
    sl_buf *out = &a->out;
    sl_buf_puts(out, "data: {\"error\":{\"message\":");
    rtr_json_text(out, error->message, strlen(error->message));
    sl_buf_printf(out, ",\"type\":\"%s\",\"param\":null,\"code\":", error->type);
    if (error->code)
        rtr_json_text(out, error->code, strlen(error->code));
    else
        sl_buf_puts(out, "null");
    sl_buf_puts(out, "}}\n\n");
}

sl_buf *rtr_answer_output(rtr_answer *a)
{
    return &a->out;
}

const rtr_answer_usage *rtr_answer_usage_get(const rtr_answer *a)
{
    return &a->usage;
}

const mdl_output_counts *rtr_answer_counts(const rtr_answer *a, uint32_t index)
{
    sl_assert(index < a->choice_count);
    return mdl_output_counts_get(a->choices[index].output);
}
