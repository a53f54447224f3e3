# SPDX-License-Identifier: Apache-2.0
"""The Ming thinker on SGLang's language model runtime, in the order of a request.

    chat_template.py   messages -> text with <IMAGE>, <VIDEO>, <AUDIO>
    media.py           bytes, files and URLs -> pictures, frames, waveforms
    visual_input.py    pictures and frames -> patches
    audio_input.py     waveform -> log-mel frames
    prompt.py          text and media -> token ids, spans, positions
    processor.py       all of the above, as SGLang's multimodal processor
    model.py           towers, query tokens, decoder; on top of SGLang's Bailing classes
    audio.py, routing.py, rotary.py   parts that SGLang lacks
    query_states.py    the hidden states that the image generator asks for
    released_config.py, config.py, tokens.py   configuration and vocabulary
    checkpoint.py, tensors.py, weights.py      what is on disk, and where it goes
    register.py        makes SGLang use all of this

Shapes: T tokens, D hidden size, P patches, E experts, M mel frames.
"""
