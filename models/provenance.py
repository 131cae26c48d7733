"""What decides the weights of a training, so that the same training is recognised and a different one explained."""

import ast
import hashlib
import json
import os
import platform
import re
import subprocess
from contextlib import suppress
from functools import cache
from importlib.metadata import version as installed
from pathlib import Path

from models import backend, training
from models.training import Recipe

ROOT = Path(__file__).parent.parent
LIBRARIES = ("keras", "tensorflow", "numpy", "onnx", "onnxruntime", "tf2onnx", "scikit-learn", "mlflow")


def inputs_hash(fingerprint: str, recipe: Recipe, module: Path = Path(training.__file__)) -> str:
    """A SHA-256 of all that decides the weights: the data set, the recipe, the libraries, and the code of the module that trains."""
    facts = f"{fingerprint} {recipe.model_dump_json()} {json.dumps(environment())}"
    return hashlib.sha256(f"{facts} {code_hash(module, ROOT)}".encode()).hexdigest()


@cache
def code_hash(module: Path, root: Path) -> str:
    """A SHA-256 of the code of a module and of all modules below `root` that it imports, directly or through others.

    Comments, docstrings and the descriptions of pydantic fields do not count.
    """
    trees: dict[Path, ast.Module] = {}
    waiting = [module]
    while waiting:
        path = waiting.pop()
        if path not in trees:
            trees[path] = ast.parse(path.read_bytes())
            files = [root.joinpath(*name.split(".")).with_suffix(".py") for name in _imports(trees[path])]
            waiting += [file for file in files if file.is_file()]
    dumps = [f"{path.relative_to(root)} {ast.dump(_WithoutText().visit(trees[path]))}" for path in sorted(trees)]
    return hashlib.sha256("\n".join(dumps).encode()).hexdigest()


def _imports(tree: ast.Module) -> list[str]:
    """Every name that is imported anywhere in a module and may be a module itself."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}", *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


class _WithoutText(ast.NodeTransformer):
    """Removes docstrings, those of attributes too, and `description=...`."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) else node

    def visit_keyword(self, node: ast.keyword) -> ast.keyword | None:
        return None if node.arg == "description" else node


def environment() -> dict[str, str]:
    """What besides recipe, data and code decides the weights: Python, processor, libraries, device and threads.

    Loads TensorFlow where there may be a GPU. With a fixed number of threads, the number of cores was not seen to change
    the weights; it is recorded because XLA compiles for it.
    """
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": str(_usable_cores()),
        **backend.determinants(),
        **{name: installed(name) for name in LIBRARIES},
    }


def _usable_cores() -> int:
    """The cores that this process may run on, which a container or `taskset` restricts."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    """The model of the processor: compiled training loops differ by its instructions."""
    with suppress(OSError):
        models = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if models:
            return str(models[0])
    return platform.processor()


def git_commit() -> dict[str, str]:
    """The commit of the code, `+` where files differ from it; nothing outside a git checkout."""
    try:
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"git_commit": commit + ("+" if changed else "")}


def git(*words: str) -> str:
    found = subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True, timeout=10)
    return found.stdout.strip()
