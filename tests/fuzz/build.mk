# Each tests/fuzz/<folder>/<name>_fuzz.c is one libFuzzer program, linked like the folder's unit tests.
# They build only with SANITIZER=fuzzer (clang), into build/fuzzer/fuzz/<folder>/<name>_fuzz.
FUZZ_SOURCES := $(wildcard tests/fuzz/*/*_fuzz.c)
FUZZERS :=
# $(call fuzz_program,SOURCE,LIBRARIES)
define fuzz_program
FUZZERS += $(BUILD)/fuzz/$(patsubst tests/fuzz/%.c,%,$(1))
OBJECTS += $(patsubst %.c,$(OBJ)/%.o,$(1))
$(BUILD)/fuzz/$(patsubst tests/fuzz/%.c,%,$(1)): $(patsubst %.c,$(OBJ)/%.o,$(1)) $$(call link_files,$(2))
	$$(call say,LINK,$$@)
	$(Q)mkdir -p $$(@D) && $(CC) -o $$@ $$< $$(call link_libs,$(2)) -fsanitize=fuzzer $(LDFLAGS_ALL)
endef
ifeq ($(SANITIZER),fuzzer)
$(foreach t,$(FUZZ_SOURCES),$(eval $(call fuzz_program,$(t),$(TEST_LIBS_$(word 3,$(subst /, ,$(t)))))))
else
EXTRA_SOURCES += $(FUZZ_SOURCES)
endif

.PHONY: print-fuzz fuzz
print-fuzz:
	@printf '%s\n' $(FUZZERS)
fuzz: ## run each fuzz target for 30 s (SECONDS=n)
	tools/run-tests fuzz --seconds $(or $(SECONDS),30)
