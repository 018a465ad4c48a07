/* What constraints cost: compiling one, and its mask in each step, beside a step of the demo model
 * in the same run. build/bench/constraint [TOKENIZER]: masks of another vocabulary alone. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/alloc.h"
#include "base/rng.h"
#include "engine/engine.h"
#include "model/constraint.h"
#include "model/masks.h"

#define TOKENS_MAX 300u
#define PROMPT     "Tell me a story about a bear named Wendy."

static const struct {
    const char *name, *request;
} CASES[] = {
    {"json_object", "{\"response_format\":{\"type\":\"json_object\"}}"},
    {"schema of 3 fields", "{\"guided_json\":{\"type\":\"object\",\"properties\":{\"name\":{"
                           "\"type\":\"string\"},\"age\":{"
                           "\"type\":\"integer\",\"minimum\":0,\"maximum\":120},\"colour\":{"
                           "\"enum\":[\"red\",\"green\"]}},"
                           "\"required\":[\"name\",\"age\",\"colour\"]}}"},
    {"string of at most 400",
     "{\"guided_json\":{\"type\":\"array\",\"items\":{\"type\":\"string\",\"maxLength\":400}}}"},
    {"pattern in an array",
     "{\"guided_json\":{\"type\":\"array\",\"items\":{\"type\":\"string\",\"pattern\":"
     "\"^[A-Z][a-z]+( [a-z]+){2,9}\\\\.$\"}}}"},
    {"pattern of 20 to 150",
     "{\"guided_json\":{\"type\":\"array\",\"items\":{\"type\":\"string\",\"minLength\":20,"
     "\"maxLength\":150,\"pattern\":\"^[A-Z][a-z]+( [a-z]+){2,9}\\\\.$\"}}}"},
    {"recursive",
     "{\"guided_json\":{\"type\":\"object\",\"properties\":{\"name\":{\"type\":\"string\","
     "\"maxLength\":"
     "12},\"children\":{\"type\":\"array\",\"items\":{\"$ref\":\"#\"}}},\"required\":[\"name\","
     "\"children\"]}}"},
    {"formats",
     "{\"guided_json\":{\"type\":\"array\",\"minItems\":2,\"items\":{\"properties\":{\"mail\":{"
     "\"format\":\"email\"},\"when\":{\"format\":\"date-time\"},\"price\":{\"type\":\"number\","
     "\"minimum\":0,\"maximum\":999.99}},\"required\":[\"mail\",\"when\",\"price\"]}}}"},
    {"regex, counted letters", "{\"guided_regex\":\"([A-Z][a-z]{1,14} ){3,40}\"}"},
    {"regex of words", "{\"guided_regex\":\"([a-z]+[ ,.]){10,400}\"}"},
};

/* CPU time: the machine may be shared. */
static double now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

static double microseconds(double from)
{
    return now_us() - from;
}

static void must(sl_status status, const sl_err *err)
{
    if (sl_is_ok(status))
        return;
    fprintf(stderr, "%s\n", err->text);
    exit(1);
}

static mdl_grammar *compile(const char *request)
{
    sl_json_doc *doc = NULL;
    mdl_constraint constraint;
    mdl_grammar *grammar = NULL;
    sl_err err;
    mdl_constraint_init(&constraint);
    must(sl_json_parse(request, strlen(request), NULL, &doc, &err), &err);
    must(mdl_constraint_parse(sl_json_root(doc), NULL, &constraint, &err), &err);
    must(mdl_constraint_compile(&constraint, &grammar, &err), &err);
    mdl_constraint_fini(&constraint);
    sl_json_doc_destroy(doc);
    return grammar;
}

/* Time of masks in one answer; clocks: of reading the clock for it, which is no part of a mask. */
typedef struct times {
    double sum, worst, clocks;
    uint32_t count;
} times;

/* Of reading the clock when it has just been read, in us: about one, as much as a mask. */
static double clock_cost;

static void measure_clock(void)
{
    for (int i = 0; i < 1000; i++) {
        double from = now_us(), took = microseconds(from);
        clock_cost = i == 0 || took < clock_cost ? took : clock_cost;
    }
}

static double begin_time(times *t)
{
    double before = now_us(), from = now_us();
    t->clocks += from - before + clock_cost;
    return from;
}

static void end_time(times *t, double from)
{
    double took = microseconds(from) - clock_cost;
    t->sum += took;
    t->worst = took > t->worst ? took : t->worst;
}

static const uint32_t *timed_mask(mdl_cursor *cursor, mdl_masks *masks, const uint32_t *ids,
                                  uint32_t count, times *t)
{
    sl_err err;
    const uint32_t *mask;
    double from = begin_time(t);
    must(mdl_cursor_mask(cursor, masks, ids, count, &mask, &err), &err);
    end_time(t, from);
    t->count++;
    return mask;
}

