/* The kernels: every operation of the forward pass as plain functions over the caller's buffers.
 *
 * They know no requests and allocate nothing (krn_pool_create apart). This header includes the
 * others: numbers.h (bf16, e4m3), pool.h (threads), linear.h, cache.h, attention.h, indexer.h,
 * moe.h, draw.h; it adds norms, Q128 and the small row operations. bf16 is uint16_t, e4m3 is
 * uint8_t.
 * Functions named krn_plain_* are the same operations in f32 without Q128, Hadamard and bf16.
 *
 * CANONICAL ORDER "cpu-f32-v1" (frozen; another order is another numerics id). f32 throughout,
 * round to nearest even, subnormals kept. Every sum is ONE chain in ascending index order, one
 * rounding an addition, starting from +0:
 *  - fp8 linear: acc = 0; for each block b of 128 ascending: p = 0; p += A[k] * W[k] for k
 *    ascending (codes as f32, products exact); acc = acc + p * (sa[b] * sw[b]); output bf(acc).
 *  - bf16 linear: acc += x[k] * w[k] for k ascending over all of K; one rounding at the end.
 *  - products of two bf16 or two e4m3 numbers are exact, so fma and multiply-add agree; where a
 *    product would leave f32's normal range the fma is the definition. All other multiply-adds
 * round the product first (norms, P.V, index score over heads, combine, plain linear).
 *  - RMSNorm: s = f32(x) + f32(res); sum of s*s ascending; r = 1 / sqrt(sum / n + eps); output
 *    bf(w * (s * r)); the residual stored is bf(s). LayerNorm: mean = sum / n; var = sum of
 *    (z - mean)^2 / n; bf(((z - mean) / sqrt(var + eps)) * w + b).
 *  - Q128: a = max(max|x|, 1e-4), s = a * f32(1/448), raised to a power of two when asked;
 *    codes e4m3(clamp(x / s)).
 *  - rope: angle f32(f32(position) * frequency); cos and sin correctly rounded; products and their
 *    sum or difference each rounded; bf at the end.
 *  - Hadamard: butterfly stages, stride 1 first, (a + b, a - b); times f32(128^-0.5); bf.
 *  - index score: d = sum over 128 dimensions ascending; acc += max(d, 0) * a_h for h ascending;
 *    acc * sk. a_h = ((wt * f32(heads^-0.5)) * sq) * f32(128^-0.5).
 *  - attention: latent dot over 512 ascending, rope dot over 64 ascending, (latent + rope) * scale;
 *    maximum subtracted; e = exp correctly rounded; sum of e over slots ascending; p = e / sum;
 *    o[d] += p * c~ over slots ascending; bf. c~ = bf(code * scale).
 *  - silu(z) = z / (1 + exp(-z)); sigmoid = 1 / (1 + exp(-z)); bf(silu(g) * u).
 *  - router: sum of the chosen sigmoids ascending by id; w = (sg / sum) * scaling.
 *  - combine: acc += w * y over experts ascending, then + shared; bf.
 * Variants (plain C, AVX2, AVX-512) vectorise over independent outputs only and are bit-equal.
 *
 * CANONICAL ORDER "cpu-amx-v1" (frozen as well): as above, but for
 *  - fp8 linear: a block's p is the tile sum of its 128 k (cpu/amx_order.h: steps of 32 k, the even
 *    and the odd k of a step a chain each from zero, the two added, then added to p); acc as above.
 *  - bf16 linear: the tile sum over all of K, zeros up to a multiple of 32. Subnormals are zero.
 *  - index score: d = tile sums (cpu/amx_order.h) over 128 dimensions; lane h % 16 adds fma(max(d,
 *    0), a_h, .) for h ascending; lanes at distance 8, then 4, 2 and 1 are added; times sk.
 *  - attention: s = tile sums over 512 latent, then 64 rope dimensions, times scale. For chunks of
 *    256 of the list ascending: m' = max(m, chunk); f = exp(m - m'); total = total * f, then + each
 *    e = exp(s - m') ascending (krn_attend_exp). e's upper 16 bits and the rest, rounded to bf16
 *    half up, have a tile sum each over the chunk's slots, which goes on from f times what earlier
 *    chunks left. o = (high + low) * (1 / total), bf. cpu/amx_attend.h.
 *
 * Thread: krn_cpu_select at start; the rest from one thread at a time per pool. */
