/* Which ranks of an instance step together: records, and what a rank does about them. Pure: (own
 * state, what etcd says, now) -> an action.
 *
 * A *formation* is a number, ranks and the version of the placement table. It is proposed by one
 * rank, as the next number after the one that etcd has, by a transaction; its ranks then load what
 * the table gives them and connect beside whatever runs, say in their records how that went, and go
 * over to it together (engine/parallel.h).
 *   start   all ranks are there, none in a formation: the lowest proposes all of them
 *   change  the lowest of those in use proposes ranks that came, or a newer table
 *   death   whose group failed says so, and whom it misses; the lowest proposes those who said it
 * Each attempt needs fresh contacts: a record's contact is that of the next formation. */
#ifndef CLUSTER_FORMATION_H
#define CLUSTER_FORMATION_H

#include "base/bytes.h"
#include "base/clock.h"
#include "cluster/member.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CLU_RANKS_MAX          64u
#define CLU_CONTACT_MAX        304u
#define CLU_RANK_JSON_MAX      1024u
#define CLU_FORMATION_JSON_MAX 32768u
#define CLU_FORM_GRACE_NS      (2 * SL_S_NS) /* for a rank that is not missed and says nothing */
#define CLU_FORM_RETRY_NS      (1 * SL_S_NS) /* after an attempt that failed beside what runs */

typedef struct clu_rank_record {
    char node[CLU_NAME_MAX];
    char contact[CLU_CONTACT_MAX];
    uint32_t size; /* of the instance */
    bool leaving;
    uint64_t formation; /* in use; 0: none */
    uint64_t tried;     /* the newest whose attempt has ended, well or not */
    uint64_t ready;     /* the newest whose attempt has ended well */
    bool failed;        /* the one in use does not run any more */
    uint64_t lost;      /* ranks that it misses, as bits */
} clu_rank_record;

void clu_rank_write_json(sl_buf *buf, const clu_rank_record *record);
/* Untrusted bytes. SL_INVALID names the field. */
SL_MUST_USE sl_status clu_rank_parse_json(const void *data, size_t size,
                                          clu_rank_record *out_record, sl_err *err);

typedef struct clu_formation {
    uint64_t number; /* from 1; 0: there is none */
    uint64_t placement;
    uint64_t ranks; /* as bits */
    char contacts[CLU_RANKS_MAX][CLU_CONTACT_MAX];
} clu_formation;

void clu_formation_write_json(sl_buf *buf, const clu_formation *formation);
SL_MUST_USE sl_status clu_formation_parse_json(const void *data, size_t size,
                                               clu_formation *out_formation, sl_err *err);

/* A rank's own part. */
typedef struct clu_form {
    uint32_t rank, size;
    uint32_t ranks_needed;   /* so many have room for all experts */
    uint64_t reform_ns;      /* how long a group that failed may wait for another */
    uint64_t used_ranks;     /* of the formation in use */
    uint64_t used_placement; /* of the same */
    uint64_t forming;        /* the attempt under way; 0: none */
    sl_time_ns failed_at;    /* when own.failed was set */
    sl_time_ns retry_at;     /* no change before */
    clu_rank_record own;
} clu_form;

/* One look at etcd. */
typedef struct clu_form_seen {
    const clu_formation *newest;
    const bool *there;              /* [size] */
    const clu_rank_record *records; /* [size] */
    uint64_t placement;             /* newest version */
} clu_form_seen;

typedef enum clu_form_what {
    CLU_FORM_WAIT,    /* look again at `again_at`, or when something changes */
    CLU_FORM_JOIN,    /* try the newest formation; whatever is tried now ends */
    CLU_FORM_PROPOSE, /* `ranks` and `placement` as the next number */
    CLU_FORM_OUT,     /* the others go on without this rank */
    CLU_FORM_DOOMED,  /* the group failed and no other can come */
} clu_form_what;

typedef struct clu_form_action {
    clu_form_what what;
    uint64_t ranks, placement;
    sl_time_ns again_at;
} clu_form_action;

clu_form_action clu_form_decide(const clu_form *form, const clu_form_seen *seen, sl_time_ns now);

#ifdef __cplusplus
}
#endif
#endif
