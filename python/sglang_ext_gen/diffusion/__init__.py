# SPDX-License-Identifier: Apache-2.0
"""What the families share on SGLang's diffusion runtime.

    sampling_params.py    a table of request fields as SGLang's ``SamplingParams``
    pipeline_config.py    a table of load options as its pipeline config
    options.py            what becomes of stock's options, as tables
    pipeline.py           a table of components as its pipeline
    component_loader.py   one component as its component loader
    stage.py              what all stages share
    denoising.py          requests of one kind through a loop as one batch
    sequence_parallel.py  how attention heads are exchanged between ranks
    postprocess.py        decoded pixels, rounded as the references round them
    lora.py               what ``set_lora`` answers

Each base class says in its docstring what a family adds.
"""
