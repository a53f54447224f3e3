# SPDX-License-Identifier: Apache-2.0
"""The golden cases of Lance as requests, and the comparison of what comes back."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from conftest import Golden

CASES = ("t2i", "t2i_channel_renorm", "image_edit", "t2v", "i2v", "video_edit")
MIN_PSNR = 45.0
# Questions: the golden cases were made at the smallest presets.
PRESETS = {
    "image": {"resolution": "image_256res"},
    "video": {"resolution": "video_192p"},
}


def write_source_video(golden: Golden, file: Path) -> Path:
    """The golden source video, which is stored as pictures, without any loss."""
    pictures = sorted((golden.path / "input_video").glob("frame_*.png"))
    frames = [Image.open(picture).convert("RGB") for picture in pictures]
    return write_video(frames, file)


def write_video(frames: Sequence[Image.Image], file: Path, fps: int = 12) -> Path:
    """Encode frames without any loss (H.264, RGB)."""
    with av.open(str(file), "w") as container:
        options = {"qp": "0", "preset": "ultrafast"}
        stream: Any = container.add_stream("libx264rgb", rate=fps, options=options)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "rgb24"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    return file


def video_bytes(num_frames: int) -> bytes:
    """A small black video."""
    stream = io.BytesIO()
    with av.open(stream, "w", format="avi") as container:
        track = container.add_stream("mpeg4", rate=24)
        track.width, track.height = 32, 32
        container.start_encoding()  # writes a header even without frames
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), "uint8"), "rgb24")
        for _ in range(num_frames):
            container.mux(track.encode(frame))
        container.mux(track.encode(None))
    return stream.getvalue()


def data_url(file: Path) -> str:
    """A picture or video as a ``data:`` URL."""
    kind = "video/mp4" if file.suffix == ".mp4" else "image/png"
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


def request_of(golden: Golden, name: str, video: Path) -> dict[str, Any]:
    """A case's request fields; ``video`` stands for the golden source video."""
    case = golden.json["cases"][name]
    sampling = case["sampling"]
    fields = {
        "prompt": case["prompt"],
        "seed": sampling["seed"],
        "num_inference_steps": sampling["num_inference_steps"],
        "guidance_scale": sampling["cfg_text_scale"],
        "cfg_interval": sampling["cfg_interval"],
        "cfg_renorm_type": sampling["cfg_renorm_type"],
        "cfg_renorm_min": sampling["cfg_renorm_min"],
        "timestep_shift": sampling["timestep_shift"],
    }
    if "image" in case:
        fields["image_path"] = str(golden.path / case["image"])
        fields["resolution"] = case["resolution"]
    elif "video" in case:
        fields["video_path"] = str(video)
        fields["resolution"] = case["resolution"]
    else:
        fields["height"], fields["width"] = case["output_size_hw"]
    if name in ("t2v", "i2v"):
        fields["num_frames"] = case["output_frames"]
    return fields


def worst_psnr(golden: Golden, name: str, frames: Sequence[np.ndarray]) -> float:
    """The smallest PSNR in dB of the stored reference frames of a case.

    Raises:
        ValueError: The number of frames is not the reference's.
    """
    case = golden.json["cases"][name]
    if len(frames) != case["output_frames"]:
        raise ValueError(f"{len(frames)} frames, expected {case['output_frames']}")
    files = case["output_files"]
    shown = frames if len(files) == len(frames) else frames[-1:]
    errors = []
    for frame, file in zip(shown, files, strict=True):
        want = np.asarray(Image.open(golden.path / file).convert("RGB"), np.float64)
        got = np.asarray(frame, np.float64)[: want.shape[0], : want.shape[1]]
        errors.append(np.mean((got - want) ** 2))
    return float(10 * np.log10(255**2 / max([*errors, 1e-9])))
