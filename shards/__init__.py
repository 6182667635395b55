"""Shard sets: the format, the plan, the pipelines and the loader. Knows no dataset by name and no model."""
