"""Pictures that are objects below a URL (s3://, gs://, memory://), with captions and annotations beside them.

Objects are listed once. Each is read whole, and again when a request fails for a moment.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa

from vistok.data.images import SUFFIXES
from vistok.data.inputs.captions import MAX_TEXT_BYTES, as_json, as_text, caption_in
from vistok.data.inputs.entry import Entry, Record
from vistok.data.inputs.files import MAX_BYTES, in_order, suffix_of
from vistok.data.inputs.kept import Kept
from vistok.data.inputs.marks import version_of_object
from vistok.data.inputs.object_files import Infos, listed_below
from vistok.data.remote import RemoteFiles
from vistok.data.retry import Backoff


class _Listing(NamedTuple):
    """left_out: by suffix."""

    entries: list[Entry]
    left_out: dict[str, int]


@dataclass(frozen=True)
class ObjectInput:
    """Pictures below `url`. Caption: `<stem>.txt`, else `caption` or `text` of `<stem>.json`.

    beside: which of .txt and .json there are for any picture. Travels in the pickle: a worker lists nothing. found: a
    listing that was made already, for the first use.
    """

    url: str
    backoff: Backoff = field(default_factory=Backoff)
    beside: list[str] = field(default_factory=list, compare=False)
    listed: Kept = field(default_factory=Kept, repr=False, compare=False)
    found: list[Infos] = field(default_factory=list, repr=False, compare=False)

    @property
    def fields(self) -> pa.Schema:
        """json: the annotation as text, if any picture has one."""
        self._listing()
        return pa.schema([("json", pa.string())] if ".json" in self.beside else [])

    @property
    def left_out(self) -> dict[str, int]:
        """Other objects by suffix."""
        return dict(self._listing().left_out)

    def entries(self) -> list[Entry]:
        """Every picture. Raises: FileNotFoundError, ValueError if there is none; OSError if it cannot be listed."""
        self.listed.clear()
        return list(self._listing().entries)

    def read(self, entry: Entry) -> Record:
        """One picture. Raises: ValueError, OSError if it has another size than listed, or cannot be read."""
        if entry.problem:
            raise ValueError(entry.problem)
        stem = entry.source.rpartition(".")[0]
        beside = [f"{stem}{suffix}" for suffix in self.beside]
        files = RemoteFiles(self.url, self.backoff)
        content, *texts = files.contents([entry.source, *beside])
        if content is None or len(content) != entry.size:
            found = "none" if content is None else f"{len(content)} bytes"
            raise ValueError(
                f"{self.url}/{entry.source}: expected {entry.size} bytes as listed, got {found}; plan again"
            )
        found_texts = {
            name.rpartition(".")[2]: as_text(text[: MAX_TEXT_BYTES + 1], f"{self.url}/{name}")
            for name, text in zip(beside, texts, strict=True)
            if text is not None
        }
        caption = found_texts.get("txt")
        if "json" not in found_texts:
            return Record(content, caption)
        value = as_json(found_texts["json"], f"{self.url}/{entry.source}: its .json")
        return Record(content, caption_in(value) if caption is None else caption, {"json": json.dumps(value)})

    def _listing(self) -> _Listing:
        return self.listed.get("listing", self._list)

    def _list(self) -> _Listing:
        infos = self.found.pop() if self.found else listed_below(self.url, self.backoff)
        pictures = [name for name in infos if name.lower().endswith(SUFFIXES)]
        if not pictures:
            raise ValueError(f"{self.url}: expected pictures ({', '.join(SUFFIXES)}) below this URL, found none")
        entries = []
        used = {*pictures}
        for name in pictures:
            stem = name.rpartition(".")[0]
            beside = [other for other in (f"{stem}.txt", f"{stem}.json") if other in infos]
            used.update(beside)
            entries.append(_entry(name, infos[name], [infos[other] for other in beside]))
        self.beside[:] = sorted({suffix_of(name) for name in used} & {".txt", ".json"})
        left_out = Counter(suffix_of(name) for name in infos if name not in used)
        return _Listing(in_order(entries), dict(sorted(left_out.items())))


def _entry(name: str, info: dict[str, Any], beside: list[dict[str, Any]]) -> Entry:
    size = int(info["size"] or 0)
    problem = f"{name}: expected at most {MAX_BYTES} bytes, got {size}" if size > MAX_BYTES else ""
    return Entry(name, name, 0, size, version_of_object((info, *beside)), problem)
