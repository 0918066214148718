from __future__ import annotations

from pathlib import Path

from plastibench.config.errors import UserError
from plastibench.utils.digests import is_intact, json_digest, read_signed, signed
from tests.support.runs import flip

TEXT = '[run]\nseed = 0\nname = "ä"\n'


def test_the_digest_ignores_white_space_order_and_itself() -> None:
    assert json_digest({"a": 1, "b": [1.5, None]}) == json_digest({"b": (1.5, None), "a": 1, "sha256": "x"})
    assert json_digest({"a": 1}) != json_digest({"a": 2})
    assert is_intact({"a": 1}) and is_intact({"a": 1, "sha256": json_digest({"a": 1})})
    assert not is_intact({"a": 2, "sha256": json_digest({"a": 1})})


def test_every_flipped_bit_of_a_signed_text_is_noticed_or_leaves_the_content(tmp_path: Path) -> None:
    path = tmp_path / "spec.toml"
    path.write_text(signed(TEXT), encoding="utf-8")
    noticed = 0
    bits = 8 * path.stat().st_size
    for bit in range(bits):
        flip(path, bit)
        try:
            text = read_signed(path)
        except UserError as error:
            noticed += str(path) in str(error) and "\n" not in str(error)
        else:  # the mark of the digest is damaged, so that the line is an ordinary comment or an error of TOML
            assert text.startswith(TEXT[:-1])
        flip(path, bit)
    assert noticed >= bits - 8 * len("\n# sha256: ")


def test_texts_without_a_digest_are_read(tmp_path: Path) -> None:
    (tmp_path / "spec.toml").write_text(TEXT, encoding="utf-8")
    assert read_signed(tmp_path / "spec.toml") == TEXT
