/* Linear layers: splits lists of products into tasks and runs the variant's tile kernel.
 *
 * Thread: the pool's caller; tasks own disjoint rows x columns of an output. */
#include "kernels/cpu/variant.h"

#include "base/assert.h"

/* Below this many multiply-adds a call is cheaper on one thread than the wake-up. */
#define SERIAL_WORK    (64u << 10)
#define TASKS_A_THREAD 6u

typedef struct products {
    const krn_gemm *gemms;
    uint32_t count;
    krn_gemm_fn run;
    uint32_t tile_rows, tile_panels; /* of one task */
    uint32_t first_task[KRN_GEMMS_MAX + 1];
} products;

static uint32_t tiles_across(const krn_gemm *gemm, uint32_t tile_panels)
{
    uint32_t columns = tile_panels * KRN_PANEL_COLUMNS;
    return (gemm->matrix->n + columns - 1) / columns;
}

/* Numbers the tasks. */
static void split(products *p, uint32_t tile_panels)
{
    uint32_t tasks = 0;
    p->tile_panels = tile_panels;
    for (uint32_t i = 0; i < p->count; i++) {
        p->first_task[i] = tasks;
        tasks += (p->gemms[i].rows + p->tile_rows - 1) / p->tile_rows *
                 tiles_across(&p->gemms[i], tile_panels);
    }
    p->first_task[p->count] = tasks;
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
    uint32_t across = tiles_across(gemm, p->tile_panels);
    uint32_t panels = (gemm->matrix->n + KRN_PANEL_COLUMNS - 1) / KRN_PANEL_COLUMNS;
    uint32_t local = task - p->first_task[low];
    krn_tile tile = {.row = local / across * p->tile_rows,
                     .panel = local % across * p->tile_panels};
    uint32_t rows_left = gemm->rows - tile.row;
    uint32_t panels_left = panels - tile.panel;
    tile.row_count = rows_left < p->tile_rows ? rows_left : p->tile_rows;
    tile.panel_count = panels_left < p->tile_panels ? panels_left : p->tile_panels;
    p->run(gemm, &tile);
}

/* tile_rows: of one task. */
static void run_products(krn_pool *pool, const krn_gemm *gemms, uint32_t count, krn_gemm_fn run,
                         uint32_t tile_rows, krn_matrix_kind kind)
{
    products p = {.gemms = gemms, .count = count, .run = run, .tile_rows = tile_rows};
    uint64_t work = 0;
    sl_assert(count <= KRN_GEMMS_MAX);
    for (uint32_t i = 0; i < count; i++) {
        sl_assert(gemms[i].matrix->kind == kind);
        work += (uint64_t)gemms[i].rows * gemms[i].matrix->n * gemms[i].matrix->k;
    }
    if (work < SERIAL_WORK)
        pool = NULL;
    /* Wide tasks convert less, many tasks share out evenly. */
    split(&p, KRN_TILE_PANELS);
    uint32_t threads = krn_pool_threads(pool);
    if (threads > 1 && p.first_task[count] < TASKS_A_THREAD * threads)
        split(&p, KRN_GROUP_PANELS);
    krn_pool_run(pool, p.first_task[count], product_task, &p);
}

void krn_linear_fp8(krn_pool *pool, const krn_gemm *gemms, uint32_t count)
{
    const krn_variant *variant = krn_variant_current();
    run_products(pool, gemms, count, variant->gemm_fp8, variant->tile_rows, KRN_MATRIX_FP8);
}

void krn_linear_bf16(krn_pool *pool, const krn_gemm *gemms, uint32_t count)
{
    const krn_variant *variant = krn_variant_current();
    run_products(pool, gemms, count, variant->gemm_bf16, variant->tile_rows, KRN_MATRIX_BF16);
}

void krn_linear_f32(krn_pool *pool, const krn_gemm *gemms, uint32_t count)
{
    const krn_variant *variant = krn_variant_current();
    run_products(pool, gemms, count, variant->gemm_f32, variant->tile_rows, KRN_MATRIX_BF16);
}

void krn_plain_linear(krn_pool *pool, const krn_gemm *gemms, uint32_t count)
{
    run_products(pool, gemms, count, krn_variant_current()->common->gemm_plain, KRN_TILE_ROWS,
                 KRN_MATRIX_F32);
}
