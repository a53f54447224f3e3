# SPDX-License-Identifier: Apache-2.0
"""The thinker: Lance's x2t_image and x2t_video on the language model runtime.

Source: the plain weights of ``Lance_3B`` or ``Lance_3B_Video`` and the official
understanding path. A request is a question about one picture or one video, or text.

    view.py       the released folder as one that SGLang can open
    config.py     config, tokenizer holder, registration with Transformers
    prompt.py     chat template with the official instructions; token layout
    processor.py  a request -> token ids, patches, positions
    attention.py  attention that is bidirectional inside a visual block
    model.py      vision tower, decoder, language head
    weights.py    where each released tensor goes
    register.py   model and processor for SGLang
"""
