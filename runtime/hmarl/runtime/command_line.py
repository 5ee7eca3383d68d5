"""The one way in which hmarl's programs read their command line, explain themselves, report errors and end.

A program is a function with its options beside it::

    @command("hmarl-greet", argument("name", "whom to greet"), option("--times", "how often", integer(1), default=1))
    def greet(name: str, times: int) -> None:
        "Say hello."

    def main() -> NoReturn:
        sys.exit(run(greet))

Whatever goes wrong is one line on standard error, ``hmarl-greet: --times: got 'x', expected an integer of at least 1;
see hmarl-greet --help``, and one of the exit codes below.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from hmarl.runtime import __version__
from hmarl.runtime.errors import HmarlError, did_you_mean, printable
from hmarl.runtime.output import print_anything, quieten_grpc

if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType  # older releases of click know no arguments of its type

quieten_grpc()  # here, since programs import what uses gRPC right after this module

DEBUG_VARIABLE = "HMARL_DEBUG"
_ERRORS_ARE = "An error is one line on standard error; HMARL_DEBUG=1 puts its traceback before it."


class ExitCode(IntEnum):
    """How a program ends."""

    DONE = 0
    USAGE = 2
    BROKEN = 3
    FAILURE = 4
    INTERRUPTED = 130


_EXIT_CODES = (
    (ExitCode.DONE, "done"),
    (ExitCode.USAGE, "wrong usage or settings"),
    (ExitCode.BROKEN, "a bundle, run or checkpoint that is missing or damaged"),
    (ExitCode.FAILURE, "a failure while running"),
    (ExitCode.INTERRUPTED, "interrupted"),
)


# --- values ----------------------------------------------------------------------------------------------------------


class Kind(_ParamType):
    """What the text of a value may be.

    Args:
        name: stands for the value in ``--help``, in capitals.
        expected: what it may be, in words.
        read: the value from its text; raises ValueError where it is none.
        known: all names that it may be, to suggest the nearest.
    """

    def __init__(self, name: str, expected: str, read: Callable[[str], Any], known: Sequence[str] = ()) -> None:
        self.name = name
        self.expected = expected
        self._read = read
        self._known = known

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value; a default that is no text stays as it is."""
        if not isinstance(value, str):
            return value
        try:
            return self._read(value)
        except ValueError:
            raise click.BadParameter(
                f"got '{value}', expected {self.expected}{did_you_mean(value, self._known)}", ctx, param
            ) from None


def choice(*names: str) -> Kind:
    """One of these names."""

    def read(text: str) -> str:
        if text not in names:
            raise ValueError
        return text

    return Kind("|".join(names), f"one of {', '.join(names)}", read, names)


def integer(least: int | None = None) -> Kind:
    """An integer, of at least ``least``."""

    def read(text: str) -> int:
        value = int(text)
        if least is not None and value < least:
            raise ValueError
        return value

    return Kind("N", "an integer" if least is None else f"an integer of at least {least}", read)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError
    return value


class _Paths(Kind):
    """A path; of a repeatable option's variable, paths that are divided as in PATH."""

    envvar_list_splitter = os.pathsep


TEXT = Kind("TEXT", "a text", str)
PATH = Kind("PATH", "a path", Path)
PATHS = _Paths("PATH", "a path", Path)
POSITIVE = Kind("NUMBER", "a number above 0", _positive)


# --- parameters ------------------------------------------------------------------------------------------------------


class _Argument(click.Argument):
    """A positional argument that says in ``--help`` what it is."""

    def __init__(self, name: str, about: str, **settings: Any) -> None:
        self.about = about
        super().__init__([name], **settings)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        """What it is called, and what it is."""
        variable = f"  [env var: {self.envvar}]" if self.envvar else ""
        return str(self.metavar), self.about + variable


