"""Who owns a study in PostgreSQL, and what happens to its reads and writes while the server is away."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

from optuna.exceptions import StorageInternalError
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from nas.core.errors import RunError, without_passwords

KEEPALIVES = {"tcp_keepalives_idle": "30", "tcp_keepalives_interval": "10", "tcp_keepalives_count": "3"}
PATIENCE_S = 300.0  # how long a server may be away
PAUSE_S = 1.0
HOLDER = """
    SELECT application_name FROM pg_stat_activity JOIN pg_locks USING (pid)
    WHERE locktype = 'advisory' AND granted AND classid = :high AND objid = :low AND objsubid = 1
"""
Result = TypeVar("Result")


class _StaleError(Exception):
    """The server still takes a connection for alive that is not."""


class Owner:
    """Holds a study in PostgreSQL: an advisory lock on a connection of its own, which ends with the process.

    The connection says who holds it, so that another process can name it. Where the connection is lost, as when the
    server is restarted, the lock is taken again before anything else is written.

    Args:
        engine: of the database.
        name: of the study.
        shown: the database as it may be shown.

    Raises:
        RunError: another process has the study, naming that one.
    """

    def __init__(self, engine: Engine, name: str, shown: str) -> None:
        self._engine, self._name, self._shown = engine, name, shown
        digest = hashlib.sha256(f"nas study {name}".encode()).digest()
        self._key = int.from_bytes(digest[:8], "big", signed=True)
        # 63 characters at most; the last of them tell the studies of one process apart
        self._me = f"nas process {os.getpid()} on {os.uname().nodename[:30]} ({os.urandom(2).hex()})"
        self._connection: Any = None
        self._had_it = False
        self._take()
        self._had_it = True

    def _take(self) -> None:
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        connection.detach()  # of the pool, which would hand it to others
        if not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": self._key}):
            key = {"high": self._key >> 32 & 0xFFFFFFFF, "low": self._key & 0xFFFFFFFF}
            holder = connection.scalar(text(HOLDER), key) or "another process"
            connection.close()
            self._engine.dispose()
            if holder == self._me and self._had_it:
                raise _StaleError  # the server has not noticed that our own former connection is gone
            raise RunError(
                f"study {self._name!r} in {self._shown} is in use by {holder}. Wait until it ends, or stop it; "
                "the same command then continues"
            )
        connection.execute(text("SELECT set_config('application_name', :name, false)"), {"name": self._me})
        for name, value in KEEPALIVES.items():  # so that a machine that is gone does not hold it for hours
            connection.execute(text("SELECT set_config(:name, :value, false)"), {"name": name, "value": value})
        self._connection = connection

    def ask(self, call: Callable[[], Result]) -> Result:
        """Carry out a call that reads or writes the database, again while it is away, for at most `PATIENCE_S`.

        Raises:
            RunError: it stays away; or another process has taken the study meanwhile.
        """
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                if not self._is_there():
                    self._take()
                return call()
            except (DBAPIError, StorageInternalError, _StaleError) as error:
                if self._is_there():
                    raise  # a defect, which waiting does not mend
                if time.monotonic() > end:
                    reason = _reason(error, self._engine)
                    raise RunError(
                        f"{self._shown} has been away for {PATIENCE_S / 60:.0f} minutes ({reason}). The same command "
                        "continues when it is back"
                    ) from None
                time.sleep(PAUSE_S)

    def _is_there(self) -> bool:
        """Whether the connection still stands; one that does not is let go."""
        if self._connection is None:
            return False
        if not self._connection.invalidated:  # one that is would come back without the lock
            with contextlib.suppress(SQLAlchemyError):
                self._connection.execute(text("SELECT 1"))
                return True
        self._connection.invalidate()
        self._connection = None
        return False

    def close(self) -> None:
        """Let the study go."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._engine.dispose()


def _reason(error: Exception, engine: Engine) -> str:
    """What a driver says, in one line and without the password."""
    lines = str(error.__cause__ or error).splitlines() or ["the connection was lost"]
    return without_passwords(lines[0], engine.url.render_as_string(hide_password=False))
