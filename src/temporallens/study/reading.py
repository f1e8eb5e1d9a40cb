"""From a YAML file to a `Study`, or to one sentence that says which key is wrong, in which line, and what was meant."""

import hashlib
import math
import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import yaml
from pydantic import BaseModel, Tag, ValidationError
from pydantic_core import ErrorDetails

from temporallens.activations.language.readers import MARK
from temporallens.errors import TemporalLensError, did_you_mean
from temporallens.files import write_text
from temporallens.settings import lower, short
from temporallens.study.changes import Change, changed
from temporallens.study.config import Study
from temporallens.study.sources import TAG

SCIENTIFIC = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$")
"""Numbers such as 1e-4: PyYAML, which reads YAML 1.1, takes them for text unless they have a point and a sign."""
HIDDEN = {
    "octal (a leading 0)": re.compile(r"[-+]?0[0-9_]+"),
    "hexadecimal (0x)": re.compile(r"[-+]?0x.*"),
    "binary (0b)": re.compile(r"[-+]?0b.*"),
    "in sixtieths (a colon)": re.compile(r"[-+]?[0-9][0-9_]*(?::[0-9]+)+(?:\.[0-9_]*)?"),
}
"""Bases other than ten, and the numbers that YAML 1.1 reads in them."""
EXACT = 1 << 53
"""Below it floats are whole where they look so."""
STRING, MERGE, WHOLE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge", "tag:yaml.org,2002:int"
NUMBERED = "max_memory"
"""The one setting whose keys are numbers: those of GPUs."""


class Loader(yaml.SafeLoader):
    """PyYAML's, which knows numbers as YAML 1.2 and people write them."""


class Dumper(yaml.SafeDumper):
    """The same, so that it puts in quotes what `Loader` would take for a number."""


for kind in (Loader, Dumper):
    kind.add_implicit_resolver("tag:yaml.org,2002:float", SCIENTIFIC, list("-+.0123456789"))

LARGEST_FILE = 1 << 20
"""Bytes; a study is a page of text, so more is a mistake (or an attack) that is refused before it is parsed."""
SEAL = "# A copy that a run keeps; to change it, edit the study file and run that. SHA-256 of the lines below: "


class StudyFile(NamedTuple):
    """A study and the text that the run's folder keeps of it."""

    study: Study
    text: str


def read_study(path: Path, model: str | None = None, changes: Sequence[str] = ()) -> StudyFile:
    """Read and validate `path`. `changes`, such as `training.steps=500`, are made to it, and `model` replaces the model everywhere; the
    text then says so."""
    text = _text_of(path)
    return _study_in(_unsealed(text, path) if text.startswith(SEAL) else text, path, model, changes)


def study_of(text: str, what: str) -> StudyFile:
    """Validate the `text` of a study that stands in no file; sentences call it `what`."""
    return _study_in(text, Path(what))


def write_copy(path: Path, text: str) -> None:
    """Write the copy of a study in a run's folder, whose first line holds the digest of the others."""
    write_text(path, f"{SEAL}{_digest(text)}\n{text}")


def read_copy(path: Path, model: str | None = None, changes: Sequence[str] = ()) -> StudyFile:
    """Read what `write_copy` wrote, with changes as `read_study` makes them. Raises TemporalLensError when it is damaged or was edited."""
    return _study_in(_unsealed(_text_of(path), path), path, model, changes)


def _unsealed(text: str, path: Path) -> str:
    first, _, rest = text.partition("\n")
    if first != SEAL + _digest(rest):
        raise TemporalLensError(
            f"{path} is not what the run wrote: it is damaged, or was edited; give the study file itself, and --out {path.parent}"
        )
    return rest


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _study_in(text: str, path: Path, model: str | None = None, changes: Sequence[str] = ()) -> StudyFile:
    root, content = _parse(text, path)
    if not isinstance(content, dict):
        raise TemporalLensError(f"{path} is not a study: it should be a mapping with the keys {', '.join(Study.model_fields)}")
    try:
        study, header = _study_of(content), ""
    except ValidationError as error:
        line, words = _problem(error, root)
        raise TemporalLensError(f"{path}: {words}" if line is None else f"{path}:{line}: {words}") from error
    except RecursionError as error:
        raise TemporalLensError(f"{path} is not a study: an alias in it stands for something that holds the alias itself") from error
    if changes:
        study, content = _with_changes(content, [_change(written) for written in changes])
        header = f"# Written by {_asked(changes)}, over what stood in {path.name}.\n"
        text = header + _written(content)
    if model is not None:
        study = study.with_model(model)
        header += f"# Written by --model {model}, which replaced the model of every entry of {path.name}.\n"
        text = header + _written(_with_loggers(study.model_dump(mode="json"), study))
    return StudyFile(study, text)


