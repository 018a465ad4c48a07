EXTRA_SOURCES += tests/install/two_pages.c # built by run.py against an installed copy
