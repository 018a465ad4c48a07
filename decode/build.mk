$(eval $(call library,decode,$(wildcard decode/*.c),,engine model kvtransfer rpc proto cluster base))
