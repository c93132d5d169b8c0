"""The settings as options: `serve --help`, the offline commands' options and docs/settings.md from one model.

A command decorated with `takes_settings` gets a checked `Settings`; what is wrong with an option or a variable is said in
a sentence that names it. A secret setting's value is never repeated. Design section 9.
"""

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Concatenate, Final, Literal, ParamSpec, Union, get_args, get_origin

import typer
from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from doorward_server.cli.failure import fail, quoted
from doorward_server.cli.signatures import with_options
from doorward_server.settings import Settings

__all__ = ["SettingOption", "parameters_of", "read_settings", "setting_options", "takes_settings"]

P = ParamSpec("P")

_ENV_PREFIX: Final = "DOORWARD_"
_KINDS: Final = {bool: "BOOLEAN", int: "INTEGER", float: "NUMBER", Path: "PATH", str: "TEXT", SecretStr: "TEXT"}


@dataclass(frozen=True, slots=True)
class SettingOption:
    """One setting as people see it. `kind`: what is written; `bounds`: which numbers; `default`: None where there is none."""

    name: str
    kind: str
    bounds: str
    default: str | None
    meaning: str
    is_flag: bool
    is_secret: bool

    @property
    def flag(self) -> str:
        """As an option."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def variable(self) -> str:
        """As an environment variable."""
        return f"{_ENV_PREFIX}{self.name.upper()}"

    @property
    def help(self) -> str:
        """For `--help`: meaning, variable, default, bounds."""
        facts = [f"env var: {self.variable}"]
        if self.default is not None:
            facts.append(f"default: {self.default}")
        if self.bounds:
            facts.append(self.bounds)
        warning = (
            " Arguments stand in process lists: the variable keeps a password out of them." if self.is_secret else ""
        )
        return f"{self.meaning}{warning}  [{'; '.join(facts)}]"


def setting_options() -> tuple[SettingOption, ...]:
    """Every setting, in the model's order."""
    return tuple(_described(name, field) for name, field in Settings.model_fields.items())


def takes_settings(
    *names: str, filled_in: Mapping[str, object] | None = None
) -> Callable[[Callable[Concatenate[Settings, P], None]], Callable[..., None]]:
    """Adds the settings with these names (none: all) to a command's options, and hands it the `Settings` in their place.

    `filled_in` takes the place of what neither an option nor a variable says.
    """
    chosen = tuple(option for option in setting_options() if not names or option.name in names)

    def decorate(command: Callable[Concatenate[Settings, P], None]) -> Callable[..., None]:
        def run(bound: Callable[..., None], given: Mapping[str, Any]) -> None:
            bound(read_settings(given, filled_in or {}))

        return with_options(command, [_parameter(option) for option in chosen], run)

    return decorate


def parameters_of(*names: str) -> tuple[inspect.Parameter, ...]:
    """The settings with these names as options, for a command that may also work without them."""
    return tuple(_parameter(option) for option in setting_options() if option.name in names)


def read_settings(given: Mapping[str, object], filled_in: Mapping[str, object]) -> Settings:
    """The settings: options over variables over `filled_in` over defaults.

    Raises:
        typer.Exit: something is wrong; everything that is was said.
    """
    known = {option.name: option for option in setting_options()}
    arguments = {name: value for name, value in given.items() if value is not None}
    for name, value in filled_in.items():
        if name not in arguments and not os.environ.get(known[name].variable):
            arguments[name] = value
    try:
        settings = Settings(**arguments)  # type: ignore[arg-type]
    except ValidationError as error:
        problems = [_sentence(problem, arguments, known) for problem in error.errors(include_url=False)]
        fail("\n  ".join(problems if len(problems) == 1 else ["several settings are wrong:", *problems]))
    return settings


def _described(name: str, field: FieldInfo) -> SettingOption:
    kinds = [kind for kind in _members(field.annotation) if kind is not NoneType]
    choices = get_args(kinds[0]) if get_origin(kinds[0]) is Literal else ()
    default = field.default
    if isinstance(default, bool):
        shown: str | None = "on" if default else "off"
    else:
        shown = None if default is None or isinstance(default, SecretStr) else _text(default)
    return SettingOption(
        name=name,
        kind="|".join(choices) if choices else _KINDS.get(kinds[0], "TEXT"),
        bounds=_bounds(field),
        default=shown,
        meaning=field.description or "",
        is_flag=kinds == [bool],
        is_secret=SecretStr in kinds,
    )


def _text(default: object) -> str:
    return _plain(default) if isinstance(default, int | float) else f"{default}"


def _members(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in {Union, UnionType} else (annotation,)


def _bounds(field: FieldInfo) -> str:
    least = [item.ge for item in field.metadata if hasattr(item, "ge")]
    most = [item.le for item in field.metadata if hasattr(item, "le")]
    return f"{_plain(least[0])} to {_plain(most[0])}" if least and most else ""


def _plain(number: float) -> str:
    return f"{number:.0f}" if number == int(number) else f"{number}"


def _parameter(option: SettingOption) -> inspect.Parameter:
    """All but flags are texts here: the model says what a value means, and what is wrong with it."""
    if option.is_flag:
        declaration = typer.Option(f"{option.flag}/--no-{option.flag[2:]}", help=option.help, show_default=False)
        annotation: Any = Annotated[bool | None, declaration]
    else:
        declaration = typer.Option(option.flag, metavar=option.kind, help=option.help, show_default=False)
        annotation = Annotated[str | None, declaration]
    return inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _sentence(problem: ErrorDetails, arguments: Mapping[str, object], known: Mapping[str, SettingOption]) -> str:
    message = problem["msg"].removeprefix("Value error, ").replace("Input should", "should", 1)
    if problem["loc"]:
        name = str(problem["loc"][0])
    else:  # of several settings together: the model names the one to change first
        named, separator, rest = message.partition(": ")
        name, message = (named, rest) if separator and named in known else ("", message)
    if name not in known:
        return message
    option = known[name]
    is_variable = name not in arguments and any(key.upper() == option.variable for key in os.environ)
    where = option.variable if is_variable else option.flag
    given = problem.get("input")
    if not problem["loc"] or option.is_secret or not isinstance(given, str | int | float):
        return f"{where}: {message}"
    return f"{where}: {message}; {quoted(str(given))} was given"
