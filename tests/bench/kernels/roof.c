/* Roofs: see roof.h. Inline loops over registers, so that the compiler cannot shorten them. */
#include "tests/bench/kernels/roof.h"

#include "kernels/cpu/amx.h"
#include "tests/bench/kernels/roof_paths.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <stdbool.h>
#include <stdio.h>

#define ROOF_CHAINS 12 /* with two operands they fit into 16 registers */
#define ROOF_STEPS  200000u
/* The compiler may not know what a chain holds, so it can neither merge nor drop steps. */
#define HIDE(x) __asm__ volatile("" : "+v"(x))

#define ROOF(name, type, target_text, set1, step)                                \
    __attribute__((target(target_text))) static void name(void)                  \
    {                                                                            \
        type x[ROOF_CHAINS], a = set1(1.0f), b = set1(0.0f);                     \
        HIDE(a);                                                                 \
        HIDE(b);                                                                 \
        _Pragma("GCC unroll 12") for (int i = 0; i < ROOF_CHAINS; i++) x[i] = b; \
        for (uint32_t s = 0; s < ROOF_STEPS; s++) {                              \
            _Pragma("GCC unroll 12") for (int i = 0; i < ROOF_CHAINS; i++)       \
            {                                                                    \
                x[i] = step;                                                     \
                HIDE(x[i]);                                                      \
            }                                                                    \
        }                                                                        \
    }

static __attribute__((target("avx512f"))) __m512 hidden512(__m512 x)
{
    HIDE(x);
    return x;
}
static __attribute__((target("avx2,fma"))) __m256 hidden256(__m256 x)
{
    HIDE(x);
    return x;
}
ROOF(fma512, __m512, "avx512f", _mm512_set1_ps, _mm512_fmadd_ps(a, b, x[i]))
ROOF(fma256, __m256, "avx2,fma", _mm256_set1_ps, _mm256_fmadd_ps(a, b, x[i]))
static inline __attribute__((always_inline, target("avx512f"))) __m512 add_pairs(__m512 acc,
                                                                                 __m512 a, __m512 b)
{
    __asm__("vdpbf16ps %1, %2, %0" : "+v"(acc) : "v"(a), "v"(b));
    return acc;
}
ROOF(pairs512, __m512, "avx512f", _mm512_set1_ps, add_pairs(x[i], a, b))
ROOF(muladd512, __m512, "avx512f", _mm512_set1_ps,
     _mm512_add_ps(x[i], hidden512(_mm512_mul_ps(a, b))))
ROOF(muladd256, __m256, "avx2,fma", _mm256_set1_ps,
     _mm256_add_ps(x[i], hidden256(_mm256_mul_ps(a, b))))

double roof_fma(uint32_t lanes)
{
    lanes == 16 ? fma512() : fma256();
    return 2.0 * ROOF_CHAINS * lanes * ROOF_STEPS;
}

double roof_mul_add(uint32_t lanes)
{
    lanes == 16 ? muladd512() : muladd256();
    return 2.0 * ROOF_CHAINS * lanes * ROOF_STEPS;
}

double roof_pairs(void)
{
    pairs512();
    return 4.0 * ROOF_CHAINS * 16 * ROOF_STEPS;
}

double roof_tiles(void)
{
    const uint32_t steps = 25000;
    KRN_TILES_BEGIN(&krn_tiles_full);
    for (uint32_t s = 0; s < steps; s++) {
        KRN_TILE_DOT_BF16(0, 4, 6);
        KRN_TILE_DOT_BF16(1, 4, 7);
        KRN_TILE_DOT_BF16(2, 5, 6);
        KRN_TILE_DOT_BF16(3, 5, 7);
    }
    KRN_TILES_END();
    return 4.0 * 2 * 16 * 16 * 32 * steps;
}

/* Streams lie a panel of weights apart: at powers of two they would meet in the caches' sets. */
#define READ_PANEL ((size_t)57 * 4096)

/* `streams` panels at once, four lines of each in turn; what comes `ahead` bytes later is fetched,
 * at a panel's end of the next panels. */