def _with_loggers(content: dict[str, Any], study: Study) -> dict[str, Any]:
    """What no fingerprint knows of stands in the text all the same."""
    loggers = list(study.training.loggers)
    return content | {"training": content["training"] | {"loggers": loggers}} if loggers else content


def _study_of(content: dict[str, Any]) -> Study:
    return Study.model_validate(_as_settings(content), strict=True)  # strict: `true` is no 1, and "12" no 12


def _written(content: dict[str, Any]) -> str:
    return yaml.dump(content, Dumper=Dumper, sort_keys=False)


def _asked(changes: Sequence[str]) -> str:
    return " ".join(f"--set {written}" for written in changes)


def _change(written: str) -> Change:
    """What one `--set` asks for; its value is YAML, as in the file."""
    key, _, value = written.partition("=")
    if not key.strip() or not value.strip():
        raise TemporalLensError(f"--set {written}: give a key and its value, such as training.steps=500")
    return Change(written, key.strip(), _parse(value, Path(f"--set {written}"))[1])


def _with_changes(content: dict[str, Any], changes: Sequence[Change]) -> tuple[Study, dict[str, Any]]:
    """The study, and what a file of it holds. Raises TemporalLensError where the changes make no study."""
    new = changed(content, changes)
    try:
        return _study_of(new), new
    except ValidationError as error:
        asked = _asked([change.written for change in changes])
        _, words = _problem(error, _parse(_written(new), Path(asked))[0])
        raise TemporalLensError(f"{asked}: {words}") from error


class _WholeFloat(int):
    """A whole number that was written as a float, which messages show as it is to YAML."""

    def __repr__(self) -> str:
        return repr(float(self))


def _as_settings(content: Any) -> Any:
    """YAML's values as strict validation takes them: lists as tuples, which cannot change, and 1e3, which is a float to YAML, as 1000."""
    made: dict[int, Any] = {}  # once for each value: aliases may repeat one more often than there is memory for

    def converted(value: Any) -> Any:
        if isinstance(value, float) and value.is_integer() and abs(value) < EXACT:
            return _WholeFloat(value)
        if not isinstance(value, dict | list):
            return value
        if id(value) not in made:
            mapping = {key: converted(entry) for key, entry in value.items()} if isinstance(value, dict) else None
            made[id(value)] = tuple(map(converted, value)) if mapping is None else mapping
        return made[id(value)]

    return converted(content)


def name_of(path: Path) -> str | None:
    """The name in the copy of a study in a run's folder, whatever else that file holds; None when it has none."""
    _, content = _parse(_text_of(path), path)
    name = content.get("name") if isinstance(content, dict) else None
    return name if isinstance(name, str) else None


def _text_of(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise TemporalLensError(f"{path} is larger than {LARGEST_FILE:,} bytes: it cannot be a study file")
        text = path.read_text("utf-8").lstrip(MARK)
    except FileNotFoundError as error:
        raise TemporalLensError(f"{path} does not exist: it should be a study file (YAML)") from error
    except IsADirectoryError as error:
        raise TemporalLensError(f"{path} is a folder: it should be a study file (YAML)") from error
    except UnicodeDecodeError as error:
        raise TemporalLensError(f"{path} is not a text file in UTF-8: it should be a study file (YAML)") from error
    except OSError as error:
        raise TemporalLensError(f"{path} cannot be read: {error.strerror}") from error
    before, mark, _ = text.partition(MARK)
    if mark:
        raise TemporalLensError(f"{path}:{before.count(chr(10)) + 1}: here is a byte-order mark, which nobody sees; remove it")
    return text


def _parse(text: str, path: Path) -> tuple[yaml.Node, Any]:
    """The tree of nodes (which know their lines) and the plain values of a YAML text."""
    try:
        loader = Loader(text)
        root = loader.get_single_node()
        if root is None:
            raise TemporalLensError(f"{path} is empty: it should be a study file (YAML)")
        _refuse_traps(root, path)
        return root, loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise TemporalLensError(f"{path}{line} is not valid YAML: {_one_line(error.problem)}") from error
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError) as error:  # PyYAML's words for `!!bool maybe`
        raise TemporalLensError(f"{path} is not valid YAML: {_one_line(error)}") from error
    except RecursionError as error:
        raise TemporalLensError(f"{path} is not a study: its values are nested too deeply") from error


