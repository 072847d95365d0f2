"""What multiprocessing's fork server imports first, so that every fork starts with torch and transformers.

Importing them takes seconds, and a script starts workers again and again. The fork server computes nothing and never
initializes CUDA, so a fork is as good as a fresh process. It is killed when the script ends.
"""

import contextlib
import gc
import importlib
import os
import sys

from bench.start_process import become_worker, environment

IMPORTS = "torch", "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto"

become_worker()
os.environ.update(environment())
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # looking for a GPU must not initialize CUDA: no fork could use it
sys.modules["sklearn"] = None  # transformers would import it, for generating texts: a second and 100 MB
for module in IMPORTS:
    with contextlib.suppress(Exception):  # a worker that needs it imports it again, and reports why it can't
        importlib.import_module(module)
del sys.modules["sklearn"]  # sentence-transformers needs it
gc.freeze()  # collecting garbage would copy the pages that forks share
