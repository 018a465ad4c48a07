/* Sparse attention on the device against the CPU twin: 2^-6 of the largest output (p is rounded to
 * bf16, exp is approximate); a row's bits do not depend on its batch. */
#include "tests/cuda/support.h"

#define ROWS   5u
#define HEADS  128u /* room for */
#define BLOCKS 40u
#define LIST   2048u

typedef struct scene {
    uint32_t blocks[BLOCKS];
    uint8_t *pages;
    uint16_t *q_latent, *q;
    uint32_t *lists, counts[ROWS];
    krn_row rows[ROWS];
    krn_cuda_row device_rows[ROWS];
} scene;

static void scene_init(scene *s, int kind)
{
    static const uint32_t counts[ROWS] = {1, 63, 64, 200, 2048};
    dice d = {kind + 5u};
    s->pages = aligned((size_t)BLOCKS * KRN_LAYER_BYTES);
    s->q_latent = aligned(ROWS * HEADS * 512 * 2);
    s->q = aligned(ROWS * HEADS * 192 * 2);
    s->lists = aligned(ROWS * LIST * 4);
    fill_bf16(&d, s->q_latent, ROWS * HEADS * 512, kind == 1 ? 4.0f : 0.3f);
    fill_bf16(&d, s->q, ROWS * HEADS * 192, 0.5f);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        s->blocks[i] = i * 7 % BLOCKS;
        for (uint32_t r = 0; r < 64; r++) {
            uint8_t *row = s->pages + (size_t)i * KRN_LAYER_BYTES + r * 656;
            float scales[4];
            uint16_t rope[64];
            fill_codes(&d, row, 512);
            for (int g = 0; g < 4; g++) /* kind 2: no powers of two */
                scales[g] = kind == 2 ? 0.003f + 0.001f * (float)roll_below(&d, 9)
                                      : krn_bits_f32((118 + roll_below(&d, 3)) << 23);
            fill_bf16(&d, rope, 64, 1.0f);
            memcpy(row + 512, scales, 16);
            memcpy(row + 528, rope, 128);
            if (kind == 3)
                memset(row, 0, 512); /* all scores near equal */
        }
    }
    for (uint32_t r = 0; r < ROWS; r++) {
        s->counts[r] = counts[r];
        s->rows[r] = (krn_row){.blocks = s->blocks, .slot = BLOCKS * 64 - 1};
        s->device_rows[r] = (krn_cuda_row){.slot = BLOCKS * 64 - 1};
        uint32_t slot = 0, left = BLOCKS * 64;
        for (uint32_t i = 0; i < counts[r]; slot++, left--) /* a random ascending choice */
            if (roll_below(&d, left) < counts[r] - i)
                s->lists[r * LIST + i++] = slot;
    }
}

static void check_schedules(krn_cuda_attend_params p, const uint16_t *expected, size_t bytes)
{
    uint16_t *again = aligned(bytes);
    for (p.schedule = 1; p.schedule <= 2; p.schedule++) {
        gpu_ok(gpu->fill(p.out, 0xA5, bytes, NULL));
        gpu_ok(gpu->attend(&p, NULL));
        gpu_get(again, p.out, bytes);
        assert_equal_bytes(again, expected, bytes, p.schedule == 1 ? "walked" : "split");
    }
    free(again);
}

static void check_attend(int kind, uint32_t heads)
{
    scene s;
    device_used = 0;
    scene_init(&s, kind);
    size_t count = ROWS * heads * 512;
    uint16_t *got = aligned(count * 2), *cpu = aligned(count * 2), *one = aligned(heads * 1024);
    krn_cache cache = {.base = s.pages, .page_bytes = KRN_LAYER_BYTES};
    krn_attend_args args = {.cache = &cache,
                            .rows = s.rows,
                            .count = ROWS,
                            .heads = heads,
                            .q_latent = s.q_latent,
                            .q = s.q,
                            .lists = s.lists,
                            .list_counts = s.counts,
                            .list_stride = LIST,
                            .scale = 0.13523377886f,
                            .scratch = aligned(krn_attend_scratch_bytes(1, heads, LIST)),
                            .output = cpu};
    krn_attend(NULL, &args);
    krn_cuda_attend_params p = {
        .cache = {.base = gpu_put(s.pages, (size_t)BLOCKS * KRN_LAYER_BYTES),
                  .page_bytes = KRN_LAYER_BYTES,
                  .blocks = gpu_put(s.blocks, sizeof s.blocks),
                  .block_stride = BLOCKS},
        .rows_at = gpu_put(s.device_rows, sizeof s.device_rows),
        .q_latent = gpu_put(s.q_latent, count * 2),
        .q = gpu_put(s.q, ROWS * heads * 192 * 2),
        .lists = gpu_put(s.lists, ROWS * LIST * 4),
        .list_counts = gpu_put(s.counts, sizeof s.counts),
        .out = gpu_take(count * 2),
        .workspace = gpu_take(gpu->attend_workspace_bytes(ROWS, heads, LIST) + 1),
        .rows = ROWS,
        .heads = heads,
        .list_stride = LIST,
        .scale = 0.13523377886f};
    gpu_ok(gpu->attend(&p, NULL));
    gpu_get(got, p.out, count * 2);
    for (uint32_t r = 0; r < ROWS; r++) {
        float largest = 0, worst = 0;
        for (size_t i = r * heads * 512; i < (r + 1) * heads * 512; i++)
            largest = fmaxf(largest, fabsf(krn_bf16_to_f32(cpu[i])));
        for (size_t i = r * heads * 512; i < (r + 1) * heads * 512; i++) {
            float error = fabsf(krn_bf16_to_f32(got[i]) - krn_bf16_to_f32(cpu[i]));
            if (!(error <= largest / 64 + 1e-30f))
                fail_msg("kind %d row %u element %zu: %g, expected %g (largest %g)", kind, r,
                         i - r * heads * 512, krn_bf16_to_f32(got[i]), krn_bf16_to_f32(cpu[i]),
                         largest);
            worst = fmaxf(worst, error);
        }
        printf("attend kind %d, %u heads, %u entries: largest error %.2e of the largest output\n",
               kind, heads, s.counts[r], worst / (largest + 1e-30f));
    }
    check_schedules(p, got, count * 2);
    for (uint32_t r = 0; r < ROWS; r++) { /* alone */
        krn_cuda_attend_params q = p;
        q.rows = 1;
        q.rows_at += r, q.q_latent += r * heads * 512, q.q += r * heads * 192;
        q.lists += r * LIST, q.list_counts += r;
        gpu_ok(gpu->attend(&q, NULL));
        gpu_get(one, q.out, heads * 1024);
        assert_equal_bytes(one, got + (size_t)r * heads * 512, heads * 1024, "a row alone");
    }
    void *all[] = {got, cpu, one, args.scratch, s.pages, s.q_latent, s.q, s.lists};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

TEST(attention_is_near_the_cpu_s)
{
    for (int kind = 0; kind < 4; kind++)
        check_attend(kind, HEADS);
}

TEST(attention_of_few_heads_is_near_the_cpu_s)
{
    const uint32_t heads[] = {2, 8, 16, 64, 72};
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++)
        check_attend(0, heads[i]);
}

static const struct CMUnitTest tests[] = {
    GPU_TEST(attention_is_near_the_cpu_s),
    GPU_TEST(attention_of_few_heads_is_near_the_cpu_s),
};
GPU_MAIN(tests)
