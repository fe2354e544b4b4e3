"""Scores that are kept on disk, so that no video is judged twice by the same reward.

For evaluation: the same videos are scored again and again, and a large judge takes seconds for
each. In training every video is new, and a cache only takes room.
"""

import fcntl
import hashlib
import logging
import math
import sqlite3
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Final, TypeVar

import torch
from torch import Tensor

from astrolabe_rewards.declared import check_scores
from astrolabe_rewards.reward import Reward

T = TypeVar("T")

_log = logging.getLogger(__name__)
_NAME: Final = "scores-v1.sqlite"
_PATIENCE: Final = 60.0  # seconds to wait for another process
_ROW: Final = 128  # bytes; a row and its entry in the index take about 80
_ROOM: Final = 0.9  # share of the rows that stay when it is full
_DAMAGE: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_SCHEMA: Final = (
    "CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, score BLOB NOT NULL, "
    "used INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS scores_by_use ON scores (used)",
)


class CachedReward(Reward):
    """A reward that remembers its scores, bit for bit, across calls, runs and processes.

    Stands for ``inner`` wherever a reward can: same name, same entries. A score is found again if
    pixels, shape, fps, prompt (where it is read), the reward's ``fingerprint`` and the version of
    this package are the same. Videos that are not known, and only these, are scored, in one call.
    Scores that are not finite are never kept. A cache that fails later, for want of space or after
    a minute of waiting for others, is left aside with a warning: it costs time, never a score.

    Args:
        inner: The reward; its settings and weights must not change afterwards.
        folder: Where the scores are, made if missing. Rewards and processes of one machine may
            share it; network file systems do not do.
        max_mib: Size to keep the scores under; the least recently used tenth gives way. 64 MiB are
            half a million scores; SQLite's log beside them takes a few MiB more.

    Attributes:
        hits: Videos whose score was known, so far.
        misses: Videos that were scored, so far.

    Raises:
        OSError: If the folder cannot be made or written.
        TypeError: If ``inner`` is no reward.
        ValueError: If ``max_mib`` is not above 0.
    """

    def __init__(self, inner: Reward, folder: str | Path, *, max_mib: float = 64.0) -> None:
        if not isinstance(inner, Reward):
            raise TypeError(
                f"inner is {inner!r:.80}, no Reward. Only rewards say what their scores depend on: "
                "write a subclass of Reward."
            )
        # The class attributes of a reward describe the inner one here, which is known only now.
        own = ("name", "unit", "measures", "licence", "weights_from", "memory", "needs_text")
        self.__dict__.update(
            {name: getattr(inner, name) for name in (*own, "deterministic", "may_fail")}
        )
        super().__init__(in_keys=inner.in_keys, out_keys=inner.out_keys)
        self.inner = inner
        self.store = ScoreStore(folder, max_mib)
        self.hits = self.misses = 0
        self._fingerprint = inner.fingerprint()
        self._judge = f"{version('astrolabe-rewards')} {self._fingerprint}"

    def score(self, pixels: Tensor, prompts: list[str] | None, fps: Tensor) -> Tensor:
        """Return the scores of ``inner``, known or new; see ``Reward.score``."""
        texts = [""] * len(pixels) if prompts is None else prompts
        keys = [self._key(*video) for video in zip(pixels, texts, fps.tolist(), strict=True)]
        known = self.store.get(keys)
        first = {key: index for index, key in reversed(list(enumerate(keys)))}
        missing = sorted(index for key, index in first.items() if key not in known)
        if missing:
            fresh = check_scores(
                f"{self.name}: score",
                self.inner.score(
                    pixels if len(missing) == len(keys) else pixels[missing],
                    None if prompts is None else [prompts[index] for index in missing],
                    fps[missing],
                ),
                len(missing),
                flat=True,
            )
            new = dict(zip((keys[index] for index in missing), fresh.tolist(), strict=True))
            self.store.put({key: score for key, score in new.items() if math.isfinite(score)})
            known |= new
        self.misses += len(missing)
        self.hits += len(keys) - len(missing)
        return torch.tensor([known[key] for key in keys], dtype=torch.float32)

    def fingerprint(self) -> str:
        """Return that of the inner reward: both score equally."""
        return self._fingerprint

    def _key(self, video: Tensor, prompt: str, fps: float) -> bytes:
        """What a score depends on, as 16 bytes."""
        facts = repr((self._judge, tuple(video.shape), fps, prompt))
        digest = hashlib.blake2b(facts.encode(), digest_size=16)
        digest.update(video.cpu().contiguous().reshape(-1).numpy().data)
        return digest.digest()


