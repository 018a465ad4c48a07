.PHONY: demo
# ONCE=1 stops after the answer; PORT=8080 is the router's.
PORT ?= 8080
demo: deps ## deps, build, local cluster, one streamed answer; stays up (ONCE=1: not)
	$(MAKE) --no-print-directory all
	deploy/local/demo --port $(PORT) $(if $(filter-out 0,$(ONCE)),--once)
