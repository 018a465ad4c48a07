/* sl_assert: programmer errors, on in release builds too. Prints the expression, file, line and
 * aborts. */
#ifndef BASE_ASSERT_H
#define BASE_ASSERT_H

#ifdef __cplusplus
extern "C" {
#endif

void sl_assert_failed(const char *expression, const char *file, int line) __attribute__((noreturn));

#define sl_assert(expression)                                  \
    do {                                                       \
        if (__builtin_expect(!(expression), 0))                \
            sl_assert_failed(#expression, __FILE__, __LINE__); \
    } while (0)

#ifdef __cplusplus
}
#endif
#endif
