# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: what is on disk, where it goes, and proof that the two agree.

    layout.py   tensors on disk: headers, expected names, shapes and dtypes
    rules.py    where each disk tensor goes: Rename, Merge, Split, Skip
    load.py     applies the rules to a module and proves completeness
    tiny.py     writes small random checkpoints from a layout
    pickles.py  tensors of a vendor's .pt file, without running code in it
    released_config.py     a config.json as a dataclass, every key accounted for
    autoencoder_layout.py  the layout of diffusers' AutoencoderKL
    component_loader.py    a strict loader as SGLang's diffusion runtime wants one

A family states its layout (``models/<family>/layout.py``) and its rules
(``models/<family>/weights.py``) independently. Only ``load.py``, ``tiny.py``,
``pickles.py`` and ``component_loader.py`` import torch, so that a checkpoint can be
checked without it.
"""
