#!/usr/bin/env python3
"""A TCP fault proxy for one network namespace: delays and stalls what its processes send and get. Not every kernel has netem; this needs
nftables' redirect alone, which sends each new connection from or to the namespace through here. Commands on standard input, a line each:
`delay SECONDS` (0: none), `stall`, `go`. It answers each with a line.
"""

import asyncio
import collections
import socket
import struct
import sys

PORT = 999
MARK = 7  # of the proxy's own connections, which the rules leave alone
SO_ORIGINAL_DST = 80
HIGH_BYTES = 4 << 20  # waiting in one direction: then the sender waits
READ_BYTES = 256 << 10


class Weather:
    """What befalls all connections."""

    def __init__(self):
        self.delay = 0.0
        self.stalled = False
        self.changed = asyncio.Event()

    def set(self, delay=None, stalled=None):
        self.delay = self.delay if delay is None else delay
        self.stalled = self.stalled if stalled is None else stalled
        self.changed.set()
        self.changed = asyncio.Event()


async def carry(weather, reader, writer):
    """One direction of one connection, in order, each piece `delay` after it came."""
    waiting, loop = collections.deque(), asyncio.get_running_loop()
    arrived, left, size = asyncio.Event(), asyncio.Event(), 0

    async def read():
        nonlocal size
        while True:
            while size > HIGH_BYTES:
                left.clear()
                await left.wait()
            data = await reader.read(READ_BYTES)
            waiting.append((loop.time() + weather.delay, data))
            size += len(data)
            arrived.set()
            if not data:
                return
    task = loop.create_task(read())
    try:
        while True:
            while not waiting:
                arrived.clear()
                await arrived.wait()
            due, data = waiting[0]
            while weather.stalled:
                await weather.changed.wait()
            if due > loop.time():
                await asyncio.sleep(due - loop.time())
            waiting.popleft()
            size -= len(data)
            left.set()
            if not data:
                if task.done() and task.exception():
                    raise task.exception()
                writer.write_eof()
                return
            writer.write(data)
            await writer.drain()
            if task.done() and task.exception():
                raise task.exception()
    finally:
        task.cancel()


async def connected(weather, reader, writer):
    raw = writer.get_extra_info("socket")
    port, address = struct.unpack_from("!2xH4s", raw.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16))
    out = None
    try:
        target = socket.socket()
        target.setblocking(False)
        target.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
        await asyncio.get_running_loop().sock_connect(target, (socket.inet_ntoa(address), port))
        for end in (raw, target):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        other, out = await asyncio.open_connection(sock=target, limit=READ_BYTES)
        both = [asyncio.ensure_future(carry(weather, reader, out)), asyncio.ensure_future(carry(weather, other, writer))]
        # One side's error or reset is the other's; a clean end is passed on alone.
        await asyncio.wait(both, return_when=asyncio.FIRST_EXCEPTION)
        for task in both:
            task.cancel()
    except OSError:
        pass
    finally:
        for end in (writer, out):
            if end:
                end.transport.abort()


async def main():
    weather = Weather()
    loop = asyncio.get_running_loop()
    await asyncio.start_server(lambda r, w: connected(weather, r, w), "0.0.0.0", PORT, limit=READ_BYTES)
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    print("ready", flush=True)
    while True:
        words = (await commands.readline()).decode().split()
        if not words:
            return
        if words[0] == "delay":
            weather.set(delay=float(words[1]))
        else:
            weather.set(stalled=words[0] == "stall")
        print("ok", flush=True)


asyncio.run(main())
