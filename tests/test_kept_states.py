"""States kept between rounds: what they spare, worked out by hand, and that they change nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from reference import block_cuts, make_llama
from tinysleb.checkpoint.open_model import open_model
from tinysleb.compute import compute as compute_module
from tinysleb.compute.compute import Compute
from tinysleb.compute.memory import Budget, MemoryPlan
from tinysleb.plan import Plan
from tinysleb.search import sweep as sweep_module
from tinysleb.search.cuts import BLOCK, HALF, removable
from tinysleb.search.kept_states import BASE, KeptStates
from tinysleb.search.rounds import search
from tinysleb.search.sweep import Route, plan_route, sweep
from tinysleb.sublayers import Cut, block_cut

WINDOW = range(0, 1)


def kept_after(positions: list[int], candidates: list[Cut]) -> KeptStates:
    """What a sweep over `candidates` leaves behind, without the numbers."""
    states = KeptStates(10**6)
    states.want(positions, 1)
    for position in positions:
        for key in [BASE, *(cut for cut in candidates if cut[-1] < position)]:
            states.save(0, key, position, torch.zeros(1, 2, 3))
    return states


def stack_without(blocks: int, *removed: int) -> list[int]:
    return [sublayer for sublayer in range(2 * blocks) if sublayer // 2 not in removed]


def block_passes(route: Route, stack: list[int]) -> list[int]:
    """How many streams go through each block, all of which go through both halves of it."""
    passes = route.passes(stack)
    assert passes[::2] == passes[1::2]
    return passes[::2]


def test_nothing_kept_is_a_whole_sweep() -> None:
    stack, cuts = stack_without(6), block_cuts([1, 2, 3, 4])
    route = plan_route(stack, cuts, True, WINDOW, KeptStates(0))
    assert block_passes(route, stack) == [1, 1, 2, 3, 4, 5]
    route = plan_route(stack, cuts, False, WINDOW, KeptStates(0))
    assert block_passes(route, stack) == [1, 1, 2, 3, 3, 4], "the base ends where candidate 4 branches off"


def test_straddling_cuts_branch_off_in_the_middle_of_a_block() -> None:
    """Blocks 1 and 2, and F1 A2: the base ends before block 2, of which only F1 A2 takes its feed-forward."""
    stack = stack_without(4)
    route = plan_route(stack, [(2, 3), (3, 4), (4, 5)], False, WINDOW, KeptStates(0))
    assert route.passes(stack) == [1, 1, 1, 1, 1, 2, 3, 3]


def test_what_lies_below_the_block_removed_is_not_computed_again() -> None:
    """Of 8 blocks, block 5 went: candidates 1 to 4 enter before 5, candidate 6 branches off the new base,
    whose state before block 6 is the old candidate 5's."""
    states = kept_after([10, 12], block_cuts([1, 2, 3, 4, 5, 6]))
    states.remove(block_cut(5))
    stack = stack_without(8, 5)
    route = plan_route(stack, block_cuts([1, 2, 3, 4, 6]), False, WINDOW, states)
    assert dict(route.entries) == dict.fromkeys(block_cuts([1, 2, 3, 4]), 10) | {BASE: 12}
    assert route.branching == {block_cut(6)}
    assert block_passes(route, stack) == [0, 0, 0, 0, 0, 4, 5]


def test_what_lies_above_is_forgotten() -> None:
    """Block 2 went: only candidate 1's state before block 2 is still true, and the base's."""
    states = kept_after([4, 10], block_cuts([1, 2, 3, 4]))
    states.remove(block_cut(2))
    stack = stack_without(6, 2)
    route = plan_route(stack, block_cuts([1, 3, 4]), False, WINDOW, states)
    assert dict(route.entries) == {block_cut(1): 4, BASE: 4}
    assert block_passes(route, stack) == [0, 0, 2, 2, 3]
    assert plan_route(stack, block_cuts([4]), False, WINDOW, states).base == range(4, 8)
    assert plan_route(stack, [], True, WINDOW, states).entries == {BASE: 10}


def test_room_is_kept_and_given_back() -> None:
    states = KeptStates(100)
    states.want([4, 3, 2], 30)
    assert states.positions == {4, 3, 2}
    for position in (2, 3, 4, 5):
        states.save(0, (1,), position, torch.zeros(1, 2, 5))
    assert states.room == 100 - 2 * 40, "there is room for two"
    assert states.highest(WINDOW, (1,), 9) == 3
    assert states.highest(WINDOW, (1,), 2) == 2
    assert states.highest(range(0, 2), (1,), 9) is None, "one of the windows is not known"
    states.remove((0, 1))
    assert states.room == 100


@pytest.mark.parametrize("kind", [BLOCK, HALF])
@pytest.mark.parametrize("exact", [True, False])
def test_searches_with_and_without_kept_states_are_the_same(
    exact: bool, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = open_model(make_llama(tmp_path, num_hidden_layers=10))
    tokens = torch.randint(0, 512, (4, 300), generator=torch.Generator().manual_seed(0))
    passed: list[int] = []
    monkeypatch.setattr(sweep_module, "advance_half", counted(passed))

    def found(room: int) -> tuple[list[tuple[Cut, float]], int]:
        monkeypatch.setattr(compute_module, "plan_memory", lambda *_: MemoryPlan(2, False, room))
        passed.clear()
        compute = Compute(torch.device("cpu"), torch.float32, Budget(2**33, 0))
        *_, plan = search(
            weights, tokens, Plan(10, 5, {}), compute,
            allowed=removable(10, 1, 1), kind=kind, exact=exact, progress=lambda *_: None,
        )  # fmt: skip
        return [(round_.cut, round_.loss) for round_ in plan.rounds], sum(passed)

    without, passes = found(0)
    kept, fewer = found(10**9)
    assert [cut for cut, _ in kept] == [cut for cut, _ in without]
    assert [loss for _, loss in kept] == pytest.approx([loss for _, loss in without], rel=1e-5)
    assert fewer < 0.9 * passes


def counted(passes: list[int]) -> object:
    from tinysleb.model.forward import advance_half

    def count(streams: torch.Tensor, *rest: object) -> None:
        passes.append(len(streams))
        advance_half(streams, *rest)  # type: ignore[arg-type]

    return count


def test_losses_do_not_depend_on_how_windows_are_grouped(tiny_folder: Path) -> None:
    weights = open_model(tiny_folder)
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randint(0, 512, (9, 50), generator=generator)
    whole = sweep(weights, range(12), block_cuts(range(1, 5)), tokens, torch.float32)
    for _ in range(10):
        cuts = sorted(torch.randperm(8, generator=generator)[:3].add(1).tolist())
        parts = [
            sweep(weights, range(12), block_cuts(range(1, 5)), part, torch.float32, ahead=len(cuts) % 2 == 0)
            for part in torch.tensor_split(tokens, cuts)
        ]
        for key, losses in whole.items():
            torch.testing.assert_close(torch.cat([part[key] for part in parts]), losses, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
def test_a_gpu_computes_the_same_losses(tiny_folder: Path) -> None:
    weights = open_model(tiny_folder)
    tokens = torch.randint(0, 512, (3, 50), generator=torch.Generator().manual_seed(0))
    for ahead in (False, True):
        cpu, gpu = (
            sweep(weights, range(12), block_cuts(range(1, 5)), tokens.to(device), torch.float32, ahead=ahead)
            for device in ("cpu", "cuda")
        )
        for key, losses in cpu.items():
            torch.testing.assert_close(gpu[key], losses, rtol=1e-3, atol=1e-3)
