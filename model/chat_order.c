/* What messages may follow which: tool results belong to calls, and there must be something to
 * answer. Works on a read list, owns nothing. */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/bytes.h"
#include "model/chat_parts.h"

static sl_status fail_missing(const mdl_chat_message *caller, const mdl_chat_message *results,
                              size_t result_count, bool by_id, sl_err *err)
{
    sl_buf names;
    sl_status status;

    sl_buf_init(&names, 4096);
    for (size_t i = 0; i < caller->call_count; i++) {
        bool answered = false;

        if (by_id) {
            for (size_t k = 0; k < result_count; k++)
                answered |= strcmp(results[k].tool_call_id, caller->calls[i].id) == 0;
        } else {
            answered = i < result_count;
        }
        if (!answered && names.size < 200)
            sl_buf_printf(&names, "%s%.64s", names.size ? ", " : "",
                          caller->calls[i].id ? caller->calls[i].id : caller->calls[i].name);
    }
    status = sl_fail(err, SL_INVALID,
                     "messages[%zu].tool_calls: %zu calls but %zu tool messages follow; missing: "
                     "%s",
                     caller->request_index, caller->call_count, result_count, names.data);
    sl_buf_fini(&names);
    return status;
}

/* Sorts results into call order. All ids are known to be there. */
static sl_status match_ids(const mdl_chat_message *caller, mdl_chat_message *results, size_t count,
                           sl_err *err)
{
    mdl_chat_message *sorted = sl_alloc(caller->call_count, sizeof(*sorted), "tool results");
    bool *taken = sl_alloc(caller->call_count, sizeof(*taken), "tool results");
    sl_status status = sl_ok();

    for (size_t i = 0; i < count && sl_is_ok(status); i++) {
        const char *id = results[i].tool_call_id;
        size_t call = 0;

        while (call < caller->call_count && strcmp(caller->calls[call].id, id) != 0)
            call++;
        if (call == caller->call_count) {
            status = sl_fail(err, SL_INVALID,
                             "messages[%zu].tool_call_id: \"%.64s\" is not a call of messages[%zu]",
                             results[i].request_index, id, caller->request_index);
        } else if (taken[call]) {
            status =
                sl_fail(err, SL_INVALID, "messages[%zu].tool_call_id: \"%.64s\" is answered twice",
                        results[i].request_index, id);
        } else {
            taken[call] = true;
            sorted[call] = results[i];
        }
    }
    if (sl_is_ok(status) && count == caller->call_count)
        memcpy(results, sorted, count * sizeof(*results));
    sl_free(taken);
    sl_free(sorted);
    return status;
}

static bool all_have_ids(const mdl_chat_message *caller, const mdl_chat_message *results,
                         size_t count)
{
    for (size_t i = 0; i < caller->call_count; i++) {
        if (!caller->calls[i].id)
            return false;
    }
    for (size_t i = 0; i < count; i++) {
        if (!results[i].tool_call_id)
            return false;
    }
    return true;
}

static sl_status match_results(mdl_chat *chat, size_t caller_index, sl_err *err)
{
    const mdl_chat_message *caller = &chat->messages[caller_index];
    mdl_chat_message *results = &chat->messages[caller_index + 1];
    size_t left = chat->message_count - caller_index - 1, count = 0;
    bool by_id;

    while (count < left && results[count].role == MDL_ROLE_TOOL)
        count++;
    if (count > caller->call_count)
        return sl_fail(err, SL_INVALID,
                       "messages[%zu]: tool message without a call (messages[%zu] has %zu calls)",
                       results[caller->call_count].request_index, caller->request_index,
                       caller->call_count);
    by_id = all_have_ids(caller, results, count);
    if (by_id)
        SL_TRY(match_ids(caller, results, count, err));
    if (count < caller->call_count && !(left == 0 && chat->options.final_assistant_allowed))
        return fail_missing(caller, results, count, by_id, err);
    for (size_t i = 0; i < count; i++) {
        results[i].result_index = i;
        results[i].result_count = caller->call_count;
    }
    return sl_ok();
}

static sl_status check_results(mdl_chat *chat, sl_err *err)
{
    for (size_t i = 0; i < chat->message_count; i++) {
        const mdl_chat_message *m = &chat->messages[i];

        if (m->role == MDL_ROLE_ASSISTANT && m->call_count > 0)
            SL_TRY(match_results(chat, i, err));
        else if (m->role == MDL_ROLE_TOOL && m->result_count == 0)
            return sl_fail(err, SL_INVALID,
                           "messages[%zu]: tool message does not follow an assistant message with "
                           "tool_calls",
                           m->request_index);
    }
    return sl_ok();
}

static sl_status check_final(mdl_chat *chat, bool continue_final, sl_err *err)
{
    mdl_chat_message *final = &chat->messages[chat->message_count - 1];

    if (final->role == MDL_ROLE_SYSTEM)
        return sl_fail(err, SL_INVALID,
                       "messages: the last message must be from user or tool, there is nothing to "
                       "answer");
    if (final->role != MDL_ROLE_ASSISTANT)
        return sl_ok();
    final->prefix |= continue_final;
    if (!final->prefix) {
        if (chat->options.final_assistant_allowed)
            return sl_ok();
        return sl_fail(err, SL_INVALID,
                       "messages[%zu]: the last message is from assistant; set \"prefix\": true to "
                       "have it continued",
                       final->request_index);
    }
    if (final->call_count > 0)
        return sl_fail(err, SL_INVALID, "messages[%zu].tool_calls: not allowed in a prefix",
                       final->request_index);
    if (chat->message_count == 1 || (chat->last < 0 && final[-1].role != MDL_ROLE_TOOL))
        return sl_fail(err, SL_INVALID, "messages: no user or tool message to answer");
    return sl_ok();
}

/* After the last user message the template shows reasoning, so it must be there (calls excepted,
 * as the reference does). */
static sl_status check_reasoning(const mdl_chat *chat, sl_err *err)
{
    if (chat->mode != MDL_CHAT_MODE_THINKING)
        return sl_ok();
    for (size_t i = (size_t)(chat->last + 1); i < chat->message_count; i++) {
        const mdl_chat_message *m = &chat->messages[i];

        if (m->role == MDL_ROLE_ASSISTANT && m->call_count == 0 && m->reasoning.size == 0 &&
            !m->prefix)
            return sl_fail(err, SL_INVALID,
                           "messages[%zu].reasoning_content: is needed in thinking mode after the "
                           "last user message",
                           m->request_index);
    }
    return sl_ok();
}

sl_status mdl_chat_check_order(mdl_chat *chat, bool continue_final, sl_err *err)
{
    for (size_t i = 0; i < chat->message_count; i++) {
        const mdl_chat_message *m = &chat->messages[i];

        if (m->role == MDL_ROLE_USER || m->role == MDL_ROLE_DEVELOPER)
            chat->last = (ptrdiff_t)i;
        if (m->prefix && i + 1 < chat->message_count)
            return sl_fail(err, SL_INVALID,
                           "messages[%zu].prefix: only the last message can be one",
                           m->request_index);
    }
    SL_TRY(check_final(chat, continue_final, err));
    SL_TRY(check_results(chat, err));
    return check_reasoning(chat, err);
}
