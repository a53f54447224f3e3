# SPDX-License-Identifier: Apache-2.0
"""What ``sglang-ext-gen demo`` asks of Lance: each generation task once."""

import tempfile
from pathlib import Path
from typing import Any

import av
from PIL import Image

from sglang_ext_gen.models.lance.tasks import FPS


def demo_requests() -> list[dict[str, Any]]:
    """Two pictures and three videos; the sources of three are written here."""
    folder = Path(tempfile.mkdtemp(prefix="lance-demo-"))
    image, video = folder / "source.png", folder / "source.mp4"
    frames = [_frame(number) for number in range(9)]
    frames[0].save(image)
    _write_video(frames, video)
    few, small = {"num_inference_steps": 4, "seed": 1}, {"width": 256, "height": 192}
    return [
        {"prompt": "A red fox on a bench in the snow", **small, **few},
        {
            "task_type": "image_edit",
            "prompt": "Make it night",
            "image_path": str(image),
            "resolution": "image_256res",
            **few,
        },
        {
            "task_type": "t2v",
            "prompt": "Waves at dusk",
            "num_frames": 9,
            **small,
            **few,
        },
        {
            "task_type": "i2v",
            "prompt": "The ball rolls to the right",
            "image_path": str(image),
            "resolution": "video_192p",
            "num_frames": 5,
            **few,
        },
        {
            "task_type": "video_edit",
            "prompt": "On a beach",
            "video_path": str(video),
            "resolution": "video_192p",
            **few,
        },
    ]


def _frame(number: int) -> Image.Image:
    """A bright ball on a dark ground, a little further to the right each time."""
    ball = Image.radial_gradient("L").resize((48, 48)).point(lambda level: 255 - level)
    frame = Image.new("RGB", (160, 120), (20, 40, 60))
    frame.paste((200, 40, 40), (8 + 10 * number, 36), mask=ball)
    return frame


def _write_video(frames: list[Image.Image], file: Path) -> None:
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height = frames[0].size
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode(None))
