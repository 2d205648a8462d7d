"""Images that a request brings: a data URL or, where that is allowed, a public address on the web.

A server that fetches what strangers name can be sent to machines that only it can reach. So every address is looked
up here, all answers must be public, the connection goes to the address that was checked, and so does every redirect.
One site may be excepted, which whoever started the server has named: that of the label tool.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import http.client
import io
import ipaddress
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import SplitResult, urljoin, urlsplit

from model.errors import UserError

MAX_REDIRECTS = 3
SECONDS = 15.0  # for one image, redirects and all
PIECE = 64 * 1024
TOO_SLOW = "takes longer than {:g} seconds"
AGENT = "LaSagnA"
# Networks in which an IPv4 address is hidden that would have to be checked as well.
HIDING = tuple(
    ipaddress.ip_network(name) for name in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")
)


class RefusedError(UserError):
    """The site does not accept the token that it was sent."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What an image may take."""

    max_bytes: int
    allow_urls: bool = False


@dataclass(frozen=True, kw_only=True)
class Site:
    """A site that need not be public, and what is sent to it and to nobody else."""

    origin: tuple[str, str, int]  # as `origin_of`
    headers: Mapping[str, str]
    login: str  # the path of the page that it sends those to whom it does not know


def image_bytes(url: str, limits: Limits, site: Site | None = None) -> bytes:
    """The content of the file that `url` holds or names.

    Args:
        site: fetched from whether or not others are allowed, also where it is not public.

    Raises:
        UserError: it is no data URL and others are not allowed; it leads to an address that is not public; it is too
            large, or cannot be fetched.
    """
    if scheme_of(url) == "data":
        return of_data_url(url, limits.max_bytes)
    if not is_address(url):
        raise UserError(
            f"image_url begins with {url[:20]!r}; send the image itself: data:image/png;base64,..."
        )
    return fetch(url, limits, site)


def scheme_of(url: str) -> str:
    """What stands before the first colon."""
    return url[:8].partition(":")[0].lower()


def is_address(url: str) -> bool:
    """Whether an image has to be fetched."""
    return scheme_of(url) in ("http", "https")


def of_data_url(url: str, max_bytes: int) -> bytes:
    """The content of a data URL in base64."""
    head, comma, data = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise UserError(
            "a data URL reads data:image/png;base64,... and this one does not; encode it in base64"
        )
    if len(data) * 3 // 4 > max_bytes + 3:
        raise UserError(
            f"the image has about {len(data) * 3 // 4:,} bytes, of at most {max_bytes:,}; shrink it"
        )
    try:
        return base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError):
        raise UserError("the data URL is not valid base64; encode the file again") from None


def fetch(url: str, limits: Limits, site: Site | None = None) -> bytes:
    """The file at an address of the site or, where that is allowed, of the public web; redirects alike."""
    end = time.monotonic() + SECONDS
    for _ in range(MAX_REDIRECTS + 1):
        target = checked(url)
        is_home = site is not None and origin_of(target) == site.origin
        if not is_home and not limits.allow_urls:
            raise UserError(
                f"{short(url)}: this server fetches no addresses (it was started without --allow_urls); send the "
                "image itself: data:image/png;base64,..."
            )
        headers = {"User-Agent": AGENT, "Accept": "image/*,*/*;q=0.8"}
        if site is not None and is_home:
            headers |= site.headers
        with asked("GET", target, headers, end, anywhere=is_home) as response:
            if response.status in (301, 302, 303, 307, 308):
                asked_for, url = url, urljoin(url, response.getheader("Location") or "")
                if site is not None and is_home and site.login in url:
                    raise RefusedError(f"{short(asked_for)} leads to a login page")
                continue
            if is_home and response.status in (401, 403):
                raise RefusedError(f"{short(url)} answers with status {response.status}")
            if response.status != 200:
                raise UserError(f"{short(url)} answers with status {response.status}; check the address")
            return read_at_most(response, limits.max_bytes, end, url)
    raise UserError(
        f"{short(url)}: more than {MAX_REDIRECTS} redirects; give the address of the image itself"
    )


@contextlib.contextmanager
def asked(
    method: str,
    target: SplitResult,
    headers: Mapping[str, str],
    end: float,
    *,
    body: bytes | None = None,
    anywhere: bool = False,
) -> Iterator[http.client.HTTPResponse]:
    """A response that is still to be read; `anywhere`: the address need not be public."""
    connection = connect(target, end, anywhere=anywhere)
    path = (target.path or "/") + (f"?{target.query}" if target.query else "")
    try:
        connection.sock = Patient(connection.sock, end)
        connection.request(method, path, body, dict(headers))
        yield connection.getresponse()
    except (OSError, http.client.HTTPException) as problem:
        raise UserError(f"{short(target.geturl())} cannot be fetched ({short(str(problem))})") from None
    finally:
        connection.close()


