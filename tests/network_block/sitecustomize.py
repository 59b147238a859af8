"""Put this file's folder first on PYTHONPATH, and Python has no network: only loopback is left.

Every connection to another address and every name lookup raises OSError, in the process itself and in every Python
below it that inherits PYTHONPATH. Jupyter's own traffic between a program and its kernel runs over loopback and is
left alone. What opens sockets without Python's `socket` (a C library) is not seen.
"""

import ipaddress
import socket

_REAL = {
    name: getattr(socket, name)
    for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr", "getnameinfo")
}
_METHODS = {
    name: getattr(socket.socket, name)
    for name in ("connect", "connect_ex", "sendto", "sendmsg")
    if hasattr(socket.socket, name)  # Windows has no sendmsg
}


def _is_loopback(host):
    if host in (None, "", "localhost", b"localhost"):
        return True
    text = host.decode("ascii", "replace") if isinstance(host, (bytes, bytearray)) else str(host)
    try:
        return ipaddress.ip_address(text.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _refuse(what):
    raise OSError(f"the network is blocked for this test: {what!r} is not on this machine")


def _check(sock, address):
    # A local socket (AF_UNIX) has a path for an address and reaches no network.
    if sock.family in (socket.AF_INET, socket.AF_INET6) and address is not None and not _is_loopback(address[0]):
        _refuse(address)


def _connect(self, address):
    _check(self, address)
    return _METHODS["connect"](self, address)


def _connect_ex(self, address):
    _check(self, address)
    return _METHODS["connect_ex"](self, address)


def _sendto(self, data, *rest):
    _check(self, rest[-1])
    return _METHODS["sendto"](self, data, *rest)


def _sendmsg(self, buffers, ancdata=(), flags=0, address=None):
    _check(self, address)
    return _METHODS["sendmsg"](self, buffers, ancdata, flags, *([] if address is None else [address]))


def _lookup(name):
    def look_up(host, *args, **options):
        # getnameinfo is given an address and a port; the others a name.
        wanted = host[0] if name == "getnameinfo" else host
        if not _is_loopback(wanted):
            _refuse(wanted)
        return _REAL[name](host, *args, **options)

    return look_up


for _name in _REAL:
    setattr(socket, _name, _lookup(_name))
socket.socket.connect, socket.socket.connect_ex, socket.socket.sendto = _connect, _connect_ex, _sendto
if "sendmsg" in _METHODS:
    socket.socket.sendmsg = _sendmsg
