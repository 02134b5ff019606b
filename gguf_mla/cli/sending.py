"""Uploads at the command line: what `--upload` sends where, what is said of it, and what the repository's page says."""

from __future__ import annotations

import os
import shlex
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from gguf_mla import units
from gguf_mla.cli import handover
from gguf_mla.cli.card import Section, pages
from gguf_mla.cli.input_path import InputPath
from gguf_mla.cli.options import RAY
from gguf_mla.cli.printing import warn
from gguf_mla.container.splits import model_name
from gguf_mla.errors import InputError
from gguf_mla.files import json_text
from gguf_mla.files.input import read_small
from gguf_mla.files.readable import Elsewhere
from gguf_mla.recipes import FILE_TYPES, without_type
from gguf_mla.remote import location
from gguf_mla.sources import hub_cache
from gguf_mla.stream.goal import Goal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from gguf_mla.cli.options import RunOptions
    from gguf_mla.plan.jobs import Plan
    from gguf_mla.plan.outputs import Output
    from gguf_mla.remote.destination import Destination
    from gguf_mla.stream.run import Job

SUMS = ".gguf.sha256"  # what ends the name of a model's file of checksums
# Options that decide no byte: a command that makes the same goes without them.
INDIFFERENT = frozenset((
    "upload", "private", "keep", "verdicts", "threads", "device", "overwrite", "no_resume", "checksums",
    "delete_splits", "verify_source", "allow_unverified", "bandwidth", "engine", "address", "spool", "timings",
    "dry_run", "quiet", "as_json",
))  # fmt: skip


def check(options: RunOptions) -> None:
    """Raise InputError for an upload that cannot be: what says something of none, and one of work that many do."""
    if options.upload is None:
        given = [flag for flag, on in (("--private", options.private), ("--keep", options.keep)) if on]
        if given or options.verdicts:
            raise InputError(f"{' '.join(given) or '--verdict'} says something of an upload", remedy="Give --upload")
        return
    many = options.engine == RAY or handover.current() is not None
    if many and (options.keep or options.verdicts):
        flag = "--keep" if options.keep else "--verdict"
        raise InputError(f"{flag} is for an upload by one process, and many workers share this work")


def sink(job: Job, options: RunOptions) -> Destination | None:
    """Return where a run's outputs go besides, None for nowhere; InputError where nothing can be uploaded."""
    if options.upload is None:
        return None
    found = _of_hub(job, options, options.upload) if is_hub(options.upload) else _of_store(job, options, options.upload)
    found.open(create=not options.dry_run)
    return found


def is_hub(place: str) -> bool:
    """Whether an upload goes to the hub, and not to a URL."""
    return "://" not in place or place.startswith(location.SCHEME)


def _of_hub(job: Job, options: RunOptions, repository: str) -> Destination:
    from gguf_mla.remote.upload import Upload  # noqa: PLC0415 - it is an extra

    verdicts = _verdicts(job, options.verdicts)
    names = names_of(job)

    def describe(receipts: Mapping[str, Mapping[str, Any]], read: Callable[[str], str | None]) -> dict[str, str]:
        sections = [_section(job, plan, output, names, receipts, verdicts) for plan, output in job.outputs]
        made = pages(sections, repository, read)
        if not made:
            warn("the repository's page is somebody's own, and no other could be written")
        sums = [_sums(section.name, section.files) for section in sections]
        return {**dict(sums), **made}

    return Upload(repository, names, describe, private=options.private, keeps=options.keep)


def _of_store(job: Job, options: RunOptions, url: str) -> Destination:
    from gguf_mla.remote.store import Store  # noqa: PLC0415 - it is an extra

    if options.private:
        raise InputError("--private is for a repository of the hub", found=url)
    names = names_of(job)
    models = {_model(names, output): [names[file.path] for file in output] for _, output in job.outputs}

    def describe(receipts: Mapping[str, Mapping[str, Any]], _: Callable[[str], str | None]) -> dict[str, str]:
        return dict(_sums(model, {name: receipts[name] for name in files}) for model, files in models.items())

    ends = [f"{model}{SUMS}" for model in models]
    return Store(url, names, describe, keeps=options.keep, overwrite=options.overwrite, ends=ends)


def plan_text(job: Job, sink: Destination | None) -> list[str]:
    """Return in a line where a run would send its files, and what they would take here; no line without an upload."""
    if sink is None:
        return []
    goal = Goal.of([output for _, output in job.outputs], job.extras, passing=not sink.keeps)
    room = "and all files stay here" if goal.at_once is None else f"at most {units.size(goal.at_once)} here at a time"
    return [f"upload: {len(goal.sizes)} files to {sink.called}, {room}"]


def result_json(sink: Destination | None) -> dict[str, Any] | None:
    """Return what has become of an upload as JSON-ready data, as a document's `run` has it."""
    return None if sink is None else {**vars(sink.published), "kept": sink.keeps}


def result_text(sink: Destination | None) -> list[str]:
    """Return the same in a line; no line without an upload."""
    if sink is None:
        return []
    done = sink.published
    before = done.bytes - done.sent
    known = f", {units.size(before)} of it were there" if before else ""
    return [f"upload: {done.files} files, {units.size(done.bytes)}{known}: {done.url}"]


