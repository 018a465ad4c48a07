/* Builds the prompt: a chat request rendered by model/chat.h, raw text with BOS, or plain ids.
 *
 * Thread: main. Knows no engine. */
#include "engine/run/input.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/json.h"
#include "model/chat.h"
#include "model/constraint.h"

sl_status eng_run_read_file(const char *path, sl_buf *buf, sl_err *err)
{
    FILE *file = strcmp(path, "-") == 0 ? stdin : fopen(path, "rb");
    if (!file)
        return sl_fail_errno(err, SL_INVALID, "open %s", path);
    char block[65536];
    size_t size;
    while ((size = fread(block, 1, sizeof(block), file)) > 0 && !buf->overflow)
        sl_buf_append(buf, block, size);
    sl_status status = sl_ok();
    if (ferror(file))
        status = sl_fail_errno(err, SL_IO, "read %s", path);
    else if (buf->overflow)
        status =
            sl_fail(err, SL_TOO_LARGE, "%s: larger than %zu bytes", path, ENG_RUN_INPUT_BYTES_MAX);
    if (file != stdin)
        fclose(file);
    return status;
}

/* The text of the prompt: the argument or the file. */
static sl_status prompt_text(const eng_run_options *options, sl_buf *text, sl_err *err)
{
    if (options->prompt && options->prompt_file)
        return sl_fail(err, SL_INVALID, "give a prompt or --prompt-file, not both");
    if (options->prompt_file)
        return eng_run_read_file(options->prompt_file, text, err);
    if (!options->prompt)
        return sl_fail(err, SL_INVALID,
                       "no prompt: give one, or --prompt-file, --messages or --ids");
    sl_buf_puts(text, options->prompt);
    return sl_ok();
}

/* ---- the form of the answer ---- */

/* JSON that is in the option's value, or in the file that it names. */
static sl_status append_json(const char *option, const char *given, bool is_text, sl_buf *request,
                             sl_err *err)
{
    sl_json_doc *doc = NULL;
    sl_status status = is_text ? sl_json_parse(given, strlen(given), NULL, &doc, err)
                               : sl_json_parse_file(given, NULL, &doc, err);
    if (!sl_is_ok(status))
        return sl_wrap(err, status, "%s", option);
    sl_json_write(request, sl_json_root(doc));
    sl_json_doc_destroy(doc);
    return sl_ok();
}

static sl_status append_schema(const char *given, sl_buf *request, sl_err *err)
{
    sl_buf_puts(request, "\"json\":");
    return append_json("--json-schema", given, given[strspn(given, " \t\n")] == '{', request, err);
}

static sl_status append_choices(const char *given, sl_buf *request, sl_err *err)
{
    sl_buf_puts(request, "\"choice\":");
    if (*given == '[')
        return append_json("--choice", given, true, request, err);
    for (const char *at = given, *end; at; at = *end ? end + 1 : NULL) {
        end = at + strcspn(at, ",");
        sl_buf_putc(request, at == given ? '[' : ',');
        sl_json_write_string(request, at, (size_t)(end - at));
    }
    sl_buf_putc(request, ']');
    return sl_ok();
}

static bool has_form(const eng_run_options *options)
{
    return options->json_schema || options->json_object || options->regex || options->choice;
}

/* Errors name the option that an operator gave, not the member that it becomes. */
static void name_form(const eng_run_options *options, mdl_constraint *constraint)
{
    static const mdl_constraint_names NAMES = {"--json-schema", "--regex", "--choice",
                                               "--json-object"};
    if (has_form(options))
        constraint->names = &NAMES;
}

/* The member "structured_outputs", as a request has it. */
static sl_status append_form(const eng_run_options *options, sl_buf *request, sl_err *err)
{
    int given =
        !!options->json_schema + options->json_object + !!options->regex + !!options->choice;
    if (given > 1)
        return sl_fail(err, SL_INVALID,
                       "--json-schema, --json-object, --regex and --choice: give one");
    sl_buf_puts(request, "\"structured_outputs\":");
    if (given == 0) {
        sl_buf_puts(request, "null");
        return sl_ok();
    }
    sl_buf_putc(request, '{');
    if (options->json_schema)
        SL_TRY(append_schema(options->json_schema, request, err));
    if (options->json_object)
        sl_buf_puts(request, "\"json_object\":true");
    if (options->regex) {
        sl_buf_puts(request, "\"regex\":");
        sl_json_write_string(request, options->regex, strlen(options->regex));
    }
    if (options->choice)
        SL_TRY(append_choices(options->choice, request, err));
    sl_buf_putc(request, '}');
    return sl_ok();
}

