"""Puts options that many commands share in the place of a command's first parameter.

Typer reads a command's options from its signature; here the signature is put together. Called by `connection.py` (the
options that lead to a server) and `settings_options.py` (the settings).
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

import typer

__all__ = ["option", "with_options"]


def option(name: str, annotation: Any, default: object, *declarations: str, **described: Any) -> inspect.Parameter:
    """One option, for `with_options`."""
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[annotation, typer.Option(*declarations, **described)],
    )


def with_options(
    command: Callable[..., None],
    options: Iterable[inspect.Parameter],
    run: Callable[[Callable[..., None], Mapping[str, Any]], None],
) -> Callable[..., None]:
    """`command` as typer shall see it: its own parameters but the first, and `options` after them.

    `run` is called with the command, all arguments of its own already bound, and with the values of `options`; it makes
    the first argument from these and calls.
    """
    shared = tuple(options)
    names = {parameter.name for parameter in shared}

    @functools.wraps(command)
    def outer(**arguments: Any) -> None:
        own = {name: value for name, value in arguments.items() if name not in names}
        run(functools.partial(_call, command, own), {name: arguments[name] for name in arguments if name in names})

    _, *own_parameters = inspect.signature(command).parameters.values()
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in (*own_parameters, *shared)]
    outer.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    outer.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return outer


def _call(command: Callable[..., None], own: Mapping[str, Any], first: object) -> None:
    command(first, **own)
