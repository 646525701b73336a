"""What may be set: the options of each process, and the configuration file that users write.

The options structs are the whole contract between the supervisor (or `zbroker serve`) and a
process: one JSON object as the only argument of `python -m zbroker.<kind>.process`.

The file is `zbroker.toml`: the one of `--config`, else of ZBROKER_CONFIG, else the first of the
working folder, the user's configuration folder and /etc/zbroker. One key is one field of a section
below, and ZBROKER_<SECTION>__<KEY> overrides it. What is not known is an error with a suggestion,
in the file and in the environment: a misspelt setting that is silently ignored is worse than none.
What only a start needs is asked there (`cli.listening`).
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import Meta

from zbroker import folders, limits
from zbroker.addresses import check_address, check_host
from zbroker.errors import InvalidArgument
from zbroker.names import BROKER_DEFAULT

ENVIRONMENT_NAMES = {
    "ZBROKER_CONFIG": "path of the configuration file",
    "ZBROKER_DATA": "the data folder",
    "ZBROKER_URL": "address of NameServers or of a gateway, for clients",
    "ZBROKER_DEBUG": "1: errors of the command line come with their traceback",
    "ZBROKER_FAULTS": "faults to inject; for the project's own tests",
    "ZBROKER_TEST_CLOCK": "a file that says how far the broker's time is ahead; for tests",
}
# What Kubernetes and docker tell a container about services named "zbroker" or "zbroker-gateway".
_SERVICE = re.compile(
    r"ZBROKER_([A-Z0-9]+_)*(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9]+)*|NAME|ENV_\w+"
    r"|PORT(_\d+_(TCP|UDP|SCTP)(_[A-Z0-9]+)*)?)"
)
_SIMILAR = 0.7  # of 1: what is so like a known name is meant to be it
EVERY_ADDRESS = ("*", "0.0.0.0", "[::]")
EVERY_KIND = ("nameserver", "gateway", "worker")

_OptionsT = TypeVar("_OptionsT", bound=msgspec.Struct)
Flush = Literal["sync", "async"]
Port = Annotated[int, Meta(ge=0, le=limits.PORT_MAX)]
ShardCount = Annotated[int, Meta(ge=1, le=limits.SHARDS_MAX)]
ShardNumber = Annotated[int, Meta(ge=0, le=limits.SHARDS_MAX - 1)]
QueueCount = Annotated[int, Meta(ge=1, le=limits.QUEUES_A_TOPIC_MAX)]
NotNegative = Annotated[int, Meta(ge=0, le=limits.INTEGER_MAX)]
BrokerName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,127}$")]


# --- options of the processes -------------------------------------------------------------------


class Options(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The base: `listen` is where the process binds, `supervised` says who holds its pipes."""

    listen: str
    supervised: bool = True


class WorkerOptions(Options, kw_only=True, frozen=True):
    """Options of a worker.

    Attributes:
        data: the broker's data folder; the worker owns `data/shards/<shard>`.
        shard, shards: which shard, of how many.
        advertise: host that clients are told, with the bound port; empty: as bound.
        ipc: folder of the unix sockets; the worker binds `ipc://<ipc>/worker-<shard>`.
        broker: name of the broker group.
        room: where it stands, for groups that are divided by machine room.
        flush: "sync": acknowledged is on disk.
        auto_create, queues_default: for topics that are created on send.
        retention_ms, retention_bytes: age and size (0: none) beyond which segments go.
        min_free_bytes: below so much free space nothing is published; -1: the default rule.
    """

    data: str
    shard: ShardNumber
    shards: ShardCount
    ipc: str
    advertise: str = ""
    broker: BrokerName = BROKER_DEFAULT
    room: str = ""
    flush: Flush = "sync"
    auto_create: bool = True
    queues_default: QueueCount = limits.QUEUES_A_TOPIC_DEFAULT
    retention_ms: NotNegative = limits.RETENTION_MS
    retention_bytes: NotNegative = 0
    min_free_bytes: Annotated[int, Meta(ge=-1, le=limits.INTEGER_MAX)] = -1


class GatewayOptions(Options, kw_only=True, frozen=True):
    """Options of a gateway.

    Attributes:
        shards: how many workers there are.
        ipc: folder of the workers' unix sockets.
        advertise: host that clients are told, with the bound port; empty: as bound.
        broker: name of the broker group.
        nameservers: where to register.
        start: grows with every start of a gateway of this data folder (generation).
    """

    shards: ShardCount
    ipc: str
    advertise: str = ""
    broker: BrokerName = BROKER_DEFAULT
    nameservers: list[str] = []
    start: NotNegative = 1


class NameserverOptions(Options, kw_only=True, frozen=True):
    """Options of a NameServer."""


