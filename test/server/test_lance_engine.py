# SPDX-License-Identifier: Apache-2.0
"""Lance answers a question about a picture through ``sgl.Engine`` on the CPU."""

import base64
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Golden
from server.servers import free_ports

pytestmark = [pytest.mark.slow, pytest.mark.unproven]

# The golden case was made at the smallest preset.
PRESETS = {"image": {"resolution": "image_256res"}}


def test_answer_equals_the_official_one_with_and_without_the_prefix_cache(
    golden_dir: Callable[[str], Path],
):
    import sglang

    golden = Golden(golden_dir("lance"))
    case = golden.json["cases"]["x2t_image"]
    picture = base64.b64encode((golden.path / case["image"]).read_bytes()).decode()
    port, nccl_port, _ = free_ports()
    engine = sglang.Engine(
        model_path=str(golden.path / "checkpoint" / "Lance_3B"),
        dtype="float32",
        mm_process_config=PRESETS,
        port=port,
        nccl_port=nccl_port,
        skip_server_warmup=True,
        max_total_tokens=4096,
        mem_fraction_static=0.2,
    )
    try:
        sampling = {"max_new_tokens": 8, "temperature": 0, "ignore_eos": True}
        answers = [
            engine.generate(
                prompt=case["prompt"],
                sampling_params=sampling,
                image_data=f"data:image/png;base64,{picture}",
            )
            for _ in range(2)
        ]
    finally:
        engine.shutdown()
    want = golden.tensor("x2t_image.output_ids").tolist()
    assert [answer["output_ids"] for answer in answers] == [want, want]
    assert answers[0]["meta_info"]["prompt_tokens"] == case["sequence_length"]
    assert answers[1]["meta_info"]["cached_tokens"] > 100
