$(eval $(call library,kernels,$(wildcard kernels/*.c kernels/cpu/*.c kernels/cuda/*.c),-ldl,base))
include kernels/cuda/build.mk
