"""Trackers beside metrics.jsonl: what each needs, how it is opened, which run it goes on with.

They are TorchRL's loggers. Light on purpose: these are imported when one is opened.
"""

import configparser
import inspect
import json
import logging
import netrc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from astrolabe.errors import ConfigError
from astrolabe.line_files import set_aside
from astrolabe.masking import refuse_hidden
from astrolabe_eval.input_files import read_bytes

if TYPE_CHECKING:
    from torchrl.record.loggers import Logger

#: Package that each wants besides TorchRL.
PACKAGES: Final = {name: name for name in ("tensorboard", "wandb", "mlflow", "trackio")}
#: TorchRL's classes.
LOGGERS: Final = {
    "csv": "CSVLogger",
    "tensorboard": "TensorboardLogger",
    "wandb": "WandbLogger",
    "mlflow": "MLFlowLogger",
    "trackio": "TrackioLogger",
}
RUNS: Final = "trackers.json"
#: Trackers that go on with a run of theirs.
RESUMED: Final = ("wandb", "mlflow")
_OFFLINE: Final = ("offline", "dryrun", "disabled")
_WANDB: Final = "https://api.wandb.ai"

log = logging.getLogger(__name__)


def tracker_lacks(name: str, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what a tracker needs and does not find, as `preflight` reads it.

    Args:
        name: One of ``logging.backends``.
        options: Of ``logging.tracker_options``.
    """
    package = PACKAGES.get(name)
    wanted = [package] if package else []
    if name == "mlflow" and mlflow_store(options, Path()).startswith("sqlite"):
        wanted.append("sqlalchemy")
    for module in wanted:
        if find_spec(module) is None:
            why = f"it is not installed, and logging.backends has {name!r}"
            fetch = f"pip install {package}"
            return [{"what": "library", "source": module, "why": why, "fetch": fetch}]
    if name == "wandb" and not _logged_in(options):
        return [
            {
                "what": "login for",
                "source": _wandb_host(options),
                "option": "offline",
                "value": "true",
                "why": "wandb has no key on this machine. Run `wandb login`, set WANDB_API_KEY, or "
                "keep the run on this disk and send it later with `wandb sync`",
            }
        ]
    return []


def mlflow_store(options: Mapping[str, Any], folder: Path) -> str:
    """Where MLflow keeps runs: as told, else in a database in the folder of the run."""
    given = options.get("tracking_uri") or os.environ.get("MLFLOW_TRACKING_URI")
    return str(given or f"sqlite:///{(folder / 'logs' / 'mlflow.db').absolute()}")


def known_runs(folder: Path) -> dict[str, str]:
    """Return the runs that the trackers of a run folder went on with, by tracker.

    A damaged file is kept under another name, with a warning, and trackers begin new runs.

    Raises:
        OSError: If the file is there and cannot be read.
    """
    path = folder / RUNS
    try:
        data = read_bytes(path)
    except FileNotFoundError:
        return {}
    try:
        found = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict) and all(isinstance(run, str) for run in found.values()):
        return found
    place = set_aside(path)
    path.unlink()
    log.warning(
        "%s is damaged: it does not name a run for each tracker. It is kept as %s, and trackers "
        "begin new runs.",
        path,
        place.name,
    )
    return {}


def open_tracker(name: str, options: Mapping[str, Any], folder: Path) -> "Logger":
    """Open a tracker, on the run of an earlier one in this folder if there was one.

    Args:
        name: One of ``logging.backends``.
        options: Arguments of TorchRL's logger, and for wandb and trackio of their ``init``; they
            replace what is chosen here.
        folder: Of the run.

    Raises:
        ConfigError: If an option is unknown.
        Exception: What the tracker's own library raises.
    """
    runs, logs = known_runs(folder) if name in RESUMED else {}, str(folder / "logs")
    defaults: dict[str, dict[str, Any]] = {
        "csv": {"log_dir": logs},
        "tensorboard": {"log_dir": logs},
        "wandb": {"log_dir": logs, "id": runs.get(name)},
        "mlflow": {"tracking_uri": mlflow_store(options, folder)},
        "trackio": {"project": "astrolabe"},
    }
    maker: Any = getattr(import_module(f"torchrl.record.loggers.{name}"), LOGGERS[name])
    _check_options(name, maker, options)
    refuse_hidden(options, f"logging.tracker_options.{name}")
    Path(logs).mkdir(parents=True, exist_ok=True)
    try:
        with _on_run(runs.get(name) if name == "mlflow" else None):
            logger: Logger = maker(**{"exp_name": folder.name, **defaults[name], **options})
    except TypeError as error:
        where = f"logging.tracker_options.{name}"
        raise ConfigError(f"{where}: {error}. Correct the options.") from error
    run = {
        "wandb": lambda: logger.experiment.id,
        "mlflow": lambda: logger.experiment.info.run_id,
    }.get(name)
    if run is not None:
        from astrolabe_eval.files import write_atomic

        write_atomic(folder / RUNS, json.dumps(runs | {name: str(run())}).encode())
    return logger


def close_tracker(name: str, logger: "Logger") -> None:
    """End the tracker's run, so that all that was logged is written."""
    if name == "mlflow":
        import_module("mlflow").end_run()
    elif name != "csv":
        experiment: Any = logger.experiment  # Any: of each tracker its own
        (experiment.close if name == "tensorboard" else experiment.finish)()


def _check_options(name: str, maker: Any, options: Mapping[str, Any]) -> None:
    parameters = inspect.signature(maker.__init__).parameters
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()) and name != "mlflow":
        return
    known = [
        one.name
        for one in parameters.values()
        if one.name != "self" and one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
    ]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ConfigError(
            f"logging.tracker_options.{name}: there is no option {unknown[0]!r}. It takes: "
            f"{', '.join(known)}."
        )


@contextmanager
def _on_run(run: str | None) -> Iterator[None]:
    """Within the block, MLflow goes on with a run: TorchRL has no argument for it."""
    if run is not None:
        os.environ["MLFLOW_RUN_ID"] = run
    try:
        yield
    finally:
        if run is not None:
            os.environ.pop("MLFLOW_RUN_ID", None)


def _wandb_host(options: Mapping[str, Any]) -> str:
    given = options.get("base_url") or os.environ.get("WANDB_BASE_URL")
    return str(given or _wandb_settings().get("base_url") or _WANDB)


def _logged_in(options: Mapping[str, Any]) -> bool:
    """Whether wandb needs no key, or finds one where it looks for it."""
    settings = _wandb_settings()
    mode = options.get("mode") or os.environ.get("WANDB_MODE") or settings.get("mode", "")
    if options.get("offline") or mode in _OFFLINE or settings.get("api_key"):
        return True
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(_wandb_host(options)).hostname or ""
    files = [os.environ.get("NETRC", ""), "~/.netrc", "~/_netrc"]
    for file in filter(None, files):
        with suppress(OSError, netrc.NetrcParseError):
            if netrc.netrc(Path(file).expanduser()).authenticators(host):
                return True
    return False


def _wandb_settings() -> dict[str, str]:
    """What wandb's own settings files say, the nearest last."""
    home = os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")
    parser = configparser.ConfigParser(interpolation=None)
    with suppress(configparser.Error, UnicodeDecodeError):
        parser.read([Path(home, "settings").expanduser(), Path("wandb", "settings")], "utf-8")
    return dict(parser["default"]) if parser.has_section("default") else {}
