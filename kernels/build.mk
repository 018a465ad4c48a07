$(eval $(call library,kernels,$(wildcard kernels/*.c kernels/cpu/*.c),-ldl,base))
