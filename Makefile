# Sluice. `make help` lists the targets. Each folder describes itself in <folder>/build.mk.
#   V=1 shows commands; SANITIZER=address|thread|fuzzer builds into its own folder with that sanitizer.
.DEFAULT_GOAL := all
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

CC ?= cc
ifeq ($(origin CC),default)
CC := gcc
endif
SANITIZER ?=
BUILD_ROOT ?= build
ifeq ($(SANITIZER),)
BUILD := $(BUILD_ROOT)
else
BUILD := $(BUILD_ROOT)/$(SANITIZER)
endif
OBJ := $(BUILD)/obj
LIB := $(BUILD)/lib
BIN := $(BUILD)/bin

ifeq ($(SANITIZER),address)
SANFLAGS := -fsanitize=address,undefined -fno-sanitize-recover=undefined
else ifeq ($(SANITIZER),thread)
SANFLAGS := -fsanitize=thread
else ifeq ($(SANITIZER),fuzzer)
CC := clang
# clang warns about other things than gcc does; gcc's -Werror is the one that counts.
SANFLAGS := -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined -Wno-error
else ifneq ($(SANITIZER),)
$(error SANITIZER is address, thread or fuzzer)
endif

VERSION := 0.1.0
# -ffp-contract=off: the canonical order has no fused multiply-add where the spec has none.
# -g1: of debug information a sanitizer's report needs the lines only.
CFLAGS_ALL := -std=gnu11 -O2 $(if $(SANITIZER),-g1,-g) -Wall -Wextra -Werror -Wstrict-prototypes -Wmissing-prototypes \
  -Wshadow -Wpointer-arith -Wvla -Wno-unused-parameter -fno-strict-aliasing -fno-common -ffp-contract=off \
  -fno-omit-frame-pointer -D_GNU_SOURCE -DSL_VERSION='"$(VERSION)"' -I. -pthread $(SANFLAGS) $(CFLAGS)
LDFLAGS_ALL := -pthread $(filter-out -Wno-error,$(SANFLAGS)) $(LDFLAGS)
# Some hundred test programs: the quickest linker that is there.
LINKER := $(firstword $(foreach l,lld gold,$(if $(wildcard $(addsuffix /ld.$(l),$(subst :, ,$(PATH)))),$(l))))
LDFLAGS_TESTS := $(LDFLAGS_ALL) $(LINKER:%=-fuse-ld=%)

ifeq ($(V),1)
Q :=
say = @:
else
Q := @
say = @printf '  %-5s %s\n' $(1) $(2)
endif

