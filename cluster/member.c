/* Member records: checks, JSON both ways. Pure; any thread; never trusts a byte of what it parses.
 */
#include "cluster/member.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "cluster/fields.h"

static const char *const STATE_NAMES[CLU_MEMBER_STATE_COUNT] = {"ready", "draining", "cordoned",
                                                                "left"};

const char *clu_member_state_name(clu_member_state state)
{
    return (unsigned)state < CLU_MEMBER_STATE_COUNT ? STATE_NAMES[state] : "?";
}

bool clu_name_valid(const char *name)
{
    size_t length = 0;
    for (; name[length]; length++) {
        char c = name[length];
        bool alnum = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
        bool mark = c == '.' || c == '_' || c == '-';
        if (!alnum && !(mark && length > 0))
            return false;
    }
    return length > 0 && length < CLU_NAME_MAX;
}

sl_status clu_key(const char *cluster, const char *path, char out_key[CLU_KEY_MAX], sl_err *err)
{
    if (!clu_name_valid(cluster))
        return sl_fail(err, SL_INVALID,
                       "cluster name \"%.80s\": want lower-case letters, digits, . _ -", cluster);
    int length = snprintf(out_key, CLU_KEY_MAX, "/sluice/v1/%s/%s", cluster, path);
    if (length >= CLU_KEY_MAX)
        return sl_fail(err, SL_TOO_LARGE, "etcd key %.100s..: over %d bytes", path, CLU_KEY_MAX);
    return sl_ok();
}

sl_status clu_member_key(const char *cluster, const char *name, char out_key[CLU_KEY_MAX],
                         sl_err *err)
{
    char path[sizeof("members/") + CLU_NAME_MAX];
    if (*name && !clu_name_valid(name))
        return sl_fail(err, SL_INVALID,
                       "node name \"%.80s\": want lower-case letters, digits, . _ -", name);
    snprintf(path, sizeof(path), "members/%s", name);
    return clu_key(cluster, path, out_key, err);
}

sl_status clu_text_set(char *out_field, size_t field_size, const char *text, const char *what,
                       sl_err *err)
{
    size_t length = strlen(text);
    if (length >= field_size)
        return sl_fail(err, SL_TOO_LARGE, "%s: %zu bytes, at most %zu", what, length,
                       field_size - 1);
    memcpy(out_field, text, length + 1);
    return sl_ok();
}

/* "host:port": no blanks or controls, a port of 1..65535. */
static bool address_valid(const char *text)
{
    const char *colon = strrchr(text, ':');
    if (!colon || colon == text)
        return false;
    for (const char *c = text; c < colon; c++)
        if (*c <= ' ' || *c > '~' || *c == '/' || *c == '"' || *c == '\\')
            return false;
    unsigned port = 0;
    const char *c = colon + 1;
    for (; *c >= '0' && *c <= '9' && port <= 65535; c++)
        port = port * 10 + (unsigned)(*c - '0');
    return c > colon + 1 && !*c && port >= 1 && port <= 65535;
}

static sl_status check_text(const char *text, const char *what, sl_err *err)
{
    for (const char *c = text; *c; c++)
        if ((unsigned char)*c < ' ' || *c == 127)
            return sl_fail(err, SL_INVALID, "%s: holds control characters", what);
    if (!sl_utf8_valid(text, strlen(text)))
        return sl_fail(err, SL_INVALID, "%s: not UTF-8", what);
    return sl_ok();
}

