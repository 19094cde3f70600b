"""Results of the page in what a mail holds: its text, with and without what mail programs do to it, and the objects.

Contract: nothing is trusted here. What is found is data whose checksum `results_files` compares, so that a repair which
changes an answer never counts.
"""

from __future__ import annotations

import base64
import contextlib
import email
import html
import itertools
import json
import quopri
import re
from collections.abc import Iterator
from typing import Any

from nafld_utils.artifacts import INVISIBLE, decoded, file_kind

MOST = 50  # results in one text that are looked at (choice)
# What mail programs and word processors write for quotes, hyphens, blanks and ends of lines.
_TYPED = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u00ab\u00bb\u2033\u2036\uff02", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-"),
        **dict.fromkeys("\u00a0\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B))), " "),
        **dict.fromkeys("\x0b\x0c\x85\u2028\u2029", "\n"),
    }
)
_BASE64 = re.compile(r"(?m)(?:^[A-Za-z0-9+/]{40,}\s+)*^[A-Za-z0-9+/]{4,}={0,2}\s*$")
_MAIL = re.compile(rb"(?im)^(?:content-transfer-encoding|mime-version)\s*:")


def text_of(content: bytes) -> str:
    """Text of a file, of a mail that of its parts; in Windows' letters where not Unicode, since the checksum tells."""
    if _MAIL.search(content.partition(b"\n\n")[0].partition(b"\r\n\r\n")[0]):
        parts = [part for part in email.message_from_bytes(content).walk() if not part.is_multipart()]
        texts = (part.get_payload(decode=True) for part in parts if part.get_content_maintype() != "image")
        return "\n".join(text.decode("utf-8", "replace") for text in texts)
    kind = file_kind(content[:512]) or ""
    if kind.startswith("a web page") and b"checksum" in content.replace(b"\0", b""):  # a mail saved as one
        return content.decode("utf-16" if content.startswith(b"\xff\xfe") else "utf-8", "replace")
    try:
        return decoded(content)
    except ValueError:
        if kind or b"\0" in content:
            raise
        return content.decode("cp1252", "replace")


def versions(text: str) -> list[str]:
    """Text as it is; without what mail programs do to it (blanks, quotes, marks, markup), as one line; as lines; and
    what it holds in base64.
    """
    plainer = _without_rtf(text) if text.lstrip().startswith("{\\rtf") else text
    plainer = re.sub(r"\s?<mailto:[^<>]{1,300}>", "", plainer)
    if re.search(r"<\w|&[\w#]+;", plainer):
        plainer = html.unescape(re.sub(r"<[^<>]{1,300}>", " ", plainer))
    if re.search(r"=(?:\r?\n|[0-9A-F]{2})", plainer):  # quoted-printable, the source of a mail
        plainer = quopri.decodestring(plainer.encode("utf-8", "replace")).decode("utf-8", "replace")
    plainer = re.sub(r"\u00ab\s*|\s*\u00bb|''", '"', plainer)
    plainer = re.sub(r"(?m)^[>|\t ]+", "", INVISIBLE.sub("", plainer).translate(_TYPED))
    plainer = re.sub(r",(\s*[}\]])", r"\1", plainer)
    return list(dict.fromkeys((text, re.sub(r"[\r\n]+", "", plainer), plainer, *_from_base64(plainer))))


def _from_base64(text: str) -> Iterator[str]:
    """Results in blocks of base64, as the source of a mail holds them, also where its headers were not copied."""
    for block in (found[0] for found in itertools.islice(_BASE64.finditer(text), MOST)):
        with contextlib.suppress(ValueError):
            inside = base64.b64decode(f"{block}==").decode()
            if '"schema"' in inside:
                yield inside


def _without_rtf(text: str) -> str:
    """Text of a document in rich text format."""
    text = re.sub(r"\\([{}\\])", lambda found: f"\\'{ord(found[1]):02x}", text)
    text = re.sub(r"\\(?:par|line)\b ?", "\n", re.sub(r"[{}]", "", text))
    text = re.sub(r"\\u(\d{2,5}) ?\??", lambda found: chr(int(found[1]) % 65536), text)
    text = re.sub(r"\\[a-z]+-?\d* ?", "", text)
    return re.sub(r"\\'([0-9a-f]{2})", lambda found: bytes.fromhex(found[1]).decode("cp1252", "replace"), text)


def objects(text: str) -> Iterator[dict[str, Any] | ValueError]:
    """Each results object in a text, whatever stands around it, or what is wrong with it."""
    decoder, end = json.JSONDecoder(object_pairs_hook=_no_key_twice), 0
    starts = [found.start() for found in itertools.islice(re.finditer(r'\{\s*"schema"', text), MOST)]
    for start, following in zip(starts, [*starts, len(text)][1:], strict=True):
        if start < end:
            continue
        try:
            value, end = decoder.raw_decode(text, start)
            yield value
        except json.JSONDecodeError as error:
            whole = re.search(r"checksum\W{1,12}[0-9a-f]{8}\b", text[start:following])
            yield _fault(error, "damaged" if whole else "truncated")
        except RecursionError:
            yield ValueError("expected a results file, found JSON nested too deeply.")
        except ValueError as error:
            yield error
    if not starts:
        yield _whole(text, decoder)


def _whole(text: str, decoder: json.JSONDecoder) -> dict[str, Any] | ValueError:
    """A text that holds no results object, as JSON."""
    try:
        value = decoder.decode(text)
    except RecursionError:
        return ValueError("expected a results file, found JSON nested too deeply.")
    except json.JSONDecodeError as error:
        if text.strip() and not text.lstrip().startswith(("{", "[")):
            return ValueError("expected results as JSON, found none in it; ask the rater for the file.")
        return _fault(error, "truncated")
    except ValueError as error:
        return error
    if isinstance(value, dict):
        return value
    return ValueError(f"expected a JSON object, found {type(value).__name__}; no results file.")


def _fault(error: json.JSONDecodeError, what: str) -> ValueError:
    found = f"a fault in line {error.lineno} ({error.msg})"
    return ValueError(f"expected JSON, found {found}: it is {what}; ask for the original.")


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"expected every field once, found {brief(twice)} twice: it was edited.")
    return dict(pairs)


def brief(value: Any) -> str:
    """A value from outside for a message: quoted, on one line, short."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