def argument(
    name: str, about: str, kind: Kind = TEXT, *, required: bool = True, many: bool = False, variable: bool = False
) -> click.Argument:
    """A positional argument.

    Args:
        name: of the function's parameter; in capitals it stands for the value.
        about: what it is.
        kind: what it may be.
        required: False gives None where there is none.
        many: any number of them, as a tuple.
        variable: whether the environment may set it, as HMARL_NAME.
    """
    shown = name.upper().replace("_", "-") + ("..." if many else "")
    return _Argument(
        name,
        about,
        type=kind,
        required=required,
        nargs=-1 if many else 1,
        metavar=shown if required else f"[{shown}]",
        envvar=f"HMARL_{name.upper()}" if variable else None,
    )


def option(
    name: str,
    about: str,
    kind: Kind = TEXT,
    *,
    default: Any = None,
    required: bool = False,
    many: bool = False,
    shown: str | None = None,
    parameter: str | None = None,
    variable: bool = False,
    bare: str | None = None,
) -> click.Option:
    """An option that takes a value.

    Args:
        name: with its dashes.
        about: what it is; ``--help`` adds the default and the variable.
        kind: what it may be.
        default: where it is not given.
        required: refuse to go on without it.
        many: may be repeated; gives a tuple.
        shown: stands for the value in ``--help``; by default the kind's name.
        parameter: of the function, where it is called otherwise.
        variable: whether the environment may set it, as HMARL_NAME: for what a service manager starts.
        bare: the value where the option is given without one; None: it must have one.
    """
    given: dict[str, Any] = {} if default is None else {"default": default}  # None, where said, is a value to click
    if bare is not None:
        given |= {"is_flag": False, "flag_value": bare}
    return click.Option(
        [name, *([] if parameter is None else [parameter])],
        help=about,
        type=kind,
        **given,
        show_default=default is not None,
        required=required,
        multiple=many,
        metavar=shown or kind.name,
        envvar=f"HMARL_{name.lstrip('-').upper().replace('-', '_')}" if variable else None,
        show_envvar=variable,
    )


def trust_option(*, variable: bool = False) -> click.Option:
    """``--trust``, of all programs that take bundles: a tuple of paths, for ``load_bundle``."""
    return option(
        "--trust",
        "take only a bundle signed by this public key, or with a certificate of this authority (PEM); repeatable",
        PATHS,
        many=True,
        shown="FILE",
        variable=variable,
    )


def flag(
    name: str, about: str, *, default: bool = False, parameter: str | None = None, variable: bool = False
) -> click.Option:
    """An option without a value.

    Args:
        name: ``--name``, or ``--name/--no-name``, which may be said both ways.
        about: what it is.
        default: where it is not said.
        parameter: of the function, where it is called otherwise.
        variable: whether the environment may set it, as HMARL_NAME=1: for what a service manager starts.
    """
    return click.Option(
        [name, *([] if parameter is None else [parameter])],
        help=about,
        is_flag=True,
        default=default,
        show_default="/" in name,
        envvar=f"HMARL_{name.partition('/')[0].lstrip('-').upper().replace('-', '_')}" if variable else None,
        show_envvar=variable,
    )


AS_JSON = flag("--json", "print a JSON object as the last line of standard output", parameter="as_json")


def _printing(name: str, about: str, text: Callable[[click.Context], str], *short: str) -> click.Option:
    """A flag that prints something and ends the program."""

    def callback(context: click.Context, parameter: click.Parameter, value: bool) -> None:
        if value and not context.resilient_parsing:
            with suppress(BrokenPipeError):
                print(text(context), flush=True)
            context.exit(ExitCode.DONE)

    return click.Option(
        [name, *short], help=about, is_flag=True, is_eager=True, expose_value=False, default=False, callback=callback
    )


# --- programs --------------------------------------------------------------------------------------------------------


_HYPHEN = "\N{NON-BREAKING HYPHEN}"


