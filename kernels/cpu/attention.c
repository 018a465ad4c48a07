/* Attention: insertion of latent rows into the cache, and the split of rows and heads into tasks.
 *
 * Thread: the pool's caller; cache rows of one call are distinct. */
#include "kernels/cpu/amx_attend.h"
#include "kernels/cpu/variant.h"

#include <stdatomic.h>
#include <string.h>

typedef struct latent_work {
    const krn_cache *cache;
    const krn_row *rows;
    const uint16_t *kv, *weight;
    float epsilon;
    const float *table;
    bool pow2;
    atomic_bool fault;
} latent_work;

static void latent_slice(void *context, uint32_t first, uint32_t count)
{
    latent_work *w = context;
    const krn_common *common = krn_variant_current()->common;
    for (uint32_t t = first; t < first + count; t++) {
        const uint16_t *kv = w->kv + (size_t)t * (KRN_LATENT_DIM + KRN_ROPE_DIM);
        uint16_t latent[KRN_LATENT_DIM], rope[KRN_ROPE_DIM];
        float scales[KRN_LATENT_DIM / KRN_BLOCK];
        uint8_t *row = krn_cache_latent(w->cache, w->rows[t].blocks, w->rows[t].slot);
        bool fine =
            common->rmsnorm(kv, NULL, w->weight, w->epsilon, 1, KRN_LATENT_DIM, latent, NULL);
        fine = common->q128(latent, 1, KRN_LATENT_DIM, w->pow2, row, scales) && fine;
        memcpy(row + KRN_LATENT_SCALES_AT, scales, sizeof scales);
        memcpy(rope, kv + KRN_LATENT_DIM, sizeof rope);
        krn_rope_interleaved(rope, w->table + (size_t)t * KRN_ROPE_DIM);
        for (uint32_t d = 0; d < KRN_ROPE_DIM; d++)
            fine = fine && (rope[d] & 0x7F80u) != 0x7F80u;
        memcpy(row + KRN_LATENT_ROPE_AT, rope, sizeof rope);
        if (!fine)
            atomic_store_explicit(&w->fault, true, memory_order_relaxed);
    }
}

bool krn_latent_put(krn_pool *pool, const krn_cache *cache, const krn_row *rows, uint32_t count,
                    const uint16_t *kv, const uint16_t *weight, float epsilon, const float *table,
                    bool pow2)
{
    latent_work w = {.cache = cache,
                     .rows = rows,
                     .kv = kv,
                     .weight = weight,
                     .epsilon = epsilon,
                     .table = table,
                     .pow2 = pow2};
    krn_pool_slices(pool, count, 8, latent_slice, &w);
    return !atomic_load_explicit(&w.fault, memory_order_relaxed);
}

/* Keys gathered as f32, then queries and scores of all heads (attend.inc), or what tiles need. */
size_t krn_attend_thread_bytes(uint32_t heads, uint32_t list_stride)
{
    size_t keys = ((size_t)list_stride + 15) & ~(size_t)15;
    size_t floats = KRN_PLAIN_ROW_DIM / 32 * krn_attend_slab_size(list_stride) +
                    (((size_t)heads + 15) & ~(size_t)15) * (KRN_PLAIN_ROW_DIM + keys);
    size_t bytes = krn_align64(floats * sizeof(float)), tiles = krn_attend_parts_of(heads).bytes;
    return bytes > tiles ? bytes : tiles;
}

size_t krn_attend_scratch_bytes(uint32_t threads, uint32_t heads, uint32_t list_stride)
{
    return threads * krn_attend_thread_bytes(heads, list_stride);
}

typedef struct attend_work {
    const krn_attend_args *args;
    uint32_t head_step; /* heads of a task */
    uint32_t head_tasks;
    size_t thread_bytes;
} attend_work;

static void attend_task(void *context, uint32_t task, uint32_t thread)
{
    const attend_work *w = context;
    uint32_t head = task % w->head_tasks * w->head_step;
    uint32_t left = w->args->heads - head;
    krn_variant_current()->attend(w->args, task / w->head_tasks, head,
                                  left < w->head_step ? left : w->head_step,
                                  (uint8_t *)w->args->scratch + thread * w->thread_bytes);
}

void krn_attend(krn_pool *pool, const krn_attend_args *args)
{
    uint32_t threads = krn_pool_threads(pool);
    attend_work w = {.args = args,
                     .head_step = args->heads,
                     .head_tasks = 1,
                     .thread_bytes = krn_attend_thread_bytes(args->heads, args->list_stride)};
    /* Few rows: split heads too, into tasks enough for all threads but no more, since each task
     * gathers the keys again. */
    if (threads > 1 && args->count > 0 && args->count < 2 * threads && args->heads > 16) {
        uint32_t parts = (2 * threads + args->count - 1) / args->count;
        w.head_step = ((args->heads + parts - 1) / parts + 15) & ~15u;
        w.head_tasks = (args->heads + w.head_step - 1) / w.head_step;
    }
    krn_pool_run(pool, args->count * w.head_tasks, attend_task, &w);
}
