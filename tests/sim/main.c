/* The simulator's driver: one seed is one history of a whole cluster; see README.md. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/log.h"
#include "tests/sim/checker.h"
#include "tests/sim/client.h"
#include "tests/sim/cluster.h"
#include "tests/sim/disk.h"
#include "tests/sim/engine.h"
#include "tests/sim/faults.h"
#include "tests/sim/plants.h"
#include "tests/sim/scenarios.h"
#include "tests/sim/worlds.h"

#define WARM_NS (3 * SL_S_NS)
#define END_NS  (120 * SL_S_NS) /* for everything to end once all is well */
#define REST_NS (45 * SL_S_NS)  /* for leases, stalls and idle transfers to run out */
#define PROBES  6u

typedef struct run_options {
    uint64_t first, last, steps_max;
    bool replay;
} run_options;

typedef struct totals {
    uint64_t seeds, steps, requests, answered, refused, broken, hung_up, tokens, faults, disk_reads;
    sim_counts seen;
} totals;

static void draw_shape(sim_shape *out)
{
    *out = (sim_shape){
        .routers = 1 + (uint32_t)sim_draw(2),
        .prefills = 1 + (uint32_t)sim_draw(3),
        .decodes = 1 + (uint32_t)sim_draw(3),
        .hybrids = sim_draw(4) == 0,
        .pages = 16 + (uint32_t)sim_draw(24),
        .sequences = 2 + (uint32_t)sim_draw(7),
        .queue_max = 2 + (uint32_t)sim_draw(7),
        .chunk_tokens = 32u << sim_draw(4),
        .mtp_depth = (uint32_t)sim_draw(3),
        .overcommit = sim_draw(2) ? 2.0 : 1.0,
        .self_prefill = sim_draw(2),
        .disk = sim_draw(3) == 0,
        .router_queue = sim_draw(4) == 0 ? 3 : 128,
        .place_ms = 20000,
        .queue_ms = 60000,
        .admit_ms = 4000, /* more than a slow disk is waited for */
        .progress_ms = 2500,
        .token_ms = 4000,
        .prefill_ms = 6000,
        .lease_ms = 3000,
    };
    static const uint64_t PARK_MS[] = {0, 200, 3000, 3000};
    out->park_ms = PARK_MS[sim_draw(4)];
    static const uint32_t RECOVERY_RATES[] = {0, 100, 1000, 20000};
    out->recovery_rate = RECOVERY_RATES[sim_draw(4)];
    out->attach_ms = PARK_MS[sim_draw(4)] * 2 / 3;
    static const uint32_t PULL_MINS[] = {0, 64, 64, 192};
    out->pull_min = PULL_MINS[sim_draw(4)];
    static const uint64_t KEEP_ALIVE_MS[] = {0, 50, 1000};
    out->keep_alive_ms = KEEP_ALIVE_MS[sim_draw(3)];
    if (out->disk) /* kept pages must go to be read again */
        out->pages = 11 + (uint32_t)sim_draw(8);
}

static void run_while_open(sl_time_ns end)
{
    while (sim_cls.open > 0 && sim_worlds_step(end))
        ;
}

/* Everything is well: what is asked now must be answered. */
static void probe(void)
{
    const sim_load calm = {
        .requests = PROBES,
        .first_at = sim.now,
        .last_at = sim.now + 2 * SL_S_NS,
        .prompt_max = 200,
        .tokens_max = 40,
        .calm = true,
    };
    sim_clients_plan(&calm);
    sim_worlds_run(calm.last_at);
    run_while_open(sim.now + END_NS);
}

static void live(void)
{
    sim_faults faults;
    sim_faults_draw(&faults);
    sim_worlds_run(sim.now + WARM_NS);
    faults.first_at = sim.now;
    faults.last_at = sim.now + sim_between(2, 12) * SL_S_NS;
    const sim_load load = {
        .requests = 10 + (uint32_t)sim_draw(60),
        .first_at = sim.now,
        .last_at = faults.last_at,
        .prompt_max = 40 + (uint32_t)sim_draw(SIM_PROMPT_MAX - 40),
        .tokens_max = 4 + (uint32_t)sim_draw(SIM_TOKENS_MAX - 4),
        .hang_up_ppm = sim_draw(2) ? 200000 : 0,
        .slow_ppm = sim_draw(2) ? 200000 : 0,
    };
    sim_clients_plan(&load);
    sim_faults_plan(&faults);
    sim_worlds_run(faults.last_at + SL_S_NS);
    if (!faults.none)
        sim_worlds_run(sim.now + sim_draw(5) * SL_S_NS);
    sim_faults_heal();
    run_while_open(sim.now + END_NS);
    /* Members whose leases were lost come back, nodes that were away are found again. */
    sim_worlds_run(sim.now + 15 * SL_S_NS);
    probe();
    sim_worlds_run(sim.now + REST_NS);
    sim_checker_rest();
}

static void add_up(totals *all)
{
    all->seeds++;
    all->steps += sim.steps;
    all->requests += sim_cls.count;
    all->answered += sim_cls.answered;
    all->refused += sim_cls.refused;
    all->broken += sim_cls.broken;
    all->hung_up += sim_cls.hung_up;
    all->tokens += sim_cls.tokens;
    all->faults += sim_checker_faults();
    all->seen.transfers += sim_seen.transfers;
    all->seen.transfers_failed += sim_seen.transfers_failed;
    all->disk_reads += sim_disk.reads;
    all->seen.retries += sim_seen.retries;
    all->seen.migrations += sim_seen.migrations;
    all->seen.moves += sim_seen.moves;
    all->seen.pulls += sim_seen.pulls;
    all->seen.parked += sim_seen.parked;
    all->seen.attached += sim_seen.attached;
}

