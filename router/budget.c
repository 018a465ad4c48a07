/* The budget of recovery: see budget.h. Pure. */
#include "router/budget.h"

sl_time_ns rtr_budget_next(const rtr_budget *budget)
{
    bool may = budget->tokens_per_s == 0 || budget->spent_until < RTR_BUDGET_BURST_NS;
    return may ? 0 : budget->spent_until - RTR_BUDGET_BURST_NS;
}

bool rtr_budget_take(rtr_budget *budget, uint64_t tokens, sl_time_ns now)
{
    if (budget->tokens_per_s == 0)
        return true;
    if (now < rtr_budget_next(budget))
        return false;
    if (budget->spent_until < now)
        budget->spent_until = now;
    budget->spent_until += tokens * SL_S_NS / budget->tokens_per_s;
    return true;
}
