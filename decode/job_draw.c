/* Draws inside a step: a job's parameters, tokens and constraint for the engine. */
#include "decode/job_draw.h"

/* What a constraint leaves at wanted row `row` of the job's span: behind its tokens come drafts. */
static const uint32_t *draw_allowed(void *context, uint32_t row)
{
    const dec_job_draw *draw = context;
    dec_job *job = draw->job;
    const uint32_t *allowed = NULL;
    sl_err err;
    const mdl_cursor_ahead ahead = {
        .generated = job->tokens + job->prompt_count,
        .count = job->token_count - job->prompt_count,
        .drafts = job->tokens + job->token_count,
        .draft_count = row,
    };
    if (row > 0)
        return mdl_cursor_mask_ahead(&job->cursor, draw->masks, &ahead);
    sl_status status =
        mdl_cursor_mask(&job->cursor, draw->masks, ahead.generated, ahead.count, &allowed, &err);
    return sl_is_ok(status) ? allowed : NULL; /* the host's draw will say why */
}

const eng_draw *dec_job_draw_init(dec_job_draw *out_draw, dec_job *job, mdl_masks *masks)
{
    *out_draw = (dec_job_draw){
        .draw = {.params = &job->sampling,
                 .ids = job->tokens,
                 .prompt_count = job->prompt_count,
                 .allowed = job->cursor.matcher ? draw_allowed : NULL,
                 .context = out_draw},
        .job = job,
        .masks = masks,
    };
    return job->handout || job->prompt_rows ? NULL : &out_draw->draw;
}
