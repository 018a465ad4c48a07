/* Strict UTF-8 (RFC 3629): no surrogates, no overlong forms, nothing above U+10FFFF. Owns nothing,
 * any thread. */
#include "base/bytes.h"

/* Allowed range of the second byte, which is where all of RFC 3629's exceptions lie. */
static void second_byte_range(uint8_t first, uint8_t *out_low, uint8_t *out_high)
{
    *out_low = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
    *out_high = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
}

int sl_utf8_length(const void *data, size_t size)
{
    const uint8_t *at = data;
    if (size == 0)
        return -1;
    if (at[0] < 0x80)
        return 1;
    int length = at[0] < 0xc2 ? 0 : at[0] < 0xe0 ? 2 : at[0] < 0xf0 ? 3 : at[0] < 0xf5 ? 4 : 0;
    if (length == 0)
        return 0;
    uint8_t low, high;
    second_byte_range(at[0], &low, &high);
    for (int i = 1; i < length; i++) {
        if ((size_t)i >= size)
            return -1;
        if (at[i] < low || at[i] > high)
            return 0;
        low = 0x80;
        high = 0xbf;
    }
    return length;
}

bool sl_utf8_valid(const void *data, size_t size)
{
    const uint8_t *at = data;
    while (size > 0) {
        int length = sl_utf8_length(at, size);
        if (length <= 0)
            return false;
        at += length;
        size -= (size_t)length;
    }
    return true;
}

int sl_utf8_decode(const void *data, size_t size, uint32_t *out_code_point)
{
    const uint8_t *at = data;
    int length = sl_utf8_length(data, size);
    if (length <= 0)
        return 0;
    uint32_t code_point = length == 1 ? at[0] : at[0] & (0x7fu >> length);
    for (int i = 1; i < length; i++)
        code_point = code_point << 6 | (at[i] & 0x3fu);
    *out_code_point = code_point;
    return length;
}

int sl_utf8_encode(uint32_t c, char out_bytes[4])
{
    if (c < 0x80) {
        out_bytes[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out_bytes[0] = (char)(0xc0 | c >> 6);
        out_bytes[1] = (char)(0x80 | (c & 0x3f));
        return 2;
    }
    if (c < 0x10000) {
        out_bytes[0] = (char)(0xe0 | c >> 12);
        out_bytes[1] = (char)(0x80 | (c >> 6 & 0x3f));
        out_bytes[2] = (char)(0x80 | (c & 0x3f));
        return 3;
    }
    out_bytes[0] = (char)(0xf0 | c >> 18);
    out_bytes[1] = (char)(0x80 | (c >> 12 & 0x3f));
    out_bytes[2] = (char)(0x80 | (c >> 6 & 0x3f));
    out_bytes[3] = (char)(0x80 | (c & 0x3f));
    return 4;
}
