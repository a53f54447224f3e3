# SPDX-License-Identifier: Apache-2.0
"""Name rules: every disk tensor meets exactly one."""

from collections.abc import Sequence

import pytest

from sglang_ext_gen.checkpoint.rules import (
    KEEP_NAME,
    Merge,
    Plan,
    Rename,
    Rule,
    Skip,
    Split,
    Step,
    plan_steps,
    with_prefix,
)
from sglang_ext_gen.errors import CheckpointError


def plan(names: Sequence[str], *rules: Rule) -> Plan:
    return plan_steps(names, rules, where="part/")


def test_rename_keeps_placeholders() -> None:
    rule = Rename("blocks.{i}.attn.to_out.0.{p}", "blocks.{i}.attn.o.{p}")
    name = "blocks.12.attn.to_out.0.weight_scale"
    step = Step((name,), ("blocks.12.attn.o.weight_scale",))
    assert plan([name], rule) == Plan((step,), ())


@pytest.mark.parametrize(
    "name",
    [
        "blocks.one.o.weight",  # {i} is a number
        "blocks.1.o.weight.more",  # {p} is one piece
        "xblocks.1.o.weight",  # whole names are matched
        "blocksX1.o.weight",  # a dot is a dot
    ],
)
def test_templates_do_not_match_loosely(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"part/: {name} has no rule"):
        plan([name], Rename("blocks.{i}.o.{p}", "blocks.{i}.out.{p}"))


def test_double_star_takes_dots() -> None:
    assert plan(["visual.a.0.b"], Skip("visual.**", "unused")).skipped == (
        "visual.a.0.b",
    )
    assert plan(["old.a.0.b"], Rename("old.**", "new.**")).steps == (
        Step(("old.a.0.b",), ("new.a.0.b",)),
    )


def test_two_rules_for_one_name_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"a\.weight has two rules"):
        plan(["a.weight"], Rename("a.{p}", "b.{p}"), Skip("a.**", "unused"))


def test_keep_name_takes_what_no_other_rule_takes() -> None:
    steps = plan(["a.w", "b.w"], KEEP_NAME, Rename("a.{p}", "c.{p}")).steps
    assert steps == (Step(("a.w",), ("c.w",)), Step(("b.w",), ("b.w",)))


MERGE_QKV = Merge(("{i}.q.{p}", "{i}.k.{p}", "{i}.v.{p}"), "{i}.qkv.{p}")


def test_merge_orders_parts_by_the_rule_not_by_the_file() -> None:
    names = ["0.v.w", "1.k.w", "0.k.w", "1.q.w", "0.q.w", "1.v.w"]
    assert set(plan(names, MERGE_QKV).steps) == {
        Step(("0.q.w", "0.k.w", "0.v.w"), ("0.qkv.w",)),
        Step(("1.q.w", "1.k.w", "1.v.w"), ("1.qkv.w",)),
    }


def test_incomplete_merge_names_the_missing_part() -> None:
    with pytest.raises(CheckpointError, match=r"1.v.w is missing \(a part of 1.qkv.w"):
        plan(["0.q.w", "0.k.w", "0.v.w", "1.q.w", "1.k.w"], MERGE_QKV)


def test_two_writers_of_one_parameter_are_refused() -> None:
    names = ["0.qkv.w", "0.q.w", "0.k.w", "0.v.w"]
    with pytest.raises(CheckpointError, match=r"0\.qkv\.w and 0\.q\.w both fill"):
        plan(names, MERGE_QKV, KEEP_NAME)


def test_split() -> None:
    rule = Split("{i}.kv.{p}", ("{i}.k.{p}", "{i}.v.{p}"), dim=1)
    assert plan(["3.kv.w"], rule).steps == (Step(("3.kv.w",), ("3.k.w", "3.v.w"), 1),)


def test_with_prefix_changes_sources_only() -> None:
    rules = with_prefix((MERGE_QKV, Rename("a", "b"), Skip("c.**", "unused")), "model.")
    names = ["model.0.q.w", "model.0.k.w", "model.0.v.w", "model.a", "model.c.d"]
    result = plan(names, *rules)
    assert [step.targets for step in result.steps] == [("0.qkv.w",), ("b",)]
    assert result.skipped == ("model.c.d",)


def test_many_problems_are_counted_and_the_first_named() -> None:
    names = [f"x{n}" for n in range(12)]
    with pytest.raises(CheckpointError, match=r"x0 has no rule; .*; and 7 more\."):
        plan(names, Skip("y", "unused"))


def test_rules_that_would_lose_names_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="different placeholders"):
        Rename("blocks.{i}.{p}", "blocks.{p}")
    with pytest.raises(ValueError, match="different placeholders"):
        Merge(("{i}.q", "q"), "{i}.qkv")
    with pytest.raises(ValueError, match="needs a reason"):
        Rename("a", "a", transform=lambda tensor: tensor)
