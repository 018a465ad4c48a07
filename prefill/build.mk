$(eval $(call library,prefill,$(wildcard prefill/*.c),,engine model kvtransfer rpc proto cluster base))
