/* Transit pages of the CUDA backend: copies on a stream of their own, beside the steps.
 *
 * Nothing orders that stream behind the operations' one, because nothing has to: rows go out after
 * `finish`, pages come in after `bind`, and both wait. Sums of what goes out are made on the device
 * from small arrays in pinned memory. Thread: the engine thread. */
#include "engine/cuda.h"

#include "base/alloc.h"
#include "base/assert.h"

bool eng_cuda_out_busy(const eng_engine *engine)
{
    return eng_cuda_of(engine)->transit.used > 0;
}

bool eng_cuda_out_wait(eng_engine *engine)
{
    eng_cuda *cuda = eng_cuda_of(engine);
    eng_cuda_transit *transit = &cuda->transit;
    eng_cuda_check(cuda, cuda->api->stream_wait(transit->stream));
    if (cuda->broken[0]) {
        engine->broken = cuda->broken;
        transit->used = 0;
        return false;
    }
    for (uint32_t i = 0; i < transit->used; i++)
        *transit->targets[i] = transit->sums[i];
    transit->used = 0;
    return true;
}

void eng_cuda_pieces_out(eng_engine *engine, const eng_outgoing *pieces, uint32_t count)
{
    eng_cuda *cuda = eng_cuda_of(engine);
    eng_cuda_transit *transit = &cuda->transit;
    sl_assert(count > 0 && count <= ENG_CUDA_OUT_MAX);
    if (transit->used + count > ENG_CUDA_OUT_MAX)
        (void)eng_cuda_out_wait(engine);
    uint32_t first = transit->used;
    for (uint32_t i = 0; i < count; i++) {
        transit->pieces[first + i] = pieces[i].from;
        transit->tweaks[first + i] = pieces[i].tweak;
        transit->targets[first + i] = pieces[i].out_sum;
    }
    transit->used += count; /* also when the device is broken: the wait says so */
    const krn_cuda_sum_params sums = {
        .pieces = transit->pieces + first,
        .tweaks = transit->tweaks + first,
        .out_sums = transit->sums + first,
        .key = engine->sum_key,
        .bytes = pieces[0].bytes,
        .count = count,
    };
    if (!cuda->broken[0])
        eng_cuda_check(cuda, cuda->api->sums(&sums, transit->stream));
    for (uint32_t i = 0; i < count && !cuda->broken[0]; i++)
        eng_cuda_check(
            cuda, cuda->api->copy(pieces[i].to, pieces[i].from, pieces[i].bytes, transit->stream));
}

void eng_cuda_page_in(eng_engine *engine, void *page, const void *host)
{
    eng_cuda *cuda = eng_cuda_of(engine);
    if (!cuda->broken[0])
        eng_cuda_check(
            cuda, cuda->api->copy(page, host, engine->layout.page_bytes, cuda->transit.stream));
}

/* A mark is the event's number; an event is used again, so that an old mark may be found done late,
 * never early. */
uint64_t eng_cuda_page_mark(eng_engine *engine)
{
    eng_cuda *cuda = eng_cuda_of(engine);
    uint64_t mark = cuda->transit.marks++;
    if (!cuda->broken[0])
        eng_cuda_check(cuda, cuda->api->event_record(cuda->transit.events[mark % ENG_CUDA_MARKS],
                                                     cuda->transit.stream));
    return mark;
}

bool eng_cuda_page_done(eng_engine *engine, uint64_t mark, bool wait)
{
    eng_cuda *cuda = eng_cuda_of(engine);
    krn_cuda_event event = cuda->transit.events[mark % ENG_CUDA_MARKS];
    int32_t done = 1;
    if (!cuda->broken[0])
        eng_cuda_check(cuda,
                       wait ? cuda->api->event_wait(event) : cuda->api->event_done(event, &done));
    return done || cuda->broken[0];
}

sl_status eng_cuda_transit_create(eng_engine *engine, sl_err *err)
{
    eng_cuda *cuda = eng_cuda_of(engine);
    eng_cuda_transit *transit = &cuda->transit;
    const krn_cuda_api *api = cuda->api;
    if (!engine->transit.memory)
        return sl_ok();
    SL_TRY(krn_cuda_status(api, api->stream_create(&transit->stream), err));
    for (uint32_t i = 0; i < ENG_CUDA_MARKS; i++)
        SL_TRY(krn_cuda_status(api, api->event_create(&transit->events[i]), err));
    size_t bytes = ENG_CUDA_OUT_MAX * sizeof(uint64_t);
    _Static_assert(sizeof(void *) == sizeof(uint64_t), "three arrays of words");
    SL_TRY(krn_cuda_status(api, api->host_create(3 * bytes, (void **)&transit->pieces), err));
    transit->tweaks = (uint64_t *)transit->pieces + ENG_CUDA_OUT_MAX;
    transit->sums = transit->tweaks + ENG_CUDA_OUT_MAX;
    transit->targets = sl_alloc(ENG_CUDA_OUT_MAX, sizeof(*transit->targets), "cuda sums");
    return sl_ok();
}

void eng_cuda_transit_destroy(eng_cuda *cuda)
{
    eng_cuda_transit *transit = &cuda->transit;
    if (transit->stream)
        (void)cuda->api->stream_wait(transit->stream);
    for (uint32_t i = 0; i < ENG_CUDA_MARKS; i++)
        cuda->api->event_destroy(transit->events[i]);
    cuda->api->stream_destroy(transit->stream);
    cuda->api->host_destroy(transit->pieces);
    sl_free(transit->targets);
}
