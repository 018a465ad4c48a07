/* Safetensors checkpoints: a directory (index or single file) or one file, mapped and validated.
 *
 * Opening checks everything that can be checked without reading tensor data: header bounds, dtypes,
 * shapes against byte ranges, no gaps, no overlaps, unique names, index against files. What the
 * index names but no file holds is absent: an error only for whoever needs it, so that some layers
 * of a large model can lie on a disk alone. Afterwards the checkpoint is immutable and shareable;
 * tensors point into the mapping (unaligned ones into a copy) and live until close.
 * Errors name the file and the tensor. Thread: any. */
#ifndef MODEL_SAFETENSORS_H
#define MODEL_SAFETENSORS_H

#include "base/status.h"
#include "model/shape.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum mdl_dtype {
    MDL_DTYPE_F32,
    MDL_DTYPE_BF16,
    MDL_DTYPE_F8_E4M3,
    MDL_DTYPE_F8_E8M0,
    MDL_DTYPE_U8,
    MDL_DTYPE_I32,
    MDL_DTYPE_I64,
    MDL_DTYPE_COUNT,
} mdl_dtype;

#define MDL_TENSOR_RANK_MAX      4
#define MDL_TENSOR_NAME_MAX      255
#define MDL_HEADER_BYTES_MAX     ((uint64_t)100 << 20)
#define MDL_CHECKPOINT_FILES_MAX 1024

typedef struct mdl_tensor {
    const char *name;
    mdl_dtype dtype;
    int32_t rank; /* 0 = scalar */
    int64_t shape[MDL_TENSOR_RANK_MAX];
    const void *data; /* row-major, little-endian, aligned to the element size */
    size_t bytes;
    const char *file; /* for messages; NULL is fine when writing */
    bool copied;      /* data is not in the mapping: it lay unaligned there */
} mdl_tensor;

typedef struct mdl_checkpoint mdl_checkpoint;

size_t mdl_dtype_bytes(mdl_dtype dtype);
const char *mdl_dtype_name(mdl_dtype dtype); /* "F8_E4M3" */

/* dir: with model.safetensors.index.json, or else model.safetensors. */
SL_MUST_USE sl_status mdl_checkpoint_open(const char *dir, mdl_checkpoint **out_checkpoint,
                                          sl_err *err);
/* One .safetensors file (vectors, dumps). */
SL_MUST_USE sl_status mdl_checkpoint_open_file(const char *path, mdl_checkpoint **out_checkpoint,
                                               sl_err *err);
void mdl_checkpoint_close(mdl_checkpoint *checkpoint);

size_t mdl_checkpoint_count(const mdl_checkpoint *checkpoint);
/* In the order of the files and of their data. */
const mdl_tensor *mdl_checkpoint_at(const mdl_checkpoint *checkpoint, size_t index);
/* Tensors that the index names but no file holds; NULL from find, not counted above. */
size_t mdl_checkpoint_absent_count(const mdl_checkpoint *checkpoint);
/* The file that should hold it and whether that is there at all; false: not absent. */
bool mdl_checkpoint_absent(const mdl_checkpoint *checkpoint, const char *name,
                           const char **out_file, bool *out_file_there);
const mdl_tensor *mdl_checkpoint_find(const mdl_checkpoint *checkpoint, const char *name);
/* Must exist with this dtype and shape ("missing", "is BF16 [4, 2], expected F32 [4, 4]"). */
SL_MUST_USE sl_status mdl_checkpoint_get(const mdl_checkpoint *checkpoint, const char *name,
                                         mdl_dtype dtype, int32_t rank, const int64_t *shape,
                                         const mdl_tensor **out_tensor, sl_err *err);

/* What of a model somebody wants to load. */
typedef struct mdl_part {
    int32_t layer_first, layer_end; /* the MTP layer is shape.layer_count */
    bool ends;                      /* embedding, final norm, head */
} mdl_part;

/* Every tensor that spec section 2 lists for the shape is there with the right dtype and shape, and
 * nothing else is (rotary_emb.inv_freq aside); outside the part (NULL = the whole model) tensors
 * may be absent. The error lists up to a few names and the count. Reads no tensor data: values are
 * judged by who loads them. */
SL_MUST_USE sl_status mdl_checkpoint_check(const mdl_checkpoint *checkpoint, const mdl_shape *shape,
                                           const mdl_part *part, sl_err *err);

/* Writes a file with these tensors through a temporary name. Data is laid out by element size,
 * largest first, so that everything is aligned. */
SL_MUST_USE sl_status mdl_safetensors_write(const char *path, const mdl_tensor *tensors,
                                            size_t tensor_count, sl_err *err);

#ifdef __cplusplus
}
#endif
#endif
