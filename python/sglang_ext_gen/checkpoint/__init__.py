# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: what is on disk, where it goes, and proof that the two agree.

    component.py  the parts of a checkpoint as a table, and its generic check
    files.py      opens regular files alone, bounded; strict JSON
    layout.py     tensors on disk: headers, expected names, shapes and dtypes
    rules.py      where each disk tensor goes: Rename, Merge, Split, Skip
    load.py       applies the rules to a module and proves completeness
    build.py      a component as a module: built, filled; pickles converted
    pickles.py    tensors of a vendor's .pt file, without running code in it;
                  pickle_layout.py: which ones there are, without torch
    tiny.py       writes small random checkpoints; tiny_tokenizer.py: with a tokenizer
    source.py     where a checkpoint is on this machine
    fp8_quality.py         what FP8 would do to the weights of a file
    released_config.py     a config.json as a dataclass, every key accounted for
    autoencoder_layout.py  the layout of diffusers' AutoencoderKL

A family states its tensors (``tensors.py``) and its rules (``weights.py``)
independently, and ties them together in the table of its ``checkpoint.py``. Only
``load.py``, ``build.py``, ``pickles.py``, ``fp8_quality.py`` and the two tiny ones
import torch, so that a checkpoint can be checked without it.
"""