def names_of(job: Job) -> dict[Path, str]:
    """Return what files are called where they go: by their names, in directories where they lie in several."""
    paths = [*(file.path for _, output in job.outputs for file in output), *(extra.path for extra in job.extras)]
    root = os.path.commonpath([path.absolute().parent for path in paths])
    return {path: path.absolute().relative_to(root).as_posix() for path in paths}


def _sums(model: str, files: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """Return the name and the text of a model's file of checksums, as sha256sum has them."""
    lines = (f"{receipt['sha256']}  {PurePath(name).name}\n" for name, receipt in files.items())
    return f"{model}{SUMS}", "".join(lines)


def _model(names: Mapping[Path, str], output: Output) -> str:
    """Return what a model is called where it goes."""
    first = PurePath(names[output[0].path])
    return (first.parent / model_name(first)).as_posix()


def _section(
    job: Job,
    plan: Plan,
    output: Output,
    names: Mapping[Path, str],
    receipts: Mapping[str, Mapping[str, Any]],
    verdicts: Mapping[str, Sequence[str]],
) -> Section:
    first = PurePath(names[output[0].path])
    files = {names[file.path]: receipts[names[file.path]] for file in output}
    name = _model(names, output)
    return Section(name, plan, files, _recipe(first, plan), origin(job), verdicts.get(first.name, ()), command())


def _recipe(first: PurePath, plan: Plan) -> str:
    """Return what the types of a model are called, by its name or what its metadata say."""
    name = model_name(first)
    if said := name.removeprefix(without_type(name)).lstrip("-._"):
        return said
    stated = plan.metadata.get("general.file_type")
    return next((kind.name for kind in FILE_TYPES.values() if stated and kind.id == stated.data), "-")


def origin(job: Job) -> tuple[str, str]:
    """Return the repository that the inputs of a run come from, and its commit; "" for what is not known."""
    for path in job.inputs:
        repository = hub_cache.repository(path if isinstance(path, Elsewhere) else path.parent)
        if repository is not None:
            found = location.parse(str(path)) if isinstance(path, Elsewhere) else None
            return "/".join(repository), path.parent.name if found is None else found.revision
    return "", ""


def command() -> str:
    """Return the command that is running as one that makes the same bytes, without the paths of this machine."""
    context = click.get_current_context()
    words = [word for param in context.command.params for word in _words(context, param)]
    return shlex.join(["gguf-mla", context.info_name or "", *words])


def _words(context: click.Context, param: click.Parameter) -> Iterator[str]:
    name = param.name or ""
    value = context.params.get(name)
    if name in INDIFFERENT or value is None or context.get_parameter_source(name) is ParameterSource.DEFAULT:
        return
    flag = param.opts[0]
    for item in value if isinstance(value, tuple) else (value,):
        if isinstance(param, click.Option) and param.is_flag:
            yield from [flag] if item else []
            continue
        positional = isinstance(param, click.Argument)  # OUT may stand among types, which have no directories
        word = _public(item) if positional or isinstance(param.type, click.Path | InputPath) else str(item)
        yield from [word] if positional else [flag, word]


def _public(path: object) -> str:
    """Return how a stranger would name a file: by its id on the hub, or without the directories of this machine."""
    if isinstance(path, Elsewhere):
        return str(path)
    place = PurePath(str(path))
    if isinstance(path, Path) and (repository := hub_cache.repository(path.parent)):
        return f"{location.SCHEME}{'/'.join(repository)}@{path.parent.name}/{path.name}"
    return place.name or str(place)


def _verdicts(job: Job, paths: Sequence[Path]) -> dict[str, list[str]]:
    """Return what proofs say of outputs, by the names of their first files; InputError for one of another file."""
    firsts = (Goal.of([output]).sizes[0] for _, output in job.outputs)
    sizes = {path.name: size for path, size in firsts}
    found: dict[str, list[str]] = {}
    for path in paths:
        said = _proof(path)
        name, nbytes = PurePath(str(said.get("candidate"))).name, said["inputs"][1]["bytes"]
        if (name, nbytes) not in sizes.items():
            expected = " or ".join(f"{name} of {size} bytes" for name, size in sizes.items())
            raise InputError("proves another file", file=path, expected=expected, found=f"{name} of {nbytes} bytes")
        levels = ", ".join(said["seconds"]) if isinstance(said.get("seconds"), dict) else ""
        reference = PurePath(str(said.get("reference", ""))).name
        found[name] = [f"{said['grade']}, against {reference}, as far as {levels} can tell"]
    return found


def _proof(path: Path) -> dict[str, Any]:
    """Return what `verify --json` has printed into a file; InputError for anything else."""
    try:
        said = json_text.parse(read_small(path, json_text.MAX_BYTES))
    except ValueError:
        said = None
    try:
        if said["command"] == "verify" and said["grade"] and said["inputs"][1]["bytes"] >= 0:
            return dict(said)
    except (KeyError, IndexError, TypeError):
        pass
    raise InputError("is not what `gguf-mla verify --json` prints", file=path)