sl_status clu_member_check(const clu_member_info *info, sl_err *err)
{
    if (!clu_name_valid(info->name))
        return sl_fail(err, SL_INVALID, "name \"%s\": want lower-case letters, digits, . _ -",
                       info->name);
    if (!clu_name_valid(info->role))
        return sl_fail(err, SL_INVALID, "role \"%s\": not a role", info->role);
    if (!address_valid(info->control))
        return sl_fail(err, SL_INVALID, "control \"%s\": want host:port", info->control);
    if (info->kv[0] && !address_valid(info->kv))
        return sl_fail(err, SL_INVALID, "kv \"%s\": want host:port", info->kv);
    if (info->metrics[0] && !address_valid(info->metrics))
        return sl_fail(err, SL_INVALID, "metrics \"%s\": want host:port", info->metrics);
    if ((unsigned)info->state >= CLU_MEMBER_STATE_COUNT)
        return sl_fail(err, SL_INVALID, "state %d: unknown", (int)info->state);
    size_t mark = strlen(info->secret_mark);
    if (mark != strspn(info->secret_mark, "0123456789abcdef") ||
        (mark != 0 && mark != CLU_SECRET_MARK_MAX - 1))
        return sl_fail(err, SL_INVALID, "secret_mark: want %d lower-case hex digits",
                       CLU_SECRET_MARK_MAX - 1);
    SL_TRY(check_text(info->version, "version", err));
    SL_TRY(check_text(info->stamp.numerics_id, "stamp.numerics_id", err));
    SL_TRY(check_text(info->stamp.model_hash, "stamp.model_hash", err));
    SL_TRY(check_text(info->stamp.weights_version, "stamp.weights_version", err));
    return check_text(info->stamp.cache_format, "stamp.cache_format", err);
}

/* ---- writing ---- */

static void write_text(sl_buf *buf, const char *head, const char *text)
{
    sl_buf_puts(buf, head);
    sl_json_write_string(buf, text, strlen(text));
}

void clu_member_write_json(sl_buf *buf, const clu_member_info *info)
{
    write_text(buf, "{\"name\":", info->name);
    write_text(buf, ",\"role\":", info->role);
    write_text(buf, ",\"control\":", info->control);
    write_text(buf, ",\"kv\":", info->kv);
    write_text(buf, ",\"metrics\":", info->metrics);
    sl_buf_printf(buf, ",\"incarnation\":\"%016" PRIx64 "\"", info->incarnation);
    write_text(buf, ",\"stamp\":{\"numerics_id\":", info->stamp.numerics_id);
    write_text(buf, ",\"model_hash\":", info->stamp.model_hash);
    write_text(buf, ",\"weights_version\":", info->stamp.weights_version);
    write_text(buf, ",\"cache_format\":", info->stamp.cache_format);
    sl_buf_printf(buf, "},\"capacity\":{\"slots\":%u,\"pages\":%u},\"context_max\":%u", info->slots,
                  info->pages, info->context_max);
    write_text(buf, ",\"state\":", clu_member_state_name(info->state));
    write_text(buf, ",\"version\":", info->version);
    if (info->secret_mark[0])
        write_text(buf, ",\"secret_mark\":", info->secret_mark);
    sl_buf_putc(buf, '}');
}

/* ---- parsing ---- */

static sl_status get_incarnation(const sl_json *root, uint64_t *out_value, sl_err *err)
{
    char hex[17] = "";
    SL_TRY(clu_field_text(root, "incarnation", true, hex, sizeof(hex), err));
    if (strlen(hex) != 16 || strspn(hex, "0123456789abcdef") != 16)
        return sl_fail(err, SL_INVALID, "incarnation: want 16 lower-case hex digits");
    *out_value = strtoull(hex, NULL, 16);
    return sl_ok();
}

static sl_status get_state(const sl_json *root, clu_member_state *out_state, sl_err *err)
{
    char text[16] = "";
    SL_TRY(clu_field_text(root, "state", true, text, sizeof(text), err));
    for (int i = 0; i < CLU_MEMBER_STATE_COUNT; i++) {
        if (i != CLU_MEMBER_STATE_CORDONED && strcmp(text, STATE_NAMES[i]) == 0) {
            *out_state = (clu_member_state)i;
            return sl_ok();
        }
    }
    return sl_fail(err, SL_INVALID, "state: want ready, draining or left");
}

