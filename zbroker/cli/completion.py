"""`zbroker completion`: what a shell needs to complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for SHELL, for example: eval "$(zbroker completion bash)"."""
    kind = get_completion_class(shell)
    assert kind is not None
    root = ctx.find_root()
    print(kind(root.command, {}, "zbroker", "_ZBROKER_COMPLETE").source())
