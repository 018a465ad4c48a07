/* --layers A:B: runs some layers alone on stored inputs, so that each can be judged apart.
 *
 * Thread: main. */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "engine/run/dump.h"
#include "engine/run/generate.h"
#include "engine/run/progress.h"
#include "model/config.h"
#include "model/safetensors.h"

typedef struct layers_run {
    const eng_run_options *options;
    mdl_checkpoint *file;
    const uint16_t *x, *res;
    uint32_t rows;
    int first, end;
    eng_model *model;
    eng_engine *engine;
    eng_sequence *sequence;
    eng_run_dump *dump;
    eng_load_progress loaded;
    double step_ms;
} layers_run;

static sl_status layers_check(layers_run *run, sl_err *err)
{
    const eng_run_options *options = run->options;
    char rest;
    if (sscanf(options->layers, "%d:%d%c", &run->first, &run->end, &rest) != 2 || run->first < 0 ||
        run->end <= run->first)
        return sl_fail(err, SL_INVALID, "--layers: \"%s\" is not A:B with A < B", options->layers);
    if (!options->hidden_in || !options->dump)
        return sl_fail(err, SL_INVALID, "--layers needs --hidden-in FILE and --dump FILE");
    if (options->numerics != ENG_NUMERICS_FP8)
        return sl_fail(err, SL_INVALID, "--layers: its inputs are bf16, so only --numerics fp8");
    return sl_ok();
}

static sl_status layers_read(layers_run *run, sl_err *err)
{
    mdl_shape shape;
    SL_TRY(mdl_shape_load(run->options->model, &shape, err));
    if (run->end > shape.layer_count + shape.mtp_layer_count)
        return sl_fail(err, SL_INVALID, "--layers %s: the model has layers 0:%d and %d MTP layer",
                       run->options->layers, shape.layer_count, shape.mtp_layer_count);
    SL_TRY(mdl_checkpoint_open_file(run->options->hidden_in, &run->file, err));
    const mdl_tensor *x = mdl_checkpoint_find(run->file, "layer_x");
    int64_t rows = x && x->rank == 2 ? x->shape[0] : 0;
    if (rows < 1 || rows > (int64_t)ENG_BATCH_ROWS_MAX)
        return sl_fail(err, SL_INVALID, "%s: needs layer_x [n, %d] with 1 to %u rows",
                       run->options->hidden_in, shape.hidden_size, ENG_BATCH_ROWS_MAX);
    const int64_t wanted[] = {rows, shape.hidden_size};
    const mdl_tensor *res = NULL;
    SL_TRY(mdl_checkpoint_get(run->file, "layer_x", MDL_DTYPE_BF16, 2, wanted, &x, err));
    SL_TRY(mdl_checkpoint_get(run->file, "layer_res", MDL_DTYPE_BF16, 2, wanted, &res, err));
    run->x = x->data;
    run->res = res->data;
    run->rows = (uint32_t)rows;
    return sl_ok();
}

static sl_status layers_open(layers_run *run, sl_err *err)
{
    const eng_run_options *options = run->options;
    eng_model_options model_options = {
        .dir = options->model,
        .backend = (eng_backend)options->backend,
        .cuda_object = options->cuda_library,
        .layer_first = run->first,
        .layer_end = run->end,
        .threads = (int)options->threads,
        .progress = eng_run_show_progress,
        .progress_context = &run->loaded,
    };
    SL_TRY(eng_model_open(&model_options, &run->model, err));
    eng_options engine_options = {
        .kv_bytes = eng_model_kv_bytes(run->model, run->rows),
        .sequences_max = 1,
        .rows_max = (int)run->rows,
        .context_max = run->rows,
        .threads = (int)options->threads,
    };
    SL_TRY(eng_engine_create(run->model, &engine_options, &run->engine, err));
    SL_TRY(eng_sequence_open(run->engine, run->rows, &run->sequence, err));
    run->dump = eng_run_dump_create(&(eng_run_dump_options){
        .shape = eng_model_shape(run->model),
        .layer_first = (uint32_t)run->first,
        .layer_end = (uint32_t)run->end,
        .prompt_count = run->rows,
        .rows_max = 1,
    });
    eng_engine_set_tap(run->engine, eng_run_dump_tap(run->dump));
    return sl_ok();
}

static sl_status layers_step(layers_run *run, sl_err *err)
{
    sl_time_ns start = sl_now_ns();
    SL_TRY(eng_step_layers(run->engine, run->sequence, run->x, run->res, run->rows, err));
    run->step_ms = (double)(sl_now_ns() - start) / (double)SL_MS_NS;
    return sl_ok();
}

static void layers_print(const layers_run *run)
{
    printf("{\"rows\":%u,\"loaded_bytes\":%llu,\"timing\":{\"load_ms\":%.3f,"
           "\"step_ms\":%.3f},\"model_hash\":\"%s\"}\n",
           run->rows, (unsigned long long)run->loaded.bytes_total, run->loaded.seconds * 1e3,
           run->step_ms, eng_engine_stamp(run->engine)->model_hash);
}

sl_status eng_run_layers(const eng_run_options *options, sl_err *err)
{
    layers_run run = {.options = options};
    SL_TRY(layers_check(&run, err));
    sl_status status = layers_read(&run, err);
    if (sl_is_ok(status))
        status = layers_open(&run, err);
    if (sl_is_ok(status))
        status = layers_step(&run, err);
    if (sl_is_ok(status))
        status = eng_run_dump_write_layers(run.dump, options->dump, err);
    if (sl_is_ok(status) && options->json)
        layers_print(&run);
    eng_run_dump_destroy(run.dump);
    if (run.sequence)
        eng_sequence_close(run.sequence);
    eng_engine_destroy(run.engine);
    eng_model_close(run.model);
    mdl_checkpoint_close(run.file);
    return status;
}
