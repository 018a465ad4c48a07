/* The engine: weights, paged cache, forward step, sampler. One model in one process; knows no
 * network and no requests.
 *
 * A process opens one eng_model (immutable, shareable) and one eng_engine on it (owned by one
 * thread, the engine thread). The engine carves its cache and scratch at creation; steps allocate
 * nothing. A token's bits never depend on batch, chunking or thread count (canonical order
 * "cpu-f32-v1": every sum is one ascending f32 chain per output, one rounding an addition; see
 * kernels/kernels.h).
 *
 * Sources: spec deepseek-v3.2.md (sections named at each field), design sections 4 and 5. */
#ifndef ENGINE_ENGINE_H
#define ENGINE_ENGINE_H

#include "base/status.h"
#include "engine/sample.h"
#include "model/handout.h"
#include "model/shape.h"
#include "model/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

#define ENG_PAGE_TOKENS    64u
#define ENG_BATCH_ROWS_MAX 4096u /* rows of one step, all spans together */
#define ENG_ROWS_DEFAULT   1024u
#define ENG_SPANS_MAX      256u
#define ENG_NO_PAGE        UINT32_MAX

/* Pages (blocks) that so many tokens take, the last one maybe used in part. */
static inline uint32_t eng_pages_of(uint32_t token_count)
{
    return (token_count + ENG_PAGE_TOKENS - 1) / ENG_PAGE_TOKENS;
}

/* --- model --- */

typedef struct eng_model eng_model;

typedef enum eng_numerics {
    ENG_NUMERICS_FP8,   /* the spec's semantics with all roundings */
    ENG_NUMERICS_PLAIN, /* f32 throughout, no Q128, no Hadamard: sluice-run only, for comparison
                           with the plain vectors */
} eng_numerics;

typedef enum eng_backend {
    ENG_BACKEND_CPU,
    ENG_BACKEND_CUDA, /* libsluice_cuda.so, opened at run time; fp8 numerics only */
} eng_backend;

typedef struct eng_load_progress {
    uint64_t bytes_done, bytes_total;
    double seconds; /* since the first byte */
} eng_load_progress;

typedef struct eng_model_options {
    const char *dir;
    eng_numerics numerics;
    eng_backend backend;
    const char *cuda_object; /* path of libsluice_cuda.so; NULL = by the loader's search path */
    /* Layers [first, end) to load: main ones, or the MTP layer alone (index layer_count); both 0 =
     * all, the MTP layer and the ends. Files that hold nothing of these need not be there. */
    int layer_first, layer_end;
    int threads; /* for loading; 0 = all cores */
    /* One of ep_size processes with a share of the experts each (engine/parallel.h); 0 = 1: all of
     * them. CPU, fp8 numerics, whole models. */
    uint32_t ep_rank, ep_size;
    /* What each rank loads: [eng_moe_layers][ep_size][ep_slots], as com_layout.slots; copied. NULL:
     * consecutive experts, each once. */
    const uint16_t *ep_table;
    uint32_t ep_slots;
    /* Called on the opening thread every second, later less often, and when all is loaded. NULL:
     * never. */
    void (*progress)(void *context, const eng_load_progress *progress);
    void *progress_context;
} eng_model_options;

SL_MUST_USE sl_status eng_model_open(const eng_model_options *options, eng_model **out_model,
                                     sl_err *err);
void eng_model_close(eng_model *model);
const mdl_shape *eng_model_shape(const eng_model *model);
/* NULL: the directory has none. */
const mdl_tokenizer *eng_model_tokenizer(const eng_model *model);
/* Cache memory that one sequence of so many tokens binds. */
uint64_t eng_model_kv_bytes(const eng_model *model, uint64_t token_count);

/* What must be equal before two processes may exchange pages. All text, NUL-terminated, comparable
 * with strcmp. */
typedef struct eng_stamp {
    char numerics_id[32];     /* "cpu-f32-v1", "cuda-sm90-v1" */
    char model_hash[65];      /* model/hash.h: what the model is, and sums of what was loaded */
    char weights_version[32]; /* "1" unless the options say otherwise; raised by a reload */
    char cache_format[32]; /* "v1-64-788-g8": layout version, page tokens, row bytes, layers a group
                            */
} eng_stamp;

