"""What mkdocs does not do by itself: pages outside `docs/`, links that leave it, the API reference.

README.md, CONTRIBUTING.md and CHANGELOG.md become pages of the site. Links to files of the
repository (results, configs, code) get a copy of that file, so that every link of a page works on
the site as in the repository, and mkdocs checks all of them. Each package gets a page of API
reference, with the modules that are there.

In: the repository's Markdown and packages. Out: files for mkdocs (`mkdocs.yml` names this hook).
"""

import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""Pages outside `docs/`, and their names on the site."""
_LINK = re.compile(r"(?<=\]\()([^)#\s]+)(?=[)#])")
_CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside, the files that any page links to, and the API reference."""
    for source, target in OUTSIDE.items():
        if (ROOT / source).exists():
            content = (ROOT / source).read_text(encoding="utf-8")
            files.append(File.generated(config, target, content=content))
    texts = [(one.src_uri, one.content_string) for one in files.documentation_pages()]
    linked = {path for page, text in texts for path in _outside_links(page, text)}
    for path in sorted(linked):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    for package, modules in _packages().items():
        text = "\n\n".join([f"# {package}", *(f"::: {module}" for module in modules)])
        files.append(File.generated(config, f"api/{package}.md", content=f"{text}\n"))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links at where things are on the site."""
    source = page.file.src_uri

    def moved(link: str) -> str:
        path = _in_repository(source, link)
        if path is None:
            return link
        site = OUTSIDE.get(path, path.removeprefix("docs/"))
        return os.path.relpath(site, PurePosixPath(source).parent)

    parts = _CODE.split(markdown)
    parts[::2] = [_LINK.sub(lambda match: moved(match[1]), part) for part in parts[::2]]
    return "".join(parts)


def _in_repository(page: str, link: str) -> str | None:
    """Where a link of a page of the site leads in the repository; None for another site."""
    if re.match(r"[a-z]+:", link):
        return None
    names = {target: source for source, target in OUTSIDE.items()}
    folder = (ROOT / names.get(page, f"docs/{page}")).parent
    return PurePosixPath(os.path.relpath(folder / link, ROOT)).as_posix()


def _outside_links(page: str, text: str) -> set[str]:
    """Files of the repository, neither pages nor in `docs/`, that a page links to."""
    links = (match[1] for part in _CODE.split(text)[::2] for match in _LINK.finditer(part))
    paths = {path for link in links if (path := _in_repository(page, link))}
    return {
        path
        for path in paths
        if not path.startswith("docs/") and path not in OUTSIDE and (ROOT / path).is_file()
    }


def _packages() -> dict[str, list[str]]:
    """Modules by page: one page for each package, and one for each folder in `mbrl`."""
    pages: dict[str, list[str]] = {}
    for package in ("mbrl", "agents", "envs"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            module = ".".join(part for part in parts if part != "__init__")
            folder = parts[:2] if package == "mbrl" and len(parts) > 2 else parts[:1]
            if path.stem != "__main__":
                pages.setdefault(".".join(folder), []).append(module)
    return pages