/* Of a prompt that is no chat. */
static sl_status read_form(const eng_run_options *options, mdl_constraint *constraint, sl_err *err)
{
    sl_json_doc *doc = NULL;
    sl_buf request;
    sl_buf_init(&request, ENG_RUN_INPUT_BYTES_MAX);
    sl_buf_putc(&request, '{');
    sl_status status = append_form(options, &request, err);
    sl_buf_putc(&request, '}');
    if (sl_is_ok(status))
        status = sl_json_parse(request.data, request.size, NULL, &doc, err);
    if (sl_is_ok(status))
        status = mdl_constraint_parse(sl_json_root(doc), NULL, constraint, err);
    sl_json_doc_destroy(doc);
    sl_buf_fini(&request);
    return status;
}

/* ---- chat ---- */

/* Appends a JSON file's root as text, checked. */
static sl_status append_json_file(const char *path, sl_json_type wanted, sl_buf *request,
                                  sl_err *err)
{
    sl_json_doc *doc = NULL;
    SL_TRY(sl_json_parse_file(path, NULL, &doc, err));
    sl_json_type type = sl_json_typeof(sl_json_root(doc));
    sl_status status = sl_ok();
    if (type != wanted)
        status = sl_fail(err, SL_INVALID, "%s: is %s, expected %s", path, sl_json_type_name(type),
                         sl_json_type_name(wanted));
    else
        sl_json_write(request, sl_json_root(doc));
    sl_json_doc_destroy(doc);
    return status;
}

static void append_message(sl_buf *request, const char *role, const char *text, size_t size)
{
    sl_buf_printf(request, "{\"role\":\"%s\",\"content\":", role);
    sl_json_write_string(request, text, size);
    sl_buf_putc(request, '}');
}

/* "messages":[...] from --system and the prompt. */
static sl_status append_prompt_messages(const eng_run_options *options, sl_buf *request,
                                        sl_err *err)
{
    sl_buf text;
    sl_buf_init(&text, ENG_RUN_INPUT_BYTES_MAX);
    sl_status status = prompt_text(options, &text, err);
    if (sl_is_ok(status)) {
        sl_buf_puts(request, "\"messages\":[");
        if (options->system) {
            append_message(request, "system", options->system, strlen(options->system));
            sl_buf_putc(request, ',');
        }
        append_message(request, "user", text.data, text.size);
        sl_buf_putc(request, ']');
    }
    sl_buf_fini(&text);
    return status;
}

/* Members of a request object, or "messages" alone when the file is an array. */
static sl_status append_messages_file(const eng_run_options *options, sl_buf *request, sl_err *err)
{
    if (options->prompt || options->prompt_file || options->system)
        return sl_fail(err, SL_INVALID, "--messages replaces the prompt and --system");
    sl_json_doc *doc = NULL;
    SL_TRY(sl_json_parse_file(options->messages, NULL, &doc, err));
    const sl_json *root = sl_json_root(doc);
    sl_status status = sl_ok();
    if (sl_json_typeof(root) == SL_JSON_ARRAY) {
        sl_buf_puts(request, "\"messages\":");
        sl_json_write(request, root);
    } else if (sl_json_typeof(root) == SL_JSON_OBJECT && sl_json_count(root) > 0) {
        for (size_t i = 0; i < sl_json_count(root); i++) {
            size_t size = 0;
            const char *key = sl_json_key(root, i, &size);
            if (i > 0)
                sl_buf_putc(request, ',');
            sl_json_write_string(request, key, size);
            sl_buf_putc(request, ':');
            sl_json_write(request, sl_json_at(root, i));
        }
    } else {
        status =
            sl_fail(err, SL_INVALID, "%s: expected an array of messages or an object with messages",
                    options->messages);
    }
    sl_json_doc_destroy(doc);
    return status;
}