static sl_status get_u32(const sl_json *root, const char *path, uint32_t *out_value, sl_err *err)
{
    int64_t number = *out_value;
    SL_TRY(clu_field_number(root, path, false, 0, UINT32_MAX, &number, err));
    *out_value = (uint32_t)number;
    return sl_ok();
}

#define TEXT(path, required, field) \
    SL_TRY(clu_field_text(root, path, required, field, sizeof(field), err))

static sl_status parse_root(const sl_json *root, clu_member_info *info, sl_err *err)
{
    TEXT("name", true, info->name);
    TEXT("role", true, info->role);
    TEXT("control", true, info->control);
    TEXT("kv", false, info->kv);
    TEXT("metrics", false, info->metrics);
    TEXT("version", false, info->version);
    TEXT("secret_mark", false, info->secret_mark);
    SL_TRY(get_incarnation(root, &info->incarnation, err));
    SL_TRY(get_state(root, &info->state, err));
    SL_TRY(get_u32(root, "context_max", &info->context_max, err));
    TEXT("stamp.numerics_id", false, info->stamp.numerics_id);
    TEXT("stamp.model_hash", false, info->stamp.model_hash);
    TEXT("stamp.weights_version", false, info->stamp.weights_version);
    TEXT("stamp.cache_format", false, info->stamp.cache_format);
    SL_TRY(get_u32(root, "capacity.slots", &info->slots, err));
    SL_TRY(get_u32(root, "capacity.pages", &info->pages, err));
    return clu_member_check(info, err);
}

sl_status clu_member_parse_json(const void *data, size_t size, clu_member_info *out_info,
                                sl_err *err)
{
    sl_json_doc *doc;
    clu_member_info info;
    memset(&info, 0, sizeof(info));
    sl_status status = clu_fields_open(data, size, CLU_MEMBER_JSON_MAX, &doc, err);
    if (sl_is_ok(status)) {
        status = parse_root(sl_json_root(doc), &info, err);
        sl_json_doc_destroy(doc);
    }
    if (!sl_is_ok(status))
        return sl_wrap(err, status, "member record");
    *out_info = info;
    return sl_ok();
}

uint32_t clu_stamp_weights(const clu_stamp *stamp)
{
    return (uint32_t)strtoul(stamp->weights_version, NULL, 10);
}

void clu_stamp_tell_difference(const clu_stamp *a, const clu_stamp *b, sl_buf *out)
{
    const struct {
        const char *what, *first, *second;
    } fields[] = {
        {"numerics", a->numerics_id, b->numerics_id},
        {"weights version", a->weights_version, b->weights_version},
        {"cache format", a->cache_format, b->cache_format},
    };
    bool models = strcmp(a->model_hash, b->model_hash) != 0;
    const char *between = models ? ", " : "";
    if (models)
        sl_buf_puts(out, "other models"); /* two hashes would tell nobody more */
    for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
        if (strcmp(fields[i].first, fields[i].second) == 0)
            continue;
        sl_buf_printf(out, "%s%s %s and %s", between, fields[i].what, fields[i].first,
                      fields[i].second);
        between = ", ";
    }
}

bool clu_member_equal(const clu_member_info *a, const clu_member_info *b)
{
    return strcmp(a->name, b->name) == 0 && strcmp(a->role, b->role) == 0 &&
           strcmp(a->control, b->control) == 0 && strcmp(a->kv, b->kv) == 0 &&
           strcmp(a->metrics, b->metrics) == 0 && a->incarnation == b->incarnation &&
           strcmp(a->stamp.numerics_id, b->stamp.numerics_id) == 0 &&
           strcmp(a->stamp.model_hash, b->stamp.model_hash) == 0 &&
           strcmp(a->stamp.weights_version, b->stamp.weights_version) == 0 &&
           strcmp(a->stamp.cache_format, b->stamp.cache_format) == 0 && a->slots == b->slots &&
           a->pages == b->pages && a->context_max == b->context_max && a->state == b->state &&
           strcmp(a->version, b->version) == 0 && strcmp(a->secret_mark, b->secret_mark) == 0;
}
