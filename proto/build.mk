$(eval $(call library,proto,$(call rwildcard,proto,*.c),-lprotobuf-c,))

.PHONY: codegen codegen-check
codegen: ## regenerate the C made from proto/*.proto (needs protoc and protoc-c)
	tools/codegen
codegen-check: ## fail if the generated C is stale
	tools/codegen --check
