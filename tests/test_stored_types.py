"""`--type` of `prune` and `heal`, and what is said of types without packed kernels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from click.testing import Result

from exporting import agrees_with_llama_cpp
from reference import make_llama
from tinysleb.checkpoint.open_model import open_model
from tinysleb.checkpoint.weights import Weights
from tinysleb.commands import stored_types
from tinysleb.commands.stored_types import faster_type
from tinysleb.formats.gguf_file import read_gguf
from tinysleb.model.forward import forward

Run = Callable[..., Result]
TOKENS, OTHERS = torch.randint(3, 400, (2, 40, 32), generator=torch.Generator().manual_seed(5))
FEW = ("--tokens", "t.npy", "--heal-tokens", 1024, "--heal", "solve", "--dtype", "float32")


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A plan without block 3, and windows."""
    monkeypatch.chdir(tmp_path)
    np.save("t.npy", TOKENS.numpy().astype(np.int32))
    Path("plan-in.json").write_text(json.dumps({"blocks": 6, "removed": [3]}))
    return "plan-in.json"


def types_of(path: Path | str) -> dict[str, str]:
    return {name: tensor.type.name for name, tensor in read_gguf(Path(path)).tensors.items()}


def done(result: Result) -> Result:
    assert result.exit_code == 0, result.output
    return result


def divergence(model: Weights, other: Weights) -> float:
    """Mean KL on windows that healing has not seen."""
    expected, found = (forward(each, OTHERS[:16]).log_softmax(-1) for each in (model, other))
    return float((expected.exp() * (expected - found)).sum(-1).mean())


def test_without_healing_a_cut_is_stored_as_export_would(plan: str, tiny_gguf: Path, run: Run) -> None:
    done(run("prune", tiny_gguf, "--plan", plan, "-o", "cut.gguf"))
    done(run("export", "cut.gguf", "--gguf", "expected.gguf", "--type", "q4_0"))
    done(run("prune", tiny_gguf, "--plan", plan, "-o", "out.gguf", "--type", "q4_0"))
    expected, found = read_gguf(Path("expected.gguf")), read_gguf(Path("out.gguf"))
    assert found.values()["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q4_0
    assert types_of("out.gguf") == types_of("expected.gguf")
    for name in expected.tensors:
        np.testing.assert_array_equal(found.read_bytes(name), expected.read_bytes(name))


@pytest.mark.parametrize("type_", ["q5_0", "q5_1"])
def test_a_healed_model_in_another_type_is_nearer_than_one_encoded_afterwards(
    type_: str, plan: str, tiny_gguf: Path, run: Run
) -> None:
    """To the healed model in float32."""
    done(run("heal", tiny_gguf, "--plan", plan, "-o", "healed.gguf", *FEW))
    done(run("export", "healed.gguf", "--gguf", "after.gguf", "--type", type_))
    result = done(run("heal", tiny_gguf, "--plan", plan, "-o", "out.gguf", *FEW, "--type", type_))
    assert f"5 blocks stored as {type_.upper()}" in result.stderr
    assert types_of("out.gguf") == types_of("after.gguf")
    healed, after, found = (open_model(Path(f"{name}.gguf")) for name in ("healed", "after", "out"))
    assert divergence(healed, found) < 0.95 * divergence(healed, after)
    assert agrees_with_llama_cpp(Path("out.gguf"), 0.1)


def test_a_matrix_that_has_its_type_and_was_not_changed_stays(plan: str, tiny_gguf: Path, run: Run) -> None:
    done(run("export", tiny_gguf, "--gguf", "m.gguf", "--type", "q8_0"))
    done(run("heal", "m.gguf", "--plan", plan, "-o", "out.gguf", *FEW, "--type", "q8_0"))
    before, after = read_gguf(Path("m.gguf")), read_gguf(Path("out.gguf"))
    np.testing.assert_array_equal(
        after.read_bytes("blk.0.attn_q.weight"), before.read_bytes("blk.0.attn_q.weight")
    )
    assert set(types_of("out.gguf").values()) == {"Q8_0", "F32"}
    changed = after.read_bytes("blk.2.ffn_down.weight") != before.read_bytes("blk.2.ffn_down.weight")
    assert changed.any()


def test_distilled_in_another_type(plan: str, tiny_gguf: Path, run: Run) -> None:
    words = ("--tokens", "t.npy", "--heal-tokens", 1024, "--distill-tokens", 512, "--type", "q4_0")
    done(run("heal", tiny_gguf, "--plan", plan, "-o", "out.gguf", *words))
    assert read_gguf(Path("out.gguf")).values()["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q4_0
    assert set(types_of("out.gguf").values()) == {"Q4_0", "Q8_0", "F32"}


@pytest.mark.usefixtures("plan")
def test_fit_counts_the_size_in_that_type(tiny_gguf: Path, run: Run) -> None:
    words = ("prune", tiny_gguf, "--tokens", "t.npy", "--heal", "none", "--type", "q4_0")
    done(run(*words, "-o", "one.gguf", "--remove", 1))
    limit = Path("one.gguf").stat().st_size + 20_000  # the plan's size is only known at the end
    result = done(run(*words, "-o", "out.gguf", "--fit", limit, "--json"))
    assert len(json.loads(result.stdout)["removed"]) == 1
    assert Path("out.gguf").stat().st_size <= limit


def test_a_folder_keeps_its_types(plan: str, tiny_folder: Path, run: Run) -> None:
    for words in (("heal",), ("prune",)):
        result = run(*words, tiny_folder, "--plan", plan, "-o", "out", "--type", "q4_0")
        assert result.exit_code == 2
        assert "tinysleb export OUT --gguf --type q4_0" in result.stderr
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("type_", "width", "processor", "named"),
    [
        ("q4_1", 64, "x86_64", "q4_0"),
        ("q4_1", 256, "AMD64", "q4_k_m"),
        ("q5_k_m", 256, "x86_64", "q4_k_m"),
        ("q5_k_m", 256, "arm64", ""),
        ("q4_0", 64, "aarch64", ""),
        ("q2_k", 256, "x86_64", ""),
        ("q8_0", 64, "x86_64", ""),
        ("q4_1", 64, "sparc", ""),
    ],
)
def test_a_faster_type_is_named(
    type_: str,
    width: int,
    processor: str,
    named: str,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = make_llama(tmp_path / "m", hidden_size=width, intermediate_size=2 * width)
    done(run("export", folder, "--gguf", "m.gguf", "--type", type_, "--pre", "smollm"))
    monkeypatch.setattr(stored_types, "machine", lambda: processor)
    note = faster_type(open_model(Path("m.gguf")))
    assert note.endswith(f"with --type {named}, it generates faster") if named else note == ""


@pytest.mark.parametrize("type_", ["q4_1", "q4_0"])
def test_inspect_says_so(type_: str, tiny_gguf: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    done(run("export", tiny_gguf, "--gguf", "m.gguf", "--type", type_))
    monkeypatch.setattr(stored_types, "machine", lambda: "x86_64")
    assert ("packed kernels" in run("inspect", "m.gguf").stdout) is (type_ == "q4_1")


def test_the_summary_says_so(plan: str, tiny_gguf: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_types, "machine", lambda: "x86_64")
    result = done(run("prune", tiny_gguf, "--plan", plan, "-o", "out.gguf", "--type", "q4_1"))
    assert "none for Q4_1: with --type q4_0, it generates faster" in result.stderr
    result = done(run("prune", tiny_gguf, "--plan", plan, "--type", "q4_0"))
    assert Path("tiny-q4_0-sleb.gguf").is_file()
    assert "generates faster" not in result.stderr
