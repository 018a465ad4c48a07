/* See worlds.h. Owns nothing itself. */
#include "tests/sim/worlds.h"

#include "tests/sim/checker.h"
#include "tests/sim/client.h"
#include "tests/sim/cluster.h"
#include "tests/sim/disk.h"
#include "tests/sim/engine.h"
#include "tests/sim/rpc.h"

void sim_worlds_begin(uint64_t seed)
{
    sim_world_init(seed);
    sim_checker_init();
    sim_clients_init();
    sim_disk_init();
    sim_step_fail_ppm = 0;
}

bool sim_worlds_step(sl_time_ns end)
{
    if (!sim_step(end))
        return false;
    sim_cluster_reap();
    sim_checker_step();
    return true;
}

void sim_worlds_run(sl_time_ns end)
{
    while (sim_worlds_step(end))
        ;
}

void sim_worlds_end(void)
{
    sim_cluster_destroy();
    sim_clients_fini();
    while (sim_step_drop())
        ;
    sim_disk_fini();
    sim_net_fini();
    sim_world_fini();
}
