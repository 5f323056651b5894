"""The dashboard answers on a study after a run, for reading only and on this machine only."""

import http.client
import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest

RUN = ("run", "tiny.toml", "--data", "synthetic:500", "--workers", 1, "--threads", 1, "--trials", 2)


@pytest.fixture
def dashboard(tiny_sweep: Path, cli: Any, start: Any) -> Any:
    """The port of a running dashboard on a study with two trials, and its process."""
    assert cli(*RUN).exit_code == 0
    process = start("dashboard", "--port", 0)
    line = process.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:(\d+)/dashboard/", line)
    assert found, line
    return int(found.group(1)), process


def ask(port: int, method: str, path: str, *, host: str | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, headers={"Host": host} if host else {})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, content


def test_it_shows_the_study_and_changes_nothing(dashboard: Any, cli: Any) -> None:
    port, process = dashboard
    status, page = ask(port, "GET", "/dashboard/")
    assert status == 200
    assert b"<html" in page.lower()
    status, body = ask(port, "GET", "/api/studies")
    assert status == 200
    [study] = json.loads(body)["study_summaries"]
    assert study["study_name"] == "tiny"
    status, body = ask(port, "GET", f"/api/studies/{study['study_id']}")
    trials = json.loads(body)["trials"]
    assert [trial["state"] for trial in trials] == ["Complete", "Complete"]
    assert trials[0]["params"][0]["name"] == "learning_rate"

    for method in ("DELETE", "POST", "PUT", "PATCH"):
        assert ask(port, method, f"/api/studies/{study['study_id']}")[0] == 403
    assert ask(port, "GET", "/api/studies", host="evil.example")[0] == 403
    assert ask(port, "GET", "/api/studies", host=f"localhost:{port}")[0] == 200
    assert len(json.loads(cli("status", "--json").out)["studies"]) == 1

    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == 0
    assert process.stderr.read() == ""


def test_a_port_in_use(dashboard: Any, cli: Any) -> None:
    port, _ = dashboard
    finished = cli("dashboard", "--port", port)
    assert finished.exit_code == 1
    assert finished.err.startswith(f"error: port {port} on 127.0.0.1 cannot be used: ")
    assert finished.err.count("\n") == 1


def test_elsewhere_than_on_this_machine_it_needs_a_token(
    tiny_sweep: Path, cli: Any, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli(*RUN).exit_code == 0
    refused = cli("dashboard", "--host", "0.0.0.0", "--port", 0)
    assert refused.exit_code == 2
    assert "accepted: 127.0.0.1, or a token of 8 characters or more in CIFAR_SWEEP_TOKEN." in refused.err
    monkeypatch.setenv("CIFAR_SWEEP_TOKEN", "open-sesame")
    process = start("dashboard", "--host", "0.0.0.0", "--port", 0)
    port = int(re.search(r":(\d+)/dashboard/", process.stdout.readline())[1])

    def status(path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        response.read()
        connection.close()
        return response.status, response.getheader("Set-Cookie") or ""

    assert status("/api/studies")[0] == 403
    assert status("/api/studies?token=open-sesam")[0] == 403
    assert status("/api/studies", Authorization="Bearer wrong")[0] == 403
    assert status("/api/studies", Cookie="cifar_sweep_token=wrong")[0] == 403
    code, cookie = status("/api/studies?token=open-sesame")
    assert code == 303
    assert "HttpOnly" in cookie
    assert status("/api/studies", Cookie=cookie.partition(";")[0])[0] == 200
    assert status("/api/studies", Authorization="Bearer open-sesame")[0] == 200
    assert status("/api/studies/1", "DELETE", Authorization="Bearer open-sesame")[0] == 403
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=10)
    assert "open-sesame" not in out + err
