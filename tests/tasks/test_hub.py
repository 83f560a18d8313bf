"""Sharing task files: model card, folders, and calls of the Hub, of which no test reaches the network."""

from unittest.mock import Mock, create_autospec

import numpy as np
import pytest
from huggingface_hub import HfApi, ModelCard, hf_hub_download
from huggingface_hub.errors import RepositoryNotFoundError
from small_tasks import make_task, save_trunk

from mmseg_davpt import TaskFileError, TaskSegmenter
from mmseg_davpt.tasks import hub, read_info


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('hub')
    make_task(folder / 'streets.task.safetensors', save_trunk(folder / 'trunk.safetensors'), guidance=True)
    return folder


@pytest.fixture(scope='module')
def model(folder):
    return TaskSegmenter.load(folder / 'streets.task.safetensors', folder / 'trunk.safetensors')


def test_a_folder_comes_back(model, folder, tmp_path):
    copy = model.save_pretrained(tmp_path / 'shared', license='cc-by-4.0', datasets=['My streets'])
    assert copy.read_bytes() == (folder / 'streets.task.safetensors').read_bytes()
    again = TaskSegmenter.from_pretrained(tmp_path / 'shared', folder / 'trunk.safetensors')
    image = np.zeros((32, 32, 3), np.uint8)
    assert np.array_equal(again(image).scores, model(image).scores)
    assert list(again.tasks) == ['shared']


def test_the_card_says_what_it_is_and_how_to_load_it(model, tmp_path):
    model.save_pretrained(tmp_path, license='cc-by-4.0', datasets=['My streets'])
    card = ModelCard.load(tmp_path / 'README.md')
    assert card.data.library_name == 'mmseg_davpt'
    assert card.data.base_model == 'timm/test_vit'
    assert card.data.license == 'cc-by-4.0'
    assert card.data.pipeline_tag == 'image-segmentation'
    assert 'prompts' in card.data.tags
    for words in (
        '5 classes: class 0, class 1', '| data | My streets |', '| tuning methods | prompts |',
        '| decode head | FCNHead |',
        f"TaskSegmenter.from_pretrained('{tmp_path}'", 'scale [128, 96]', 'mode whole',
    ):  # fmt: skip
        assert words in card.text, words


def test_the_license_of_the_trunk_is_that_of_timm(folder):
    info = read_info(folder / 'streets.task.safetensors')
    object.__setattr__(info.trunk, 'arch', 'vit_small_patch14_dinov2.lvd142m')
    assert "license of the trunk's weights | apache-2.0" in hub.model_card(info, 1, 'me/x').text


def test_a_push_uploads_file_and_card(model, folder, monkeypatch):
    api = create_autospec(HfApi, instance=True)
    uploaded = {}

    def upload(*, folder_path, **_):
        uploaded.update({path.name: path.read_bytes() for path in hub.Path(folder_path).iterdir()})
        return Mock(commit_url='https://hub/commit')

    api.upload_folder.side_effect = upload
    monkeypatch.setattr(hub, 'HfApi', lambda token: api)
    assert model.push_to_hub('me/streets', private=True, license='mit') == 'https://hub/commit'
    api.create_repo.assert_called_once_with('me/streets', private=True, exist_ok=True)
    assert uploaded.keys() == {'model.task.safetensors', 'README.md'}
    assert uploaded['model.task.safetensors'] == (folder / 'streets.task.safetensors').read_bytes()
    assert b"from_pretrained('me/streets'" in uploaded['README.md']


def test_a_damaged_file_is_not_uploaded(folder, tmp_path, monkeypatch):
    data = bytearray((folder / 'streets.task.safetensors').read_bytes())
    data[-5] ^= 1
    (tmp_path / 'x.task.safetensors').write_bytes(data)
    api = create_autospec(HfApi, instance=True)
    monkeypatch.setattr(hub, 'HfApi', lambda token: api)
    with pytest.raises(TaskFileError, match='another checksum'):
        hub.push_to_hub(tmp_path / 'x.task.safetensors', 'me/streets')
    assert not api.method_calls


def test_a_repository_is_fetched(model, folder, monkeypatch):
    fetch = create_autospec(hf_hub_download, return_value=str(folder / 'streets.task.safetensors'))
    monkeypatch.setattr(hub, 'hf_hub_download', fetch)
    again = TaskSegmenter.from_pretrained('me/streets', folder / 'trunk.safetensors', revision='v1')
    fetch.assert_called_once_with('me/streets', 'model.task.safetensors', revision='v1', token=None)
    assert list(again.tasks) == ['streets']


def test_what_the_hub_does_not_have_is_named(folder, tmp_path, monkeypatch):
    error = RepositoryNotFoundError('404: no such repository', response=Mock())
    monkeypatch.setattr(hub, 'hf_hub_download', create_autospec(hf_hub_download, side_effect=error))
    with pytest.raises(
        TaskFileError, match=r'me/none is no folder, and its model\.task\.safetensors cannot be fetched'
    ):
        TaskSegmenter.from_pretrained('me/none', folder / 'trunk.safetensors')
    with pytest.raises(FileNotFoundError, match=r'holds no model\.task\.safetensors'):
        TaskSegmenter.from_pretrained(tmp_path)
