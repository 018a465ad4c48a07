/* The cluster's settings: any text. What is taken can be applied, and its own text is taken whole.
 */
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "router/live_settings.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static rtr_live_settings one, again;
    static rtr_options own, applied;
    sl_buf trouble, text;
    sl_buf_init(&trouble, 0);
    sl_buf_init(&text, 0);
    char *json = sl_strndup((const char *)data, size, "settings");
    rtr_live_settings_parse(json, &one, &trouble);
    rtr_live_settings_apply(&one, &own, &applied);
    rtr_live_settings_write(&text, &one);
    trouble.size = 0;
    rtr_live_settings_parse(text.data, &again, &trouble);
    sl_assert(trouble.size == 0 && memcmp(&one, &again, sizeof(one)) == 0);
    sl_free(json);
    sl_buf_fini(&text);
    sl_buf_fini(&trouble);
    sl_assert(sl_alloc_live() == 0);
    return 0;
}