def worker_options(
    config: Config, data: str, ipc: str, shard: int, shards: int, listen: str
) -> WorkerOptions:
    """The options of the worker of one shard, as the configuration has them."""
    return WorkerOptions(
        listen=listen,
        data=data,
        shard=shard,
        shards=shards,
        ipc=ipc,
        advertise=config.broker.advertise,
        broker=config.broker.name,
        room=config.broker.room,
        flush=config.broker.flush,
        auto_create=config.topics.auto_create,
        queues_default=config.topics.queues,
        retention_ms=int(config.retention.hours * 3_600_000),
        retention_bytes=config.retention.bytes,
        min_free_bytes=config.disk.min_free_bytes,
    )


def decode_options(kind: type[_OptionsT], argv: list[str]) -> _OptionsT:
    """Reads the only argument of a process.

    Args:
        kind: the process's options struct.
        argv: the arguments behind the module's name: one JSON object.

    Raises:
        InvalidArgument: not exactly one argument, or not of that form.
    """
    if len(argv) != 1:
        raise InvalidArgument(f"one argument is wanted, the options as JSON; got {len(argv)}")
    try:
        return msgspec.json.decode(argv[0], type=kind)
    except (msgspec.MsgspecError, ValueError) as error:
        raise InvalidArgument(f"options of the process: {error}") from None


def encode_options(options: msgspec.Struct) -> str:
    """The argument that `decode_options` reads."""
    return msgspec.json.encode(options).decode()


# --- the configuration file ----------------------------------------------------------------------


class BrokerSection(msgspec.Struct, frozen=True):
    """[broker]: the broker group on this machine.

    Attributes:
        name: of the broker group.
        data: the data folder; empty: the user's data folder.
        workers: worker processes = shards; 0: as the data folder has, for a new one usable
            cores, 1 to 4.
        bind, advertise: host to listen on, and host that clients are told (empty: the former).
        gateway_port, worker_port: of the gateway and of worker 0, the others follow it.
        port_base: other than 0: NameServer here, gateway + 1, workers + 10 up.
        room: where it stands; groups with strategy "machine_room" give its queues to members there.
        flush: "sync": acknowledged is on disk; "async": written, the next sync follows at once.
    """

    name: BrokerName = BROKER_DEFAULT
    data: str = ""
    workers: Annotated[int, Meta(ge=0, le=limits.SHARDS_MAX)] = 0
    bind: str = "127.0.0.1"
    advertise: str = ""
    gateway_port: Port = limits.GATEWAY_PORT
    worker_port: Port = limits.WORKER_PORT
    port_base: Annotated[int, Meta(ge=0, le=limits.PORT_BASE_MAX)] = 0
    room: str = ""
    flush: Flush = "sync"


class NameserverSection(msgspec.Struct, frozen=True):
    """[nameserver]: the one of this machine, and others.

    Attributes:
        run: `up` starts one; else the broker registers at those of `also` alone.
        port: where it listens.
        also: further NameServers ("tcp://host:port") where the broker registers.
    """

    run: bool = True
    port: Port = limits.NAMESERVER_PORT
    also: list[str] = []


class TopicsSection(msgspec.Struct, frozen=True):
    """[topics]: creation on send, and how many queues a topic gets."""

    auto_create: bool = True
    queues: QueueCount = limits.QUEUES_A_TOPIC_DEFAULT


class RetentionSection(msgspec.Struct, frozen=True):
    """[retention]: age in hours, and bytes a shard (0: no bound), beyond which segments go."""

    hours: Annotated[float, Meta(gt=0, le=24 * 365 * 10)] = limits.RETENTION_MS / 3_600_000
    bytes: NotNegative = 0


class DiskSection(msgspec.Struct, frozen=True):
    """[disk]: below `min_free_bytes` nothing is published; -1: smaller of 5 % and 2 GiB."""

    min_free_bytes: Annotated[int, Meta(ge=-1, le=limits.INTEGER_MAX)] = -1


class Config(msgspec.Struct, frozen=True):
    """All sections."""

    broker: BrokerSection = BrokerSection()
    nameserver: NameserverSection = NameserverSection()
    topics: TopicsSection = TopicsSection()
    retention: RetentionSection = RetentionSection()
    disk: DiskSection = DiskSection()


