"""Which addresses anybody may reach, and which only those in the same network, or on the same machine."""

from __future__ import annotations

import ipaddress
import socket

NAT64 = ipaddress.ip_network("64:ff9b::/96")
NOT_FOR_STRANGERS = tuple(map(ipaddress.ip_network, ("168.63.129.16/32", "192.0.0.0/24")))
"""What clouds use for their own services, beside addresses that Python knows not to be public: a public one in Azure,
and a network that older versions of Python take for public."""


def is_public(address: str) -> bool:
    """Whether an IP address may be anyone's in the internet, and what it stands for in IPv4 too."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        inner += [ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)] if ip in NAT64 else []
        if not all(is_public(str(each)) for each in inner if each is not None):
            return False
        if any(each is not None for each in inner):
            return True
    return (
        ip.is_global
        and not ip.is_multicast
        and not ip.is_reserved
        and not any(ip in network for network in NOT_FOR_STRANGERS)
    )


def is_this_machine(host: str) -> bool:
    """Whether a host is this very machine, by its name alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost" or host.lower().endswith(".localhost")


def has_public_address(host: str) -> bool:
    """Whether all addresses of a host are public; True if it has none that can be found, as behind a proxy."""
    try:
        found = {str(each[4][0]) for each in socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return True
    return all(map(is_public, found))
