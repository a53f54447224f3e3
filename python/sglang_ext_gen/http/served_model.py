# SPDX-License-Identifier: Apache-2.0
"""The model behind a server, as far as HTTP needs to know it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sglang_ext_gen import envs
from sglang_ext_gen.registry import family_of_config
from sglang_ext_gen.request.fields import RequestField


@dataclass(frozen=True)
class ServedModel:
    """One of our families and its rules for a request.

    Args:
        title: Name of the family for people.
        table: The family's request fields that HTTP may set.
        routes: Paths of the POST routes that this family serves.
        check: Checks the fields alone and together; returns them in their own
            types; raises ``RequestError``.
        allows_control: Whether the operator opened the routes that load weights and
            adapters from paths given by the client.
    """

    title: str
    table: tuple[RequestField, ...]
    routes: frozenset[str]
    check: Callable[[Mapping[str, Any]], dict[str, Any]]
    allows_control: bool = False

    @property
    def fields(self) -> frozenset[str]:
        """Names of the fields in ``table``."""
        return frozenset(field.name for field in self.table)


def served_model(server_args: Any) -> ServedModel | None:
    """What a server with these arguments serves; ``None`` when it is stock's own."""
    family = family_of_config(server_args.pipeline_config)
    if family is None:
        return None
    fields = family.load(family.request_fields)
    return ServedModel(
        title=family.title,
        table=tuple(field for field in fields if field.interfaces == "all"),
        routes=frozenset(family.http_routes),
        check=family.load(family.check_request),
        allows_control=envs.allows_control_routes(),
    )
