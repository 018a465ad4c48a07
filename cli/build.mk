ifneq ($(wildcard cli/main.c),)
$(eval $(call program,sluicectl,$(wildcard cli/*.c),rpc proto cluster base))
endif
