"""One thread that scores for many: requests of one reward, one after the other or joined."""

import logging
import math
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch

from astrolabe_rewards.scorer import Description, Scorer, scores_of
from astrolabe_rewards.wire import Answer, Request, UnavailableError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class _Job:
    request: Request
    future: "Future[Answer]" = field(default_factory=Future)


class Batcher:
    """Scores requests in a thread of its own, so that a scorer never runs twice at a time.

    Requests are taken in their order. Those of videos of one shape may be joined into one batch,
    which a later request of another shape does not hold up.

    A scorer that raises is asked again for one video at a time, and what it says of a video becomes
    that video's error.

    Args:
        scorer: Reward or callable.
        name: Under which a plain callable writes its score.
        max_batch: Join requests up to this many videos; 1 joins nothing. A request is never split.
        max_wait: Seconds to wait for requests to join.

    Attributes:
        description: Of the scorer.
    """

    def __init__(
        self, scorer: Scorer, name: str, *, max_batch: int = 1, max_wait: float = 0.0
    ) -> None:
        self.description = Description.of(scorer, name)
        self._scorer, self._name = scorer, name
        self._max_batch, self._max_wait = max_batch, max_wait
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"scoring {name}", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> "Future[Answer]":
        """Return the future of an answer.

        Raises:
            RuntimeError: If this is closed.
        """
        job = _Job(request)
        with self._changed:
            if self._closed:
                raise RuntimeError(f"{self._name}: scoring has ended.")
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def close(self) -> None:
        """Cancel what has not begun and wait for what has."""
        with self._changed:
            self._closed = True
            while self._jobs:
                self._jobs.popleft().future.cancel()
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while self._serve():
            pass  # a call for each batch, so that nothing of one is held while waiting for the next

    def _serve(self) -> bool:
        """Answer the next requests; false when it is all over."""
        jobs = self._next()
        if not jobs:
            return False
        wanted = [job for job in jobs if job.future.set_running_or_notify_cancel()]
        answers = self._answers([job.request for job in wanted]) if wanted else []
        for job, answer in zip(wanted, answers, strict=True):
            job.future.set_result(answer)
        return True

    def _next(self) -> list[_Job]:
        """Wait for the next requests to be scored together; none when it is all over."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed)
            deadline = time.monotonic() + self._max_wait
            while not self._closed:
                jobs, full = self._joinable()
                left = deadline - time.monotonic()
                if full or left <= 0:
                    for job in jobs:
                        self._jobs.remove(job)
                    return jobs
                self._changed.wait(left)
        return []

    def _joinable(self) -> tuple[list[_Job], bool]:
        """The first request with those that go with it, and whether no other could."""
        first, count = self._jobs[0], 0
        chosen: list[_Job] = []
        for job in self._jobs:
            if job.request.pixels.shape[1:] != first.request.pixels.shape[1:]:
                continue
            count += len(job.request)
            if chosen and count > self._max_batch:
                return chosen, True
            chosen.append(job)
        return chosen, count >= self._max_batch

    def _answers(self, requests: list[Request]) -> list[Answer]:
        """Score requests as one and part the answer."""
        joined = requests[0]
        if len(requests) > 1:
            joined = Request(
                torch.cat([request.pixels for request in requests]),
                [text for request in requests for text in request.prompts],
                torch.cat([request.fps for request in requests]),
            )
        answer = self._scored(joined)
        answers, begin = [], 0
        for request in requests:
            part = slice(begin, begin := begin + len(request))
            answers.append(Answer(answer.scores[part], answer.errors[part], answer.fingerprint))
        return answers

    def _scored(self, request: Request) -> Answer:
        """Score a batch; if that fails, and may go better so, video by video."""
        fingerprint, count = self.description.fingerprint, len(request)
        try:
            return Answer(scores_of(self._scorer, self._name, request), [None] * count, fingerprint)
        except (Exception, SystemExit) as error:  # a scorer that calls exit() ends nothing here
            _log.warning("%s failed on %d videos: %s", self._name, count, error)
            if count == 1 or isinstance(error, UnavailableError):
                said = " ".join(f"{type(error).__name__}: {error}".split())[:1000]
                return Answer(torch.full((count,), math.nan), [said] * count, fingerprint)
        singles = [self._scored(request[i : i + 1]) for i in range(count)]
        return Answer(
            torch.cat([single.scores for single in singles]),
            [text for single in singles for text in single.errors],
            fingerprint,
        )