def _one_line(message: object) -> str:
    return " ".join(str(message).split())


def _refuse_traps(root: yaml.Node, path: Path) -> None:
    """What YAML reads otherwise than it looks. Of two equal keys readers keep the last and say nothing; a study must not lose a
    setting that way."""
    waiting, visited, numbered = [root], set(), set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, yaml.ScalarNode):
            _refuse_hidden_base(node, path)
        if id(node) in visited or not isinstance(node, yaml.CollectionNode):
            continue
        visited.add(id(node))
        if not isinstance(node, yaml.MappingNode):
            waiting.extend(node.value)
            continue
        lines: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise TemporalLensError(f"{path}:{line}: a key must be a plain word")
            if key.tag not in {STRING, MERGE} and not (key.tag == WHOLE and id(node) in numbered):
                raise TemporalLensError(f"{path}:{line}: the key {key.value} is read as a number, date or truth value: put it in quotes")
            if key.value in lines:
                raise TemporalLensError(
                    f"{path}:{line}: the key '{key.value}' stands here a second time (first in line {lines[key.value]})"
                )
            lines[key.value] = line
            if key.value == NUMBERED:
                numbered.add(id(value))
            waiting += [key, value]


def _refuse_hidden_base(node: yaml.ScalarNode, path: Path) -> None:
    """To YAML 1.1, 010 is 8, 0x10 is 16 and 1:20 is 80."""
    written = node.value
    if not node.tag.endswith((":int", ":float")):
        return
    hidden = next((base for base, numbers in HIDDEN.items() if numbers.fullmatch(written)), None)
    if hidden:
        where = f"{path}:{node.start_mark.line + 1}"
        raise TemporalLensError(f"{where}: YAML reads the number {written} as {hidden}; write it plainly, or in quotes where it is text")


def _problem(error: ValidationError, root: yaml.Node) -> tuple[int | None, str]:
    """The line of the first problem in the file, where it is of one, and what is wrong; a missing key comes after an unknown one, which it
    often is, misspelt."""
    problems, found = [], error.errors(include_url=False)
    for details in found:
        if details["type"] == "too_short" and any(_within(other["loc"], details["loc"]) for other in found):
            continue  # what pydantic refused of a list it does not count among its entries
        names, line = _locate(root, details["loc"])
        problems.append((details["type"] == "missing", line, ".".join(names), details))
    _, line, setting, first = min(problems, key=lambda problem: problem[:2])
    alternatives = [lower(details["msg"]) for _, _, elsewhere, details in problems if elsewhere == setting and details is not first]
    words = f"{' or '.join([_explain(setting, first), *alternatives])}{_plainly(first)}"
    return None if first["type"] == "value_error" and not setting else line, words


def _plainly(details: ErrorDetails) -> str:
    """How to write a number that YAML takes for text: in quotes, or with underscores that only Python knows (1_0e-5)."""
    value = details["input"]
    try:
        number = float(value) if details["type"] in {"int_type", "float_type"} and isinstance(value, str) else math.nan
    except ValueError:
        return ""
    if not math.isfinite(number):
        return ""
    return f"; write {int(number) if number.is_integer() and abs(number) < EXACT else number} without quotes and underscores"


def _within(location: tuple[int | str, ...], outer: tuple[int | str, ...]) -> bool:
    return len(location) > len(outer) and location[: len(outer)] == outer