/* The request that the options amount to, as OpenAI-style JSON. */
static sl_status build_request(const eng_run_options *options, sl_buf *request, sl_err *err)
{
    sl_buf_putc(request, '{');
    if (options->messages)
        SL_TRY(append_messages_file(options, request, err));
    else
        SL_TRY(append_prompt_messages(options, request, err));
    if (options->tools) {
        sl_buf_puts(request, ",\"tools\":");
        SL_TRY(append_json_file(options->tools, SL_JSON_ARRAY, request, err));
    }
    if (has_form(options)) { /* last value wins over one in the file */
        sl_buf_putc(request, ',');
        SL_TRY(append_form(options, request, err));
    }
    if (options->thinking) /* the same */
        sl_buf_puts(request, ",\"thinking\":{\"type\":\"enabled\"}");
    sl_buf_putc(request, '}');
    return request->overflow ? sl_fail(err, SL_TOO_LARGE, "the request is too large") : sl_ok();
}

static sl_status encode_chat(const eng_run_options *options, const sl_json *request,
                             const mdl_tokenizer *tokenizer, mdl_ids *ids,
                             mdl_constraint *constraint, sl_err *err)
{
    mdl_chat *chat = NULL;
    SL_TRY(mdl_chat_parse(request, NULL, &chat, err));
    mdl_prompt prompt = {0};
    mdl_chat_render(chat, 0, &prompt);
    mdl_encode_options encode = {0};
    if (options->plain_content) {
        encode.plain = prompt.content;
        encode.plain_count = prompt.content_count;
    }
    sl_status status =
        mdl_tokenizer_encode(tokenizer, prompt.text.data, prompt.text.size, &encode, ids, err);
    if (sl_is_ok(status))
        status = mdl_constraint_parse(request, chat, constraint, err);
    mdl_prompt_fini(&prompt);
    mdl_chat_destroy(chat);
    return status;
}

static sl_status input_chat(const eng_run_options *options, const mdl_tokenizer *tokenizer,
                            mdl_ids *ids, mdl_constraint *constraint, sl_err *err)
{
    sl_buf request;
    sl_buf_init(&request, ENG_RUN_INPUT_BYTES_MAX);
    sl_json_doc *doc = NULL;
    sl_status status = build_request(options, &request, err);
    if (sl_is_ok(status))
        status = sl_json_parse(request.data, request.size, NULL, &doc, err);
    if (sl_is_ok(status))
        status = encode_chat(options, sl_json_root(doc), tokenizer, ids, constraint, err);
    sl_json_doc_destroy(doc);
    sl_buf_fini(&request);
    return status;
}

static sl_status input_raw(const eng_run_options *options, const mdl_tokenizer *tokenizer,
                           mdl_ids *ids, sl_err *err)
{
    if (options->system || options->tools || options->thinking)
        return sl_fail(err, SL_INVALID, "--system, --tools and --thinking need --chat");
    sl_buf text;
    sl_buf_init(&text, ENG_RUN_INPUT_BYTES_MAX);
    sl_status status = prompt_text(options, &text, err);
    if (sl_is_ok(status))
        status =
            mdl_tokenizer_encode(tokenizer, text.data ? text.data : "", text.size, NULL, ids, err);
    sl_buf_fini(&text);
    SL_TRY(status);
    int32_t bos = mdl_tokenizer_special(tokenizer)->bos;
    if (ids->count == 0 || ids->data[0] != bos) {
        mdl_ids_push(ids, bos);
        memmove(ids->data + 1, ids->data, (ids->count - 1) * sizeof(int32_t));
        ids->data[0] = bos;
    }
    return sl_ok();
}

static sl_status input_ids(const eng_run_options *options, mdl_ids *ids, sl_err *err)
{
    if (options->prompt || options->prompt_file || options->messages || options->chat)
        return sl_fail(err, SL_INVALID, "--ids is the whole prompt: no other prompt beside it");
    uint32_t *values = NULL;
    uint32_t count = 0;
    SL_TRY(eng_run_parse_list("ids", options->ids, MDL_ENCODE_IDS_MAX, &values, &count, err));
    for (uint32_t i = 0; i < count; i++)
        mdl_ids_push(ids, (int32_t)values[i]);
    sl_free(values);
    return sl_ok();
}

