# SPDX-License-Identifier: Apache-2.0
"""What the families' models on SGLang's language model runtime share.

    media.py       what a client names as a medium -> its bytes, by policy
    processor.py   SGLang's multimodal processor, with the work off its event loop

What a family does with the bytes (decoding, sizes, token layout) is its own.
"""
