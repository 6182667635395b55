"""What tests ask of a shard set, and no script does."""

from shards.dealing import intersections
from shards.shardset import ShardSet


def shared_groups(shards: ShardSet) -> dict[str, int]:
    """Groups that each pair of splits shares under the view and files in force, counted."""
    return intersections({name: shards.split(name).groups() for name in shards.split_names})
