"""What pipelines run on: the networks, where their weights come from, and the manager that shares them."""

import logging
import sys

# Where the package ``kernels`` is installed, bitsandbytes fetches code with it and runs that, at its own import, which
# diffusers and transformers bring about. Code comes from installed packages only, so that package counts as missing,
# before any of the three is imported; and the line by which bitsandbytes says that it is missing is no use to anybody.
sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