class ScoreStore:
    """Keys of 16 bytes to float32, in one SQLite file that several processes may use at once.

    Each use opens the file anew: a connection would survive neither a fork nor a pickle, and costs
    a millisecond.

    Args:
        folder: See `CachedReward`.
        max_mib: See `CachedReward`.

    Raises:
        OSError: If the folder cannot be made or written.
        ValueError: If ``max_mib`` is not above 0.
    """

    def __init__(self, folder: str | Path, max_mib: float) -> None:
        if not max_mib > 0:
            raise ValueError(f"max_mib is {max_mib!r}. Give more than 0; 64 is plenty.")
        self.folder, self.path = Path(folder), Path(folder) / _NAME
        self.capacity = max(1, int(max_mib * 2**20 / _ROW))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._use(lambda connection: None)
        except (OSError, sqlite3.Error) as error:
            raise OSError(
                f"the score cache {str(folder)!r} cannot be written ({error}). "
                "Choose another folder, free some space, or do without a cache."
            ) from error

    def get(self, keys: Sequence[bytes]) -> dict[bytes, float]:
        """Return the scores that are known, and note that they were of use."""

        def work(connection: sqlite3.Connection) -> dict[bytes, float]:
            found = {}
            for key in dict.fromkeys(keys):
                row = connection.execute("SELECT score FROM scores WHERE key = ?", (key,))
                if kept := row.fetchone():
                    found[key] = _unpack(key, kept[0])
            now = time.time_ns()
            used = [(now, key) for key in found]
            connection.executemany("UPDATE scores SET used = ? WHERE key = ?", used)
            return found

        return self._try(work, {})

    def put(self, scores: Mapping[bytes, float]) -> None:
        """Keep scores; the least recently used ones give way if there are too many."""

        def work(connection: sqlite3.Connection) -> None:
            now = time.time_ns()
            rows = [(key, _pack(key, score), now) for key, score in scores.items()]
            connection.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?)", rows)
            (count,) = connection.execute("SELECT count(*) FROM scores").fetchone()
            if count > self.capacity:
                connection.execute(
                    "DELETE FROM scores WHERE key IN "
                    "(SELECT key FROM scores ORDER BY used LIMIT ?)",
                    (count - int(_ROOM * self.capacity),),
                )

        self._try(work, None)

    def _try(self, work: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        """Use the store if that is possible."""
        try:
            return self._use(work)
        except (OSError, sqlite3.Error) as error:
            _log.warning("the score cache %s is left aside: %s", self.path, error)
            return otherwise

    def _use(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do something in one transaction; a damaged file is set aside first."""
        while True:
            with self._lock(fcntl.LOCK_SH):
                seen = self.path.stat().st_ino if self.path.exists() else None
                try:
                    with closing(self._open()) as connection, connection:
                        return work(connection)
                except sqlite3.DatabaseError as error:
                    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
                    if code not in _DAMAGE or seen is None:
                        raise
            self._set_aside(seen)

    def _open(self) -> sqlite3.Connection:
        """A connection with a transaction begun, and the table there."""
        connection = sqlite3.connect(self.path, timeout=_PATIENCE, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA:
                connection.execute(statement)
        except BaseException:
            connection.close()
            raise
        return connection

    def _set_aside(self, inode: int) -> None:
        """Rename a damaged file, unless another process has done so."""
        with self._lock(fcntl.LOCK_EX):
            if not self.path.exists() or self.path.stat().st_ino != inode:
                return
            aside = f"{_NAME}.damaged-{time.time_ns()}"
            for end in ("-shm", "-wal", ""):
                part = self.path.with_name(_NAME + end)
                if part.exists():
                    part.rename(self.folder / (aside + end))
        _log.warning(
            "the score cache %s is damaged; it is set aside as %s and begun anew", self.path, aside
        )

    @contextmanager
    def _lock(self, kind: int) -> Iterator[None]:
        """Hold the folder: shared while the file is used, alone while it is replaced."""
        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, kind)
            yield


class _DamagedRow(sqlite3.DatabaseError):
    """A score that is not what was written."""

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT


def _pack(key: bytes, score: float) -> bytes:
    """A score and a check of it, which SQLite does not make."""
    data = struct.pack("<f", score)
    return data + struct.pack("<I", zlib.crc32(key + data))


def _unpack(key: bytes, row: object) -> float:
    """The score of a row, whatever a damaged file gives for one."""
    if isinstance(row, bytes) and len(row) == 8:
        score: float = struct.unpack("<f", row[:4])[0]
        if _pack(key, score) == row:
            return score
    raise _DamagedRow("a score does not match its check")