#define READ(name, type, target_text, load, add, zero)                                    \
    __attribute__((target(target_text), always_inline)) static inline void name(          \
        const size_t streams, const size_t ahead, const char *memory)                     \
    {                                                                                     \
        type sum[4] = {zero(), zero(), zero(), zero()};                                   \
        for (size_t i = 0; i < READ_PANEL; i += 256) {                                    \
            const size_t later = i + ahead < READ_PANEL ? 0 : (streams - 1) * READ_PANEL; \
            _Pragma("GCC unroll 8") for (size_t s = 0; s < streams; s++)                  \
                _Pragma("GCC unroll 4") for (size_t line = 0; line < 4; line++)           \
            {                                                                             \
                const char *p = memory + s * READ_PANEL + i + line * 64;                  \
                if (ahead > 0)                                                            \
                    _mm_prefetch(p + later + ahead, _MM_HINT_T0);                         \
                _Pragma("GCC unroll 2") for (size_t at = 0; at < 64; at += sizeof(type))  \
                    sum[line] = add(sum[line], load((const type *)(p + at)));             \
            }                                                                             \
        }                                                                                 \
        for (int line = 0; line < 4; line++)                                              \
            HIDE(sum[line]);                                                              \
    }
READ(read256, __m256i, "avx2", _mm256_load_si256, _mm256_add_epi64, _mm256_setzero_si256)
READ(read512, __m512i, "avx512f", _mm512_load_si512, _mm512_add_epi64, _mm512_setzero_si512)

#define LINES(name, type, target_text, load, add, zero)                                     \
    __attribute__((target(target_text))) static void name(const char *memory, size_t bytes) \
    {                                                                                       \
        type sum[8] = {zero(), zero(), zero(), zero(), zero(), zero(), zero(), zero()};     \
        for (size_t i = 0; i < bytes; i += 8 * sizeof(type))                                \
            _Pragma("GCC unroll 8") for (size_t v = 0; v < 8; v++) sum[v] =                 \
                add(sum[v], load((const type *)(memory + i) + v));                          \
        for (int v = 0; v < 8; v++)                                                         \
            HIDE(sum[v]);                                                                   \
    }
LINES(line256, __m256i, "avx2", _mm256_load_si256, _mm256_add_epi64, _mm256_setzero_si256)
LINES(line512, __m512i, "avx512f", _mm512_load_si512, _mm512_add_epi64, _mm512_setzero_si512)

#define LOOP(streams, ahead)                                                                       \
    __attribute__((target("avx2"))) static void read256_##streams##_##ahead(const char *memory)    \
    {                                                                                              \
        read256(streams, ahead, memory);                                                           \
    }                                                                                              \
    __attribute__((target("avx512f"))) static void read512_##streams##_##ahead(const char *memory) \
    {                                                                                              \
        read512(streams, ahead, memory);                                                           \
    }
#define LOOP_ENTRY(streams, ahead) \
    {streams, ahead, read256_##streams##_##ahead, read512_##streams##_##ahead},
#define LOOPS(do)                                                                         \
    do                                                                                    \
    (1, 0) do(2, 0) do(4, 0) do(8, 0) do(1, 2048) do(2, 2048) do(4, 2048) do(8, 2048) do( \
        1, 4096) do(2, 4096) do(4, 4096) do(8, 4096)
LOOPS(LOOP)

static const struct read_loop {
    uint32_t streams, ahead;
    void (*narrow)(const char *memory);
    void (*wide)(const char *memory);
} READ_LOOPS[ROOF_READ_LOOPS] = {LOOPS(LOOP_ENTRY)};

double roof_read(uint32_t loop, uint32_t lanes, const void *memory, size_t bytes)
{
    const struct read_loop *l = &READ_LOOPS[loop];
    const size_t group = l->streams * READ_PANEL;
    size_t done = 0;
    for (; done + group <= bytes; done += group)
        (lanes == 16 ? l->wide : l->narrow)((const char *)memory + done);
    return (double)done;
}

void roof_read_tell(uint32_t loop)
{
    printf("%u streams, fetched %u bytes ahead", READ_LOOPS[loop].streams, READ_LOOPS[loop].ahead);
}

double roof_read_cache(uint32_t lanes, const void *memory, size_t bytes)
{
    lanes == 16 ? line512(memory, bytes) : line256(memory, bytes);
    return (double)bytes;
}

double roof_convert(roof_path path, uint32_t rows)
{
    static double (*const PATHS[ROOF_PATH_COUNT])(uint32_t rows) = {
        [ROOF_PATH_F32_8] = roof_convert8,      [ROOF_PATH_ZEN] = roof_convert_zen,
        [ROOF_PATH_F32_16] = roof_convert16,    [ROOF_PATH_ZEN4] = roof_convert_zen4,
        [ROOF_PATH_TILES] = roof_convert_tiles,
    };
    return PATHS[path](rows);
}
#else
#error "the kernel bench knows the roofs of x86-64 only"
#endif
