"""One call writes each kind of model as each kind of output, uncut or shortened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from reference import transformers_logits, transformers_model, with_metadata, without_blocks
from tinysleb.checkpoint.open_model import open_model
from tinysleb.checkpoint.weights import Shortened, Weights
from tinysleb.errors import TinyslebError
from tinysleb.export.writers import GGUF, HUGGINGFACE, check_writable, own_format, with_one_cut, write
from tinysleb.formats.gguf_file import read_gguf
from tinysleb.model.forward import forward
from tinysleb.plan import Plan, plan_from_json
from tinysleb.search.cuts import BLOCK

TOKENS = torch.randint(3, 400, (1, 40), generator=torch.Generator().manual_seed(3))
PLAN: Plan = plan_from_json({"blocks": 6, "removed": [3, 1]}, Path("plan.json"))


@pytest.fixture(params=["folder", "gguf"])
def source(request: pytest.FixtureRequest, tiny_folder: Path, tiny_gguf: Path) -> Path:
    return tiny_folder if request.param == "folder" else tiny_gguf


@pytest.mark.parametrize("out", ["out.gguf", "out"])
def test_a_shortened_model_is_written_as_either_kind(
    out: str, source: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    """The same model as transformers makes without the blocks, whatever it came from and is written as."""
    weights = open_model(source)
    pre = "smollm" if source == tiny_folder and out == "out.gguf" else None
    write(weights, tmp_path / out, PLAN, pre=pre)
    expected = transformers_logits(without_blocks(transformers_model(tiny_folder), [1, 3]), TOKENS)
    assert (forward(open_model(tmp_path / out), TOKENS) - expected).abs().max() <= 1e-4
    beside = tmp_path / ("out.plan.json" if out == "out.gguf" else "out/plan.json")
    assert json.loads(beside.read_text())["removed"] == [3, 1]
    assert own_format(open_model(tmp_path / out)) == (GGUF if out == "out.gguf" else HUGGINGFACE)


def test_a_plan_is_recorded_only_if_it_was_applied(tiny_gguf: Path, tmp_path: Path) -> None:
    shorter = Shortened(open_model(tiny_gguf), PLAN.kept)
    write(shorter, tmp_path / "a.gguf", PLAN)
    assert json.loads(read_gguf(tmp_path / "a.gguf").values()["tinysleb.plan"])["blocks"] == 6
    other = plan_from_json({"blocks": 6, "removed": [2]}, Path("plan.json"))
    with pytest.raises(TinyslebError, match="keeps the blocks 0, 1, 3, 4, 5; the model to be written has 0,"):
        write(shorter, tmp_path / "b.gguf", other)
    larger = plan_from_json({"blocks": 9, "removed": [8]}, Path("plan.json"))
    with pytest.raises(TinyslebError, match="for a model of 9 blocks"):
        write(open_model(tiny_gguf), tmp_path / "b.gguf", larger)
    assert not (tmp_path / "b.gguf").exists()


def test_a_model_shortened_without_a_plan_says_what_it_lacks(source: Path, tmp_path: Path) -> None:
    write(Shortened(open_model(source), PLAN.kept), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "plan.json").read_text())["removed"] == [1, 3]
    assert "removed the blocks 1, 3" in (tmp_path / "out" / "README.md").read_text()


def test_nothing_is_replaced_unasked(tiny_gguf: Path, tmp_path: Path) -> None:
    weights = open_model(tiny_gguf)
    (tmp_path / "a.plan.json").write_text("mine")
    with pytest.raises(TinyslebError, match=r"a\.plan\.json exists already"):
        write(weights, tmp_path / "a.gguf", PLAN)
    write(weights, tmp_path / "a.gguf", PLAN, force=True)
    with pytest.raises(TinyslebError, match="is the input itself"):
        write(weights, tiny_gguf, force=True)
    with pytest.raises(TinyslebError, match="is a file, but the output is a folder"):
        write(weights, tmp_path / "a.gguf", output_format=HUGGINGFACE, force=True)


def test_an_unknown_format_is_refused(tiny_gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(TinyslebError, match="cannot be written as 'onnx'"):
        write(open_model(tiny_gguf), tmp_path / "x", output_format="onnx")


@pytest.mark.parametrize("out", ["out.gguf", "out"])
def test_what_can_be_written_passes_the_check_before(out: str, source: Path, tmp_path: Path) -> None:
    pre = "smollm" if source.is_dir() and out == "out.gguf" else None
    check_writable(with_one_cut(open_model(source), BLOCK, range(6)), tmp_path / out, pre=pre)
    assert not list(tmp_path.iterdir())


def test_the_check_before_finds_what_the_writer_would(
    tiny_folder: Path, tiny_gguf: Path, tmp_path: Path
) -> None:
    """Each with the same words."""
    merges = {"tokenizer.ggml.merges": None}
    without_merges = open_model(with_metadata(tiny_gguf, tmp_path / "w.gguf", merges))
    cases: list[tuple[Weights, str, dict[str, Any]]] = [
        (open_model(tiny_folder), "a.gguf", {}),  # its way of splitting text is not known
        (open_model(tiny_folder), "a.gguf", {"pre": "smollm", "type_name": "q9_z"}),
        (open_model(tiny_gguf), "a.gguf", {"pre": "smollm"}),
        (open_model(tiny_gguf), "a.gguf", {"type_name": "q9_z"}),
        (open_model(tiny_gguf), "no/a.gguf", {}),
        (without_merges, "a.gguf", {}),
        (without_merges, "a.gguf", {"type_name": "q8_0"}),
        (without_merges, "a", {}),
    ]
    for weights, out, options in cases:
        said = []
        for what in (check_writable, write):
            with pytest.raises(TinyslebError) as raised:
                what(with_one_cut(weights, BLOCK, range(6)), tmp_path / out, **options)
            said.append(raised.value.one_line)
        assert said[0] == said[1]
    assert [path.name for path in tmp_path.iterdir()] == ["w.gguf"]


def test_the_check_before_a_search_keeps_other_inputs(tiny_gguf: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text("{}")
    with pytest.raises(TinyslebError, match="is the input itself"):
        check_writable(open_model(tiny_gguf), plan, PLAN, output_format=GGUF, force=True, inputs=(plan,))
