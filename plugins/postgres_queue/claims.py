"""What this worker has claimed, and in which epoch: only what is of the epoch that lives is ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.queue import ClaimLost

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from gateway import Entry


class Claims:
    """Entry -> the epoch and the numbers of the recipients that are claimed; an entry is of one epoch."""

    def __init__(self) -> None:
        self._epochs: dict[str, int] = {}
        self._numbers: dict[str, set[int]] = {}

    def __contains__(self, entry_id: str) -> bool:
        return entry_id in self._epochs

    def __iter__(self) -> Iterator[str]:
        return iter(self._epochs)

    def add(self, entry_id: str, numbers: Collection[int], epoch: int) -> None:
        """Note a claim."""
        self._epochs[entry_id] = epoch
        self._numbers.setdefault(entry_id, set()).update(numbers)

    def drop(self, entry_id: str, numbers: Iterable[int]) -> bool:
        """Note the end of a claim; whether nothing of the entry is claimed any more."""
        left = self._numbers.get(entry_id, set())
        left.difference_update(numbers)
        if left:
            return False
        self._numbers.pop(entry_id, None)
        self._epochs.pop(entry_id, None)
        return True

    def epoch(self, entry_id: str) -> int:
        """Say in which epoch an entry was claimed. Raises ClaimLost when it is not."""
        if entry_id not in self._epochs:
            raise ClaimLost("another node has taken over what this one had claimed")
        return self._epochs[entry_id]

    def of(self, epoch: int) -> dict[str, set[int]]:
        """Give the claims of one epoch."""
        return {id_: self._numbers[id_] for id_, found in self._epochs.items() if found == epoch}

    def before(self, epoch: int) -> list[str]:
        """Give the entries that deliveries of former epochs have not let go."""
        return [id_ for id_, found in self._epochs.items() if found != epoch]


def counts(entries: Iterable[Entry]) -> Mapping[str, set[int]]:
    """Give the numbers of the recipients of each entry."""
    found: dict[str, set[int]] = {}
    for entry in entries:
        found.setdefault(entry.id, set()).update(one.number for one in entry.recipients)
    return found
