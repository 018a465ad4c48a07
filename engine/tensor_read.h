/* Reading a mapped tensor once, carefully: is it there, are its values numbers, what is its sum.
 * Internal to engine/. Owns nothing; any thread. */
#ifndef ENGINE_TENSOR_READ_H
#define ENGINE_TENSOR_READ_H

#include "model/safetensors.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum eng_values {
    ENG_VALUES_WEIGHTS,     /* neither NaN nor infinity */
    ENG_VALUES_SCALES,      /* positive, normal (f32), or an exponent byte other than 255 (NaN) */
    ENG_VALUES_POW2_SCALES, /* and powers of two */
} eng_values;

typedef struct eng_tensor_read {
    uint64_t sum;   /* model/hash.h */
    char fault[96]; /* "" = none */
} eng_tensor_read;

/* False: out_read->fault says what is wrong. A file that was cut short after it was opened, or a
 * disk that fails, is such a fault, not a signal (Linux 5.14 and later). */
bool eng_tensor_look(const mdl_tensor *tensor, eng_values values, eng_tensor_read *out_read);
/* Whether both hold the same bytes (same size, which the caller knows). */
bool eng_tensor_compare(const mdl_tensor *copy, const mdl_tensor *original,
                        eng_tensor_read *out_read);
/* Starts to read it from the disk, without waiting. */
void eng_tensor_expect(const mdl_tensor *tensor);
/* Gives the memory of the mapping back; the tensor can still be read, slowly. */
void eng_tensor_forget(const mdl_tensor *tensor);

#ifdef __cplusplus
}
#endif
#endif
