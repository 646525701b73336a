"""The NameServer's process: `python -m zbroker.nameserver.process '<options as JSON>'`."""

from __future__ import annotations

import sys

from zbroker import config, names
from zbroker.clock import monotonic_ms
from zbroker.errors import ZBrokerError
from zbroker.nameserver.routes import NameServer
from zbroker.net import port
from zbroker.net.child import Child
from zbroker.net.loop import Loop


def main(argv: list[str]) -> int:
    """Serves until SIGTERM; returns the exit code.

    Args:
        argv: one argument, `config.NameserverOptions` as JSON.
    """
    try:
        options = config.decode_options(config.NameserverOptions, argv)
    except ZBrokerError as error:
        print(f"nameserver: {error}", file=sys.stderr)
        return error.exit_code
    child = Child("nameserver", options.supervised)
    try:
        serve(child, options)
    except ZBrokerError as error:
        return child.fail(error)
    return 0


def serve(child: Child, options: config.NameserverOptions) -> None:
    """Binds, reports ready, serves."""
    door = port.bind(port.context(), "tcp", options.listen)
    boot = names.hex_id(names.random_id())
    mind = NameServer(boot, monotonic_ms(), door.endpoint)
    loop = Loop(mind, [door], boot, child.wakes(), commit=child.alive)
    child.on_stop = loop.stop
    child.ready(door.endpoint)
    loop.run()
    door.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
