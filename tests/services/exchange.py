"""What the services are asked and what they answer, free of any server."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Ask:
    """One request; `form` has the fields and uploaded files of a form, `query` those of the URL."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    form: Mapping[str, str]
    client: str

    def field(self, name: str, default: str = "") -> str:
        """A field of the form or the URL; names match case-insensitively, as on .NET."""
        for fields in (self.form, self.query):
            for key, value in fields.items():
                if key.lower() == name.lower():
                    return value
        return default


@dataclass(frozen=True)
class Answer:
    """Status, headers (Content-Length goes without saying) and body."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    fault: str | None = None


def text(body: str | bytes, kind: str = "text/plain", status: int = 200, **headers: str) -> Answer:
    """An answer in UTF-8; `_` in the name of a header stands for `-`."""
    raw = body.encode() if isinstance(body, str) else body
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(raw, status, {"Content-Type": f"{kind}; charset=utf-8", **named})


def as_json(value: object, status: int = 200, **headers: str) -> Answer:
    """An answer in JSON."""
    return text(json.dumps(value, separators=(",", ":")), "application/json", status, **headers)
