/* Bounds-checked reading of wire bytes, and a bounded growing text buffer.
 *
 * A reader that ran past its end reads zeros and stays failed: check sl_reader_ok once at the end.
 * Little-endian. Thread: owner. */
#ifndef BASE_BYTES_H
#define BASE_BYTES_H

#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct sl_span { /* borrowed bytes */
    const uint8_t *data;
    size_t size;
} sl_span;

typedef struct sl_reader {
    const uint8_t *data;
    size_t size;
    size_t at;
    bool failed;
} sl_reader;

static inline sl_reader sl_reader_init(const void *data, size_t size)
{
    sl_reader r = {(const uint8_t *)data, size, 0, false};
    return r;
}
uint8_t sl_read_u8(sl_reader *reader);
uint16_t sl_read_u16(sl_reader *reader);
uint32_t sl_read_u32(sl_reader *reader);
uint64_t sl_read_u64(sl_reader *reader);
/* Borrowed view of the next `size` bytes; data NULL when there are fewer. */
sl_span sl_read_span(sl_reader *reader, size_t size);
static inline bool sl_reader_ok(const sl_reader *reader)
{
    return !reader->failed;
}
static inline size_t sl_reader_left(const sl_reader *reader)
{
    return reader->failed ? 0 : reader->size - reader->at;
}

/* Writer into a fixed buffer; same failure rule. */
typedef struct sl_writer {
    uint8_t *data;
    size_t size;
    size_t at;
    bool failed;
} sl_writer;

static inline sl_writer sl_writer_init(void *data, size_t size)
{
    sl_writer w = {(uint8_t *)data, size, 0, false};
    return w;
}
void sl_write_u8(sl_writer *writer, uint8_t value);
void sl_write_u16(sl_writer *writer, uint16_t value);
void sl_write_u32(sl_writer *writer, uint32_t value);
void sl_write_u64(sl_writer *writer, uint64_t value);
void sl_write_bytes(sl_writer *writer, const void *data, size_t size);

/* Growing byte/text buffer with a limit; always NUL-terminated one past `size`. Over the limit:
 * `overflow` is set and the rest dropped. */
typedef struct sl_buf {
    char *data;
    size_t size;
    size_t capacity;
    size_t limit; /* 0 = SL_BUF_LIMIT_DEFAULT */
    bool overflow;
} sl_buf;

#define SL_BUF_LIMIT_DEFAULT ((size_t)256 << 20)

void sl_buf_init(sl_buf *buf, size_t limit);
void sl_buf_fini(sl_buf *buf);
void sl_buf_clear(sl_buf *buf); /* keeps the capacity */
void sl_buf_append(sl_buf *buf, const void *data, size_t size);
void sl_buf_puts(sl_buf *buf, const char *text);
void sl_buf_putc(sl_buf *buf, char c);
void sl_buf_printf(sl_buf *buf, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Base64 (RFC 4648, padded). */
void sl_buf_base64(sl_buf *buf, const void *data, size_t size);
/* Drops the first `size` bytes. */
void sl_buf_consume(sl_buf *buf, size_t size);
/* Hands the bytes to the caller (sl_free); the buffer is empty afterwards. */
char *sl_buf_take(sl_buf *buf, size_t *out_size);

/* Length of the UTF-8 sequence at the start: 1..4; 0 = invalid; -1 = incomplete but could become
 * valid. Strict (no surrogates, no overlongs). */
int sl_utf8_length(const void *data, size_t size);
bool sl_utf8_valid(const void *data, size_t size);
/* Decodes one valid sequence, returns its length (0 if invalid or incomplete). */
int sl_utf8_decode(const void *data, size_t size, uint32_t *out_code_point);
/* Encodes, returns the length 1..4. */
int sl_utf8_encode(uint32_t code_point, char out_bytes[4]);

#ifdef __cplusplus
}
#endif
#endif