class SupervisorOptions(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Options of a supervisor.

    Attributes:
        data: the data folder, absolute.
        config: what to run, and how.
        ephemeral: kinds of processes whose ports are free ones, out of EVERY_KIND.
        detached: log into the data folder and report as a child does, in JSON lines.
        lifeline: stop when standard input closes, so when the one who started it is gone.
    """

    data: str
    config: Config = Config()
    ephemeral: tuple[str, ...] = ()
    detached: bool = False
    lifeline: bool = False


class Loaded(NamedTuple):
    """A configuration, where each of its keys ("broker.workers") came from, and the file's path."""

    config: Config
    origins: dict[str, str]
    path: Path | None


class _Key(NamedTuple):
    section: str
    name: str
    kind: Any

    @property
    def dotted(self) -> str:
        return f"{self.section}.{self.name}"

    @property
    def variable(self) -> str:
        return f"ZBROKER_{self.section.upper()}__{self.name.upper()}"


def _all_keys() -> Iterator[_Key]:
    for section in msgspec.structs.fields(Config):
        for field in msgspec.structs.fields(section.type):
            yield _Key(section.name, field.name, field.type)


_KEYS = {key.dotted: key for key in _all_keys()}
_VARIABLES = {key.variable: key for key in _KEYS.values()}
KEYS = tuple(_KEYS)


def load(path: str | None = None, environ: Mapping[str, str] | None = None) -> Loaded:
    """Finds and reads the configuration: defaults, then the file, then the environment.

    Args:
        path: the file; None: ZBROKER_CONFIG, then the usual places, then none.
        environ: the environment; None: of this process.

    Raises:
        InvalidArgument: a file that is missing or unreadable, an unknown key, a wrong value.
    """
    environ = os.environ if environ is None else environ
    found = folders.configuration_file(path or environ.get("ZBROKER_CONFIG"), environ)
    values: dict[str, Any] = {}
    origins = dict.fromkeys(KEYS, "default")
    if found:
        for key, value in _file_values(found):
            values[key.dotted] = _convert(f"{found}: {key.dotted}", value, key.kind, True)
            origins[key.dotted] = str(found)
    for name, key in _overrides(environ):
        values[key.dotted] = _convert(name, _split(environ[name], key.kind), key.kind, False)
        origins[key.dotted] = name
    return Loaded(_assemble(values), origins, found)


def replace(loaded: Loaded, values: Mapping[str, Any], origin: str) -> Loaded:
    """The configuration with some keys ("broker.workers") replaced; None leaves a key as it is.

    Raises:
        InvalidArgument: an unknown key, a wrong value; `origin` says where it was given.
    """
    given = {name: value for name, value in values.items() if value is not None}
    for name in given.keys() - _KEYS.keys():
        raise _unknown(f"{origin} {name}", name, _KEYS)
    merged = {name: get(loaded.config, name) for name in KEYS}
    for name, value in given.items():
        merged[name] = _convert(f"{origin} {name}", value, _KEYS[name].kind, True)
    origins = {**loaded.origins, **dict.fromkeys(given, origin)}
    return Loaded(_assemble(merged), origins, loaded.path)


def get(config: Config, dotted: str) -> Any:
    """The value of a key ("broker.workers")."""
    section, name = dotted.split(".")
    return getattr(getattr(config, section), name)


def data_folder(config: Config, environ: Mapping[str, str] | None = None) -> Path:
    """The data folder: ZBROKER_DATA, else `[broker] data`, else the user's data folder."""
    environ = os.environ if environ is None else environ
    named = environ.get("ZBROKER_DATA") or config.broker.data
    return folders.absolute(named) if named else folders.data_folder(environ)


def _file_values(path: Path) -> Iterator[tuple[_Key, Any]]:
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InvalidArgument(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{path}: not valid TOML: {error}") from None
    sections = Config.__struct_fields__
    for section, table in document.items():
        if section not in sections:
            raise _unknown(f"{path}: section [{section}]", section, sections)
        if not isinstance(table, dict):
            raise InvalidArgument(f"{path}: {section} is a section: write [{section}]")
        for name, value in table.items():
            key = _KEYS.get(f"{section}.{name}")
            if key is None:
                names = [key.name for key in _KEYS.values() if key.section == section]
                raise _unknown(f"{path}: key {name!r} in [{section}]", name, names)
            yield key, value


def _overrides(environ: Mapping[str, str]) -> Iterator[tuple[str, _Key]]:
    known = [*_VARIABLES, *ENVIRONMENT_NAMES]
    for name in sorted(environ):
        if name in _VARIABLES:
            yield name, _VARIABLES[name]
        elif name.startswith("ZBROKER_") and name not in known and not _SERVICE.fullmatch(name):
            words = [one.removeprefix("ZBROKER_") for one in known]
            word = name.removeprefix("ZBROKER_")
            if "__" in word or difflib.get_close_matches(word, words, cutoff=_SIMILAR):
                raise _unknown(f"environment variable {name}", name, known)


def _unknown(what: str, name: str, known: Any) -> InvalidArgument:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else "known are: " + ", ".join(sorted(known))
    return InvalidArgument(f"{what} is not known; {hint}")


def _split(text: str, kind: Any) -> Any:
    if kind == list[str]:
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def _convert(where: str, value: Any, kind: Any, strict: bool) -> Any:
    try:
        return msgspec.convert(value, kind, strict=strict)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"{where} = {value!r:.60}: {error}") from None


def _assemble(values: Mapping[str, Any]) -> Config:
    sections: dict[str, dict[str, Any]] = {}
    for dotted, value in values.items():
        section, name = dotted.split(".")
        sections.setdefault(section, {})[name] = value
    config = msgspec.convert(sections, Config)
    if config.broker.advertise:
        check_host("broker.advertise", config.broker.advertise)
    if config.broker.bind not in EVERY_ADDRESS:
        check_host("broker.bind", config.broker.bind)
    for address in config.nameserver.also:
        check_address(address)
    return config
