"""Distillation: its gradients against plain autograd, what memory, interruptions and resuming change, and
that it helps."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from torch import Tensor
from torch.nn import functional as F

from reference import FAMILIES, llama_cpp_logits, make_llama, make_variant, transformers_model, without_blocks
from tinysleb.checkpoint.open_model import open_model
from tinysleb.checkpoint.weights import Shortened
from tinysleb.compute.compute import Compute
from tinysleb.compute.memory import Budget
from tinysleb.errors import TinyslebError
from tinysleb.formats.gguf_file import read_gguf
from tinysleb.heal import distill as distill_module
from tinysleb.heal import divergence as divergence_module
from tinysleb.heal import low_rank
from tinysleb.heal import run as heal_run
from tinysleb.heal.change import Change, parameters
from tinysleb.heal.course import Course, Limits
from tinysleb.heal.distill import Task, distill, plan_distilling_memory
from tinysleb.heal.divergence import divergence
from tinysleb.heal.low_rank import Changed, Factors, zero_factors
from tinysleb.heal.student import Student, teach
from tinysleb.model.forward import forward
from tinysleb.sublayers import whole_blocks

Run = Callable[..., Result]
COMPUTE = Compute(torch.device("cpu"), torch.float32, Budget(2**31, 0))
TOKENS = torch.randint(3, 400, (64, 32), generator=torch.Generator().manual_seed(5))
KEPT = (0, 1, 4, 5)
FACTORS = zero_factors(64)
SCATTER = 0.02
"""Of the changes that gradients are compared at: at the beginning half of them are zero."""


def scattered(student: Student) -> None:
    """Give a student changes that are not zero."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for change in student.changes.values():
            for factor in parameters(change):
                factor.add_(SCATTER * torch.randn(factor.shape, generator=generator))


