$(eval $(call library,kvtransfer,$(wildcard kvtransfer/*.c),-lucp -lucs,base))
ifneq ($(wildcard kvtransfer/perf/*.c),)
$(eval $(call program,kvt-perf,$(wildcard kvtransfer/perf/*.c),kvtransfer base))
endif
