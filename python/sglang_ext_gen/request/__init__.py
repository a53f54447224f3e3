# SPDX-License-Identifier: Apache-2.0
"""What a client says: fields as data, their checks, flags made from them.

    fields.py        ``RequestField`` and the checks that all families share
    flags.py         command-line flags made from tables of fields

Nothing here imports torch or SGLang.
"""
