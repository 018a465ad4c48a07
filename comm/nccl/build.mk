# libsluice_nccl.so, its test and bench: `make cuda`, only with nvcc and NCCL; nothing else depends on it.
NCCL_HOME ?= $(CUDA_HOME)
NCCL_TESTS := $(wildcard tests/cuda/comm/*_test.c)
NCCL_BENCHES := $(wildcard tests/bench/cuda/comm/*_bench.c)
EXTRA_SOURCES += $(wildcard comm/nccl/*.c comm/nccl/*.cu) $(NCCL_TESTS) $(NCCL_BENCHES)
NCCL_OBJECTS := $(patsubst comm/nccl/%,$(CUDA_OUT)/obj/nccl/%.o,$(wildcard comm/nccl/*.c comm/nccl/*.cu))
NCCL_PROGRAMS := $(patsubst tests/cuda/comm/%.c,$(CUDA_OUT)/%,$(NCCL_TESTS)) \
  $(patsubst tests/bench/cuda/comm/%.c,$(CUDA_OUT)/%,$(NCCL_BENCHES))
NCCL_CFLAGS := $(CUDA_CFLAGS) -isystem $(NCCL_HOME)/include -fPIC -fvisibility=hidden
NCCL_LIBS := comm_ucx kernels

$(CUDA_OUT)/obj/nccl/%.cu.o: comm/nccl/%.cu $(FLAGS_STAMP)
	$(call say,NVCC,$<)
	$(Q)mkdir -p $(@D) && $(NVCC) $(NVCC_FLAGS) -MMD -MP -MF $(@:.o=.d) -c -o $@ $<
$(CUDA_OUT)/obj/nccl/%.c.o: comm/nccl/%.c $(FLAGS_STAMP)
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D) && $(CC) $(NCCL_CFLAGS) -MMD -MP -MF $(@:.o=.d) -c -o $@ $<
$(CUDA_OUT)/libsluice_nccl.so: $(NCCL_OBJECTS)
	$(call say,LINK,$@)
	$(Q)$(NVCC) -shared -cudart shared -o $@ $^ -L$(NCCL_HOME)/lib -l:libnccl.so.2
$(CUDA_OUT)/exchange_%: tests/cuda/comm/exchange_%.c $(FLAGS_STAMP) $(call link_files,$(NCCL_LIBS))
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D) && $(CC) $(CUDA_CFLAGS) -MMD -MP -MF $@.d -o $@ $< $(call link_libs,$(NCCL_LIBS)) -lcmocka $(LDFLAGS_ALL)
$(CUDA_OUT)/exchange_%: tests/bench/cuda/comm/exchange_%.c $(FLAGS_STAMP) $(call link_files,$(NCCL_LIBS))
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D) && $(CC) $(CUDA_CFLAGS) -MMD -MP -MF $@.d -o $@ $< $(call link_libs,$(NCCL_LIBS)) -lcmocka $(LDFLAGS_ALL)

ifneq ($(and $(NVCC),$(wildcard $(NCCL_HOME)/include/nccl.h)),)
cuda: $(CUDA_OUT)/libsluice_nccl.so $(NCCL_PROGRAMS)
else ifneq ($(NVCC),)
cuda: nccl-missing
.PHONY: nccl-missing
nccl-missing:
	@echo 'make cuda: no NCCL (NCCL_HOME=$(NCCL_HOME)): libsluice_nccl.so and its tests are not built' >&2
endif
-include $(wildcard $(CUDA_OUT)/obj/nccl/*.d)
