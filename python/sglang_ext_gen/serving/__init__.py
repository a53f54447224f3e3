# SPDX-License-Identifier: Apache-2.0
"""The HTTP door: what stands between a client and SGLang's diffusion server.

Stock clamps, floors or ignores what it does not understand, answers failures in
three formats and lets a client name paths on the server. For our families a request
is refused early, in OpenAI's error format, or it means exactly what it says.

    limits.py        sizes and times, one place
    served_model.py  which family this server runs, and its rules
    bodies.py        bytes -> one JSON object
    uploads.py       bytes of a form -> fields and files
    images.py        JSON object -> checked fields of an image request
    edits.py         form -> an image request with pictures to work from
    videos.py        form or JSON object -> checked fields of a video request
    urls.py          what a client's URL may reach
    replies.py       refusals and failures in OpenAI's error format
    routes.py        the middleware that ties them together, and its installation

and, for a checkpoint that needs two servers,

    backend.py       how `sglang serve` comes to choose one port
    one_port.py      what is started, and with which arguments
    parts.py         the two servers, watched and restarted
    front.py         the application that hands requests on
    child_server.py  a server as a child process that cannot outlive its parent

Nothing here imports torch or SGLang, but for backend.py, which SGLang imports.
"""
