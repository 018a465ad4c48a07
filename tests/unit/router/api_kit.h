/* The demo model's tokenizer and shape as the router's API settings, loaded once a program. */
#ifndef TESTS_UNIT_ROUTER_API_KIT_H
#define TESTS_UNIT_ROUTER_API_KIT_H

#include "tests/unit/test.h"

#include "model/config.h"
#include "router/api_request.h"

#define DEMO_DIR "models/demo"

static mdl_tokenizer *kit_tokenizer;
static mdl_shape kit_shape;
static rtr_api_settings kit_settings;

static inline int kit_load(void **state)
{
    sl_err err;
    assert_ok(mdl_tokenizer_load(DEMO_DIR, &kit_tokenizer, &err), &err);
    assert_ok(mdl_shape_load(DEMO_DIR, &kit_shape, &err), &err);
    mdl_sampling_init(&kit_settings.sampling_defaults);
    kit_settings.sampling_defaults.temperature = 0.7f;
    kit_settings.tokenizer = kit_tokenizer;
    kit_settings.shape = &kit_shape;
    kit_settings.model_name = "demo";
    kit_settings.max_tokens_default = 100;
    return 0;
}

static inline int kit_unload(void **state)
{
    mdl_tokenizer_destroy(kit_tokenizer);
    kit_tokenizer = NULL;
    return 0;
}

/* As TEST_MAIN, with the kit loaded around the group. */
#define API_TEST_MAIN(tests)                                                                     \
    int main(int argc, char **argv)                                                              \
    {                                                                                            \
        if (argc > 1)                                                                            \
            cmocka_set_test_filter(argv[1]);                                                     \
        int failed = cmocka_run_group_tests_name(__FILE__, tests, kit_load, kit_unload);         \
        if (failed == 0 && sl_alloc_live() != 0) {                                               \
            fprintf(stderr, "%llu allocations are left\n", (unsigned long long)sl_alloc_live()); \
            failed = 1;                                                                          \
        }                                                                                        \
        return failed;                                                                           \
    }

#endif
