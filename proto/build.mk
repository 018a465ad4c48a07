$(eval $(call library,proto,$(call rwildcard,proto,*.c),-lprotobuf-c,))
