/* Memory nodes from sysfs; placement by plain system calls, no library. Owns nothing. */
#include "base/numa.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/assert.h"

#define LIST_BYTES_MAX  4096
#define INTERLEAVE_MODE 3 /* MPOL_INTERLEAVE of linux/mempolicy.h */

bool sl_numa_parse_list(const char *text, cpu_set_t *out_cpus)
{
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    const char *at = text;
    while (*at && *at != '\n') {
        char *end;
        unsigned long first = strtoul(at, &end, 10), last = first;
        if (end == at || *at == '-')
            return false;
        if (*end == '-') {
            at = end + 1;
            last = strtoul(at, &end, 10);
            if (end == at || *at == '-')
                return false;
        }
        if (last < first || last >= CPU_SETSIZE)
            return false;
        for (unsigned long cpu = first; cpu <= last; cpu++)
            CPU_SET(cpu, &cpus);
        if (*end && *end != ',' && *end != '\n')
            return false;
        at = *end == ',' ? end + 1 : end;
    }
    *out_cpus = cpus;
    return true;
}

static bool read_list(const char *path, cpu_set_t *out_list)
{
    char text[LIST_BYTES_MAX];
    FILE *file = fopen(path, "re");
    if (!file)
        return false;
    bool good = fgets(text, sizeof(text), file) != NULL && sl_numa_parse_list(text, out_list);
    fclose(file);
    return good;
}

void sl_numa_read(const char *directory, const cpu_set_t *usable, sl_numa *out_numa)
{
    char path[512];
    cpu_set_t online;
    const char *root = directory ? directory : "/sys/devices/system/node";
    memset(out_numa, 0, sizeof(*out_numa));
    snprintf(path, sizeof(path), "%s/online", root);
    uint32_t count = 0;
    if (read_list(path, &online)) { /* a list of nodes looks like a list of CPUs */
        for (uint32_t id = 0; id < CPU_SETSIZE && count < SL_NUMA_NODES_MAX; id++) {
            snprintf(path, sizeof(path), "%s/node%u/cpulist", root, id);
            if (!CPU_ISSET(id, &online) || !read_list(path, &out_numa->cpus[count]))
                continue;
            CPU_AND(&out_numa->cpus[count], &out_numa->cpus[count], usable);
            if (CPU_COUNT(&out_numa->cpus[count]) > 0) /* memory only, or not ours */
                out_numa->ids[count++] = id;
        }
    }
    out_numa->node_count = count > 0 ? count : 1;
}

uint32_t sl_numa_node_of(const sl_numa *numa, uint32_t thread, uint32_t thread_count)
{
    sl_assert(thread < thread_count && numa->node_count > 0);
    return (uint32_t)((uint64_t)thread * numa->node_count / thread_count);
}

void sl_numa_here(sl_numa *out_numa)
{
    cpu_set_t usable;
    if (sched_getaffinity(0, sizeof(usable), &usable) != 0)
        CPU_ZERO(&usable);
    sl_numa_read(NULL, &usable, out_numa);
}

void sl_numa_pin(const sl_numa *numa, uint32_t thread, uint32_t thread_count)
{
    if (numa->node_count < 2)
        return;
    const cpu_set_t *cpus = &numa->cpus[sl_numa_node_of(numa, thread, thread_count)];
    (void)sched_setaffinity(0, sizeof(*cpus), cpus);
}

void sl_numa_interleave(void *memory, size_t bytes)
{
    sl_numa numa;
    sl_numa_here(&numa);
    if (numa.node_count < 2)
        return;
    unsigned long mask[CPU_SETSIZE / (8 * sizeof(unsigned long))] = {0};
    for (uint32_t i = 0; i < numa.node_count; i++)
        mask[numa.ids[i] / (8 * sizeof(unsigned long))] |=
            1ul << numa.ids[i] % (8 * sizeof(unsigned long));
    (void)syscall(SYS_mbind, memory, bytes, INTERLEAVE_MODE, mask, CPU_SETSIZE, 0);
}
