/* Roofs: see roof.h. Inline loops over registers, so that the compiler cannot shorten them. */
#include "tests/bench/kernels/roof.h"

#if defined(__x86_64__)
#include <immintrin.h>

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
