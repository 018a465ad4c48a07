/* Ranks as processes, each with a GPU: what the test and the bench of comm/nccl share. A rank is
 * this program again; contacts go through pipes, as they go through etcd in a cluster. */
#ifndef TESTS_CUDA_COMM_RANKS_H
#define TESTS_CUDA_COMM_RANKS_H

#include <limits.h>
#include <signal.h>

#include "comm/nccl.h"
#include "comm/ucx.h"
#include "kernels/cuda/load.h"
#include "tests/unit/child.h"
#include "tests/unit/comm/device_kit.h"

#define LINE 1024

static const krn_cuda_api *gpu;
static const com_device_api *nccl;

/* An object beside this program. */
static inline const char *beside(const char *name)
{
    static char path[PATH_MAX];
    char self[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", self, sizeof(self) - 1);
    self[length < 0 ? 0 : length] = '\0';
    snprintf(path, sizeof(path), "%.*s/%s", (int)(strrchr(self, '/') - self), self, name);
    return path;
}

/* Devices of this machine; 0, loudly, if there are none. */
static inline uint32_t devices_find(void)
{
    sl_err err;
    krn_cuda_device device;
    uint32_t count = 0;
    if (!sl_is_ok(com_nccl_load(beside("libsluice_nccl.so"), &nccl, &err)) ||
        !sl_is_ok(krn_cuda_load(beside("libsluice_cuda.so"), 0, &gpu, &device, &err))) {
        printf("SKIPPED, NOTHING WAS TESTED: %s\n", err.text);
        return 0;
    }
    if (nccl->device_count(&count) != COM_DEVICE_OK)
        printf("SKIPPED, NOTHING WAS TESTED: %s\n", nccl->last_error());
    printf("%u of %s, driver %d, NCCL %u\n", count, device.name, device.driver_version,
           nccl->library_version());
    return count;
}

/* ---- the child's side */

typedef struct rank_arguments {
    uint32_t rank, size, device, wait_ms;
    const char *what;
} rank_arguments;

static inline rank_arguments rank_arguments_read(char **argv)
{
    return (rank_arguments){(uint32_t)atoi(argv[2]), (uint32_t)atoi(argv[3]),
                            (uint32_t)atoi(argv[4]), (uint32_t)atoi(argv[5]), argv[6]};
}

/* A line to the test. */
static inline void tell(const char *format, ...) __attribute__((format(printf, 1, 2)));
static inline void tell(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    printf("\n");
    fflush(stdout);
}

/* A group of processes that is connected. */
static inline void rank_group(dk_rank *k, const rank_arguments *a, const dk_shape *shape)
{
    static char contacts[COM_RANKS_MAX][COM_CONTACT_MAX];
    const char *list[COM_RANKS_MAX];
    sl_err err;
    krn_cuda_device device;
    const com_options options = {.instance = "test",
                                 .rank = a->rank,
                                 .rank_count = a->size,
                                 .listen = "127.0.0.1:0",
                                 .wait_ns = a->wait_ms * SL_MS_NS,
                                 .backend = &com_backend_ucx};
    assert_ok(com_nccl_load(beside("libsluice_nccl.so"), &nccl, &err), &err);
    assert_ok(krn_cuda_load(beside("libsluice_cuda.so"), (int32_t)a->device, &gpu, &device, &err),
              &err);
    assert_int_equal(gpu->stream_create(&k->stream), KRN_CUDA_OK);
    dk_layout(k, shape, a->size, UINT64_MAX >> (64 - a->size));
    assert_ok(com_group_open(&options, &k->group, &err), &err);
    tell("%s", com_group_contact(k->group));
    for (uint32_t r = 0; r < a->size; r++) {
        char line[LINE];
        assert_non_null(fgets(line, sizeof(line), stdin));
        line[strcspn(line, "\n")] = '\0';
        snprintf(contacts[r], COM_CONTACT_MAX, "%.300s", line);
        list[r] = contacts[r];
    }
    assert_ok(com_group_connect(k->group, list, &k->layout, sl_now_ns() + DK_CONNECT_S * SL_S_NS,
                                NULL, &err),
              &err);
}

static inline sl_status rank_device(dk_rank *k, const rank_arguments *a, uint64_t within_ms,
                                    sl_err *err)
{
    const com_device_options options = {
        .group = k->group, .api = k->api, .stream = k->stream, .device = (int32_t)a->device};
    return com_device_open(&options, sl_now_ns() + within_ms * SL_MS_NS, NULL, &k->device, err);
}

/* Until the test says that all are done. */
static inline void rank_rest(void)
{
    char line[LINE];
    assert_non_null(fgets(line, sizeof(line), stdin));
}

/* ---- the test's side */

/* Starts ranks, rank r on device r % devices, and brings their contacts round. */
static inline void ranks_start(child *children, uint32_t size, uint32_t devices, uint32_t wait_ms,
                               const char *what)
{
    static char contacts[COM_RANKS_MAX][LINE];
    for (uint32_t r = 0; r < size; r++) {
        char numbers[4][16];
        const uint32_t values[4] = {r, size, r % devices, wait_ms};
        for (int i = 0; i < 4; i++)
            snprintf(numbers[i], sizeof(numbers[i]), "%u", values[i]);
        char *arguments[] = {"test",     "rank",     numbers[0],   numbers[1],
                             numbers[2], numbers[3], (char *)what, NULL};
        children[r] = child_start(arguments, "tcp,shm,self");
    }
    for (uint32_t r = 0; r < size; r++)
        child_line(&children[r], contacts[r], LINE);
    for (uint32_t r = 0; r < size; r++) {
        for (uint32_t i = 0; i < size; i++)
            fputs(contacts[i], children[r].in);
        fflush(children[r].in);
    }
}

/* Lets them end; waits for each but the one that was killed or stopped (size: none). */
static inline void ranks_end(child *children, uint32_t size, uint32_t but)
{
    for (uint32_t r = 0; r < size; r++) {
        if (r == but)
            continue;
        fputs("end\n", children[r].in);
        fflush(children[r].in);
    }
    if (but < size)
        kill(children[but].pid, SIGKILL);
    for (uint32_t r = 0; r < size; r++) {
        int status = child_wait(&children[r]);
        if (r != but && (!WIFEXITED(status) || WEXITSTATUS(status) != 0))
            fail_msg("rank %u ended with status %d", r, status);
    }
}

#endif
