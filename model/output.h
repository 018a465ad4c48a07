/* From the model's text back to a message: a tolerant streaming parser and a strict one.
 *
 * The streaming parser takes the text in any cut (tokens, bytes) and calls back with events; it
 * never loses text and never invents a call. Concatenated deltas are the same for every cut. It
 * recognises markers by their text, as the reference does; EOS never reaches it (the engine stops
 * there). Thread: owner; callbacks run inside push and finish. */
#ifndef MODEL_OUTPUT_H
#define MODEL_OUTPUT_H

#include "base/bytes.h"
#include "model/chat.h"

#ifdef __cplusplus
extern "C" {
#endif

#define MDL_STOP_STRINGS_MAX      16
#define MDL_STOP_STRING_BYTES_MAX 256
#define MDL_CALL_ID_SIZE          30 /* "call_" + 24 characters + NUL */

typedef enum mdl_event_kind {
    MDL_EVENT_REASONING,   /* text: delta */
    MDL_EVENT_CONTENT,     /* text: delta */
    MDL_EVENT_CALL_BEGIN,  /* text: function name; id, call_index */
    MDL_EVENT_ARGUMENTS,   /* text: delta of the arguments JSON; call_index */
    MDL_EVENT_CALL_END,    /* call_index: arguments are complete */
    MDL_EVENT_CALL_BROKEN, /* call_index will not be completed; text: its raw text, which a
                              non-streaming answer appends to content (empty at the length limit).
                              The last event of that call; its index is not used again. */
} mdl_event_kind;

typedef struct mdl_event {
    mdl_event_kind kind;
    int32_t call_index;
    const char *text; /* valid during the callback; not terminated */
    size_t size;
    const char *id; /* CALL_BEGIN: terminated call id */
} mdl_event;

typedef void (*mdl_event_fn)(void *context, const mdl_event *event);

typedef enum mdl_finish {
    MDL_FINISH_STOP,   /* EOS, stop id or stop string */
    MDL_FINISH_LENGTH, /* token limit */
    MDL_FINISH_TOOL_CALLS,
} mdl_finish;
const char *mdl_finish_name(mdl_finish finish); /* "stop", "length", "tool_calls" */

typedef struct mdl_output_options {
    bool raw;                 /* raw completion: all is content, only stop strings apply */
    bool reasoning_open;      /* mdl_chat_reasoning_open */
    bool parse_calls;         /* mdl_chat_calls_expected */
    bool literal;             /* constrained content: once begun, all of it is content */
    bool refuse_unknown;      /* calls of unknown functions become content (needs chat) */
    const mdl_chat *chat;     /* borrowed, for schemas and names; may be NULL */
    const char *request_id;   /* copied; call ids derive from it */
    const char *const *stops; /* copied; stop strings, applied to content only */
    size_t stop_count;
    bool include_stop; /* the stop string that ends it is part of the text */
} mdl_output_options;

/* Oddities met, for metrics. */
typedef struct mdl_output_counts {
    uint32_t calls; /* complete */
    uint32_t broken_calls;
    uint32_t unknown_names;
    uint32_t invalid_json_values;
    uint32_t duplicate_keys;
    uint64_t bytes_in;   /* pushed */
    uint64_t bytes_text; /* left as text, names and values */
    uint64_t
        bytes_markup; /* tags, dropped newlines; bytes_text + bytes_markup = bytes_in at the end */
} mdl_output_counts;

typedef struct mdl_output mdl_output;

SL_MUST_USE sl_status mdl_output_create(const mdl_output_options *options, mdl_event_fn fn,
                                        void *context, mdl_output **out_output, sl_err *err);
void mdl_output_destroy(mdl_output *output);
/* While held, stop strings that begin in what is pushed do not count (min_tokens). */
void mdl_output_hold_stops(mdl_output *output, bool held);
/* False once a stop string was met: nothing after it is taken; finish with MDL_FINISH_STOP. */
bool mdl_output_push(mdl_output *output, const char *text, size_t size);
/* Releases what was held back. cause: STOP or LENGTH. Returns the finish reason to report. */
mdl_finish mdl_output_finish(mdl_output *output, mdl_finish cause);
const mdl_output_counts *mdl_output_counts_get(const mdl_output *output);
/* Still inside the reasoning part (for usage counts). */
bool mdl_output_in_reasoning(const mdl_output *output);

/* `out_id`: call_ + 24 characters, from request id and index only. */
void mdl_call_id(const char *request_id, int32_t call_index, char out_id[MDL_CALL_ID_SIZE]);

/* A whole answer. */
typedef struct mdl_call {
    char id[MDL_CALL_ID_SIZE];
    char *name;
    sl_buf arguments;
    bool complete;
} mdl_call;

typedef struct mdl_message {
    sl_buf reasoning;
    sl_buf content;
    mdl_call *calls;
    size_t call_count;
    size_t call_capacity;
    bool length_limited; /* set before finish when the cause is the length limit */
} mdl_message;

void mdl_message_init(mdl_message *message);
void mdl_message_fini(mdl_message *message);
/* An mdl_event_fn with context = mdl_message *: the non-streaming answer. Broken calls are taken
 * back (indices of later calls close up). */
void mdl_message_collect(void *context, const mdl_event *event);

/* The strict grammar (round trips, tests): SL_INVALID on anything malformed. thinking: the text
 * begins with reasoning. The EOS text must stand at the end. */
SL_MUST_USE sl_status mdl_message_parse_strict(const char *text, size_t size, bool thinking,
                                               mdl_message *message, sl_err *err);

#ifdef __cplusplus
}
#endif
#endif