#ifndef KERNELS_KERNELS_H
#define KERNELS_KERNELS_H

#include "kernels/attention.h"
#include "kernels/cache.h"
#include "kernels/draw.h"
#include "kernels/indexer.h"
#include "kernels/linear.h"
#include "kernels/moe.h"
#include "kernels/numbers.h"
#include "kernels/pool.h"

#ifdef __cplusplus
extern "C" {
#endif

#define KRN_NUMERICS_F32 "cpu-f32-v1"
#define KRN_NUMERICS_AMX "cpu-amx-v1"

/* Chooses the variant: "amx", "avx512", "zen" (AVX2 of AMD's), "avx2", "ref", "amx-ref", a numerics
 * id (its best variant here), or NULL = SLUICE_CPU from the environment, else the best this CPU
 * has. Without a call the first kernel selects as for NULL. SL_UNSUPPORTED: the CPU lacks it;
 * SL_INVALID: no such variant. Not while kernels run. */
SL_MUST_USE sl_status krn_cpu_select(const char *variant, sl_err *err);
/* As krn_cpu_select(NULL), unless a variant was chosen before. */
SL_MUST_USE sl_status krn_cpu_ready(sl_err *err);
const char *krn_cpu_variant(void);
/* Of the variant: KRN_NUMERICS_F32 or KRN_NUMERICS_AMX. */
const char *krn_numerics_id(void);

/* x, res [rows][n] bf16 (res NULL: s = x) -> out [rows][n] bf16, out_res [rows][n] bf16 (NULL: not
 * wanted; may alias res). weight [n] bf16. False: NaN or infinity in s. */
SL_MUST_USE bool krn_rmsnorm_add(krn_pool *pool, const uint16_t *x, const uint16_t *res,
                                 const uint16_t *weight, float epsilon, uint32_t rows, uint32_t n,
                                 uint16_t *out, uint16_t *out_res);
/* z [n] bf16, weight and bias f32 -> bf16. One row. */
void krn_layernorm(const uint16_t *z, const float *weight, const float *bias, float epsilon,
                   uint32_t n, uint16_t *out);
/* x [rows][k] bf16, k a multiple of 128 -> out_codes [rows][k], out_scales [rows][k/128]. False:
 * NaN or infinity in x (the outputs are then unspecified). */
SL_MUST_USE bool krn_q128(krn_pool *pool, const uint16_t *x, uint32_t rows, uint32_t k, bool pow2,
                          uint8_t *out_codes, float *out_scales);
/* a = bf(silu(g) * u) elementwise; g and u may be two halves of one buffer, out may be g. */
void krn_silu_mul(krn_pool *pool, const uint16_t *g, const uint16_t *u, size_t count,
                  uint16_t *out_a);
/* Rows of table [..][hidden] bf16; ids are in range. */
void krn_embed(const uint16_t *table, const uint32_t *ids, uint32_t rows, uint32_t hidden,
               uint16_t *out_x);
/* exp correctly rounded to f32, the one the kernels use. */
float krn_exp(float x);
/* True when all values are finite. */
bool krn_finite(const float *values, size_t count);

/* ---- plain numerics */
SL_MUST_USE bool krn_plain_rmsnorm_add(krn_pool *pool, const float *x, const float *res,
                                       const float *weight, float epsilon, uint32_t rows,
                                       uint32_t n, float *out, float *out_res);
void krn_plain_layernorm(const float *z, const float *weight, const float *bias, float epsilon,
                         uint32_t n, float *out);
void krn_plain_silu_mul(krn_pool *pool, const float *g, const float *u, size_t count, float *out_a);

#ifdef __cplusplus
}
#endif
#endif
