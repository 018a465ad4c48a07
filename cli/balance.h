/* What the leading router knows of the balance of instances, and does about it. Thread: the
 * program's one. */
#ifndef CLI_BALANCE_H
#define CLI_BALANCE_H

#include "cli/session.h"
#include "proto/sluice/v1/cluster.pb-c.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ctl_balances {
    ctl_session *session;
    ctl_call *calls;
    const Sluice__V1__GetBalanceReply *leader; /* NULL: none answers */
} ctl_balances;

ctl_balances ctl_balances_ask(ctl_session *session);
void ctl_balances_free(ctl_balances *balances);
/* NULL: the leader does not know of it. */
const Sluice__V1__InstanceBalance *ctl_balances_find(const ctl_balances *balances,
                                                     const char *instance);

#ifdef __cplusplus
}
#endif
#endif
