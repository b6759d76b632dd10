"""Python finds this at its start when its folder is in PYTHONPATH: connections to other machines fail, and are written down."""

import errno
import ipaddress
import os
import socket

connect, lookup = socket.socket.connect, socket.getaddrinfo


def here(host):
    """Whether a host is this machine."""
    if isinstance(host, bytes):
        host = host.decode()
    try:
        address = ipaddress.ip_address(host or "127.0.0.1")
    except ValueError:
        return host in ("localhost", socket.gethostname())
    return address.is_loopback or address.is_unspecified or host in own()


def own():
    """Addresses of this machine's own interfaces."""
    import psutil

    return {each.address for found in psutil.net_if_addrs().values() for each in found}


def refuse(host):
    if path := os.environ.get("OFFLINE_LOG"):
        with open(path, "a") as file:
            file.write(f"{host}\n")
    raise OSError(errno.ENETUNREACH, f"the tests keep {host} out of reach")


def guarded_connect(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6) and not here(address[0]):
        refuse(address[0])
    return connect(self, address)


def guarded_lookup(host, *told, **named):
    if not here(host):
        refuse(host)
    return lookup(host, *told, **named)


socket.socket.connect, socket.getaddrinfo = guarded_connect, guarded_lookup
