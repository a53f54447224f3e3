# SPDX-License-Identifier: Apache-2.0
"""The two servers behind one port: what is known of each, and how it is kept running.

An upstream is a child process of ours, which is restarted when it dies, or a server
that someone else runs, which is only asked whether it is well.
"""

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

import httpx

from sglang_ext_gen.errors import ServerError
from sglang_ext_gen.process.child_server import ChildServer

logger = logging.getLogger(__name__)

# Weights of 200 GB may come over a slow network; a child that died is noticed at once.
START_SECONDS = 3600.0
POLL_SECONDS = 1.0
# A server that answers nothing for so long hangs.
HANG_SECONDS = 60.0
# Restarts without STABLE_SECONDS of good health in between, each after twice the time.
MAX_RESTARTS = 5
STABLE_SECONDS = 300.0
FIRST_DELAY_SECONDS = 1.0
# A connection may break some time before it is known why.
NOTICE_SECONDS = 3.0


class Upstream(ABC):
    """One of the servers, as those see it who send it requests.

    Args:
        title: "thinker" or "generator".
        url: Its address, without a slash at the end.
        client: For questions about its health.

    Attributes:
        problem: Why it takes no requests, as the end of a sentence about it; None
            while it does.
    """

    def __init__(self, title: str, url: str, client: httpx.AsyncClient) -> None:
        self.title = title
        self.url = url
        self.problem: str | None = "is still starting"
        self._client = client

    @abstractmethod
    async def run(self) -> None:
        """Watch the server until cancelled, and keep ``problem`` true."""

    async def ready(self) -> None:
        """Return when it takes requests."""
        while self.problem is not None:
            await asyncio.sleep(POLL_SECONDS)

    async def explain(self, error: httpx.TransportError) -> str:
        """Why a request to it broke, as the end of a sentence about it."""
        deadline = time.monotonic() + NOTICE_SECONDS
        while self.problem is None and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        reason = str(error) or type(error).__name__
        return self.problem or f"broke the connection: {reason}"

    async def deep_problem(self) -> str | None:
        """As ``problem``, after it was asked for one token."""
        if self.problem is not None:
            return self.problem
        try:
            reply = await self._get("/health_generate")
        except httpx.TransportError as error:
            return await self.explain(error)
        if reply.status_code == 200:
            return None
        return f"failed a request of one token: HTTP {reply.status_code}"

    async def _unwell(self) -> str | None:
        """What ``/health`` has to complain of; None when it answers 200.

        Raises:
            httpx.TransportError: No answer.
        """
        reply = await self._get("/health")
        if reply.status_code == 200:
            return None
        try:
            error = reply.json()["error"]
            reason = error if isinstance(error, str) else error["message"]
        except (ValueError, KeyError, TypeError):
            reason = f"HTTP {reply.status_code}"
        return f"says that it is unwell: {reason}"

    async def _get(self, path: str) -> httpx.Response:
        return await self._client.get(self.url + path, timeout=HANG_SECONDS)


class RemoteUpstream(Upstream):
    """A server that runs elsewhere."""

    async def run(self) -> None:
        while True:
            try:
                self.problem = await self._unwell()
            except httpx.TransportError as error:
                reason = str(error) or type(error).__name__
                self.problem = f"does not answer at {self.url}: {reason}"
            await asyncio.sleep(POLL_SECONDS)


class LocalUpstream(Upstream):
    """A child process, restarted when it dies or hangs.

    Args:
        make_child: Makes the server anew, at the port that the first one had.
        after: An upstream that must be ready before this one is started.
    """

    def __init__(
        self,
        title: str,
        url: str,
        client: httpx.AsyncClient,
        make_child: Callable[[], ChildServer],
        after: Upstream | None = None,
    ) -> None:
        super().__init__(title, url, client)
        self._make_child = make_child
        self._after = after

    async def run(self) -> None:
        """As for any upstream.

        Raises:
            ServerError: It did not become ready when it was first started.
        """
        if self._after is not None:
            await self._after.ready()
        restarts = 0
        has_been_ready = False
        while True:
            child = self._make_child()
            try:
                child.start()
                await asyncio.to_thread(child.wait_until_healthy, START_SECONDS)
                ready_at = time.monotonic()
                self.problem, has_been_ready = None, True
                logger.info("The %s is ready", self.title)
                reason = await self._until_failure(child)
                if time.monotonic() - ready_at > STABLE_SECONDS:
                    restarts = 0
            except ServerError as error:
                if not has_been_ready:
                    raise
                logger.error("%s", error)
                reason = child.exit_reason() or "did not become ready"
            finally:
                # In a thread: other requests go on meanwhile.
                await asyncio.to_thread(child.stop)
            await self._pause(reason, restarts)
            restarts += 1

    async def _pause(self, reason: str, restarts: int) -> None:
        """Say what happened, and return when it is time for the next start, if ever."""
        if restarts == MAX_RESTARTS:
            self.problem = f"{reason}; it was restarted {restarts} times in vain"
            logger.error("The %s %s", self.title, self.problem)
            await asyncio.Event().wait()
        self.problem = (
            f"{reason}; it is being restarted (try {restarts + 1} of {MAX_RESTARTS})"
        )
        logger.error("The %s %s", self.title, self.problem)
        await asyncio.sleep(FIRST_DELAY_SECONDS * 2**restarts)

    async def _until_failure(self, child: ChildServer) -> str:
        """Return the reason when the child has died, hangs or says it is unwell."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                unwell = await self._unwell()
            except httpx.TimeoutException:
                unwell = f"did not answer /health within {HANG_SECONDS:g} s"
            except httpx.TransportError:
                # It has ended, or is about to: the process itself is asked.
                unwell = None
            reason = child.exit_reason() or unwell
            if reason is not None:
                self.problem = reason
                return reason
