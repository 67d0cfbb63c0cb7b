"""Fetching of images: only from named hosts, never from inside the network, within limits."""

from __future__ import annotations

import asyncio
import base64
import io
import ipaddress
import shutil
import ssl
import subprocess
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from edje_qdrant.errors import ConfigError, ImageReadError
from edje_qdrant.web.errors import RequestError
from edje_qdrant.web.image_fetch import ImageFetcher, fetch_host, is_public
from edje_qdrant.web.settings import ServiceSettings


def png():
    file = io.BytesIO()
    Image.new("RGB", (20, 10), (200, 10, 10)).save(file, "PNG")
    return file.getvalue()


PNG = png()


class Host(ThreadingHTTPServer):
    """A host of images on 127.0.0.1; `seen` has the path and the Host header of each request."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.seen = []
        self.ended = threading.Event()
        self.port = self.server_address[1]
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.seen.append((self.path, self.headers["Host"], dict(self.headers)))
        name = self.path.strip("/").split("?")[0]
        getattr(self, name, self.image)()

    def image(self):
        self.say(200, PNG)

    def missing(self):
        self.say(404, b"")

    def large(self):
        self.say(200, b"x" * 5000)

    def unsized(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"x" * 5000)

    def gzip(self):
        self.say(200, b"x", {"Content-Encoding": "gzip"})

    def slow(self):
        self.server.ended.wait()

    def dripping(self):
        self.send_response(200)
        self.send_header("Content-Length", "4000")
        self.end_headers()
        with suppress(OSError):  # the other side leaves
            while not self.server.ended.wait(0.05):
                self.wfile.write(b"x")

    def nonsense(self):
        self.wfile.write(b"no HTTP at all\r\n\r\n")

    def loop(self):
        self.say(302, b"", {"Location": "/loop"})

    def near(self):
        self.say(301, b"", {"Location": "/image"})

    def far(self):
        self.say(302, b"", {"Location": "http://169.254.169.254/latest/meta-data/"})

    def other(self):
        self.say(302, b"", {"Location": f"http://127.0.0.1:{self.server.port}/image"})

    def file(self):
        self.say(302, b"", {"Location": "file:///etc/passwd"})

    def port(self):
        self.say(302, b"", {"Location": "http://localhost:1/image"})

    def user(self):
        self.say(302, b"", {"Location": f"http://a:b@localhost:{self.server.port}/image"})

    def nowhere(self):
        self.say(302, b"", {})

    def say(self, status, body, headers=None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def host():
    host = Host()
    yield host
    host.ended.set()
    host.shutdown()
    host.server_close()


def fetcher(*hosts, max_bytes=4000, seconds=60.0, addresses=None):
    """Return a fetcher, and what it asked the resolver for."""
    asked = []

    async def resolve(name, port):
        asked.append(name)
        found = (addresses or {})[name]
        return found.pop(0) if found and isinstance(found[0], list) else found

    made = ImageFetcher(
        [fetch_host(each) for each in hosts],
        max_bytes=max_bytes,
        seconds=seconds,
        resolve=resolve if addresses is not None else None,
    )
    return made, asked


def fetch(made, url):
    return asyncio.run(made.fetch(url, "documents.0"))


def refused(made, url, *words):
    with pytest.raises(RequestError) as raised:
        fetch(made, url)
    assert raised.value.status_code == 400
    assert raised.value.error == "AddressNotAllowed"
    for word in ("documents.0", *words):
        assert word in str(raised.value.detail)


def unreadable(made, url, *words):
    with pytest.raises(ImageReadError) as raised:
        fetch(made, url)
    for word in ("documents.0", *words):
        assert word in str(raised.value)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("127.0.0.1", False), ("127.8.9.1", False), ("::1", False), ("0.0.0.0", False),
        ("::", False), ("10.0.0.1", False), ("172.16.3.4", False), ("192.168.1.1", False),
        ("100.64.0.1", False), ("100.100.100.200", False), ("169.254.169.254", False),
        ("169.254.170.2", False), ("fe80::1", False), ("fd00:ec2::254", False),
        ("fc00::1", False), ("fec0::1", False), ("224.0.0.1", False), ("ff02::1", False),
        ("240.0.0.1", False), ("255.255.255.255", False), ("192.0.2.1", False),
        ("198.18.0.1", False), ("2001:db8::1", False),
        # IPv4 addresses in IPv6 ones: mapped, 6to4, NAT64, Teredo.
        ("::ffff:127.0.0.1", False), ("::ffff:169.254.169.254", False), ("::ffff:10.0.0.1", False),
        ("::ffff:93.184.215.14", True), ("2002:7f00:1::", False), ("2002:a9fe:a9fe::", False),
        ("64:ff9b::a9fe:a9fe", False), ("64:ff9b::7f00:1", False),
        ("2001:0:a9fe:a9fe::5601:5601", False),
    ],
)  # fmt: skip
def test_which_addresses_are_public(address, public):
    assert is_public(ipaddress.ip_address(address)) is public


@pytest.mark.parametrize(
    ("text", "url", "allowed"),
    [
        ("example.com", "http://example.com/a.jpg", True),
        ("example.com", "https://EXAMPLE.com/a.jpg", True),
        ("Example.COM", "https://example.com:443/a.jpg", True),
        ("example.com", "https://example.com:8443/a.jpg", False),
        ("example.com", "http://example.com:443/a.jpg", False),
        ("example.com", "http://sub.example.com/a.jpg", False),
        ("example.com", "http://example.com.evil.org/a.jpg", False),
        ("example.com", "http://evilexample.com/a.jpg", False),
        ("example.com", "http://example.com./a.jpg", False),
        ("*.example.com", "http://sub.example.com/a.jpg", True),
        ("*.example.com", "http://a.sub.example.com/a.jpg", True),
        ("*.example.com", "http://example.com/a.jpg", False),
        ("*.example.com", "http://evilexample.com/a.jpg", False),
        ("example.com:8080", "http://example.com:8080/a.jpg", True),
        ("example.com:8080", "http://example.com/a.jpg", False),
        ("[::1]:8080", "http://[::1]:8080/a.jpg", True),
        ("::1", "http://[::1]/a.jpg", True),
        ("bücher.example", "http://xn--bcher-kva.example/a.jpg", True),
        ("127.0.0.1", "http://127.1/a.jpg", False),
        ("127.0.0.1", "http://2130706433/a.jpg", False),
        ("127.0.0.1", "http://0x7f000001/a.jpg", False),
        ("127.0.0.1", "http://[::ffff:127.0.0.1]/a.jpg", False),
    ],
)
def test_a_host_means_itself_alone(text, url, allowed):
    made, _ = fetcher(text, addresses={})
    if allowed:
        assert made._allowed(url, "a").host
    else:
        refused(made, url, "--allow-fetch")


@pytest.mark.parametrize(
    "text",
    ["", "http://example.com", "a/b", "a b", "a@b", "*", "*.", "*.*.a", "a:b", "a:99999", "a:0",
     "[::1", "*.127.0.0.1", "169.254.169.254", "fe80::1", "100.100.100.200",
     "::ffff:169.254.169.254"],
)  # fmt: skip
def test_a_text_that_is_no_host_is_refused_at_the_start(text):
    with pytest.raises(ConfigError, match="--allow-fetch"):
        ServiceSettings(allow_fetch=(text,))


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://example.com/a.jpg", "gopher://example.com", "http://", "http:a",
     "HTTP:///a", "//example.com/a", "jar:http://example.com!/", "unix:/run/a.sock"],
)  # fmt: skip
def test_only_http_and_https_are_read(url):
    refused(fetcher("example.com", addresses={})[0], url, "file:")
    refused(fetcher(addresses={})[0], url, "file:")


def test_without_hosts_nothing_is_fetched():
    refused(fetcher()[0], "https://example.com/a.jpg", "fetches no addresses", "--allow-fetch")


def test_a_user_or_a_password_is_refused():
    for user in ("me@", "me:secret@", "example.com@"):
        refused(fetcher("example.com")[0], f"https://{user}example.com/a.jpg", "password")


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"], ["10.0.0.1"], ["169.254.169.254"], ["::1"], ["::ffff:127.0.0.1"],
        ["fe80::1%eth0"], ["93.184.215.14", "127.0.0.1"], ["64:ff9b::7f00:1"], [], ["nonsense"],
    ],
)  # fmt: skip
@pytest.mark.parametrize("text", ["images.example.com", "*.example.com"])
def test_a_name_that_leads_inside_the_network_is_refused(addresses, text):
    made, asked = fetcher(text, addresses={"images.example.com": addresses})
    refused(made, "http://images.example.com/a.jpg", "no public address")
    assert asked == ["images.example.com"]


@pytest.mark.parametrize(
    ("text", "name", "address"),
    [
        ("localhost", "localhost", "10.0.0.1"),
        ("localhost", "localhost", "169.254.169.254"),
        ("*.localhost", "a.localhost", "127.0.0.1"),
        ("10.0.0.1", "10.0.0.1", "10.0.0.2"),
    ],
)
def test_an_inner_host_that_is_named_means_its_own_address(text, name, address):
    made, _ = fetcher(text, addresses={name: [address]})
    refused(made, f"http://{name}/a.jpg", "no public address")


def test_an_image_of_a_host_that_was_named(host):
    made, asked = fetcher(f"localhost:{host.port}", addresses={"localhost": ["127.0.0.1"]})
    assert fetch(made, f"http://localhost:{host.port}/image?a=1#b") == PNG
    ((path, name, headers),) = host.seen
    assert (path, name) == ("/image?a=1", f"localhost:{host.port}")
    assert headers["Accept-Encoding"] == "identity"
    assert asked == ["localhost"]


def test_a_loopback_address_that_was_named(host):
    made, _ = fetcher(f"127.0.0.1:{host.port}")
    assert fetch(made, f"http://127.0.0.1:{host.port}/image") == PNG


def test_a_name_is_resolved_once(host):
    addresses = {"localhost": [["127.0.0.1"], ["169.254.169.254"]]}
    made, asked = fetcher(f"localhost:{host.port}", addresses=addresses)
    assert fetch(made, f"http://localhost:{host.port}/near") == PNG
    assert [path for path, *_ in host.seen] == ["/near", "/image"]
    assert asked == ["localhost"]


def test_proxies_of_the_environment_are_not_used(host, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    made, _ = fetcher(f"127.0.0.1:{host.port}")
    assert fetch(made, f"http://127.0.0.1:{host.port}/image") == PNG


@pytest.mark.parametrize("path", ["far", "other", "file", "port", "user"])
def test_redirects_stay_on_the_host(host, path):
    made, _ = fetcher(
        f"localhost:{host.port}", f"127.0.0.1:{host.port}", addresses={"localhost": ["127.0.0.1"]}
    )
    unreadable(made, f"http://localhost:{host.port}/{path}", "redirects to another host")
    assert len(host.seen) == 1


def test_redirects_end(host):
    made, _ = fetcher(f"127.0.0.1:{host.port}")
    for path in ("loop", "nowhere"):
        host.seen.clear()
        unreadable(made, f"http://127.0.0.1:{host.port}/{path}", "more than 3 redirects")
        assert len(host.seen) == 4


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("missing", "status 404"),
        ("large", "more than 4,000 bytes"),
        ("unsized", "more than 4,000 bytes"),
        ("gzip", "compressed"),
        ("nonsense", "does not answer as HTTP"),
    ],
)
def test_an_answer_that_is_no_image_within_the_limits(host, path, word):
    made, _ = fetcher(f"127.0.0.1:{host.port}")
    unreadable(made, f"http://127.0.0.1:{host.port}/{path}", word)


@pytest.mark.parametrize("path", ["slow", "dripping"])
def test_a_slow_host_is_left(host, path):
    """Before its answer ends, which takes until the test does, or over three minutes."""
    made, _ = fetcher(f"127.0.0.1:{host.port}", seconds=0.3)
    unreadable(made, f"http://127.0.0.1:{host.port}/{path}", "more than 0.3 s")


def test_a_host_that_cannot_be_reached(host):
    made, _ = fetcher("127.0.0.1:1")
    unreadable(made, "http://127.0.0.1:1/a", "cannot be reached")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_a_certificate_is_checked_for_the_name(host, tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-keyout", key, "-out", certificate, "-days", "2", "-nodes", "-subj", "/CN=a",
         "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    host.socket = context.wrap_socket(host.socket, server_side=True)
    names = (f"localhost:{host.port}", f"127.0.0.1:{host.port}")
    made, _ = fetcher(*names)
    unreadable(made, f"https://localhost:{host.port}/image", "cannot be reached")
    made._tls = ssl.create_default_context(cafile=str(certificate))
    assert fetch(made, f"https://localhost:{host.port}/image") == PNG
    unreadable(made, f"https://127.0.0.1:{host.port}/image", "cannot be reached")


def test_documents_may_be_addresses(serve, host):
    client = serve(allow_fetch=(f"127.0.0.1:{host.port}",))
    url = f"http://127.0.0.1:{host.port}/image"
    stored = {"image": base64.b64encode(PNG).decode()}
    documents = [url, {"image": url}, {"content": [{"type": "image_url", "image_url": url}]}]
    body = {"query": "a", "documents": [stored, *documents], "return_documents": True}
    answer = client.post("/v1/rerank", json=body).json()
    assert len({each["score"] for each in answer["results"]}) == 1
    shown = {each["index"]: each["document"]["image"] for each in answer["results"]}
    assert [shown[row] for row in range(4)] == [None, url, url, url]
    (vector,) = client.post("/v1/embeddings", json={"input": {"image": url}}).json()["data"]
    assert len(vector["embedding"]) > 1
    assert 'outcome="encoded"} 1.0' in client.get("/metrics").text


def test_a_service_fetches_nothing_unless_told_to(shared, host):
    url = f"http://127.0.0.1:{host.port}/image"
    for document in (url, {"image": url}, {"image": "file:///etc/passwd"}):
        answer = shared.post("/v1/rerank", json={"query": "a", "documents": [document]})
        assert (answer.status_code, answer.json()["error"]) == (400, "AddressNotAllowed")
    assert host.seen == []
