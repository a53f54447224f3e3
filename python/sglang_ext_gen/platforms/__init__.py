# SPDX-License-Identifier: Apache-2.0
"""What SGLang needs to run where it was not meant to: on a CPU."""
