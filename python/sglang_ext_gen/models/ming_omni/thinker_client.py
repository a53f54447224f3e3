# SPDX-License-Identifier: Apache-2.0
"""Query states from a thinker: a server of SGLang's language model runtime.

The thinker runs elsewhere already (``thinker_url``), or is started here as a child that
dies with this process. Several addresses share the work; one that does not answer is
passed over. What a thinker sends is checked before it is used, and every failure is a
``ThinkerError`` with the reason: a picture is never drawn from something else.

Imports neither torch nor anything of ``thinker/``.
"""

import base64
import hashlib
import http.client
import itertools
import json
import logging
import threading
import time
import urllib.error
import urllib.request
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sglang_ext_gen.errors import ConfigError, RequestError, ServerError, ThinkerError
from sglang_ext_gen.models.ming_omni.thinker_protocol import (
    QUERY_BLOCK,
    THINKER_ARCHITECTURE,
    QueryStates,
    generation_prompt,
)
from sglang_ext_gen.process.child_server import ChildServer

logger = logging.getLogger(__name__)

# Loading 200 GB from a slow disk takes a while.
START_SECONDS = 3600.0
# Answers are 2 MB each for 256 rows of 4096 numbers in bfloat16.
CACHED_ANSWERS = 64
_CONNECTIONS = 16
_INFO_SECONDS = 10.0
_POLL_SECONDS = 1.0
_SHOWN_CHARACTERS = 500


@dataclass(frozen=True)
class ThinkerRequest:
    """One condition: a text, and the pictures before it.

    Args:
        prompt: What to draw, or not to draw.
        images: Contents of picture files.
    """

    prompt: str
    images: tuple[bytes, ...] = ()

    @property
    def key(self) -> tuple[str, ...]:
        """Equal for equal requests."""
        return (self.prompt, *(hashlib.sha256(i).hexdigest() for i in self.images))

    def body(self) -> dict[str, Any]:
        """The JSON object for ``/generate``.

        Raises:
            RequestError: The prompt contains a special token.
        """
        pictures = [
            f"data:image/png;base64,{base64.b64encode(image).decode('ascii')}"
            for image in self.images
        ]
        return {
            "text": generation_prompt(self.prompt, len(self.images)),
            "image_data": [*pictures, QUERY_BLOCK],
            "sampling_params": {"max_new_tokens": 1, "temperature": 0},
        }


_PROBE = ThinkerRequest("a dot")


@dataclass(frozen=True)
class ExpectedStates:
    """What a thinker of the same checkpoint sends.

    Args:
        scales: Sides of the query blocks.
        width: Of a row.
    """

    scales: tuple[int, ...]
    width: int

    def check(self, states: QueryStates) -> QueryStates:
        """Return ``states`` if they fit.

        Raises:
            ThinkerError: They are of another model.
        """
        if (states.scales, states.width) != (self.scales, self.width):
            raise ThinkerError(
                f"the thinker sent query states of scales {states.scales} and width "
                f"{states.width}, this generator takes {self.scales} and {self.width}; "
                "thinker and generator must be of one checkpoint"
            )
        return states


class Thinkers(Protocol):
    """Where thinkers are."""

    def wait_until_ready(self) -> None:
        """Return when they answer."""
        ...

    def addresses(self) -> Sequence[str]:
        """Addresses to try, best first.

        Raises:
            ThinkerError: There is none at the moment; says why.
        """
        ...


class RunningThinkers:
    """Thinkers that somebody else started; they take turns.

    Args:
        urls: Their addresses.
        timeout_s: Longest wait for one that was started together with the generator.
    """

    def __init__(self, urls: Sequence[str], timeout_s: float) -> None:
        self._urls = tuple(urls)
        self._timeout_s = timeout_s
        self._turn = itertools.count()

    def wait_until_ready(self) -> None:
        """Return when a thinker answers at each address.

        Raises:
            ThinkerError: One does not in time, or another model answers.
        """
        deadline = time.monotonic() + self._timeout_s
        for url in self._urls:
            logger.info("waiting for the thinker at %s", url)
            while (info := _info_or_none(url, deadline)) is None:
                time.sleep(_POLL_SECONDS)
            _check_identity(url, info)

    def addresses(self) -> Sequence[str]:
        """All addresses, each time another one first."""
        first = next(self._turn) % len(self._urls)
        return (*self._urls[first:], *self._urls[:first])


class OwnThinker:
    """A thinker that this process starts, and starts again when it has died.

    Args:
        model: The checkpoint.
        arguments: Further arguments of ``sglang.launch_server``.
        devices: For ``CUDA_VISIBLE_DEVICES``; None leaves it as it is here.

    Raises:
        ConfigError: An argument is one of those that are set here.
    """

    def __init__(
        self, model: str, arguments: Sequence[str], devices: str | None = None
    ) -> None:
        for argument in arguments:
            name = argument.partition("=")[0]
            if name in ("--model-path", "--model", "--host", "--port"):
                raise ConfigError(f"thinker_args: {name} is set by the generator")
        self._command = (
            *("-m", "sglang.launch_server", "--model-path", model),
            *arguments,
        )
        self._environment = {} if devices is None else {"CUDA_VISIBLE_DEVICES": devices}
        self._lock = threading.Lock()
        self._is_ready = False
        self._server = self._start()

    def _start(self) -> ChildServer:
        server = ChildServer("thinker", self._command, environment=self._environment)
        server.start()
        return server

    def wait_until_ready(self) -> None:
        """Return when it answers.

        Raises:
            ThinkerError: It ended, or time is up; carries its last lines.
        """
        try:
            self._server.wait_until_healthy(START_SECONDS)
        except ServerError as error:
            raise ThinkerError(str(error)) from error
        self._is_ready = True

    def addresses(self) -> Sequence[str]:
        """Its address.

        Raises:
            ThinkerError: It has died and is being started again, or is not ready yet.
        """
        with self._lock:
            reason = self._server.exit_reason()
            if reason is not None:
                tail = self._server.log_tail()
                self._server, self._is_ready = self._start(), False
                raise ThinkerError(
                    f"the thinker {reason}; it is being started again. Its last "
                    f"lines:\n{tail}"
                )
            if not self._is_ready:
                if not self._server.is_healthy():
                    raise ThinkerError(
                        "the thinker is being started again; try again in a while"
                    )
                self._is_ready = True
            return (self._server.url,)

    def stop(self) -> None:
        """End it."""
        self._server.stop()


