"""Bounds how much of a response the kernel holds for a client that does not read it.

By default up to 4 MB per connection: 130 clients that pipelined requests and read nothing made it copy 370 MB within a second, in which others waited.
"""

import logging
import os
import socket
import threading
import time
from contextlib import suppress
from stat import S_ISSOCK

log = logging.getLogger("digits.service")

# Linux doubles it.
SEND_BUFFER_BYTES = 131_072
# How long Granian may take to listen.
LISTEN_SECONDS = 30


def limit_when_listening(port: int) -> None:
    """Return at once; Granian listens on the port only once it has the application."""
    threading.Thread(target=_limit, args=(port,), daemon=True).start()


def _limit(port: int) -> None:
    deadline = time.monotonic() + LISTEN_SECONDS
    while not (found := listeners(port)) and time.monotonic() < deadline:
        time.sleep(0.05)
    if not found:
        log.warning("no socket listens on port %d after %d s; send buffers are not limited", port, LISTEN_SECONDS)
    for listener in found:
        # A connection inherits the size from the socket that accepted it.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        listener.close()


def listeners(port: int) -> list[socket.socket]:
    """Copies of the sockets of this process that listen on the port."""
    # all of them first, because a copy takes a number that was free
    descriptors, found = [int(name) for name in os.listdir("/dev/fd") if _is_socket(int(name))], []
    for descriptor in descriptors:
        if (copy := _copy(descriptor)) is None:
            continue
        if _listens(copy, port):
            found.append(copy)
        else:
            copy.close()
    return found


def _copy(descriptor: int) -> socket.socket | None:
    """A copy of a socket; None where the descriptor was closed meanwhile, or is no socket any more."""
    copy = -1
    with suppress(OSError):
        copy = os.dup(descriptor)
        return socket.socket(fileno=copy)
    if copy >= 0:
        os.close(copy)
    return None


def _is_socket(descriptor: int) -> bool:
    with suppress(OSError):
        return S_ISSOCK(os.fstat(descriptor).st_mode)
    return False


def _listens(connection: socket.socket, port: int) -> bool:
    is_internet = connection.family in (socket.AF_INET, socket.AF_INET6)
    return bool(
        is_internet
        and connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        and connection.getsockname()[1] == port
    )
