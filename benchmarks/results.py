"""What pruning costs and brings, beside its peers: the page docs/results.md and its picture, by one command.

    python -m benchmarks.results TEXT MODEL.gguf [--ways …] [--blocks 3 6 9] [--distilled 6]

The model is cut in every way by as many blocks, or by what saves as many bytes for a token; some are healed
in closed form, and distilled; llama.cpp makes the original in smaller types. All are compared with `tinysleb
compare`: on TEXT, which nothing was fitted to, on windows of the given text (Python's documentation) that
healing holds back, in twenty answers, and in llama.cpp's speed. What is in WORK already is not made again, so
that it can go on after an interruption; measuring is one run. What was measured is kept as JSON in a folder
beside the page, docs/results, and the page shows every model that is there. Needs the extras `llamacpp` and
`plot`, hours, and a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.healing import replace_me
from tinysleb.checkpoint.open_model import open_model
from tinysleb.checkpoint.weights import Shortened
from tinysleb.compute.compute import compute_on
from tinysleb.export.writers import write
from tinysleb.heal.healed_weights import Healed, HealedTensors, unrounded
from tinysleb.heal.text import HealingText, text_sources
from tinysleb.measure.quants import quantize
from tinysleb.plan import plan_from_json
from tinysleb.search.cost import Costs, generation_costs
from tinysleb.search.cuts import CONTEXT

SEARCHES: Mapping[str, Sequence[str]] = {
    "SLEB": ("--cut", "block"),
    "half blocks": ("--cut", "half"),
    "attention": ("--cut", "attention"),
    "any sublayer": ("--cut", "any"),
    "block influence": ("--metric", "block-influence"),
    "last blocks": ("--metric", "last"),
    "random blocks": ("--metric", "random"),
    "a run of blocks": ("--metric", "cosine"),
}
"""What is cut, and the options of `prune` that find it. The search for half blocks exchanges cuts at its end,
and so is made for each size."""
BY_BYTES = ("attention", "any sublayer")
"""Cuts that go on until they save what so many blocks do."""
HEALED = ("SLEB", "half blocks", "attention", "any sublayer")
DISTILLED = ("SLEB", "half blocks", "attention")
REPLACED = "a run of blocks"
"""What ReplaceMe (arXiv 2505.02819) chooses, and puts a linear map in place of."""
TYPES = ("Q3_K_M", "Q2_K")
WINDOWS, LENGTH = 8, 1024
FOUND = "bytes", "perplexity", "mean_kld", "same_top", "writing", "speed"
"""Of what `compare` finds, that is kept."""
COLUMNS = (
    "method", "blocks", "MB", "perplexity", "given", "KLD", "same top", "reverse KLD", "agrees", "repeated",
    "ended", "prompt", "generation",
)  # fmt: skip
SMALLER = "original in smaller types"
HIGHEST = 2.5
"""Times the original's perplexity, that the picture shows: what is above is in the table."""
AXES = {
    "prompt": "prompt, tokens/s",
    "generation": "generation, tokens/s",
    "bytes": "size, MB",
}


@dataclass(frozen=True)
class Variant:
    """A model that was made: by which method, and how much of the original is left out, in blocks."""

    file: str
    method: str
    blocks: int | None


@dataclass(frozen=True)
class Sizes:
    """Which of `SEARCHES` cut, by how many blocks; after which of these to distil, and on how many tokens."""

    ways: Sequence[str]
    blocks: Sequence[int]
    distilled: Sequence[int]
    tokens: int


