"""Names of classes and files are data, in tables of 80 columns, cards and downloads."""

import io
from typing import Any
from urllib.parse import unquote

import pytest
from rich.console import Console

from cifar_sweep.dashboard import server
from cifar_sweep.errors import UsageError
from cifar_sweep.exports.exported import tables
from cifar_sweep.words import in_markdown, line

ODD = ["a|b", "two\nlines", "\x1b[31mred\x1b[0m", "half \udcff", "[bold]x[/]", "日本", "<script>", "tab\there"]


def shown(classes: list[str], wrong: int = 3) -> list[str]:
    counts = [
        [90 if right == taken else wrong * (taken == 0) for taken in range(len(classes))]
        for right in range(len(classes))
    ]
    entries = [
        {"class": name, "accuracy": row[k] / sum(row)}
        for k, (name, row) in enumerate(zip(classes, counts, strict=True))
    ]
    out = io.StringIO()
    for view in tables({"classes": entries, "confusion": counts}):
        Console(file=out, width=80).print(view)
    return out.getvalue().splitlines()


@pytest.mark.parametrize("many", [2, 10, 30, 100])
def test_an_evaluation_can_be_read_in_80_columns(many: int) -> None:
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    lines = shown([*names, *(f"class {number:02}" for number in range(90))][:many])
    assert max(map(len, lines)) <= 80
    assert not any("…" in each for each in lines)
    text = "\n".join(lines)
    assert "automobile" in text
    assert "96.8%" in text
    assert len(lines) < 45
    if many >= 30:
        assert "automobile" in text.partition("taken for")[2], "the commonest confusions"


def test_odd_names_break_no_table() -> None:
    text = "\n".join(shown(ODD))
    assert "\x1b" not in text
    assert "[bold]x[/]" in text
    text.encode()
    for name in ODD:
        assert line(name) in text


@pytest.mark.parametrize("name", ODD)
def test_odd_names_break_no_card(name: str) -> None:
    told = in_markdown(name)
    told.encode()
    assert "\n" not in told
    assert "\x1b" not in told
    assert "|" not in told.replace(r"\|", "")
    assert "<" not in told.replace(r"\<", "")


@pytest.mark.parametrize("name", ["e1_日本_größe-0-weights.safetensors", 'a"b\\c\n', "half \udcff", "plain"])
def test_a_download_has_a_header_that_servers_take(name: str) -> None:
    header = server.attachment(name)
    header.encode("latin-1")
    assert "\n" not in header
    assert header.startswith("attachment; filename=")
    assert unquote(header.partition("UTF-8''")[2] or name) == name.replace("\udcff", "?")


def test_a_token_is_asked_for_wherever_one_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(server.TOKEN_VARIABLE, raising=False)
    assert server.token_for("127.0.0.1") == ""
    monkeypatch.setenv(server.TOKEN_VARIABLE, "tokentoken")
    found: list[Any] = [server.token_for(host) for host in ("127.0.0.1", "localhost", "0.0.0.0")]
    assert found == ["tokentoken"] * 3
    monkeypatch.setenv(server.TOKEN_VARIABLE, "short")
    with pytest.raises(UsageError, match="8 characters or more"):
        server.token_for("127.0.0.1")
