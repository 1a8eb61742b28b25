"""A local https server that misbehaves on request, and names that lead to it."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from weft.registry.addresses import HostRules
from weft.registry.fetcher import Fetcher, FetchLimits

BODY = bytes(range(256)) * 64
HUB, FILES, INSIDE = "hub.example", "a.files.example", "inside.example"


def create_certificate(folder: Path) -> Path:
    """Key and certificate for our names, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(HUB), x509.DNSName("*.files.example")]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / "certificate.pem"
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return file


class Handler(BaseHTTPRequestHandler):
    """The path says what to do; requests are counted by path."""

    protocol_version = "HTTP/1.1"
    hits: ClassVar[list[tuple[str, str]]] = []
    headers_seen: ClassVar[list[dict[str, str]]] = []
    # by path, for `do_org`: a repository named "org/..."
    files: ClassVar[dict[str, bytes]] = {}
    file_headers: ClassVar[dict[str, str]] = {}

    def do_GET(self) -> None:
        self.hits.append((self.headers["host"], self.path))
        self.headers_seen.append({k.lower(): v for k, v in self.headers.items()})
        what, _, rest = self.path.lstrip("/").partition("/")
        getattr(self, f"do_{what.replace('-', '_')}")(rest)

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_ok(self, _rest: str) -> None:
        self.answer(200, BODY, x_linked_etag="abc")

    def do_org(self, _rest: str) -> None:
        found = self.files.get(self.path)
        if found is None:
            self.answer(404)
        else:
            self.answer(200, found, **self.file_headers)

    def do_status(self, rest: str) -> None:
        self.answer(int(rest), b"the server's inner secrets")

    def do_once(self, rest: str) -> None:
        """A failure the first time, then the body."""
        if len([path for _, path in self.hits if path == self.path]) == 1:
            getattr(self, f"do_{rest.partition('/')[0]}")(rest.partition("/")[2])
        else:
            self.do_ok("")

    def do_to(self, rest: str) -> None:
        self.answer(302, location="https://" + rest)

    def do_location(self, rest: str) -> None:
        self.answer(302, location=bytes.fromhex(rest).decode())

    def do_round(self, _rest: str) -> None:
        self.answer(302, location="/round")

    def do_truncated(self, _rest: str) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY[:100])
        self.close_connection = True

    def do_reset(self, _rest: str) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def do_endless(self, _rest: str) -> None:
        """More than it says nothing about, in chunks."""
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self.close_connection = True
        for _ in range(1000):
            try:
                self.wfile.write(b"4000\r\n" + b"x" * 0x4000 + b"\r\n")
            except OSError:
                return

    def do_until_close(self, _rest: str) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(BODY)
        self.close_connection = True

    def do_gzip(self, _rest: str) -> None:
        self.answer(200, BODY, content_encoding="gzip")

    def do_stall(self, _rest: str) -> None:
        self.send_response(200)
        self.send_header("content-length", "10")
        self.end_headers()
        self.close_connection = True
        threading.Event().wait(1.0)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet: the tests say what they expect."""


class QuietServer(ThreadingHTTPServer):
    """Clients that break off are what is tested."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing to say."""


@dataclass
class Internet:
    """What names resolve to, the server behind them, and a fetcher that may reach it."""

    port: int
    certificate: Path
    folder: Path
    names: dict[str, list[str]] = field(default_factory=dict)
    resolved: list[str] = field(default_factory=list)

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        self.resolved.append(host)
        answers = self.names.get(host, ["127.0.0.1"])
        # the last one stays
        return [answers.pop(0) if len(answers) > 1 else answers[0]]

    def fetcher(self, networks: tuple[str, ...] = ("127.0.0.1/32",), **limits: float) -> Fetcher:
        rules = HostRules(
            (f"{HUB}:{self.port}", f"*.files.example:{self.port}"),
            tuple(ipaddress.ip_network(network) for network in networks),
            self.resolve,
        )
        options = {"num_attempts": 3, "backoff_s": 0.001, "stall_s": 5.0, **limits}
        context = ssl.create_default_context(cafile=str(self.certificate))
        return Fetcher(rules, FetchLimits(**options), context)  # type: ignore[arg-type]

    def url(self, path: str, host: str = HUB) -> str:
        return f"https://{host}:{self.port}/{path}"

    @property
    def file(self) -> Path:
        return self.folder / "fetched"

    @property
    def num_hits(self) -> int:
        return len(Handler.hits)


@contextmanager
def running_server(folder: Path) -> Iterator[tuple[int, Path]]:
    """Gives its port and its certificate."""
    certificate = create_certificate(folder)
    with QuietServer(("127.0.0.1", 0), Handler) as running:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        running.socket = context.wrap_socket(running.socket, server_side=True)
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield running.server_address[1], certificate
        running.shutdown()
        thread.join()
