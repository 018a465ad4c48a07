/* Tiles: permission, configuration and instructions of AMX. Private to kernels/.
 *
 * A thread's eight tiles are state of that thread: a kernel begins with KRN_TILES_BEGIN and ends
 * with KRN_TILES_END, so that threads between tasks have no tiles to save. The instructions are
 * written here because gcc 12's intrinsics do not tell the compiler which memory they touch. */
#ifndef KERNELS_CPU_AMX_H
#define KERNELS_CPU_AMX_H

#include <stdbool.h>
#include <stdint.h>

/* True: the CPU has bf16 tiles and the kernel lets this process use them. Asks once. Any thread. */
bool krn_amx_usable(void);

#if defined(__x86_64__)

#define KRN_AMX_TARGET \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx2,fma,popcnt")))

/* What LDTILECFG reads. Tile t: rows[t] rows of row_bytes[t] bytes, at most 16 of 64. */
typedef struct krn_tiles {
    uint8_t palette; /* 1 */
    uint8_t start_row;
    uint8_t reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} __attribute__((aligned(64))) krn_tiles;

/* All eight tiles of 16 x 64 bytes. */
extern const krn_tiles krn_tiles_full;

#define KRN_TILES_BEGIN(tiles) __asm__ volatile("ldtilecfg %0" : : "m"(*(tiles)))
#define KRN_TILES_END()        __asm__ volatile("tilerelease")

/* t, c, a, b: literal tile numbers. stride: bytes between rows. */
#define KRN_TILE_ZERO(t) __asm__ volatile("tilezero %%tmm" #t : : :)
#define KRN_TILE_LOAD(t, from, stride)                                    \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t                      \
                     :                                                    \
                     : "r"((const void *)(from)), "r"((uint64_t)(stride)) \
                     : "memory")
#define KRN_TILE_STORE(t, to, stride)                             \
    __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)"          \
                     :                                            \
                     : "r"((void *)(to)), "r"((uint64_t)(stride)) \
                     : "memory")
/* c += a * b in the order of amx_order.h. */
#define KRN_TILE_DOT_BF16(c, a, b) \
    __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c : : :)

#endif
#endif
