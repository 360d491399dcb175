"""The user's SciServer account: from the environment, or from a file that only the user can read.

Never from config.yaml, which is shared, logged and kept with results.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from pipeline.run import UserError

USER, PASSWORD = "SCISERVER_USER", "SCISERVER_PASSWORD"
DEFAULT = Path("~/.config/ugriz/sciserver")
HOW = (
    f"export {USER} and {PASSWORD}, or write the two lines `user = NAME` and `password = WORD` to "
    f"{DEFAULT} and chmod 600 it (an account is free: apps.sciserver.org; query: engine: skyserver "
    "needs none)"
)


class Secret:
    """A text that does not show in logs, tracebacks or records; `reveal` gives it."""

    __slots__ = ("_text",)

    def __init__(self, text: str):
        self._text = text

    def reveal(self) -> str:
        """The text itself."""
        return self._text

    def __repr__(self) -> str:
        return "***"

    def __reduce__(self):
        raise TypeError("a secret is not to be pickled")


class Account(NamedTuple):
    """A user name, and the password that is not shown."""

    user: str
    password: Secret


def read(file: str | Path | None = None) -> Account:
    """The account: of the environment if it has one, else of `file` (default: `DEFAULT`).

    Raises:
        UserError: there is none; the file can be read by others, is not the user's own, or does
            not hold the two lines. Nothing of its content is in the message.
    """
    user, password = os.environ.get(USER), os.environ.get(PASSWORD)
    if user and password:
        return Account(user, Secret(password))
    if user or password:
        raise UserError(f"{USER if password else PASSWORD} is not set; {HOW}")
    path = Path(file or DEFAULT).expanduser()
    if not path.is_file():
        raise UserError(f"CasJobs needs a SciServer account and {path} is not there; {HOW}")
    facts = path.stat()
    if facts.st_mode & 0o077:
        mode = f"{facts.st_mode & 0o777:04o}"
        raise UserError(f"{path}: others may read it (mode {mode}); chmod 600 {path}")
    if facts.st_uid != os.geteuid():
        raise UserError(f"{path}: belongs to another user; chown it to yourself")
    return _parse(path)


def _parse(path: Path) -> Account:
    found = {}
    for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.lstrip().startswith("#"):
            found[key.strip().lower()] = value.strip()
    if not (found.get("user") and found.get("password")):
        raise UserError(f"{path}: lacks user or password; {HOW}")
    return Account(found["user"], Secret(found["password"]))
