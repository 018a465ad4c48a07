/* See balance.h. All routers are asked at once; one of them leads. */
#include "cli/balance.h"

#include <string.h>

ctl_balances ctl_balances_ask(ctl_session *session)
{
    static const Sluice__V1__GetBalanceRequest REQUEST = SLUICE__V1__GET_BALANCE_REQUEST__INIT;
    ctl_balances balances = {
        .session = session,
        .calls = ctl_ask_all_routers(session, &rpc_method_cluster_get_balance, &REQUEST.base)};
    for (size_t i = 0; i < ctl_session_count(session); i++) {
        const Sluice__V1__GetBalanceReply *reply =
            (const Sluice__V1__GetBalanceReply *)balances.calls[i].reply;
        if (reply && *reply->leader && strcmp(reply->leader, reply->router) == 0)
            balances.leader = reply;
    }
    return balances;
}

void ctl_balances_free(ctl_balances *balances)
{
    ctl_calls_free(balances->session, balances->calls);
    *balances = (ctl_balances){0};
}

const Sluice__V1__InstanceBalance *ctl_balances_find(const ctl_balances *balances,
                                                     const char *instance)
{
    for (size_t i = 0; balances->leader && i < balances->leader->n_instances; i++)
        if (strcmp(balances->leader->instances[i]->instance, instance) == 0)
            return balances->leader->instances[i];
    return NULL;
}
