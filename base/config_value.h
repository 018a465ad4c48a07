/* Option values between text and storage, for config.c only. */
#ifndef BASE_CONFIG_VALUE_H
#define BASE_CONFIG_VALUE_H

#include "base/config.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef union sl_config_value {
    bool boolean;
    int64_t integer;
    double real;
    const char *text;
    uint64_t amount;
    int choice;
} sl_config_value;

/* Converts; the error says what is expected, without the option's name. STRING borrows `text`. */
SL_MUST_USE sl_status sl_config_convert(const sl_option *option, const char *text,
                                        sl_config_value *out_value, sl_err *err);
/* Stores into the caller's struct at option->offset. */
void sl_config_store(const sl_option *option, const sl_config_value *value, void *target);
/* What help shows behind the name: "N", "SIZE", "cpu|cuda"; "" for flags. */
void sl_config_placeholder(const sl_option *option, char *out_text, size_t size);

#ifdef __cplusplus
}
#endif
#endif
