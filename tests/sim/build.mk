# The simulator: the shipped libraries, with the parts that meet the outside world defined here
# instead (README.md). Built and run by tests/sim/run.py.
SIM := $(BUILD)/tests/sim
SIM_SOURCES := $(wildcard tests/sim/*.c)
SIM_WRAPPED := sl_random_bytes sl_random_u64 sl_net_listen sl_assert_failed mdl_tokenizer_load mdl_tokenizer_destroy mdl_checkpoint_open \
  kvt_context_create kvt_context_step kvt_context_due kvt_recv_open kvt_recv_release kvt_send_announce kvt_send_release \
  eng_pages_take eng_pages_give dec_sequence_handle dec_admit dec_slot_attach rtr_budget_take pre_job_handle rtr_request_step rtr_request_deadline \
  nod_probe nod_probe_addresses nod_probe_cluster
OBJECTS += $(patsubst %.c,$(OBJ)/%.o,$(SIM_SOURCES))
$(SIM): $(patsubst %.c,$(OBJ)/%.o,$(SIM_SOURCES)) $(call link_files,node router)
	$(call say,LINK,$@)
	$(Q)mkdir -p $(@D) && $(CC) -o $@ $(patsubst %.c,$(OBJ)/%.o,$(SIM_SOURCES)) $(SIM_WRAPPED:%=-Wl,--wrap=%) \
	  $(call link_libs,node router) $(LDFLAGS_ALL)
# Whoever changes what it stands in for sees it at once.
tests: $(SIM)