def mean_divergence(original: Tensor, student: Tensor) -> Tensor:
    """Of two models' logits, in nats per token, by PyTorch's own function."""
    own, target = student.log_softmax(-1).flatten(0, 1), original.log_softmax(-1).flatten(0, 1)
    return F.kl_div(own, target, log_target=True, reduction="batchmean")


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_equal_those_of_transformers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a whole model with a whole graph; the gradients of the factors follow from those of the matrices."""
    monkeypatch.setattr(low_rank, "USUAL_SIZE", 0.1)
    folder = make_variant(name, tmp_path / "m")
    weights = open_model(folder)
    student = Student(Shortened(weights, whole_blocks(KEPT)), 1, COMPUTE, FACTORS, resident=True, seed=0)
    scattered(student)
    found: dict[int, list[Tensor]] = {}

    def keep(index: int, _factors: object, gradients: list[Tensor], _rate: float) -> None:
        found[index] = gradients

    monkeypatch.setattr(student, "_update", keep)
    lesson = teach(weights, TOKENS[:3], 1, COMPUTE, ahead=False)
    loss = student.learn(lesson, 1.0)

    model = transformers_model(folder)
    with torch.no_grad():
        original = model(TOKENS[:3]).logits
    shorter = without_blocks(model, [2, 3])
    changed = Changed(student.weights, student.changes)
    own = dict(shorter.named_parameters())
    with torch.no_grad():
        for tensor in changed.tensors:
            if tensor in own:
                own[tensor].copy_(changed.tensor(tensor))
    expected = mean_divergence(original, shorter(TOKENS[:3], use_cache=False).logits)
    torch.autograd.backward(expected)
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    assert sorted(found) == [1, 2, 3]
    for index, gradients in found.items():
        for matrix, error in errors(own, index, student.changes[index], gradients):
            assert error < 1e-4, (index, matrix)


def errors(
    parameters: dict[str, torch.nn.Parameter], index: int, change: Change, gradients: Sequence[Tensor]
) -> Iterator[tuple[str, float]]:
    """How far gradients of factors are from what follows from those of whole matrices, relatively."""
    given = iter(gradients)
    for matrix, factors in change.items():
        assert isinstance(factors, Factors)
        assert not 0.9 < factors.scale < 1.1
        full = factors.scale * gradient_of(parameters, index, matrix)
        for product in (factors.up.T @ full, full @ factors.down.T):
            yield matrix, ((next(given) - product).norm() / product.norm()).item()


def gradient_of(parameters: dict[str, torch.nn.Parameter], index: int, matrix: str) -> Tensor:
    """Of a matrix of a block; Phi-3's are parts of fused ones."""
    prefix = f"model.layers.{index}."
    if prefix + matrix in parameters:
        gradient = parameters[prefix + matrix].grad
        assert gradient is not None
        return gradient
    if matrix.startswith("mlp"):
        gradient = parameters[prefix + "mlp.gate_up_proj.weight"].grad
        assert gradient is not None
        return gradient.chunk(2)["up_proj" in matrix]
    gradient = parameters[prefix + "self_attn.qkv_proj.weight"].grad
    assert gradient is not None
    queries = parameters[prefix + "self_attn.o_proj.weight"].shape[1]
    rows = (len(gradient) - queries) // 2
    parts: tuple[Tensor, ...] = torch.split(gradient, [queries, rows, rows])
    return parts["qkv".index(matrix[len("self_attn.")])]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_divergence_in_chunks_equals_autograd(
    dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(divergence_module, "TOKEN_CHUNK", 20)
    generator = torch.Generator().manual_seed(1)
    head, original, student = (torch.randn(rows, 24, generator=generator).to(dtype) for rows in (100, 50, 50))
    parts = [(0, head[:33]), (33, head[33:90]), (90, head[90:])]
    total, gradient = divergence(original, student, lambda: parts, 100)
    leaf = student.float().requires_grad_()
    expected = 50 * mean_divergence((original.float() @ head.float().T)[None], (leaf @ head.float().T)[None])
    torch.autograd.backward(expected)
    assert leaf.grad is not None
    assert total == pytest.approx(expected.item(), rel=tolerance)
    assert (gradient - leaf.grad).norm() < tolerance * leaf.grad.norm()


@pytest.fixture
def task(tiny_folder: Path) -> Task:
    weights = open_model(tiny_folder)
    shortened = Shortened(weights, whole_blocks(KEPT))
    return Task(weights, shortened, 1, FACTORS, windows, TOKENS[:8], 0, 2e-3, "a task")


def windows(start: int, count: int) -> Tensor:
    return TOKENS[8 + torch.arange(start, start + count) % (len(TOKENS) - 8)]


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of four windows, and portions of three steps."""
    monkeypatch.setattr(distill_module, "windows_in_call", lambda length: max(1, 128 // length))
    monkeypatch.setattr(distill_module, "PORTION_STEPS", 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_comes_nearer_to_the_original(task: Task, dtype: torch.dtype) -> None:
    """By transformers' arithmetic, too, on windows it was not given."""
    changed, course = distilled(task, Limits(6144), replace(COMPUTE, dtype=dtype))
    before, after = (
        mean_divergence(forward(task.original, task.check), forward(model, task.check)).item()
        for model in (task.shortened, changed)
    )
    assert course.losses[0][1] == pytest.approx(before, rel=0.02)
    assert course.best[1] == pytest.approx(after, rel=0.02)
    assert after < 0.9 * before


@pytest.mark.gpu
def test_a_gpu_gives_the_same_losses(task: Task) -> None:
    on_gpu = replace(COMPUTE, device=torch.device("cuda"))
    expected, found = (distilled(task, Limits(3072), compute)[1].losses for compute in (COMPUTE, on_gpu))
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-2, atol=0)


def distilled(task: Task, *rest: Any, **options: Any) -> tuple[Changed, Course]:
    """The student as it is afterwards."""
    changes, course = distill(task, *rest, **options)
    return Changed(task.shortened, changes), course


def same(left: Changed, right: Changed) -> bool:
    return all(torch.equal(left.tensor(name), right.tensor(name)) for name in left.tensors)


