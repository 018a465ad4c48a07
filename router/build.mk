$(eval $(call library,router,$(filter-out router/main.c,$(wildcard router/*.c)),-lcrypto,model rpc proto cluster base))
ifneq ($(wildcard cluster/view.c),)
$(eval $(call program,sluice-router,router/main.c,router))
endif