class _Help(click.HelpFormatter):
    """Breaks lines between words alone: what is to be typed is whole."""

    def write_text(self, text: str) -> None:
        """A paragraph."""
        super().write_text(text.replace("-", _HYPHEN))

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        """Names, and beside them what they are."""
        whole = [(name.replace("-", _HYPHEN), about.replace("-", _HYPHEN)) for name, about in rows]
        super().write_dl(whole, col_max, col_spacing)

    def getvalue(self) -> str:
        """All that was written."""
        return super().getvalue().replace(_HYPHEN, "-")


class _Context(click.Context):
    formatter_class = _Help


class Command(click.Command):
    """A program: a function, its parameters and its help."""

    context_class = _Context

    def __init__(
        self,
        name: str,
        callback: Callable[..., int | None],
        parameters: Sequence[click.Parameter],
        examples: Sequence[str],
        words: Mapping[str, Command],
    ) -> None:
        closing = [
            _printing("--version", "print the version of hmarl", lambda context: f"{context.info_name} {__version__}"),
            _printing("--help", "print this", lambda context: context.get_help().rstrip(), "-h"),
        ]
        super().__init__(
            name,
            callback=callback,
            params=[*parameters, *closing],
            help=callback.__doc__,
            add_help_option=False,
            context_settings={"allow_extra_args": True},  # told below, in our words
        )
        self._examples = tuple(examples)
        self.words = dict(words)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse arguments in excess."""
        rest = super().parse_args(ctx, args)
        if rest and not ctx.resilient_parsing:
            known = [param.metavar for param in self.params if isinstance(param, _Argument)]
            expected = f"{' '.join(map(str, known))} and options alone" if known else "options alone"
            raise click.UsageError(f"arguments: got '{' '.join(rest)}' in excess, expected {expected}", ctx)
        return rest

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Arguments, options, examples and exit codes."""
        for title, kind in (("Arguments", click.Argument), ("Options", click.Option)):
            found = [param.get_help_record(ctx) for param in self.params if isinstance(param, kind)]
            records = [record for record in found if record is not None]
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
        if self._examples:
            with formatter.section("Examples"):
                for example in self._examples:
                    formatter.write(f"{'':{formatter.current_indent}}{example}\n")
        if self.words:
            with formatter.section("Further commands"):
                formatter.write_dl(
                    [(f"{each.name} --help", each.get_short_help_str(200)) for each in self.words.values()]
                )
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(int(code)), meaning) for code, meaning in _EXIT_CODES])
        formatter.write_paragraph()
        formatter.write_text(_ERRORS_ARE)


def command(
    name: str, *parameters: click.Parameter, examples: Sequence[str] = (), words: Mapping[str, Command] | None = None
) -> Callable[[Callable[..., int | None]], Command]:
    """Make a function a program; its docstring is what ``--help`` says first.

    Args:
        name: of the program.
        parameters: see ``argument``, ``option`` and ``flag``; the function gets each by its name.
        examples: command lines, each of at most 76 characters.
        words: programs that a command line is for when it begins with one of these words. A file that is called so can
            still be an argument, as ``./word``.

    Returns:
        A decorator. The function returns the exit code, or None for 0.
    """
    return lambda function: Command(name, function, parameters, examples, words or {})


def _say(line: str) -> None:
    with suppress(OSError, ValueError, AttributeError):  # standard error is closed, or nothing reads it
        print(line, file=sys.stderr, flush=True)


def run(program: Command, arguments: Sequence[str] | None = None, say: Callable[[str], None] = _say) -> int:
    """Run a program to its end.

    Args:
        program: what ``command`` made.
        arguments: the command line without the program's name; ``sys.argv`` when None.
        say: told the line that reports an error, and the traceback where that is asked for.

    Returns:
        The exit code, see ``ExitCode``.
    """
    print_anything()
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = program.name or ""
    if words and words[0] in program.words:
        return run(program.words[words[0]], words[1:], say)
    try:
        with program.make_context(name, words) as context:
            return int(program.invoke(context) or ExitCode.DONE)
    except click.exceptions.Exit as end:
        return end.exit_code
    except SystemExit as error:
        message, code = _foreign_exit(error), int(ExitCode.FAILURE)
    except (KeyboardInterrupt, click.Abort):
        message, code = "interrupted", int(ExitCode.INTERRUPTED)
    except click.UsageError as error:
        message = f"{_wrong_usage(program, error)}{_namesake(name)}; see {name} --help"
        code = int(ExitCode.USAGE)
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE) == "1":
            say(traceback.format_exc().rstrip())
        message, code = _explained(error)
    # What others wrote, a server or a file, is shown to a terminal and not obeyed by it.
    say(f"{name}: {printable(' '.join(part.strip() for part in message.splitlines()))}")
    return code


