/* Byte cursors, the growing buffer, UTF-8. */
#include "tests/unit/test.h"

#include "base/bytes.h"

TEST(reader_reads_little_endian)
{
    static const uint8_t data[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
    sl_reader r = sl_reader_init(data, sizeof(data));
    assert_int_equal(sl_read_u8(&r), 1);
    assert_int_equal(sl_read_u16(&r), 0x0302);
    assert_int_equal(sl_read_u32(&r), 0x07060504);
    assert_true(sl_read_u64(&r) == 0x0f0e0d0c0b0a0908ull);
    assert_int_equal(sl_reader_left(&r), 1);
    assert_int_equal(sl_read_span(&r, 1).data[0], 16);
    assert_true(sl_reader_ok(&r));
}

TEST(reader_fails_for_good)
{
    static const uint8_t data[] = {1, 2, 3};
    sl_reader r = sl_reader_init(data, sizeof(data));
    assert_int_equal(sl_read_u32(&r), 0);
    assert_false(sl_reader_ok(&r));
    assert_int_equal(sl_read_u8(&r), 0); /* although one byte would be there */
    assert_int_equal(sl_reader_left(&r), 0);
    assert_null(sl_read_span(&r, 0).data);
    sl_reader big = sl_reader_init(data, sizeof(data));
    assert_null(sl_read_span(&big, SIZE_MAX).data);
    assert_false(sl_reader_ok(&big));
}

TEST(writer_round_trip_and_bounds)
{
    uint8_t data[15];
    sl_writer w = sl_writer_init(data, sizeof(data));
    sl_write_u8(&w, 1);
    sl_write_u16(&w, 0x0302);
    sl_write_u32(&w, 0x07060504);
    sl_write_u64(&w, 0x0f0e0d0c0b0a0908ull);
    assert_false(w.failed);
    assert_int_equal(w.at, 15);
    for (uint8_t i = 0; i < 15; i++)
        assert_int_equal(data[i], i + 1);
    sl_write_bytes(&w, "", 0);
    assert_false(w.failed);
    sl_write_u8(&w, 1);
    assert_true(w.failed);
}

TEST(buffer_grows_to_its_limit)
{
    sl_buf buf;
    sl_buf_init(&buf, 10);
    sl_buf_puts(&buf, "12345");
    sl_buf_printf(&buf, "%d", 678);
    assert_string_equal(buf.data, "12345678");
    sl_buf_puts(&buf, "90ab");
    assert_true(buf.overflow);
    assert_int_equal(buf.size, 10);
    assert_string_equal(buf.data, "1234567890");
    sl_buf_putc(&buf, 'x');
    assert_int_equal(buf.size, 10);
    sl_buf_clear(&buf);
    assert_false(buf.overflow);
    sl_buf_putc(&buf, 'x');
    assert_string_equal(buf.data, "x");
    sl_buf_fini(&buf);
    assert_int_equal(buf.limit, 10);
}

TEST(buffer_consume_and_take)
{
    sl_buf buf;
    size_t size;
    sl_buf_init(&buf, 0);
    sl_buf_consume(&buf, 0);
    sl_buf_puts(&buf, "hello world");
    sl_buf_consume(&buf, 6);
    assert_string_equal(buf.data, "world");
    char *text = sl_buf_take(&buf, &size);
    assert_string_equal(text, "world");
    assert_int_equal(size, 5);
    assert_int_equal(buf.size, 0);
    sl_free(text);
    text = sl_buf_take(&buf, &size);
    assert_string_equal(text, "");
    sl_free(text);
    sl_buf_fini(&buf);
}

TEST(buffer_long_printf)
{
    sl_buf buf;
    sl_buf_init(&buf, 0);
    sl_buf_printf(&buf, "%0999d|", 7);
    assert_int_equal(buf.size, 1000);
    assert_int_equal(buf.data[998], '7');
    sl_buf_fini(&buf);
}

/* RFC 4648, section 10. */
TEST(base64_known_answers)
{
    static const char *const CASES[][2] = {
        {"", ""},        {"f", "Zg=="},          {"fo", "Zm8="},
        {"foo", "Zm9v"}, {"foobar", "Zm9vYmFy"}, {"\xff\xef\xbe", "/+++"}};
    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
        sl_buf buf;
        sl_buf_init(&buf, 0);
        sl_buf_puts(&buf, "x");
        sl_buf_base64(&buf, CASES[i][0], strlen(CASES[i][0]));
        assert_string_equal(buf.data + 1, CASES[i][1]);
        sl_buf_fini(&buf);
    }
}

TEST(utf8_every_code_point_round_trips)
{
    char bytes[4];
    for (uint32_t c = 0; c <= 0x10ffff; c++) {
        if (c >= 0xd800 && c < 0xe000)
            continue;
        uint32_t back = 0;
        int length = sl_utf8_encode(c, bytes);
        if (sl_utf8_length(bytes, (size_t)length) != length ||
            sl_utf8_decode(bytes, (size_t)length, &back) != length || back != c)
            fail_msg("code point U+%04X", c);
        for (int cut = 1; cut < length; cut++)
            if (sl_utf8_length(bytes, (size_t)cut) != -1)
                fail_msg("code point U+%04X cut to %d", c, cut);
    }
}

TEST(utf8_refuses)
{
    static const char *const wrong[] = {"\x80",
                                        "\xbf",
                                        "\xc0\x80",
                                        "\xc1\xbf",
                                        "\xc3(",
                                        "\xe0\x80\x80",
                                        "\xe0\x9f\xbf",
                                        "\xed\xa0\x80",
                                        "\xed\xbf\xbf",
                                        "\xe2(\xa1",
                                        "\xf0\x80\x80\x80",
                                        "\xf0\x8f\xbf\xbf",
                                        "\xf4\x90\x80\x80",
                                        "\xf5\x80\x80\x80",
                                        "\xff"};
    uint32_t c;
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        assert_int_equal(sl_utf8_length(wrong[i], strlen(wrong[i])), 0);
        assert_int_equal(sl_utf8_decode(wrong[i], strlen(wrong[i]), &c), 0);
        assert_false(sl_utf8_valid(wrong[i], strlen(wrong[i])));
    }
    assert_int_equal(sl_utf8_length("\xed\xa0", 2), 0); /* can never become valid */
    assert_int_equal(sl_utf8_length("", 0), -1);
    assert_true(sl_utf8_valid("", 0));
    assert_true(sl_utf8_valid("a\0\xc3\xa4\xf0\x9f\x98\x80", 8));
    assert_false(sl_utf8_valid("a\xc3", 2));
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(reader_reads_little_endian),
    cmocka_unit_test(reader_fails_for_good),
    cmocka_unit_test(writer_round_trip_and_bounds),
    cmocka_unit_test(buffer_grows_to_its_limit),
    cmocka_unit_test(buffer_consume_and_take),
    cmocka_unit_test(buffer_long_printf),
    cmocka_unit_test(utf8_every_code_point_round_trips),
    cmocka_unit_test(base64_known_answers),
    cmocka_unit_test(utf8_refuses),
};
TEST_MAIN(tests)
