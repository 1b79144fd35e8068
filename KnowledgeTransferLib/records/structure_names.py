"""Structure names: which names mean the same structure, and the structures of several teachers as one list."""

from __future__ import annotations

from dataclasses import replace

from .labels import Labels, Structure, terminology_of

TISSUE = "85756007"  # SNOMED CT code of structures that have none of their own
LARGEST_VALUE = 255


def plain_name(name: str) -> str:
    """A structure's name without case and underscores."""
    return " ".join(name.lower().replace("_", " ").split())


def code_of(structure: Structure) -> str:
    """What a structure's terminology says of it (type, side, region; SNOMED CT), "" where that is plain tissue."""
    parts = [part.partition("^")[2].partition("^")[0] for part in structure.terminology.rstrip("|").split("~")]
    what = [*parts[2:4], *parts[5:7]]  # the others name the lists that the codes are from
    return "" if what[:1] in ([], [""]) or (what[0] == TISSUE and not any(what[1:])) else " ".join(what)


def matches(labels: Labels, known: Labels, synonyms: dict[str, str] | None = None) -> dict[str, str]:
    """Name in `labels` -> name of the same structure in `known`, for those that have one there.

    The same are: equal names but for case and underscores, after the synonyms (other name -> name); else equal
    terminology codes, where no two structures of either list share the code.
    """
    by_name = {_renamed(s.name, synonyms): s.name for s in known.structures}
    of_code, found = _by_code(known), {}
    for code, name in _by_code(labels).items():
        if code in of_code and _renamed(name, synonyms) == plain_name(name):  # the user's word stands above a code
            found[name] = of_code[code]
    for structure in labels.structures:
        if _renamed(structure.name, synonyms) in by_name:
            found[structure.name] = by_name[_renamed(structure.name, synonyms)]
    return found


def merged(lists: list[Labels], synonyms: dict[str, str] | None = None) -> tuple[Labels, list[dict[str, str]]]:
    """All structures of several lists, each once, and for each list: name there -> name in the whole.

    A structure is named, numbered and coloured as where it comes first; with a synonym, named as that says. A value
    that is taken already gives way to the lowest free one.

    Raises:
        ValueError: more than 255 structures; a synonym's name that is itself another name of a third.
    """
    for name in (synonyms or {}).values():
        if _renamed(name, synonyms) != plain_name(name):
            raise ValueError(f"synonyms: {name!r} is given another name itself; give the last name to all of them")
    whole, names = Labels(()), []
    for labels in lists:
        found = matches(labels, whole, synonyms)
        for structure in labels.structures:
            if structure.name not in found:
                whole = _with(structure, whole, synonyms)
        names.append({**matches(labels, whole, synonyms), **found})
    return whole, names


def _renamed(name: str, synonyms: dict[str, str] | None) -> str:
    """The plain name that a name stands for."""
    meant = {plain_name(other): name for other, name in (synonyms or {}).items()}
    return plain_name(meant.get(plain_name(name), name))


def _by_code(labels: Labels) -> dict[str, str]:
    """Terminology code -> name, of the codes that one structure alone has."""
    codes = [code_of(s) for s in labels.structures]
    return {c: s.name for c, s in zip(codes, labels.structures, strict=True) if c and codes.count(c) == 1}


def _with(structure: Structure, whole: Labels, synonyms: dict[str, str] | None) -> Labels:
    """The whole with one more structure, unless the synonyms give it a name that is there."""
    plain = _renamed(structure.name, synonyms)
    if plain in (plain_name(name) for name in whole.names):
        return whole
    if plain != plain_name(structure.name):
        meant = [name for name in synonyms.values() if plain_name(name) == plain]
        named = replace(structure, name=meant[0], terminology=terminology_of(meant[0]))
        of_itself = not code_of(named) and len(meant) == 1  # several that become one have no code of one of them
        structure = replace(named, terminology=structure.terminology) if of_itself else named
    free = [value for value in range(1, LARGEST_VALUE + 1) if value not in whole.values]
    if not free:
        raise ValueError(f"the teachers know more than {LARGEST_VALUE} structures together")
    return Labels((*whole.structures, replace(structure, value=min(free, key=lambda v: (v != structure.value, v)))))
