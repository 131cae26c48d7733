"""`digits predict`, `read`, `score` and `traffic`: predictions for files and test digits."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from digits.settings import load_settings
from ops.commands.options import CurrentSource, Seed
from ops.flow_runs import run_flow

if TYPE_CHECKING:
    from models.model_store import VerifiedModel


def predict(
    files: list[Path],
    direct: Annotated[bool, typer.Option("--direct", help="Load the champion, without the endpoint.")] = False,
) -> None:
    """Classify image files."""
    from models.connections import Platform
    from ops import endpoint

    platform = Platform()
    model = platform.models.fetch() if direct else None
    client = endpoint.open_client(platform.settings)

    def describe(file: bytes) -> str:
        upload = {"file": file}
        answer = _classify(model, file) if model else endpoint.call(client, "POST", "/classify_file", files=upload)
        doubt = "" if answer["is_digit"] else ", no digit"
        return f"{answer['digit']} ({answer['probability']:.1%}, digits v{answer['model_version']}){doubt}"

    _print_for_each(files, describe)


def read(
    files: list[Path],
    length: Annotated[int | None, typer.Option(min=1, max=100, help="Number of digits in each line.")] = None,
    pattern: Annotated[
        str | None,
        typer.Option(help="Regular expression of digits and the separators . , - / that each line matches as a whole."),
    ] = None,
) -> None:
    """Read whole numbers from pictures, line by line."""
    from ops import endpoint

    client = endpoint.open_client(load_settings())
    options = {name: value for name, value in (("length", length), ("pattern", pattern)) if value is not None}

    def describe(file: bytes) -> str:
        answer = endpoint.call(client, "POST", "/read", files={"file": file}, params=options)
        lines = [
            f"{line['text']} ({line['confidence']:.1%}{', uncertain' if line['uncertain'] else ''})"
            for line in answer["lines"]
        ]
        return "; ".join(lines) + f", digits v{answer['model_version']}"

    _print_for_each(files, describe)


def score(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Kaggle `test.csv`, `test.csv.gz`, or a .parquet file.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="`submission.csv`, or a .parquet file.")],
) -> None:
    """Classify every row of a file with the champion; invalid rows go to OUT's `.rejected.csv` with the reason."""
    if not source.is_file():
        raise ValueError(f"there is no file {source}; give a Kaggle test.csv, test.csv.gz or a .parquet")
    if not target.absolute().parent.is_dir():
        raise ValueError(f"there is no folder {target.absolute().parent} to write {target.name} into; make it first")
    raise SystemExit(0 if run_flow("score", source, target).answered else 1)


def traffic(
    n: Annotated[int, typer.Option("-n", min=1, help="Number of requests.")] = 200,
    perturbation: Annotated[
        str, typer.Option(help="plain, shift, rotate, thicken, noise, blur …; an unknown name lists all.")
    ] = "plain",
    amount: Annotated[float | None, typer.Option(help="Strength in px, degrees, grey levels or as a factor.")] = None,
    labels: Annotated[float, typer.Option(min=0, max=1, help="Share of the predictions that get feedback.")] = 0.0,
    route: Annotated[
        Literal["classify", "classify_file"], typer.Option(help="Send numbers, or PNG files of 28 x 28 pixels.")
    ] = "classify",
    clients: Annotated[int, typer.Option(min=0, help="Spread over so many values of X-Client-ID; 0: none.")] = 0,
    data: CurrentSource = None,
    seed: Seed = 0,
) -> None:
    """Send real test digits, unchanged or perturbed, to the endpoint."""
    from ops import traffic

    settings = load_settings()
    test = traffic.perturb(traffic.test_images(data, settings), perturbation, amount)
    print(traffic.send(settings, test, n, seed, labels, route, clients))


def _print_for_each(files: list[Path], describe: Callable[[bytes], str]) -> None:
    """Print a line about each file; exit with 1 where one cannot be read or is refused."""
    failed = False
    for file in files:
        try:
            print(f"{file}: {describe(file.read_bytes())}")
        except (ValueError, FileNotFoundError, IsADirectoryError, PermissionError) as error:
            failed = True
            print(f"{file}: {error.strerror if isinstance(error, OSError) else error}")
    raise SystemExit(1 if failed else 0)


def _classify(model: "VerifiedModel", file: bytes) -> dict[str, Any]:
    """The answer of a model in this process, which logs nothing."""
    from digits.pictures import rectification

    (probabilities,), no_digit = model.predict_with_rejection(rectification.decode(file)[None])
    digit, is_digit = int(probabilities.argmax()), no_digit is None or not no_digit[0]
    return {
        "digit": digit,
        "probability": probabilities[digit],
        "is_digit": is_digit,
        "model_version": model.version,
    }
