# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: what is on disk, where it goes, and proof that the two agree.

    layout.py   tensors on disk: headers, expected names, shapes and dtypes
    rules.py    where each disk tensor goes: Rename, Merge, Split, Skip
    load.py     applies the rules to a module and proves completeness
    tiny.py     writes small random checkpoints from a layout
    pickles.py  tensors of a vendor's .pt file, without running code in it
    released_config.py     a config.json as a dataclass, every key accounted for
    autoencoder_layout.py  the layout of diffusers' AutoencoderKL

A family states its layout (``models/<family>/layout.py``) and its rules
(``models/<family>/weights.py``) independently. Of the files above, only
``load.py``, ``tiny.py`` and ``pickles.py`` import torch, so that a checkpoint can be
checked without it.
"""
