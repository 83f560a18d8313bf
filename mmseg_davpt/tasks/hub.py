"""Task files on the Hugging Face Hub, each with a model card."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import HfApi, ModelCard, ModelCardData, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from .description import TaskFileError, TaskInfo
from .file import SUFFIX, read_task

HUB_NAME = f'model{SUFFIX}'  # of the task file in a folder or repository

_CARD = """---
{metadata}
---

# {name}

Semantic segmentation of {number} classes: {classes}.

This is a task file of mmseg_davpt: {parameters:,} parameters that were trained on a frozen Vision Transformer, without
the transformer itself.

| | |
| --- | --- |
| trunk | `{arch}` |
| license of the trunk's weights | {trunk_license} |
| tuning methods | {methods} |
| decode head | {head} |
| data | {data} |
| {metric_names} | {metric_values} |
| images | {resize} |
| test | {test} |

## Use

```python
from mmseg_davpt import TaskSegmenter

model = TaskSegmenter.from_pretrained('{repo}', trunk='timm')  # or the path of the trunk's weights
result = model('photo.jpg')
result.mask, result.names, result.overlay()
```

The file belongs to these weights of the trunk; others are refused. Loading it executes nothing.

Written by {versions}; config {config_hash}.
"""


def save_task_folder(
    path: str | Path, folder: str | Path, repo: str = '', license: str | None = None, datasets: list[str] | None = None
) -> Path:
    """Copy a task file to a folder, and write its model card beside it.

    Args:
        path: The task file. It is read and checked first.
        folder: Folder, made if it does not exist.
        repo: Name of the repository, for the card; the folder by default.
        license: License of the task file, as the Hub names it, e.g. ``cc-by-4.0``.
        datasets: Names of the data that the task was trained on.

    Returns:
        The copy.

    Raises:
        FileNotFoundError: There is no task file.
        TaskFileError: It is damaged.
    """
    info, tensors = read_task(path)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / HUB_NAME
    shutil.copyfile(path, copy)
    parameters = sum(tensor.numel() for name, tensor in tensors.items() if not name.startswith('guidance.'))
    card = model_card(info, parameters, repo or str(folder), license, datasets)
    (folder / 'README.md').write_text(str(card), encoding='utf-8')
    return copy


def push_to_hub(
    path: str | Path,
    repo: str,
    license: str | None = None,
    datasets: list[str] | None = None,
    private: bool = False,
    token: str | None = None,
    message: str = 'Upload task file',
) -> str:
    """Upload a task file and its model card.

    Args:
        path: The task file.
        repo: ``USER/NAME``; made if it does not exist.
        license: See :func:`save_task_folder`.
        datasets: See :func:`save_task_folder`.
        private: Whether a new repository is private.
        token: Token of the Hub; by default that of ``hf auth login``.
        message: Message of the commit.

    Returns:
        Address of the commit.

    Raises:
        TaskFileError: The file is damaged; nothing is uploaded.
        HfHubHTTPError: The Hub refuses.
    """
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_task_folder(path, folder, repo, license, datasets)
        api.create_repo(repo, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message).commit_url)


def fetch_task(repo: str | Path, revision: str | None = None, token: str | None = None) -> Path:
    """Find the task file of a folder, or download that of a repository.

    Args:
        repo: A folder of :func:`save_task_folder`, or ``USER/NAME`` on the Hub.
        revision: Branch, tag or commit on the Hub.
        token: Token of the Hub; by default that of ``hf auth login``.

    Raises:
        FileNotFoundError: The folder holds no task file.
        TaskFileError: The Hub has no such file, or does not hand it out.
    """
    folder = Path(repo)
    if folder.is_dir():
        if not (folder / HUB_NAME).is_file():
            raise FileNotFoundError(f'{folder} holds no {HUB_NAME}')
        return folder / HUB_NAME
    try:
        return Path(hf_hub_download(str(repo), HUB_NAME, revision=revision, token=token))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().partition('\n')[0]
        raise TaskFileError(
            f'{repo} is no folder, and its {HUB_NAME} cannot be fetched from the Hub: {reason}'
        ) from error


def model_card(
    info: TaskInfo, parameters: int, repo: str, license: str | None = None, datasets: list[str] | None = None
) -> ModelCard:
    """Write the model card of a task.

    Args:
        info: Description of the task.
        parameters: Numbers in the file.
        repo: Where the file is, for the example.
        license: License of the file.
        datasets: Names of the data.
    """
    data = ModelCardData(
        license=license,
        datasets=datasets,
        base_model=f'timm/{info.arch}',
        library_name='mmseg_davpt',
        pipeline_tag='image-segmentation',
        tags=['semantic-segmentation', 'visual-prompt-tuning', *_methods(info)],
    )
    pretrained = timm.models.get_pretrained_cfg(info.arch)
    classes = ', '.join(info.classes[:20]) + (' ...' if len(info.classes) > 20 else '')
    test = info.model.get('test_cfg', {})
    content = _CARD.format(
        metadata=data.to_yaml(),
        name=repo.rpartition('/')[2],
        number=len(info.classes),
        classes=classes,
        parameters=parameters,
        arch=info.arch,
        trunk_license=(pretrained and pretrained.license) or 'see its authors',
        methods=', '.join(_methods(info)) or 'none: the trunk is frozen',
        head=info.model['decode_head']['type'],
        data=', '.join(datasets or ()) or 'not stated',
        metric_names=', '.join(info.metrics) or 'figures',
        metric_values=', '.join(f'{value:.2f}' for value in info.metrics.values()) or 'not stated',
        resize='as they are' if info.resize is None else f'resized to {_words(info.resize)}',
        test=_words(test) or 'whole images',
        repo=repo,
        versions=', '.join(f'{name} {version}' for name, version in info.versions.items()) or 'an unknown version',
        config_hash=info.config_hash or 'unknown',
    )
    return ModelCard(content)


def _methods(info: TaskInfo) -> list[str]:
    tuning: Any = info.model['backbone'].get('tuning')
    return sorted(tuning) if isinstance(tuning, dict) else []


def _words(options: dict[str, Any]) -> str:
    return ', '.join(f'{name} {value}' for name, value in options.items())
