# libsluice_cuda.so, its tests and benches: `make cuda`, only with nvcc; nothing else depends on it.
CUDA_HOME ?= /usr/local/cuda
NVCC ?= $(firstword $(wildcard $(CUDA_HOME)/bin/nvcc) $(shell command -v nvcc 2>/dev/null))
CUDA_SOURCES := $(wildcard kernels/cuda/*.cu)
CUDA_TESTS := $(wildcard tests/cuda/*_test.c)
CUDA_BENCHES := $(wildcard tests/bench/cuda/*_bench.c)
EXTRA_SOURCES += $(CUDA_SOURCES) $(CUDA_TESTS) $(CUDA_BENCHES)
CUDA_OUT := $(BUILD)/cuda
CUDA_PROGRAMS := $(patsubst tests/cuda/%.c,$(CUDA_OUT)/%,$(CUDA_TESTS)) \
  $(patsubst tests/bench/cuda/%.c,$(CUDA_OUT)/%,$(CUDA_BENCHES))
# -fmad=false: the canonical order has a fused multiply-add only where fmaf is written.
NVCC_FLAGS := -gencode arch=compute_90a,code=sm_90a -std=c++20 -O3 -fmad=false -lineinfo -I. \
  -Werror all-warnings -Xcompiler -fPIC,-fvisibility=hidden,-Wall,-Wextra,-ffp-contract=off
CUDA_CFLAGS := $(CFLAGS_ALL) -isystem $(CUDA_HOME)/include
CUDA_LINK = $(call link_libs,kernels base $(CUDA_NEEDS)) -lcmocka -L$(CUDA_HOME)/lib64 -lcudart \
  -Wl,-rpath,'$$ORIGIN' $(LDFLAGS_ALL)

$(CUDA_OUT)/obj/%.o: kernels/cuda/%.cu $(FLAGS_STAMP)
	$(call say,NVCC,$<)
	$(Q)mkdir -p $(@D) && $(NVCC) $(NVCC_FLAGS) -MMD -MP -MF $(@:.o=.d) -c -o $@ $<
$(CUDA_OUT)/libsluice_cuda.so: $(patsubst kernels/cuda/%.cu,$(CUDA_OUT)/obj/%.o,$(CUDA_SOURCES))
	$(call say,LINK,$@)
	$(Q)$(NVCC) -shared -cudart shared -o $@ $^
$(CUDA_OUT)/%_test: tests/cuda/%_test.c $(FLAGS_STAMP) $(LIB)/libkernels.a $(LIB)/libbase.a
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D) && $(CC) $(CUDA_CFLAGS) -MMD -MP -MF $@.d -o $@ $< $(CUDA_LINK)
$(CUDA_OUT)/%_bench: tests/bench/cuda/%_bench.c $(FLAGS_STAMP) $(LIB)/libkernels.a $(LIB)/libbase.a
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D) && $(CC) $(CUDA_CFLAGS) -MMD -MP -MF $@.d -o $@ $< $(CUDA_LINK)
# Beside the engine's sampler.
$(CUDA_OUT)/draw_test $(CUDA_OUT)/draw_bench: CUDA_NEEDS := engine
$(CUDA_OUT)/draw_test $(CUDA_OUT)/draw_bench: $(addprefix $(LIB)/lib,engine.a model.a comm.a)

.PHONY: cuda
ifneq ($(NVCC),)
cuda: $(CUDA_OUT)/libsluice_cuda.so $(CUDA_PROGRAMS) ## the CUDA backend, its tests and benches (needs nvcc 13)
else
cuda:
	@echo 'make cuda needs nvcc of CUDA 13 (CUDA_HOME=$(CUDA_HOME))' >&2; exit 1
endif
-include $(wildcard $(CUDA_OUT)/obj/*.d $(CUDA_OUT)/*.d)
