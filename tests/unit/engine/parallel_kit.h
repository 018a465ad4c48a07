/* Streams that an engine answers in mixed batches: what an instance's ranks and one process alone
 * must give alike. */
#ifndef TESTS_UNIT_ENGINE_PARALLEL_KIT_H
#define TESTS_UNIT_ENGINE_PARALLEL_KIT_H

#include <poll.h>

#include "base/clock.h"
#include "base/sum.h"
#include "comm/comm.h"
#include "engine/parallel.h"
#include "tests/unit/engine/support.h"

enum {
    KIT_STREAMS = 60,
    KIT_PROMPT_MAX = 90, /* past index_topk and a page's edge */
    KIT_DRAWN = 9,
    KIT_TOTAL_MAX = KIT_PROMPT_MAX + KIT_DRAWN,
    KIT_ACTIVE = 7,
    KIT_ROWS = 168,
};

typedef struct kit_stream {
    uint32_t prompt, known;
    uint32_t tokens[KIT_TOTAL_MAX];
    uint64_t sum; /* of all logits drawn from, and in the end of its pages */
    eng_sequence *sequence;
    uint32_t draft_count, drafts[ENG_DRAFTS_MAX];
} kit_stream;

typedef struct kit_play {
    eng_engine *engine;
    uint64_t seed, draws;
    kit_stream *streams[KIT_STREAMS]; /* those of this rank */
    uint32_t count, next, active_count;
    kit_stream *active[KIT_ACTIVE];
    uint32_t accepted, largest;
} kit_play;

static inline uint32_t kit_pick(kit_play *p, uint32_t below)
{
    return (uint32_t)(sl_keyed_uniform(p->seed, p->draws++, 77) * below);
}

static inline void kit_streams(kit_stream *streams)
{
    memset(streams, 0, KIT_STREAMS * sizeof(*streams));
    for (uint32_t i = 0; i < KIT_STREAMS; i++) {
        kit_stream *s = &streams[i];
        s->prompt = s->known = 1 + (uint32_t)(sl_keyed_uniform(3, i, 9) * KIT_PROMPT_MAX);
        stream_fill(i, s->prompt, s->tokens);
    }
}

static inline uint32_t kit_total(const kit_stream *s)
{
    return s->prompt + KIT_DRAWN;
}

static inline void kit_draw(kit_stream *s, const float *logits)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < NANO_VOCAB; i++)
        if (logits[i] > logits[best])
            best = i;
    s->sum = sl_sum64(s->sum + 1, s->known, logits, NANO_VOCAB * sizeof(float));
    s->tokens[s->known++] = best;
}

static inline void kit_open(kit_play *p)
{
    while (p->active_count < KIT_ACTIVE && p->next < p->count && kit_pick(p, 3) > 0) {
        kit_stream *s = p->streams[p->next++];
        s->sequence = sequence_open(p->engine, kit_total(s) + ENG_DRAFTS_MAX);
        p->active[p->active_count++] = s;
    }
}

/* Some of those that generate get drafts. */
static inline sl_status kit_draft(kit_play *p, sl_err *err)
{
    eng_drafts drafts[KIT_ACTIVE];
    kit_stream *of[KIT_ACTIVE];
    uint32_t count = 0;
    for (uint32_t i = 0; i < p->active_count; i++) {
        kit_stream *s = p->active[i];
        uint32_t length = eng_sequence_length(s->sequence), wanted = kit_pick(p, 4);
        uint32_t left = kit_total(s) - s->known;
        wanted = wanted < left ? wanted : left - 1;
        s->draft_count = 0;
        if (s->known == s->prompt || length + 1 != s->known || wanted == 0)
            continue;
        of[count] = s;
        drafts[count++] =
            (eng_drafts){.sequence = s->sequence, .next_token = s->tokens[length], .count = wanted};
    }
    if (count == 0)
        return sl_ok();
    SL_TRY(eng_draft_many(p->engine, drafts, count, err));
    for (uint32_t i = 0; i < count; i++) {
        of[i]->draft_count = drafts[i].count;
        memcpy(of[i]->drafts, drafts[i].tokens, sizeof(drafts[i].tokens));
    }
    return sl_ok();
}

/* Chunks of prompts, single rows, rows with drafts, all in one batch. */
static inline sl_status kit_step(kit_play *p, sl_err *err)
{
    eng_span spans[KIT_ACTIVE];
    uint32_t buffer[KIT_ROWS + KIT_ACTIVE * ENG_DRAFTS_MAX], at = 0, rows = 0, row = 0;
    SL_TRY(kit_draft(p, err));
    for (uint32_t i = 0; i < p->active_count; i++) {
        kit_stream *s = p->active[i];
        uint32_t length = eng_sequence_length(s->sequence), count = s->known - length;
        uint32_t room = KIT_ROWS / KIT_ACTIVE, chunk = 1 + kit_pick(p, room);
        count = count < chunk ? count : chunk;
        spans[i] = (eng_span){.sequence = s->sequence,
                              .tokens = buffer + at,
                              .token_count = count + s->draft_count,
                              .logits = s->draft_count ? ENG_LOGITS_ALL : ENG_LOGITS_LAST};
        memcpy(buffer + at, s->tokens + length, count * sizeof(uint32_t));
        memcpy(buffer + at + count, s->drafts, s->draft_count * sizeof(uint32_t));
        at += count + s->draft_count;
        rows += count + s->draft_count;
    }
    p->largest = rows > p->largest ? rows : p->largest;
    SL_TRY(eng_step(p->engine, spans, p->active_count, NULL, NULL, err));
    for (uint32_t i = 0; i < p->active_count; i++) {
        kit_stream *s = p->active[i];
        uint32_t first = row, before = s->known;
        row += s->draft_count ? spans[i].token_count : 1;
        if (!s->draft_count && eng_sequence_length(s->sequence) < s->known)
            continue; /* a prompt that goes on */
        kit_draw(s, eng_step_logits(p->engine, first));
        for (uint32_t d = 0; d < s->draft_count && s->known < kit_total(s); d++) {
            if (s->drafts[d] != s->tokens[s->known - 1])
                break;
            kit_draw(s, eng_step_logits(p->engine, first + d + 1));
            p->accepted++;
        }
        if (s->draft_count)
            eng_sequence_truncate(s->sequence, before + (s->known - before) - 1);
    }
    return sl_ok();
}

