"""The configuration: what is found, what overrides what, and what a mistake is told."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from zbroker import config
from zbroker.errors import InvalidArgument

DEVELOPMENT = Path(__file__).parent.parent / "config" / "development.toml"


@pytest.fixture
def toml(tmp_path: Path):
    def write(text: str) -> str:
        path = tmp_path / "some.toml"
        path.write_text(text)
        return str(path)

    return write


def test_development_file_has_every_key_with_its_default() -> None:
    loaded = config.load(str(DEVELOPMENT), {})
    document = tomllib.loads(DEVELOPMENT.read_text())
    written = {f"{section}.{key}" for section, table in document.items() for key in table}
    assert written == set(config.KEYS)
    assert loaded.config == config.Config()
    assert set(loaded.origins.values()) == {str(DEVELOPMENT)}


def test_development_file_explains_every_section() -> None:
    text = DEVELOPMENT.read_text()
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert len(comments) > len(config.KEYS)


def test_environment_overrides_file_and_file_overrides_default(toml) -> None:
    path = toml("[broker]\nworkers = 2\nflush = 'async'\n")
    loaded = config.load(path, {"ZBROKER_BROKER__WORKERS": "3"})
    assert loaded.config.broker.workers == 3
    assert loaded.config.broker.flush == "async"
    assert loaded.config.broker.name == "main"
    assert loaded.origins["broker.workers"] == "ZBROKER_BROKER__WORKERS"
    assert loaded.origins["broker.flush"] == path
    assert loaded.origins["broker.name"] == "default"


@pytest.mark.parametrize(
    ("name", "text", "key", "value"),
    [
        ("ZBROKER_TOPICS__AUTO_CREATE", "false", "topics.auto_create", False),
        ("ZBROKER_RETENTION__HOURS", "0.5", "retention.hours", 0.5),
        ("ZBROKER_NAMESERVER__ALSO", "tcp://a:1, tcp://b:2", "nameserver.also",
         ["tcp://a:1", "tcp://b:2"]),
        ("ZBROKER_DISK__MIN_FREE_BYTES", "0", "disk.min_free_bytes", 0),
    ],
)
def test_environment_values_are_typed(name: str, text: str, key: str, value: object) -> None:
    assert config.get(config.load(environ={name: text}).config, key) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[brokr]\n", ["[brokr]", "did you mean broker?"]),
        ("[broker]\nworker = 3\n", ["'worker'", "did you mean workers?"]),
        ("[broker]\nworkers = 'two'\n", ["broker.workers", "'two'", "int"]),
        ("[broker]\nworkers = 65\n", ["broker.workers = 65", "64"]),
        ("[broker]\nflush = 'never'\n", ["broker.flush", "never"]),
        ("[broker]\nadvertise = 'me:1'\n", ["broker.advertise", "port"]),
        ("[broker]\nadvertise = 'a b'\n", ["broker.advertise", "'a b'"]),
        ("[broker]\nadvertise = 'ünï'\n", ["broker.advertise", "ünï"]),
        ("[broker]\nbind = ''\n", ["broker.bind", "''"]),
        ("[nameserver]\nalso = ['foo']\n", ["'foo'", "tcp://host:port"]),
        ("[topics]\nqueues = 0\n", ["topics.queues = 0"]),
        ("broker = 3\n", ["[broker]"]),
        ("[broker\n", ["TOML"]),
    ],
)
def test_mistakes_in_the_file_are_one_clear_line(toml, text: str, words: list[str]) -> None:
    path = toml(text)
    with pytest.raises(InvalidArgument) as caught:
        config.load(path, {})
    message = str(caught.value)
    for word in words:
        assert word in message
    assert "\n" not in message


def test_unknown_variable_is_an_error_with_a_suggestion() -> None:
    with pytest.raises(InvalidArgument, match="did you mean ZBROKER_BROKER__FLUSH"):
        config.load(environ={"ZBROKER_BROKER__FLUHS": "sync"})
    with pytest.raises(InvalidArgument, match="did you mean ZBROKER_DATA"):
        config.load(environ={"ZBROKER_DATTA": "x"})


def test_what_kubernetes_says_about_a_service_of_that_name_is_no_setting() -> None:
    service = {
        "ZBROKER_PORT": "tcp://10.0.0.1:10911", "ZBROKER_SERVICE_HOST": "10.0.0.1",
        "ZBROKER_SERVICE_PORT": "10911", "ZBROKER_SERVICE_PORT_GATEWAY": "10911",
        "ZBROKER_PORT_10911_TCP": "tcp://10.0.0.1:10911", "ZBROKER_PORT_10911_TCP_PROTO": "tcp",
        "ZBROKER_PORT_10911_TCP_PORT": "10911", "ZBROKER_PORT_10911_TCP_ADDR": "10.0.0.1",
    }
    assert config.load(environ=service).config == config.Config()
    others = {
        name.replace("ZBROKER_", f"ZBROKER_{more}"): text
        for name, text in service.items() for more in ("GATEWAY_", "NAMESERVER_", "MY_DATA_")
    }
    linked = {
        "ZBROKER_NAME": "/app/zbroker", "ZBROKER_BROKER_NAME": "/app/zbroker-broker",
        "ZBROKER_ENV_ZBROKER_BROKER__FLUSH": "async", "ZBROKER_VERSION": "1.0", "ZBROKER_HOME": "/",
    }
    assert config.load(environ={**others, **linked}).config == config.Config()


@pytest.mark.parametrize("name", [
    "ZBROKER_BROKER__GATEWAI_PORT", "ZBROKER_NAMESERVER__NAME", "ZBROKER_BROKR__SERVICE_HOST",
    "ZBROKER_X__Y", "ZBROKER_BROKER_WORKERS", "ZBROKER_CONFG", "ZBROKER_URLS",
])
def test_what_looks_like_a_setting_and_is_none_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match=f"environment variable {name} is not known"):
        config.load(environ={name: "1"})


def test_user_without_a_home_has_no_place_of_his_own(monkeypatch, tmp_path: Path) -> None:
    def homeless(path: Path) -> Path:
        if str(path).startswith("~"):
            raise RuntimeError("Could not determine home directory.")
        return path

    monkeypatch.setattr(Path, "expanduser", homeless)
    monkeypatch.chdir(tmp_path)
    loaded = config.load(environ={})
    assert loaded.config == config.Config()
    assert config.data_folder(loaded.config, {"ZBROKER_DATA": "/d"}) == Path("/d")
    with pytest.raises(InvalidArgument, match="has no home; name one with --data"):
        config.data_folder(loaded.config, {})
    with pytest.raises(InvalidArgument, match="home directory"):
        config.data_folder(loaded.config, {"ZBROKER_DATA": "~nobody/data"})


def test_usual_place_that_may_not_be_looked_at_is_left_out(monkeypatch, tmp_path, caplog) -> None:
    looked = Path.is_file

    def is_file(path: Path) -> bool:
        if path.is_relative_to("/of/root"):
            raise PermissionError(13, "Permission denied")
        return looked(path)

    monkeypatch.setattr(Path, "is_file", is_file)
    monkeypatch.chdir(tmp_path)
    assert config.load(environ={"HOME": "/of/root"}).path is None
    assert "/of/root/.config/zbroker/zbroker.toml is left out: Permission denied" in caplog.text
    with pytest.raises(PermissionError):
        config.load("/of/root/zbroker.toml", {})


def test_known_names_that_are_no_keys_are_allowed() -> None:
    config.load(environ=dict.fromkeys(config.ENVIRONMENT_NAMES.keys() - {"ZBROKER_CONFIG"}, "x"))


def test_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="no such configuration file"):
        config.load(str(tmp_path / "nothing.toml"), {})
    with pytest.raises(InvalidArgument, match="no such configuration file"):
        config.load(environ={"ZBROKER_CONFIG": str(tmp_path / "nothing.toml")})


def test_first_place_that_has_a_file_wins(tmp_path: Path, monkeypatch) -> None:
    working, home = tmp_path / "working", tmp_path / "home"
    (home / "zbroker").mkdir(parents=True)
    working.mkdir()
    monkeypatch.chdir(working)
    environ = {"XDG_CONFIG_HOME": str(home)}
    assert config.load(environ=environ).path is None
    (home / "zbroker" / "zbroker.toml").write_text("[broker]\nname = 'home'\n")
    assert config.load(environ=environ).config.broker.name == "home"
    (working / "zbroker.toml").write_text("[broker]\nname = 'here'\n")
    assert config.load(environ=environ).config.broker.name == "here"


def test_options_of_the_command_line_come_last_and_are_checked() -> None:
    loaded = config.load(environ={"ZBROKER_BROKER__WORKERS": "3"})
    replaced = config.replace(loaded, {"broker.workers": 2, "broker.flush": None}, "the option")
    assert replaced.config.broker.workers == 2
    assert replaced.config.broker.flush == "sync"
    assert replaced.origins["broker.workers"] == "the option"
    with pytest.raises(InvalidArgument, match=r"broker\.workers = 1000"):
        config.replace(loaded, {"broker.workers": 1000}, "the option")


def test_data_folder_order() -> None:
    named = config.load(environ={"ZBROKER_BROKER__DATA": "/from/config"}).config
    assert config.data_folder(named, {"ZBROKER_DATA": "/from/name"}) == Path("/from/name")
    assert config.data_folder(named, {}) == Path("/from/config")
    home = config.data_folder(config.Config(), {"HOME": "/home/me"})
    assert home == Path("/home/me/.local/share/zbroker")
    assert config.data_folder(config.Config(), {"XDG_DATA_HOME": "/x"}) == Path("/x/zbroker")


def test_what_only_a_start_needs_is_not_asked_when_it_is_read(toml) -> None:
    loaded = config.load(toml("[broker]\nbind = '*'\ngateway_port = 9876\n"), {})
    assert loaded.config.broker.bind == "*"
    assert config.replace(loaded, {"broker.workers": 2}, "the option").config.broker.workers == 2


def test_options_of_a_process_survive_the_command_line() -> None:
    options = config.WorkerOptions(
        data="/d", shard=1, shards=2, listen="tcp://127.0.0.1:0", ipc="/d/ipc", flush="async"
    )
    assert config.decode_options(config.WorkerOptions, [config.encode_options(options)]) == options


@pytest.mark.parametrize("argv", [[], ["{}", "{}"], ["{}"], ["no json"], ['{"listen":1}']])
def test_wrong_options_of_a_process_are_one_clear_line(argv: list[str]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        config.decode_options(config.NameserverOptions, argv)
    assert "\n" not in str(caught.value)
