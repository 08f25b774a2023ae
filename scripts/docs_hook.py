"""Completes the pages of the API reference while MkDocs builds the site.

A page says `{{ names of deberta_jax.models }}` where the documentation of that module's public names belongs. The names
are those of `__all__`. MkDocs runs this file (`hooks` in `mkdocs.yml`); the package is read, not imported.

Raises an error, which ends the build, for a public name that does not exist or has no docstring, and for a page that
would load something from another host.
"""

import re
from functools import cache
from pathlib import Path
from typing import Any

import griffe
from mkdocs.exceptions import PluginError

ROOT = Path(__file__).resolve().parent.parent
LOADED = re.compile(r"(?:src=|<link[^>]+href=)[\"']?(?:https?:)?//[^\"'> ]+")
OPTION = re.compile(r"(?<=<code>)--[a-z][a-z-]*")
CLASS = re.compile(r"(?<=<code>DebertaFor)(?=[A-Z]\w+</code>)")
MARK = re.compile(r"^\{\{ names of ([\w.]+) \}\}$", re.M)


@cache
def package() -> griffe.Module:
    """Returns what the source of the package defines, without importing it."""
    loaded = griffe.load("deberta_jax", search_paths=[ROOT], resolve_aliases=True, resolve_external=False)
    assert isinstance(loaded, griffe.Module)
    return loaded


def module_of(path: str) -> griffe.Module:
    """Returns a module of the package by its dotted path."""
    inner = path.removeprefix("deberta_jax").removeprefix(".")
    found = package()[inner] if inner else package()
    assert isinstance(found, griffe.Module)
    return found


def public_names(path: str) -> list[str]:
    """Returns the names in a module's `__all__`."""
    return sorted((str(name).strip("'") for name in module_of(path).exports or ()), key=str.lower)


def definition(path: str, name: str) -> griffe.Object:
    """Returns what a public name refers to.

    A function in a module of the same name, such as `models.summary`, is that function, as in a running program.
    """
    found = module_of(path).members.get(name)
    if found is None:
        raise PluginError(f"{path}.{name}: is in __all__, but is not defined")
    found = found.final_target if isinstance(found, griffe.Alias) else found
    assert isinstance(found, griffe.Object)
    inner = found.members.get(name) if found.is_module else None
    return inner if isinstance(inner, griffe.Object) else found


def home_of(name: str, found: griffe.Object) -> str:
    """Returns the module whose page documents a name of `deberta_jax`: a submodule that has it as well, or itself."""
    for module in (other for other in public_names("deberta_jax") if definition("deberta_jax", other).is_module):
        path = f"deberta_jax.{module}"
        if name in public_names(path) and definition(path, name).path == found.path:
            return path
    return "deberta_jax"


def directives(path: str) -> str:
    """Returns the Markdown that documents all public names of a module, in the order of the alphabet."""
    elsewhere, here = [], []
    for name in public_names(path):
        found = definition(path, name)
        if not found.docstring:
            raise PluginError(f"{path}.{name}: has no docstring ({found.path})")
        home = home_of(name, found) if path == "deberta_jax" else path
        page = f"{home.rpartition('.')[2]}.md"
        if found.is_module:
            elsewhere.append(f"| [`{name}`]({name}.md) | {_first_sentence(found)} |")
        elif home != path:
            elsewhere.append(f"| [`{name}`]({page}#{_anchor(home, name)}) | {_first_sentence(found)} |")
        else:
            options = f"      heading: {path}.{name}\n      toc_label: {name}\n"
            here.append(f"::: {found.path}\n    options:\n{options}")
    table = "\n".join(["| Name | |", "|---|---|", *elsewhere, ""]) if elsewhere else ""
    return "\n".join([table, *here])


def _anchor(path: str, name: str) -> str:
    return definition(path, name).path


def _first_sentence(found: griffe.Object) -> str:
    assert found.docstring is not None
    paragraph = " ".join(found.docstring.value.split("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z])", paragraph)[0].replace("``", "`").replace("|", "\\|")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replaces the marks of a page. MkDocs calls this with the text of every page."""
    return MARK.sub(lambda mark: directives(mark[1]), markdown)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Returns a page with the places where lines may break in code: not in an option, and after ``DebertaFor``.

    The style sheet keeps marked options in one line, since browsers break after hyphens. A page that loads something
    from another host is an error. MkDocs calls this with the HTML of every page.
    """
    if found := LOADED.search(output):
        raise PluginError(f"{page.file.src_uri}: loads from another host: {found[0]}")
    output = OPTION.sub(lambda found: f'<span class="option">{found[0]}</span>', output)
    return CLASS.sub("<wbr>", output)
