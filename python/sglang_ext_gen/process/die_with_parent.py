# SPDX-License-Identifier: Apache-2.0
"""A tiny launcher: become a Python command that the kernel kills with its parent.

    python die_with_parent.py PARENT_PID ARGUMENTS...

It asks the kernel for SIGKILL at the death of the parent (more exactly: of the thread
that started it) and replaces itself by ``python ARGUMENTS...``; the request survives
that. It is a program of its own because code between fork and exec is not safe in a
process that has threads. It imports nothing of this package.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    parent = int(sys.argv[1])
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        sys.exit("the parent has ended already")
    os.execv(sys.executable, [sys.executable, *sys.argv[2:]])


if __name__ == "__main__":
    main()
