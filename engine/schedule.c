/* The order of prompts and the cost of steps: see schedule.h. Pure. */
#include "engine/schedule.h"

#include <string.h>

#define COST_FORGET 0.97 /* what a step still counts when the next one is noted */
#define COST_RIDGE  1e-3 /* keeps terms that did not vary small */
#define ROWS_UNIT   64.0 /* terms of like size, so that one ridge fits all */
#define READS_UNIT  (64.0 * 1e3)

bool eng_turn_before(const eng_turn *a, const eng_turn *b, uint64_t rows)
{
    if (a->priority != b->priority)
        return a->priority < b->priority;
    int64_t left_a = (int64_t)a->left - (int64_t)((rows - a->since) / ENG_AGEING);
    int64_t left_b = (int64_t)b->left - (int64_t)((rows - b->since) / ENG_AGEING);
    return left_a != left_b ? left_a < left_b : a->order < b->order;
}

void eng_load_add(eng_load *load, uint32_t position, uint32_t rows)
{
    load->rows += rows;
    load->reads += (uint64_t)position * rows + (uint64_t)rows * (rows + 1) / 2;
}

static void terms_of(const eng_load *load, double out_terms[ENG_COST_TERMS])
{
    out_terms[0] = 1;
    out_terms[1] = (double)load->rows / ROWS_UNIT;
    out_terms[2] = (double)load->reads / READS_UNIT;
}

/* Solves products x weights = times by elimination over the terms in `used`; the matrix is positive
 * definite by its ridge. */
static void solve(const eng_cost *cost, const bool used[ENG_COST_TERMS],
                  double out_weights[ENG_COST_TERMS])
{
    double m[ENG_COST_TERMS][ENG_COST_TERMS + 1] = {{0}};
    for (uint32_t i = 0; i < ENG_COST_TERMS; i++) {
        for (uint32_t j = 0; j < ENG_COST_TERMS; j++)
            m[i][j] = used[i] && used[j] ? cost->products[i][j] : 0;
        m[i][i] += used[i] ? COST_RIDGE : 1;
        m[i][ENG_COST_TERMS] = used[i] ? cost->times[i] : 0;
    }
    for (uint32_t i = 0; i < ENG_COST_TERMS; i++) {
        for (uint32_t k = i + 1; k < ENG_COST_TERMS; k++) {
            double f = m[k][i] / m[i][i];
            for (uint32_t j = i; j <= ENG_COST_TERMS; j++)
                m[k][j] -= f * m[i][j];
        }
    }
    for (uint32_t i = ENG_COST_TERMS; i-- > 0;) {
        double value = m[i][ENG_COST_TERMS];
        for (uint32_t j = i + 1; j < ENG_COST_TERMS; j++)
            value -= m[i][j] * out_weights[j];
        out_weights[i] = value / m[i][i];
    }
}

void eng_cost_note(eng_cost *cost, const eng_load *load, uint64_t ns)
{
    double x[ENG_COST_TERMS];
    terms_of(load, x);
    for (uint32_t i = 0; i < ENG_COST_TERMS; i++) {
        for (uint32_t j = 0; j < ENG_COST_TERMS; j++)
            cost->products[i][j] = cost->products[i][j] * COST_FORGET + x[i] * x[j];
        cost->times[i] = cost->times[i] * COST_FORGET + x[i] * (double)ns;
    }
    /* A term that came out negative is noise: without it. */
    bool used[ENG_COST_TERMS] = {true, true, true}, again = true;
    while (again) {
        again = false;
        solve(cost, used, cost->weights);
        for (uint32_t i = 0; i < ENG_COST_TERMS; i++) {
            if (cost->weights[i] >= 0)
                continue;
            again = used[i];
            used[i] = false;
            cost->weights[i] = 0;
        }
    }
    cost->known = true;
}

uint64_t eng_cost_predict_ns(const eng_cost *cost, const eng_load *load)
{
    double x[ENG_COST_TERMS], ns = 0;
    terms_of(load, x);
    for (uint32_t i = 0; i < ENG_COST_TERMS; i++)
        ns += cost->weights[i] * x[i];
    return ns < 1e18 ? (uint64_t)ns : (uint64_t)1e18;
}

uint32_t eng_cost_rows(const eng_cost *cost, const eng_load *load, uint32_t position,
                       uint32_t rows_max, uint64_t limit_ns, bool first)
{
    uint32_t least = !first ? 0 : rows_max < ENG_CHUNK_MIN ? rows_max : ENG_CHUNK_MIN;
    if (!cost->known)
        return least;
    uint32_t low = least, high = rows_max; /* the answer lies in [low, high] */
    while (low < high) {
        uint32_t middle = low + (high - low + 1) / 2;
        eng_load with = *load;
        eng_load_add(&with, position, middle);
        if (eng_cost_predict_ns(cost, &with) <= limit_ns)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}
