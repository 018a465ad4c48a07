/* The depth of drafting: see draft.h.
 *
 * After each window of steps the depth goes one down when less than a quarter of the drafts were
 * right, one up when at least three quarters were, and never past the last draft that pays at the
 * price of the moment. At depth 0 it rests, then tries one draft again; it rests no longer when the
 * price comes down to where its drafts pay. Owns nothing; engine thread. */
#include "decode/draft.h"

#include "base/assert.h"

void dec_draft_init(dec_draft *draft, uint32_t depth_max)
{
    *draft = (dec_draft){
        .depth_max = depth_max, .depth = depth_max, .rest = DEC_DRAFT_REST_MIN, .chance = 1};
}

/* Draft number k is right if all up to it are. */
static uint32_t paying(const dec_draft *draft, uint32_t depth, double price)
{
    uint32_t count = 0;
    for (double chance = draft->chance; count < depth && chance >= price; count++)
        chance *= draft->chance;
    return count;
}

uint32_t dec_draft_depth(const dec_draft *draft, double price)
{
    uint32_t depth = paying(draft, draft->depth, price);
    return depth == 0 && draft->depth > 0 ? 1 : depth; /* an open window goes on, to know more */
}

static void open_window(dec_draft *draft, uint32_t depth)
{
    draft->depth = depth;
    draft->steps = 0;
    draft->drafted = 0;
    draft->accepted = 0;
    draft->missed = 0;
}

static void close_window(dec_draft *draft, double price)
{
    uint32_t depth = draft->depth;
    draft->chance = (double)draft->accepted / (draft->accepted + draft->missed);
    if (4 * draft->accepted < draft->drafted)
        depth--;
    else if (4 * draft->accepted >= 3 * draft->drafted && depth < draft->depth_max)
        depth++;
    uint32_t pays = paying(draft, depth, price);
    if (pays > 0 && 4 * draft->accepted >= draft->drafted)
        draft->rest = DEC_DRAFT_REST_MIN;
    open_window(draft, pays);
}

static void note_rest(dec_draft *draft, double price)
{
    bool pays = price > 0 && 4 * draft->chance >= 1 && draft->chance >= price;
    if (!pays && ++draft->steps < draft->rest)
        return;
    /* Doubled now, reset by a window that pays: the next rest is longer if this try is in vain. */
    draft->rest = 2 * draft->rest < DEC_DRAFT_REST_MAX ? 2 * draft->rest : DEC_DRAFT_REST_MAX;
    open_window(draft, 1);
}

void dec_draft_note(dec_draft *draft, uint32_t drafted, uint32_t accepted, double price)
{
    sl_assert(accepted <= drafted && drafted <= draft->depth_max);
    if (draft->depth_max == 0)
        return;
    if (draft->depth == 0) {
        note_rest(draft, price);
        return;
    }
    if (drafted == 0) /* no room for any: says nothing */
        return;
    draft->drafted += drafted;
    draft->accepted += accepted;
    draft->missed += accepted < drafted;
    if (++draft->steps == DEC_DRAFT_WINDOW)
        close_window(draft, price);
}
