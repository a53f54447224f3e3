# SPDX-License-Identifier: Apache-2.0
"""``sglang serve`` for a checkpoint that holds a language model and a generator.

This process is light: it imports neither torch nor SGLang. Both servers listen on
127.0.0.1, at ports that nobody else knows, unless they run elsewhere.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import uvicorn
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from starlette.applications import Starlette

from sglang_ext_gen.errors import CheckpointError, ConfigError
from sglang_ext_gen.gateway.app import make_app, new_client
from sglang_ext_gen.gateway.upstream import LocalUpstream, RemoteUpstream, Upstream
from sglang_ext_gen.process.child_server import ChildServer, free_port
from sglang_ext_gen.registry import ModelFamily

logger = logging.getLogger(__name__)

# When the server is told to stop, requests that run get this long to end.
_LAST_REQUESTS_SECONDS = 10
# Each server is asked for its health every second.
_QUIET = ("--uvicorn-access-log-exclude-prefixes", "/health")


@dataclass(frozen=True)
class UpstreamOptions:
    """How one of the two servers is run."""

    url: str | None = None  # where it runs already; None to start it here
    devices: str | None = None  # its CUDA_VISIBLE_DEVICES; None for all
    arguments: tuple[str, ...] = ()  # further ones of the server


@dataclass(frozen=True)
class GatewayOptions:
    """What is served, and where.

    Args:
        family: Whose checkpoint it is.
        model: Local directory or Hugging Face id.
        served_model_name: Name under which clients know it.
        host, port: Where this process listens.
        thinker, generator: How each of the servers is run.
    """

    family: ModelFamily
    model: str
    served_model_name: str
    host: str = "127.0.0.1"
    port: int = 30000
    thinker: UpstreamOptions = field(default_factory=UpstreamOptions)
    generator: UpstreamOptions = field(default_factory=UpstreamOptions)

    @property
    def needs_thinker(self) -> bool:
        """Whether the generator can do nothing without the thinker."""
        return self.family.thinker_url_option is not None


def run(options: GatewayOptions) -> None:
    """Serve until a signal ends it; both servers are gone when it returns.

    Raises:
        ConfigError: The port cannot be had.
        CheckpointError: The checkpoint cannot be downloaded.
        ServerError: One of the servers did not start.
    """
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s] %(message)s")
    # One line per health check otherwise.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with _bound_socket(options.host, options.port) as listener:
        model = _local_directory(options.model)
        asyncio.run(_serve(options, model, listener))


def thinker_command(options: GatewayOptions, model: str) -> list[str]:
    """The language model server, as the words after ``python``."""
    return [
        *("-m", "sglang.launch_server", "--model-path", model),
        *("--served-model-name", options.served_model_name, *_QUIET),
        *options.thinker.arguments,
    ]


def generator_command(
    options: GatewayOptions, model: str, thinker_url: str
) -> list[str]:
    """The diffusion server, as the words after ``python``."""
    # SGLang's own choice for these two is the same for every server on a machine.
    ports = ("--scheduler-port", str(free_port()), "--master-port", str(free_port()))
    option = options.family.thinker_url_option
    flag = [] if option is None else [f"--{option.replace('_', '-')}", thinker_url]
    return [
        *("-m", "sglang_ext_gen", "serve", model, "--model-type", "diffusion"),
        *("--served-model-name", options.served_model_name, *_QUIET, *ports),
        *(*flag, *options.generator.arguments),
    ]


async def _serve(options: GatewayOptions, model: str, listener: socket.socket) -> None:
    failures: list[Exception] = []
    client = new_client()
    thinker, generator = _upstreams(options, model, client)

    async def run(upstream: Upstream) -> None:
        try:
            await upstream.run()
        except Exception as error:
            # It could not be started.
            failures.append(error)
            server.should_exit = True

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(run(each)) for each in (thinker, generator)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await client.aclose()

    app = make_app(
        options.served_model_name,
        thinker,
        generator,
        client,
        needs_thinker=options.needs_thinker,
        lifespan=lifespan,
    )
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=_LAST_REQUESTS_SECONDS,
        )
    )
    address = f"http://{options.host}:{options.port}"
    logger.info("%s is served at %s when it is loaded", options.model, address)
    await server.serve(sockets=[listener])
    if failures:
        raise failures[0]


def _upstreams(
    options: GatewayOptions, model: str, client: httpx.AsyncClient
) -> tuple[Upstream, Upstream]:
    thinker = _upstream(
        "thinker",
        options.thinker,
        client,
        lambda: thinker_command(options, model),
        # Its health check would compute a token each time. Whether it lives is known
        # here, and it ends itself when one of its workers does.
        {"SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "0"},
    )
    generator = _upstream(
        "generator",
        options.generator,
        client,
        lambda: generator_command(options, model, thinker.url),
        # It draws a first picture before it says that it is ready.
        after=thinker if options.needs_thinker else None,
    )
    return thinker, generator


def _upstream(
    title: str,
    given: UpstreamOptions,
    client: httpx.AsyncClient,
    command: Callable[[], list[str]],
    environment: Mapping[str, str] | None = None,
    after: Upstream | None = None,
) -> Upstream:
    if given.url is not None:
        return RemoteUpstream(title, given.url, client)
    port = free_port()
    environment = dict(environment or {})
    if given.devices is not None:
        environment["CUDA_VISIBLE_DEVICES"] = given.devices

    def make_child() -> ChildServer:
        return ChildServer(title, command(), port=port, environment=environment)

    return LocalUpstream(title, f"http://127.0.0.1:{port}", client, make_child, after)


def _bound_socket(host: str, port: int) -> socket.socket:
    """Take the port now: whether it is free must be known before weights are loaded.

    Raises:
        ConfigError: It is taken, or the host is no address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"--port {port} of --host {host} cannot be had: {error.strerror or error}"
        ) from error
    return listener


def _local_directory(model: str) -> str:
    """The checkpoint on this machine: both servers must read the same one.

    Raises:
        CheckpointError: It is neither a directory nor to be had from Hugging Face.
    """
    if Path(model).is_dir():
        return model
    try:
        return snapshot_download(model)
    except (OSError, HfHubHTTPError) as error:
        raise CheckpointError(f"{model} cannot be downloaded: {error}") from error