/* --- engine and cache --- */

#define ENG_OVERCOMMIT_MAX 10000u

typedef struct eng_options {
    uint64_t kv_bytes;           /* cache memory; at least one page */
    int layer_group;             /* layers in one piece on the wire; 0 = 8 */
    int sequences_max;           /* 0 = 64 */
    int rows_max;                /* of one step, <= ENG_BATCH_ROWS_MAX; 0 = ENG_ROWS_DEFAULT */
    uint32_t context_max;        /* tokens of one sequence; 0 = the shape's position_max */
    int threads;                 /* CPU pool, the calling thread included; 0 = all cores */
    uint32_t overcommit_percent; /* pages promised to sequences, of those there are; 0 = 100 */
    uint32_t weights_version;    /* 0 = 1; for a process that starts with reloaded weights */
    const char *tier_path;       /* second cache tier: a file, for the engine's life; NULL = none */
    uint64_t tier_bytes;
    uint64_t transit_bytes;    /* memory for blocks on their way (engine/transit.h); 0 = the cache
                                  itself, which only the host's own can be */
    uint32_t micro_batch_rows; /* over ranks: rows that split a step (engine/parallel.h); 0 = 256 */
    struct com_group *group; /* of a model with ep_size > 1, joined; borrowed. NULL: its formations
                                are offered later (engine/parallel.h) */
    bool cache_on_host; /* CUDA: the cache in pinned host memory, which the host may read and write
                           between steps; slow. The CPU's always is there */
} eng_options;

/* A page is contiguous over all layers (main 0..L-1, then MTP), each 64 x 656 B latent then 64 x
 * 128 B index codes and 64 f32 index scales, then h_final of the page's last token (bf16 [hidden]).
 * Group g covers layers [g*G, (g+1)*G) cut at the end; the last group also covers h_final. MTP slot
 * j holds the row of (h_{j-1}, t_j), rope position j-1; slot 0 of a sequence is void (zeros).
 * Unused rows are zeros. */
typedef struct eng_cache_layout {
    uint32_t layer_count;  /* main + MTP */
    uint32_t group_layers; /* G */
    uint32_t group_count;
    uint64_t layer_bytes; /* 50,432 */
    uint64_t page_bytes;  /* stride of a page, a multiple of 64 */
    uint32_t page_count;
} eng_cache_layout;

SL_MUST_USE sl_status eng_engine_create(const eng_model *model, const eng_options *options,
                                        eng_engine **out_engine, sl_err *err);
void eng_engine_destroy(eng_engine *engine);
const eng_stamp *eng_engine_stamp(const eng_engine *engine);
/* Who computes it: "cuda", or the CPU variant ("amx", "avx512", ..). */
const char *eng_engine_variant(const eng_engine *engine);
/* Memory of steps besides the cache; what none touches costs nothing. */
uint64_t eng_engine_scratch_bytes(const eng_engine *engine);
const eng_cache_layout *eng_engine_layout(const eng_engine *engine);
/* The cache's memory (CUDA: the device's, unless cache_on_host): page p at base + p * page_bytes.
 * Immutable pointer: any thread. */
uint8_t *eng_engine_cache_base(const eng_engine *engine);
/* Slice of one piece inside a page. */
void eng_layout_piece(const eng_cache_layout *layout, const mdl_shape *shape, uint32_t group,
                      uint64_t *out_offset, uint64_t *out_bytes);
/* Pages that a new sequence may be promised. Kept ones count as free, promised ones do not. More of
 * the cache's counts: engine/cache.h. */
uint32_t eng_engine_pages_free(const eng_engine *engine);

/* --- sequences (engine thread only) --- */

typedef struct eng_sequence eng_sequence;

/* Binds pages for `token_capacity` tokens now. SL_FULL: no slot or not enough pages; SL_TOO_LARGE:
 * over context_max or more than the cache could ever hold. Pages come zeroed. */
SL_MUST_USE sl_status eng_sequence_open(eng_engine *engine, uint32_t token_capacity,
                                        eng_sequence **out_sequence, sl_err *err);
/* A token stream whose whole blocks may be, or may be made, known to the cache. space keeps
 * namespaces (tenant, salt) apart: nothing is shared across them. */
