"""Network guard: put this folder on PYTHONPATH and set NAFLD_NETWORK_LOG; every Python process then obeys it.

A connection to anything but this machine is written to the log and refused, in the notebooks' kernels and in their
worker processes alike. It is an audit hook, so code that holds a socket of its own making is seen too.
"""

import os
import socket
import sys

_LOG = os.environ.get("NAFLD_NETWORK_LOG")
_OWN_NAMES = {"", "localhost", "localhost.localdomain", "ip6-localhost", socket.gethostname()}
_EVENTS = {"socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname"}


def _is_local(host: object) -> bool:
    if host is None:
        return True
    if isinstance(host, bytes):
        host = host.decode("ascii", "replace")
    host = str(host)
    return host in _OWN_NAMES or host.startswith("127.") or host in ("::1", "0.0.0.0", "::", "::ffff:127.0.0.1")


def _target(event: str, arguments: tuple) -> object:
    """Host that an audit event names; None where it names none, as a unix socket's path."""
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        return arguments[0]
    owner, address = arguments[0], arguments[1]
    if getattr(owner, "family", None) not in (socket.AF_INET, socket.AF_INET6):
        return None
    return address[0] if isinstance(address, tuple) else None


def _guard(event: str, arguments: tuple) -> None:
    if event not in _EVENTS:
        return
    host = _target(event, arguments)
    if _is_local(host):
        return
    with open(_LOG, "a", encoding="utf-8") as handle:
        handle.write(f"{os.getpid()} {event} {host} in {' '.join(sys.argv[:3])}\n")
    raise OSError(f"the network guard refused {event} to {host}")


if _LOG:
    sys.addaudithook(_guard)
