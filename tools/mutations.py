"""Random changes of a file's content, for `tools.fuzz`: careless ones, and those of somebody who knows the format."""

import io
import json
import math
import random
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from temporallens.files import write_json

WORDS: tuple[Any, ...] = (
    *(0, 1, -1, 2**31, 2**40, 2**63, 2**70, -(2**63), 1e308, -0.0, True, None, "", "\0", "../../x", "/etc/passwd"),
    *([], {}, [[]], {"a": {}}, "temporallens.store/1", "mean", "shard-00000.safetensors"),
)
"""What a hostile hand puts where a value was."""


def mutated(content: bytes, dice: random.Random) -> bytes:
    """One to three random changes: a bit, a byte, a cut, a gap, junk, a repeated or an emptied block, a swollen number."""
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        content = CHANGES[dice.randrange(len(CHANGES))](content, dice)
    return content


def _offset(content: bytes, dice: random.Random) -> int:
    """Anywhere, but more often near the start: formats keep their structure there."""
    limit = len(content) if dice.random() < 0.5 else min(len(content), 400)
    return dice.randrange(max(1, limit))


def flip(content: bytes, dice: random.Random) -> bytes:
    offset = _offset(content, dice)
    return content[:offset] + bytes([content[offset] ^ (1 << dice.randrange(8))]) + content[offset + 1 :] if content else content


def _byte(content: bytes, dice: random.Random) -> bytes:
    offset = _offset(content, dice)
    return content[:offset] + bytes([dice.randrange(256)]) + content[offset + 1 :]


def _cut(content: bytes, dice: random.Random) -> bytes:
    return content[: _offset(content, dice)]


def _gap(content: bytes, dice: random.Random) -> bytes:
    offset = _offset(content, dice)
    return content[:offset] + content[offset + dice.randrange(1, 40) :]


def _junk(content: bytes, dice: random.Random) -> bytes:
    offset = _offset(content, dice)
    return content[:offset] + dice.randbytes(dice.randrange(1, 40)) + content[offset:]


def _repeated(content: bytes, dice: random.Random) -> bytes:
    offset = _offset(content, dice)
    return content[:offset] + content[offset : offset + dice.randrange(1, 200)] * dice.randrange(2, 5) + content[offset:]


def _emptied(content: bytes, dice: random.Random) -> bytes:
    offset, length = _offset(content, dice), dice.randrange(1, 64)
    return content[:offset] + bytes(length) + content[offset + length :]


def _swollen(content: bytes, dice: random.Random) -> bytes:
    digits = [offset for offset, value in enumerate(content[:4000]) if 48 <= value < 58]
    if not digits:
        return flip(content, dice)
    offset = dice.choice(digits)
    return content[:offset] + str(dice.choice((0, 9, 2**31, 2**40, 2**63, 10**30, -1))).encode() + content[offset + 1 :]


CHANGES = (flip, flip, flip, _byte, _cut, _gap, _junk, _repeated, _emptied, _swollen)


def rewritten(content: bytes, dice: random.Random) -> bytes:
    """JSON whose values were replaced, doubled or taken away, with a right checksum."""
    value = json.loads(content)
    value.pop("checksum", None)
    for _ in range(dice.choice((1, 1, 2, 4))):
        _rewrite(value, dice)
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder) / "x.json", value)
        return (Path(folder) / "x.json").read_bytes()


def _rewrite(value: Any, dice: random.Random) -> None:
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    if not keys:
        return
    key = dice.choice(keys)
    if isinstance(value[key], dict | list) and value[key] and dice.random() < 0.85:
        _rewrite(value[key], dice)
    elif dice.random() < 0.15:
        del value[key]
    elif isinstance(value, list) and dice.random() < 0.3:
        value.append(value[key])
    else:
        value[key] = json.loads(json.dumps(dice.choice(WORDS)))


def other_values(content: bytes, dice: random.Random) -> bytes:
    """Other numbers in a safetensors file: integers and floats of every size, in place."""
    start = 8 + int.from_bytes(content[:8], "little")
    offset = dice.randrange(start, len(content))
    junk = dice.choice((b"\xff" * 8, b"\x7f" * 8, bytes(8), (2**40).to_bytes(8, "little"), np.float32(np.nan).tobytes()))
    return content[:offset] + junk[: len(content) - offset] + content[offset + len(junk) :]


def other_tensors(content: bytes, dice: random.Random) -> bytes:
    """Other numbers in a safetensors file, or other shapes, types, names and places of its tensors in a header that can be read."""
    if dice.random() < 0.5:
        return other_values(content, dice)
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    for _ in range(dice.choice((1, 1, 2))):
        name = dice.choice([name for name in header if name != "__metadata__"] or [""])
        dice.choice((_reshape, _rename, _rewrite_entry))(header, name, dice)
    written = json.dumps(header).encode()
    return len(written).to_bytes(8, "little") + written + content[start:]


def _reshape(header: dict[str, Any], name: str, dice: random.Random) -> None:
    """The same number of numbers in another shape."""
    if name:
        shape = header[name]["shape"]
        size = math.prod(shape)
        shapes: tuple[list[int], ...] = (
            [size],
            [1, size],
            [size, 1],
            shape[::-1],
            [*shape, 1],
            [0, *shape],
            [2, size // 2],
            [size // 3, 3],
            [2**40, 0],
            [],
        )
        header[name]["shape"] = dice.choice(shapes)


def _rename(header: dict[str, Any], name: str, dice: random.Random) -> None:
    """Another name, or that of another tensor, whose place it takes."""
    if name:
        header[dice.choice([*header, "W_skip", "threshold", "k", "", "\0", "scaling_factor", "log_threshold"])] = header.pop(name)


def _rewrite_entry(header: dict[str, Any], name: str, dice: random.Random) -> None:
    if dice.random() < 0.3 and name:
        header[name]["dtype"] = dice.choice(("F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "C64", "F4", ""))
    else:
        _rewrite(header, dice)


def repacked(content: bytes, dice: random.Random) -> bytes:
    """An archive of which one part was changed, or left out, with checksums that are right."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = {info.filename: archive.read(info) for info in archive.infolist()}
    name = dice.choice(list(parts))
    if dice.random() < 0.1:
        del parts[name]
    else:
        parts[name] = mutated(parts[name], dice)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for member, part in parts.items():
            archive.writestr(member, part)
    return out.getvalue()
