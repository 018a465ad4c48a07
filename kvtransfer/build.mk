$(eval $(call library,kvtransfer,$(wildcard kvtransfer/*.c),-lucp -lucs,base))
ifneq ($(wildcard kvtransfer/perf/*.c),)
$(eval $(call program,kvt-perf,$(wildcard kvtransfer/perf/*.c),kvtransfer base))
endif

# The library alone, for other programs: one archive with what it needs of base, its headers in a folder of their own
# (they include each other as "kvtransfer/..." and "base/..."), and what pkg-config says about it.
PREFIX ?= /usr/local
INSTALL_HEADERS := kvtransfer/kvtransfer.h kvtransfer/limits.h kvtransfer/fake.h base/clock.h base/status.h base/sum.h
INSTALL_TO = $(DESTDIR)$(PREFIX)
.PHONY: install-lib
install-lib: $(LIBOBJ_kvtransfer) $(LIBOBJ_base) ## libkvtransfer, its headers and pkg-config file into PREFIX (default /usr/local)
	$(Q)mkdir -p "$(INSTALL_TO)/lib/pkgconfig"
	$(Q)rm -f "$(INSTALL_TO)/lib/libkvtransfer.a" && ar rcs "$(INSTALL_TO)/lib/libkvtransfer.a" $^
	$(Q)for h in $(INSTALL_HEADERS); do install -D -m 644 $$h "$(INSTALL_TO)/include/kvtransfer/$$h" || exit 1; done
	$(Q){ printf 'prefix=%s\n' "$(PREFIX)" && sed 's|@VERSION@|$(VERSION)|' kvtransfer/libkvtransfer.pc.in; } > "$(INSTALL_TO)/lib/pkgconfig/libkvtransfer.pc"
