"""The documentation pages and the files that they load; nothing comes from another host."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from session_http.problems import refuse

ASSETS = Path(__file__).parent / "assets"

_MEDIA_TYPES: Mapping[str, str] = MappingProxyType(
    {
        ".html": "text/html; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".css": "text/css; charset=utf-8",
        ".md": "text/markdown; charset=utf-8",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file as it is served.

    Attributes:
        content: The bytes.
        media_type: What they are.
        etag: Changes whenever they do.
    """

    content: bytes
    media_type: str
    etag: str


class Pages:
    """The files, each read when it is first asked for and then kept: 1.7 MB in all.

    Args:
        folder: Where they are.
    """

    def __init__(self, folder: Path = ASSETS) -> None:
        self._folder = folder
        self._files: dict[str, File] = {}

    def get(self, name: str) -> File:
        """Return a file.

        Raises:
            ProblemError: There is none with that name.
        """
        file = self._files.get(name)
        if file is None:
            file = self._files[name] = self._read(name)
        return file

    def _read(self, name: str) -> File:
        # Only what is in the folder itself: the name is compared, never made into a path.
        path = next((one for one in self._folder.iterdir() if one.name == name), None)
        if path is None or not path.is_file():
            raise refuse("not_found", "There is no such file.")
        content = path.read_bytes()
        return File(
            content=content,
            media_type=_MEDIA_TYPES.get(path.suffix, "text/plain; charset=utf-8"),
            etag=f'"{hashlib.sha256(content).hexdigest()[:32]}"',
        )