static sl_status read_input(const eng_run_options *options, const mdl_tokenizer *tokenizer,
                            mdl_ids *ids, mdl_constraint *constraint, sl_err *err)
{
    bool chat = !options->ids && (options->chat || options->messages);
    name_form(options, constraint);
    if (options->ids)
        SL_TRY(input_ids(options, ids, err));
    else if (chat)
        SL_TRY(input_chat(options, tokenizer, ids, constraint, err));
    else
        SL_TRY(input_raw(options, tokenizer, ids, err));
    if (!chat)
        SL_TRY(read_form(options, constraint, err));
    if (mdl_constraint_is_set(constraint) && options->ignore_eos)
        return sl_fail(err, SL_INVALID,
                       "--ignore-eos: a constrained answer ends where its form does");
    return ids->count > 0 ? sl_ok() : sl_fail(err, SL_INVALID, "the prompt is empty");
}

sl_status eng_run_input(const eng_run_options *options, const mdl_tokenizer *tokenizer,
                        mdl_ids *ids, mdl_grammar **out_grammar, sl_err *err)
{
    mdl_constraint constraint;
    mdl_constraint_init(&constraint);
    sl_status status = read_input(options, tokenizer, ids, &constraint, err);
    if (sl_is_ok(status) && mdl_constraint_is_set(&constraint))
        status = mdl_constraint_compile(&constraint, out_grammar, err);
    mdl_constraint_fini(&constraint);
    return status;
}

static sl_status load_tokenizer(const eng_run_options *options, mdl_tokenizer **out_tokenizer,
                                sl_err *err)
{
    const char *path = options->tokenizer ? options->tokenizer : options->model;
    if (!path)
        return sl_fail(err, SL_INVALID, "--%s needs --tokenizer FILE or --model DIR",
                       options->tokenize ? "tokenize" : "detokenize");
    return mdl_tokenizer_load(path, out_tokenizer, err);
}

sl_status eng_run_tokenize(const eng_run_options *options, sl_err *err)
{
    mdl_tokenizer *tokenizer = NULL;
    SL_TRY(load_tokenizer(options, &tokenizer, err));
    sl_buf text;
    sl_buf_init(&text, ENG_RUN_INPUT_BYTES_MAX);
    mdl_ids ids = {0};
    sl_status status = eng_run_read_file("-", &text, err);
    if (sl_is_ok(status))
        status =
            mdl_tokenizer_encode(tokenizer, text.data ? text.data : "", text.size, NULL, &ids, err);
    if (sl_is_ok(status)) {
        printf("{\"ids\":[");
        for (size_t i = 0; i < ids.count; i++)
            printf("%s%d", i ? "," : "", ids.data[i]);
        printf("]}\n");
    }
    mdl_ids_fini(&ids);
    sl_buf_fini(&text);
    mdl_tokenizer_destroy(tokenizer);
    return status;
}

static sl_status detokenize_line(const mdl_tokenizer *tokenizer, const char *line, sl_err *err)
{
    uint32_t *values = NULL, count = 0;
    sl_buf text, json;
    SL_TRY(eng_run_parse_list("detokenize", line, MDL_ENCODE_IDS_MAX, &values, &count, err));
    sl_buf_init(&text, ENG_RUN_INPUT_BYTES_MAX);
    sl_buf_init(&json, 0);
    /* A list holds no number above INT32_MAX. */
    sl_status status = mdl_tokenizer_decode(tokenizer, (const int32_t *)values, count, &text, err);
    if (sl_is_ok(status)) {
        sl_json_write_string(&json, text.data ? text.data : "", text.size);
        printf("{\"text\":%s}\n", json.data);
    }
    sl_buf_fini(&json);
    sl_buf_fini(&text);
    sl_free(values);
    return status;
}

sl_status eng_run_detokenize(const eng_run_options *options, sl_err *err)
{
    mdl_tokenizer *tokenizer = NULL;
    SL_TRY(load_tokenizer(options, &tokenizer, err));
    sl_buf text;
    sl_buf_init(&text, ENG_RUN_INPUT_BYTES_MAX);
    sl_status status = eng_run_read_file("-", &text, err);
    size_t number = 0;
    for (char *line = text.data, *end; sl_is_ok(status) && line && *line; line = end) {
        end = line + strcspn(line, "\n");
        if (*end)
            *end++ = '\0';
        number++;
        status = sl_wrap(err, detokenize_line(tokenizer, line, err), "line %zu", number);
    }
    sl_buf_fini(&text);
    mdl_tokenizer_destroy(tokenizer);
    return status;
}
