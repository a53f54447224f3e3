# SPDX-License-Identifier: Apache-2.0
"""Model families, one folder each, with the same file names in every folder."""
