/* Which of a router's options the cluster's settings may change while it runs, and how.
 *
 * etcd holds one JSON object, name to text; what it does not name is each router's own option. What
 * a router does not understand it ignores, and says so: others may be newer. Pure. Thread: any. */
#ifndef ROUTER_LIVE_SETTINGS_H
#define ROUTER_LIVE_SETTINGS_H

#include "base/bytes.h"
#include "router/options.h"

#ifdef __cplusplus
extern "C" {
#endif

#define RTR_SETTINGS_MAX     40u
#define RTR_SETTING_TEXT_MAX 64u
#define RTR_SETTINGS_JSON    4096u

typedef struct rtr_live_settings { /* "" = the router's own */
    char values[RTR_SETTINGS_MAX][RTR_SETTING_TEXT_MAX];
} rtr_live_settings;

/* The index-th setting's option; NULL: there are no more. */
const sl_option *rtr_live_setting(uint32_t index);
/* SL_NOT_FOUND, SL_INVALID. "" takes it back. */
SL_MUST_USE sl_status rtr_live_settings_set(rtr_live_settings *settings, const char *name,
                                            const char *value, uint32_t *out_index, sl_err *err);
/* What is wrong with it goes to out_trouble, a line each (an sl_buf of the caller's). */
void rtr_live_settings_parse(const char *json, rtr_live_settings *out_settings,
                             sl_buf *out_trouble);
void rtr_live_settings_write(sl_buf *buf, const rtr_live_settings *settings);
/* own: what the router was started with. */
void rtr_live_settings_apply(const rtr_live_settings *settings, const rtr_options *own,
                             rtr_options *out_options);

#ifdef __cplusplus
}
#endif
#endif
