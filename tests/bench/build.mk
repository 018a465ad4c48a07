# Benches: built and run by `make bench`, one program a folder. Not part of `make all` or `check`.
BENCHES :=
define bench_program
BENCHES += $(BUILD)/bench/$(1)
OBJECTS += $$(patsubst %.c,$(OBJ)/%.o,$(2))
$(BUILD)/bench/$(1): $$(patsubst %.c,$(OBJ)/%.o,$(2)) $$(call link_files,$(3))
	$$(call say,LINK,$$@)
	$(Q)mkdir -p $$(@D) && $(CC) -o $$@ $$(patsubst %.c,$(OBJ)/%.o,$(2)) $$(call link_libs,$(3)) $(LDFLAGS_ALL)
endef
$(eval $(call bench_program,kernels,$(wildcard tests/bench/kernels/*.c),kernels base))
$(eval $(call bench_program,constraint,$(wildcard tests/bench/constraint/*.c),engine kernels model base))

.PHONY: bench
bench: $(BENCHES) ## kernels beside this machine's roofs, constraints beside a step (quiet machine: only ratios count)
	@set -e; for b in $(BENCHES); do $$b; done
