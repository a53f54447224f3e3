# SPDX-License-Identifier: Apache-2.0
"""How attention exchanges data where a sequence is spread over ranks."""

import logging
from typing import Any

logger = logging.getLogger(__name__)


def fit_sequence_exchange(heads: int, server_args: Any) -> None:
    """Gather keys and values where Ulysses cannot deal the heads out evenly.

    Args:
        heads: Attention heads of the model.
        server_args: SGLang's; changed in place.
    """
    ranks = server_args.ulysses_degree
    if server_args.kv_gather_degree == 1 and heads // server_args.tp_size % ranks:
        logger.warning(
            "%d attention heads do not divide over %d Ulysses ranks: "
            "using SGLang's K/V gather instead",
            heads // server_args.tp_size,
            ranks,
        )
        server_args.kv_gather_degree = ranks
