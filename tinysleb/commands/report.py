"""`tinysleb report`: a plan as a page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tinysleb.commands.console import print_json, print_line
from tinysleb.commands.plans import plan_of
from tinysleb.commands.report_compare import read_comparison
from tinysleb.commands.report_page import report_html
from tinysleb.errors import TinyslebError
from tinysleb.formats.files import refuse_existing, replaced_file
from tinysleb.formats.output_lock import sole_writer


@dataclass(frozen=True)
class ReportOptions:
    """The options of `report`. `compare`: what `compare --json` printed."""

    plan: Path
    output: Path
    compare: Path | None
    force: bool
    as_json: bool


def report(options: ReportOptions) -> None:
    """Write the page, and print where."""
    plan = plan_of(options.plan)
    compared = None if options.compare is None else read_comparison(options.compare)
    inputs = (options.plan,) if options.compare is None else (options.plan, options.compare)
    with sole_writer(options.output):
        refuse_existing(options.output, options.force, *inputs)
        try:
            page = report_html(plan, compared)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise TinyslebError(
                f"{options.plan}: `healing` is not as tinysleb writes it ({error!r})"
            ) from error
        with replaced_file(options.output) as temporary:
            temporary.write_text(page, encoding="utf-8")
    if options.as_json:
        print_json({"output": str(options.output), "blocks": plan.blocks, "removed": list(plan.removed)})
    else:
        print_line(str(options.output))
