/* The engine's insides: cache, sequences, scratch. Internal to engine/.
 *
 * Thread: the engine thread owns all of it. Scratch is carved at create and never grows; `void *`
 * rows are bf16 (fp8 numerics) or f32 (plain), engine->element_bytes each. */
#ifndef ENGINE_STATE_H
#define ENGINE_STATE_H

#include "engine/cache.h"
#include "engine/model.h"
#include "engine/pages.h"
#include "engine/sampler.h"
#include "engine/tap.h"
#include "engine/tier.h"

#ifdef __cplusplus
extern "C" {
#endif

#define ENG_ATTEND_ROWS 128u /* rows attended to at once: bounds q_latent and o */

struct eng_sequence {
    eng_engine *engine;
    bool open;
    uint32_t owner; /* of eng_ledger */
    bool in_step;   /* guards against one sequence in two spans */
    uint32_t length;
    uint32_t capacity;
    uint32_t page_count; /* bound */
    bool loading;        /* blocks are read from the second tier; with: */
    uint32_t opening;    /* counts, so that reads for an earlier life are told apart */
    uint32_t found;      /* blocks that were known when it opened, in either tier */
    uint32_t known;      /* of them those that may still come */
    uint32_t asked;      /* of them those that are there or asked for */
    uint32_t wanted;     /* pages to be bound in the end */
    uint64_t patience;   /* when to go on without */
    uint32_t *pages;     /* [blocks_max], carved */
    uint32_t step_id;
    uint32_t step_row;   /* where this sequence's rows lie in the last step's h_final rows */
    uint32_t step_first; /* position of that row */
    /* blocks that have transit pages, and the copies into the cache that are under way */
    uint32_t transit_first, transit_count;
    bool landing;
    uint64_t transit_ticket;
};

/* See transit.h. memory NULL: the cache itself. */
typedef struct eng_transit {
    uint8_t *memory; /* host */
    uint64_t bytes;
    uint32_t page_count, free_count;
    uint32_t *free_list; /* [page_count], used as a stack */
    uint32_t *pages;     /* [sequences_max][blocks_max] */
} eng_transit;

/* One forward pass over rows of any sequences. */
typedef struct eng_batch {
    uint32_t row_count;
    const uint32_t *tokens;
    const krn_row *rows;
    float *table; /* [row_count][64], filled when the batch begins */
    const uint32_t *positions;
} eng_batch;

/* `from` and `to` are the backend's memory. */
typedef struct eng_move {
    void *to;
    const void *from;
} eng_move;

typedef struct eng_scratch {
    void *memory; /* host */
    size_t bytes;
    void *device_memory; /* the backend's: rows and what operations pass on */
    size_t device_bytes;
    /* host: rows of the step */
    uint32_t *tokens;
    uint32_t *positions;
    krn_row *rows;
    uint32_t *wanted;
    eng_move *moves; /* [rows] */
    uint32_t *draft_ids;
    uint32_t *mtp_tokens;
    uint32_t *mtp_positions;
    krn_row *mtp_rows;
    krn_gemm *gemms; /* [KRN_GEMMS_MAX] */
    /* backend: rows of the step */
    float *table; /* [rows][64] cosines and sines */
    void *x;      /* [rows][hidden] */
    void *res;    /* [rows][hidden] */
    void *n;      /* [rows][hidden] normed input of attention or MLP */
    void *h;      /* [rows][hidden] h_final of the last step */
    /* activations of an fp8 linear */
    uint8_t *codes;
    float *code_scales;
    /* attention */
    void *q_a; /* [rows][q_lora] */
    void *qr;  /* [rows][q_lora] */
    void *kv;  /* [rows][576] */
    void *ik;  /* [rows][128] */
    void *q;   /* [rows][heads * 192] */
    void *iq;  /* [rows][index_heads * 128] */
    float *wt; /* [rows][index_heads] */
    float *factors;
    uint8_t *iq_codes;
    uint32_t *lists; /* [rows][list_stride] */
    uint32_t *list_counts;
    void *q_latent; /* [ENG_ATTEND_ROWS][heads * 512] */
    void *o;        /* the same */
    void *v;        /* [rows][heads * 128] */
    void *select_scratch;
    size_t select_bytes;
    void *attend_scratch;
    /* MLP */
    void *gate; /* [rows][widest MLP], then expert rows */
    void *up;
    void *down;       /* [rows * chosen][hidden] outputs of experts */
    void *shared_out; /* [rows][hidden] */
    float *router_logits;
    uint32_t *experts;
    float *expert_weights;
    uint32_t *expert_offsets;
    uint32_t *expert_rows;
    uint32_t *expert_places;
    /* MTP rows */
    float *mtp_table;
    void *mtp_h;   /* [rows][hidden] h of the token before */
    void *mtp_cat; /* [rows][2 * hidden] */
    void *head_in; /* [rows][hidden] */
    float *logits; /* [rows][vocab] */
    float *head_logits;
} eng_scratch;

typedef struct eng_ranks eng_ranks;

typedef enum eng_memory {
    ENG_MEMORY_DEVICE,
    ENG_MEMORY_HOST,
} eng_memory;

struct eng_engine {
    const eng_model *model;
    const eng_ops *ops;
    void *backend;    /* the table's own */
    eng_ranks *ranks; /* NULL: one process alone */
    bool plain;
    uint32_t element_bytes;
    uint32_t rows_max;
    uint32_t micro_batch_rows; /* rows of a step from which on it is split, over ranks */
    uint32_t sequences_max;
    uint32_t context_max;
    uint32_t blocks_max;
    uint32_t list_stride;
    eng_stamp stamp;
    eng_cache_layout layout;
    uint64_t h_final_offset; /* inside a page */
    uint64_t sum_key;
    eng_memory cache_kind;
    uint8_t *cache; /* backend memory: page p at cache + p * layout.page_bytes */
    eng_pages pages;
    eng_transit transit;
    uint32_t landing; /* sequences */
    eng_tier *tier;   /* NULL: none */
    char *tier_path;
    uint64_t tier_bytes;
    void (*wake)(void *context); /* of the tier's I/O thread */
    void *wake_context;
    uint32_t weights_version;
    uint32_t pages_promisable;
    uint32_t promised; /* pages that sequences may still bind */
    uint32_t growing;  /* sequences that may */
    eng_reserve reserve;
    uint32_t loading; /* sequences */
    eng_sequence *sequences;
    uint32_t *sequence_pages; /* [sequences_max][blocks_max] */
    krn_pool *pool;
    eng_sampler sampler;
    eng_scratch s;
    uint32_t step_id;
    uint32_t step_logits; /* rows valid in s.logits */
    float *host_logits; /* [host_logit_rows][vocab]: the first of them, where reading takes time */
    uint32_t host_logit_rows;
    uint32_t logits_brought; /* of host_logits, by the last run */
    uint32_t step_drawn;     /* wanted rows that were given to the backend to draw */
    eng_sampled sampled;     /* what it drew, for who asked last */
    uint32_t step_rows;
    bool step_routing; /* a span wants it: s.routing is filled */
    mdl_routing_layout routing;
    uint8_t *routing_rows; /* [rows_max][routing.row_bytes] */
    uint32_t step_layer;   /* for fault messages, with: */
    const char *fault;     /* the operation that met NaN or infinity */
    const char *broken;    /* set instead of fault: the device failed, with its words */
    const eng_tap *tap;
};

/* Slice of `layer` (counted from the first loaded one) of all pages. */
krn_cache eng_engine_layer_cache(const eng_engine *engine, uint32_t layer);
SL_MUST_USE sl_status eng_scratch_carve(eng_engine *engine, sl_err *err);
void eng_scratch_free(eng_engine *engine);
/* transit.c. bytes 0: the cache itself. */
SL_MUST_USE sl_status eng_transit_create(eng_engine *engine, uint64_t bytes, sl_err *err);
void eng_transit_destroy(eng_engine *engine);
/* Whether the cache is memory that the host reads and writes. */
bool eng_engine_host_reaches(const eng_engine *engine);
/* Where the host may look into the cache: waits until what was put into it is there. */
void eng_engine_settle(eng_engine *engine);
/* Page `page` of the cache, backend memory. */
uint8_t *eng_engine_page(const eng_engine *engine, uint32_t page);
/* h_final bytes in the page that holds the token before `length`. */
void *eng_sequence_h_at(const eng_sequence *sequence, uint32_t length);
/* Moves the end and seals what is complete. */
void eng_sequence_set_length(eng_sequence *sequence, uint32_t length);
/* Zeroes the rows of tokens [begin, end) in all layers. */
void eng_sequence_clear_rows(eng_sequence *sequence, uint32_t begin, uint32_t end);

#ifdef __cplusplus
}
#endif
#endif