typedef struct eng_prefix {
    const uint32_t *tokens;
    uint32_t token_count;
    uint64_t space;
} eng_prefix;

/* As eng_sequence_open, but binds pages for the first `token_bound` tokens only; the others are
 * promised (see eng_options.overcommit_percent) and bound by eng_sequence_bind. Starts with the
 * pages of the longest known prefix: whole blocks of prefix->tokens. Once it is ready its length
 * tells how many tokens are there already (up to token_count; h_final came along); these pages are
 * shared and never written. */
SL_MUST_USE sl_status eng_sequence_open_prefix(eng_engine *engine, uint32_t token_capacity,
                                               uint32_t token_bound, const eng_prefix *prefix,
                                               eng_sequence **out_sequence, sl_err *err);
/* As eng_sequence_open, but starts with the first token_count tokens of `source`, which holds them
 * (or more): whole blocks are shared, the rows of the last one copied. h_final: of the last of them
 * (bf16; source's own may have moved on). Pages for more are promised, as above. */
SL_MUST_USE sl_status eng_sequence_fork(const eng_sequence *source, uint32_t token_count,
                                        const uint16_t *h_final, uint32_t token_capacity,
                                        eng_sequence **out_sequence, sl_err *err);
/* false: blocks are still read from the second tier, by eng_engine_poll; until then only close may
 * be called. The wait is bounded: what does not come is left to be computed. */
bool eng_sequence_ready(const eng_sequence *sequence);
/* Binds pages so that `token_count` tokens have room (at most the capacity). SL_FULL: none is left,
 * which cannot happen while no more pages are promised than there are. */
SL_MUST_USE sl_status eng_sequence_bind(eng_sequence *sequence, uint32_t token_count, sl_err *err);
/* Tokens that have room in bound pages, at most the capacity. */
uint32_t eng_sequence_room(const eng_sequence *sequence);
/* Makes the sequence's complete blocks known: prefix->tokens are the tokens it holds, all accepted
 * (no drafts). May be called again as it grows. Known pages live on after close until their memory
 * is needed, the oldest first. */
void eng_sequence_publish(eng_sequence *sequence, const eng_prefix *prefix);
void eng_sequence_close(eng_sequence *sequence);            /* unbinds its pages */
uint32_t eng_sequence_length(const eng_sequence *sequence); /* tokens in the cache */
uint32_t eng_sequence_page(const eng_sequence *sequence,
                           uint32_t block); /* page index of block = position / 64 */
/* bf16 [hidden] of the last token in the cache (spec 3.1 h_final), host memory, until the next
 * operation of the engine; NULL while empty. */
const uint16_t *eng_sequence_h_final(const eng_sequence *sequence);
/* Declares that the rows of tokens up to `token_count` were written into the pages from outside
 * (fetched and verified), after what the sequence held when it opened. h_final NULL: it came with
 * the pages. */
void eng_sequence_adopt(eng_sequence *sequence, uint32_t token_count, const uint16_t *h_final);
/* Copies bytes of page `page` to the host. CUDA: waits. */
void eng_engine_read_page(eng_engine *engine, uint32_t page, uint64_t offset, uint64_t bytes,
                          void *out);
/* Keyed sum of a piece, host memory: sl_sum64(key, block << 16 | group, piece, bytes), which is
 * what kvtransfer verifies. The key mixes the stamp. Cheap; engine thread, or any thread while
 * nobody writes the page. */
uint64_t eng_engine_sum_key(const eng_engine *engine);
static inline uint64_t eng_sum_tweak(uint32_t block, uint32_t group)
{
    return (uint64_t)block << 16 | group;
}
uint64_t eng_piece_sum(const eng_engine *engine, const void *piece, uint64_t bytes, uint32_t block,
                       uint32_t group);

/* --- step --- */

typedef enum eng_logits_want {
    ENG_LOGITS_NONE,
    ENG_LOGITS_LAST, /* of the span's last row */
    ENG_LOGITS_ALL,  /* of every row (dumps, prompt logprobs); rows_max bounds it */
} eng_logits_want;

