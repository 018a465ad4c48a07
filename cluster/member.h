/* A member record: what a node says of itself in etcd, and its JSON form.
 *
 * Pure data, no network. Key: /sluice/v1/<cluster>/members/<name>. The value is JSON so that
 * `etcdctl get` is readable; parsing is strict on types and bounds and ignores unknown fields.
 * Thread: any. */
#ifndef CLUSTER_MEMBER_H
#define CLUSTER_MEMBER_H

#include "base/bytes.h"
#include "base/net.h"
#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CLU_NAME_MAX        64 /* with the NUL: [a-z0-9]([a-z0-9._-]*), also cluster names */
#define CLU_TEXT_MAX        160
#define CLU_KEY_MAX         256
#define CLU_MEMBER_JSON_MAX 8192
#define CLU_SECRET_MARK_MAX 17 /* 16 hex digits and the NUL */

typedef enum clu_member_state {
    CLU_MEMBER_STATE_READY,
    CLU_MEMBER_STATE_DRAINING, /* finishes what it has, takes nothing new */
    CLU_MEMBER_STATE_CORDONED, /* the same by the operator's wish: routers only, never in a record
                                */
    CLU_MEMBER_STATE_LEFT,     /* tombstone of a clean stop, deleted right after */
    CLU_MEMBER_STATE_COUNT,
} clu_member_state;

/* As sluice.v1.Stamp: what must be equal before two processes exchange cache pages. */
typedef struct clu_stamp {
    char numerics_id[CLU_TEXT_MAX];
    char model_hash[CLU_TEXT_MAX];
    char weights_version[CLU_TEXT_MAX];
    char cache_format[CLU_TEXT_MAX];
} clu_stamp;

typedef struct clu_member_info {
    char name[CLU_NAME_MAX];
    char role[16];                     /* "prefill", "decode", "hybrid", "router" */
    char control[SL_ADDRESS_TEXT_MAX]; /* gRPC, "host:port" */
    char kv[SL_ADDRESS_TEXT_MAX];      /* kvtransfer listener; "" = none */
    char metrics[SL_ADDRESS_TEXT_MAX]; /* "" = none */
    uint64_t incarnation;              /* random per process start; JSON: 16 hex digits */
    clu_stamp stamp;
    uint32_t slots; /* capacity */
    uint32_t pages;
    uint32_t context_max;
    clu_member_state state;
    char version[CLU_TEXT_MAX];
    char secret_mark[CLU_SECRET_MARK_MAX]; /* routers: tells cluster secrets apart; "" = none */
} clu_member_info;

/* "ready", "draining", "left". */
const char *clu_member_state_name(clu_member_state state);
/* True for a name that may stand in a key: starts with a letter or digit, then also . _ -, lower
 * case, at most CLU_NAME_MAX - 1 bytes. */
bool clu_name_valid(const char *name);
/* "/sluice/v1/<cluster>/<path>", as every key is. SL_INVALID: a name that no cluster can have;
 * SL_TOO_LARGE. */
SL_MUST_USE sl_status clu_key(const char *cluster, const char *path, char out_key[CLU_KEY_MAX],
                              sl_err *err);
/* "/sluice/v1/demo/members/" (name "") or a member's key. SL_INVALID for bad names. */
SL_MUST_USE sl_status clu_member_key(const char *cluster, const char *name,
                                     char out_key[CLU_KEY_MAX], sl_err *err);
/* Copies text into a bounded field; SL_TOO_LARGE names `what`. */
SL_MUST_USE sl_status clu_text_set(char *out_field, size_t field_size, const char *text,
                                   const char *what, sl_err *err);

/* Checks names, role, addresses and texts as the parser does. */
SL_MUST_USE sl_status clu_member_check(const clu_member_info *info, sl_err *err);
void clu_member_write_json(sl_buf *buf, const clu_member_info *info);
/* Untrusted bytes. SL_INVALID names the field. */
SL_MUST_USE sl_status clu_member_parse_json(const void *data, size_t size,
                                            clu_member_info *out_info, sl_err *err);
/* Adds what differs ("other models, weights version 2 and 1"); nothing if they are alike. */
void clu_stamp_tell_difference(const clu_stamp *a, const clu_stamp *b, sl_buf *out);
/* Versions only rise, so that they compare; 0: it says none (routers). */
uint32_t clu_stamp_weights(const clu_stamp *stamp);
bool clu_member_equal(const clu_member_info *a, const clu_member_info *b);

#ifdef __cplusplus
}
#endif
#endif
