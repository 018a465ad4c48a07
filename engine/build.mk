$(eval $(call library,engine,$(wildcard engine/*.c),,kernels model comm base))
ifneq ($(wildcard engine/run/*.c),)
$(eval $(call program,sluice-run,$(wildcard engine/run/*.c),engine kernels model base))
endif
