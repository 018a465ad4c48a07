$(eval $(call library,base,$(wildcard base/*.c),,))