typedef struct eng_span {
    eng_sequence *sequence;
    const uint32_t *tokens; /* [token_count], borrowed for the call; positions go on from the
                               sequence's length */
    uint32_t token_count;
    eng_logits_want logits;
    bool routing;         /* keep which experts its rows choose, for eng_step_routing */
    const eng_draw *draw; /* of its wanted rows, for eng_step_drawn; NULL: by their logits only */
} eng_span;

/* Called on the engine thread during eng_step: the rows of layer group `group` of all spans are in
 * the pages (for the last group: MTP rows and h_final too). */
typedef void (*eng_group_fn)(void *context, uint32_t group);

/* Runs all spans through the model in one batch and appends them to the cache. SL_INVALID: a token
 * id out of range; SL_TOO_LARGE: over a sequence's room or rows_max; SL_INTERNAL: NaN or inf
 * (names the layer). On error no sequence has changed its length. */
SL_MUST_USE sl_status eng_step(eng_engine *engine, const eng_span *spans, uint32_t span_count,
                               eng_group_fn on_group, void *context, sl_err *err);
/* f32 [vocab] of row `row` of the spans' wanted rows in order; until the next step. */
float *eng_step_logits(eng_engine *engine, uint32_t row);
/* Which experts row `row` of the step chose, counted over all rows of all spans in order; of a span
 * that wanted it (model/handout.h has the layout). Valid until the next step. */
const uint8_t *eng_step_routing(const eng_engine *engine, uint32_t row);
const mdl_routing_layout *eng_engine_routing(const eng_engine *engine);
/* The same from a sequence's h_final alone (after a hand-over), bit-equal; until the next call. */
float *eng_head_logits(eng_engine *engine, const eng_sequence *sequence);

/* --- drafts (multi-token prediction; nothing here changes what a step computes) --- */

/* Draft of the token after next_tokens[i], which was sampled for sequences[i] but not stepped yet:
 * arg-max of the MTP layer's row (h_final, next token). Each sequence at most once, not empty,
 * with room for one more. The row written at slot `length` of the MTP layer is the one that the
 * next step writes again. SL_UNSUPPORTED: a model without MTP layer. */
SL_MUST_USE sl_status eng_draft(eng_engine *engine, eng_sequence *const *sequences,
                                const uint32_t *next_tokens, uint32_t count, uint32_t *out_drafts,
                                sl_err *err);
#define ENG_DRAFTS_MAX 3u

typedef struct eng_drafts eng_drafts;
/* What draft number `at` may be, those before it being in drafts->tokens: bit id set = allowed, as
 * for eng_sample (at least one); NULL: anything. Looked at before the next call. Called on the
 * engine thread, and calls nothing of the engine. */
typedef const uint32_t *(*eng_draft_allowed_fn)(void *context, const eng_drafts *drafts,
                                                uint32_t at);

struct eng_drafts {
    eng_sequence *sequence;
    uint32_t next_token;             /* sampled, not stepped yet */
    uint32_t count;                  /* wanted: 1 .. ENG_DRAFTS_MAX, length + count <= room */
    uint32_t tokens[ENG_DRAFTS_MAX]; /* out: drafts of the tokens after next_token, in order */
    eng_draft_allowed_fn allowed;    /* NULL: anything */
    void *context;                   /* of allowed */
    const mdl_sampling *sampling;    /* of the tokens; NULL: the likeliest are drafted */
    /* The sequence with next_token, and room for the drafts, which are put there too. */
    uint32_t *ids, id_count, prompt_count;
};

/* As eng_draft, but several in a row, each what eng_sample would make of the layer's logits (behind
 * the first, the likeliest). From the second on the layer gets its own output and draft (spec 5).
 * Slots length .. length + count - 1 are draft rows then: the next step must write them again, so
 * it takes next_token and all drafts. On error no draft row is left. */
SL_MUST_USE sl_status eng_draft_many(eng_engine *engine, eng_drafts *drafts, uint32_t count,
                                     sl_err *err);
/* Drops the tokens from `token_count` on (rejected drafts) with their rows. Only tokens of the last
 * step, and before another step: at least one of them stays. */
void eng_sequence_truncate(eng_sequence *sequence, uint32_t token_count);

#ifdef __cplusplus
}
#endif
#endif
