/* Planted bugs: each breaks one rule where two shipped parts meet, in this program alone. The
 * checker must find each of them. */
#ifndef TESTS_SIM_PLANTS_H
#define TESTS_SIM_PLANTS_H

#include "base/status.h"

typedef enum sim_plant {
    SIM_PLANT_NONE,
    SIM_PLANT_FREE_EARLY_RECV, /* D gives pages back before its transfer has closed */
    SIM_PLANT_FREE_EARLY_SEND, /* P the same */
    SIM_PLANT_TWO_OWNERS,      /* the pool gives a page that somebody has */
    SIM_PLANT_DROP_TOKEN,      /* one of several tokens that come together is not delivered */
    SIM_PLANT_LOST_END,        /* an end is now and then forgotten */
    SIM_PLANT_LATE_ROUTER,     /* the router's deadlines pass 7 ms before they are looked at */
    SIM_PLANT_LATE_FETCH,      /* D waits 7 ms longer for a prefill than it was told to */
    SIM_PLANT_STALE_EPOCH,     /* what an older epoch or stream says is taken for the newest */
    SIM_PLANT_OPEN_DOOR,       /* the router's queue has no bound */
    SIM_PLANT_NO_SUMS,         /* what arrives is not verified */
    SIM_PLANT_LEAK,            /* P now and then forgets to close a sequence */
    SIM_PLANT_LATE_PARK,       /* D waits 7 ms longer for a router than it was told to */
    SIM_PLANT_WRONG_REPLAY,    /* D goes on one token too early when its router comes back */
    SIM_PLANT_NO_BUDGET,       /* all that was lost is computed again at once */
    SIM_PLANT_COUNT,
} sim_plant;

extern sim_plant sim_planted;

const char *sim_plant_name(sim_plant plant);
bool sim_plant_parse(const char *name, sim_plant *out_plant);

#endif