class Maker:
    """Makes all variants of a model in a folder."""

    def __init__(self, model: Path, folder: Path, sizes: Sizes) -> None:
        self.model, self.folder, self.blocks = model.resolve(), folder.resolve(), sizes.blocks
        self.sizes = sizes
        folder.mkdir(parents=True, exist_ok=True)
        self.weights = open_model(self.model)
        self.costs: Costs = generation_costs(self.weights, CONTEXT)

    def all(self) -> Iterator[Variant]:
        """One after the other; the quick ones first."""
        for kind in TYPES:
            yield self.quant(kind)
        for method in self.sizes.ways:
            for count in self.blocks:
                plan = self.plan(method, count)
                if method == REPLACED:
                    yield self.replaced(plan, count)
                    continue
                yield self.pruned(method, plan, count)
                if method in HEALED:
                    yield self.healed(f"{method}, healed", plan, count, "--heal", "solve")
        for method in (way for way in self.sizes.ways if way in DISTILLED):
            for count in self.sizes.distilled:
                words = ("--distill-tokens", str(self.sizes.tokens), "--resume")
                yield self.healed(f"{method}, distilled", self.plan(method, count), count, *words)

    def path(self, method: str, count: int) -> Path:
        """Where a variant goes."""
        return self.folder / f"{method.replace(', ', '-').replace(' ', '-')}-{count}.gguf"

    def plan(self, method: str, count: int) -> Path:
        """What a method leaves out, as a plan by hand."""
        path = self.folder / f"{method.replace(' ', '-')}-{count}.json"
        if path.exists():
            return path
        most = count if method == "half blocks" else max(self.blocks)
        found = self.folder / f"search-{method.replace(' ', '-')}-{most}.gguf"
        if not found.exists():
            self.run(
                "prune",
                self.model,
                "-o",
                found,
                *SEARCHES[method],
                *self.until(method, most),
                "--heal",
                "none",
            )
        made = plan_from_json(json.loads(found.with_suffix(".plan.json").read_text()), found)
        saved = count * self.costs.block * (1 - 1e-6)
        enough = (n for n in range(1, len(made.cuts) + 1) if self.costs.saved(made.cuts[:n]) >= saved)
        cuts = list(made.removed)[: next(enough, len(made.cuts))]
        path.write_text(json.dumps({"blocks": made.blocks, "removed": cuts}))
        return path

    def until(self, method: str, count: int) -> Sequence[str]:
        """When a search stops."""
        if method not in BY_BYTES:
            return "--remove", str(count)
        left = self.costs.total - count * self.costs.block
        return "--speedup", f"{self.costs.total / left:.4f}"

    def pruned(self, method: str, plan: Path, count: int) -> Variant:
        path = self.path(method, count)
        if not path.exists():
            self.run("prune", self.model, "--plan", plan, "-o", path)
        return Variant(path.name, method, count)

    def healed(self, method: str, plan: Path, count: int, *words: str) -> Variant:
        path = self.path(method, count)
        if not path.exists():
            self.run("heal", self.model, "--plan", plan, "-o", path, *words)
        return Variant(path.name, method, count)

    def replaced(self, plan: Path, count: int) -> Variant:
        """ReplaceMe's linear maps, fitted on what the closed form is fitted on."""
        path = self.path("ReplaceMe", count)
        if not path.exists():
            kept = plan_from_json(json.loads(plan.read_text()), plan).kept
            compute, folder = compute_on(), self.folder / "tensors"
            folder.mkdir(exist_ok=True)
            tensors = HealedTensors(folder)
            sources = text_sources(self.weights, HealingText([], None, 32768, 0, 0))
            windows = torch.cat([source.fit for source in sources])
            source = unrounded(self.weights)
            replace_me(
                source,
                [pair.attention for pair in kept if pair.attention is not None],
                windows,
                compute,
                tensors,
            )
            write(Healed(Shortened(self.weights, kept), tensors), path)
        return Variant(path.name, "ReplaceMe", count)

    def quant(self, kind: str) -> Variant:
        path = self.folder / f"{kind}.gguf"
        if not path.exists():
            quantize(self.model, path, kind, torch.get_num_threads())
        return Variant(path.name, f"original in {kind}", None)

    def run(self, *words: object) -> str:
        """A command of tinysleb, in the folder."""
        command = [str(Path(sys.executable).with_name("tinysleb")), *map(str, words)]
        print("$", shlex.join(["tinysleb", *command[1:]]), flush=True)
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=self.folder).stdout


