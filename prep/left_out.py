"""Images that do not decode: a run's book of them, when they are too many, and whether they were mended since."""

from collections.abc import Callable, Collection, Iterable

from prep.images import PixelOptions, UndecodableImage
from prep.planning import ConvertOptions, Planned
from prep.private import PrivateFolder
from prep.tasks import Item, encoded, reading, undecodable

HEADER = ("key", "source", "split", "reason")


class LeftOut:
    """The book of one run, kept in left_out.csv. It begins empty: what an earlier run found may have been mended."""

    def __init__(self, plan: Planned, private: PrivateFolder, options: ConvertOptions):
        self._private, self._options, self._total = private, options, plan.num_samples
        self._places = {key: (record.source, split) for split, part in plan.parts.items() for key, record in part}
        self._reasons: dict[str, str] = {}
        private.write_table("left_out.csv", HEADER, [])

    def add(self, found: Collection[tuple[str, str]]) -> None:
        """Note (key, reason) of some, known or new.

        Raises:
            ValueError: there is one and the run is strict, or there are more than --max-bad allows.
        """
        if not found:
            return
        self._reasons.update(found)
        keys = sorted(self._reasons)  # the stored order
        rows = [(key, *self._places[key], self._reasons[key]) for key in keys]
        self._private.write_table("left_out.csv", HEADER, rows)
        if self._options.strict:
            raise undecodable(keys[0], self._reasons[keys[0]], self._private.out)
        if len(keys) > self._options.max_bad * self._total + 1e-9:
            raise ValueError(
                f"{len(keys)} of {self._total} images do not decode, more than --max-bad {self._options.max_bad:g} "
                f"allows; the first: {keys[0]} ({self._reasons[keys[0]]}). All stand in "
                f"{self._private.path.name}/left_out.csv"
            )


def any_mended(items: Iterable[Item], left_out: Collection[tuple[str, str]], pixels: PixelOptions) -> bool:
    """Whether one of the items that an earlier run left out reads now: what it made of them is not what it would be.

    Only those are read, at their source, so a set with some broken images goes on as quickly as one without.

    Raises:
        StoreFailed: see `prep.images.read_file`.
    """
    keys = {key for key, _ in left_out}
    if not keys:
        return False
    return any(_reads(item, read, pixels) for item, read in reading(tuple(i for i in items if i.key in keys)))


def _reads(item: Item, read: Callable[[], bytes], pixels: PixelOptions) -> bool:
    try:
        encoded(item, read, pixels)
    except UndecodableImage:
        return False
    return True
