/* Memory nodes (NUMA): which CPUs belong to which, and the two things we do about it.
 *
 * Threads of a pool are spread over the nodes in equal shares and stay on their node; memory that
 * all of them read (the weights) is interleaved over the nodes page by page, so that no node's
 * channels are the bottleneck. With one node, or where the kernel does not tell, nothing is done.
 * Owns nothing; any thread. */
#ifndef BASE_NUMA_H
#define BASE_NUMA_H

#include <sched.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SL_NUMA_NODES_MAX 64

typedef struct sl_numa {
    uint32_t node_count; /* nodes with CPUs of ours, at least 1 */
    uint32_t ids[SL_NUMA_NODES_MAX];
    cpu_set_t cpus[SL_NUMA_NODES_MAX]; /* of ours; untouched where node_count is 1 */
} sl_numa;

/* "0-3,8,10-11" as in sysfs; false: not such a list, or a CPU beyond CPU_SETSIZE. */
bool sl_numa_parse_list(const char *text, cpu_set_t *out_cpus);
/* Reads DIRECTORY/online and DIRECTORY/node<i>/cpulist (NULL = the kernel's), keeps CPUs of
 * `usable`. */
void sl_numa_read(const char *directory, const cpu_set_t *usable, sl_numa *out_numa);
/* The node (index into ids) of thread `thread` of `thread_count`: threads in order, in equal
 * shares. */
uint32_t sl_numa_node_of(const sl_numa *numa, uint32_t thread, uint32_t thread_count);

/* This machine's nodes with the CPUs that the calling thread may use. */
void sl_numa_here(sl_numa *out_numa);
/* Keeps the calling thread on the CPUs of its node; advice, failure is ignored. */
void sl_numa_pin(const sl_numa *numa, uint32_t thread, uint32_t thread_count);
/* Before the memory is touched. Advice. */
void sl_numa_interleave(void *memory, size_t bytes);

#ifdef __cplusplus
}
#endif
#endif