@dataclass(frozen=True)
class Row:
    """What was measured of a variant: by `compare`, and its perplexity on the given text."""

    variant: Variant
    found: Mapping[str, Any]
    given: float

    def at(self, axis: str) -> float:
        """Its place on an axis of the picture."""
        if axis == "bytes":
            return float(self.found["bytes"]) / 1e6
        return float(self.found["speed"][axis]["median"])


@dataclass(frozen=True)
class Measured:
    """All variants of a model, the original first, and how and by what they were measured."""

    name: str
    command: str
    machine: str
    rows: Sequence[Row]


def measure(maker: Maker, text: Path, command: str) -> Measured:
    """All variants, in one run."""
    variants = [Variant(maker.model.name, "original", 0), *maker.all()]
    documentation, *_ = text_sources(maker.weights, HealingText([], None, 32768, 16384, 0))
    np.save(maker.folder / "given.npy", documentation.held_back.numpy().astype(np.int32))
    files = [str(maker.model), *(each.file for each in variants[1:])]
    windows = ("--windows", WINDOWS, "--window-length", LENGTH)
    on_text = json.loads(
        maker.run("compare", *files, "--text", text.resolve(), *windows, "--speed", "--json")
    )
    on_given = json.loads(maker.run("eval", *files, "--tokens", "given.npy", "--json"))
    rows = [
        Row(variant, {key: found[key] for key in FOUND}, given["perplexity"])
        for variant, found, given in zip(variants, on_text["models"], on_given["models"], strict=True)
    ]
    return Measured(maker.model.stem, command, machine(), rows)


def read_measured(folder: Path) -> list[Measured]:
    """Every model that was measured, the smallest first."""
    models = []
    for path in folder.glob("*.json"):
        known = json.loads(path.read_text(encoding="utf-8"))
        rows = [Row(Variant(**row["variant"]), row["found"], row["given"]) for row in known["rows"]]
        models.append(Measured(known["name"], known["command"], known["machine"], rows))
    return sorted(models, key=lambda model: model.rows[0].at("bytes"))


def page(models: Sequence[Measured], picture: Path) -> Iterator[str]:
    """The page, line by line."""
    yield "# Results\n"
    yield "What pruning costs and brings, beside its peers. The page is generated; no figure is set by hand."
    yield f"\n![Perplexity against speed and size, by method]({picture.name})\n"
    yield "Perplexity, KLD (divergence from the original) and same top token are of text that nothing was"
    yield "fitted to; given: the perplexity of windows of the given text that healing holds back. Reverse KLD"
    yield "(how far sixty drawn answers stray from the original), agrees (for how many tokens with it),"
    yield "repeated and ended are of what the models write: see [comparing.md](comparing.md). Tokens per"
    yield "second are llama.cpp's.\n"
    for model in models:
        yield f"## {model.name}\n"
        yield from table(model.rows)
        yield ""
        yield "| by KLD and | no other beats |\n|---|---|"
        for axis, title in AXES.items():
            yield from best(model.rows, axis, title)
        yield ""
        yield f"```console\n$ {model.command}\n```\n"
        yield f"{model.machine}.\n"


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Each variant in a line."""
    yield f"| {' | '.join(COLUMNS)} |"
    yield "|---" * len(COLUMNS) + "|"
    first = rows[0]
    for row in rows:
        cells = [
            row.variant.method,
            "" if row.variant.blocks is None else str(row.variant.blocks),
            f"{row.at('bytes'):.1f}",
            f"{row.found['perplexity']:.2f}",
            f"{row.given:.2f}",
            f"{row.found['mean_kld']:.3f}",
            f"{row.found['same_top']:.1%}",
            *written(row.found["writing"]),
            *(
                f"{row.at(axis):.0f} ({row.at(axis) / first.at(axis):.2f}x)"
                for axis in ("prompt", "generation")
            ),
        ]
        yield f"| {' | '.join(cells)} |"


def written(writing: Mapping[str, float] | None) -> Sequence[str]:
    """How a model writes; nothing where it could not be asked."""
    if writing is None:
        return "", "", "", ""
    return (
        f"{writing['reverse_kld']:.3f}",
        f"{writing['agreement']:.1f}",
        f"{writing['repeated']:.0%}",
        f"{writing['ended']:.0%}",
    )


def best(rows: Sequence[Row], axis: str, title: str) -> Iterator[str]:
    """Which variants no other beats in both: the divergence from the original, and a place on an axis."""
    sign = 1 if axis == "bytes" else -1
    places = [(row.found["mean_kld"], sign * row.at(axis)) for row in rows]
    named = [
        f"{row.variant.method}{f' ({row.variant.blocks})' if row.variant.blocks else ''}"
        for row, own in zip(rows, places, strict=True)
        if not any(other != own and other[0] <= own[0] and other[1] <= own[1] for other in places)
    ]
    yield f"| {title.split(',')[0]} | {'; '.join(named)} |"


def machine() -> str:
    """What computes, and with what, in words."""
    packages = ", ".join(f"{each} {version(each)}" for each in ("tinysleb", "torch", "gguf", "cyllama"))
    return f"{packages}, Python {platform.python_version()}, {torch.get_num_threads()} threads, {processor()}"


def processor() -> str:
    """What computes, in words."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def curve(variant: Variant) -> str:
    """What a variant's points are joined by."""
    return SMALLER if variant.blocks is None else variant.method


