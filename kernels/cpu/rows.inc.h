/* Template: norms, Q128, SwiGLU product, Hadamard, combine. The including file defines V(x) and
 * LANES. Ends of rows that are no multiple of the lanes are done one by one. */

VEC_INLINE V(f) norm_input(const uint16_t *x, const uint16_t *res)
{
    return res ? V(add)(V(from_bf16)(x), V(from_bf16)(res)) : V(from_bf16)(x);
}

VEC_INLINE float norm_input_one(const uint16_t *x, const uint16_t *res)
{
    return res ? krn_bf16_to_f32(*x) + krn_bf16_to_f32(*res) : krn_bf16_to_f32(*x);
}

/* Sums of squares of 8 rows: 8 chains in the lanes of one vector, by transposing 8x8 squares. n is
 * a multiple of 8. */
VEC_INLINE v8_f squares_of_8(const uint16_t *x, const uint16_t *res, uint32_t n, uint32_t from,
                             v8_f sum)
{
    v8_f square[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        v8_f s = v8_from_bf16(x + (size_t)i * n + from);
        if (res)
            s = v8_add(s, v8_from_bf16(res + (size_t)i * n + from));
        square[i] = v8_mul(s, s);
    }
    v8_transpose(square);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        sum = v8_add(sum, square[i]);
    return sum;
}

KRN_VEC_TARGET static void squares(const uint16_t *x, const uint16_t *res, uint32_t rows,
                                   uint32_t n, float *out_sums)
{
    if (rows == 16 && n % 8 == 0) {
        v8_f low = v8_zero(), high = v8_zero();
        size_t half = (size_t)8 * n;
        for (uint32_t j = 0; j < n; j += 8) {
            low = squares_of_8(x, res, n, j, low);
            high = squares_of_8(x + half, res ? res + half : NULL, n, j, high);
        }
        v8_store(out_sums, low);
        v8_store(out_sums + 8, high);
        return;
    }
    for (uint32_t t = 0; t < rows; t++) {
        float sum = 0.0f;
        for (size_t j = (size_t)t * n; j < (size_t)(t + 1) * n; j++) {
            float s = norm_input_one(x + j, res ? res + j : NULL);
            float square = s * s;
            sum = sum + square;
        }
        out_sums[t] = sum;
    }
}

VEC_INLINE void norm_row(const uint16_t *x, const uint16_t *res, const uint16_t *weight, float r,
                         uint32_t n, uint16_t *out, uint16_t *out_res)
{
    uint32_t j = 0;
    for (; j + LANES <= n; j += LANES) {
        V(f) s = norm_input(x + j, res ? res + j : NULL);
        V(f) y = V(mul)(V(from_bf16)(weight + j), V(mul)(s, V(set1)(r)));
        V(store_bf16)(out + j, y);
        if (out_res)
            V(store_bf16)(out_res + j, s);
    }
    for (; j < n; j++) {
        float s = norm_input_one(x + j, res ? res + j : NULL);
        float scaled = s * r;
        out[j] = krn_f32_to_bf16(krn_bf16_to_f32(weight[j]) * scaled);
        if (out_res)
            out_res[j] = krn_f32_to_bf16(s);
    }
}

KRN_VEC_TARGET static bool rmsnorm(const uint16_t *x, const uint16_t *res, const uint16_t *weight,
                                   float epsilon, uint32_t rows, uint32_t n, uint16_t *out,
                                   uint16_t *out_res)
{
    bool finite = true;
    for (uint32_t t = 0; t < rows; t += 16) {
        float sums[16];
        uint32_t count = rows - t < 16 ? rows - t : 16;
        squares(x + (size_t)t * n, res ? res + (size_t)t * n : NULL, count, n, sums);
        for (uint32_t i = 0; i < count; i++) {
            size_t at = (size_t)(t + i) * n;
            finite = finite && isfinite(sums[i]);
            float r = 1.0f / sqrtf(sums[i] / (float)n + epsilon);
            norm_row(x + at, res ? res + at : NULL, weight, r, n, out + at,
                     out_res ? out_res + at : NULL);
        }
    }
    return finite;
}

