"""The command line `digits`: the list of its commands, and the handler that reports every error as one sentence."""

import errno
import gc
import logging
import os
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path

import typer
from pydantic import ValidationError

from digits import logs
from digits.errors import first_line
from digits.logs import LogFormat
from digits.settings import SECRETS, load_settings
from ops.commands import alerts, answers, evaluations, keys, local_platform, monitoring, training, versions

app = typer.Typer(
    help="Trains, promotes, serves and monitors handwritten-digit recognisers.",
    epilog="Settings are environment variables or lines in `.env`: docs/reference/index.md and .env.example list them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# In the order of the help text.
COMMANDS = (
    *(local_platform.up, local_platform.down, local_platform.status, local_platform.demo),
    *(local_platform.backup, local_platform.restore),
    *(training.ingest, training.train, training.retrain, training.sweep, training.replay, training.recipes),
    *(versions.promote, versions.approve, versions.rollback, versions.ledger, versions.leaderboard, versions.diff),
    versions.replay_traffic,
    *(
        answers.predict,
        answers.read,
        answers.score,
        answers.traffic,
        monitoring.monitor,
        monitoring.baseline,
        monitoring.audit,
    ),
)
for command in COMMANDS:
    app.command()(command)
app.add_typer(alerts.app, name="alert")
app.add_typer(keys.app, name="keys")
app.add_typer(evaluations.app, name="evaluations")


def main() -> None:
    """Run a command; an error ends it with one sentence on standard error and a non-zero exit code."""
    # Images, labels and passwords are for this user only.
    os.umask(0o077)
    log = logging.getLogger("digits")
    log.setLevel(logging.INFO)
    # Not the root logger, because Prefect's log lines go to its server.
    handler, log_format = logging.StreamHandler(), _log_format()
    if log_format == "json":
        handler.setFormatter(logs.formatter(log_format))
    log.addHandler(handler)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # A shell has background jobs ignore SIGINT; only nohup is to have an effect.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    # With the default threshold of 700 objects, garbage collection takes 8 % of a command that imports large libraries.
    gc.set_threshold(100_000, 50, 100)
    try:
        app()
    except KeyboardInterrupt:
        _complain("interrupted", log_format)
        raise SystemExit(130) from None
    # The outermost handler: a user sees a sentence, never a traceback.
    except Exception as error:
        _complain(_sentence(error), log_format)
        raise SystemExit(1) from None
    finally:
        # Only the commands that run flows have imported it, which takes 2 s.
        if terminal := sys.modules.get("flows.terminal"):
            terminal.exit_without_prefect()


def _log_format() -> LogFormat:
    """That of the settings; text where they are wrong, which the command reports."""
    with suppress(ValueError, OSError):
        return load_settings().log_format
    return "text"


def _complain(sentence: str, log_format: LogFormat) -> None:
    """Tell the user what went wrong."""
    if log_format == "json":
        logging.getLogger("digits").error("%s", sentence)
    else:
        sys.stderr.write(f"digits: {sentence}\n")


def _sentence(error: Exception) -> str:
    """What the user is told about an error; the traceback of an unexpected one goes to a file."""
    if isinstance(error, ValidationError):
        return _validation_sentence(error)
    if isinstance(error, OSError) and error.errno is not None:
        return _os_error_sentence(error)
    if isinstance(error, (ValueError, LookupError, RuntimeError, OSError)):
        return str(error) or type(error).__name__
    path = load_settings().home / "logs" / "traceback.log"
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(traceback.format_exception(error)))
    return f"{type(error).__name__}: {first_line(error)}; its traceback is in {path}"


def _validation_sentence(error: ValidationError) -> str:
    """The first field that pydantic refuses, with its value."""
    first = error.errors()[0]
    name = ".".join(map(str, first["loc"]))
    name = f"DIGITS_{name.upper()}" if error.title == "Settings" and name.islower() else name
    # The policies are settings, each of several fields.
    name = f"{error.title}: {name}" if error.title.startswith("DIGITS_") else name
    message: str = first["msg"]
    # The messages of our own validators quote the value already.
    own = message.removeprefix("Value error, ")
    is_secret = error.title == "Settings" and str(first["loc"][0]) in SECRETS
    return f"{name}: {own}" if own != message or is_secret else f"{name}: {message}, got {first['input']!r}"


def _os_error_sentence(error: OSError) -> str:
    """The file and the message of the operating system, with a recommendation where there is one."""
    home = load_settings().home
    path = str(error.filename or home)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{path}: {error.strerror}; make room there and run the command again"
    is_ours = Path(path).absolute().is_relative_to(home)
    return f"{path}: {error.strerror}" + ("; set DIGITS_HOME to a folder that can be written" if is_ours else "")