/* A random allowed token: what a model that knows nothing would say. */
static uint32_t choose(const uint32_t *mask, uint32_t vocab, uint32_t seed, uint32_t position)
{
    uint32_t start = (uint32_t)(sl_keyed_uniform(seed, position, 1) * vocab);
    for (uint32_t i = 0; i < vocab; i++) {
        uint32_t id = (start + i) % vocab;
        if (mask[id / 32] >> (id % 32) & 1)
            return id;
    }
    abort();
}

static times walk(mdl_matcher *matcher, mdl_masks *masks, uint32_t vocab, uint32_t eos,
                  uint32_t seed)
{
    uint32_t ids[TOKENS_MAX], count = 0;
    mdl_cursor cursor = {.matcher = matcher};
    times t = {0};
    while (count < TOKENS_MAX) {
        const uint32_t *mask = timed_mask(&cursor, masks, ids, count, &t);
        ids[count] = choose(mask, vocab, seed, count);
        if (ids[count++] == eos)
            break;
    }
    return t;
}

static void print_walks(const char *path)
{
    mdl_tokenizer *tokenizer = NULL;
    sl_err err;
    must(mdl_tokenizer_load(path, &tokenizer, &err), &err);
    uint32_t vocab = (uint32_t)mdl_tokenizer_id_end(tokenizer);
    uint32_t eos = (uint32_t)mdl_tokenizer_special(tokenizer)->eos;
    double from = now_us();
    mdl_masks *masks = mdl_masks_create(tokenizer, vocab, 0);
    printf("%s: %u ids, tries in %.0f ms; random answers of at most %u tokens\n", path, vocab,
           microseconds(from) / 1e3, TOKENS_MAX);
    printf("%-24s %10s %12s %12s %12s %12s %8s\n", "constraint", "compile us", "new: mean us",
           "worst us", "4th: mean us", "worst us", "states");
    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
        from = now_us();
        mdl_grammar *grammar = compile(CASES[i].request);
        double compiled = microseconds(from);
        mdl_matcher *matcher = mdl_matcher_create(grammar, 0);
        times first = walk(matcher, masks, vocab, eos, 1), last = {0};
        for (uint32_t seed = 2; seed <= 4; seed++)
            last = walk(matcher, masks, vocab, eos, seed);
        printf("%-24s %10.0f %12.2f %12.1f %12.2f %12.1f %8u\n", CASES[i].name, compiled,
               first.sum / first.count, first.worst, last.sum / last.count, last.worst,
               mdl_matcher_state_count(matcher));
        mdl_matcher_destroy(matcher);
        mdl_grammar_destroy(grammar);
    }
    mdl_masks_destroy(masks);
    mdl_tokenizer_destroy(tokenizer);
}

/* ---- beside the model's steps ---- */

typedef struct bench {
    eng_model *model;
    eng_engine *engine;
    mdl_masks *masks;
    mdl_ids prompt;
    uint32_t eos;
} bench;

/* One greedy answer. */
typedef struct answering {
    bench *b;
    eng_sequence *sequence;
    mdl_sampling sampling;
    mdl_cursor cursor;
    uint32_t ids[TOKENS_MAX + 64], prompt, count;
    times *t;
    double steps; /* time of all, without the masks */
    uint32_t step_count;
} answering;

static const uint32_t *draft_allowed(void *context, const eng_drafts *drafts, uint32_t at)
{
    answering *a = context;
    const mdl_cursor_ahead ahead = {a->ids + a->prompt, a->count - a->prompt, drafts->tokens, at};
    double from = begin_time(a->t);
    const uint32_t *mask = mdl_cursor_mask_ahead(&a->cursor, a->b->masks, &ahead);
    end_time(a->t, from);
    return mask;
}

/* Puts drafts behind the ids; they are for the step that follows. */
static uint32_t draft(answering *a, uint32_t depth)
{
    sl_err err;
    eng_drafts drafts = {.sequence = a->sequence,
                         .next_token = a->ids[a->count - 1],
                         .count = depth,
                         .allowed = draft_allowed,
                         .context = a};
    if (depth == 0 || a->count == a->prompt)
        return 0;
    must(eng_draft_many(a->b->engine, &drafts, 1, &err), &err);
    memcpy(a->ids + a->count, drafts.tokens, depth * sizeof(uint32_t));
    return depth;
}

/* False: the answer has ended. */
static bool draw(answering *a, uint32_t row)
{
    eng_sampled sampled;
    const uint32_t *mask =
        timed_mask(&a->cursor, a->b->masks, a->ids + a->prompt, a->count - a->prompt, a->t);
    eng_sample(a->b->engine, eng_step_logits(a->b->engine, row), &a->sampling, a->ids, a->count,
               a->prompt, a->count, mask, &sampled);
    a->ids[a->count++] = sampled.id;
    return sampled.id != a->b->eos && a->count < a->prompt + TOKENS_MAX;
}

