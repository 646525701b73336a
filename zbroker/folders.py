"""Where this user's configuration and data are looked for.

A user may have no home (a container with a bare user id), or the home of somebody else: a place
that was not named and cannot be looked at is left out.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from zbroker.errors import InvalidArgument

FILE_NAME = "zbroker.toml"
_SYSTEM = Path("/etc/zbroker")
_log = logging.getLogger("zbroker.config")


def absolute(text: str) -> Path:
    """The folder that a user has named, `~` and all; raises InvalidArgument."""
    try:
        text.encode()
        return Path(text).expanduser().absolute()
    except UnicodeEncodeError:
        raise InvalidArgument(f"folder {text!a}: its name is not UTF-8") from None
    except RuntimeError as error:
        raise InvalidArgument(f"folder {text!r}: {error}") from None


def data_folder(environ: Mapping[str, str]) -> Path:
    """The data folder of a user who has named none.

    Args:
        environ: XDG_DATA_HOME and HOME count.

    Raises:
        InvalidArgument: the user has no home.
    """
    base = _own(environ, "XDG_DATA_HOME", ".local/share")
    if base is None:
        raise InvalidArgument("no data folder: this user has no home; name one with --data")
    return base.absolute() / "zbroker"


def configuration_file(named: str | None, environ: Mapping[str, str]) -> Path | None:
    """The configuration file: the named one, else the first of the usual places that has one.

    Args:
        named: path; None: of the working folder, the user, or the machine.
        environ: XDG_CONFIG_HOME and HOME count.

    Raises:
        InvalidArgument: the named one is not there.
    """
    if named:
        if not Path(named).is_file():
            raise InvalidArgument(f"{named}: there is no such configuration file")
        return Path(named)
    own = _own(environ, "XDG_CONFIG_HOME", ".config")
    places = [Path(), *([own / "zbroker"] if own else []), _SYSTEM]
    return next((place / FILE_NAME for place in places if _has_file(place)), None)


def _has_file(place: Path) -> bool:
    try:
        return (place / FILE_NAME).is_file()
    except OSError as error:
        _log.warning("%s is left out: %s", place / FILE_NAME, error.strerror)
        return False


def _own(environ: Mapping[str, str], variable: str, below: str) -> Path | None:
    """The user's folder for a kind of files; None: no home."""
    named = environ.get(variable)
    try:
        return Path(named or Path(environ.get("HOME") or "~") / below).expanduser()
    except RuntimeError:
        return None
