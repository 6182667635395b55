"""Flags of make_shards that would do nothing beside the others: refused in one line, not passed over.

A flag at its default is never idle: it asks for what happens anyway.
"""

import argparse
from collections.abc import Callable, Collection

UNDEALT = ("none", "study", "study-exact")  # splits that take no shares


def idle_flag(
    args: argparse.Namespace, default: Callable[[str], object], csv: Collection[str], slides: Collection[str]
) -> str:
    """What to tell of the first idle flag; "" where there is none.

    `default` gives a flag's default by its attribute; `csv` and `slides` are the attributes of flags that are of
    `--dataset csv` and of whole slides alone.
    """
    given = {name for name, value in vars(args).items() if _plain(value) != _plain(default(name))}
    own, cut = args.dataset == "csv", args.dataset in ("slides", "Camelyon-slides")
    named = own or args.dataset == "slides"
    split_file = "split_file" in given
    reasons = {name: f"is of --dataset csv; {args.dataset} has its own tables" for name in csv if not own}
    reasons |= {name: f"cuts whole slides; {args.dataset} is none" for name in slides if not cut}
    reasons |= {"name": f"is of --dataset csv or slides; this set is called {args.dataset}"}
    if named:
        del reasons["name"]
    if args.format != "jpeg":
        reasons |= dict.fromkeys(("quality", "chroma"), f"is of --format jpeg, not of {args.format}")
    if split_file:
        reasons["split"] = "and --split-file exclude each other: leave one of them away"
    if (split_file or args.split in UNDEALT) and args.repeats == 1:
        reasons["shares"] = f"deals samples; {'--split-file' if split_file else f'--split {args.split}'} does not"
    if args.dry_run:
        reasons["json"] = "tells of a finished set; --dry-run makes none"
    for name, reason in reasons.items():
        if name in given:
            return f"--{name.replace('_', '-')} {reason}"
    if not own and any("=" in entry for entry in args.metadata):
        return f"--metadata FIELD=COLUMN is of --dataset csv; of {args.dataset} name the fields alone"
    return ""


def _plain(value: object) -> object:
    """argparse makes a list of what is given, where the default may be a tuple."""
    return list(value) if isinstance(value, tuple) else value
