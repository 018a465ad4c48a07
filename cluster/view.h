/* The members of a cluster as this process knows them.
 *
 * List at R, watch from R + 1. etcd lost: the last view stays. A lost lease only makes a member
 * suspect: it is still there, its data path decides (clu_view_forget). A tombstone (clean leave)
 * removes it. Suspects that nobody forgets go after suspect_keep_ns, unless the view is frozen: two
 * or more members, and more than a fifth of all, suspect at the same time (then etcd is more likely
 * ill than they are). Thread: the loop of etcd's runtime; callbacks never come inside a call but
 * clu_view_forget's. */
#ifndef CLUSTER_VIEW_H
#define CLUSTER_VIEW_H

#include "cluster/etcd.h"
#include "cluster/member.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CLU_MEMBERS_MAX     4096
#define CLU_SUSPECT_KEEP_NS (30 * SL_S_NS)

typedef struct clu_view clu_view;

typedef struct clu_view_member {
    clu_member_info info;
    bool suspect; /* its lease is gone, or it was absent from a fresh list */
    int64_t revision;
    void *user; /* the owner's; NULL at first, kept over changes, free it in on_removed */
} clu_view_member;

typedef struct clu_view_events {     /* members are borrowed; each may be NULL */
    void (*on_ready)(void *context); /* the first list is in (after its on_added calls) */
    /* The first list did not come within etcd's timeout: only destroy is left. */
    void (*on_failed)(void *context, const sl_err *err);
    void (*on_added)(void *context, clu_view_member *member);
    /* Same incarnation: record or suspicion changed. A new incarnation under the same name comes as
     * on_removed, then on_added. */
    void (*on_changed)(void *context, clu_view_member *member);
    void (*on_removed)(void *context, clu_view_member *member);
    void (*on_connected)(void *context, bool connected);
} clu_view_events;

typedef struct clu_view_options {
    const char *cluster;
    uint64_t suspect_keep_ns; /* 0 = CLU_SUSPECT_KEEP_NS */
} clu_view_options;

SL_MUST_USE sl_status clu_view_create(clu_etcd *etcd, const clu_view_options *options,
                                      const clu_view_events *events, void *context,
                                      clu_view **out_view, sl_err *err);
/* No callbacks. Not from inside one but on_failed. NULL is fine. */
void clu_view_destroy(clu_view *view);

bool clu_view_ready(const clu_view *view);
bool clu_view_connected(const clu_view *view);
bool clu_view_frozen(const clu_view *view);
size_t clu_view_count(const clu_view *view);
/* In no particular order; stable until the next callback. */
clu_view_member *clu_view_at(const clu_view *view, size_t index);
clu_view_member *clu_view_find(const clu_view *view, const char *name);
/* Records that could not be parsed or did not fit (CLU_MEMBERS_MAX), since the start. */
uint64_t clu_view_bad_records(const clu_view *view);
/* The data path found it dead: removes it if it is suspect with this incarnation (true, on_removed
 * was called); a member with a live lease stays (false). */
bool clu_view_forget(clu_view *view, const char *name, uint64_t incarnation);

#ifdef __cplusplus
}
#endif
#endif
