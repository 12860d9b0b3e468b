"""Pictures in tar files as WebDataset packs them: members of one name up to the first dot belong to one sample.

Source: https://github.com/webdataset/webdataset (README, "The WebDataset Format"); differs: members of a sample need
not be adjacent.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa

from vistok.data.images import SUFFIXES
from vistok.data.inputs.captions import MAX_TEXT_BYTES, as_json, as_text, caption_in
from vistok.data.inputs.entry import Entry, Record
from vistok.data.inputs.files import check_version, in_order, spelled, suffix_of
from vistok.data.inputs.kept import Kept
from vistok.data.inputs.ranged import FileList, Ranged, ranged, whole
from vistok.data.inputs.tar_members import Member, tar_members
from vistok.data.inputs.walk import unreadable

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
_TEXT, _JSON, _CLASS = ".txt", ".json", ".cls"
_FIELDS = {_JSON: "json", _CLASS: "cls"}
_NO_PICTURE = "samples without a picture"


class _Sample(NamedTuple):
    """Members by suffix (".jpg", ".seg.png"); image: the suffix of the picture."""

    key: str
    members: dict[str, Member]
    image: str


class _Index(NamedTuple):
    """What is in one archive. samples: by the byte where their picture starts."""

    version: int
    samples: dict[int, _Sample]
    problems: list[Member]
    left_out: Counter[str]

    @property
    def fields(self) -> set[str]:
        return {_FIELDS[suffix] for sample in self.samples.values() for suffix in sample.members if suffix in _FIELDS}


class _Listing(NamedTuple):
    entries: list[Entry]
    left_out: dict[str, int]
    fields: list[str]


@dataclass(frozen=True)
class WebDatasetInput:
    """Samples in the .tar among `files`. Caption: the .txt, else `caption` or `text` of the .json."""

    files: FileList
    listed: Kept = field(default_factory=Kept, repr=False, compare=False)
    indices: Kept = field(default_factory=lambda: Kept(4), repr=False, compare=False)

    @property
    def fields(self) -> pa.Schema:
        """json and cls as text, each if a sample with a picture has it."""
        return pa.schema([(name, pa.string()) for name in self._listing().fields])

    @property
    def left_out(self) -> dict[str, int]:
        """Other members and files by suffix, and samples without a picture."""
        return dict(self._listing().left_out)

    def entries(self) -> list[Entry]:
        """Every sample with a picture, and a problem for each member or archive that cannot be read."""
        self.listed.clear()
        return list(self._listing().entries)

    def read(self, entry: Entry) -> Record:
        """One sample. Raises: ValueError, OSError if its archive has changed or a member cannot be read."""
        if entry.problem:
            raise ValueError(entry.problem)
        path = self.files.path(entry.source)
        with ranged(path) as archive:
            check_version(path, entry, archive.version)
            # The listing is in no pickle; walking the headers again costs little beside reading the pictures.
            index = self.indices.get((path, entry.version), lambda: _index(archive.walked()))
            sample = index.samples.get(entry.offset)
            if sample is None:
                raise ValueError(f"{path}: expected a picture at byte {entry.offset} as listed, got none; plan again")
            return _record(archive, sample, str(path))

    def _listing(self) -> _Listing:
        return self.listed.get("listing", self._list)

    def _list(self) -> _Listing:
        entries = list(self.files.problems)
        left_out = Counter(dict(self.files.left_out))
        fields: set[str] = set()
        for name in self.files.names:
            if not is_archive(name):
                left_out[suffix_of(name)] += 1
                continue
            if suffix_of(name) in COMPRESSED:
                entries.append(Entry(spelled(name), spelled(name), problem=compressed(spelled(name))))
                continue
            try:
                with ranged(self.files.path(spelled(name))) as archive:
                    index = _index(archive.walked())
            except OSError as error:
                entries.append(unreadable(name, error))
                continue
            entries += _entries(spelled(name), index)
            left_out += index.left_out
            fields |= index.fields
        return _Listing(in_order(entries), dict(sorted(left_out.items())), sorted(fields))


def is_archive(name: str) -> bool:
    """Whether a file name ends like a tar file's, compressed or not."""
    return suffix_of(name) in (".tar", *COMPRESSED)


def compressed(name: str) -> str:
    """Why a compressed archive is not read."""
    return f"{name}: expected a plain .tar, a compressed one cannot be read from the middle; decompress it first"


def _index(archive: Ranged) -> _Index:
    problems: list[Member] = []
    left_out: Counter[str] = Counter()
    groups: dict[str, list[dict[str, Member]]] = {}
    if archive.size == 0:
        problems.append(Member("", 0, 0, 0, "expected a tar file, got an empty file"))
    for member in tar_members(archive):
        key, suffix = _split(member.name)
        if member.problem:
            problems.append(member)
        elif not suffix or key.endswith("/") or not key:
            left_out[suffix or "no suffix"] += 1
        else:
            same_key = groups.setdefault(key, [])
            if not same_key or suffix in same_key[-1]:
                same_key.append({})
            same_key[-1][suffix] = member
    samples: dict[int, _Sample] = {}
    for key, same_key in groups.items():
        for members in same_key:
            image = _image_among(members)
            if image is None:
                left_out[_NO_PICTURE] += 1
                continue
            samples[members[image].offset] = _Sample(key, members, image)
            left_out.update(suffix for suffix in members if suffix not in (image, _TEXT, *_FIELDS))
    return _Index(archive.version, samples, problems, left_out)


def _split(name: str) -> tuple[str, str]:
    folder, slash, base = name.rpartition("/")
    stem, dot, suffix = base.partition(".")
    return folder + slash + stem, (dot + suffix).lower()


def _image_among(members: dict[str, Member]) -> str | None:
    """The suffix of the picture: ".jpg" before ".seg.png", then in the order of SUFFIXES, then the first."""
    last = {suffix: "." + suffix.rpartition(".")[2] for suffix in members}
    images = [suffix for suffix in members if last[suffix] in SUFFIXES]
    return min(images, key=lambda suffix: (suffix != last[suffix], SUFFIXES.index(last[suffix])), default=None)


def _entries(source: str, index: _Index) -> Iterator[Entry]:
    for offset, sample in index.samples.items():
        yield Entry(f"{source}/{sample.key}", source, offset, sample.members[sample.image].size, index.version)
    for member in index.problems:
        where = member.name or f"@{member.header}"
        problem = f"{source}: {member.name or 'member'} at byte {member.header}: {member.problem}"
        yield Entry(f"{source}/{where}", source, member.header, -1, index.version, problem)


def _record(archive: Ranged, sample: _Sample, where: str) -> Record:
    image = sample.members[sample.image]
    beside = {suffix: sample.members[suffix] for suffix in (_TEXT, *_FIELDS) if suffix in sample.members}
    spans = [(min(member.size, MAX_TEXT_BYTES + 1), member.offset) for member in beside.values()]
    contents = archive.read_many([(image.size, image.offset), *spans])
    picture, *found = [
        whole(content, *span) for content, span in zip(contents, [(image.size, image.offset), *spans], strict=True)
    ]
    texts = {
        suffix: as_text(content, f"{where}: {member.name}")
        for content, (suffix, member) in zip(found, beside.items(), strict=True)
    }
    caption = None
    if _JSON in texts:
        caption = caption_in(as_json(texts[_JSON], f"{where}: {sample.members[_JSON].name}"))
    fields = {_FIELDS[suffix]: text for suffix, text in texts.items() if suffix in _FIELDS}
    return Record(picture, texts.get(_TEXT, caption), fields)
