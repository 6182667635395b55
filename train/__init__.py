"""Training of timm models on shard sets with DeepSpeed, and what the analyses share with it."""
