"""Makes the modules of benchmarks/gpu importable."""

import sys

from tests.gpu_kit import FOLDERS

sys.path += [folder for folder in FOLDERS if folder not in sys.path]
