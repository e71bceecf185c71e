"""What the site's build adds: pages from the repository's root, and names on the API pages."""

import importlib
import pathlib
import re
import types

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add README, changelog and contributing as pages."""
    for source, page in PAGES.items():
        text = with_links((ROOT / source).read_text(encoding="utf-8"), config.repo_url)
        files.append(File.generated(config, page, content=text))
    return files


def with_links(text: str, repo_url: str) -> str:
    """Return markdown of the root with its links made the site's, or the repository's."""

    def link(match):
        target = match[2]
        if target.startswith(("http:", "https:", "#")):
            return match[0]
        if target.startswith("docs/"):
            target = target.removeprefix("docs/")
        elif target in PAGES:
            target = PAGES[target]
        else:
            target = f"{repo_url.rstrip('/')}/blob/main/{target}"
        return f"{match[1]}({target})"

    return re.sub(r"(\[[^\]]*\])\(([^)\s]+)\)", link, text)


def on_page_markdown(markdown: str, **kwargs: object) -> str:
    """Fill in what is made from the code, and point links to pages of the root to the site's.

    ``::: all MODULE`` becomes an entry for every name that the module exports.
    """
    for source, page in PAGES.items():
        markdown = re.sub(rf"\]\(((?:\.\./)*)\.\./{source}", rf"](\1{page}", markdown)
    return re.sub(r"^::: all (\S+)$", lambda m: entries(m[1]), markdown, flags=re.M)


def entries(module_name: str) -> str:
    """Return an entry for every public name of a module, but for modules.

    A function that has its module's name is found by where it is defined: read as source, the
    module hides it.
    """
    module = importlib.import_module(module_name)
    text = []
    for name in module.__all__:
        value = getattr(module, name)
        if isinstance(value, types.ModuleType):
            continue
        defined = getattr(value, "__qualname__", None) == name
        where = value.__module__ if defined else module_name
        text.append(f"::: {where}.{name}\n    options:\n      show_root_heading: true\n")
    return "\n".join(text)
