"""Unfinished work and stored trials of earlier versions are read, and every one is guarded by one SHA-256."""

import hashlib
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from nafld_utils import artifacts, images, sweep
from nafld_utils.artifacts import checkpoints
from nafld_utils.images import image_store

ARRAY = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


@pytest.mark.parametrize("array", [ARRAY, ARRAY.astype(np.float32), np.zeros((0, 4), np.uint8)])
def test_an_array_comes_back_as_it_was(tmp_path, array):
    array.flags.writeable = False  # as a memory map is
    found = checkpoints.load_array(checkpoints.save_array(tmp_path / "a.safetensors", array))
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype
    assert checkpoints.load_array(tmp_path / "none.safetensors") is None


def test_an_array_of_an_earlier_version_is_read_and_a_damaged_one_is_not(tmp_path):
    path = tmp_path / "a.safetensors"
    np.savez(tmp_path / "a.npz", array=ARRAY)
    np.testing.assert_array_equal(checkpoints.load_array(path), ARRAY)
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[content.index(ARRAY.tobytes())] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    assert checkpoints.load_array(path) is None
    checkpoints.save_array(path, ARRAY)
    np.testing.assert_array_equal(checkpoints.load_array(path), ARRAY)


def test_equal_weights_are_equal_files_whatever_the_order_of_their_facts(tmp_path):
    """safetensors writes metadata in an order drawn for each file; of eight facts, 40,320 orders."""
    facts, tensors = {f"fact {i}": f"\u00fc{i}" for i in range(8)}, {"w": torch.arange(4.0), "a": torch.ones(2, 3)}
    for name in ("one", "two"):
        artifacts.save_weights(tmp_path / name, tensors, facts)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    found, told = artifacts.load_weights(tmp_path / "one")
    assert told == facts
    assert {name: value.tolist() for name, value in found.items()} == {n: v.tolist() for n, v in tensors.items()}
    save_file(tensors, tmp_path / "theirs", metadata=facts)
    assert (tmp_path / "theirs").stat().st_size == (tmp_path / "one").stat().st_size


def test_a_state_of_an_earlier_version_is_read(tmp_path):
    metadata, weight = {"facts": '{"step": 3}', "unit": "abc"}, torch.arange(4.0)
    found = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    found.update(f"w {weight.dtype} (4,)".encode() + weight.numpy().tobytes())
    save_file({"w": weight}, tmp_path / "old.safetensors", metadata={**metadata, "sha256": found.hexdigest()})
    tensors, facts, unit = artifacts.load_state(tmp_path / "old.safetensors")
    assert torch.equal(tensors["w"], weight)
    assert (facts, unit) == ({"step": 3}, "abc")


@pytest.mark.parametrize("sealed", [False, True])
def test_a_store_of_an_earlier_version_goes_on_and_one_whose_record_was_changed_begins_anew(tmp_path, sealed):
    arrays = {"a": ((4, 2), np.uint8)}
    with images.Store(tmp_path, arrays) as store:
        store.put("a", 0, np.ones(2))
        store.commit(1)
    record = json.loads((tmp_path / image_store.PROGRESS).read_text())
    if not sealed:
        del record["seal"]
    artifacts.save_json(tmp_path / image_store.PROGRESS, {**record, "done": 3} if sealed else record)
    with images.Store(tmp_path, arrays) as store:
        assert store.done == (0 if sealed else 1)


@pytest.mark.parametrize("version", ["first", "sealed"])
def test_a_trial_of_an_earlier_version_is_read_and_never_a_changed_one(tmp_path, version):
    n = 6
    names = [f"i{i}" for i in range(n)]
    scores = pd.DataFrame({"image_id": names, "patient_id": range(n), "label": 0, "score": np.linspace(0, 1, n)})
    facts = {"hash": "abc", "rows": n, "seconds": 1.5}
    table = pa.Table.from_pandas(scores, preserve_index=False)
    if version == "sealed":
        plain = table.to_pandas(ignore_metadata=True)
        facts["content"] = artifacts.digest([[c, str(plain[c].dtype), plain[c].tolist()] for c in plain.columns])
        facts["seal"] = artifacts.digest(facts)
    table = table.replace_schema_metadata({b"nafld_trial": json.dumps(facts).encode()})
    pq.write_table(table, tmp_path / "abc.parquet", compression="NONE", write_page_checksum=True)
    found, kept = sweep.read_trial(tmp_path, "abc")
    pd.testing.assert_frame_equal(found, scores, check_dtype=False)
    assert kept == {"hash": "abc", "rows": n, "seconds": 1.5}
    content = (tmp_path / "abc.parquet").read_bytes()
    assert b"i3" in content
    (tmp_path / "abc.parquet").write_bytes(content.replace(b"i3", b"i9", 1))
    with pytest.raises(ValueError, match="it is trained again"):
        sweep.read_trial(tmp_path, "abc")
