# SPDX-License-Identifier: Apache-2.0
"""Child processes that cannot outlive their parent.

    child_server.py     a server as a child process
    die_with_parent.py  how the kernel is asked for that

Nothing here imports torch or SGLang.
"""
