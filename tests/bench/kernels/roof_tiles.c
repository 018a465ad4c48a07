/* fp8 weights made bf16 in the first cache and multiplied by tiles. */
#include "kernels/cpu/amx_convert.h"
#include "kernels/cpu/variant.h"
#include "tests/bench/kernels/roof_paths.h"

#define STEP   32
#define STEPS  ((int)(KRN_BLOCK / STEP))
#define PANELS 2
#define PIECE  (STEP * (int)KRN_PANEL_COLUMNS) /* of one step of a panel */

static _Alignas(64) uint8_t codes[PANELS * STEPS * PIECE];
static _Alignas(64) uint16_t inputs[STEPS * 16 * STEP], weights[STEPS * PANELS * PIECE];

/* A step of two panels for up to 16 rows: four sums. */
KRN_AMX_TARGET static void multiply(int step)
{
    const uint16_t *w = weights + step * PANELS * PIECE;
    KRN_TILE_LOAD(4, inputs + step * 16 * STEP, STEP * 2);
    KRN_TILE_LOAD(5, w, 128);
    KRN_TILE_DOT_BF16(0, 4, 5);
    KRN_TILE_LOAD(6, w + STEP, 128);
    KRN_TILE_DOT_BF16(1, 4, 6);
    KRN_TILE_LOAD(5, w + PIECE, 128);
    KRN_TILE_DOT_BF16(2, 4, 5);
    KRN_TILE_LOAD(6, w + PIECE + STEP, 128);
    KRN_TILE_DOT_BF16(3, 4, 6);
}

KRN_AMX_TARGET static void once(void)
{
    krn_codes_lookup table = krn_codes_lookup_load();
    for (int s = 0; s < STEPS; s++) {
        for (int i = 0; i < PANELS * PIECE; i += 128) {
            const uint8_t *from = codes + s * PANELS * PIECE + i;
            uint16_t *to = weights + s * PANELS * PIECE + i;
            __m512i even[2], odd[2];
            const __m512i x[2] = {_mm512_load_si512(from), _mm512_load_si512(from + 64)};
            krn_codes_halves_down(&table, x, even, odd);
            for (int v = 0; v < 2; v++) {
                _mm512_store_si512(to + v * 64, even[v]);
                _mm512_store_si512(to + v * 64 + 32, odd[v]);
            }
        }
        multiply(s);
    }
}

double roof_convert_tiles(uint32_t rows)
{
    const uint32_t repeats = 500;
    krn_tiles tiles = krn_tiles_full;
    for (size_t i = 0; i < sizeof codes; i++)
        codes[i] = (uint8_t)(0x30 + i * 7 % 16);
    for (int t = 0; t < 5; t++)
        tiles.rows[t] = (uint8_t)rows;
    KRN_TILES_BEGIN(&tiles);
    for (uint32_t i = 0; i < repeats; i++)
        once();
    KRN_TILES_END();
    return (double)repeats * sizeof codes;
}
