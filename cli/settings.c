/* `sluicectl settings get` and `set`. */
#include <string.h>

#include "cli/commands.h"
#include "proto/sluice/v1/cluster.pb-c.h"

static void write_setting(sl_buf *out, const Sluice__V1__Setting *setting)
{
    ctl_json_open(out, NULL, '{');
    ctl_json_text(out, "name", setting->name);
    ctl_json_text(out, "value", setting->value);
    ctl_json_bool(out, "set", setting->set);
    ctl_json_text(out, "own", setting->own);
    ctl_json_text(out, "help", setting->help);
    sl_buf_putc(out, '}');
}

int ctl_settings_get(ctl_session *session, const char *const *words)
{
    static const Sluice__V1__GetSettingsRequest REQUEST = SLUICE__V1__GET_SETTINGS_REQUEST__INIT;
    bool json = ctl_session_options(session)->json;
    ctl_call call;
    sl_err err;
    sl_status status =
        ctl_ask_router(session, &rpc_method_cluster_get_settings, &REQUEST.base, &call, &err);
    const Sluice__V1__GetSettingsReply *reply = (const Sluice__V1__GetSettingsReply *)call.reply;
    size_t found = 0;
    sl_buf out;
    sl_buf_init(&out, 0);
    if (json)
        sl_buf_puts(&out, "{\"settings\":[");
    else
        sl_buf_printf(&out, "%-18s %-10s %-8s %s\n", "SETTING", "VALUE", "FROM", "MEANS");
    for (size_t i = 0; reply && i < reply->n_settings; i++) {
        const Sluice__V1__Setting *at = reply->settings[i];
        if (words[0] && strcmp(words[0], at->name) != 0)
            continue;
        found++;
        if (json)
            write_setting(&out, at);
        else
            sl_buf_printf(&out, "%-18s %-10s %-8s %s\n", at->name, at->value,
                          at->set ? "cluster" : "router", at->help);
    }
    if (json) {
        sl_buf_putc(&out, ']');
        ctl_json_number(&out, "revision", reply ? (uint64_t)reply->revision : 0);
        sl_buf_puts(&out, "}\n");
    }
    ctl_call_fini(&call);
    if (sl_is_ok(status) && found == 0)
        status = sl_fail(&err, SL_NOT_FOUND, "no setting %s: see sluicectl settings get", words[0]);
    if (sl_is_ok(status)) {
        ctl_print(&out);
        return CTL_EXIT_OK;
    }
    sl_buf_fini(&out);
    return ctl_fail(&err);
}

int ctl_settings_set(ctl_session *session, const char *const *words)
{
    const ctl_options *options = ctl_session_options(session);
    Sluice__V1__SetSettingRequest request = SLUICE__V1__SET_SETTING_REQUEST__INIT;
    ctl_call call;
    sl_err err;
    sl_buf out;
    request.name = (char *)words[0];
    request.value = (char *)(strcmp(words[1], "default") == 0 ? "" : words[1]);
    request.dry_run = options->dry_run;
    sl_status status =
        ctl_ask_router(session, &rpc_method_cluster_set_setting, &request.base, &call, &err);
    if (!sl_is_ok(status)) {
        ctl_call_fini(&call);
        return ctl_fail(&err);
    }
    const Sluice__V1__SetSettingReply *reply = (const Sluice__V1__SetSettingReply *)call.reply;
    sl_buf_init(&out, 0);
    if (options->json) {
        ctl_json_open(&out, NULL, '{');
        ctl_json_text(&out, "name", words[0]);
        ctl_json_text(&out, "before", reply->before);
        ctl_json_text(&out, "after", reply->after);
        ctl_json_bool(&out, "changed", reply->changed);
        ctl_json_bool(&out, "dry_run", options->dry_run);
        sl_buf_puts(&out, "}\n");
    } else {
        sl_buf_printf(&out, "%s%s: %s -> %s%s\n", options->dry_run ? "dry run: " : "", words[0],
                      reply->before, reply->after, reply->changed ? "" : " (as it was)");
    }
    ctl_print(&out);
    ctl_call_fini(&call);
    return CTL_EXIT_OK;
}
