# SPDX-License-Identifier: Apache-2.0
"""A family's request fields as SGLang's ``SamplingParams``.

The fields, their ranges and defaults are the family's table (``request.py``). From it
follow the dataclass fields, what the HTTP endpoints take, and which requests may share
a batch. A class of this kind only carries them through SGLang and has them checked
before a request is queued.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar

from sglang.multimodal_gen.configs.sample.sampling_params import SamplingParams

from sglang_ext_gen.diffusion.step_cache import read_teacache_params
from sglang_ext_gen.request.fields import (
    SERVED_BY_SGLANG,
    RequestField,
    refuse_unused_fields,
)

_OF_SGLANG = frozenset(field.name for field in fields(SamplingParams))
# What stock's denoising loop reads, whatever the family.
_OF_THE_LOOP = frozenset(
    {
        "attention_backend_override",
        "cache_dit_params",
        "enable_cache_dit",
        "skip_softmax_params",
    }
)
_OF_TEACACHE = frozenset({"enable_teacache", "teacache_params"})
# A seed may be a list, a task SGLang's enumeration: the family's check sees to them.
_CHECKED_LATER = ("seed", "task_type")
# SGLang reads "no guidance given" as 1, and strips a negative prompt.
_KEPT = ("guidance_scale", "negative_prompt")


class FamilySamplingParams(SamplingParams):
    """Base of the families' classes, which stand below ``@dataclass @carries(table)``.

    Args:
        title: Name of the family for people.
        request_fields: The family's table.
        also_used: Fields of SGLang's class, beside those of the table and of
            ``SERVED_BY_SGLANG``, that something of the family reads.
        not_used: Fields that stock's loop reads, but not for this family.
        has_teacache: Whether its transformers can leave out the blocks of a step.
    """

    title: ClassVar[str]
    request_fields: ClassVar[tuple[RequestField, ...]]
    also_used: ClassVar[frozenset[str]] = frozenset()
    not_used: ClassVar[frozenset[str]] = frozenset()
    has_teacache: ClassVar[bool] = True

    if TYPE_CHECKING:  # the fields that ``carries`` declares

        def __getattr__(self, name: str) -> Any: ...

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        minima = {field.name: field.minimum for field in cls.request_fields}
        # SGLang cuts the steps of a warm-up, but never below this.
        cls.min_num_inference_steps = int(minima.get("num_inference_steps") or 1)

    @classmethod
    def image_request_extra_fields(cls) -> frozenset[str]:
        """Fields that the HTTP image endpoint takes from the body.

        ``image_path`` comes from an upload; a client cannot set it. Of SGLang's own
        fields its endpoint passes on all others.
        """
        names = {field.name for field in cls.request_fields}
        return cls.video_request_extra_fields() | names & {"image_path"}

    @classmethod
    def video_request_extra_fields(cls) -> frozenset[str]:
        """Fields that the HTTP video endpoint takes from the body."""
        names = frozenset(field.name for field in cls.request_fields)
        return names - _OF_SGLANG | names & {"teacache_params"}

    @classmethod
    def used_fields(cls) -> frozenset[str]:
        """Fields that something reads; a request that sets another one is refused."""
        own = frozenset(field.name for field in cls.request_fields) | cls.also_used
        loop = _OF_THE_LOOP | _OF_TEACACHE if cls.has_teacache else _OF_THE_LOOP
        return (own | SERVED_BY_SGLANG | loop) - cls.not_used

    def should_use_classifier_free_guidance(self) -> bool:
        """False: SGLang's own guidance needs a negative prompt; ours does not."""
        return False

    def values(self) -> dict[str, Any]:
        """The fields of the table as they are; None means not given."""
        return {field.name: getattr(self, field.name) for field in self.request_fields}

    def batch_key(self) -> Hashable:
        """Equal for requests that can share a denoising loop."""
        return tuple(
            (field.name, _hashable(getattr(self, field.name)))
            for field in self.request_fields
            if field.batched_apart
        )

    def check(self, server_args: Any) -> None:
        """Check the merged request, in the user's process, and fill what follows.

        Raises:
            RequestError: Names the field that cannot be used.
        """
        raise NotImplementedError

    def check_seeds(
        self,
        check_request: Callable[[Mapping[str, Any]], dict[str, Any]],
        values: Mapping[str, Any],
    ) -> dict[str, Any]:
        """The family's check, for each seed; returns the fields in their own types."""
        seeds = self.seed if isinstance(self.seed, list) else [self.seed]
        return [check_request({**values, "seed": seed}) for seed in seeds][-1]

    def __post_init__(self) -> None:
        # Before SGLang's own checks, some of which are bare assertions.
        for field in self.request_fields:
            value = getattr(self, field.name)
            if value is not None and field.name not in _CHECKED_LATER:
                setattr(self, field.name, field.check(value))
        super().__post_init__()

    def _adjust(self, server_args: Any) -> None:
        if self.has_teacache:
            read_teacache_params(self.teacache_params)
        refuse_unused_fields(self, self.used_fields(), self.title)
        self.check(server_args)
        kept = {name: getattr(self, name) for name in _KEPT}
        super()._adjust(server_args)
        for name, value in kept.items():
            setattr(self, name, value)


def _hashable(value: Any) -> Hashable:
    if isinstance(value, dict):
        return tuple((name, _hashable(value[name])) for name in sorted(value))
    return tuple(map(_hashable, value)) if isinstance(value, list) else value
