"""Download a published data set by its DOI: checksum from the record itself, retried, resumed where it broke off.

Contract: a file appears under its name only after its checksum matched; beside it lies ``<name>.record.json`` with
the DOI and the checksum that the record stated, so that later runs can prove where the file came from.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from nafld_utils import artifacts

ATTEMPTS = 4
PAUSE = 2.0  # seconds before the second attempt, doubled before each further one
TIMEOUT = 30.0  # seconds without an answer
CHUNK = 2**16  # bytes


def fetch(doi: str, folder: str | Path, suffix: str, attempts: int = ATTEMPTS, pause: float = PAUSE) -> Path:
    """Download the only file of a DOI's record with a suffix into a folder; `pause` is in seconds, doubled each time.

    ValueError says which file to put where: no network, no such record, not exactly one such file, another checksum.
    """
    folder = Path(folder)
    way_out = f"download the {suffix} file of https://doi.org/{doi} by hand into {folder} or name it with DATA=<path>"
    try:
        store = _again(lambda: _registry(doi, folder), attempts, pause)
        names = [name for name in store.registry if name.lower().endswith(suffix)]
        if len(names) != 1:
            raise ValueError(f"expected one {suffix} file in the record, found {names or 'none'}")
        name = names[0]
        _again(lambda: store.fetch(name, downloader=resume), attempts, pause)
    except Exception as error:  # a dozen kinds of network fault, one sentence for the reader
        raise ValueError(f"doi {doi}: the cohort cannot be downloaded ({_reason(error)}); {way_out}.") from error
    record = {"doi": doi, "file": name, "checksum": store.registry[name]}
    artifacts.save_json(record_path(folder / name), record)
    return folder / name


def _reason(error: Exception) -> str:
    import requests

    if isinstance(error, requests.ConnectionError | requests.Timeout):
        return "no connection to the record's server"
    return " ".join(str(error).split())[:160] or type(error).__name__


def _registry(doi: str, folder: Path) -> Any:
    import pooch

    pooch.get_logger().setLevel(logging.WARNING)
    store = pooch.create(path=folder, base_url=f"doi:{doi}/", registry=None)
    store.load_registry_from_doi()
    return store


def _again(action: Any, attempts: int, pause: float) -> Any:
    for attempt in range(1, attempts + 1):
        try:
            return action()
        except Exception:  # whatever the fault, the last attempt reports it
            if attempt == attempts:
                raise
            time.sleep(pause * 2 ** (attempt - 1))
    raise AssertionError("unreachable")


def resume(url: str, output_file: Any, store: Any) -> None:
    """Downloader for pooch that goes on where an earlier attempt broke off, from ``.<name>.part`` in its folder.

    pooch itself checks the checksum of `output_file` afterwards.
    """
    import requests

    name = url.rsplit("/", 1)[-1]
    part = Path(store.path) / f".{name}.part"
    have = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    with requests.get(_address(url), headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code != 416:  # else nothing is left to send: the part is whole, or longer than the file
            answer.raise_for_status()
            with open(part, "ab" if answer.status_code == 206 else "wb") as handle:
                for chunk in answer.iter_content(CHUNK):
                    handle.write(chunk)
    # The part is moved, not copied: content that fails pooch's checksum must not be resumed from.
    part.replace(output_file)


def _address(url: str) -> str:
    if not url.startswith("doi:"):
        return url
    from pooch.downloaders import doi_to_repository

    doi, _, name = url.removeprefix("doi:").rpartition("/")
    return doi_to_repository(doi).download_url(name)


def record_path(path: str | Path) -> Path:
    """Where the record's facts about a downloaded file are kept."""
    path = Path(path)
    return path.with_name(f"{path.name}.record.json")


def matching_record(path: str | Path) -> dict[str, str] | None:
    """``doi, file, checksum`` as the record stated them; None where they are not known or the file has another one.

    A checksum is written as ``algorithm:hex``; plain hex is SHA-256.
    """
    record = artifacts.load_record(record_path(path)) or {}
    if not {"doi", "checksum"} <= set(record):
        return None
    import pooch

    algorithm, _, value = record["checksum"].rpartition(":")
    try:
        return record if pooch.file_hash(str(path), alg=algorithm or "sha256") == value.lower() else None
    except ValueError:  # no such algorithm
        return None
