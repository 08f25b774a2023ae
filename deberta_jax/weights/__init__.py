"""The converter as a library: checkpoints of every published form in, model directories and Orbax out, torch-free."""

from deberta_jax.weights.load import from_pretrained, load, load_config
from deberta_jax.weights.report import Report
from deberta_jax.weights.save import save_pretrained
