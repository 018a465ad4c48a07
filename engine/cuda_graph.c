/* Runs of operations as CUDA graphs: the first of a shape is run as it is, the second is recorded,
 * from the third on the graph is repeated and the operations only stage their small values.
 *
 * Thread: the engine thread. Bounded: the shape unused for longest gives way. */
#include "engine/cuda.h"

#include <string.h>

#include "base/assert.h"

static eng_cuda_graph *graph_find(eng_cuda *cuda, const eng_run_shape *shape)
{
    for (uint32_t i = 0; i < ENG_CUDA_GRAPHS_MAX; i++)
        if (cuda->graphs[i].used && memcmp(&cuda->graphs[i].shape, shape, sizeof(*shape)) == 0)
            return &cuda->graphs[i];
    return NULL;
}

static void graph_add(eng_cuda *cuda, const eng_run_shape *shape)
{
    eng_cuda_graph *oldest = &cuda->graphs[0];
    for (uint32_t i = 1; i < ENG_CUDA_GRAPHS_MAX; i++)
        oldest = cuda->graphs[i].used < oldest->used ? &cuda->graphs[i] : oldest;
    cuda->api->graph_destroy(oldest->graph);
    *oldest = (eng_cuda_graph){.shape = *shape, .used = ++cuda->graph_clock};
}

void eng_cuda_start(eng_engine *engine, const eng_run_shape *shape)
{
    eng_cuda *cuda = eng_cuda_of(engine);
    if (shape->plain || cuda->broken[0])
        return;
    if (cuda->stage_used > 0)
        eng_cuda_wait(cuda); /* places in the stage are part of the graph */
    cuda->graph = graph_find(cuda, shape);
    if (!cuda->graph) {
        graph_add(cuda, shape);
        return;
    }
    cuda->graph->used = ++cuda->graph_clock;
    cuda->mode = cuda->graph->graph ? ENG_CUDA_MODE_REPEAT : ENG_CUDA_MODE_RECORD;
    if (cuda->mode == ENG_CUDA_MODE_RECORD)
        eng_cuda_check(cuda, cuda->api->graph_begin(cuda->stream));
}

void eng_cuda_graph_finish(eng_cuda *cuda)
{
    if (cuda->mode == ENG_CUDA_MODE_RUN)
        return;
    const krn_cuda_api *api = cuda->api;
    if (cuda->mode == ENG_CUDA_MODE_RECORD)
        eng_cuda_check(cuda, api->graph_end(cuda->stream, &cuda->graph->graph));
    cuda->mode = ENG_CUDA_MODE_RUN;
    if (cuda->broken[0])
        return;
    eng_cuda_check(cuda,
                   api->copy(cuda->device_stage, cuda->stage, cuda->stage_used, cuda->stream));
    eng_cuda_check(cuda, api->graph_run(cuda->graph->graph, cuda->stream));
}

void eng_cuda_graphs_forget(eng_engine *engine)
{
    eng_cuda *cuda = eng_cuda_of(engine);
    sl_assert(cuda->mode == ENG_CUDA_MODE_RUN);
    for (uint32_t i = 0; i < ENG_CUDA_GRAPHS_MAX; i++)
        cuda->api->graph_destroy(cuda->graphs[i].graph);
    memset(cuda->graphs, 0, sizeof(cuda->graphs));
}
