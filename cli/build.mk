$(eval $(call library,cli,$(filter-out cli/main.c,$(wildcard cli/*.c)),-lcrypto,rpc proto cluster base))
$(eval $(call program,sluicectl,cli/main.c,cli))
