/* Linear layers: splits lists of products into tasks and runs the variant's tile kernel.
 *
 * Thread: the pool's caller; tasks own disjoint rows x columns of an output. */
#include "kernels/cpu/variant.h"

#include "base/assert.h"

/* Below this many multiply-adds a call is cheaper on one thread than the wake-up. */
#define SERIAL_WORK (64u << 10)

typedef struct products {
    const krn_gemm *gemms;
    uint32_t count;
    krn_gemm_fn run;
    uint32_t first_task[KRN_GEMMS_MAX + 1];
} products;

static uint32_t panel_groups(const krn_gemm *gemm)
{
    uint32_t columns = KRN_TILE_PANELS * KRN_PANEL_COLUMNS;
    return (gemm->matrix->n + columns - 1) / columns;
}

static void product_task(void *context, uint32_t task, uint32_t thread)
{
    const products *p = context;
    uint32_t low = 0, high = p->count;
    (void)thread;
    while (high - low > 1) {
        uint32_t middle = (low + high) / 2;
        if (p->first_task[middle] <= task)
            low = middle;
        else
            high = middle;
    }
    const krn_gemm *gemm = &p->gemms[low];
    uint32_t groups = panel_groups(gemm);
    uint32_t panels = (gemm->matrix->n + KRN_PANEL_COLUMNS - 1) / KRN_PANEL_COLUMNS;
    uint32_t local = task - p->first_task[low];
    krn_tile tile = {.row = local / groups * KRN_TILE_ROWS,
                     .panel = local % groups * KRN_TILE_PANELS};
    uint32_t rows_left = gemm->rows - tile.row;
    uint32_t panels_left = panels - tile.panel;
    tile.row_count = rows_left < KRN_TILE_ROWS ? rows_left : KRN_TILE_ROWS;
    tile.panel_count = panels_left < KRN_TILE_PANELS ? panels_left : KRN_TILE_PANELS;
    p->run(gemm, &tile);
}

static void run_products(krn_pool *pool, const krn_gemm *gemms, uint32_t count, krn_gemm_fn run,
                         krn_matrix_kind kind)
{
    products p;
    uint32_t tasks = 0;
    uint64_t work = 0;
    sl_assert(count <= KRN_GEMMS_MAX);
    p.gemms = gemms;
    p.count = count;
    p.run = run;
    for (uint32_t i = 0; i < count; i++) {
        const krn_gemm *gemm = &gemms[i];
        sl_assert(gemm->matrix->kind == kind);
        p.first_task[i] = tasks;
        tasks += (gemm->rows + KRN_TILE_ROWS - 1) / KRN_TILE_ROWS * panel_groups(gemm);
        work += (uint64_t)gemm->rows * gemm->matrix->n * gemm->matrix->k;
    }
    p.first_task[count] = tasks;
    krn_pool_run(work < SERIAL_WORK ? NULL : pool, tasks, product_task, &p);
}

void krn_linear_fp8(krn_pool *pool, const krn_gemm *gemms, uint32_t count)
{
    run_products(pool, gemms, count, krn_variant_current()->gemm_fp8, KRN_MATRIX_FP8);
}

void krn_linear_bf16(krn_pool *pool, const krn_gemm *gemms, uint32_t count)
{
    run_products(pool, gemms, count, krn_variant_current()->gemm_bf16, KRN_MATRIX_BF16);
}

void krn_linear_f32(krn_pool *pool, const krn_gemm *gemms, uint32_t count)
{
    run_products(pool, gemms, count, krn_variant_current()->gemm_f32, KRN_MATRIX_BF16);
}

void krn_plain_linear(krn_pool *pool, const krn_gemm *gemms, uint32_t count)
{
    run_products(pool, gemms, count, krn_variant_current()->gemm_plain, KRN_MATRIX_F32);
}
