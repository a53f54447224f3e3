# SPDX-License-Identifier: Apache-2.0
"""Devices that stock SGLang lacks; see ``cpu_reference``."""
