# libcrypto: SHA-256 of the model. pcre2: the tokenizer's split patterns.
$(eval $(call library,model,$(wildcard model/*.c),-lpcre2-8 -lcrypto,base))
