"""Executable companion of "Defending against adversarial attacks using mixture of experts" (arXiv 2512.20821).

    from paperlib import load_profile, load_dataset, load_system

Importing this package needs torch, torchvision, NumPy, pandas and safetensors, and no Jupyter.
"""

from paperlib.data import Dataset, load_dataset
from paperlib.profiles import Profile, load_profile
from paperlib.study import Study, load_system

__version__ = "0.1.0"
__all__ = ["Dataset", "Profile", "Study", "load_dataset", "load_profile", "load_system"]