def test_any_memory_gives_the_same_model(task: Task) -> None:
    shape = (task.shortened.config, 3, 32)
    ample = plan_distilling_memory(*shape, COMPUTE)
    assert ample.resident
    assert ample.graphs
    assert ample.steps == 3
    with pytest.raises(TinyslebError, match="too little for distillation") as error:
        plan_distilling_memory(*shape, replace(COMPUTE, memory=Budget(0, 0)))
    assert "--memory" in error.value.hint
    least = next(
        size for size in range(0, 2**31, 2**16)
        if not raises(partial(plan_distilling_memory, *shape, with_memory(size)))
    )  # fmt: skip
    scarce = plan_distilling_memory(*shape, with_memory(least))
    assert not scarce.resident
    assert not scarce.graphs
    assert scarce.steps == 1
    first, second = (distilled(task, Limits(1024), compute)[0] for compute in (COMPUTE, with_memory(least)))
    assert same(first, second)


def test_memory_for_writing_is_set_aside(task: Task) -> None:
    shape = (task.shortened.config, 3, 32, COMPUTE)
    with pytest.raises(TinyslebError, match="too little for distillation"):
        plan_distilling_memory(*shape, writing=2**31)
    most = next(
        size
        for size in range(2**31, 0, -(2**16))
        if not raises(partial(plan_distilling_memory, *shape, size))
    )
    assert not plan_distilling_memory(*shape, writing=most).resident
    assert plan_distilling_memory(*shape, writing=2**20) == plan_distilling_memory(*shape)


def with_memory(size: int) -> Compute:
    return replace(COMPUTE, memory=Budget(size, 0))


def raises(call: Callable[[], object]) -> bool:
    try:
        call()
    except TinyslebError:
        return True
    return False


class KilledError(Exception):
    """What a test ends a distillation with."""


def killed_after(count: int, error: BaseException) -> Callable[[int, int], Tensor]:
    def some(start: int, wanted: int) -> Tensor:
        if start >= count:
            raise error
        return windows(start, wanted)

    return some


def test_resumed_equals_undisturbed(task: Task, tmp_path: Path) -> None:
    state, limits = tmp_path / "state.npz", Limits(3072)
    undisturbed, course = distilled(task, limits, COMPUTE)
    with pytest.raises(KilledError):
        distilled(replace(task, windows=killed_after(40, KilledError())), limits, COMPUTE, state=state)
    resumed, course_resumed = distilled(task, limits, COMPUTE, state=state)
    assert course_resumed.losses == course.losses
    assert same(resumed, undisturbed)
    with pytest.raises(TinyslebError, match=r"state\.npz does not hold a state of this distillation"):
        distilled(replace(task, identity="another"), limits, COMPUTE, state=state)
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(TinyslebError, match=r"state\.npz does not hold a state"):
        distilled(task, limits, COMPUTE, state=state)


