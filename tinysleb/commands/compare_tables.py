"""What `tinysleb compare` prints for people: tables, and the texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from tinysleb.commands.compare_options import CompareOptions
from tinysleb.commands.compared import Compared, Texts, compared_json
from tinysleb.commands.console import print_json, print_line
from tinysleb.formats.logits_file import first_scored
from tinysleb.measure.choices import Accuracy
from tinysleb.measure.speed import GENERATED, PROMPT, Rate
from tinysleb.measure.writing import DRAWS, WRITTEN, Writing
from tinysleb.search.comparison import Comparison

Table = Sequence[Sequence[str]]

TEXT_COLUMNS = ("model", "perplexity", "ratio", "mean KLD", "median", "99 %", "same top", "RMS Δp")
WRITING_COLUMNS = ("model", "reverse KLD", "as the first for", "repeated", "ended", "right language")
ACCURACY_COLUMNS = ("model", "acc", "acc_norm")
SPEED_COLUMNS = (
    "model", "MB", "prompt", "generation", f"prompt of {PROMPT}", f"generation of {GENERATED}"
)  # fmt: skip


def print_compared(
    models: Sequence[Compared], texts: Texts | None, shape: tuple[int, ...], options: CompareOptions
) -> None:
    """Print all of it."""
    second_half = options.kl_divergence_base is not None
    if options.as_json:
        print_json(compared_json(models, texts, shape, second_half))
        return
    for heading, table in _tables(models, texts, shape, second_half):
        print_line(heading)
        if options.markdown:
            print_line("")
        for line in _markdown(table) if options.markdown else _aligned(table):
            print_line(line)
        print_line("")
    if options.show and texts is not None:
        for line in _shown([each.name for each in models], texts):
            print_line(line)


def _tables(
    models: Sequence[Compared], texts: Texts | None, shape: tuple[int, ...], second_half: bool
) -> Iterator[tuple[str, Table]]:
    """A heading and a table for each kind of measure."""
    names = [each.name for each in models]
    count, length = shape
    scored = f", the second half of each ({length - 1 - first_scored(length)})" if second_half else ""
    yield (
        f"Text: {count} windows of {length} tokens{scored}; KLD: divergence from the first model, in nats",
        _table(TEXT_COLUMNS, names, [_text_row(each.comparison) for each in models]),
    )
    if texts is not None:
        yield (
            f"Writing: {len(texts.prompts)} answers of at most {WRITTEN} tokens; "
            f"reverse KLD: of {DRAWS} drawn to each question",
            _table(WRITING_COLUMNS, names, map(_writing_row, texts.writing)),
        )
    for kind, first in models[0].accuracies.items():
        yield (
            f"{kind.replace('_', ' ').capitalize()}: {first.questions} questions",
            _table(ACCURACY_COLUMNS, names, [_accuracy_row(each.accuracies[kind]) for each in models]),
        )
    timed = any(each.speed is not None for each in models)
    yield (
        "Size and speed: what the work allows" + (", and tokens per second in llama.cpp" if timed else ""),
        _table(SPEED_COLUMNS if timed else SPEED_COLUMNS[:4], names, [_speed_row(e, timed) for e in models]),
    )


def _table(columns: Sequence[str], names: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    return [columns, *((name, *row) for name, row in zip(names, rows, strict=True))]


def _text_row(found: Comparison) -> Sequence[str]:
    return (
        f"{found.perplexity:.2f} ± {found.perplexity_error:.2f}",
        f"{found.ratio:.3f}",
        f"{found.mean_kld:.4f} ± {found.mean_kld_error:.4f}",
        f"{found.median_kld:.4f}",
        f"{found.kld_99:.3f}",
        f"{found.same_top:.1%}",
        f"{found.rms_dp:.1%}",
    )


def _writing_row(found: Writing) -> Sequence[str]:
    strays = f"{found.reverse_kld:.3f} ± {found.reverse_kld_error:.3f}"
    shares = (f"{share:.0%}" for share in (found.repeated, found.ended, found.language))
    return strays, f"{found.agreement:.1f} tokens", *shares


def _accuracy_row(found: Accuracy) -> Sequence[str]:
    return (f"{found.acc:.1%} ± {found.acc_error:.1%}", f"{found.acc_norm:.1%} ± {found.acc_norm_error:.1%}")


def _speed_row(model: Compared, timed: bool) -> Sequence[str]:
    row = f"{model.bytes / 1e6:.1f}", f"{model.ideal.prompt:.2f}x", f"{model.ideal.generation:.2f}x"
    if not timed:
        return row
    speed = model.speed
    return (*row, *(("", "") if speed is None else (_rate(speed.prompt), _rate(speed.generation))))


def _rate(found: Rate) -> str:
    return f"{found.median:.0f} ({found.least:.0f} to {found.most:.0f})"


def _shown(names: Sequence[str], texts: Texts) -> Iterator[str]:
    """What each model answers to each prompt: the likeliest, and one that is drawn."""
    for number, prompt in enumerate(texts.prompts):
        yield f"> {prompt.text}"
        for name, answers, drawn in zip(names, texts.answers, texts.drawn, strict=True):
            yield f"{name}: {answers[number].text.strip()}"
            yield f"{name}, drawn: {drawn[number].text.strip()}"
        yield ""


def _aligned(table: Table) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    ]


def _markdown(table: Table) -> list[str]:
    head, *rows = ["| " + " | ".join(row) + " |" for row in table]
    return [head, "|" + "---|" * len(table[0]), *rows]
