# SPDX-License-Identifier: Apache-2.0
"""The seven tasks of Lance as one table of differences.

Source: the official code's prompt templates (variant 0, the released default), its
resolution buckets and the defaults of its script. Nothing here imports torch.
"""

from dataclasses import dataclass
from typing import Literal

Variant = Literal["Lance_3B", "Lance_3B_Video"]
Medium = Literal["image", "video", "text"]
RenormType = Literal["global", "channel", "none"]

_DESCRIBE_IMAGE = (
    "Describe the image by detailing the color, quantity, text, shape, size, texture, "
    "spatial relationships of the objects and background:"
)
_DESCRIBE_VIDEO = (
    "Describe the video by detailing the color, quantity, visible text, shape, size, "
    "texture, spatial relationships and motion/camera movements of the objects and "
    "background:"
)
# The apostrophes are U+2019, as the model was trained with.
_EDIT = (
    "Describe the key features of the input {medium} (color, shape, size, texture, "
    "objects, background), then explain how the user\u2019s text instruction should "
    "alter or modify the {medium}. Generate a new {medium} that meets the "
    "user\u2019s requirements while maintaining consistency with the original input "
    "where appropriate."
)


@dataclass(frozen=True)
class Task:
    """What one task does differently.

    Args:
        name: The official name.
        variant: The checkpoint directory made for it.
        output: What comes out.
        source: What must be given besides the prompt.
        system_prompt: The text before the user's turn.
        resolution: Default preset; decides the size of what is made from an input.
        is_edit: The source is seen twice, as vision features and as clean latents,
            and the result takes its size and positions.
        pins_first_frame: The source is the first frame of the result.
    """

    name: str
    variant: Variant
    output: Medium
    source: Literal["image", "video"] | None
    system_prompt: str
    resolution: str
    is_edit: bool = False
    pins_first_frame: bool = False


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("t2i", "Lance_3B", "image", None, _DESCRIBE_IMAGE, "image_768res"),
        Task(
            "image_edit",
            "Lance_3B",
            "image",
            "image",
            _EDIT.format(medium="image"),
            "image_768res",
            is_edit=True,
        ),
        Task(
            "x2t_image",
            "Lance_3B",
            "text",
            "image",
            "Look at the image carefully and answer the question.",
            "image_768res",
        ),
        Task("t2v", "Lance_3B_Video", "video", None, _DESCRIBE_VIDEO, "video_480p"),
        Task(
            "i2v",
            "Lance_3B_Video",
            "video",
            "image",
            _DESCRIBE_VIDEO,
            "video_480p",
            pins_first_frame=True,
        ),
        Task(
            "video_edit",
            "Lance_3B_Video",
            "video",
            "video",
            _EDIT.format(medium="video"),
            "video_480p",
            is_edit=True,
        ),
        Task(
            "x2t_video",
            "Lance_3B_Video",
            "text",
            "video",
            "Watch the video carefully and answer the question.",
            "video_480p",
        ),
    )
}
GENERATION_TASKS = tuple(task.name for task in TASKS.values() if task.output != "text")

# Frames per second of every video, in and out.
FPS = 12
# Longest part of a source video that keeps its pace; more is squeezed into it.
MAX_SOURCE_SECONDS = 6.0
UNKNOWN_FPS = 24

Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class Resolution:
    """Buckets of a preset, one a ratio: 21:9, 16:9, 4:3, 1:1, 3:4, 9:16.

    Args:
        vae: Sizes that the VAE sees, (height, width), multiples of 16.
        vit: Sizes of the vision tower before its crop to multiples of 28.
    """

    vae: tuple[Size, ...]
    vit: tuple[Size, ...]


_256 = Resolution(
    vae=((160, 368), (192, 336), (224, 304), (256, 256), (304, 224), (336, 192)),
    vit=((144, 336), (160, 288), (192, 256), (224, 224), (256, 192), (288, 160)),
)
RESOLUTIONS: dict[str, Resolution] = {
    "image_256res": _256,
    "video_192p": _256,
    "image_512res": Resolution(
        vae=((336, 784), (384, 688), (448, 592), (512, 512), (592, 448), (688, 384)),
        vit=((288, 672), (336, 592), (384, 512), (448, 448), (512, 384), (592, 336)),
    ),
    "image_768res": Resolution(
        vae=((496, 1152), (576, 1024), (672, 896), (768, 768), (896, 672), (1024, 576)),
        vit=((432, 1008), (512, 912), (576, 768), (672, 672), (768, 576), (912, 512)),
    ),
    "video_360p": Resolution(
        vae=((320, 752), (352, 624), (416, 560), (480, 480), (560, 416), (624, 352)),
        vit=((304, 704), (352, 624), (416, 560), (480, 480), (560, 416), (624, 352)),
    ),
    "video_480p": Resolution(
        vae=((416, 976), (480, 848), (560, 752), (640, 640), (752, 560), (848, 480)),
        vit=((400, 928), (464, 832), (528, 704), (608, 608), (704, 528), (832, 464)),
    ),
}
