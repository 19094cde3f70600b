"""Who accepts connections, and from whom: a unit of work for the workers of a cluster, which import it by name."""

import contextlib
import socket
import ssl
from pathlib import Path

import psutil


def listeners(*processes):
    """Address and port that these processes accept connections at."""
    every = [each for process in processes for each in process.net_connections("inet")]
    return {tuple(each.laddr) for each in every if each.status == psutil.CONN_LISTEN}


def kind(address):
    """What somebody without a key gets there: facts as by a browser, nothing, or an answer of Dask."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(address, 10) as plain, contextlib.suppress(ConnectionResetError):
        plain.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        if plain.recv(1000).startswith(b"HTTP/"):
            return "health"
    try:
        with socket.create_connection(address, 10) as plain, context.wrap_socket(plain) as connection:
            connection.recv(1)
    except ssl.SSLError as error:
        if "CERTIFICATE_REQUIRED" in str(error):
            return "refused"
    return "open"


def note(folder, driver):
    """Write down what this worker, what began it and the driver offer: ``kind address`` per line."""
    own = psutil.Process()
    found = listeners(own, own.parent(), psutil.Process(driver))
    Path(folder, "found").write_text("".join(f"{kind(each)} {each[0]}\n" for each in sorted(found)))
