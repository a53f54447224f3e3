# SPDX-License-Identifier: Apache-2.0
"""What stands between a client and SGLang's diffusion server.

Stock clamps, floors or ignores what it does not understand, answers failures in
three formats and lets a client name paths on the server. For our families a request
is refused early, in OpenAI's error format, or it means exactly what it says.

    served_model.py  which family this server runs, and its rules
    bodies.py        bytes -> one JSON object
    uploads.py       bytes of a form -> fields and files
    images.py        JSON object -> checked fields of an image request
    edits.py         form -> an image request with pictures to work from
    videos.py        form or JSON object -> checked fields of a video request
    errors.py        refusals and failures in OpenAI's error format
    middleware.py    ties them together; installed into SGLang's application

Nothing here imports torch or SGLang.
"""
