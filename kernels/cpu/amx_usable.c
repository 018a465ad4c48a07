/* Whether tiles may be used: the CPU has them and the kernel allows their state. */
#include "kernels/cpu/amx.h"

#if defined(__x86_64__)

#include <cpuid.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

#define REQUEST_PERMISSION 0x1023 /* arch_prctl: ARCH_REQ_XCOMP_PERM */
#define TILE_DATA          18     /* state component */

_Static_assert(sizeof(krn_tiles) == 64, "LDTILECFG reads 64 bytes");

const krn_tiles krn_tiles_full = {
    .palette = 1,
    .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
    .rows = {16, 16, 16, 16, 16, 16, 16, 16},
};

static bool cpu_has_tiles(void)
{
    const unsigned bf16 = 1u << 22, tile = 1u << 24;
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & bf16) != 0 && (d & tile) != 0;
}

bool krn_amx_usable(void)
{
    static atomic_int answer; /* 0: not asked, 1: no, 2: yes; threads that race ask twice */
    int known = atomic_load_explicit(&answer, memory_order_relaxed);
    if (known == 0) {
        known =
            cpu_has_tiles() && syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0 ? 2 : 1;
        atomic_store_explicit(&answer, known, memory_order_relaxed);
    }
    return known == 2;
}

#else

bool krn_amx_usable(void)
{
    return false;
}

#endif
