# SPDX-License-Identifier: Apache-2.0
"""What the stages of all families share on SGLang's diffusion runtime.

component_loader.py   a strict loader as SGLang wants one
denoising.py          requests of one kind through a loop as one batch
sequence_parallel.py  how attention heads are exchanged between ranks
postprocess.py        decoded pixels, rounded as the references round them
lora.py               what ``set_lora`` answers
"""
