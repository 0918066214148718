from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from plastibench.config.errors import UserError
from plastibench.utils.digests import is_intact, json_digest, read_signed, signed
from tests.support.runs import flip

TEXT = '[run]\nseed = 0\nname = "ä"\n'


def test_the_digest_ignores_white_space_order_and_itself() -> None:
    assert json_digest({"a": 1, "b": [1.5, None]}) == json_digest({"b": (1.5, None), "a": 1, "sha256": "x"})
    assert json_digest({"a": 1}) != json_digest({"a": 2})
    assert is_intact({"a": 1}) and is_intact({"a": 1, "sha256": json_digest({"a": 1})})
    assert not is_intact({"a": 2, "sha256": json_digest({"a": 1})})


def signed_at_the_end(text: str) -> str:
    """As earlier versions wrote it."""
    return f"{text}# sha256: {hashlib.sha256(text.encode()).hexdigest()}\n"


@pytest.mark.parametrize("sign", [signed, signed_at_the_end])
def test_every_flipped_bit_of_a_signed_text_is_noticed_or_leaves_the_content(
    sign: Callable[[str], str], tmp_path: Path
) -> None:
    path = tmp_path / "spec.toml"
    path.write_text(sign(TEXT), encoding="utf-8")
    assert read_signed(path) == sign(TEXT)
    noticed = 0
    bits = 8 * path.stat().st_size
    for bit in range(bits):
        flip(path, bit)
        try:
            text = read_signed(path)
        except UserError as error:
            noticed += str(path) in str(error) and "\n" not in str(error)
        else:  # the mark of the digest is damaged, so that the line is an ordinary comment or an error of TOML
            assert TEXT[:-1] in text
        flip(path, bit)
    assert noticed >= bits - 8 * len("\n# sha256: ")


def test_every_truncation_of_a_signed_text_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "spec.toml"
    for length in range(len("# sha256: "), len(signed(TEXT))):
        path.write_text(signed(TEXT)[:length], encoding="utf-8")
        with pytest.raises(UserError, match="does not match its sha256"):
            read_signed(path)


def test_texts_without_a_digest_are_read(tmp_path: Path) -> None:
    (tmp_path / "spec.toml").write_text(TEXT, encoding="utf-8")
    assert read_signed(tmp_path / "spec.toml") == TEXT