class ThinkerClient:
    """Fetches query states; remembers the last ones.

    Args:
        thinkers: Where to ask.
        expected: What an answer must be like.
        timeout_s: Longest wait for one answer.
    """

    def __init__(
        self, thinkers: Thinkers, expected: ExpectedStates, timeout_s: float
    ) -> None:
        self._thinkers = thinkers
        self._expected = expected
        self._timeout_s = timeout_s
        self._known: OrderedDict[tuple[str, ...], QueryStates] = OrderedDict()
        self._pool = ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="thinker")

    def fetch(self, requests: Sequence[ThinkerRequest]) -> list[QueryStates]:
        """States of all requests, asked for at once, each different one once.

        Raises:
            ThinkerError: No thinker gave a usable answer; says why.
            RequestError: A prompt contains a special token, or a thinker refuses it:
                it is too long.
        """
        wanted = {request.key: request for request in requests}
        missing = [r for key, r in wanted.items() if key not in self._known]
        fresh = dict(
            zip(
                (request.key for request in missing),
                self._pool.map(self._ask, missing),
                strict=True,
            )
        )
        found = {key: fresh.get(key) or self._known[key] for key in wanted}
        for key, states in found.items():
            self._known[key] = states
            self._known.move_to_end(key)
        while len(self._known) > CACHED_ANSWERS:
            self._known.popitem(last=False)
        return [found[request.key] for request in requests]

    def check(self) -> None:
        """Ask every thinker once: whether it is of this checkpoint shows in an answer.

        Raises:
            ThinkerError: One is not, or does not answer.
        """
        for url in self._thinkers.addresses():
            self._ask_at(url, _PROBE)

    def _ask(self, request: ThinkerRequest) -> QueryStates:
        failures = []
        for url in self._thinkers.addresses():
            try:
                return self._ask_at(url, request)
            except ThinkerError as error:
                failures.append(str(error))
        raise ThinkerError("; ".join(failures))

    def _ask_at(self, url: str, request: ThinkerRequest) -> QueryStates:
        answer = post_json(f"{url}/generate", request.body(), self._timeout_s)
        return self._expected.check(QueryStates.from_meta_info(_meta_info(answer)))


def _info_or_none(url: str, deadline: float) -> Any:
    """What a server says of its model; None while it does not answer."""
    try:
        return _exchange(urllib.request.Request(f"{url}/model_info"), _INFO_SECONDS)
    except ThinkerError:
        if time.monotonic() > deadline:
            raise
        return None


def _check_identity(url: str, info: Any) -> None:
    found = info.get("architectures") if isinstance(info, Mapping) else None
    if not isinstance(found, list) or THINKER_ARCHITECTURE not in found:
        raise ThinkerError(
            f"{url} serves {_shown(found or info)}, expected a Ming thinker "
            f"({THINKER_ARCHITECTURE})"
        )


def post_json(url: str, body: Mapping[str, Any], timeout_s: float) -> Any:
    """Send a JSON object, return the JSON answer.

    Raises:
        ThinkerError: Nothing answers in time, an error comes back, or no JSON.
        RequestError: The request is refused.
    """
    request = urllib.request.Request(
        url,
        data=json.dumps(body).encode("utf-8"),
        headers={"Content-Type": "application/json"},
    )
    return _exchange(request, timeout_s)


def _exchange(request: urllib.request.Request, timeout_s: float) -> Any:
    url = request.full_url
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as reply:
            text = reply.read()
    except urllib.error.HTTPError as error:
        text = error.read().decode("utf-8", "replace")
        if error.code == 400 and (reason := _refusal(text)) is not None:
            raise RequestError("prompt", f"the thinker refuses it: {reason}") from error
        raise ThinkerError(
            f"the thinker at {url} answered {error.code}: {_shown(text)}"
        ) from error
    # URLError, timeouts and broken connections are all OSErrors; an answer that
    # breaks off is an HTTPException.
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error or type(error).__name__
        raise ThinkerError(f"the thinker at {url} does not answer: {reason}") from error
    try:
        return json.loads(text)
    except ValueError as error:
        raise ThinkerError(
            f"the thinker at {url} answered no JSON: {_shown(text)}"
        ) from error


def _refusal(text: str) -> str | None:
    """The message of SGLang's refusal; None where it is of another form."""
    try:
        message = json.loads(text)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return None
    return _shown(message)


def _meta_info(answer: Any) -> Mapping[str, Any]:
    meta = answer.get("meta_info") if isinstance(answer, Mapping) else None
    if not isinstance(meta, Mapping):
        raise ThinkerError(f"the thinker's answer has no meta_info: {_shown(answer)}")
    return meta


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    cut = text[:_SHOWN_CHARACTERS]
    return cut if len(text) <= _SHOWN_CHARACTERS else f"{cut}..."


def read_images(paths: Sequence[str]) -> tuple[bytes, ...]:
    """Contents of the picture files of a request."""
    return tuple(Path(path).read_bytes() for path in paths)
