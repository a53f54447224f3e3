# SPDX-License-Identifier: Apache-2.0
"""One port before several servers, for a checkpoint that needs two.

    backend.py    how ``sglang serve`` comes to choose it
    arguments.py  its command line
    launch.py     what is started, and with which arguments
    upstream.py   the two servers, watched and restarted
    app.py        the application that forwards requests

Nothing here imports torch; SGLang imports ``backend.py``.
"""
