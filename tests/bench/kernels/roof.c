/* Roofs: see roof.h. Inline loops over registers, so that the compiler cannot shorten them. */
#include "tests/bench/kernels/roof.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <stdbool.h>

#define ROOF_CHAINS 16
/* The compiler may not know what a chain holds, so it can neither merge nor drop steps. */
#define HIDE(x) __asm__ volatile("" : "+v"(x))

#define ROOF(name, type, target_text, set1, step)                                \
    __attribute__((target(target_text))) static void name(void)                  \
    {                                                                            \
        type x[ROOF_CHAINS], a = set1(1.0f), b = set1(0.0f);                     \
        HIDE(a);                                                                 \
        HIDE(b);                                                                 \
        _Pragma("GCC unroll 16") for (int i = 0; i < ROOF_CHAINS; i++) x[i] = b; \
        for (uint32_t s = 0; s < ROOF_STEPS; s++) {                              \
            _Pragma("GCC unroll 16") for (int i = 0; i < ROOF_CHAINS; i++)       \
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
ROOF(muladd512, __m512, "avx512f", _mm512_set1_ps,
     _mm512_add_ps(x[i], hidden512(_mm512_mul_ps(a, b))))
ROOF(muladd256, __m256, "avx2,fma", _mm256_set1_ps,
     _mm256_add_ps(x[i], hidden256(_mm256_mul_ps(a, b))))

uint32_t roof_fma(void)
{
    if (__builtin_cpu_supports("avx512f")) {
        fma512();
        return 16;
    }
    fma256();
    return 8;
}

uint32_t roof_mul_add(void)
{
    if (__builtin_cpu_supports("avx512f")) {
        muladd512();
        return 16;
    }
    muladd256();
    return 8;
}

#define CONVERT_K 128 /* steps, each of four vectors of weights */
static uint8_t codes[CONVERT_K * 64] __attribute__((aligned(64)));
static float scalars[4][CONVERT_K];

/* Words of four codes: two shifts and masks of 16 bits, then of 32, give four vectors. */
#define CONVERT(name, type, words, target_text, p, half, si)                                     \
    __attribute__((target(target_text))) static inline                                           \
        __attribute__((always_inline)) void name##_rows(const int rows)                          \
    {                                                                                            \
        type sum[4][4];                                                                          \
        const words kept = p##_set1_epi16((short)0x87F0);                                        \
        const words upper = p##_set1_epi32((int)0xFFFF0000);                                     \
        _Pragma("GCC unroll 4") for (int r = 0; r < rows; r++)                                   \
            _Pragma("GCC unroll 4") for (int v = 0; v < 4; v++) sum[r][v] = p##_setzero_ps();    \
        const uint8_t *from = codes;                                                             \
        const float *a = scalars[0];                                                             \
        /* The compiler may not know what they hold. */                                          \
        __asm__ volatile("" : "+r"(from), "+r"(a));                                              \
        for (size_t k = 0; k < sizeof codes / sizeof(words); k++) {                              \
            words x = p##_loadu_##si((const void *)(from + k * sizeof(words)));                  \
            words odd = p##_and_##si(p##_srai_epi16(x, 4), kept);                                \
            words even = p##_and_##si(p##_srai_epi16(p##_slli_epi16(x, 8), 4), kept);            \
            type w[4] = {half(p##_slli_epi32(even, 16)), half(p##_slli_epi32(odd, 16)),          \
                         half(p##_and_##si(even, upper)), half(p##_and_##si(odd, upper))};       \
            _Pragma("GCC unroll 4") for (int v = 0; v < 4; v++)                                  \
                _Pragma("GCC unroll 4") for (int r = 0; r < rows; r++) sum[r][v] = p##_fmadd_ps( \
                    w[v], p##_set1_ps(a[r * CONVERT_K + (int)(k % CONVERT_K)]), sum[r][v]);      \
        }                                                                                        \
        _Pragma("GCC unroll 4") for (int r = 0; r < rows; r++)                                   \
            _Pragma("GCC unroll 4") for (int v = 0; v < 4; v++) HIDE(sum[r][v]);                 \
    }                                                                                            \
    __attribute__((target(target_text))) static void name(uint32_t rows)                         \
    {                                                                                            \
        if (rows == 1)                                                                           \
            name##_rows(1);                                                                      \
        else if (rows == 2)                                                                      \
            name##_rows(2);                                                                      \
        else                                                                                     \
            name##_rows(4);                                                                      \
    }
CONVERT(convert512, __m512, __m512i, "avx512f,avx512bw,fma", _mm512, _mm512_castsi512_ps, si512)
CONVERT(convert256, __m256, __m256i, "avx2,fma", _mm256, _mm256_castsi256_ps, si256)

size_t roof_convert(uint32_t rows)
{
    const size_t repeats = 2000;
    bool wide = __builtin_cpu_supports("avx512bw");
    for (size_t i = 0; i < repeats; i++)
        wide ? convert512(rows) : convert256(rows);
    return repeats * sizeof codes;
}

__attribute__((target("avx2"))) void roof_read(const void *memory, size_t bytes)
{
    const __m256i *p = memory;
    __m256i sum[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(),
                      _mm256_setzero_si256()};
    for (size_t i = 0; i < bytes / sizeof *p; i += 4)
        for (int j = 0; j < 4; j++)
            sum[j] = _mm256_add_epi64(sum[j], _mm256_loadu_si256(p + i + j));
    for (int j = 0; j < 4; j++)
        HIDE(sum[j]);
}
#else
#error "the kernel bench knows the roofs of x86-64 only"
#endif
