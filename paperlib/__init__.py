"""Executable companion of "Defending against adversarial attacks using mixture of experts" (arXiv 2512.20821).

    from paperlib import load_profile, load_dataset, load_system

Importing this package needs the core dependencies (pyproject.toml) and no Jupyter.
"""

import sys

from paperlib.errors import ACTIVATE
from paperlib.log import set_up

try:
    from paperlib.config.load import load_profile
    from paperlib.config.schema import Profile
    from paperlib.data import Dataset, load_dataset
    from paperlib.pipeline.study import Study, load_system
except ModuleNotFoundError as error:
    if sys.argv[:1] != ["-m"]:  # the value of sys.argv[0] while `python -m` imports the package
        raise
    sys.exit(f"error: {error}; {ACTIVATE}")

set_up()  # paperlib.log describes how to silence progress

__version__ = "0.1.0"
__all__ = ["Dataset", "Profile", "Study", "load_dataset", "load_profile", "load_system"]
