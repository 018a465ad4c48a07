# libcrypto: certificates of callers and of our own.
$(eval $(call library,rpc,$(wildcard rpc/*.c),-lgrpc -lgpr -lcrypto,proto base))
