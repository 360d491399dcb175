"""How an answer goes out, and how faults show themselves on the way."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from email.utils import formatdate

from aiohttp import web

from .exchange import Answer, as_json, text
from .faults import Fault

CHUNK = 1 << 16
_PAGE = (
    "<!DOCTYPE html>\n<html><head><title>Maintenance</title></head><body><h1>SDSS is down for "
    "scheduled maintenance</h1><p>We will be back soon.</p></body></html>\n"
)
_ERRORS = (
    "Could not find prepared statement with handle -1.",
    "There is already an open DataReader associated with this Command which must be closed first.",
)


class Sending:
    """One answer on its way; afterwards `status`, `sent`, `length`, `whole` tell what came of it.

    `ending`: the client may already see how it ends. `end`: set when the server stops, which
    frees the clients that were left waiting.
    """

    def __init__(self, request: web.BaseRequest, fault: Fault | None, end: asyncio.Event):
        self._request, self._fault, self._end = request, fault, end
        self._draw = fault.draw if fault else random.Random(0)
        self._kind = fault.kind if fault else None
        self.fault = self._kind
        self.status, self.sent, self.length, self.whole = 0, 0, 0, False
        self.ending = False
        self._response = web.StreamResponse()

    async def run(self, answer: Callable[[], Awaitable[Answer]]) -> web.StreamResponse:
        """Carry the request out, unless the fault is in the way, and send what it gave."""
        try:
            return await self._run(answer)
        except ConnectionError:  # it is over; the server finds the connection closed
            return self._response

    async def _run(self, answer: Callable[[], Awaitable[Answer]]) -> web.StreamResponse:
        instead = self._instead()
        if instead:
            return await self._send(instead)
        silent = self._kind in ("reset", "stall")
        if silent and self._draw.random() < 0.5:
            return await self._fall_silent()
        made = await answer()
        self.fault = self.fault or made.fault
        self.length = len(made.body)
        if self._kind == "reset" or (self._kind == "stall" and self._draw.random() < 0.5):
            return await self._fall_silent()
        return await self._send(self._spoil(made))

    def _instead(self) -> Answer | None:
        """The answer that a fault puts in place of the right one."""
        if self._kind == "html":
            return text(_PAGE, "text/html")
        if self._kind == "500" and self._fault.service in ("skyserver", "frames", "sas"):
            return text("<h1>500 Internal Server Error</h1>", "text/html", 500)
        if self._kind == "500":
            message = self._draw.choice(_ERRORS)
            return as_json({"Error Code": 500, "Error Message": message}, 500)
        if self._kind in ("429", "503"):
            wait = self._draw.choice(("", "1", formatdate(time.time() + 2, usegmt=True)))
            headers = {"Retry_After": wait} if wait else {}
            words = {"429": "Too Many Requests", "503": "Service Unavailable"}[self._kind]
            page = f"<html><body><h1>{self._kind} {words}</h1></body></html>\n"
            return text(page, "text/html", int(self._kind), **headers)
        return None

    def _spoil(self, answer: Answer) -> Answer:
        """The right answer made wrong, where that does not show in how it is sent."""
        body = answer.body
        if self._kind == "flip" and body:
            place = self._draw.randrange(len(body))
            flipped = bytes([body[place] ^ (1 << self._draw.randrange(8))])
            return replace(answer, body=body[:place] + flipped + body[place + 1 :])
        is_csv = answer.headers.get("Content-Type", "").startswith("text/plain")
        if self._kind == "cut" and is_csv and self._draw.random() < 0.5:
            lines = body.splitlines(keepends=True)
            self._kind = None  # what is left is sent as it should be
            return replace(answer, body=b"".join(lines[: self._draw.randrange(len(lines) or 1)]))
        return answer

    async def _send(self, answer: Answer) -> web.StreamResponse:
        self.length = max(self.length, len(answer.body))
        self.status = answer.status
        body = b"" if self._request.method == "HEAD" else answer.body
        stop = len(body)
        self.ending = not body
        self._response = response = web.StreamResponse(status=answer.status, headers=answer.headers)
        response.content_length = len(answer.body)
        await response.prepare(self._request)
        if self._kind in ("cut", "stall"):
            stop = self._draw.randrange(len(body)) if body else 0
        chunk, pause = (4, 0.5) if self._kind == "slow" else (CHUNK, 0.0)
        for start in range(0, stop, chunk):
            part = body[start : min(start + chunk, stop)]
            self.ending = start + len(part) == len(body)
            await response.write(part)
            self.sent += len(part)
            if pause:
                await self._wait(pause)
        if self._kind == "stall":
            await self._fall_silent()
        if self._kind == "cut" and body:
            await self._hang_up()
        await response.write_eof()
        self.whole = self.sent == self.length or self._request.method == "HEAD"
        return response

    async def _fall_silent(self):
        """Reset the connection, or say nothing until the client leaves."""
        if self._kind == "stall":
            while not self._gone():
                await self._wait(0.02)
        self.ending = True
        transport = self._request.transport
        if transport is not None:
            handle = transport.get_extra_info("socket")
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
        raise ConnectionResetError

    async def _hang_up(self):
        """Close the connection as if all had been said."""
        self.ending = True
        if self._request.transport is not None:
            self._request.transport.close()
        raise ConnectionResetError

    def _gone(self) -> bool:
        transport = self._request.transport
        return self._end.is_set() or transport is None or transport.is_closing()

    async def _wait(self, seconds: float) -> None:
        if self._gone():
            raise ConnectionResetError
        await asyncio.sleep(seconds)
