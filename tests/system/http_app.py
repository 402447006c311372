# SPDX-License-Identifier: LGPL-2.1-or-later
"""The web app of test_http, run inside the machine by www-data: its routes do what routes can do."""

import json
import os
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import bgtaskd
from bgtaskd.web import Background, RequestStatus

with open("/etc/shop.key") as file:
    KEY = file.read().strip()
GO, TOLD = "/tmp/go", "/tmp/told"
Environ = dict[str, Any]


class Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


class UnixServer(Server):
    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)
        os.chmod(str(self.server_address), 0o666)
        self.server_name, self.server_port = "shop", 0
        self.setup_environ()

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        return super().get_request()[0], ("somebody", 0)


def shop(environ: Environ, start: Callable[..., Any]) -> Iterable[bytes]:
    route = ROUTES.get(environ["PATH_INFO"])
    if route is None:
        start("404 Not Found", [])
        return [b"there is no such route\n"]
    return route(environ, start)


def echo(environ: Environ, start: Callable[..., Any]) -> Iterable[bytes]:
    """What of the request arrived; and whose it is."""
    try:
        own = bgtaskd.current().id
    except bgtaskd.BgtaskdError:
        own = 0
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    told = {
        "method": environ["REQUEST_METHOD"],
        "path": environ["PATH_INFO"],
        "query": environ["QUERY_STRING"],
        "body": body.decode("latin-1"),
        "type": environ.get("CONTENT_TYPE"),
        "headers": {key[5:]: text for key, text in environ.items() if key.startswith("HTTP_")},
        "task": own,
        "uid": os.getuid(),
    }
    start("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(told).encode()]


def slow(environ: Environ, start: Callable[..., Any]) -> Iterator[bytes]:
    """Streams: a line, the rest once it may; and reports."""
    status = bgtaskd.current()
    start("200 OK", [("Content-Type", "text/plain")])
    yield b"begun\n"
    status.update(40, "half of it")
    while not os.path.exists(GO):
        time.sleep(0.05)
    status.operations(10, 9)
    yield b"done\n"


def hang(environ: Environ, start: Callable[..., Any]) -> Iterator[bytes]:
    """Never ends; tells in a file when its client has gone."""
    start("200 OK", [])
    try:
        while True:
            yield b".\n"
            time.sleep(0.05)
    finally:
        with open("/tmp/hung-up", "w"):
            pass


def deaf(environ: Environ, start: Callable[..., Any]) -> Iterable[bytes]:
    """Looks at nothing; hears from its own report that the task has ended."""
    status = bgtaskd.current()
    try:
        while True:
            status.increment()
            time.sleep(0.05)
    except bgtaskd.BgtaskdError as error:
        tell(error)
    start("200 OK", [])
    return []


def late(environ: Environ, start: Callable[..., Any]) -> Iterator[bytes]:
    """Its first attempt fails, and leaves a thread behind that reports once the second one runs."""
    status = bgtaskd.current()

    def report() -> None:
        while not os.path.exists(GO):
            time.sleep(0.05)
        try:
            status.update(77)
        except bgtaskd.BgtaskdError as error:
            tell(error)

    if isinstance(status, RequestStatus) and status.attempt == 1:
        threading.Thread(target=report).start()
        start("503 Service Unavailable", [])
        return
    start("200 OK", [])
    yield b"begun\n"
    while not os.path.exists(TOLD):
        time.sleep(0.05)


def tell(error: Exception) -> None:
    with open(TOLD, "w") as file:
        file.write(f"{type(error).__name__}: {error}")


def silent(environ: Environ, start: Callable[..., Any]) -> Iterable[bytes]:
    time.sleep(60)
    return []


def short(environ: Environ, start: Callable[..., Any]) -> Iterable[bytes]:
    start("200 OK", [("Content-Length", "1000")])
    return [b"only this"]


def moved(environ: Environ, start: Callable[..., Any]) -> Iterable[bytes]:
    start("302 Found", [("Location", "http://127.0.0.1:8001/elsewhere")])
    return []


def fail(environ: Environ, start: Callable[..., Any]) -> Iterable[bytes]:
    bgtaskd.current().fail("the cellar is flooded")


ROUTES = {
    "/echo": echo,
    "/caf\xc3\xa9 cr\xc3\xa8me": echo,
    "/slow": slow,
    "/hang": hang,
    "/deaf": deaf,
    "/late": late,
    "/silent": silent,
    "/short": short,
    "/moved": moved,
    "/fail": fail,
}


def mounted(app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    """The app below /shop, as a server mounts it."""

    def mount(environ: Environ, start: Callable[..., Any]) -> Iterable[bytes]:
        prefix, slash, path = environ["PATH_INFO"].removeprefix("/").partition("/")
        environ |= {"SCRIPT_NAME": f"/{prefix}", "PATH_INFO": slash + path}
        return app(environ, start)

    return mount


class Quiet(WSGIRequestHandler):
    def address_string(self) -> str:
        return "somebody"  # not looked up

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name
        print(self.command, self.path, *args[1:], flush=True)


if __name__ == "__main__":
    servers: list[Server] = [
        Server(("127.0.0.1", 8000), Quiet),
        Server(("127.0.0.1", 8443), Quiet),
        UnixServer("/run/shop/http.sock", Quiet),  # type: ignore[arg-type]
    ]
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain("/run/shop/cert.pem", "/run/shop/key.pem")
    servers[1].socket = tls.wrap_socket(servers[1].socket, server_side=True)
    for server in servers:
        server.set_app(mounted(Background(shop, KEY)))
        threading.Thread(target=server.serve_forever).start()
