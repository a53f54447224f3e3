# SPDX-License-Identifier: Apache-2.0
"""Building blocks that more than one family uses."""
