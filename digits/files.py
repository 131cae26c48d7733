"""Atomic writes: a file or folder appears under its name complete, or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A path beside `target` at which the block creates a file, or a folder of files, that then replaces `target`.

    What was created is flushed to disk before it is renamed. Where the block raises or creates nothing, `target` stays as it is.
    """
    part = target.with_name(f".{target.name}-{uuid4().hex}.tmp")
    try:
        yield part
        if part.exists():
            for path in part.iterdir() if part.is_dir() else [part]:
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            if target.is_dir():
                shutil.rmtree(target)
            part.replace(target)
    finally:
        shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)


def write_atomically(target: Path, content: bytes) -> None:
    """Replace the content of a file in one step."""
    with replacing(target) as part:
        part.write_bytes(content)
