# SPDX-License-Identifier: Apache-2.0
"""SGLang's multimodal processor, with a request's work off the event loop."""

import asyncio
from abc import abstractmethod
from typing import Any

from sglang.srt.managers.schedule_batch import MultimodalProcessorOutput
from sglang.srt.multimodal.processors.base_processor import BaseMultimodalProcessor


class ThreadedProcessor(BaseMultimodalProcessor):
    """A processor whose subclass prepares a whole request in one plain function.

    SGLang calls ``process_mm_data_async`` in the process that also answers HTTP, so
    fetching and decoding run in SGLang's pool of threads.
    """

    models: list[Any] = []  # noqa: RUF012  (SGLang's type; registered by hand)

    async def process_mm_data_async(
        self,
        image_data: list[Any] | None,
        audio_data: list[Any] | None,
        input_text: str | list[int],
        request_obj: Any,
        **_: Any,
    ) -> MultimodalProcessorOutput:
        """Token ids, media items and positions of one request.

        Raises:
            RequestError: Anything about the request is not allowed.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self.io_executor,
            self.prepare,
            input_text,
            image_data or [],
            request_obj.video_data or [],
            audio_data or [],
        )

    @abstractmethod
    def prepare(
        self,
        text: str | list[int],
        images: list[Any],
        videos: list[Any],
        audios: list[Any],
    ) -> MultimodalProcessorOutput:
        """What ``process_mm_data_async`` returns and raises, in the calling thread.

        ``text`` is the rendered prompt or its token ids; media are as the client gave
        them, in the order of the prompt.
        """
