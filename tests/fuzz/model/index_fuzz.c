/* model.safetensors.index.json: any text beside two good files. What opens has every tensor either
 * present or absent, and the check of a model never crashes on it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "model/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char dir[64];

static void remove_dir(void)
{
    static const char *const NAMES[] = {"a.safetensors", "b.safetensors",
                                        "model.safetensors.index.json"};
    char path[128];

    for (size_t i = 0; i < sizeof(NAMES) / sizeof(NAMES[0]); i++) {
        snprintf(path, sizeof(path), "%s/%s", dir, NAMES[i]);
        unlink(path);
    }
    rmdir(dir);
}

static void make_dir(void)
{
    static const uint16_t WEIGHT[4] = {1, 2, 3, 4};
    const mdl_tensor tensor[2] = {
        {.name = "model.norm.weight", MDL_DTYPE_BF16, 1, {4}, .data = WEIGHT, .bytes = 8},
        {.name = "lm_head.weight", MDL_DTYPE_BF16, 2, {2, 2}, .data = WEIGHT, .bytes = 8},
    };
    char path[128];
    sl_err err;

    snprintf(dir, sizeof(dir), "%s/sluice-index-fuzz-XXXXXX",
             access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    sl_assert(mkdtemp(dir) != NULL);
    atexit(remove_dir);
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof(path), "%s/%c.safetensors", dir, 'a' + i);
        sl_assert(sl_is_ok(mdl_safetensors_write(path, &tensor[i], 1, &err)));
    }
}

static void look_at(const mdl_checkpoint *c)
{
    static const mdl_shape SHAPE = {.vocab_size = 8, .hidden_size = 128, .layer_count = 2};
    static const mdl_part PART = {.layer_end = 1};
    const char *file;
    bool there;
    sl_err err;

    for (size_t i = 0; i < mdl_checkpoint_count(c); i++) {
        const mdl_tensor *t = mdl_checkpoint_at(c, i);
        sl_assert(mdl_checkpoint_find(c, t->name) == t && t->data);
        sl_assert(!mdl_checkpoint_absent(c, t->name, &file, &there));
    }
    sl_assert(!sl_is_ok(mdl_checkpoint_check(c, &SHAPE, &PART, &err)) && err.text[0]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    mdl_checkpoint *c = NULL;
    char path[128];
    sl_err err;

    if (!dir[0])
        make_dir();
    snprintf(path, sizeof(path), "%s/model.safetensors.index.json", dir);
    FILE *file = fopen(path, "w");
    sl_assert(file && (size == 0 || fwrite(data, size, 1, file) == 1) && fclose(file) == 0);
    if (sl_is_ok(mdl_checkpoint_open(dir, &c, &err)))
        look_at(c);
    else
        sl_assert(!c && err.text[0]);
    mdl_checkpoint_close(c);
    sl_assert(sl_alloc_live() == 0);
    return 0;
}
