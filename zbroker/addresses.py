"""Addresses as users and peers write them, checked before ZeroMQ sees them.

ZeroMQ would take less, and say so where nobody could be told: in the I/O thread of a client, or in
a process whose starter is long gone. Letters and digits are those of ASCII.
"""

from __future__ import annotations

import re

from zbroker import limits
from zbroker.errors import InvalidArgument

_HOST = r"\[[0-9A-Fa-f:.]+(?:%[\w.-]+)?\]|[\w.-]+"
_host = re.compile(_HOST, re.ASCII)
_address = re.compile(rf"ipc://.+|tcp://(?:{_HOST}):(\d{{1,5}})", re.ASCII)


def check_host(what: str, host: str) -> str:
    """Returns `host` if it is a name or a number without a port.

    Args:
        what: begins the error ("broker.advertise").
        host: ASCII; an IPv6 address stands in brackets.

    Raises:
        InvalidArgument: it is neither.
    """
    if not _host.fullmatch(host):
        text = "a host without a port is wanted, IPv6 in brackets"
        raise InvalidArgument(f"{what} = {host!r:.80}: {text}")
    return host


def check_address(text: str) -> str:
    """Returns `text` if it is `tcp://host:port` or `ipc://path`, else raises InvalidArgument."""
    match = _address.fullmatch(text)
    if not match or (match[1] is not None and not 0 < int(match[1]) <= limits.PORT_MAX):
        raise InvalidArgument(f"address {text!r:.80}: tcp://host:port is wanted")
    return text


def addresses(text: str) -> list[str]:
    """The addresses of a list with commas; may be empty; raises InvalidArgument."""
    return [check_address(part.strip()) for part in text.split(",") if part.strip()]