def draw(models: Sequence[Measured], path: Path) -> None:
    """Three panels for each model, perplexity against each axis; every method is a curve."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "tinysleb"
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(len(models), len(AXES), figsize=(15, 5 * len(models)), squeeze=False)
    methods = list(dict.fromkeys(curve(row.variant) for model in models for row in model.rows[1:]))
    for model, line in zip(models, panels, strict=True):
        rows = model.rows
        for (axis, title), panel in zip(AXES.items(), line, strict=True):
            for method in dict.fromkeys(curve(row.variant) for row in rows[1:]):
                number = methods.index(method)  # a method looks the same for every model
                points = [rows[0], *(row for row in rows[1:] if curve(row.variant) == method)]
                places = [row.at(axis) for row in points]
                ours = method.split(",")[0] in HEALED
                panel.plot(
                    places, [row.found["perplexity"] for row in points], "-" if ours else "--", marker=".",
                    label=method, color=f"C{number % 10}", linewidth=2 if number >= 10 else 1,
                )  # fmt: skip
            original = rows[0].found["perplexity"]
            panel.set(xlabel=title, ylabel="perplexity", title=model.name)
            panel.set_ylim(0.95 * original, HIGHEST * original)
    panels[0][-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--ways", nargs="+", choices=list(SEARCHES), default=list(SEARCHES))
    parser.add_argument("--blocks", type=int, nargs="+", default=[3, 6, 9])
    parser.add_argument("--distilled", type=int, nargs="*", default=[3, 6, 9])
    parser.add_argument("--distill-tokens", type=int, default=262144)
    parser.add_argument("--work", type=Path, default=Path("results"))
    parser.add_argument("--to", type=Path, default=Path("docs/results.md"))
    options = parser.parse_args()
    sizes = Sizes(options.ways, options.blocks, options.distilled, options.distill_tokens)
    sizes_given = ["--ways", *options.ways, "--blocks", *options.blocks, "--distilled", *options.distilled]
    sizes_given += ["--distill-tokens", options.distill_tokens]
    words = [options.text.name, options.model.name, *map(str, sizes_given)]
    command = shlex.join(["python", "-m", "benchmarks.results", *words])
    found = measure(Maker(options.model, options.work / options.model.stem, sizes), options.text, command)
    kept, picture = options.to.with_suffix(""), options.to.with_suffix(".svg")
    kept.mkdir(parents=True, exist_ok=True)
    (kept / f"{found.name}.json").write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")
    models = read_measured(kept)
    draw(models, picture)
    options.to.write_text("\n".join(page(models, picture)), encoding="utf-8")


if __name__ == "__main__":
    main()
