/* See faults.h. Each fault that begins posts its own end; heal ends all that are left. */
#include "tests/sim/faults.h"

#include "base/assert.h"
#include "node/internal.h"
#include "tests/sim/checker.h"
#include "tests/sim/cluster.h"
#include "tests/sim/disk.h"
#include "tests/sim/engine.h"
#include "tests/sim/rpc.h"

static sim_faults now_on; /* the drawn kinds; none after heal */

void sim_faults_draw(sim_faults *out)
{
    *out = (sim_faults){.none = sim_draw(10) == 0};
    if (out->none)
        return;
    bool *const KINDS[] = {&out->kills,     &out->pauses, &out->cuts,       &out->network,
                           &out->transfers, &out->slow,   &out->clocks,     &out->drains,
                           &out->etcd,      &out->resets, &out->steps_fail, &out->disks};
    for (uint32_t i = 0; i < sizeof(KINDS) / sizeof(KINDS[0]); i++)
        *KINDS[i] = sim_draw(2);
    out->count = 2 + (uint32_t)sim_draw(14);
}

static sim_process *any(void)
{
    return &sim.processes[sim_draw(sim.process_count)];
}

static sim_process *any_node(void)
{
    sim_process *process = any();
    while (process->role == SIM_ETCD || process->role == SIM_ROUTER)
        process = any();
    return process;
}

static sl_time_ns later(uint64_t low_ms, uint64_t high_ms)
{
    return sim.now + sim_between(low_ms * SL_MS_NS, high_ms * SL_MS_NS);
}

/* ---- processes */

static void on_start(void *context, uint64_t life)
{
    sim_process *process = context;
    if (!process->alive && process->life == life)
        sim_process_start(process);
}

static void kill_one(void)
{
    sim_process *process = any();
    if (!process->alive)
        return;
    sim_checker_note_fault();
    sim_process_kill(process, sim_draw(3) == 0);
    sim_post(later(50, 4000), on_start, process, process->life);
}

static void on_resume(void *context, uint64_t life)
{
    sim_process *process = context;
    if (process->life == life)
        sim_process_pause(process, false);
}

static void pause_one(void)
{
    sim_process *process = any();
    if (!process->alive || process->paused)
        return;
    sim_checker_note_fault();
    sim_process_pause(process, true);
    sim_post(later(1, sim_draw(3) ? 300 : 8000), on_resume, process, process->life);
}

static void on_slow_end(void *context, uint64_t tag)
{
    sim_process *process = context;
    process->lag_ns = 0;
    process->engine_percent = 100;
}

static void slow_one(void)
{
    sim_process *process = any();
    sim_checker_note_fault();
    if (sim_draw(2))
        process->lag_ns = sim_between(SL_MS_NS, 40 * SL_MS_NS);
    else
        process->engine_percent = sim_between(500, 5000);
    sim_trace("%s is slow", process->name);
    sim_post(later(200, 4000), on_slow_end, process, 0);
}

/* Rather one whose requests have to go elsewhere. */
static void drain_one(void)
{
    sim_process *process = any_node();
    for (uint32_t tries = 0; tries < 8; tries++) {
        const dec_service *decode = process->node ? process->node->decode : NULL;
        if (decode && dec_service_live(decode) > 0)
            break;
        process = any_node();
    }
    if (!process->alive || process->paused)
        return;
    sim_checker_note_fault();
    sim_process_terminate(process);
    sim_post(later(6000, 9000), on_start, process, process->life);
}

static void jump_one(void)
{
    sim_process *process = any();
    if (!process->alive)
        return;
    sim_checker_note_fault();
    process->clock_offset_ns += sim_between(SL_MS_NS, sim_draw(2) ? 500 * SL_MS_NS : 30 * SL_S_NS);
    process->held_until = sim.now;
    sim_trace("%s: its clock jumps", process->name);
    sim.kvt_dirty = true;
    if (!process->paused)
        sim_wake(process, sim.now);
}

/* ---- network */

static void on_mend(void *context, uint64_t tag)
{
    sim_process *a = context, *b = &sim.processes[tag >> 1];
    sim_cluster_cut(a, b, tag & 1, false);
}

static void cut_pair(sim_process *a, sim_process *b, bool both, sl_time_ns until)
{
    if (a == b || sim.cut[a->index][b->index] || sim.cut[b->index][a->index])
        return;
    if (both && a->node && b->node && (!a->alive || !b->alive))
        return;
    sim_cluster_cut(a, b, both, true);
    sim_post(until, on_mend, a, (uint64_t)b->index << 1 | both);
}

static void cut_some(void)
{
    sim_process *a = any();
    sl_time_ns until = later(20, sim_draw(2) ? 1000 : 9000);
    sim_checker_note_fault();
    if (sim_draw(3) > 0) {
        cut_pair(a, any(), sim_draw(3) > 0, until);
        return;
    }
    for (uint32_t i = 0; i < sim.process_count; i++) /* alone */
        cut_pair(a, &sim.processes[i], true, until);
}

/* Something between two that live ends their connections; what was on the way may be lost. */
static void on_reset(void *context, uint64_t tag)
{
    sim_process *a = context;
    uint64_t left = tag / SIM_PROCESSES_MAX;
    if (now_on.none)
        return;
    sim_checker_note_reset();
    sim_net_reset(a, &sim.processes[tag % SIM_PROCESSES_MAX], sim_draw(2));
    if (left > 0)
        sim_post(later(1, 25), on_reset, a, tag - SIM_PROCESSES_MAX);
}

