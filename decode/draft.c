/* The depth of drafting: see draft.h.
 *
 * After each window of steps the depth goes one down when less than a quarter of the drafts were
 * right, one up when at least three quarters were. At depth 0 it rests, then tries one draft again.
 * Owns nothing; engine thread. */
#include "decode/draft.h"

#include "base/assert.h"

void dec_draft_init(dec_draft *draft, uint32_t depth_max)
{
    *draft = (dec_draft){.depth_max = depth_max, .depth = depth_max, .rest = DEC_DRAFT_REST_MIN};
}

uint32_t dec_draft_depth(const dec_draft *draft)
{
    return draft->depth;
}

static void open_window(dec_draft *draft, uint32_t depth)
{
    draft->depth = depth;
    draft->steps = 0;
    draft->drafted = 0;
    draft->accepted = 0;
}

static void close_window(dec_draft *draft)
{
    uint32_t depth = draft->depth;
    if (4 * draft->accepted < draft->drafted) {
        depth--;
    } else {
        draft->rest = DEC_DRAFT_REST_MIN;
        if (4 * draft->accepted >= 3 * draft->drafted && depth < draft->depth_max)
            depth++;
    }
    open_window(draft, depth);
}

static void note_rest(dec_draft *draft)
{
    if (++draft->steps < draft->rest)
        return;
    /* Doubled now, reset by a window that pays: the next rest is longer if this try is in vain. */
    draft->rest = 2 * draft->rest < DEC_DRAFT_REST_MAX ? 2 * draft->rest : DEC_DRAFT_REST_MAX;
    open_window(draft, 1);
}

void dec_draft_note(dec_draft *draft, uint32_t drafted, uint32_t accepted)
{
    sl_assert(accepted <= drafted && drafted <= draft->depth_max);
    if (draft->depth_max == 0)
        return;
    if (draft->depth == 0) {
        note_rest(draft);
        return;
    }
    if (drafted == 0) /* no room for any: says nothing */
        return;
    draft->drafted += drafted;
    draft->accepted += accepted;
    if (++draft->steps == DEC_DRAFT_WINDOW)
        close_window(draft);
}
