# SPDX-License-Identifier: Apache-2.0
"""The exception tree of this package.

Each class also inherits the builtin that callers would expect, so that code
which knows nothing of this package (SGLang turns ``ValueError`` into HTTP 400)
treats it correctly. A message says what was given, what is allowed, where it
came from and what to do.
"""

import re
from collections.abc import Collection

_WORKER_ERROR = re.compile(
    r"Error executing (?:grouped )?request [^\s:]+: (\w+): (.*)", re.DOTALL
)


class ExtGenError(Exception):
    """Base of every error that this package raises on purpose."""


class RequestError(ExtGenError, ValueError):
    """A request field is missing, of the wrong type, or out of range.

    Args:
        field: Name of the offending request field.
        message: What was given and what is allowed.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message

    def __reduce__(self) -> tuple[type["RequestError"], tuple[str, str]]:
        # The default would rebuild from args, which hold the joined text.
        return type(self), (self.field, self.message)


def refusal_in(message: str, fields: Collection[str]) -> RequestError | None:
    """The refusal that a worker's error carries, or None where it failed otherwise.

    Errors of workers reach the user's process as text.

    Args:
        message: SGLang's message, which ends with the text of the worker's exception.
        fields: Names of request fields.
    """
    found = _WORKER_ERROR.search(message)
    if found is None or found[1] not in fields:
        return None
    return RequestError(found[1], found[2])


class CheckpointError(ExtGenError, RuntimeError):
    """A checkpoint on disk is incomplete, damaged or of another release."""


class ConfigError(ExtGenError, ValueError):
    """A configuration key or an option of this package is unknown or invalid."""


class ThinkerError(ExtGenError, RuntimeError):
    """The language-model server behind a generator failed or answered wrongly."""


class GenerationError(ExtGenError, RuntimeError):
    """A worker failed while it ran a request; carries the worker's message."""


class ServerError(ExtGenError, RuntimeError):
    """A server that this package started ended, or did not become ready."""
