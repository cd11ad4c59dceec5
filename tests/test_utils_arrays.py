"""npy and npz files of any origin: right numbers, or one sentence, and nothing is executed."""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.prompts import PromptFile
from lightning_guide.objectives.reference import load_references
from lightning_guide.pretrained.loading import read_weights
from lightning_guide.runs.checkpoints import read_checkpoint
from lightning_guide.utils.arrays import read_array
from lightning_guide.utils.files import read_numbers
from lightning_guide.utils.safe_pickle import read_arrays

NUMBERS = np.arange(24.0).reshape(2, 3, 4)


def npy(array: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


class Bomb:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f8", ">f2", ">i4", "<u2", "|u1", "g"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_byte_order_type_and_memory_order(kind: str, order: Any) -> None:
    array = read_array(npy(np.asarray(NUMBERS.astype(kind), order=order)), "numbers")
    assert torch.equal(torch.from_numpy(array).double(), torch.from_numpy(NUMBERS)) and array.flags.c_contiguous


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "header": lambda data: data[:60],
    "content": lambda data: data[:-1],
    "empty": lambda data: b"",
    "magic": lambda data: b"\x93NUMPX" + data[6:],
    "version": lambda data: data[:6] + b"\x09" + data[7:],
    "brace": lambda data: data.replace(b"}", b"("),
    "text": lambda data: data.replace(b"descr", b"des\xffr"),
    "shape": lambda data: data.replace(b"(2, 3, 4)", b"(2, 3,9**"),
    "huge": lambda data: data.replace(b"(2, 3, 4), }     ", b"(2, 3, 10**14,)}"),
    "objects": lambda data: npy(np.array([Bomb()], dtype=object), allow_pickle=True),
    "pickle": lambda data: pickle.dumps(Bomb()),
    "text array": lambda data: npy(np.array(["a"])),
    "complex": lambda data: npy(np.array([1j])),
    "number": lambda data: npy(np.float64(1)),
    "records": lambda data: npy(np.zeros(2, dtype=[("a", "f4")])),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_npy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    monkeypatch.chdir(tmp_path)
    data = DAMAGES[damage](npy(NUMBERS))
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(ValueError, match="^cannot be read as numbers: "):
        read_array(data, "numbers")
    with pytest.raises(ValueError, match="^the file of prompts .*a.npy cannot be read: .*a.npy: cannot be read as"):
        PromptFile("a.npy", 4)
    with pytest.raises(ValueError, match="^reference examples: .*a.npy: cannot be read as a .npy file of numbers"):
        load_references(str(tmp_path / "a.npy"), torch.zeros(2, 3, 4))
    assert not (tmp_path / "executed").exists()


def test_damaged_npz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut, altered streams, directories and checksums, and objects: the member is named where it is known."""
    monkeypatch.chdir(tmp_path)
    path, whole = tmp_path / "a.npz", npz(tokens=NUMBERS, mask=np.ones((2, 3)))
    for at in range(0, len(whole), 11):
        for data in (whole[:at], whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :]):
            path.write_bytes(data)
            try:
                found = read_numbers(path, what="prompts")
            except ValueError as error:
                assert str(error).startswith(f"{path} cannot be read as prompts: ") and "\n" not in str(error)
            else:  # a field of the archive that is not used
                assert all(np.array_equal(found[name], NUMBERS) for name in found if name == "tokens")
    content = bytearray(whole)
    content[70] ^= 255
    path.write_bytes(content)
    with pytest.raises(ValueError, match="^the file of prompts .* cannot be read: .*'tokens' in it is damaged"):
        PromptFile(str(path), 4)
    path.write_bytes(npz(tokens=np.array([Bomb()], dtype=object)))
    with pytest.raises(ValueError, match="'tokens' in it is damaged: it holds Python objects, which are not read"):
        PromptFile(str(path), 4)
    path.write_bytes(npz(other=NUMBERS))
    with pytest.raises(ValueError, match=r"holds no array 'tokens'; found \['other'\]"):
        PromptFile(str(path), 4)
    assert not (tmp_path / "executed").exists()


def test_references_that_are_not_finite(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(npy(np.full((2, 3), np.nan)))
    with pytest.raises(ValueError, match="a.npy holds numbers that are not finite"):
        load_references(str(tmp_path / "a.npy"), torch.zeros(2, 3))


def test_large_number_of_a_pickled_object_takes_no_memory(tmp_path: Path) -> None:
    """One flipped bit in LONG_BINPUT makes the pickle module of C allocate and fill 2^31 places."""
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02}r" + struct.pack("<I", 2**31 + 5) + b".")
    import resource

    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**34, limits[1]))
    try:
        assert read_arrays(tmp_path / "a.pkl", kind="file of reference statistics") == {}
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_altered_weights_of_torch_are_refused(tmp_path: Path) -> None:
    """torch does not compare the checksums in its files."""
    network = torch.nn.Linear(8, 8)
    torch.save(network.state_dict(), tmp_path / "a.pt")
    data = bytearray((tmp_path / "a.pt").read_bytes())
    data[data.index(network.weight.detach().numpy().tobytes()) + 5] ^= 1
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(ValueError, match="a.pt .the checksum of .* in it is wrong"):
        read_weights(network, str(tmp_path / "a.pt"))


@pytest.mark.parametrize(("field", "value"), [(46, b"\xff"), (6, b"\x5a"), (28, b"\xff")])  # name, version, length
def test_damaged_directory_of_a_checkpoint(tmp_path: Path, field: int, value: bytes) -> None:
    torch.save({"state_dict": torch.nn.Linear(2, 2).state_dict()}, tmp_path / "step-000000001.ckpt")
    data = bytearray((tmp_path / "step-000000001.ckpt").read_bytes())
    at = data.index(b"PK\1\2") + field
    data[at : at + 1] = value
    data[data.index(b"PK\1\2") + 9] |= 8  # names are UTF-8
    (tmp_path / "step-000000001.ckpt").write_bytes(data)
    with pytest.raises(ValueError, match="^the checkpoint .*step-000000001.ckpt is damaged"):
        read_checkpoint(tmp_path / "step-000000001.ckpt")
