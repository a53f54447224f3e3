# SPDX-License-Identifier: Apache-2.0
"""Limits of what a client sends that hold for every family.

Limits of a single request field (size, steps, ``n``, prompt length) belong to the
family: ``models/<family>/request.py``.
"""

# The longest prompt that any family takes is 65,536 characters; written as JSON
# escapes it is at most 12 bytes a character, 786 kB.
MAX_JSON_BODY_BYTES = 1 << 20

# A form with source pictures or a video in it, such as ten photographs of 6 MB each;
# also all that an edit names by its address. No more than what is discarded.
MAX_UPLOAD_BODY_BYTES = 64 << 20

# A refused body is read to its end, and thrown away, up to this many bytes: a client
# that is still sending when the connection closes may never see the answer.
MAX_DISCARDED_BODY_BYTES = 64 << 20

# From the head of a request to the end of its body. A client that stalls must not
# hold a connection for ever; 1 MiB in 30 s is 35 kB/s.
MAX_BODY_SECONDS = 30.0

# Names and values that a client sent are cut to this many characters in a message.
MAX_ECHOED_CHARACTERS = 60

# Parts of a form of one kind, files or texts; every field of a request once.
MAX_FORM_PARTS = 256

# Pictures in one edit, over all families; each family may take fewer.
MAX_IMAGES = 16

# One medium that a client sends, names or points at.
MAX_MEDIA_BYTES = 64 << 20
MAX_MEDIA_PIXELS = 64_000_000  # of one decoded picture or frame

# Fetching what a client's URL points at, redirects included.
FETCH_SECONDS = 10.0
MAX_REDIRECTS = 3
