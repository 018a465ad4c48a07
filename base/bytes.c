/* Bounds-checked byte cursors and the bounded growing buffer. Owns a buffer's bytes; any thread,
 * one at a time per object. */
#include "base/bytes.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the wire is little-endian as we are");

sl_span sl_read_span(sl_reader *reader, size_t size)
{
    sl_span span = {NULL, 0};
    if (reader->failed || size > reader->size - reader->at) {
        reader->failed = true;
        return span;
    }
    span.data = reader->data + reader->at;
    span.size = size;
    reader->at += size;
    return span;
}

static void read_fixed(sl_reader *reader, void *out, size_t size)
{
    sl_span span = sl_read_span(reader, size);
    if (span.data)
        memcpy(out, span.data, size);
}

uint8_t sl_read_u8(sl_reader *reader)
{
    uint8_t value = 0;
    read_fixed(reader, &value, sizeof(value));
    return value;
}

uint16_t sl_read_u16(sl_reader *reader)
{
    uint16_t value = 0;
    read_fixed(reader, &value, sizeof(value));
    return value;
}

uint32_t sl_read_u32(sl_reader *reader)
{
    uint32_t value = 0;
    read_fixed(reader, &value, sizeof(value));
    return value;
}

uint64_t sl_read_u64(sl_reader *reader)
{
    uint64_t value = 0;
    read_fixed(reader, &value, sizeof(value));
    return value;
}

void sl_write_bytes(sl_writer *writer, const void *data, size_t size)
{
    if (writer->failed || size > writer->size - writer->at) {
        writer->failed = true;
        return;
    }
    if (size)
        memcpy(writer->data + writer->at, data, size);
    writer->at += size;
}

void sl_write_u8(sl_writer *writer, uint8_t value)
{
    sl_write_bytes(writer, &value, sizeof(value));
}

void sl_write_u16(sl_writer *writer, uint16_t value)
{
    sl_write_bytes(writer, &value, sizeof(value));
}

void sl_write_u32(sl_writer *writer, uint32_t value)
{
    sl_write_bytes(writer, &value, sizeof(value));
}

void sl_write_u64(sl_writer *writer, uint64_t value)
{
    sl_write_bytes(writer, &value, sizeof(value));
}

void sl_buf_init(sl_buf *buf, size_t limit)
{
    memset(buf, 0, sizeof(*buf));
    buf->limit = limit;
}

void sl_buf_fini(sl_buf *buf)
{
    size_t limit = buf->limit;
    sl_free(buf->data);
    sl_buf_init(buf, limit);
}

void sl_buf_clear(sl_buf *buf)
{
    buf->size = 0;
    buf->overflow = false;
    if (buf->data)
        buf->data[0] = '\0';
}

/* Makes room for `extra` more bytes and the terminator; returns how many of them fit. */
static size_t buf_reserve(sl_buf *buf, size_t extra)
{
    size_t limit = buf->limit ? buf->limit : SL_BUF_LIMIT_DEFAULT;
    size_t room = limit > buf->size ? limit - buf->size : 0;
    if (buf->overflow)
        return 0;
    if (extra > room) {
        buf->overflow = true;
        extra = room;
    }
    size_t need = buf->size + extra + 1;
    if (need > buf->capacity) {
        size_t capacity = buf->capacity ? buf->capacity * 2 : 64;
        if (capacity > limit + 1)
            capacity = limit + 1;
        if (capacity < need)
            capacity = need;
        buf->data = sl_realloc(buf->data, capacity, 1, "buffer");
        buf->capacity = capacity;
    }
    return extra;
}

void sl_buf_append(sl_buf *buf, const void *data, size_t size)
{
    size = buf_reserve(buf, size);
    if (size)
        memcpy(buf->data + buf->size, data, size);
    buf->size += size;
    if (buf->data)
        buf->data[buf->size] = '\0';
}

void sl_buf_puts(sl_buf *buf, const char *text)
{
    sl_buf_append(buf, text, strlen(text));
}

void sl_buf_putc(sl_buf *buf, char c)
{
    sl_buf_append(buf, &c, 1);
}

void sl_buf_printf(sl_buf *buf, const char *format, ...)
{
    char small[256];
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int size = vsnprintf(small, sizeof(small), format, args);
    va_end(args);
    sl_assert(size >= 0);
    if ((size_t)size < sizeof(small)) {
        sl_buf_append(buf, small, (size_t)size);
    } else {
        char *text = sl_alloc((size_t)size + 1, 1, "buffer printf");
        vsnprintf(text, (size_t)size + 1, format, again);
        sl_buf_append(buf, text, (size_t)size);
        sl_free(text);
    }
    va_end(again);
}

void sl_buf_base64(sl_buf *buf, const void *data, size_t size)
{
    static const char DIGITS[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const uint8_t *at = data;
    for (; size > 0; at += 3) {
        size_t n = size < 3 ? size : 3;
        uint32_t bits =
            (uint32_t)at[0] << 16 | (n > 1 ? (uint32_t)at[1] << 8 : 0) | (n > 2 ? at[2] : 0);
        char out[4] = {DIGITS[bits >> 18], DIGITS[bits >> 12 & 63],
                       n > 1 ? DIGITS[bits >> 6 & 63] : '=', n > 2 ? DIGITS[bits & 63] : '='};
        sl_buf_append(buf, out, sizeof(out));
        size -= n;
    }
}

void sl_buf_consume(sl_buf *buf, size_t size)
{
    sl_assert(size <= buf->size);
    if (size == 0)
        return;
    memmove(buf->data, buf->data + size, buf->size - size + 1);
    buf->size -= size;
}

char *sl_buf_take(sl_buf *buf, size_t *out_size)
{
    char *data = buf->data ? buf->data : sl_strdup("", "buffer");
    if (out_size)
        *out_size = buf->size;
    sl_buf_init(buf, buf->limit);
    return data;
}
