/* Support of the CUDA tests: the opened object, device memory that lives for one test, comparison.
 * Without a device the programs say so loudly and exit 0. */
#ifndef TESTS_CUDA_SUPPORT_H
#define TESTS_CUDA_SUPPORT_H

#include "kernels/cuda/load.h"
#include "tests/unit/kernels/data.h"

#define DEVICE_BYTES (1ull << 30)

static const krn_cuda_api *gpu;
static uint8_t *device_memory;
static uint64_t device_used;

static inline void gpu_ok(int code)
{
    if (code != KRN_CUDA_OK)
        fail_msg("code %d: %s", code, gpu->last_error());
}
/* Fresh device memory, poisoned; all of it goes back at the start of the next test. */
static inline void *gpu_take(uint64_t bytes)
{
    uint8_t *at = device_memory + device_used;
    device_used += (bytes + 1023) & ~1023ull;
    if (device_used > DEVICE_BYTES)
        fail_msg("test needs more than %llu bytes", (unsigned long long)DEVICE_BYTES);
    gpu_ok(gpu->fill(at, 0xA5, (bytes + 1023) & ~1023ull, NULL));
    return at;
}
static inline void *gpu_put(const void *data, uint64_t bytes)
{
    void *at = gpu_take(bytes);
    gpu_ok(gpu->copy(at, data, bytes, NULL));
    return at;
}
static inline void gpu_get(void *out, const void *at, uint64_t bytes)
{
    gpu_ok(gpu->copy(out, at, bytes, NULL));
    gpu_ok(gpu->stream_wait(NULL));
}
static inline uint32_t *gpu_fault(void)
{
    uint32_t zero = 0;
    return gpu_put(&zero, sizeof zero);
}
static inline uint32_t gpu_fault_of(const uint32_t *fault)
{
    uint32_t value;
    gpu_get(&value, fault, sizeof value);
    return value;
}

/* Elements that differ; bf16 values that differ by more than one unit in the last place count in
 * *out_far. */
static inline size_t bf16_differences(const uint16_t *a, const uint16_t *b, size_t count,
                                      size_t *out_far)
{
    size_t differ = 0, far = 0;
    for (size_t i = 0; i < count; i++) {
        int distance = abs((int)(int16_t)a[i] - (int)(int16_t)b[i]);
        differ += distance != 0;
        far += distance > 1;
    }
    *out_far = far;
    return differ;
}
static inline size_t byte_differences(const void *a, const void *b, size_t bytes)
{
    const uint8_t *x = a, *y = b;
    size_t differ = 0;
    for (size_t i = 0; i < bytes; i++)
        differ += x[i] != y[i];
    return differ;
}
#define assert_equal_bytes(a, b, bytes, what)                                        \
    do {                                                                             \
        size_t differ_ = byte_differences(a, b, bytes);                              \
        if (differ_ != 0)                                                            \
            fail_msg("%s: %zu of %zu bytes differ", what, differ_, (size_t)(bytes)); \
    } while (0)

/* Tiled codes [k/128][rows_tiled/8][1024] and their scales -> row-major. */
static inline void untile(const uint8_t *codes, const float *scales, uint32_t rows, uint32_t k,
                          uint32_t rows_tiled, uint8_t *out_codes, float *out_scales)
{
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t j = 0; j < k; j++) {
            uint32_t c = j % 128 / 16;
            size_t at = ((size_t)(j / 128) * (rows_tiled / 8) + r / 8) * 1024 + r % 8 * 128 +
                        (c ^ (r % 8)) * 16 + j % 16;
            out_codes[(size_t)r * k + j] = codes[at];
            out_scales[(size_t)r * (k / 128) + j / 128] =
                scales[(size_t)(j / 128) * rows_tiled + r];
        }
}
static inline void tile(const uint8_t *codes, const float *scales, uint32_t rows, uint32_t k,
                        uint32_t rows_tiled, uint8_t *out_codes, float *out_scales)
{
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t j = 0; j < k; j++) {
            uint32_t c = j % 128 / 16;
            size_t at = ((size_t)(j / 128) * (rows_tiled / 8) + r / 8) * 1024 + r % 8 * 128 +
                        (c ^ (r % 8)) * 16 + j % 16;
            out_codes[at] = codes[(size_t)r * k + j];
            out_scales[(size_t)(j / 128) * rows_tiled + r] =
                scales[(size_t)r * (k / 128) + j / 128];
        }
}

static int gpu_reset(void **state)
{
    (void)state;
    device_used = 0;
    return 0;
}

/* Opens the object beside the program; false: there is no device. */
static inline bool gpu_open(const char *program)
{
    char path[4096];
    const char *slash = strrchr(program, '/');
    snprintf(path, sizeof path, "%.*s/libsluice_cuda.so", slash ? (int)(slash - program) : 1,
             slash ? program : ".");
    sl_err err;
    krn_cuda_device device;
    sl_status status = krn_cuda_load(path, 0, &gpu, &device, &err);
    if (!sl_is_ok(status)) {
        printf("SKIPPED, NOTHING WAS TESTED: %s\n", err.text);
        return false;
    }
    printf("device %s, %d multiprocessors, driver %d, runtime %d\n", device.name,
           device.multiprocessors, device.driver_version, device.runtime_version);
    void *memory;
    if (gpu->memory_create(DEVICE_BYTES, &memory) != KRN_CUDA_OK)
        return false;
    device_memory = memory;
    return true;
}

#define GPU_TEST(name) cmocka_unit_test_setup(name, gpu_reset)
#define GPU_MAIN(tests)                                                        \
    int main(int argc, char **argv)                                            \
    {                                                                          \
        if (!gpu_open(argv[0]))                                                \
            return 0;                                                          \
        if (argc > 1)                                                          \
            cmocka_set_test_filter(argv[1]);                                   \
        int failed = cmocka_run_group_tests_name(__FILE__, tests, NULL, NULL); \
        gpu->memory_destroy(device_memory);                                    \
        return failed;                                                         \
    }

#endif
