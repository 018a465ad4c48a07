.PHONY: demo
# ONCE=1 stops after the answer; PORT=8080 is the router's.
PORT ?= 8080
demo: deps ## deps, build, local cluster, one streamed answer; stays up (ONCE=1: not)
	$(MAKE) --no-print-directory all
	deploy/local/demo --port $(PORT) $(if $(filter-out 0,$(ONCE)),--once)

# Programs, sluicectl's manual page and completion, and the library (kvtransfer/build.mk) below DESTDIR and PREFIX.
.PHONY: install install-programs
install: install-programs install-lib ## programs, manual page, completion and libkvtransfer into PREFIX (default /usr/local), below DESTDIR
install-programs: $(PROGRAMS)
	$(Q)install -d "$(INSTALL_TO)/bin" "$(INSTALL_TO)/share/man/man1" "$(INSTALL_TO)/share/bash-completion/completions"
	$(Q)install -m 755 $(PROGRAMS) "$(INSTALL_TO)/bin"
	$(Q)$(BIN)/sluicectl manual > "$(INSTALL_TO)/share/man/man1/sluicectl.1"
	$(Q)$(BIN)/sluicectl completion bash > "$(INSTALL_TO)/share/bash-completion/completions/sluicectl"
