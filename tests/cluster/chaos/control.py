"""The driver's end of control.h: one file of one page for each stub node."""

import mmap
import struct

ARMED, NTH, HELD, GO, STEP_US, ROW_NS, SITE, PLANT, CLOSED_NS = 0, 4, 8, 12, 16, 20, 24, 64, 72


class Control:
    """What a stub node is told while it runs; outlives the process, so it is reset for the next one."""

    def __init__(self, path):
        self.path = path
        with open(path, "wb") as file:
            file.write(bytes(4096))
        with open(path, "r+b") as file:
            self.memory = mmap.mmap(file.fileno(), 4096)

    def _get(self, offset):
        return struct.unpack_from("<I", self.memory, offset)[0]

    def _set(self, offset, value):
        struct.pack_into("<I", self.memory, offset, value)

    def pace(self, step_us, row_ns):
        self._set(STEP_US, step_us)
        self._set(ROW_NS, row_ns)

    def arm(self, site, nth=1):
        self._set(GO, 0)
        self._set(NTH, nth)
        self.memory[SITE:SITE + 40] = site.encode().ljust(40, b"\0")
        self._set(ARMED, 1)

    def disarm(self):
        self._set(ARMED, 0)
        if self.held:
            self.go()

    def reset(self):
        """After the process died where it was held."""
        for offset in (ARMED, HELD, GO):
            self._set(offset, 0)

    def plant(self, what):
        """1: a wrong byte in a row; 2: wrong tokens."""
        self._set(PLANT, what)

    @property
    def held(self):
        return self._get(HELD) == 1

    @property
    def closed_at(self):
        """When pages were given back last, as time.monotonic() tells it."""
        return struct.unpack_from("<Q", self.memory, CLOSED_NS)[0] / 1e9

    def go(self):
        self._set(GO, 1)
