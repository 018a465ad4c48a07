$(eval $(call library,cli,$(filter-out cli/main.c,$(wildcard cli/*.c)),,rpc proto cluster base))
$(eval $(call program,sluicectl,cli/main.c,cli))
