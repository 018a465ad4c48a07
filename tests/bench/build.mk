# Benches: built and run by `make bench`, one program a folder. Not part of `make all` or `check`.
BENCHES :=
# $(call bench_program,FOLDER,SOURCES,LIBRARIES,LINK FLAGS)
define bench_program
BENCHES += $(BUILD)/bench/$(1)
OBJECTS += $$(patsubst %.c,$(OBJ)/%.o,$(2))
$(BUILD)/bench/$(1): $$(patsubst %.c,$(OBJ)/%.o,$(2)) $$(call link_files,$(3))
	$$(call say,LINK,$$@)
	$(Q)mkdir -p $$(@D) && $(CC) -o $$@ $$(patsubst %.c,$(OBJ)/%.o,$(2)) $(4) $$(call link_libs,$(3)) $(LDFLAGS_ALL)
endef
$(eval $(call bench_program,kernels,$(wildcard tests/bench/kernels/*.c),kernels base))
# Of four rows the loop takes a fifth longer where it happens to lie badly: the roof must not.
CFLAGS_tests_bench_kernels_roof_convert_zen := -falign-loops=64
$(eval $(call bench_program,pool,$(wildcard tests/bench/pool/*.c),kernels base))
$(eval $(call bench_program,draw,$(wildcard tests/bench/draw/*.c),engine kernels model base))
$(eval $(call bench_program,constraint,$(wildcard tests/bench/constraint/*.c),engine kernels model base))
$(eval $(call bench_program,micro_batch,$(wildcard tests/bench/micro_batch/*.c),engine comm_ucx comm kernels model base))
# The kernels whose time the context bench takes apart: ops.c.
CONTEXT_OPS := linear_fp8 linear_bf16 linear_f32 q128 index_put index_query index_select latent_put rope_table \
  rope_queries attend rmsnorm_add silu_mul embed finite route route_group combine
comma := ,
$(eval $(call bench_program,context,$(wildcard tests/bench/context/*.c),engine kernels model base,$(CONTEXT_OPS:%=-Wl$(comma)--wrap=krn_%)))

# Built by tests/bench/peers/peers.py against the peer's headers.
EXTRA_SOURCES += tests/bench/peers/llama_steps.c

.PHONY: bench
bench: $(BENCHES) ## kernels beside this machine's roofs, constraints beside a step (quiet machine: only ratios count)
	@set -e; for b in $(BENCHES); do $$b; done
