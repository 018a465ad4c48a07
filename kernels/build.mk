$(eval $(call library,kernels,$(wildcard kernels/*.c kernels/cpu/*.c kernels/cuda/*.c),-ldl,base))
# They know no threads, and every load of theirs would be watched: ten times the time, near a test's limit.
ifeq ($(SANITIZER),thread)
$(patsubst %,$(OBJ)/kernels/cpu/%.o,avx2 avx512): CFLAGS_ALL += -fno-sanitize=thread
endif
# Their helpers are inlined a thousand times, and the scope of each local of each would be marked: 190 s to compile avx2.c, not 60.
ifeq ($(SANITIZER),address)
$(OBJ)/kernels/cpu/%.o: CFLAGS_ALL += -fno-sanitize-address-use-after-scope
endif
include kernels/cuda/build.mk