# --- errors ----------------------------------------------------------------------------------------------------------


def at_most_one(**given: Any) -> None:
    """Refuse options that exclude one another.

    Args:
        given: the values by option, ``socket_dir=...`` for ``--socket-dir``; None or False is not given.

    Raises:
        UsageError: more than one was given.
    """
    names = ["--" + name.replace("_", "-") for name, value in given.items() if value not in (None, False)]
    if len(names) > 1:
        raise click.UsageError(f"{' and '.join(names)}: got both, expected at most one of them")


def _wrong_usage(program: Command, error: click.UsageError) -> str:
    """What is wrong with a command line: the option, what was got and what was expected."""
    parameters = {name: param for param in program.params for name in (*param.opts, *param.secondary_opts)}
    if isinstance(error, click.NoSuchOption):
        hint = did_you_mean(error.option_name, [name for name in parameters if name.startswith("-")])
        return f"{error.option_name}: got an unknown option, expected a known one{hint}"
    if isinstance(error, click.BadOptionUsage):
        param = parameters[error.option_name]
        needs = "got a value, expected none" if _is_flag(param) else f"got nothing, expected {_meaning(param)}"
        return f"{error.option_name}: {needs}"
    if isinstance(error, click.MissingParameter) and error.param is not None:
        return f"{_called(error.param)}: got nothing, expected {_meaning(error.param)}"
    if isinstance(error, click.BadParameter) and error.param is not None:
        return f"{_source(error.param, error.ctx)}: {error.message}"
    return error.format_message().rstrip(".")


def _namesake(name: str) -> str:
    """How to say a file that is called as the word by which a program is meant, where there is one."""
    _, space, word = name.partition(" ")
    return f"; if you mean what is called '{word}' here, write ./{word}" if space and os.path.exists(word) else ""


def _is_flag(param: click.Parameter) -> bool:
    return isinstance(param, click.Option) and param.is_flag


def _called(param: click.Parameter) -> str:
    """What users call a parameter."""
    return param.opts[0] if isinstance(param, click.Option) else str(param.metavar).strip("[].")


def _meaning(param: click.Parameter) -> str:
    about = param.about if isinstance(param, _Argument) else getattr(param, "help", None)
    return f"{str(param.metavar).strip('[]')} ({about})"


def _source(param: click.Parameter, ctx: click.Context | None) -> str:
    """The parameter, or the environment variable that its value came from."""
    if ctx is not None and param.name and ctx.get_parameter_source(param.name) is ParameterSource.ENVIRONMENT:
        return str(param.envvar)
    return _called(param)


def _foreign_exit(error: SystemExit) -> str:
    """Whose ``sys.exit`` it was; none of hmarl's programs calls it while it runs."""
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    return f"the environment called sys.exit({error.code!r}) ({frame.f_code.co_filename}:{line})"


def _explained(error: Exception) -> tuple[str, int]:
    """Message and exit code of an error; what was noted on its way (``add_note``) follows its own words."""
    message, code = _own_words(error)
    return "; ".join((message, *getattr(error, "__notes__", ()))), code


def _own_words(error: Exception) -> tuple[str, int]:
    if isinstance(error, HmarlError):
        return str(error), error.exit_code
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}", ExitCode.FAILURE
    return f"{type(error).__name__}: {error} ({DEBUG_VARIABLE}=1 shows where)", ExitCode.FAILURE
