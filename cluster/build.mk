$(eval $(call library,cluster,$(wildcard cluster/*.c),,rpc proto base))
