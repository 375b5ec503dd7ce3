"""How the node that serves a queue is found: the forms of a URL, whom to ask, how the answer reads. Pure.

redis://[user:password@]host:port/db                      one server; rediss:// with TLS
unix://path?db=0                                          one server on this machine
redis+sentinel://[user:password@]host:port,.../SERVICE/db the master of SERVICE, as its sentinels say
redis+cluster://[user:password@]host:port,...             the master of the queue's hash slot, as its nodes say
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import SplitResult, parse_qs, quote, urlsplit, urlunsplit

from redis.crc import key_slot

from tokenmill.wire.errors import InvalidRequestError

FORMS = (
    "redis://host:port/db, rediss:// for TLS, unix://path, redis+sentinel://host:port,host:port/SERVICE "
    "or redis+cluster://host:port,host:port"
)

_PLAIN = ("redis", "rediss", "unix")
_TOPOLOGIES = ("sentinel", "cluster")
_DEFAULT_PORTS = {"sentinel": 26379, "cluster": 6379}
_SECRETS = ("password", "sentinel_password")


class Address(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Answer(NamedTuple):
    """`master` None: the node that was asked knows of none now. `peers`: who else could be asked."""

    master: Address | None
    peers: tuple[Address, ...] = ()


@dataclass(frozen=True, slots=True)
class SentinelRoute:
    """To the master of a service that sentinels watch."""

    seeds: tuple[Address, ...]
    service: str

    @property
    def command(self) -> tuple[str, ...]:
        return ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service)

    def read(self, reply: Any, asked: Address) -> Answer:
        return Answer(_address(reply[0], reply[1], asked) if reply else None)


@dataclass(frozen=True, slots=True)
class ClusterRoute:
    """To the master of one hash slot."""

    seeds: tuple[Address, ...]
    slot: int

    @property
    def command(self) -> tuple[str, ...]:
        return ("CLUSTER", "SLOTS")

    def read(self, reply: Any, asked: Address) -> Answer:
        """Ranges as [first slot, last slot, master, replica ...], a node as [host, port, ...]."""
        peers = tuple(_address(node[0], node[1], asked) for _, _, *nodes in reply for node in nodes)
        masters = (master for first, last, master, *_ in reply if first <= self.slot <= last)
        master = next(masters, None)
        return Answer(_address(master[0], master[1], asked) if master else None, tuple(dict.fromkeys(peers)))


Route = SentinelRoute | ClusterRoute


def route_of(url: str, key: str) -> Route | None:
    """None: the URL names the server itself. InvalidRequestError says which forms there are."""
    parts = urlsplit(url)
    if parts.scheme in _PLAIN:
        return None
    secure, _, topology = parts.scheme.partition("+")
    if secure not in ("redis", "rediss") or topology not in _TOPOLOGIES:
        raise _refused(url, "it is none of the known forms")
    seeds = tuple(_seed(name, url, _DEFAULT_PORTS[topology]) for name in parts.netloc.rpartition("@")[2].split(","))
    if topology == "cluster":
        if parts.path.strip("/") not in ("", "0"):
            raise _refused(url, "a cluster has one database, so no path follows its nodes")
        return ClusterRoute(seeds, key_slot(key.encode()))
    return SentinelRoute(seeds, _service(url, parts)[0])


def is_spread(url: str) -> bool:
    """May two keys be on different nodes?"""
    return isinstance(route_of(url, ""), ClusterRoute)


def plain_url(url: str) -> str:
    """For redis-py, how to speak to the node once it is found: user, password, database and options of a routed URL."""
    parts = urlsplit(url)
    database = _service(url, parts)[1] if parts.scheme.endswith("+sentinel") else "0"
    credentials, at, _ = parts.netloc.rpartition("@")
    options = (part for part in parts.query.split("&") if not part.startswith("sentinel_"))
    return _plain(parts, f"{credentials}{at}", database, options)


def asking_url(url: str) -> str:
    """How to speak to those who know the node: sentinels have users of their own, in the options `sentinel_...`."""
    parts = urlsplit(url)
    if not parts.scheme.endswith("+sentinel"):
        return plain_url(url)
    given = parse_qs(parts.query)
    user, password = (quote(given.get(f"sentinel_{name}", [""])[0], safe="") for name in ("username", "password"))
    options = (part for part in parts.query.split("&") if not part.startswith(("sentinel_", "username=", "password=")))
    return _plain(parts, f"{user}:{password}@" if password else "", "0", options)


def _plain(parts: SplitResult, credentials: str, database: str, options: Iterable[str]) -> str:
    scheme = parts.scheme.partition("+")[0]
    return urlunsplit((scheme, f"{credentials}localhost", f"/{database}", "&".join(options), ""))


def hide_password(url: str) -> str:
    """The URL as it may be shown."""
    parts = urlsplit(url)
    if parts.password is None and not any(f"{name}=" in parts.query for name in _SECRETS):
        return url
    host = parts.netloc.rpartition("@")[2]
    netloc = f"{parts.username or ''}:***@{host}" if parts.password is not None else parts.netloc
    query = "&".join(_hidden(part) for part in parts.query.split("&"))
    return urlunsplit((parts.scheme, netloc, parts.path, query, parts.fragment))


def _hidden(option: str) -> str:
    name = option.partition("=")[0]
    return f"{name}=***" if name in _SECRETS else option


def _service(url: str, parts: SplitResult) -> tuple[str, str]:
    """(name of the service, number of the database)."""
    service, _, database = parts.path.strip("/").partition("/")
    if not service:
        raise _refused(url, "it does not name the sentinels' service")
    if not (database or "0").isdecimal():
        raise _refused(url, f"{database!r} is no number of a database")
    return service, database or "0"


def _seed(name: str, url: str, default_port: int) -> Address:
    """From `host`, `host:port` or `[host]:port`, the last for IPv6."""
    host, colon, port = name.rpartition(":") if not name.endswith("]") else (name, "", "")
    if not colon:
        host, port = name, str(default_port)
    host = host.strip("[]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise _refused(url, f"{name!r} is no host:port")
    return Address(host, int(port))


def _address(host: bytes | None, port: bytes | int, asked: Address) -> Address:
    """A node that does not know its own name is where it was asked."""
    name = (host or b"").decode()
    return Address(asked.host if name in ("", "?") else name, int(port))


def _refused(url: str, reason: str) -> InvalidRequestError:
    return InvalidRequestError(f"{hide_password(url)!r} is no server's URL: {reason}. There are {FORMS}", param="url")
