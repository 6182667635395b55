"""Offline questions to the checkpoints of a run: why did transfer help?"""
