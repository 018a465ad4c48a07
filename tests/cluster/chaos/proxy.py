#!/usr/bin/env python3
"""A TCP fault proxy for one network namespace: delays what its processes send and get. Not every kernel has netem; this needs
nftables' redirect alone, which sends new connections through here: all that the namespace makes, and those that the hub makes to it (not those of other
nodes, which pass their own proxy: a node must see the true address of its peer). Commands on standard input, a line each: `delay SECONDS [ADDRESS]`
(0: none; with an address: of the connections to it alone). It answers each with a line.
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
    """What befalls all connections, and those to one address besides."""

    def __init__(self):
        self.delays = {None: 0.0}

    def delay(self, address):
        return max(self.delays[None], self.delays.get(address, 0.0))

    def set(self, words):
        self.delays[words[2] if len(words) > 2 else None] = float(words[1])


async def carry(weather, address, reader, writer):
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
            waiting.append((loop.time() + weather.delay(address), data))
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
    address, out = socket.inet_ntoa(address), None
    try:
        target = socket.socket()
        target.setblocking(False)
        target.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
        await asyncio.get_running_loop().sock_connect(target, (address, port))
        for end in (raw, target):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        other, out = await asyncio.open_connection(sock=target, limit=READ_BYTES)
        both = [asyncio.ensure_future(carry(weather, address, *way)) for way in ((reader, out), (other, writer))]
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
        weather.set(words)
        print("ok", flush=True)


asyncio.run(main())
