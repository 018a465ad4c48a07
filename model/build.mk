$(eval $(call library,model,$(wildcard model/*.c),-lpcre2-8,base))
