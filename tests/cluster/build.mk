# tests/cluster/chaos: the shipped node programs with a stub engine linked into them (README.md
# there), and what its answers must be.
CHAOS_DIR := $(BUILD)/tests/chaos
CHAOS_WRAPPED := dec_sequence_handle pre_job_init pre_job_handle kvt_send_announce kvt_send_commit kvt_recv_judge nod_host_drain \
  eng_sequence_close rpc_stream_write
CHAOS_STUB := $(patsubst %,$(OBJ)/tests/cluster/chaos/%.o,control engine rows sites)
CHAOS_REFERENCE := $(patsubst %,$(OBJ)/tests/cluster/chaos/%.o,reference rows)
CHAOS := $(patsubst %,$(CHAOS_DIR)/%,sluice-prefill sluice-decode sluice-router sluicectl reference)
OBJECTS += $(CHAOS_STUB) $(CHAOS_REFERENCE)
$(CHAOS_DIR)/sluice-%: $(OBJ)/node/%_main.o $(CHAOS_STUB) $(call link_files,node)
	$(call say,LINK,$@)
	$(Q)mkdir -p $(@D) && $(CC) -o $@ $< $(CHAOS_STUB) $(CHAOS_WRAPPED:%=-Wl,--wrap=%) $(call link_libs,node) $(LDFLAGS_ALL)
$(CHAOS_DIR)/sluice-router $(CHAOS_DIR)/sluicectl: $(CHAOS_DIR)/%: $(BIN)/%
	$(Q)mkdir -p $(@D) && ln -f $< $@
$(CHAOS_DIR)/reference: $(CHAOS_REFERENCE) $(call link_files,engine)
	$(call say,LINK,$@)
	$(Q)mkdir -p $(@D) && $(CC) -o $@ $(CHAOS_REFERENCE) $(call link_libs,engine) $(LDFLAGS_ALL)
.PHONY: chaos
chaos: $(CHAOS) ## the programs of tests/cluster/chaos: nodes with a stub engine
tests: $(CHAOS)

# A wall clock that is wrong, for one process (test_skew.py).
SKEW := $(BUILD)/tests/cluster/skew.so
EXTRA_SOURCES += tests/cluster/skew.c
$(SKEW): tests/cluster/skew.c $(FLAGS_STAMP)
	$(call say,LINK,$@)
	$(Q)mkdir -p $(@D) && $(CC) $(CFLAGS_ALL) -fPIC -shared -o $@ $< -ldl
tests: $(SKEW)
