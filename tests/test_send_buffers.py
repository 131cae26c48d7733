"""What the kernel holds of responses that are not read."""

import socket

from services import send_buffers


def test_connections_inherit_the_size_of_the_listener() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("127.0.0.1", 0)) as other:
        port = server.getsockname()[1]
        before = other.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        send_buffers._limit(port)
        with socket.create_connection(("127.0.0.1", port)), server.accept()[0] as accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * send_buffers.SEND_BUFFER_BYTES
        assert other.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == before


def test_a_port_without_a_listener_has_none() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            assert send_buffers.listeners(client.getsockname()[1]) == []
        (listener,) = send_buffers.listeners(port)
        with listener:
            assert listener.getsockname() == server.getsockname()
