"""Raw datasets become shard sets, once. Knows no torch, no DALI and no model."""
