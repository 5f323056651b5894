"""The service in containers: what its files promise, and its very commands, run by hand without Docker."""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any

import psycopg
import pytest
import typer
import yaml
from psycopg import sql

from cifar_sweep.cli import app
from tests.conftest import postgres_server
from tests.servers import PostgresServer

ROOT = Path(__file__).parent.parent
COMPOSE = (ROOT / "docker-compose.yml").read_text()
AS_WRITTEN = yaml.safe_load(COMPOSE)
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
EXAMPLE = (ROOT / ".env.example").read_text()
GUIDE = (ROOT / "docs" / "docker.md").read_text()
SECRETS = {"POSTGRES_PASSWORD": "sesame-of-the-database", "CIFAR_SWEEP_TOKEN": "sesame-of-the-dashboard"}
WORKERS = ("worker", "worker-gpu")
OURS = ("dashboard", *WORKERS)
PROGRAMS = ("docker-compose", "docker compose")  # version 1, and the plug-in of version 2
INSTALLED = [pytest.param(program, marks=pytest.mark.slow) for program in PROGRAMS]

Services = dict[str, Any]


def filled_in(value: Any, variables: Mapping[str, str]) -> Any:
    """A value of the file with its ${...}, as Compose fills them in."""
    if isinstance(value, dict):
        return {key: filled_in(each, variables) for key, each in value.items()}
    if isinstance(value, list):
        return [filled_in(each, variables) for each in value]
    if not isinstance(value, str):
        return value
    return re.sub(r"\$\{(\w+):[?-]([^}]*)\}", lambda found: variables.get(found[1]) or found[2], value)