rwildcard = $(foreach d,$(wildcard $(1)/*),$(call rwildcard,$(d),$(2))$(filter $(subst *,%,$(2)),$(d)))

PROGRAMS :=
TESTS :=
OBJECTS :=
LIBRARIES :=
# Sources that are built by rules of their own (fuzz targets, CUDA): a folder's build.mk adds them.
EXTRA_SOURCES :=

# A change of flags rebuilds everything that depends on them.
FLAGS_STAMP := $(BUILD)/flags
FLAGS_TEXT := $(CC) $(CFLAGS_ALL) $(LDFLAGS_ALL)
$(shell mkdir -p $(BUILD); [ "$$(cat $(FLAGS_STAMP) 2>/dev/null)" = '$(subst ','\'',$(FLAGS_TEXT))' ] || printf '%s\n' '$(subst ','\'',$(FLAGS_TEXT))' > $(FLAGS_STAMP))

# $(call library,NAME,SOURCES,SYSTEM_LIBS,DEPENDENCIES): lib<NAME>.a; the dependencies' libraries follow it at link time.
define library
LIBOBJ_$(1) := $$(patsubst %.c,$(OBJ)/%.o,$(2))
SYSLIBS_$(1) := $(3)
DEPS_$(1) := $(4)
OBJECTS += $$(LIBOBJ_$(1))
LIBRARIES += $(if $(strip $(2)),$(LIB)/lib$(1).a)
$(LIB)/lib$(1).a: $$(LIBOBJ_$(1))
	$$(call say,AR,$$@)
	$(Q)mkdir -p $$(@D) && rm -f $$@ && ar rcs $$@ $$^
endef

# All libraries that NAME needs, itself first, in link order (a library may appear once: grouped at link time).
closure = $(sort $(1) $(foreach d,$(1),$(foreach e,$(DEPS_$(d)),$(call closure,$(e)))))
link_libs = -Wl,--start-group $(foreach l,$(call closure,$(1)),$(LIB)/lib$(l).a) -Wl,--end-group $(sort $(foreach l,$(call closure,$(1)),$(SYSLIBS_$(l)))) -lm
link_files = $(foreach l,$(call closure,$(1)),$(LIB)/lib$(l).a)

# $(call program,NAME,SOURCES,LIBRARIES)
define program
PROGRAMS += $(BIN)/$(1)
OBJECTS += $$(patsubst %.c,$(OBJ)/%.o,$(2))
$(BIN)/$(1): $$(patsubst %.c,$(OBJ)/%.o,$(2)) $$(call link_files,$(3))
	$$(call say,LINK,$$@)
	$(Q)mkdir -p $$(@D) && $(CC) -o $$@ $$(patsubst %.c,$(OBJ)/%.o,$(2)) $$(call link_libs,$(3)) $(LDFLAGS_ALL)
endef

# $(call test_program,SOURCE,LIBRARIES): build/tests/<path below tests/unit without .c>
define test_program
TESTS += $(BUILD)/tests/$(patsubst tests/unit/%.c,%,$(1))
OBJECTS += $(patsubst %.c,$(OBJ)/%.o,$(1))
$(BUILD)/tests/$(patsubst tests/unit/%.c,%,$(1)): $(patsubst %.c,$(OBJ)/%.o,$(1)) $$(call link_files,$(2))
	$$(call say,LINK,$$@)
	$(Q)mkdir -p $$(@D) && $(CC) -o $$@ $$< $$(call link_libs,$(2)) -lcmocka $(LDFLAGS_TESTS)
endef

$(OBJ)/%.o: %.c $(FLAGS_STAMP)
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D) && $(CC) $(CFLAGS_ALL) $(CFLAGS_$(subst /,_,$(patsubst %.c,%,$<))) -MMD -MP -c -o $@ $<

# With a sanitizer, what computes little compiles in half the time so; the rest would run for longer than that saves.
# (gcc then guesses worse how long a text may be.)
ifneq ($(SANITIZER),)
$(foreach folder,tests proto rpc cluster prefill decode node router cli kvtransfer comm,$(eval $(OBJ)/$(folder)/%.o: CFLAGS_ALL += -Og -Wno-format-truncation))
endif

FOLDERS := base model kernels kvtransfer comm engine proto rpc cluster prefill decode node router cli deploy
include $(wildcard $(addsuffix /build.mk,$(FOLDERS)))
include tests/unit/build.mk
include $(filter-out tests/unit/build.mk,$(wildcard tests/build.mk tests/*/build.mk))

.PHONY: all libs tests clean help print-sources print-tests print-programs deps check tidy sanitize test soak
all: $(PROGRAMS) ## build every program (no CUDA needed)
libs: $(LIBRARIES)
tests: $(TESTS) ## build the unit tests
print-sources: # every source that some rule builds, for tools/tidy
	@printf '%s\n' $(patsubst $(OBJ)/%.o,%.c,$(OBJECTS)) $(EXTRA_SOURCES)
print-tests:
	@printf '%s\n' $(TESTS)
print-programs:
	@printf '%s\n' $(PROGRAMS)
deps: ## install the Debian packages that are missing (as root or with sudo)
	tools/deps
check: ## build, tidy and unit tests (< 2 min)
	tools/run-tests all --only build,tidy,unit
tidy: libs ## house rules that a machine can check
	tools/tidy
sanitize: ## unit tests with the address, undefined and thread sanitizers
	tools/run-tests all --only unit-address,unit-thread
test: deps ## all that CI runs, packages included
	tools/run-tests all
soak: ## what is too long for CI: full vectors, planted errors, all cluster tests, longer fuzzing
	tools/run-tests soak
clean: ## remove what was built
	rm -rf $(BUILD_ROOT)
help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  %-13s %s\n",$$1,$$2}' $(MAKEFILE_LIST)

-include $(OBJECTS:.o=.d)
