"""One NumPy random generator per environment, seeded as Gymnasium does, saved and restored as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from hmarl.sdk.errors import UsageError

_LOW_64 = (1 << 64) - 1


class RandomStreams:
    """B independent PCG64 generators, one for each copy of an environment, which ``reset`` seeds.

    What a copy draws then follows from its own seed alone, however many copies run beside it; and ``get_state`` and
    ``from_state`` let an episode go on exactly where it was saved.

    Args:
        seeds: [B] integers, each at least 0; equal seeds give equal streams, whatever B is.

    Raises:
        UsageError: ``seeds`` has another shape, is not integer or holds a negative number.
    """

    def __init__(self, seeds: npt.NDArray[np.int64], batch_size: int) -> None:
        checked = checked_seeds(seeds, batch_size)
        self.generators = [np.random.default_rng(int(seed)) for seed in checked]

    def uniforms(self, rows: npt.NDArray[np.intp], count: int) -> npt.NDArray[np.float64]:
        """The next ``count`` numbers in [0, 1) of each of the generators ``rows``: [R, count]."""
        drawn = np.empty((len(rows), count))
        for row, target in zip(rows.tolist(), drawn, strict=True):
            self.generators[row].random(out=target)
        return drawn

    def integers(self, rows: npt.NDArray[np.intp], upper: int, count: int) -> npt.NDArray[np.int64]:
        """The next ``count`` integers in [0, upper) of each of the generators ``rows``: [R, count]."""
        drawn = np.empty((len(rows), count), dtype=np.int64)
        for position, row in enumerate(rows.tolist()):
            drawn[position] = self.generators[row].integers(upper, size=count)
        return drawn

    def get_state(self) -> dict[str, npt.NDArray[Any]]:
        """The streams as arrays.

        Returns:
            ``generator_words`` [B, 4] uint64: 128-bit state and 128-bit increment, high words first;
            ``generator_buffer`` [B, 2] uint64: whether half a word is kept for the next 32-bit draw, and that half.
        """
        words = np.empty((len(self.generators), 4), dtype=np.uint64)
        buffer = np.empty((len(self.generators), 2), dtype=np.uint64)
        for row, generator in enumerate(self.generators):
            saved: Mapping[str, Any] = generator.bit_generator.state
            state, increment = int(saved["state"]["state"]), int(saved["state"]["inc"])
            words[row] = (state >> 64, state & _LOW_64, increment >> 64, increment & _LOW_64)
            buffer[row] = (saved["has_uint32"], saved["uinteger"])
        return {"generator_words": words, "generator_buffer": buffer}

    @classmethod
    def from_state(cls, state: Mapping[str, npt.NDArray[Any]], batch_size: int) -> RandomStreams:
        """Generators that continue where those of ``get_state`` were."""
        streams = cls(np.zeros(batch_size, dtype=np.int64), batch_size)
        words, buffer = state["generator_words"].tolist(), state["generator_buffer"].tolist()
        for generator, (high, low, increment_high, increment_low), (has_half, half) in zip(
            streams.generators, words, buffer, strict=True
        ):
            generator.bit_generator.state = {
                "bit_generator": "PCG64",
                "state": {"state": high << 64 | low, "inc": increment_high << 64 | increment_low},
                "has_uint32": has_half,
                "uinteger": half,
            }
        return streams


class EpisodeStreams:
    """The streams of an environment's episodes: there are none before its first ``reset``, or ``set_state``.

    Args:
        batch_size: B.
    """

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._streams: RandomStreams | None = None

    def begin(self, seeds: npt.NDArray[np.int64]) -> RandomStreams:
        """Those of B new episodes, for ``reset``.

        Raises:
            UsageError: see ``RandomStreams``; nothing has then changed.
        """
        self._streams = RandomStreams(seeds, self._batch_size)
        return self._streams

    def running(self, method: str) -> RandomStreams:
        """Those of the episodes that go on.

        Args:
            method: of the environment, which needs them; for the message.

        Raises:
            UsageError: none has begun.
        """
        if self._streams is None:
            raise not_begun(method)
        return self._streams

    def layout(self) -> dict[str, npt.NDArray[Any]]:
        """Arrays as ``get_state`` of the streams returns them, whether there are any or not; for ``checked_state``."""
        return RandomStreams(np.zeros(self._batch_size, dtype=np.int64), self._batch_size).get_state()

    def resume(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Continue where those that ``state`` holds were, for ``set_state``."""
        self._streams = RandomStreams.from_state(state, self._batch_size)


def not_begun(method: str) -> UsageError:
    """That a method of an environment was called before its first ``reset``."""
    return UsageError(f"{method}: the environment has no episode yet; call reset(seeds) first")


def checked_seeds(seeds: npt.NDArray[np.int64], batch_size: int) -> npt.NDArray[np.int64]:
    """The seeds, if they are B integers of at least 0.

    Raises:
        UsageError: ``seeds`` has another shape, is not integer or holds a negative number.
    """
    checked = np.asarray(seeds)
    if checked.shape != (batch_size,) or not np.issubdtype(checked.dtype, np.integer):
        raise UsageError(f"seeds: got {checked.dtype} {list(checked.shape)}, expected integers [{batch_size}]")
    if (checked < 0).any():
        raise UsageError(f"seeds: got {int(checked.min())}, expected numbers of at least 0")
    return checked


def checked_state(
    state: Mapping[str, npt.NDArray[Any]], expected: Mapping[str, npt.NDArray[Any]]
) -> dict[str, npt.NDArray[Any]]:
    """Copies of the arrays of ``state``, with the keys, shapes and dtypes of ``expected``; for ``set_state``.

    Args:
        state: as given to ``set_state``.
        expected: as ``get_state`` would return it now.

    Raises:
        UsageError: a key is missing or unknown, or an array has another shape or kind of number.
    """
    if set(state) != set(expected):
        raise UsageError(f"state: got the arrays {sorted(state)}, expected {sorted(expected)}")
    copies = {}
    for name, like in expected.items():
        array = np.asarray(state[name])
        if array.shape != like.shape or not np.can_cast(array.dtype, like.dtype, casting="same_kind"):
            raise UsageError(
                f"state '{name}': got {array.dtype} {list(array.shape)}, expected {like.dtype} {list(like.shape)}"
            )
        copies[name] = array.astype(like.dtype)
    return copies
