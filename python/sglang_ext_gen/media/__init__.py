# SPDX-License-Identifier: Apache-2.0
"""What a client sends: pictures, videos and sounds, read once for everybody.

    images.py          pictures: limits, checks, reading
    checks.py          what a client names as a medium -> its bytes, by policy
    fetch.py           what a client's URL may reach
    limits.py          sizes and times, one place
    upload_folders.py  where uploads are written, until their request ends
    processor.py       SGLang's multimodal processor, with the work off its event loop

What a family does with the pixels (sizes, token layout) is its own.
"""
