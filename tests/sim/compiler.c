/* In the place of decode/compiler.c, whose thread the simulated world has not: no client asks for a
 * form here. */
#include "decode/compiler.h"

#include "base/alloc.h"

struct dec_compiler {
    dec_constraints *constraints;
};

sl_status dec_compiler_create(sl_loop *loop, dec_constraints *constraints, uint32_t waiting_max,
                              dec_compiler_fn fn, void *context, dec_compiler **out_compiler,
                              sl_err *err)
{
    *out_compiler = sl_alloc(1, sizeof(**out_compiler), "sim compiler");
    (*out_compiler)->constraints = constraints;
    return sl_ok();
}

void dec_compiler_destroy(dec_compiler *compiler)
{
    sl_free(compiler);
}

sl_status dec_compiler_wait(dec_compiler *compiler, void *owner, const Sluice__V1__Admit *admit,
                            sl_err *err)
{
    return sl_fail(err, SL_UNSUPPORTED, "no constraints in the simulated world");
}

void dec_compiler_forget(dec_compiler *compiler, const void *owner, const char *request_id)
{
}
