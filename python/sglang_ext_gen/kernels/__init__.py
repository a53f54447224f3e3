# SPDX-License-Identifier: Apache-2.0
"""GPU kernels, each beside the torch reference that defines its numerics."""
