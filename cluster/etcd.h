/* A small etcd v3 client: several endpoints with rotation, unary requests with deadlines, leases
 * that renew and re-grant themselves, watches that resume.
 *
 * With a user every request and stream carries a token, which is asked for when it is missing or
 * refused. Owns its channels. Callbacks come from the loop, never inside the call. Thread: the
 * runtime's loop. The messages are etcd's own (proto/etcd/etcd.pb-c.h). */
#ifndef CLUSTER_ETCD_H
#define CLUSTER_ETCD_H

#include "proto/etcd/etcd.pb-c.h"
#include "rpc/client.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CLU_ENDPOINTS_MAX    8
#define CLU_ETCD_TIMEOUT_NS  (5 * SL_S_NS)
#define CLU_ETCD_ATTEMPT_NS  (2 * SL_S_NS) /* one endpoint's share of an idempotent request */
#define CLU_ETCD_KEEPALIVE   6000          /* ms; etcd punishes pings more often than 5 s */
#define CLU_BACKOFF_FIRST_NS (100 * SL_MS_NS)
#define CLU_BACKOFF_MAX_NS   SL_S_NS

#define CLU_ETCD_USER_MAX  128
#define CLU_ETCD_TOKEN_MAX 2048

#define CLU_LEASE_NS_MIN SL_S_NS
#define CLU_LEASE_NS_MAX (3600 * SL_S_NS)

typedef struct clu_etcd clu_etcd;

typedef struct clu_etcd_options {
    const char *endpoints; /* "http://127.0.0.1:2379,http://10.0.0.2:2379"; the scheme may be
                              absent; https needs tls */
    uint64_t timeout_ns; /* of one request over all endpoints, and of the first answer of a view or
                            registration (--etcd-timeout); 0 = CLU_ETCD_TIMEOUT_NS */
    const rpc_tls *tls;
    const char *user, *password; /* NULL: none. Copied */
} clu_etcd_options;

/* Form of the endpoints only. */
SL_MUST_USE sl_status clu_etcd_check(const clu_etcd_options *options, sl_err *err);
SL_MUST_USE sl_status clu_etcd_create(rpc_runtime *runtime, const clu_etcd_options *options,
                                      clu_etcd **out_etcd, sl_err *err);
/* After everything that uses it (watches, leases, views, registrations) is destroyed. */
void clu_etcd_destroy(clu_etcd *etcd);
rpc_runtime *clu_etcd_runtime(const clu_etcd *etcd);
/* "http://a:1,http://b:2", for messages. */
const char *clu_etcd_endpoints(const clu_etcd *etcd);
uint64_t clu_etcd_timeout_ns(const clu_etcd *etcd);
/* The last request or stream that ended got an answer from etcd. */
bool clu_etcd_connected(const clu_etcd *etcd);
/* Up to CLU_ETCD_LISTENERS_MAX; told of each change. */
#define CLU_ETCD_LISTENERS_MAX 8
typedef void (*clu_connected_fn)(void *context, bool connected);
SL_MUST_USE sl_status clu_etcd_listen(clu_etcd *etcd, clu_connected_fn fn, void *context,
                                      sl_err *err);
void clu_etcd_unlisten(clu_etcd *etcd, clu_connected_fn fn, void *context);

/* ---- requests: any unary method rpc_method_etcd_* ---- */

typedef struct clu_request clu_request;
typedef struct clu_request_options {
    bool idempotent;     /* tried at the next endpoint after UNAVAILABLE or its share of time */
    uint64_t timeout_ns; /* 0 = the client's */
} clu_request_options;

/* Reply borrowed, NULL unless err->code is SL_OK. Compacted ranges give SL_TOO_LARGE (gRPC
 * OUT_OF_RANGE). SL_UNAVAILABLE and SL_DEADLINE of a request that is not idempotent leave open
 * whether it took place. out_request may be NULL; the handle is invalid once fn began. */
SL_MUST_USE sl_status clu_etcd_request(clu_etcd *etcd, const rpc_method *method,
                                       const ProtobufCMessage *request,
                                       const clu_request_options *options, rpc_done_fn fn,
                                       void *context, clu_request **out_request, sl_err *err);
/* No callback any more. NULL is fine. */
void clu_request_drop(clu_request *request);

/* Borrowed view of a C string as protobuf bytes, and the end of the range of all keys that start so
 * (buffer of at least strlen + 1). */
ProtobufCBinaryData clu_bytes(const char *text);
ProtobufCBinaryData clu_prefix_end(const char *prefix, char *buffer, size_t buffer_size);

/* ---- lease ---- */

typedef struct clu_lease clu_lease;

typedef struct clu_lease_events {
    /* A new id: write what hangs on the lease. Also after each loss. */
    void (*on_granted)(void *context, int64_t id);
    /* etcd answered TTL 0 (or not at all for a whole TTL): what hung on it may be gone. A new grant
     * is tried until it succeeds, with jitter. */
    void (*on_lost)(void *context);
} clu_lease_events;

SL_MUST_USE sl_status clu_lease_create(clu_etcd *etcd, uint64_t ttl_ns,
                                       const clu_lease_events *events, void *context,
                                       clu_lease **out_lease, sl_err *err);
int64_t clu_lease_id(const clu_lease *lease); /* 0 = none at present */
/* Stops renewing. The lease expires by itself; to end it now send LeaseRevoke. */
void clu_lease_destroy(clu_lease *lease);

/* ---- watch ---- */

typedef struct clu_watch clu_watch;

typedef struct clu_watch_events {
    /* Events of one revision or several; the watch resumes after `revision`. Borrowed. */
    void (*on_events)(void *context, Etcdserverpb__Event *const *events, size_t count,
                      int64_t revision);
    /* The past is gone: list again, then clu_watch_restart(watch, revision + 1). */
    void (*on_compacted)(void *context);
} clu_watch_events;

/* Watches every key that starts with prefix, from start_revision (never 0: list first). */
SL_MUST_USE sl_status clu_watch_create(clu_etcd *etcd, const char *prefix, int64_t start_revision,
                                       const clu_watch_events *events, void *context,
                                       clu_watch **out_watch, sl_err *err);
void clu_watch_restart(clu_watch *watch, int64_t start_revision);
void clu_watch_destroy(clu_watch *watch);

#ifdef __cplusplus
}
#endif
#endif
