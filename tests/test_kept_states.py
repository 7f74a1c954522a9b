"""States kept between rounds: what they spare, worked out by hand, and that they change nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from reference import make_llama
from tinysleb.checkpoint.open_model import open_model
from tinysleb.compute import compute as compute_module
from tinysleb.compute.compute import Compute
from tinysleb.compute.memory import Budget, MemoryPlan
from tinysleb.plan import Plan
from tinysleb.search import sweep as sweep_module
from tinysleb.search.kept_states import BASE, KeptStates
from tinysleb.search.rounds import removable, search
from tinysleb.search.sweep import plan_route, sweep

WINDOW = range(0, 1)


def kept_after(positions: list[int], candidates: list[int], blocks: int) -> KeptStates:
    """What a sweep over `candidates` of a model of `blocks` blocks leaves behind, without the numbers."""
    states = KeptStates(10**6)
    states.want(positions, 1)
    for position in positions:
        for key in [BASE, *(index for index in candidates if index < position)]:
            states.save(0, key, position, torch.zeros(1, 2, 3))
    assert blocks > max(positions)
    return states


def test_nothing_kept_is_a_whole_sweep() -> None:
    route = plan_route(range(6), [1, 2, 3, 4], True, WINDOW, KeptStates(0))
    assert route.passes(range(6)) == [1, 1, 2, 3, 4, 5]
    route = plan_route(range(6), [1, 2, 3, 4], False, WINDOW, KeptStates(0))
    assert route.passes(range(6)) == [1, 1, 2, 3, 3, 4], "the base ends where candidate 4 branches off"


def test_what_lies_below_the_block_removed_is_not_computed_again() -> None:
    """Of 8 blocks, block 5 went: candidates 1 to 4 enter before 5, candidate 6 branches off the new base,
    whose state before block 6 is the old candidate 5's."""
    states = kept_after([5, 6], [1, 2, 3, 4, 5, 6], 8)
    states.remove(5)
    kept = [0, 1, 2, 3, 4, 6, 7]
    route = plan_route(kept, [1, 2, 3, 4, 6], False, WINDOW, states)
    assert dict(route.entries) == {1: 5, 2: 5, 3: 5, 4: 5, BASE: 6}
    assert route.branching == {6}
    assert route.passes(kept) == [0, 0, 0, 0, 0, 4, 5]


def test_what_lies_above_is_forgotten() -> None:
    """Block 2 went: only candidate 1's state before block 2 is still true, and the base's."""
    states = kept_after([2, 5], [1, 2, 3, 4], 6)
    states.remove(2)
    route = plan_route([0, 1, 3, 4, 5], [1, 3, 4], False, WINDOW, states)
    assert dict(route.entries) == {1: 2, BASE: 2}
    assert route.passes([0, 1, 3, 4, 5]) == [0, 0, 2, 2, 3]
    assert plan_route([0, 1, 3, 4, 5], [4], False, WINDOW, states).base == range(2, 4)
    assert plan_route([0, 1, 3, 4, 5], [], True, WINDOW, states).entries == {BASE: 5}


def test_room_is_kept_and_given_back() -> None:
    states = KeptStates(100)
    states.want([4, 3, 2], 30)
    assert states.positions == {4, 3, 2}
    for position in (2, 3, 4, 5):
        states.save(0, 1, position, torch.zeros(1, 2, 5))
    assert states.room == 100 - 2 * 40, "there is room for two"
    assert states.highest(WINDOW, 1, 9) == 3
    assert states.highest(WINDOW, 1, 2) == 2
    assert states.highest(range(0, 2), 1, 9) is None, "one of the windows is not known"
    states.remove(0)
    assert states.room == 100


@pytest.mark.parametrize("exact", [True, False])
def test_searches_with_and_without_kept_states_are_the_same(
    exact: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = open_model(make_llama(tmp_path, num_hidden_layers=10))
    tokens = torch.randint(0, 512, (4, 300), generator=torch.Generator().manual_seed(0))
    blocks: list[int] = []
    monkeypatch.setattr(sweep_module, "advance", counted(blocks))

    def found(room: int) -> tuple[list[tuple[int, float]], int]:
        monkeypatch.setattr(compute_module, "plan_memory", lambda *_: MemoryPlan(2, False, room))
        blocks.clear()
        compute = Compute(torch.device("cpu"), torch.float32, Budget(2**33, 0))
        *_, plan = search(
            weights, tokens, Plan(10, 5, {}), compute,
            allowed=removable(10, 1, 1), exact=exact, progress=lambda *_: None,
        )  # fmt: skip
        return [(round_.removed, round_.loss) for round_ in plan.rounds], sum(blocks)

    without, passes = found(0)
    kept, fewer = found(10**9)
    assert [removed for removed, _ in kept] == [removed for removed, _ in without]
    assert [loss for _, loss in kept] == pytest.approx([loss for _, loss in without], rel=1e-5)
    assert fewer < 0.9 * passes


def counted(passes: list[int]) -> object:
    from tinysleb.model.forward import advance

    def count(streams: torch.Tensor, *rest: object) -> None:
        passes.append(len(streams))
        advance(streams, *rest)  # type: ignore[arg-type]

    return count


def test_losses_do_not_depend_on_how_windows_are_grouped(tiny_folder: Path) -> None:
    weights = open_model(tiny_folder)
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randint(0, 512, (9, 50), generator=generator)
    whole = sweep(weights, range(6), range(1, 5), tokens, torch.float32)
    for _ in range(10):
        cuts = sorted(torch.randperm(8, generator=generator)[:3].add(1).tolist())
        parts = [
            sweep(weights, range(6), range(1, 5), part, torch.float32, ahead=len(cuts) % 2 == 0)
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
            sweep(weights, range(6), range(1, 5), tokens.to(device), torch.float32, ahead=ahead)
            for device in ("cpu", "cuda")
        )
        for key, losses in cpu.items():
            torch.testing.assert_close(gpu[key], losses, rtol=1e-3, atol=1e-3)
