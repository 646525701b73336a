"""Where a broker may listen: asked when it starts, not when the configuration is read.

Who stops a broker or looks at it need not have all that the service has in its environment.
"""

from __future__ import annotations

from zbroker import limits
from zbroker.config import EVERY_ADDRESS, Config
from zbroker.errors import InvalidArgument


def check_bind(host: str, advertise: str, insecure: bool) -> None:
    """Refuses to listen beyond this machine unless that is asked for.

    Args:
        host: to listen on.
        advertise: host that clients are told; wanted where `host` means every address.
        insecure: the user knows that everybody who reaches the port may do everything.

    Raises:
        InvalidArgument: with what to do.
    """
    if host == "localhost" or host.startswith("127.") or host == "[::1]":
        return
    if host in EVERY_ADDRESS and not advertise:
        text = "set broker.advertise to the host for clients to use, and say --insecure"
        raise InvalidArgument(f"broker.bind = {host!r} is every address: {text}")
    if not insecure:
        text = "anybody who reaches it may read and write; say --insecure if that is wanted"
        raise InvalidArgument(f"broker.bind = {host!r} is not this machine alone: {text}")


def check_ports(config: Config, shards: int) -> None:
    """Refuses two processes on one port; 0 is any that is free.

    Args:
        config: without `port_base`, which gives each process a port of its own.
        shards: how many workers there are.

    Raises:
        InvalidArgument: with the key and the port.
    """
    broker, nameserver = config.broker, config.nameserver
    if broker.port_base:
        return
    last = broker.worker_port + shards - 1
    if last > limits.PORT_MAX:
        raise InvalidArgument(f"broker.worker_port: the last worker would listen on {last}")
    workers = range(broker.worker_port, last + 1) if broker.worker_port else ()
    used = dict.fromkeys(workers, "a worker")
    wanted = {"broker.gateway_port": broker.gateway_port}
    if nameserver.run:
        wanted["nameserver.port"] = nameserver.port
    for name, port in wanted.items():
        if port and port in used:
            raise InvalidArgument(f"{name} = {port} is the port of {used[port]} too")
        used[port] = name