def test_what_was_interrupted_can_end_with_the_best_so_far(task: Task, tmp_path: Path) -> None:
    state = tmp_path / "state.npz"
    broken = replace(task, windows=killed_after(12, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        distilled(broken, Limits(3072), COMPUTE, state=state)
    found, course = distilled(task, Limits(1), COMPUTE, state=state)
    assert course.tokens == 12 * 32
    assert len(course.losses) == 2
    assert mean_divergence(
        forward(task.original, task.check), forward(found, task.check)
    ).item() == pytest.approx(course.best[1], rel=1e-3)


def test_a_number_that_is_not_finite_ends_it_with_the_block_named(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    learn, steps = Student.learn, iter(range(100))

    def poisoned(self: Student, *arguments: object) -> float:
        if next(steps) == 4:
            with torch.no_grad():
                next(parameters(self.changes[2])).fill_(torch.nan)
        return learn(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Student, "learn", poisoned)
    found, course = distilled(task, Limits(3072), COMPUTE, said.append)
    assert any("not finite" in line for line in said)
    assert course.best[0] == 12 * 32
    assert all(found.tensor(name).isfinite().all() for name in found.tensors)


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "m")
    model = transformers_model(folder)
    with torch.no_grad():
        model.model.layers[4].mlp.up_proj.weight[0, 0] = torch.nan
    model.save_pretrained(folder)
    weights = open_model(folder)
    task = Task(weights, Shortened(weights, whole_blocks(KEPT)), 1, FACTORS, windows, TOKENS[:8], 0, 2e-3)
    with pytest.raises(
        TinyslebError, match=r"layers\..\.mlp\.up_proj\.weight holds values that are not finite"
    ):
        distilled(task, Limits(1024), COMPUTE)


def test_the_best_is_kept_not_the_last(task: Task) -> None:
    found, course = distilled(replace(task, rate=30.0), Limits(1024), COMPUTE)
    assert course.best[0] == 0
    assert same(found, Changed(task.shortened, {}))


def test_limits() -> None:
    assert Limits(1000).done(Course(tokens=250, seconds=1e9)) == 0.25
    assert Limits(1000, 60.0).done(Course(tokens=250, seconds=30.0)) == 0.5
    assert Limits(1000, 60.0).done(Course(tokens=250, seconds=90.0)) == 1


def test_a_longer_window_than_a_step(tmp_path: Path) -> None:
    """One window is a step then."""
    weights = open_model(make_llama(tmp_path / "m"))
    tokens = torch.randint(3, 400, (4, 200), generator=torch.Generator().manual_seed(5))
    shortened = Shortened(weights, whole_blocks(KEPT))
    task = Task(weights, shortened, 1, FACTORS, lambda _start, count: tokens[:count], tokens[:1], 0, 2e-3)
    assert distilled(task, Limits(600), COMPUTE)[1].tokens == 600


FEW = ("--tokens", "t.npy", "--heal-tokens", 2000, "--distill-tokens", 4096)


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A plan without blocks 3 and 1, and windows."""
    monkeypatch.chdir(tmp_path)
    Path("p.json").write_text('{"blocks": 6, "removed": [3, 1]}')
    np.save("t.npy", TOKENS.numpy().astype(np.int32))
    return "p.json"


def comes_nearer(healing: dict[str, Any]) -> bool:
    """Random tokens, which these models were not trained on, say nothing by their perplexity."""
    (_, before), *_, (_, after) = healing["distilled"]["divergence"]
    return bool(after < 0.95 * before)


@pytest.mark.parametrize("type_", ["q8_0", "q5_1", "f16"])
def test_a_gguf_keeps_its_types_and_runs_in_llama_cpp(
    type_: str, plan: str, tiny_folder: Path, run: Run
) -> None:
    assert run("export", tiny_folder, "--gguf", "m.gguf", "--type", type_, "--pre", "smollm").exit_code == 0
    assert run("prune", "m.gguf", "--plan", plan, "-o", "cut.gguf").exit_code == 0
    result = run("heal", "m.gguf", "--plan", plan, "-o", "out.gguf", *FEW, "--dtype", "float32", "--json")
    assert result.exit_code == 0, result.output
    cut, out = read_gguf(Path("cut.gguf")), read_gguf(Path("out.gguf"))
    assert {n: t.type for n, t in out.tensors.items()} == {n: t.type for n, t in cut.tensors.items()}
    tokens = TOKENS[0].tolist()
    ours = forward(open_model(Path("out.gguf")), torch.tensor([tokens]))[0]
    theirs = torch.from_numpy(llama_cpp_logits(Path("out.gguf"), tokens))
    assert (ours - theirs).square().mean().sqrt() < 0.05 * ours.std()
    healing = json.loads(result.stdout)["healing"]
    steps = healing["distilled"].get("steps", {"tokens": 0})
    assert healing["distilled"]["tokens"] + steps["tokens"] == 4096
    assert comes_nearer(healing)
    assert not list(Path().glob("*.unfinished*"))


def test_the_plan_says_what_the_closed_form_alone_would_leave(plan: str, tiny_folder: Path, run: Run) -> None:
    """As a run without distillation says; and the user is told where that is better."""
    common = ("heal", tiny_folder, "--plan", plan, *FEW[:4], "--dtype", "float32", "--json")
    solved = json.loads(run(*common, "--heal", "solve", "-o", "solved").stdout)["healing"]["sources"]
    result = run(*common, "--distill-tokens", 4096, "-o", "distilled")
    healing = json.loads(result.stdout)["healing"]
    alone = healing["distilled"]["solved"]
    assert alone == pytest.approx([source["healed"] for source in solved], rel=1e-5)
    worse = sum(source["healed"] > loss for source, loss in zip(healing["sources"], alone, strict=True))
    assert result.stderr.count("the closed form alone left perplexity") == worse


def test_from_prune_with_a_folder_of_fused_matrices(plan: str, run: Run, tmp_path: Path) -> None:
    folder = make_variant("phi3", tmp_path / "m")
    result = run("prune", folder, "--plan", plan, "--heal", "distill", "-o", "out", *FEW, "--json")
    assert result.exit_code == 0, result.output
    assert comes_nearer(json.loads(result.stdout)["healing"])
    assert transformers_model(Path("out")).config.num_hidden_layers == 4


def test_a_family_that_norms_what_a_block_adds_is_only_distilled(plan: str, run: Run, tmp_path: Path) -> None:
    folder = make_variant("olmo2", tmp_path / "m")
    result = run("heal", folder, "--plan", plan, "-o", "out", *FEW, "--json")
    assert result.exit_code == 0, result.output
    healing = json.loads(result.stdout)["healing"]
    assert healing["blocks"] == []
    assert comes_nearer(healing)


@pytest.mark.parametrize("command", [("heal",), ("prune", "--heal", "distill")])
def test_an_unfinished_distillation_is_not_lost(
    command: tuple[str, ...], plan: str, tiny_gguf: Path, run: Run
) -> None:
    Path("out.gguf.unfinished.npz").write_bytes(b"precious")
    words = (*command, tiny_gguf, "--plan", plan, "-o", "out.gguf", *FEW)
    refused = run(*words)
    assert refused.exit_code == 1
    assert "out.gguf.unfinished.npz holds a distillation that did not finish" in refused.stderr
    damaged = run(*words, "--resume")
    assert damaged.exit_code == 1
    assert "does not hold a state of this distillation" in damaged.stderr
    assert Path("out.gguf.unfinished.npz").read_bytes() == b"precious"
    assert run(*words, "--force").exit_code == 0


def test_too_little_memory_is_said_before_the_slow_work(plan: str, tiny_gguf: Path, run: Run) -> None:
    words = ("--plan", plan, "-o", "out.gguf", *FEW, "--memory", "1KiB")
    refused = run("heal", tiny_gguf, *words)
    assert refused.exit_code == 1
    assert "too little for distillation" in refused.stderr


@pytest.mark.usefixtures("plan")
def test_without_memory_a_search_is_healed_in_closed_form(
    tiny_gguf: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_little(*_: object) -> None:
        raise TinyslebError("1 KiB of memory is too little for distillation")

    monkeypatch.setattr(heal_run, "plan_distilling_memory", too_little)
    words = ("prune", tiny_gguf, "--remove", 1, "--tokens", "t.npy", "--exact", "--heal-tokens", 2000)
    result = run(*words, "-o", "out.gguf")
    assert result.exit_code == 0, result.output
    assert "not distilled: 1 KiB of memory is too little for distillation" in result.stderr
    assert "distilled" not in json.loads(Path("out.plan.json").read_text())["healing"]
    assert run(*words, "-o", "more.gguf", "--minutes", 1).exit_code == 1


def test_minutes_end_it(plan: str, tiny_gguf: Path, run: Run) -> None:
    words = ("--tokens", "t.npy", "--heal-tokens", 2000, "--minutes", 0.02, "--json")
    result = run("heal", tiny_gguf, "--plan", plan, "-o", "out.gguf", *words)
    assert result.exit_code == 0, result.output
    assert 0 < json.loads(result.stdout)["healing"]["distilled"]["tokens"] < 10**6
