$(eval $(call library,rpc,$(wildcard rpc/*.c),-lgrpc -lgpr,proto base))