def _explain(setting: str, details: ErrorDetails) -> str:
    kind, value = details["type"], details["input"]
    parent, _, key = setting.rpartition(".")
    where = f" in {parent}" if parent else ""
    context = details.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key '{key}'{where}{did_you_mean(key, _keys_at(details['loc'][:-1]))}"
    if kind == "missing":
        return f"the key '{details['loc'][-1]}' is missing" + (f" in {setting}" if setting else "")
    if kind == "union_tag_not_found":
        return f"{setting} needs the key 'kind', which says what arm it is; it is one of: {', '.join(sorted(_tags_at(details['loc'])))}"
    if kind == "union_tag_invalid":
        word, tag = ("source" if context["tag"].startswith(TAG) else "kind"), context["tag"].removeprefix(TAG)
        return f"{setting} has the unknown {word} '{tag}'{did_you_mean(tag, _tags_at(details['loc']))}"
    if kind == "string_pattern_mismatch" and details["loc"][-1] == "[key]":
        return f"the name '{value}' cannot name a folder: use letters, digits, dots, dashes and underscores"
    if kind in {"dict_type", "model_type", "model_attributes_type"}:
        return f"{setting} is {_short(value)}: it should be a mapping of keys to values"
    if kind == "tuple_type":
        return f"{setting} is {_short(value)}: it should be a list, in square brackets"
    if kind == "too_short":
        return f"{setting} is empty: it needs at least one entry"
    if kind == "string_type" and not isinstance(value, dict | tuple):
        return f"{setting} is read as {_short(value)}, which is no text: put it in quotes"
    if kind == "value_error":
        return f"{setting}: {details['msg'].removeprefix('Value error, ')}" if setting else details["msg"].removeprefix("Value error, ")
    return f"{setting} is {_short(value)}: {lower(details['msg'])}"


def _short(value: object) -> str:
    if value is None:
        return "empty"
    if isinstance(value, date):
        return f"the date {value}"
    if isinstance(value, dict | tuple):
        return "a mapping" if isinstance(value, dict) else "a list"
    return short(value)


def _locate(root: yaml.Node, location: tuple[int | str, ...]) -> tuple[list[str], int]:
    """The keys of the file along pydantic's location, and the line of the last of them.

    pydantic's locations also name union members ('positional', 'int'), which are not in the file and are passed over.
    """
    node, names, line = root, [], root.start_mark.line + 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            entry = next(((key, value) for key, value in node.value if key.value == str(part)), None)
            if entry is not None:
                names.append(str(part))
                line, node = entry[0].start_mark.line + 1, entry[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            names.append(str(part))
            node = node.value[part]
            line = node.start_mark.line + 1
    return names, line


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    """The keys that the model at this location knows."""
    model = next(iter(_members(_type_at(location)).values()), None)
    return list(model.model_fields) if model else []


def _tags_at(location: tuple[int | str, ...]) -> list[str]:
    """The kinds or sources among which an entry at this location chooses."""
    return [tag.removeprefix(TAG) for tag in _members(_type_at(location))]


def _type_at(location: tuple[int | str, ...]) -> Any:
    annotation: Any = Study
    for part in location:
        annotation = _descend(annotation, part)
    return annotation


def _descend(annotation: Any, part: int | str) -> Any:
    """The type one step further along pydantic's location: a field, an element, or a member of a union by its tag."""
    inner = annotation
    while get_origin(inner) is Annotated:
        inner = get_args(inner)[0]
    if get_origin(inner) in {dict, tuple, list}:
        arguments = get_args(inner)
        return arguments[1] if get_origin(inner) is dict else arguments[0]
    members = _members(annotation)
    if str(part) in members:
        return members[str(part)]
    model = next(iter(members.values()), None)
    field = model.model_fields.get(str(part)) if model else None
    return field.annotation if field else None


def _members(annotation: Any, tag: str = "") -> dict[str, type[BaseModel]]:
    """The models that may stand where this type is wanted, by the tag that chooses them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        kind = annotation.model_fields.get("kind")
        tags = get_args(kind.annotation) if kind and get_origin(kind.annotation) is Literal else ()
        return dict.fromkeys([tag] if tag or not tags else map(str, tags), annotation)
    arguments = get_args(annotation)
    if get_origin(annotation) is Annotated:
        tag = next((part.tag for part in arguments if isinstance(part, Tag)), tag)
        return _members(arguments[0], tag)
    return {name: model for argument in arguments for name, model in _members(argument, tag).items()}