static void run_seed(uint64_t seed, totals *all)
{
    static uint64_t base;
    sim_shape shape;
    sim_worlds_begin(seed);
    draw_shape(&shape);
    sim_cluster_create(&shape);
    live();
    add_up(all);
    sim_worlds_end();
    if (base == 0)
        base = sl_alloc_live(); /* what is kept from seed to seed */
    if (sl_alloc_live() == base)
        return;
    sl_alloc_print_live();
    sim_violation("nothing is left", "%llu allocations",
                  (unsigned long long)(sl_alloc_live() - base));
}

/* The same history again. */
static void replay(uint64_t seed)
{
    totals ignored = {0};
    uint64_t digest = sim.digest, steps = sim.steps;
    run_seed(seed, &ignored);
    if (sim.digest != digest || sim.steps != steps)
        sim_violation("one seed, one history", "%llu steps and %016llx, before %llu and %016llx",
                      (unsigned long long)sim.steps, (unsigned long long)sim.digest,
                      (unsigned long long)steps, (unsigned long long)digest);
}

static void show(const totals *all, double seconds)
{
    const struct {
        const char *name;
        uint64_t count;
    } ROWS[] = {
        {"requests", all->requests},
        {"answered exactly", all->answered},
        {"told an error", all->refused},
        {"lost their router", all->broken},
        {"hung up", all->hung_up},
        {"tokens", all->tokens},
        {"faults", all->faults},
        {"transfers", all->seen.transfers},
        {"transfers failed", all->seen.transfers_failed},
        {"prefills tried again", all->seen.retries},
        {"migrations", all->seen.migrations},
        {"of drains", all->seen.moves},
        {"pulls", all->seen.pulls},
        {"parked", all->seen.parked},
        {"attached again", all->seen.attached},
        {"blocks from disk", all->disk_reads},
    };
    printf("%llu seeds, %llu steps in %.1f s of CPU", (unsigned long long)all->seeds,
           (unsigned long long)all->steps, seconds);
    for (size_t i = 0; i < sizeof(ROWS) / sizeof(ROWS[0]); i++)
        printf("%s%s %llu", i ? ", " : ": ", ROWS[i].name, (unsigned long long)ROWS[i].count);
    putchar('\n');
}

static void run_seeds(const run_options *options)
{
    totals all = {0};
    struct timespec begin, end;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &begin);
    for (uint64_t seed = options->first; seed <= options->last; seed++) {
        run_seed(seed, &all);
        if (options->replay)
            replay(seed);
        if (options->steps_max && all.steps >= options->steps_max)
            break;
    }
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &end);
    show(&all, (double)(end.tv_sec - begin.tv_sec) + (double)(end.tv_nsec - begin.tv_nsec) / 1e9);
}

static void usage(FILE *out)
{
    fprintf(out,
            "sim [--seed N | --seeds A:B] [--steps N] [--plant NAME] [--replay] [--trace] [--log]\n"
            "sim --scenarios     the exact deadlines\n"
            "  --seeds A:B   histories A to B; ends at the first broken rule (exit code 1)\n"
            "  --steps N     stops after the seed with which there were so many steps\n"
            "  --plant NAME  with a planted bug: ");
    for (int i = 1; i < SIM_PLANT_COUNT; i++)
        fprintf(out, "%s%s", sim_plant_name((sim_plant)i), i + 1 < SIM_PLANT_COUNT ? ", " : "\n");
    fprintf(out, "  --replay      each seed twice: the histories must be equal\n"
                 "  --trace       what happens, on stderr; --log: also what the processes log\n");
}

int main(int argc, char **argv)
{
    run_options options = {.first = 1, .last = 1};
    bool scenarios = false;
    setvbuf(stdout, NULL, _IOLBF, 0);
    sl_log_set_name("sim");
    sl_log_set_level(SL_LOG_ERROR);
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        char *end = NULL;
        if (strcmp(argv[i], "--seed") == 0 && i++)
            options.first = options.last = strtoull(value, NULL, 10);
        else if (strcmp(argv[i], "--seeds") == 0 && i++ &&
                 (options.first = strtoull(value, &end, 10), *end == ':'))
            options.last = strtoull(end + 1, NULL, 10);
        else if (strcmp(argv[i], "--steps") == 0 && i++)
            options.steps_max = strtoull(value, NULL, 10);
        else if (strcmp(argv[i], "--plant") == 0 && sim_plant_parse(value, &sim_planted))
            i++;
        else if (strcmp(argv[i], "--replay") == 0)
            options.replay = true;
        else if (strcmp(argv[i], "--trace") == 0)
            sim.traced = true;
        else if (strcmp(argv[i], "--log") == 0)
            sl_log_set_level(SL_LOG_DEBUG);
        else if (strcmp(argv[i], "--scenarios") == 0)
            scenarios = true;
        else if (strcmp(argv[i], "--help") == 0)
            return usage(stdout), 0;
        else
            return usage(stderr), 2;
    }
    sim_cluster_load();
    int code = 0;
    if (scenarios)
        code = sim_scenarios();
    else
        run_seeds(&options);
    sim_engine_fini();
    return code;
}
