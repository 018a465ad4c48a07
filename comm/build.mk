# UCX is a library of its own: who only needs the interface or the fake links without it.
$(eval $(call library,comm,$(filter-out comm/ucx.c,$(wildcard comm/*.c)),-ldl,base))
$(eval $(call library,comm_ucx,comm/ucx.c,-lucp -lucs,comm base))
include comm/nccl/build.mk
