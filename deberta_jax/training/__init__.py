"""Trains models.

``experiment`` describes a run and ``resolve`` completes it; ``finetune`` and ``pretrain`` make its job. ``loop`` runs a
job: it takes steps (``step``), evaluates, saves states (``checkpoints``), and at SIGTERM saves and ends
(``distributed.GracefulStop``).
"""
