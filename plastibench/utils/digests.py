"""SHA-256 digests of files, stored inside a run's files to detect damage and edits.

JSON files have the key ``sha256``, text files a first line ``# sha256: …``. In files of earlier versions it is the last
line, which a truncated file loses. Files without a digest are accepted, because the first versions wrote none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plastibench.config.errors import UserError
from plastibench.config.spec import read_text

KEY = "sha256"
_MARK = f"# {KEY}: "


def json_digest(content: Mapping[str, Any]) -> str:
    """Digest of JSON content without its own key; white space and the order of keys do not matter."""
    kept = {key: value for key, value in content.items() if key != KEY}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def is_intact(content: Mapping[str, Any]) -> bool:
    """Whether JSON content matches the digest that it states; true if it states none."""
    return KEY not in content or content[KEY] == json_digest(content)


def signed(text: str) -> str:
    """The text below a first line with its digest, a comment in TOML."""
    return f"{_MARK}{_text_digest(text)}\n{text}"


def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_signed(path: Path) -> str:
    """Read a text file that may be signed.

    Raises:
        UserError: The file cannot be read, or does not match its digest.
    """
    text = read_text(path)
    before, mark, rest = text.partition(_MARK) if text.startswith(_MARK) else text.rpartition(_MARK)
    stated, _, after = rest.partition("\n")
    if mark and stated != _text_digest(before + after):
        raise UserError(
            f"{path} does not match its {KEY}: it is damaged or was edited; restore it, or delete the line "
            f"'{_MARK.strip()} …' to accept the edit"
        )
    return text