/* Largest magnitude bits of 128 bf16. */
VEC_INLINE uint32_t largest_of_group(const uint16_t *x)
{
    __m256i largest = _mm256_setzero_si256();
    __m256i mask = _mm256_set1_epi16(0x7FFF);
    for (int j = 0; j < (int)KRN_BLOCK; j += 16)
        largest = _mm256_max_epu16(
            largest, _mm256_and_si256(_mm256_loadu_si256((const __m256i *)(x + j)), mask));
    __m128i m =
        _mm_max_epu16(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
    /* minpos finds the smallest: of the complement. */
    m = _mm_minpos_epu16(_mm_xor_si128(m, _mm_set1_epi16(-1)));
    return ~(uint32_t)_mm_extract_epi16(m, 0) & 0xFFFFu;
}

KRN_VEC_TARGET static bool q128(const uint16_t *x, uint32_t rows, uint32_t k, bool pow2,
                                uint8_t *out_codes, float *out_scales)
{
    bool finite = true;
    size_t groups = (size_t)rows * (k / KRN_BLOCK);
    for (size_t group = 0; group < groups; group++, x += KRN_BLOCK, out_codes += KRN_BLOCK) {
        uint32_t largest = largest_of_group(x);
        finite = finite && largest < 0x7F80u;
        float scale = krn_q128_scale(krn_bf16_to_f32((uint16_t)largest), pow2);
        out_scales[group] = scale;
        if (pow2) {
            /* Both quotient and product are the rounded exact value. */
            V(f) inverse = V(set1)(1.0f / scale);
            for (int j = 0; j < (int)KRN_BLOCK; j += LANES)
                V(store_e4m3)(out_codes + j, V(mul)(V(from_bf16)(x + j), inverse));
        } else {
            V(f) divisor = V(set1)(scale);
            for (int j = 0; j < (int)KRN_BLOCK; j += LANES)
                V(store_e4m3)(out_codes + j, V(div)(V(from_bf16)(x + j), divisor));
        }
    }
    return finite;
}

KRN_VEC_TARGET static void silu_mul(const uint16_t *g, const uint16_t *u, size_t count,
                                    uint16_t *out_a)
{
    size_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        V(f) z = V(from_bf16)(g + i);
        V(f) silu = V(div)(z, V(add)(V(set1)(1.0f), V(exp)(V(negate)(z))));
        V(store_bf16)(out_a + i, V(mul)(silu, V(from_bf16)(u + i)));
    }
    for (; i < count; i++) {
        float z = krn_bf16_to_f32(g[i]);
        float silu = z / (1.0f + krn_exp(-z));
        out_a[i] = krn_f32_to_bf16(silu * krn_bf16_to_f32(u[i]));
    }
}

/* Butterfly inside a vector of 8: partner is the shuffled vector, high elements are negated. */
VEC_INLINE v8_f butterfly(v8_f x, v8_f partner, __m256i high)
{
    return v8_add(partner, _mm256_xor_ps(x, _mm256_castsi256_ps(high)));
}

KRN_VEC_TARGET static void hadamard(uint16_t *x)
{
    const int n = (int)0x80000000;
    const __m256i high1 = _mm256_setr_epi32(0, n, 0, n, 0, n, 0, n);
    const __m256i high2 = _mm256_setr_epi32(0, 0, n, n, 0, 0, n, n);
    const __m256i high4 = _mm256_setr_epi32(0, 0, 0, 0, n, n, n, n);
    v8_f a[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
        v8_f v = v8_from_bf16(x + 8 * i);
        v = butterfly(v, _mm256_permute_ps(v, 0xB1), high1);
        v = butterfly(v, _mm256_permute_ps(v, 0x4E), high2);
        a[i] = butterfly(v, _mm256_permute2f128_ps(v, v, 0x01), high4);
    }
#pragma GCC unroll 4
    for (int stride = 1; stride < 16; stride *= 2) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {
            if (i & stride)
                continue;
            v8_f low = a[i], high = a[i + stride];
            a[i] = v8_add(low, high);
            a[i + stride] = v8_sub(low, high);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        v8_store_bf16(x + 8 * i, v8_mul(a[i], v8_set1(0.08838834764831845f)));
}

KRN_VEC_TARGET static void combine(const uint16_t *outputs, const uint32_t *places,
                                   const float *weights, uint32_t chosen, const uint16_t *shared,
                                   uint32_t rows, uint32_t hidden, uint16_t *out_y)
{
    for (uint32_t t = 0; t < rows; t++, places += chosen, weights += chosen) {
        uint32_t j = 0;
        for (; j + LANES <= hidden; j += LANES) {
            V(f) acc = V(zero)();
            for (uint32_t i = 0; i < chosen; i++) {
                V(f) y = V(from_bf16)(outputs + (size_t)places[i] * hidden + j);
                acc = V(add)(acc, V(mul)(V(set1)(weights[i]), y));
            }
            if (shared)
                acc = V(add)(acc, V(from_bf16)(shared + (size_t)t * hidden + j));
            V(store_bf16)(out_y + (size_t)t * hidden + j, acc);
        }
        for (; j < hidden; j++) {
            float acc = 0.0f;
            for (uint32_t i = 0; i < chosen; i++) {
                float term = weights[i] * krn_bf16_to_f32(outputs[(size_t)places[i] * hidden + j]);
                acc = acc + term;
            }
            if (shared)
                acc = acc + krn_bf16_to_f32(shared[(size_t)t * hidden + j]);
            out_y[(size_t)t * hidden + j] = krn_f32_to_bf16(acc);
        }
    }
}
