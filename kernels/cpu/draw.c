/* Drawing's passes over a vocabulary: the plain loops, and the choice of a variant's. */
#include "kernels/cpu/draw.h"
#include "kernels/cpu/variant.h"

#include <math.h>

float krn_draw_term(float logit, float max, float temperature)
{
    float x = (logit - max) / temperature;
    return x < -104.0f ? 0.0f : krn_exp(x); /* below it f32 holds no e^x */
}

static uint32_t ref_arg_max(const float *values, uint32_t count)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < count; i++)
        if (values[i] > values[best])
            best = i;
    return best;
}

static double ref_terms(const float *logits, uint32_t count, float max, float temperature,
                        float *out_terms)
{
    double sum = 0;
    for (uint32_t i = 0; i < count; i++) {
        out_terms[i] = krn_draw_term(logits[i], max, temperature);
        sum += (double)out_terms[i];
    }
    return sum;
}

static void ref_divide(const float *terms, uint32_t count, double sum, float *out)
{
    for (uint32_t i = 0; i < count; i++)
        out[i] = (float)((double)terms[i] / sum);
}

static uint32_t ref_in_range(const float *values, uint32_t count, float low, float high,
                             uint32_t *out_indices)
{
    uint32_t found = 0;
    for (uint32_t i = 0; i < count; i++)
        if (values[i] >= low && values[i] < high)
            out_indices[found++] = i;
    return found;
}

static void ref_reaching(const float *values, uint32_t count, float low, uint64_t *out_bits)
{
    memset(out_bits, 0, (count + 63) / 64 * sizeof *out_bits);
    for (uint32_t i = 0; i < count; i++)
        out_bits[i / 64] |= (uint64_t)(values[i] >= low) << (i % 64);
}

static double ref_sum_reaching(const float *values, uint32_t count, float low, uint32_t *out_count)
{
    double sum = 0;
    uint32_t found = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (values[i] < low)
            continue;
        sum += (double)values[i];
        found++;
    }
    *out_count = found;
    return sum;
}

const krn_draw krn_draw_ref = {
    .arg_max = ref_arg_max,
    .terms = ref_terms,
    .divide = ref_divide,
    .in_range = ref_in_range,
    .reaching = ref_reaching,
    .sum_reaching = ref_sum_reaching,
};

static const krn_draw *current(void)
{
    return krn_variant_current()->common->draw;
}

uint32_t krn_arg_max(const float *values, uint32_t count)
{
    return current()->arg_max(values, count);
}

double krn_softmax_terms(const float *logits, uint32_t count, float max, float temperature,
                         float *out_terms)
{
    return current()->terms(logits, count, max, temperature, out_terms);
}

void krn_softmax_divide(const float *terms, uint32_t count, double sum, float *out)
{
    current()->divide(terms, count, sum, out);
}

uint32_t krn_in_range(const float *values, uint32_t count, float low, float high,
                      uint32_t *out_indices)
{
    return current()->in_range(values, count, low, high, out_indices);
}

void krn_reaching(const float *values, uint32_t count, float low, uint64_t *out_bits)
{
    current()->reaching(values, count, low, out_bits);
}

double krn_sum_reaching(const float *values, uint32_t count, float low, uint32_t *out_count)
{
    return current()->sum_reaching(values, count, low, out_count);
}
