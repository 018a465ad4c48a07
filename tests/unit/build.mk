# Each tests/unit/<folder>/<name>_test.c is one program, linked with the folder's libraries.
TEST_LIBS_base := base
TEST_LIBS_model := model base
TEST_LIBS_kernels := kernels model base
TEST_LIBS_engine := engine comm kernels model base
TEST_LIBS_kvtransfer := kvtransfer base
TEST_LIBS_comm := comm_ucx
TEST_LIBS_rpc := rpc proto base
TEST_LIBS_cluster := cluster rpc proto base
TEST_LIBS_prefill := prefill
TEST_LIBS_decode := decode
TEST_LIBS_node := node
TEST_LIBS_router := router
TEST_LIBS_cli := cli
$(foreach t,$(wildcard tests/unit/*/*_test.c),$(eval $(call test_program,$(t),$(TEST_LIBS_$(word 3,$(subst /, ,$(t)))))))
