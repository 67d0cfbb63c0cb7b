"""Fetching of images from addresses in requests, from hosts that the operator named."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import httpx

from edje_qdrant.errors import ConfigError, ImageReadError
from edje_qdrant.version import __version__
from edje_qdrant.web.errors import RequestError

__all__ = ["FetchHost", "ImageFetcher", "fetch_host", "is_public"]

Address: TypeAlias = "ipaddress.IPv4Address | ipaddress.IPv6Address"

#: Returns the addresses of a host: `(host, port) -> addresses`.
Resolve: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]

_PORTS = {"http": 80, "https": 443}
_MOST_REDIRECTS = 3
_HOST = re.compile(r"(?P<name>[^\s:/?#@*\[\]]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# IPv6 networks whose addresses lead to an IPv4 address that they contain.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_HEADERS = {
    "Accept": "image/*",
    "Accept-Encoding": "identity",  # a compressed body could grow without bound
    "User-Agent": f"edje-qdrant/{__version__}",
}


@dataclass(frozen=True, slots=True)
class FetchHost:
    """Host that images may be fetched from.

    Attributes:
        name: Name in lower case, or an IP address.
        port: The only port; None for the standard ports of http and https.
        subdomains: Whether the subdomains of `name` are meant, and not `name` itself.
    """

    name: str
    port: int | None = None
    subdomains: bool = False

    def allows(self, url: httpx.URL) -> bool:
        """Return whether an address is on this host and port."""
        host, standard = url.host.lower(), _PORTS[url.scheme]
        if (url.port or standard) != (self.port or standard):
            return False
        return host.endswith(f".{self.name}") if self.subdomains else host == self.name

    @property
    def address(self) -> Address | None:
        """Return the IP address that the name is; None if it is another name."""
        return _ip(self.name)


def fetch_host(text: str) -> FetchHost:
    """Read a host of `--allow-fetch`: NAME, NAME:PORT, *.NAME, or an IP address.

    Raises:
        ConfigError: The text has another form, or names an address of cloud metadata services.
    """
    subdomains = text.startswith("*.")
    name = text[2:] if subdomains else text
    if _ip(name) is not None and ":" in name and not name.startswith("["):
        name = f"[{name}]"
    form = _HOST.fullmatch(name)
    try:
        if form is None:
            raise ValueError
        host = httpx.URL(f"http://{form['name']}").host.lower()
        port = int(form["port"]) if form["port"] else None
        if port is not None and not 0 < port < 65536:
            raise ValueError
    except (httpx.InvalidURL, ValueError) as error:
        raise ConfigError(
            f"--allow-fetch {text!r} is not a host; give a name, such as images.example.com, "
            "*.example.com or example.com:8080"
        ) from error
    found = FetchHost(host, port, subdomains)
    address = found.address
    if address is not None and (subdomains or any(map(_is_metadata, _unwrapped(address)))):
        raise ConfigError(
            f"--allow-fetch {text!r} is an address that nothing is ever fetched from; give the "
            "host of the images"
        )
    return found


class ImageFetcher:
    """Fetch images by http and https.

    A host's name is resolved once. If any of its addresses is not public, nothing is fetched;
    otherwise the connection goes to one of these addresses, so that a second answer of a name
    server cannot lead elsewhere. A loopback or private address is used only where it was itself
    named as a host (for `localhost`, loopback addresses). Link-local addresses, at which clouds
    serve their metadata, are never used. Redirects are followed on the same host only, and proxies
    of the environment are not used, as they would resolve the name again.

    Args:
        hosts: Hosts that may be fetched from; empty for none.
        max_bytes: Size limit of an image.
        seconds: Time limit of an image.
        resolve: Returns the addresses of a host; by default the system's resolver.
    """

    def __init__(
        self,
        hosts: Sequence[FetchHost],
        *,
        max_bytes: int,
        seconds: float,
        resolve: Resolve | None = None,
    ) -> None:
        self._hosts = tuple(hosts)
        self._max_bytes, self._seconds = max_bytes, seconds
        self._resolve = resolve or _system_addresses

    async def fetch(self, address: str, name: str) -> bytes:
        """Return the bytes of the image at an address.

        Args:
            address: Starts with `http:` or `https:`.
            name: Names the image in errors.

        Raises:
            RequestError: The address is not allowed.
            ImageReadError: The image cannot be fetched, is too large, or takes too long.
        """
        url = self._allowed(address, name)
        try:
            return await asyncio.wait_for(self._fetch(url, name), self._seconds)
        except asyncio.TimeoutError as error:
            reason = f"fetching it took more than {self._seconds:g} s"
            raise ImageReadError(name, reason) from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            # Without the error's own text, which can hold addresses of the network.
            reason = f"{url.host} cannot be reached, or does not answer as HTTP requires"
            raise ImageReadError(name, reason) from error

    def _allowed(self, address: str, name: str) -> httpx.URL:
        try:
            url = httpx.URL(address)
            known = url.scheme in _PORTS and bool(url.host)
        except (httpx.InvalidURL, ValueError):
            known = False
        if not known:
            raise _refused(
                f"{name}: this is not an address of http or https; other addresses, such as "
                "file:, are never read"
            )
        if not self._hosts:
            raise _refused(
                f"{name}: this service fetches no addresses; send the image as a data URI or as "
                "base64, or start the service with --allow-fetch HOST"
            )
        if url.userinfo:
            raise _refused(f"{name}: addresses with a user or a password are not fetched")
        if not any(host.allows(url) for host in self._hosts):
            raise _refused(
                f"{name}: images of {url.netloc.decode('ascii', 'replace')} are not fetched; the "
                "service allows other hosts (--allow-fetch)"
            )
        return url

    async def _fetch(self, url: httpx.URL, name: str) -> bytes:
        address = await self._address_of(url, name)
        async with httpx.AsyncClient(
            verify=self._tls,
            trust_env=False,
            follow_redirects=False,
            timeout=self._seconds,
            limits=httpx.Limits(max_keepalive_connections=0),
        ) as client:
            for _ in range(_MOST_REDIRECTS + 1):
                # The connection goes to the address that was checked; the certificate is
                # checked for the host's name.
                request = client.build_request(
                    "GET",
                    url.copy_with(host=address, fragment=None),
                    headers={**_HEADERS, "Host": url.netloc.decode("ascii")},
                    extensions={"sni_hostname": url.raw_host.decode("ascii")},
                )
                response = await client.send(request, stream=True)
                try:
                    if response.status_code not in _REDIRECTS:
                        return await self._body(response, name)
                    target = url.join(response.headers.get("location", ""))
                finally:
                    await response.aclose()
                url = self._redirected(url, target, name)
        raise ImageReadError(name, f"its address has more than {_MOST_REDIRECTS} redirects")

    def _redirected(self, url: httpx.URL, target: httpx.URL, name: str) -> httpx.URL:
        """Return the address of a redirect, on the same host and no less protected."""
        if (
            target.host.lower() != url.host.lower()
            or target.scheme not in _PORTS
            or (url.scheme, target.scheme) == ("https", "http")
            or target.userinfo
            or not any(host.allows(target) for host in self._hosts)
        ):
            raise ImageReadError(name, "its address redirects to another host, or away from https")
        return target

    async def _address_of(self, url: httpx.URL, name: str) -> str:
        """Return the address to connect to."""
        port = url.port or _PORTS[url.scheme]
        texts = await self._resolve(url.host, port)
        addresses = [ip for text in texts if (ip := _ip(text)) is not None]
        named = [host for host in self._hosts if host.allows(url)]
        if not addresses or not all(
            is_public(ip) or any(_is_named(ip, host) for host in named) for ip in addresses
        ):
            raise _refused(
                f"{name}: {url.host} has no public address, and images are fetched from public "
                "addresses only"
            )
        return str(addresses[0])

    async def _body(self, response: httpx.Response, name: str) -> bytes:
        if response.status_code != 200:
            raise ImageReadError(name, f"its host answers with status {response.status_code}")
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise ImageReadError(name, "its host sends it compressed, though asked not to")
        too_large = ImageReadError(name, f"it has more than {self._max_bytes:,} bytes")
        length = response.headers.get("content-length", "")
        known = length.isascii() and length.isdigit() and len(length) < 19
        if known and int(length) > self._max_bytes:
            raise too_large
        body = bytearray()
        async for part in response.aiter_raw():
            body += part
            if len(body) > self._max_bytes:
                raise too_large
        return bytes(body)

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return httpx.create_ssl_context(trust_env=False)


def is_public(address: Address) -> bool:
    """Return whether an address, and the IPv4 address in it if there is one, is of the internet."""
    return all(
        each.is_global
        and not (
            each.is_private
            or each.is_loopback
            or each.is_link_local
            or each.is_multicast
            or each.is_reserved
            or each.is_unspecified
            or getattr(each, "is_site_local", False)
        )
        for each in _unwrapped(address)
    )


def _is_named(address: Address, host: FetchHost) -> bool:
    """Return whether a host names an address that is not public, and it may be used."""
    if host.subdomains or any(_is_metadata(each) for each in _unwrapped(address)):
        return False
    return address.is_loopback if host.name == "localhost" else host.address == address


def _is_metadata(address: Address) -> bool:
    """Return whether an address is link-local, or another one of clouds' metadata services."""
    return address.is_link_local or str(address) in ("fd00:ec2::254", "100.100.100.200")


def _unwrapped(address: Address) -> list[Address]:
    """Return an address, or the IPv4 addresses that it leads to."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if address.sixtofour is not None:
        return [address, address.sixtofour]
    if address.teredo is not None:
        return [address, *address.teredo]
    if address in _NAT64:
        return [address, ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)]
    return [address]


def _ip(text: str) -> Address | None:
    try:
        return ipaddress.ip_address(text.strip("[]").partition("%")[0])
    except ValueError:
        return None


async def _system_addresses(host: str, port: int) -> list[str]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [*dict.fromkeys(str(address[0]) for *_, address in found)]


def _refused(message: str) -> RequestError:
    return RequestError(400, "AddressNotAllowed", message)
