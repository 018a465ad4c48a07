/* See live_settings.h. */
#include "router/live_settings.h"

#include <stdio.h>
#include <string.h>

#include "base/assert.h"
#include "base/json.h"

static const char *const NAMES[] = {
    "queue-max",        "queue-timeout",    "place-timeout",     "admit-timeout",
    "progress-timeout", "token-timeout",    "attach-timeout",    "attempts",
    "recovery-rate",    "self-prefill",     "move-drained",      "pull-min",
    "log-level",        "ttft-target",      "tpot-target",       "plan",
    "plan-window",      "plan-windows",     "plan-pause",        "plan-queue",
    "plan-prefill-min", "plan-prefill-max", "plan-decode-min",   "plan-decode-max",
    "rebalance",        "rebalance-window", "rebalance-windows", "rebalance-pause",
    "rebalance-rows",   "rebalance-over",   "rebalance-gain",    "keep-alive",
    "weights-min",
};
#define NAME_COUNT ((uint32_t)(sizeof NAMES / sizeof NAMES[0]))
_Static_assert(sizeof NAMES / sizeof NAMES[0] <= RTR_SETTINGS_MAX, "all settings have room");

const sl_option *rtr_live_setting(uint32_t index)
{
    return index < NAME_COUNT ? sl_config_option(&RTR_CONFIG_SPEC, NAMES[index]) : NULL;
}

static sl_status unknown(const char *name, sl_err *err)
{
    return sl_fail(err, SL_NOT_FOUND,
                   "no setting \"%.60s\": `sluicectl settings get` lists all that there are", name);
}

sl_status rtr_live_settings_set(rtr_live_settings *settings, const char *name, const char *value,
                                uint32_t *out_index, sl_err *err)
{
    rtr_options scratch;
    for (uint32_t i = 0; i < NAME_COUNT; i++) {
        if (strcmp(NAMES[i], name) != 0)
            continue;
        memset(&scratch, 0, sizeof scratch);
        if (*value)
            SL_TRY(sl_config_set(rtr_live_setting(i), value, &scratch, err));
        if (strlen(value) >= RTR_SETTING_TEXT_MAX)
            return sl_fail(err, SL_TOO_LARGE, "%s: over %u bytes", name, RTR_SETTING_TEXT_MAX - 1);
        snprintf(settings->values[i], RTR_SETTING_TEXT_MAX, "%s", value);
        *out_index = i;
        return sl_ok();
    }
    return unknown(name, err);
}

void rtr_live_settings_parse(const char *json, rtr_live_settings *out_settings, sl_buf *out_trouble)
{
    static const sl_json_limits LIMITS = {RTR_SETTINGS_JSON, 4};
    sl_json_doc *doc;
    sl_err err;
    uint32_t index;
    memset(out_settings, 0, sizeof *out_settings);
    if (!sl_is_ok(sl_json_parse(json, strlen(json), &LIMITS, &doc, &err))) {
        sl_buf_printf(out_trouble, "cluster settings: %s\n", err.text);
        return;
    }
    const sl_json *root = sl_json_root(doc);
    size_t count = sl_json_typeof(root) == SL_JSON_OBJECT ? sl_json_count(root) : 0;
    for (size_t i = 0; i < count; i++) {
        const char *name = sl_json_key(root, i, NULL);
        const char *value = sl_json_string(sl_json_at(root, i), NULL);
        sl_status status = value ? rtr_live_settings_set(out_settings, name, value, &index, &err)
                                 : sl_fail(&err, SL_INVALID, "%s: want a text", name);
        if (!sl_is_ok(status))
            sl_buf_printf(out_trouble, "cluster settings: %s\n", err.text);
    }
    sl_json_doc_destroy(doc);
}

void rtr_live_settings_write(sl_buf *buf, const rtr_live_settings *settings)
{
    bool first = true;
    sl_buf_putc(buf, '{');
    for (uint32_t i = 0; i < NAME_COUNT; i++) {
        const char *value = settings->values[i];
        if (!*value)
            continue;
        sl_buf_printf(buf, "%s\"%s\":", first ? "" : ",", NAMES[i]);
        sl_json_write_string(buf, value, strlen(value));
        first = false;
    }
    sl_buf_putc(buf, '}');
}

void rtr_live_settings_apply(const rtr_live_settings *settings, const rtr_options *own,
                             rtr_options *out_options)
{
    *out_options = *own;
    for (uint32_t i = 0; i < NAME_COUNT; i++) {
        sl_err err;
        if (!settings->values[i][0])
            continue;
        sl_status status =
            sl_config_set(rtr_live_setting(i), settings->values[i], out_options, &err);
        sl_assert(sl_is_ok(status)); /* was checked when it was taken */
    }
}
