"""The gateway's process: `python -m zbroker.gateway.process '<options as JSON>'`.

It binds first, so that clients that come early wait instead of being refused by the kernel, and
reports ready when it has read the directory: from then on every request finds its worker.
"""

from __future__ import annotations

import sys

from zbroker import config, limits, names
from zbroker.clock import monotonic_ms
from zbroker.errors import ZBrokerError
from zbroker.gateway.routing import CLIENT_DOOR, Gateway
from zbroker.net import port
from zbroker.net.child import Child
from zbroker.net.loop import Loop


def main(argv: list[str]) -> int:
    """Serves until SIGTERM; returns the exit code.

    Args:
        argv: one argument, `config.GatewayOptions` as JSON.
    """
    try:
        options = config.decode_options(config.GatewayOptions, argv)
    except ZBrokerError as error:
        print(f"gateway: {error}", file=sys.stderr)
        return error.exit_code
    child = Child("gateway", options.supervised)
    try:
        serve(child, options)
    except ZBrokerError as error:
        return child.fail(error)
    return 0


def serve(child: Child, options: config.GatewayOptions) -> None:
    """Binds, connects, serves until told to stop, leaves the NameServers."""
    ctx = port.context()
    clients = port.bind(ctx, CLIENT_DOOR, options.listen)
    endpoint = port.advertised(clients.endpoint, options.advertise)
    workers = [
        port.connect(ctx, f"worker-{shard}", f"ipc://{options.ipc}/worker-{shard}", queue=False)
        for shard in range(options.shards)
    ]
    nameservers = [
        port.connect(ctx, f"nameserver-{place}", address, queue=False)
        for place, address in enumerate(options.nameservers)
    ]
    boot = names.hex_id(names.random_id())
    mind = Gateway(
        boot, options.shards, options.broker, endpoint,
        [door.name for door in nameservers], options.start,
    )
    ports = [clients, *workers, *nameservers]
    loop = Loop(
        mind, ports, boot, child.wakes(), commit=_Reporter(child, mind, endpoint),
        unsent=mind.unsent,
    )
    child.on_stop = loop.stop
    loop.run()
    _leave(mind, loop)
    for door in ports:
        door.close()


class _Reporter:
    """Once a turn: reports ready when the mind is, then life."""

    def __init__(self, child: Child, mind: Gateway, endpoint: str) -> None:
        self._child, self._mind, self._endpoint = child, mind, endpoint
        self._reported = False

    def __call__(self, now: int) -> None:
        if self._mind.ready and not self._reported:
            self._reported = True
            self._child.ready(self._endpoint)
        self._child.alive(now)


def _leave(mind: Gateway, loop: Loop) -> None:
    until = monotonic_ms() + limits.GATEWAY_LEAVE_MS
    mind.leave()
    loop.send_all()
    while mind.leaving and monotonic_ms() < until:
        loop.turn(limits.GATEWAY_LEAVE_MS // 10)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
