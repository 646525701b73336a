"""How answers are printed: tables that people copy from."""

from __future__ import annotations

import pytest

from zbroker.cli.output import print_rows


def test_table_shows_every_word_and_any_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    row = {
        "message_id": "e4881a7372b882f4-0", "died_at": "2026-11-22T20:08:46.590Z",
        "cause": "[/b] is no [bold]tag[/bold] :smile: and this goes on",
    }
    print_rows([row], "table", list(row))
    shown = capsys.readouterr().out.split()
    assert set(shown) == {*row, *" ".join(row.values()).split()}
