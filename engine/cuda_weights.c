/* Weights in the forms that the device multiplies with; opens the device.
 *
 * Packed on the host by the loader's pool, then copied as one piece. Thread: any at open. */
#include "engine/cuda.h"

#include "base/assert.h"

sl_status eng_cuda_model_open(eng_model *model, const char *object, sl_err *err)
{
    krn_cuda_device device;
    if (model->numerics == ENG_NUMERICS_PLAIN)
        return sl_fail(err, SL_UNSUPPORTED, "cuda: the plain numerics are the CPU's only");
    if (!model->shape.quantised)
        return sl_fail(err, SL_UNSUPPORTED, "cuda: the checkpoint is bf16, only fp8 ones run");
    return krn_cuda_load(object, 0, &model->cuda, &device, err);
}

size_t eng_cuda_matrix_bytes(const eng_model *model, krn_matrix_kind kind, uint32_t n, uint32_t k)
{
    sl_assert(kind != KRN_MATRIX_F32);
    const krn_cuda_api *api = model->cuda;
    return (size_t)(kind == KRN_MATRIX_FP8 ? api->weights_bytes(n, k)
                                           : api->weights_bytes_bf16(n, k));
}

void eng_cuda_pack_fp8(const eng_model *model, const uint8_t *codes, const float *scales,
                       uint32_t n, uint32_t k, void *memory, krn_matrix *out_matrix)
{
    model->cuda->weights_pack(codes, scales, n, k, 0, (n + 63) / 64 * 64, memory);
    *out_matrix = (krn_matrix){.kind = KRN_MATRIX_FP8, .n = n, .k = k, .panels = memory};
}

void eng_cuda_pack_bf16(const eng_model *model, const uint16_t *weights, size_t n_stride,
                        size_t k_stride, uint32_t n, uint32_t k, void *memory,
                        krn_matrix *out_matrix)
{
    model->cuda->weights_pack_bf16(weights, n_stride, k_stride, n, k, memory);
    *out_matrix = (krn_matrix){.kind = KRN_MATRIX_BF16, .n = n, .k = k, .panels = memory};
}

sl_status eng_cuda_upload(const eng_model *model, void *to, const void *host, size_t bytes,
                          sl_err *err)
{
    const krn_cuda_api *api = model->cuda;
    int code = api->copy(to, host, bytes, NULL);
    return krn_cuda_status(api, code ? code : api->stream_wait(NULL), err);
}
