/* The tiles of this machine against amx_order.h: random numbers of several kinds, all shapes, the
 * edge of the normal range. Says loudly when there are no tiles: then only the plain C is tested.
 */
#include "tests/unit/test.h"

#include "kernels/cpu/amx.h"
#include "kernels/cpu/amx_order.h"
#include "tests/unit/kernels/data.h"

#define SIDE 16
#define K    ((int)KRN_TILE_STEP)

typedef struct operands {
    uint16_t a[SIDE][K], b[SIDE][K]; /* b: row i holds the pair i of each column */
    float c[SIDE][SIDE];
} operands;

static bool tiles_here(void)
{
    static bool told;
    if (krn_amx_usable())
        return true;
    if (!told)
        fprintf(stderr, "SKIPPED: this machine has no bf16 tiles\n");
    told = true;
    return false;
}

/* Adds a * b to c as the machine does. */
static void multiply(int rows, int columns, int pairs, operands *o)
{
#if defined(__x86_64__)
    krn_tiles tiles = {
        .palette = 1,
        .row_bytes = {(uint16_t)(columns * 4), (uint16_t)(pairs * 4), (uint16_t)(columns * 4)},
        .rows = {(uint8_t)rows, (uint8_t)rows, (uint8_t)pairs}};
    KRN_TILES_BEGIN(&tiles);
    KRN_TILE_LOAD(0, o->c, sizeof o->c[0]);
    KRN_TILE_LOAD(1, o->a, sizeof o->a[0]);
    KRN_TILE_LOAD(2, o->b, sizeof o->b[0]);
    KRN_TILE_DOT_BF16(0, 1, 2);
    KRN_TILE_STORE(0, o->c, sizeof o->c[0]);
    KRN_TILES_END();
#else
    (void)rows, (void)columns, (void)pairs, (void)o;
#endif
}

static float expected(const operands *o, int row, int column, int pairs)
{
    float a[K], b[K];
    for (int k = 0; k < 2 * pairs; k++) {
        a[k] = krn_bf16_to_f32(o->a[row][k]);
        b[k] = krn_bf16_to_f32(o->b[k / 2][2 * column + k % 2]);
    }
    return krn_tile_part(a, b, (uint32_t)(2 * pairs), o->c[row][column]);
}

static void check(int rows, int columns, int pairs, const operands *o, const char *what)
{
    operands result = *o;
    multiply(rows, columns, pairs, &result);
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++) {
            float want = expected(o, r, c, pairs), got = result.c[r][c];
            if (krn_f32_bits(got) != krn_f32_bits(want) && !(isnan(got) && isnan(want)))
                fail_msg("%s, %d x %d x %d pairs: [%d][%d] is %a, expected %a", what, rows, columns,
                         pairs, r, c, got, want);
        }
}

/* A bf16 number with any sign and mantissa and an exponent from `least`, `range` of them. */
static uint16_t number(dice *d, uint32_t least, uint32_t range)
{
    return (uint16_t)((roll(d) & 0x807Fu) | (least + roll_below(d, range)) << 7);
}

typedef struct kind {
    const char *name;
    uint32_t a_least, a_range, b_least, b_range, c_least, c_range;
} kind;

static const kind KINDS[] = {
    {"near one", 120, 12, 120, 12, 120, 14},
    {"far apart", 1, 190, 1, 190, 1, 250},
    {"products at the edge of normal", 60, 8, 60, 8, 0, 5},
    {"sums at the edge of normal", 63, 2, 63, 2, 1, 1},
    {"subnormal operands", 0, 3, 125, 3, 0, 3},
    {"up to infinity", 180, 20, 180, 12, 240, 14},
};

static void fill(dice *d, const kind *k, operands *o)
{
    for (int i = 0; i < SIDE; i++) {
        for (int j = 0; j < K; j++) {
            o->a[i][j] = roll_below(d, 8) ? number(d, k->a_least, k->a_range) : 0;
            o->b[i][j] = number(d, k->b_least, k->b_range);
        }
        for (int j = 0; j < SIDE; j++) {
            uint32_t exponent = k->c_least + roll_below(d, k->c_range);
            o->c[i][j] = krn_bits_f32((roll(d) & 0x807FFFFFu) | exponent << 23);
        }
    }
}

TEST(tiles_add_up_in_the_order)
{
    static operands o;
    dice d = {20};
    if (!tiles_here())
        return;
    for (size_t k = 0; k < sizeof(KINDS) / sizeof(KINDS[0]); k++) {
        for (int i = 0; i < 1500; i++) {
            int rows = SIDE, columns = SIDE, pairs = SIDE;
            if (i % 3 != 0) {
                rows = 1 + (int)roll_below(&d, SIDE);
                columns = 1 + (int)roll_below(&d, SIDE);
                pairs = 1 + (int)roll_below(&d, SIDE);
            }
            fill(&d, &KINDS[k], &o);
            check(rows, columns, pairs, &o, KINDS[k].name);
        }
    }
}

/* 2^-126 plus a product just below it: whether that rounds back up to 2^-126 decides. */
typedef struct edge {
    float a, b;   /* the second product of the even chain */
    float result; /* of the chain */
} edge;

static const edge EDGES[] = {
    {-0x1p-76f, 0x1p-76f, 0x1p-126f}, /* 1 - 2^-26: rounds up */
    {-0x1p-75f, 0x1p-76f, 0x1p-126f}, /* 1 - 2^-25: a tie, to even */
    {-0x1.8p-76f, 0x1p-75f, 0.0f},    /* below the tie */
    {-0x1p-75f, 0x1p-75f, 0.0f},      /* 1 - 2^-24 */
    {-0x1p-90f, 0x1p-90f, 0x1p-126f}, /* hardly below */
    {0x1p-90f, 0x1p-90f, 0x1p-126f},  /* hardly above */
    {-0x1p-63f, 0x1p-63f, 0.0f},      /* nothing left */
    {-0x1.1p-63f, 0x1p-63f, -0.0f},   /* a negative subnormal: the sign stays in the chain */
};

TEST(what_rounds_to_a_normal_number_is_kept)
{
    static operands o;
    for (size_t i = 0; i < sizeof(EDGES) / sizeof(EDGES[0]); i++) {
        const edge *e = &EDGES[i];
        float chain = krn_tile_fma(e->a, e->b, krn_tile_fma(0x1p-63f, 0x1p-63f, 0.0f));
        assert_int_equal(krn_f32_bits(chain), krn_f32_bits(e->result));
        if (!tiles_here())
            continue;
        memset(&o, 0, sizeof o);
        o.a[0][0] = o.b[0][0] = krn_f32_to_bf16(0x1p-63f);
        o.a[0][2] = krn_f32_to_bf16(e->a);
        o.b[1][0] = krn_f32_to_bf16(e->b);
        check(1, 1, 2, &o, "edge");
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(tiles_add_up_in_the_order),
    cmocka_unit_test(what_rounds_to_a_normal_number_is_kept),
};
TEST_MAIN(tests)
