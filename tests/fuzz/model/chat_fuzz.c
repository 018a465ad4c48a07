/* Chat requests: any JSON. What is accepted renders to valid UTF-8, its content ranges are in
 * order, and what is rendered from a later message on ends the whole. The first byte sets the
 * options. */
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "model/chat.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_ranges(const mdl_prompt *p)
{
    size_t at = 0;

    for (size_t i = 0; i < p->content_count; i++) {
        sl_assert(p->content[i].begin >= at && p->content[i].end > p->content[i].begin);
        at = p->content[i].end;
    }
    sl_assert(at <= p->text.size);
}

static void check_chat(const mdl_chat *chat)
{
    mdl_prompt whole = {0}, tail = {0};
    size_t count = mdl_chat_message_count(chat);

    mdl_chat_render(chat, 0, &whole);
    sl_assert(sl_utf8_valid(whole.text.data, whole.text.size));
    check_ranges(&whole);
    for (size_t i = 1; i <= count && i < 40; i++) {
        mdl_chat_render(chat, i, &tail);
        check_ranges(&tail);
        sl_assert(tail.text.size <= whole.text.size);
        sl_assert(tail.text.size == 0 || memcmp(whole.text.data + whole.text.size - tail.text.size,
                                                tail.text.data, tail.text.size) == 0);
    }
    for (size_t i = 0; i < mdl_chat_tool_count(chat); i++)
        sl_assert(mdl_chat_tool_known(chat, mdl_chat_tool_name(chat, i)));
    sl_assert(mdl_chat_user_turns(chat) <= count);
    sl_assert(mdl_chat_calls_without_reasoning(chat) <= count);
    mdl_prompt_fini(&whole);
    mdl_prompt_fini(&tail);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    mdl_chat_options options = {0};
    sl_json_doc *doc;
    mdl_chat *chat = NULL;
    sl_err err;

    if (size < 1)
        return 0;
    options.mode_default = data[0] & 1 ? MDL_CHAT_MODE_THINKING : MDL_CHAT_MODE_CHAT;
    options.developer_allowed = data[0] & 2;
    options.speciale = data[0] & 4;
    options.keep_developer = data[0] & 8;
    options.final_assistant_allowed = data[0] & 16;
    if (!sl_is_ok(sl_json_parse((const char *)data + 1, size - 1, NULL, &doc, &err)))
        return 0;
    if (sl_is_ok(mdl_chat_parse(sl_json_root(doc), &options, &chat, &err)))
        check_chat(chat);
    else
        sl_assert(!chat && err.text[0] && (err.code == SL_INVALID || err.code == SL_UNSUPPORTED));
    mdl_chat_destroy(chat);
    sl_json_doc_destroy(doc);
    sl_assert(sl_alloc_live() == 0);
    return 0;
}