def origin_of(target: SplitResult) -> tuple[str, str, int]:
    """Scheme, host and port of an address: what has to be equal for two of them to be of one site."""
    return target.scheme, target.hostname or "", target.port or (443 if target.scheme == "https" else 80)


def checked(url: str) -> SplitResult:
    """The parts of an address of the web. UserError for any other, or one with a user name."""
    try:
        target = urlsplit(url)
        _ = target.port
    except ValueError:
        raise UserError(f"{short(url)} is no address; write https://HOST/PATH") from None
    if target.scheme not in ("http", "https") or not target.hostname or "@" in target.netloc:
        raise UserError(f"{short(url)} is no address of the web; write https://HOST/PATH")
    if any(ord(letter) <= 32 or ord(letter) >= 127 for letter in url):
        raise UserError(f"{short(url)} has letters that an address has not; encode them as %XX")
    return target


def connect(target: SplitResult, end: float, *, anywhere: bool = False) -> http.client.HTTPConnection:
    """A connection to a checked address of the host: what is looked up is what is connected to."""
    assert target.hostname is not None
    is_https = target.scheme == "https"
    port = target.port or (443 if is_https else 80)
    last: OSError | None = None
    for address in addresses_of(target.hostname, port, anywhere=anywhere):
        left = end - time.monotonic()
        if left <= 0:
            break
        try:
            plain = socket.create_connection((address, port), timeout=left)
        except OSError as problem:
            last = problem
            continue
        connection: http.client.HTTPConnection
        if is_https:
            try:
                secure = ssl.create_default_context().wrap_socket(plain, server_hostname=target.hostname)
            except OSError as problem:
                plain.close()
                raise UserError(f"{target.hostname}: no secure connection ({short(str(problem))})") from None
            connection = http.client.HTTPSConnection(target.hostname, port)
            connection.sock = secure
        else:
            connection = http.client.HTTPConnection(target.hostname, port)
            connection.sock = plain
        return connection
    raise UserError(f"{target.hostname} cannot be reached ({short(str(last or 'too slow'))})")


def addresses_of(host: str, port: int, *, anywhere: bool = False) -> Iterator[str]:
    """The addresses of a host. UserError if one of them is not public, unless `anywhere`: then none is tried."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise UserError(f"there is no host {short(host)}; check the address") from None
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for address in addresses:
        if not anywhere and not is_public(address):
            raise UserError(
                f"{short(host)} is not a public address; this server fetches from the public web only"
            )
    return iter(addresses)


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if any(ip in network for network in HIDING):
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_loopback or ip.is_link_local)


class Patient:
    """What `http.client` uses of a socket, with one time limit for all: a socket's own begins anew with each byte."""

    def __init__(self, plain: socket.socket, end: float) -> None:
        self.plain, self.end = plain, end

    def sendall(self, content: bytes) -> None:
        self.plain.settimeout(self.left())
        self.plain.sendall(content)

    def makefile(self, mode: Literal["rb"]) -> io.BufferedReader:
        return io.BufferedReader(PatientFile(self, self.plain.makefile(mode, buffering=0)))

    def close(self) -> None:
        self.plain.close()

    def left(self) -> float:
        """Seconds. TimeoutError if there are none."""
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError(TOO_SLOW.format(SECONDS))
        return left


class PatientFile(io.RawIOBase):
    """What comes through a `Patient`."""

    def __init__(self, patient: Patient, raw: Any) -> None:
        self.patient, self.raw = patient, raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self.patient.plain.settimeout(self.patient.left())
        try:
            count: int | None = self.raw.readinto(buffer)
        except TimeoutError:
            raise TimeoutError(TOO_SLOW.format(SECONDS)) from None
        return count

    def close(self) -> None:
        self.raw.close()
        super().close()


def read_at_most(response: http.client.HTTPResponse, max_bytes: int, end: float, url: str) -> bytes:
    """The body of a response, in time and not too large."""
    parts, size = [], 0
    while part := response.read1(PIECE):
        parts.append(part)
        size += len(part)
        if size > max_bytes:
            raise UserError(f"{short(url)} has more than {max_bytes:,} bytes; shrink the image")
        if time.monotonic() > end:
            raise UserError(f"{short(url)} takes longer than {SECONDS:g} seconds; send the image itself")
    return b"".join(parts)


def short(text: str) -> str:
    """For messages: the beginning of a text of unknown origin."""
    return ascii(text[:80])[1:-1] + ("..." if len(text) > 80 else "")