static inline void kit_close(kit_play *p)
{
    for (uint32_t i = 0; i < p->active_count; i++) {
        kit_stream *s = p->active[i];
        if (s->known < kit_total(s))
            continue;
        size_t size;
        uint8_t *bytes = sequence_bytes(p->engine, s->sequence, &size);
        s->sum = sl_sum64(s->sum + 1, s->known, bytes, size);
        s->sum = sl_sum64(s->sum + 1, s->known, s->tokens, s->known * sizeof(uint32_t));
        sl_free(bytes);
        eng_sequence_close(s->sequence);
        p->active[i--] = p->active[--p->active_count];
    }
}

/* Streams first, first + stride, ..: all the way. */
static inline void kit_play_all(kit_play *p, eng_engine *engine, kit_stream *streams,
                                uint32_t first, uint32_t stride)
{
    sl_err err;
    memset(p, 0, sizeof(*p));
    p->engine = engine;
    p->seed = 100 * stride + first;
    for (uint32_t i = first; i < KIT_STREAMS; i += stride)
        p->streams[p->count++] = &streams[i];
    while (p->next < p->count || p->active_count > 0) {
        kit_open(p);
        if (p->active_count == 0)
            continue;
        assert_ok(kit_step(p, &err), &err);
        kit_close(p);
    }
}

/* Takes part in the others' runs until `fd` is readable. */
static inline void kit_take_part(eng_engine *engine, int fd)
{
    for (;;) {
        struct pollfd either[] = {{.fd = fd, .events = POLLIN},
                                  {.fd = eng_engine_ranks_fd(engine), .events = POLLIN}};
        if (eng_engine_take_part(engine))
            continue;
        if (eng_engine_broken(engine))
            return;
        if (!eng_engine_ranks_arm(engine))
            continue;
        poll(either, 2, -1);
        if (either[0].revents)
            return;
    }
}

/* The first rank wants two micro-batches now and then, the second often, others never: who wants
 * none takes part in them. */
static bool kit_never_splits;

static inline uint32_t kit_micro_batch_rows(const com_group *group)
{
    static const uint32_t ROWS[] = {40, 12};
    uint32_t rank = group ? com_group_rank(group) : 0;
    return rank < 2 && !kit_never_splits ? ROWS[rank] : UINT32_MAX;
}

static inline eng_options kit_engine_options(com_group *group)
{
    return (eng_options){.kv_bytes = 64 << 20,
                         .micro_batch_rows = kit_micro_batch_rows(group),
                         .rows_max = KIT_ROWS + KIT_ACTIVE * ENG_DRAFTS_MAX,
                         .threads = 1,
                         .sequences_max = KIT_ACTIVE,
                         .group = group};
}

/* One rank's model and engine; group NULL: one process alone. */
static inline void kit_rank_open(rig *r, const char *dir, com_group *group)
{
    sl_err err;
    const eng_model_options model = {
        .dir = dir,
        .threads = 1,
        .ep_rank = group ? com_group_rank(group) : 0,
        .ep_size = group ? com_group_size(group) : 1,
    };
    r->model = NULL;
    assert_ok(eng_model_open(&model, &r->model, &err), &err);
}

static inline void kit_rank_start(rig *r, com_group *group, const char *const *contacts)
{
    sl_err err;
    com_layout layout;
    const eng_options options = kit_engine_options(group);
    if (group) {
        eng_model_ranks_layout(r->model, (uint32_t)options.rows_max, &layout);
        assert_ok(
            com_group_connect(group, contacts, &layout, sl_now_ns() + 60 * SL_S_NS, NULL, &err),
            &err);
        assert_ok(eng_model_join(r->model, group, &err), &err);
    }
    r->engine = NULL;
    assert_ok(eng_engine_create(r->model, &options, &r->engine, &err), &err);
}

static inline void kit_rank_close(rig *r)
{
    eng_engine_destroy(r->engine);
    eng_model_close(r->model);
}

/* What one process gives. */
static inline void kit_alone(const char *dir, kit_stream *streams)
{
    static kit_play play;
    rig r;
    kit_rank_open(&r, dir, NULL);
    kit_rank_start(&r, NULL, NULL);
    kit_streams(streams);
    kit_play_all(&play, r.engine, streams, 0, 1);
    kit_rank_close(&r);
}

#endif
