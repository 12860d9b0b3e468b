"""What tells that an object behind a URL has changed: a number of its size and of the marks that its server gives."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

_MARKS = ("ETag", "etag", "md5Hash", "generation", "LastModified", "mtime", "created", "last_modified", "Last-Modified")


def version_of_object(infos: Iterable[Mapping[str, Any]]) -> int:
    """A number below 2**63 of one object, or of one and those beside it, as fsspec's `info` describes them."""
    marks = [[str(one.get("size")), *(str(one[mark]) for mark in _MARKS if one.get(mark))] for one in infos]
    digest = hashlib.sha256(json.dumps(marks).encode()).digest()
    return int.from_bytes(digest[:8]) >> 1
