"""How far apart are source and target images, as a model sees them? FID between the features of two shard sets.

    python analysis/fid.py runs/ddsm --source data/shards/ISIC2019

RUN's own set is the target; features are the pooled embedding of its start (for a WT run: of the pretrained weights)
under its evaluation transform. FID is known for features of Inception-v3: numbers of other models rank sets as that
model sees them, and are not to be mixed. A floor (two halves of one set) tells what so few images give for no reason.
Writes analysis/fid-SOURCE.json and .svg; `gains.py --fid SET=NUMBER` takes the number to its x axis.
"""

from analysis.launching import launch  # no such module? source .venv/bin/activate

import argparse
from collections.abc import Mapping
from typing import Any

from analysis.banks import Bank, open_bank
from analysis.chart_parts import number
from analysis.chart_style import standalone
from analysis.charts import Panel, Series, lines
from analysis.console import announce, table
from analysis.flags import parser
from analysis.frechet import frechet_distance, halves
from analysis.results import write_result
from analysis.session import EMBEDDING, Session
from shards.fetching import shown_place
from shards.shardset import ShardSet, Split
from train.evaluation import AUTOCAST
from train.layers import embedding_tap

CAPTION = "squared Fréchet distance between normal distributions fitted to the pooled embedding (Heusel et al., 2017)"


def main(args: argparse.Namespace) -> None:
    """Extract or find the features of both sets, compare, write, tell."""
    session = Session(args)
    source = source_set(args.source, session)
    split = source.split(args.source_split or args.split)
    images = {"source": session.num_images(split), "target": session.num_images(session.split())}
    about = {"set": source.manifest.name, "shards": source.digest, "split": split.name, "images": images["source"]}
    request = session.request(args.state, source=about, state=args.state, layers=[EMBEDDING])
    name = f"fid-{source.manifest.name}"
    if session.answered(name, request):
        return
    target, origin = embedding(session, args.state, session.split()), embedding(session, args.state, split)
    found = frechet_distance(origin, target, session.device)
    values = {
        "about": CAPTION,
        "source": source.manifest.name,
        "target": session.shards.manifest.name,
        "images": images,
        "features": target.shape[1],
        **found._asdict(),
        "remark": remark(images, target.shape[1]),
        "floor": {"source": halves(origin, args.seed), "target": halves(target, args.seed)},
    }
    path = write_result(session.out, name, request, values, standalone(figure(values)))
    announce(args, path, text(values))


def source_set(place: str, session: Session) -> ShardSet:
    """The set of the source images. Raises ValueError where it is not stored in the channels of the run's own.

    The net may take more: grey images enter it repeated, or one display window a channel.
    """
    found, channels = ShardSet(place), session.transform.stored_channels
    if found.manifest.channels != channels:
        raise ValueError(
            f"{shown_place(place)} has {found.manifest.channels} channels, the images of {session.run.name} have "
            f"{channels}: take a source of as many"
        )
    return found


def embedding(session: Session, which: str, split: Split) -> Any:
    """float32[n, d]: the pooled embedding of a state on a split of any set."""
    model = session.holding(which)
    identity = {**session.identity(which), "shards": split.manifest.digest, "set": split.manifest.name}
    bank: Bank = open_bank(
        session.features,
        {**identity, "split": split.name},
        model,
        {EMBEDDING: embedding_tap(model)},
        lambda consumed: session.loader(split, consumed),
        session.num_images(split),
        device=session.device,
        autocast=AUTOCAST.get(session.args.precision),
        name=f"{session.run.name} {which} on {split.manifest.name} {split.name}",
        reuse_only=session.args.banks is not None,
        quiet=session.quiet,
    )
    return bank.layer(EMBEDDING)


def remark(images: Mapping[str, int], features: int) -> str:
    """What few images do to the number; empty where they are enough for covariances of full rank."""
    few = [f"{count} of the {name}" for name, count in images.items() if count <= features]
    if not few:
        return ""
    return (
        f"{' and '.join(few)} are too few images for a covariance of {features} features: FID is exact for these "
        "images and far above that of more; read it beside its floor"
    )


def figure(values: Mapping[str, Any]) -> str:
    """The distance beside what two halves of either set give."""
    names = ["halves of the source", "halves of the target", "source with target"]
    found = [values["floor"]["source"], values["floor"]["target"], values["fid"]]
    title = f"FID of {values['target']} to {values['source']}"
    panel = Panel(title, [Series("FID", range(3), found)], zero=True, height=170)
    return lines([panel], categories=names, x_title="features of the embedding", width=520)


def text(values: Mapping[str, Any]) -> list[str]:
    """The table for the console."""
    rows = [["FID", "value"], [f"{values['source']} with {values['target']}", number(values["fid"])]]
    rows += [[f"two halves of the {name}", number(values["floor"][name])] for name in ("source", "target")]
    return table(rows) + ([f"note: {values['remark']}"] if values["remark"] else [])


def command_line() -> argparse.ArgumentParser:
    """The flags of this script, and those of all."""
    made = parser(__doc__, split="train", without=("layers", "taps"))
    made.add_argument("--source", required=True, help="shard set of the source images, a folder or a URL")
    made.add_argument("--source-split", help="its split (default: as --split)")
    made.add_argument("--state", choices=("start", "end"), default="start", help="whose features")
    return made


if __name__ == "__main__":
    launch(command_line(), main)
