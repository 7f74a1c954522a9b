"""How a command line is read, beyond what click does by itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import click

from tinysleb.commands.console import Failure
from tinysleb.commands.options import NONE, SOLVE, WAYS
from tinysleb.commands.running_out import what_ran_out
from tinysleb.commands.signals import exit_code
from tinysleb.errors import TinyslebError

Command = TypeVar("Command", bound=Callable[..., Any])


WORDS = "tinysleb.words"
"""Under this key, click's context has the words of the command line."""


class CommandGroup(click.Group):
    """Turns a `TinyslebError` into text, once."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Remember the command line as it was given."""
        ctx.meta[WORDS] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except TinyslebError as error:
            raise Failure(error) from error
        except (OSError, MemoryError, RuntimeError) as error:
            problem = what_ran_out(error)
            if problem is None:
                raise
            raise Failure(problem) from error
        except KeyboardInterrupt as interrupt:
            with suppress(OSError):  # the terminal may be gone
                click.echo("\nAborted!", err=True)
            raise click.exceptions.Exit(exit_code(interrupt)) from interrupt


def words_given() -> list[str]:
    """The words of the command line behind the program's name."""
    return list(click.get_current_context().meta[WORDS])


def options_given() -> dict[str, str]:
    """The options on the command line: parameter names, and the options as a user writes them."""
    context = click.get_current_context()
    declared = {parameter.name: parameter for parameter in context.command.params}
    return {
        name: max(declared[name].opts, key=len)
        for name in context.params
        if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT
    }


def shared(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


class HealingCommand(click.Command):
    """A command whose `--heal` may stand alone, for the closed form, and which knows `--no-heal`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Write both ways as `--heal` with its value."""
        given = [f"--heal={NONE}" if arg == "--no-heal" else arg for arg in args]
        for place, arg in enumerate(given):
            if arg == "--heal" and not any(following in WAYS for following in given[place + 1 : place + 2]):
                given[place] = f"--heal={SOLVE}"
        return super().parse_args(ctx, given)