static void reset_some(void)
{
    sim_process *router = any(), *node = any_node();
    while (router->role != SIM_ROUTER)
        router = any();
    sim_checker_note_fault();
    on_reset(router, sim_draw(120) * SIM_PROCESSES_MAX + node->index);
}

static void on_network_calm(void *context, uint64_t tag)
{
    sim.delay_min_ns = 20000;
    sim.delay_max_ns = 200000;
    sim.loss_ppm = 0;
}

static void network_bad(void)
{
    sim_checker_note_fault();
    sim.loss_ppm = (uint32_t)sim_between(1000, 300000);
    sim.delay_max_ns = sim_between(SL_MS_NS, 200 * SL_MS_NS);
    sim_trace("the network is bad");
    sim_post(later(100, 3000), on_network_calm, NULL, 0);
}

static void kvt_faults(bool bad)
{
    kvt_fake_faults faults = {.delay_min_ns = 5000, .delay_max_ns = 100000};
    if (bad) {
        faults.delay_max_ns = sim_between(100000, 50 * SL_MS_NS);
        faults.drop_ppm = sim_draw(2) ? (uint32_t)sim_draw(50000) : 0;
        faults.duplicate_ppm = sim_draw(2) ? (uint32_t)sim_draw(100000) : 0;
        faults.reorder_ppm = sim_draw(2) ? (uint32_t)sim_draw(200000) : 0;
        faults.corrupt_ppm = sim_draw(2) ? (uint32_t)sim_draw(100000) : 0;
    }
    kvt_fake_faults_set(sim.kvt, &faults);
}

static void on_transfers_calm(void *context, uint64_t tag)
{
    kvt_faults(false);
}

static void transfers_bad(void)
{
    sim_checker_note_fault();
    kvt_faults(true);
    sim_trace("transfers go wrong");
    sim_post(later(200, 4000), on_transfers_calm, NULL, 0);
}

/* ---- etcd, engine */

static void etcd_bad(void)
{
    sim_checker_note_fault();
    switch (sim_draw(3)) {
    case 0:
        sim_trace("etcd forgets its history");
        sim_etcd_compact(sim_cl.etcd);
        break;
    case 1:
        sim_trace("all leases end");
        sim_etcd_lose_leases(sim_cl.etcd);
        break;
    default:
        sim_process_kill(&sim.processes[0], sim_draw(2));
        sim_post(later(100, 9000), on_start, &sim.processes[0], sim.processes[0].life);
        break;
    }
}

static void on_steps_well(void *context, uint64_t tag)
{
    sim_step_fail_ppm = 0;
}

static void steps_fail(void)
{
    sim_checker_note_fault();
    sim_step_fail_ppm = (uint32_t)sim_between(1000, 100000);
    sim_trace("steps fail");
    sim_post(later(50, 500), on_steps_well, NULL, 0);
}

static void on_disks_well(void *context, uint64_t tag)
{
    sim_disk_heal();
}

/* Slow, up to what nobody waits for, or refusing. */
static void disks_bad(void)
{
    if (!sim_cl.shape.disk)
        return;
    sim_checker_note_fault();
    sim_disk.max_ns = sim_between(10 * SL_MS_NS, 5 * SL_S_NS);
    sim_disk.fail_ppm = (uint32_t)sim_draw(500000);
    sim_trace("disks are slow");
    sim_post(later(200, 5000), on_disks_well, NULL, 0);
}

/* ---- all */

static void on_fault(void *context, uint64_t tag)
{
    const struct {
        bool on;
        void (*fn)(void);
    } KINDS[] = {
        {now_on.kills, kill_one},          {now_on.pauses, pause_one},
        {now_on.cuts, cut_some},           {now_on.network, network_bad},
        {now_on.transfers, transfers_bad}, {now_on.slow, slow_one},
        {now_on.clocks, jump_one},         {now_on.drains, drain_one},
        {now_on.steps_fail, steps_fail},   {now_on.etcd, etcd_bad},
        {now_on.disks, disks_bad},         {now_on.resets, reset_some},
    };
    const uint32_t count = sizeof(KINDS) / sizeof(KINDS[0]);
    if (now_on.none)
        return;
    for (uint32_t tries = 0; tries < 100; tries++) {
        uint32_t kind = (uint32_t)sim_draw(count);
        if (!KINDS[kind].on)
            continue;
        KINDS[kind].fn();
        return;
    }
}

void sim_faults_plan(const sim_faults *faults)
{
    now_on = *faults;
    on_network_calm(NULL, 0);
    kvt_faults(false);
    for (uint32_t i = 0; i < faults->count; i++)
        sim_post(sim_between(faults->first_at, faults->last_at), on_fault, NULL, 0);
}

void sim_faults_heal(void)
{
    sim_trace("everything heals");
    now_on = (sim_faults){.none = true};
    on_network_calm(NULL, 0);
    kvt_faults(false);
    on_disks_well(NULL, 0);
    sim_step_fail_ppm = 0;
    for (uint32_t i = 0; i < sim.process_count; i++) {
        for (uint32_t k = 0; k < i; k++) {
            sim_process *a = &sim.processes[i], *b = &sim.processes[k];
            if (sim.cut[a->index][b->index])
                sim_cluster_cut(a, b, sim.cut[b->index][a->index], false);
            if (sim.cut[b->index][a->index])
                sim_cluster_cut(b, a, false, false);
        }
    }
    for (uint32_t i = 0; i < sim.process_count; i++) {
        sim_process *process = &sim.processes[i];
        process->lag_ns = 0;
        process->engine_percent = 100;
        sim_process_pause(process, false);
        if (!process->alive)
            sim_process_start(process);
    }
}
