$(eval $(call library,node,$(filter-out %_main.c,$(wildcard node/*.c)),,prefill decode engine comm comm_ucx model kvtransfer rpc proto cluster base))
ifneq ($(wildcard node/prefill_main.c),)
$(eval $(call program,sluice-prefill,node/prefill_main.c,node))
$(eval $(call program,sluice-decode,node/decode_main.c,node))
endif