static bool advance(answering *a, uint32_t from, uint32_t depth)
{
    sl_err err;
    double begin = now_us(), apart = a->t->sum + a->t->clocks;
    bool first = a->count == a->prompt, goes_on, right;
    uint32_t drafted = draft(a, depth), row = 0;
    eng_span span = {.sequence = a->sequence,
                     .tokens = a->ids + from,
                     .token_count = a->count - from + drafted,
                     .logits = first ? ENG_LOGITS_LAST : ENG_LOGITS_ALL};
    must(eng_step(a->b->engine, &span, 1, NULL, NULL, &err), &err);
    do {
        uint32_t guess = a->ids[a->count];
        goes_on = draw(a, row);
        right = row < drafted && a->ids[a->count - 1] == guess;
        row++;
    } while (goes_on && right);
    eng_sequence_truncate(a->sequence, a->count - 1);
    if (!first) { /* the prompt's is no step as others are */
        a->steps += microseconds(begin) - (a->t->sum + a->t->clocks - apart);
        a->step_count++;
    }
    return goes_on;
}

/* Returns the time of a step without its masks; *out_share: of the masks beside that. */
static double answer(bench *b, mdl_matcher *matcher, uint32_t depth, times *t, double *out_share)
{
    answering a = {.b = b, .prompt = (uint32_t)b->prompt.count, .t = t};
    sl_err err;
    mdl_sampling_init(&a.sampling);
    a.sampling.temperature = 0;
    a.cursor.matcher = matcher;
    a.count = a.prompt;
    for (uint32_t i = 0; i < a.prompt; i++)
        a.ids[i] = (uint32_t)b->prompt.data[i];
    must(eng_sequence_open(b->engine, a.prompt + TOKENS_MAX + ENG_DRAFTS_MAX, &a.sequence, &err),
         &err);
    for (uint32_t from = 0; advance(&a, from, depth); from = a.count - 1)
        ;
    eng_sequence_close(a.sequence);
    *out_share = a.steps > 0 ? 100 * t->sum / a.steps : 0;
    return a.steps / (a.step_count ? a.step_count : 1);
}

/* What constraint number `index` costs at a depth of drafts; its answer twice. */
static void print_answer(bench *b, size_t index, uint32_t depth)
{
    mdl_grammar *grammar = compile(CASES[index].request);
    mdl_matcher *matcher = mdl_matcher_create(grammar, 0);
    times first = {0}, second = {0};
    double first_share, second_share, step = answer(b, matcher, depth, &first, &first_share);
    step = (step + answer(b, matcher, depth, &second, &second_share)) / 2;
    printf("%-24s %6u %12.0f %8.2f (%.1f %%) %8.2f (%.1f %%)\n", CASES[index].name, depth, step,
           first.sum / first.count, first_share, second.sum / second.count, second_share);
    mdl_matcher_destroy(matcher);
    mdl_grammar_destroy(grammar);
}

static void print_answers(const char *dir)
{
    bench b = {0};
    sl_err err;
    eng_model_options model = {.dir = dir, .threads = 1};
    must(eng_model_open(&model, &b.model, &err), &err);
    eng_options engine = {.kv_bytes = (uint64_t)64 << 20, .sequences_max = 1, .threads = 1};
    must(eng_engine_create(b.model, &engine, &b.engine, &err), &err);
    const mdl_tokenizer *tokenizer = eng_model_tokenizer(b.model);
    b.eos = (uint32_t)mdl_tokenizer_special(tokenizer)->eos;
    b.masks = mdl_masks_create(tokenizer, (uint32_t)eng_model_shape(b.model)->vocab_size, 0);
    mdl_ids_push(&b.prompt, mdl_tokenizer_special(tokenizer)->bos);
    must(mdl_tokenizer_encode(tokenizer, PROMPT, strlen(PROMPT), NULL, &b.prompt, &err), &err);
    printf("\n%s: greedy answers of at most %u tokens, batch of one, one thread\n", dir,
           TOKENS_MAX);
    printf("%-24s %6s %12s %16s %16s\n", "constraint", "drafts", "step us", "first answer",
           "second answer");
    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++)
        for (uint32_t depth = 0; depth <= ENG_DRAFTS_MAX; depth++)
            print_answer(&b, i, depth);
    mdl_ids_fini(&b.prompt);
    mdl_masks_destroy(b.masks);
    eng_engine_destroy(b.engine);
    eng_model_close(b.model);
}

int main(int argc, char **argv)
{
    measure_clock();
    print_walks(argc > 1 ? argv[1] : "models/demo");
    if (argc == 1)
        print_answers("models/demo");
    return 0;
}
