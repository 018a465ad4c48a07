/* The ledger of a cluster's pages: what the nodes tell, taken in and judged.
 *
 * Pure: no network, no output. What comes from a node is untrusted: bounded, checked, never
 * believed where it can be counted. Thread: owner. */
#ifndef CLI_LEDGER_H
#define CLI_LEDGER_H

#include "base/bytes.h"
#include "proto/sluice/v1/node.pb-c.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CTL_PAGES_MAX      (1u << 24) /* of one tier of one node */
#define CTL_HOLDERS_MAX    1024u      /* of one node */
#define CTL_VIOLATIONS_MAX 1000u      /* told one by one; more are counted */
#define CTL_TEXT_MAX       160u

typedef struct ctl_holder {
    uint32_t id;
    bool sequence; /* of a decode node; else a job of a prefill node */
    char request_id[CTL_TEXT_MAX], state[32], router[CTL_TEXT_MAX], peer[CTL_TEXT_MAX];
    uint32_t epoch, deadline_ms;
    uint32_t pages; /* bound, as told page by page */
    uint32_t promised, transit;
    bool transfer; /* one end is open here, with: */
    bool receives;
    uint64_t nonce_high, nonce_low;
    uint32_t first_block, block_count, pieces;
} ctl_holder;

typedef struct ctl_page {
    uint8_t state; /* Sluice__V1__LedgerState */
    bool told;
    uint32_t shares; /* as the node counts */
    uint32_t bound;  /* as its holders' blocks count */
} ctl_page;

/* One node's. Zeroed at first. */
typedef struct ctl_ledger {
    char node[CTL_TEXT_MAX], role[32], state[32];
    bool begun; /* the totals are in */
    uint32_t page_count, slot_count;
    ctl_page *pages;
    uint8_t *slots; /* 0: not told; 1: free; 2: stored */
    uint32_t free_count, kept_count, promised, slots_free, moves; /* as the node counts */
    uint32_t transit, transit_free;
    uint32_t sends_open, recvs_open, quarantined;
    ctl_holder *holders;
    uint32_t holder_count;
    uint32_t strays; /* pages bound by nobody that is listed */
} ctl_ledger;

/* SL_INVALID, SL_TOO_LARGE: no ledger of ours. */
SL_MUST_USE sl_status ctl_ledger_add(ctl_ledger *ledger, const Sluice__V1__LedgerPart *part,
                                     sl_err *err);
void ctl_ledger_fini(ctl_ledger *ledger);

typedef struct ctl_violation {
    const char *name; /* "private-page-shared", a literal */
    bool moving;      /* between nodes that were not asked at the same moment: true if it stays */
    char *text;
} ctl_violation;

typedef struct ctl_violations {
    ctl_violation *items; /* at most CTL_VIOLATIONS_MAX */
    uint32_t count;
    uint64_t more;
} ctl_violations;

void ctl_violations_fini(ctl_violations *violations);
/* Drops the moving ones that `earlier` does not have. */
void ctl_violations_keep(ctl_violations *violations, const ctl_violations *earlier);

/* What one node's ledger says is of one moment: it must be right in itself. at_rest: and empty. */
void ctl_ledger_check(const ctl_ledger *ledger, bool at_rest, ctl_violations *violations);
/* Across nodes: transfers have two ends that agree, requests one place, routers a name. Decode
 * nodes were asked before prefill nodes. */
void ctl_cluster_check(const ctl_ledger *ledgers, size_t count, const char *const *routers,
                       size_t router_count, ctl_violations *violations);

#ifdef __cplusplus
}
#endif
#endif
