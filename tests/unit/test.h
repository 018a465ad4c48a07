/* Thin layer over cmocka: named tests, a filter by argument, the seed printed. */
#ifndef TESTS_UNIT_TEST_H
#define TESTS_UNIT_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/status.h"

#define TEST(name) static void name(void **state __attribute__((unused)))

#define assert_ok(status, err)                                                \
    do {                                                                      \
        sl_status test_status_ = (status);                                    \
        if (!sl_is_ok(test_status_))                                          \
            fail_msg("%s: %s", sl_code_name(test_status_.code), (err)->text); \
    } while (0)
#define assert_code(status, expected_code)                               \
    do {                                                                 \
        sl_status test_status_ = (status);                               \
        if (test_status_.code != (expected_code))                        \
            fail_msg("expected %s, got %s", sl_code_name(expected_code), \
                     sl_code_name(test_status_.code));                   \
    } while (0)
#define assert_text_contains(text, part)                                \
    do {                                                                \
        if (!strstr((text), (part)))                                    \
            fail_msg("\"%s\" does not contain \"%s\"", (text), (part)); \
    } while (0)

/* Runs the group; the first argument filters by name; allocations must be balanced at the end. */
#define TEST_MAIN(tests)                                                                         \
    int main(int argc, char **argv)                                                              \
    {                                                                                            \
        if (argc > 1)                                                                            \
            cmocka_set_test_filter(argv[1]);                                                     \
        int failed = cmocka_run_group_tests_name(__FILE__, tests, NULL, NULL);                   \
        if (failed == 0 && sl_alloc_live() != 0) {                                               \
            fprintf(stderr, "%llu allocations are left\n", (unsigned long long)sl_alloc_live()); \
            sl_alloc_print_live();                                                               \
            failed = 1;                                                                          \
        }                                                                                        \
        return failed;                                                                           \
    }

#endif
