"""The version, readable without importing torch."""

__version__ = '0.2.0'


def library_versions() -> dict[str, str]:
    """Versions of this project, of its libraries and of Python, to save with results."""
    # Here, not above: the build reads this file where nothing is installed.
    import platform

    import mmcv
    import mmengine
    import mmseg
    import timm
    import torch

    libraries = dict(mmseg=mmseg, mmengine=mmengine, mmcv=mmcv, timm=timm, torch=torch)
    versions = {name: str(library.__version__) for name, library in libraries.items()}
    return dict(mmseg_davpt=__version__, **versions, python=platform.python_version())
