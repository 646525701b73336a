"""The house rules hold, and the tool that checks them finds what breaks them."""

from __future__ import annotations

import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOL = ROOT / "tools" / "tidy"


@pytest.fixture(scope="module")
def tidy():
    loader = SourceFileLoader("tidy", str(TOOL))
    spec = spec_from_loader("tidy", loader)
    assert spec
    module = module_from_spec(spec)
    sys.modules["tidy"] = module
    sys.dont_write_bytecode = True
    loader.exec_module(module)
    return module


@pytest.mark.slow  # `tools/test` runs the tool besides
def test_tree_is_tidy() -> None:
    answer = subprocess.run([sys.executable, TOOL], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout


@pytest.mark.parametrize(
    ("where", "code", "word"),
    [
        ("zbroker/store/new.py", "import zbroker.wire.codec\n", "imports go down only"),
        ("zbroker/wire/new.py", "from zbroker.store import disk\n", "imports go down only"),
        ("zbroker/shard/new.py", "from zbroker.net import port\n", "imports go down only"),
        ("zbroker/gateway/new.py", "from zbroker.worker import process\n", "imports go down only"),
        ("zbroker/client/new.py", "from zbroker.shard import shard\n", "imports go down only"),
        ("zbroker/__init__.py", "from zbroker.net import port\n", "imports go down only"),
        ("zbroker/console/new.py", "from zbroker.net import port\n", "not in the table"),
        ("zbroker/store/new.py", "import zmq\n", "zmq here"),
        ("zbroker/shard/new.py", "import time\n", "a mind imports"),
        ("zbroker/supervisor/plan.py", "from zbroker.clock import wall_ms\n", "a mind imports"),
        ("zbroker/shard/new.py", "import pickle\n", "msgspec"),
        ("zbroker/shard/helpers.py", "", "one concept"),
        ("zbroker/shard/new.py", "WAIT_MS = 3\n", "limits.py"),
        ("zbroker/shard/new.py", "ROOM_BYTES = 1 << 20\n", "limits.py"),
        ("zbroker/shard/new.py", "x = 1  # TO" + "DO later\n", "leftover"),
        ("zbroker/shard/new.py", "x = '" + "a" * 100 + "'\n", "line of"),
        ("zbroker/shard/new.py", "x = 1\n" * 451, "split it by concept"),
        ("zbroker/shard/new.py", "def f():\n" + "    x = 1\n" * 61, "f has 62 lines"),
        ("zbroker/shard/new.py", "try:\n    f()\nexcept Exception:\n    pass\n", "swallowed"),
        ("tests/test_new.py", "import time\ntime.sleep(1)\n", "wait for a condition"),
        ("tests/test_new.py", "socket.recv_pyobj()\n", "typed values"),
    ],
)
def test_each_rule_finds_its_breach(tidy, where: str, code: str, word: str) -> None:
    path = ROOT / where
    breaches = [*tidy.check_lines(path, code), *tidy.check_tree(path, tidy.ast.parse(code))]
    assert any(word in breach.text for breach in breaches), breaches


@pytest.mark.parametrize(
    ("where", "code"),
    [
        ("zbroker/shard/new.py", "from zbroker import limits\nfrom zbroker.wire import ops\n"),
        ("zbroker/cli/new.py", "from zbroker import Client\n"),
        ("zbroker/net/new.py", "import zmq\nfrom zbroker.wire import codec\n"),
        ("zbroker/worker/process.py", "from zbroker.shard import shard\nimport time\n"),
        ("zbroker/limits.py", "WAIT_MS = 3\n"),
        ("zbroker/shard/new.py", "ROOM_BYTES = limits.TURN_BYTES_MAX\n"),
    ],
)
def test_what_is_allowed_passes(tidy, where: str, code: str) -> None:
    assert not list(tidy.check_tree(ROOT / where, tidy.ast.parse(code)))
