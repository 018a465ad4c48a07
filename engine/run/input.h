/* From options to prompt token ids: chat, raw text, files, or ids as given. Thread: main. */
#ifndef ENGINE_RUN_INPUT_H
#define ENGINE_RUN_INPUT_H

#include "engine/run/options.h"
#include "model/grammar.h"
#include "model/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

#define ENG_RUN_INPUT_BYTES_MAX ((size_t)64 << 20)

/* Reads a whole file ("-" = stdin) into buf. Errors name it. */
SL_MUST_USE sl_status eng_run_read_file(const char *path, sl_buf *buf, sl_err *err);
/* ids: initialised, empty. out_grammar: what the answer must look like; NULL: anything. */
SL_MUST_USE sl_status eng_run_input(const eng_run_options *options, const mdl_tokenizer *tokenizer,
                                    mdl_ids *ids, mdl_grammar **out_grammar, sl_err *err);
/* --tokenize: ids of stdin as {"ids":[...]} on stdout. */
SL_MUST_USE sl_status eng_run_tokenize(const eng_run_options *options, sl_err *err);
/* --detokenize: each line of stdin, a list of ids, as a line {"text":"..."} on stdout. */
SL_MUST_USE sl_status eng_run_detokenize(const eng_run_options *options, sl_err *err);

#ifdef __cplusplus
}
#endif
#endif
