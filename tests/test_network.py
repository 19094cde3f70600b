"""The network guard itself: it must see what leaves the machine, or its silence proves nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

GUARD = Path(__file__).parent / "guard"
OUTSIDE = "192.0.2.1"  # TEST-NET-1 (RFC 5737): never assigned


def run_guarded(code, log, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(GUARD), "NAFLD_NETWORK_LOG": str(log)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("code", "seen"),
    [
        (f"import socket; socket.create_connection(('{OUTSIDE}', 80), 1)", OUTSIDE),
        ("import socket; socket.getaddrinfo('example.org', 443)", "example.org"),
        ("import socket; socket.gethostbyname('example.org')", "example.org"),
        (f"import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('{OUTSIDE}', 53))", OUTSIDE),
        ("import socket; socket.socket(socket.AF_INET6).connect(('2001:db8::1', 80))", "2001:db8::1"),
        ("import urllib.request; urllib.request.urlopen('http://example.org')", "example.org"),
        ("import asyncio; asyncio.run(asyncio.open_connection('example.org', 80))", "example.org"),
        (
            "import subprocess, sys; subprocess.run([sys.executable, '-c', "
            "'import socket; socket.gethostbyname(\"example.org\")'], check=True)",
            "example.org",
        ),
    ],
)
def test_the_guard_sees_and_refuses_what_leaves_the_machine(tmp_path, code, seen):
    log = tmp_path / "network.log"
    done = run_guarded(code, log)
    assert done.returncode != 0
    assert "the network guard refused" in done.stderr
    assert seen in log.read_text(encoding="utf-8")


def test_the_guard_lets_the_machine_talk_to_itself(tmp_path):
    log = tmp_path / "network.log"
    code = """
import socket, sys
for family, address in ((socket.AF_INET, ("127.0.0.1", 0)), (socket.AF_UNIX, None)):
    server = socket.socket(family)
    server.bind(address or sys.argv[1])
    server.listen()
    socket.socket(family).connect(server.getsockname())
socket.getaddrinfo("localhost", 80)
socket.getaddrinfo(None, 80)
"""
    done = run_guarded(code, log, str(tmp_path / "socket"))
    assert done.returncode == 0, done.stderr
    assert not log.exists()


def test_the_guard_is_silent_unless_asked(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "NAFLD_NETWORK_LOG"}
    code = "import sys, socket; assert 'sitecustomize' in sys.modules; print(len(sys.modules['sitecustomize']._EVENTS))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "PYTHONPATH": str(GUARD)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) == 5
