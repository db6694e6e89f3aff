"""A hook of MkDocs: what pages link to outside docs/ comes along, so that the links hold."""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

_ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"\]\(((?:\.\./)+[^)#\s]+)")


def on_page_markdown(markdown, page, config, files):
    """Puts linked files into the site, under their path in the repository."""
    folder = posixpath.dirname(page.file.src_uri)

    def bring(link):
        path = posixpath.normpath(posixpath.join("docs", folder, link[1]))
        if path.startswith("docs/") or not (_ROOT / path).is_file():
            return link[0]
        if files.get_file_from_path(path) is None:
            files.append(File.generated(config, path, abs_src_path=str(_ROOT / path)))
        return f"]({posixpath.relpath(path, folder or '.')}"

    return _LINK.sub(bring, markdown)
