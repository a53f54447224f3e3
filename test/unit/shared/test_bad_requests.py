# SPDX-License-Identifier: Apache-2.0
"""Bad requests to stock's own application, guarded by ours, without a model behind it.

A request that got through would find no worker and fail. ``test/server/`` sends some of
them to real servers.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from conftest import GOLDEN_ROOT
from server.bad_requests import IDEOGRAM4, QWEN_IMAGE, BadRequest

if TYPE_CHECKING:
    from starlette.testclient import TestClient

CHECKPOINTS = {
    "ideogram4": GOLDEN_ROOT / "ideogram4" / "ideogram-4-fp8-tiny",
    "qwen_image": GOLDEN_ROOT / "qwen_image" / "t2i" / "Qwen-Image",
}
CASES = [
    pytest.param(family, case, id=f"{family}-{case.name}")
    for family, table in (("ideogram4", IDEOGRAM4), ("qwen_image", QWEN_IMAGE))
    for case in table
]


@pytest.fixture(scope="module")
def client() -> "Callable[[str], TestClient]":
    """The application of a server for a family's golden checkpoint."""
    from sglang.multimodal_gen.runtime.entrypoints import http_server
    from sglang.multimodal_gen.runtime.platforms.plugins import apply_plugin_hooks
    from sglang.multimodal_gen.runtime.server_args import (
        ServerArgs,
        set_global_server_args,
    )
    from starlette.testclient import TestClient

    apply_plugin_hooks()

    @cache
    def application(checkpoint: Path) -> "TestClient":
        server_args = ServerArgs.from_kwargs(
            model_path=str(checkpoint), backend="sglang"
        )
        set_global_server_args(server_args)
        return TestClient(
            http_server.create_app(server_args), raise_server_exceptions=False
        )

    return lambda family: application(CHECKPOINTS[family])


@pytest.mark.parametrize(("family", "case"), CASES)
def test_bad_request_is_refused(
    client: "Callable[[str], TestClient]", family: str, case: BadRequest
) -> None:
    response = client(family).request(
        case.method, case.path, content=case.content, headers=case.headers
    )
    assert response.status_code == case.status, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == case.param
    assert case.word in error["message"]
