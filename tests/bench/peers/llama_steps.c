/* What a token costs llama.cpp at a position, by the CPU clock, as the context bench measures it
 * for Sluice: peers.py compiles this against the llama.cpp it built.
 *
 *   llama_steps MODEL.gguf THREADS repacked|plain POSITION...
 *                                         one line a position: POSITION PREFILL_MS DECODE_MS
 *
 * One sequence of random tokens. At each position one chunk of 512 is prefilled, and 24 tokens are
 * decoded; both are dropped again. The way there is prefilled in chunks of 512. */
#include <llama.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define CHUNK  512
#define DECODE 24

static unsigned long long dice = 88172645463325252ull;

static llama_token random_token(int vocab)
{
    dice = dice * 6364136223846793005ull + 1442695040888963407ull;
    return (llama_token)((dice >> 33) % (unsigned)vocab);
}

static double cpu_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* CPU seconds of one batch. */
static double step(struct llama_context *context, int vocab, int count)
{
    llama_token tokens[CHUNK];
    for (int i = 0; i < count; i++)
        tokens[i] = random_token(vocab);
    double before = cpu_now();
    if (llama_decode(context, llama_batch_get_one(tokens, count)) != 0) {
        fprintf(stderr, "llama_decode failed\n");
        exit(1);
    }
    (void)llama_get_logits_ith(context, -1);
    return cpu_now() - before;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double decode_there(struct llama_context *context, int vocab, int position)
{
    double each[DECODE];
    for (int i = 0; i < DECODE; i++)
        each[i] = step(context, vocab, 1);
    llama_memory_seq_rm(llama_get_memory(context), 0, position, -1);
    qsort(each, DECODE, sizeof each[0], by_value);
    return each[DECODE / 2];
}

static void no_log(enum ggml_log_level level, const char *text, void *context)
{
    (void)context;
    if (level == GGML_LOG_LEVEL_ERROR)
        fputs(text, stderr);
}

int main(int argc, char **argv)
{
    if (argc < 5)
        return 2;
    llama_log_set(no_log, NULL);
    ggml_backend_load_all();
    struct llama_model_params load = llama_model_default_params();
    load.use_extra_bufts = strcmp(argv[3], "plain") != 0;
    struct llama_model *model = llama_model_load_from_file(argv[1], load);
    if (!model)
        return 1;
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = (uint32_t)atoi(argv[argc - 1]) + 2 * CHUNK;
    params.n_batch = params.n_ubatch = CHUNK;
    params.n_threads = params.n_threads_batch = atoi(argv[2]);
    struct llama_context *context = llama_init_from_model(model, params);
    if (!context)
        return 1;
    int vocab = llama_vocab_n_tokens(llama_model_get_vocab(model)), position = 0;
    for (int i = 4; i < argc; i++) {
        for (; position < atoi(argv[i]); position += CHUNK)
            (void)step(context, vocab, CHUNK);
        double prefill = step(context, vocab, CHUNK) / CHUNK;
        llama_memory_seq_rm(llama_get_memory(context), 0, position, -1);
        double decode = decode_there(context, vocab, position);
        printf("%d %.4f %.4f\n", position, prefill * 1e3, decode * 1e3);
        fflush(stdout);
    }
    llama_free(context);
    llama_model_free(model);
    return 0;
}
