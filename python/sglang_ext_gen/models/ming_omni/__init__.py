# SPDX-License-Identifier: Apache-2.0
"""Ming-flash-omni 2.0: a language model that sees and hears, and draws.

Source: the released checkpoint ``inclusionAI/Ming-flash-omni-2.0`` in its official
layout, and the official code at its "release Ming-flash-omni 2.0" commit.

    thinker/             understanding, on SGLang's language model runtime
    thinker_protocol.py  what the thinker's process hands to the generator's
"""