def run_compose(program: str, folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run Compose on our file in `folder`, where its .env may be; skips where there is no such program."""
    words = program.split()
    clean = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    if shutil.which(words[0]) is None or subprocess.run([*words, "version"], env=clean, capture_output=True).returncode:
        pytest.skip(f"{program} is not installed")
    shutil.copy(ROOT / "docker-compose.yml", folder)
    return subprocess.run([*words, *arguments], cwd=folder, env=clean, capture_output=True, text=True)


@pytest.fixture(params=["the file itself", *INSTALLED])
def services(request: pytest.FixtureRequest, tmp_path: Path) -> Services:
    """The services with the example's .env and our secrets, read by ourselves and by each program that is there."""
    text = EXAMPLE
    for name, value in SECRETS.items():
        text, changed = re.subn(rf"^{name}=.*$", f"{name}={value}", text, flags=re.MULTILINE)
        assert changed == 1
    if request.param not in PROGRAMS:
        variables = dict(line.split("=", 1) for line in text.splitlines() if re.match(r"\w", line))
        return dict(filled_in(AS_WRITTEN, variables)["services"])
    (tmp_path / ".env").write_text(text)
    shown = run_compose(request.param, tmp_path, "--profile", "gpu", "config")
    assert shown.returncode == 0, shown.stderr
    return dict(yaml.safe_load(shown.stdout)["services"])


def places_of(wanted: str, value: Any, where: str = "") -> Iterator[str]:
    """Where a text stands in nested values, as dotted paths."""
    if isinstance(value, (dict, list)):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places_of(wanted, each, f"{where}.{key}".lstrip("."))
    elif wanted in str(value):
        yield where


def host_address(port: Any) -> str | None:
    """The address of this machine that a port is published on; empty or None: on all."""
    return port.get("host_ip") if isinstance(port, dict) else str(port).rpartition(":")[0].rpartition(":")[0]


def mounts(service: Mapping[str, Any]) -> dict[str, str]:
    """What is mounted in a container, by its place there."""
    pairs = [
        (each["source"], each["target"]) if isinstance(each, dict) else tuple(each.split(":")[:2])
        for each in service.get("volumes", [])
    ]
    return {target: source for source, target in pairs}


# What the file promises


def test_there_are_a_database_a_dashboard_and_workers(services: Services) -> None:
    assert set(services) == {"db", *OURS}
    assert [name for name in services if services[name].get("profiles")] == ["worker-gpu"]
    assert [services[name]["command"][0] for name in OURS] == ["dashboard", "worker", "worker"]
    [device] = services["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["count"] in ("all", -1)
    assert device["capabilities"] == ["gpu"]


def test_ports_are_published_on_loopback_alone(services: Services) -> None:
    published = {name: [host_address(port) for port in service.get("ports", [])] for name, service in services.items()}
    assert {name: addresses for name, addresses in published.items() if addresses} == {"dashboard": ["127.0.0.1"]}


def test_secrets_are_in_environments_alone(services: Services) -> None:
    """In no command line, no address, no health check and no argument of a build."""
    password = {f"{name}.environment.PGPASSWORD" for name in OURS} | {"db.environment.POSTGRES_PASSWORD"}
    assert set(places_of(SECRETS["POSTGRES_PASSWORD"], services)) == password
    assert set(places_of(SECRETS["CIFAR_SWEEP_TOKEN"], services)) == {"dashboard.environment.CIFAR_SWEEP_TOKEN"}


def test_services_wait_for_the_database_come_back_and_have_time_to_stop(services: Services) -> None:
    assert services["db"]["healthcheck"]["test"][:2] == ["CMD", "pg_isready"]
    assert "127.0.0.1" in services["db"]["healthcheck"]["test"]
    for name in OURS:
        assert services[name]["depends_on"]["db"]["condition"] == "service_healthy"
        assert services[name]["init"] is True
    assert {service["restart"] for service in services.values()} == {"unless-stopped"}
    assert {services[name]["stop_grace_period"] for name in WORKERS} == {"30s"}


def test_workers_share_what_they_keep_and_no_host_name(services: Services) -> None:
    """Of one host name, each would take the other's trials for abandoned; with a name, it could not be scaled."""
    for name, service in services.items():
        assert not {"hostname", "container_name", "network_mode"} & set(service), name
    for name in WORKERS:
        volumes = {place: source for place, source in mounts(services[name]).items() if not source.endswith("sweeps")}
        assert volumes == {f"/{source}": source for source in ("artifacts", "cache", "exports")}
    assert mounts(services["db"]) == {"/var/lib/postgresql": "database"}


def test_the_dashboard_reads_what_workers_keep_and_changes_none_of_it(services: Services) -> None:
    [volume] = services["dashboard"]["volumes"]
    assert mounts(services["dashboard"]) == {"/artifacts": "artifacts"}
    assert volume["read_only"] if isinstance(volume, dict) else volume.endswith(":ro")
    keys = {name for name in services["worker"]["environment"] if name.startswith("AWS_")}
    assert keys == {name for name in services["dashboard"]["environment"] if name.startswith("AWS_")} != set()
    assert "--allow-write" not in services["dashboard"]["command"]


@pytest.mark.parametrize("program", INSTALLED)
@pytest.mark.parametrize("missing", SECRETS)
def test_compose_refuses_to_start_without_a_secret(program: str, missing: str, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("".join(f"{name}={SECRETS[name]}\n" for name in SECRETS if name != missing))
    refused = run_compose(program, tmp_path, "config")
    assert refused.returncode != 0
    assert missing in refused.stderr
    assert "copy .env.example to .env" in refused.stderr


# As `.env.example` says: in single quotes, in which a single quote is written \'.
ODD = {"plain123": "plain123", "'pa$word1#x'": "pa$word1#x", """'a b"c'""": 'a b"c', r"'it\'s $x'": "it's $x"}


@pytest.mark.parametrize("program", INSTALLED)
@pytest.mark.parametrize("written", ODD)
def test_a_secret_arrives_as_it_is_written(program: str, written: str, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"POSTGRES_PASSWORD={written}\nCIFAR_SWEEP_TOKEN={written}\n")
    shown = run_compose(program, tmp_path, "--profile", "gpu", "config")
    assert (shown.returncode, shown.stderr) == (0, "")
    services = yaml.safe_load(shown.stdout)["services"]
    secret = ODD[written].replace("$", "$$")  # as `config` writes a dollar
    assert {services[name]["environment"]["PGPASSWORD"] for name in OURS} == {secret}
    assert services["db"]["environment"]["POSTGRES_PASSWORD"] == secret
    assert services["dashboard"]["environment"]["CIFAR_SWEEP_TOKEN"] == secret


@pytest.mark.parametrize("program", INSTALLED)
@pytest.mark.parametrize("written", ["images", "a/b", "./images", "../my images", "'./my $images'", "/srv/a:b"])
def test_a_folder_of_images_is_mounted_as_it_is_written(program: str, written: str, tmp_path: Path) -> None:
    if program == "docker-compose" and re.match(r"\w", written):
        pytest.skip("version 1 hands it on as it is, and the engine refuses it")
    here = tmp_path / "service"
    here.mkdir()
    secrets = "".join(f"{name}={value}\n" for name, value in SECRETS.items())
    (here / ".env").write_text(f"{secrets}DATA_FOLDER={written}\n")
    shown = run_compose(program, here, "config")
    assert (shown.returncode, shown.stderr) == (0, "")
    found = mounts(yaml.safe_load(shown.stdout)["services"]["worker"])["/data"]
    # Of the two programs one writes a dollar twice.
    assert os.path.normpath(found.replace("$$", "$")) == os.path.normpath(here / written.strip("'"))


def test_each_use_of_a_secret_is_refused_without_it() -> None:
    for name in SECRETS:
        uses = re.findall(rf"\$\{{{name}\b[^}}]*\}}", COMPOSE)
        assert uses
        assert set(uses) == {f"${{{name}:?copy .env.example to .env and set it there}}"}


# What belongs together


def test_the_example_names_each_variable_once() -> None:
    used = set(re.findall(r"\$\{(\w+)[:}]", "\n".join(line.partition("#")[0] for line in COMPOSE.splitlines())))
    handed_on = [key for key, value in AS_WRITTEN["x-worker"]["environment"].items() if value is None]
    named = re.findall(r"^#?(\w+)=", EXAMPLE, re.MULTILINE)
    assert sorted(named) == sorted([*used, *handed_on, "COMPOSE_PROFILES"])
    for name, default in re.findall(r"\$\{(\w+):-([^}]*)\}", COMPOSE):
        shown = re.findall(rf"^#{name}=(.*)$", EXAMPLE, re.MULTILINE)
        assert shown == [default] or name == "DATA_FOLDER", name


def test_the_product_reads_each_of_its_variables() -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "cifar_sweep").rglob("*.py"))
    used = set(re.findall(r"CIFAR_SWEEP_[A-Z]+", COMPOSE + EXAMPLE + DOCKERFILE + GUIDE))
    assert {"CIFAR_SWEEP_STORAGE", "CIFAR_SWEEP_TOKEN"} <= used
    assert not {name for name in used if f'"{name}"' not in source}


def test_the_storage_address_names_the_database_service() -> None:
    environments = {name: service["environment"] for name, service in AS_WRITTEN["services"].items()}
    address = "postgresql://{POSTGRES_USER}@db/{POSTGRES_DB}".format(**environments["db"])
    assert {environments[name]["CIFAR_SWEEP_STORAGE"] for name in OURS} == {address}


def check_command(words: list[str]) -> None:
    """Parse a command line of ours without running it; raises what the command line would say."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert words[0] in commands, words
    commands[words[0]].make_context(words[0], list(words[1:]))


def test_the_command_line_takes_each_command() -> None:
    for name in OURS:
        check_command(filled_in(AS_WRITTEN["services"][name]["command"], {}))
    check_command(json.loads(re.findall(r"^CMD (.*)$", DOCKERFILE, re.MULTILINE)[0]))


def test_the_image_runs_our_program_as_a_plain_user() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [program] = json.loads(re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.MULTILINE)[0])
    assert program in project["scripts"]
    users = re.findall(r"^USER (.*)$", DOCKERFILE, re.MULTILINE)
    [uid, made] = re.findall(r"useradd .*--uid (\d+) (\w+)", DOCKERFILE)[0]
    assert users == [made]
    assert int(uid) >= 1000
    owned = re.findall(rf"install --directory --owner={made} --group={made} (.*)$", DOCKERFILE, re.MULTILINE)[0].split()
    assert {*owned, "/sweeps"} == set(mounts(filled_in(AS_WRITTEN["services"]["worker"], {})))
    arguments = AS_WRITTEN["services"]["worker-gpu"]["build"]["args"]
    assert list(arguments) == re.findall(r"^ARG (\w+)=", DOCKERFILE, re.MULTILINE)


def test_only_what_the_image_needs_is_sent_to_its_build() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert rules[0] == "*"
    let_through = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {word for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE) for word in line.split()[:-1]}
    assert let_through == copied
    assert all((ROOT / name).exists() for name in copied)


def test_the_image_has_what_the_package_needs(tmp_path: Path) -> None:
    """The build's step that reads the needs from pyproject.toml, torch apart from the others."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    [step] = re.findall(r"^RUN (python -c .*)$", DOCKERFILE, re.MULTILINE)
    with_this_python = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-c", step], cwd=tmp_path, env=with_this_python, check=True)
    torch = (tmp_path / "torch.txt").read_text().splitlines()
    others = (tmp_path / "others.txt").read_text().splitlines()
    assert [re.split(r"[^\w-]", need)[0] for need in torch] == ["torch", "torchvision"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert sorted(torch + others) == sorted(project["dependencies"] + project["optional-dependencies"]["s3"])


def test_the_guide_is_right() -> None:
    commands = re.findall(r"^docker compose (.*)$", "\n".join(re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)), re.M)
    assert len(commands) > 10
    for command in commands:
        words = command.partition(" #")[0].split()
        named = [word for word in words if word in AS_WRITTEN["services"]]
        assert named or words[0] not in ("run", "exec"), command
        if words[0] == "run" and "--entrypoint" not in words:
            check_command(words[words.index(named[0]) + 1 :])
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", GUIDE):
        assert (ROOT / "docs" / target).exists(), target


# The very commands, by hand


@pytest.fixture
def database() -> Iterator[PostgresServer]:
    """A server that asks for a password, with the role and the database that the image of `db` makes."""
    password = secrets.token_hex(12)
    with postgres_server(password) as server:
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE ROLE sweep LOGIN PASSWORD {}").format(sql.Literal(password)))
            connection.execute("CREATE DATABASE sweep OWNER sweep")
        yield server


class ByHand:
    """The services of the file as processes: `folder` stands for the containers' root."""

    def __init__(self, folder: Path, cache: Path, database: PostgresServer, token: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.folder, self.cache, self.database = folder, cache, database
        self.secrets = {"POSTGRES_PASSWORD": str(database.password), "CIFAR_SWEEP_TOKEN": token}
        fewest = dict.fromkeys(("WORKER_PROCESSES", "WORKER_GROUP", "WORKER_THREADS"), "1")
        self.services = filled_in(AS_WRITTEN["services"], self.secrets | fewest)
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def environment(self, service: str) -> dict[str, str]:
        """What the file gives a service, and nothing of ours but where programs are found."""
        given = {name: str(value) for name, value in self.services[service]["environment"].items() if value is not None}
        address = given["CIFAR_SWEEP_STORAGE"]
        assert "@db/" in address
        given["CIFAR_SWEEP_STORAGE"] = address.replace("@db/", f"@127.0.0.1:{self.database.port}/")
        for name, value in given.items():
            if value in mounts(self.services[service]):
                given[name] = str(self.cache if value == "/cache" else self.folder / value.strip("/"))
        return {"PATH": os.environ["PATH"], "HOME": str(self.folder)} | given

    def command(self, words: Sequence[str]) -> list[str]:
        return [sys.executable, "-m", "cifar_sweep", *(str(self.port) if word == "8080" else word for word in words)]

    def start(self, service: str, name: str) -> None:
        """As `up`; what it prints goes to a file."""
        with open(self.folder / f"{name}.output", "wb") as output:
            self.running[name] = subprocess.Popen(
                self.command(self.services[service]["command"]),
                cwd=self.folder, env=self.environment(service), stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    def run(self, *words: str) -> str:
        """As `docker compose run --rm worker WORDS`."""
        finished = subprocess.run(
            self.command(words), cwd=self.folder, env=self.environment("worker"), capture_output=True, timeout=60
        )
        self.check_for_secrets(finished.stdout + finished.stderr)
        assert finished.returncode == 0, finished.stderr.decode()
        return finished.stdout.decode()

    def look(self) -> None:
        """All are alive, and no process of this machine shows a secret."""
        for name, process in self.running.items():
            assert process.poll() is None, f"{name} ended: {self.output(name).decode()}"
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                self.check_for_secrets(path.read_bytes())

    def wait_for(self, trials: int) -> None:
        """Look until so many trials are complete: in the database, as a program of ours takes seconds to start."""
        deadline = time.monotonic() + 120
        with psycopg.connect(self.database.url, dbname="sweep", autocommit=True) as connection:
            while connection.execute("SELECT count(*) FROM trials WHERE state = 'COMPLETE'").fetchone() != (trials,):
                assert time.monotonic() < deadline, self.output("worker-1").decode()
                self.look()
                time.sleep(0.2)

    def check_for_secrets(self, text: bytes) -> None:
        for name, secret in self.secrets.items():
            assert secret.encode() not in text, f"{name} is shown: {text.decode(errors='replace')}"

    def output(self, name: str) -> bytes:
        return (self.folder / f"{name}.output").read_bytes()

    def stop(self) -> dict[str, int]:
        """As `stop`: the exit codes after a SIGTERM to each."""
        for process in self.running.values():
            process.terminate()
        return {name: process.wait(timeout=20) for name, process in self.running.items()}

    def kill(self) -> None:
        for process in self.running.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def by_hand(tmp_path: Path, session_cache: Path, database: PostgresServer) -> Iterator[ByHand]:
    started = ByHand(tmp_path, session_cache, database, secrets.token_hex(12))
    yield started
    started.kill()


def fetch(by_hand: ByHand, path: str, *, token: str | None = None) -> tuple[int, str]:
    """Status and body of a page of the dashboard."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
    try:
        request = urllib.request.Request(f"http://127.0.0.1:{by_hand.port}{path}", headers=headers)
        with browser.open(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, ""


@pytest.mark.slow
def test_a_submitted_sweep_finishes_in_the_services_run_by_hand(by_hand: ByHand, tiny_sweep: Path) -> None:
    by_hand.start("dashboard", "dashboard")
    by_hand.start("worker", "worker-1")
    by_hand.start("worker", "worker-2")
    by_hand.run("submit", str(tiny_sweep), "--data", "synthetic:500")
    by_hand.wait_for(4)
    [study] = json.loads(by_hand.run("status", "--json"))["studies"]
    assert study["trials"]["complete"] == study["budget"] == 4
    assert study["trials"]["failed"] == 0
    token = by_hand.secrets["CIFAR_SWEEP_TOKEN"]
    assert fetch(by_hand, "/api/studies")[0] in (401, 403)
    assert fetch(by_hand, "/api/studies", token="wrong")[0] in (401, 403)
    status, body = fetch(by_hand, "/api/studies", token=token)
    assert status == 200
    assert study["name"] in body
    assert "<html" in fetch(by_hand, f"/dashboard/?token={token}")[1].lower()
    by_hand.look()
    codes = by_hand.stop()
    assert set(codes) == {"dashboard", "worker-1", "worker-2"}
    assert set(codes.values()) <= {0, 128 + signal.SIGTERM}, codes
    for name in codes:
        by_hand.check_for_secrets(by_hand.output(name))
        assert not re.search(rb"Traceback|failed|error", by_hand.output(name)), by_hand.output(name).decode()
    assert list((by_hand.folder / "artifacts").rglob("*.safetensors"))
