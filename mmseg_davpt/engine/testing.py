"""What evaluation and inference ask of a checkpoint and a config."""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config
from mmengine.runner import CheckpointLoader
from torch import nn


def require_complete(model: nn.Module, checkpoint: str | Path) -> None:
    """Refuse a checkpoint that would leave parts of the model random; mmengine would only warn.

    Args:
        model: The segmentor.
        checkpoint: A checkpoint of the whole model. Guidance is not needed for inference, hence may be missing.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Tensors are missing or of another shape; the message names some.
    """
    if not Path(checkpoint).is_file():
        raise FileNotFoundError(f'no checkpoint at {checkpoint}; training writes it to work_dirs/CONFIG/iter_N.pth')
    state = CheckpointLoader.load_checkpoint(str(checkpoint), map_location='cpu')
    state = state.get('state_dict', state)
    problems = []
    for name, tensor in model.state_dict().items():
        if name.startswith('guidance.'):
            continue
        if name not in state:
            problems.append(f'{name} is missing')
        elif state[name].shape != tensor.shape:
            problems.append(f'{name} is {tuple(state[name].shape)} instead of {tuple(tensor.shape)}')
    if problems:
        more = f' and {len(problems) - 4} more' if len(problems) > 4 else ''
        raise ValueError(
            f'{checkpoint} does not fit this config: {"; ".join(problems[:4])}{more}. Was it made with another config?'
        )


def use_tta(cfg: Config) -> None:
    """Test on several scales and flipped, as the config's ``tta_pipeline`` says.

    Raises:
        ValueError: The config has none.
    """
    if 'tta_pipeline' not in cfg or 'tta_model' not in cfg:
        raise ValueError('--tta: the config has no tta_pipeline or tta_model')
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    cfg.tta_model.module = cfg.model
    cfg.model = cfg.tta_model
