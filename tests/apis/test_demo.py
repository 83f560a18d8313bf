"""The demo: through gradio's client as programs call it, and in a headless browser as people do."""

import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image
from small_tasks import describe, make_task, save_trunk, state_of
from test_inference import noise

from mmseg_davpt import TaskSegmenter
from mmseg_davpt.tasks import write_task

gradio = pytest.importorskip('gradio')
client_module = pytest.importorskip('gradio_client')
from mmseg_davpt.apis import demo  # noqa: E402

CHROMIUM = shutil.which('chromium') or shutil.which('google-chrome')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('demo')
    trunk = save_trunk(folder / 'trunk.safetensors')
    cfg, model = make_task(folder / 'streets.task.safetensors', trunk, guidance=True)
    model.guidance.assignment_of[5].assignment.copy_(torch.tensor([0, 2, 2, 1, 0]))
    write_task(folder / 'streets.task.safetensors', describe(cfg, model), state_of(model))
    make_task(folder / 'fashion.task.safetensors', trunk, seed=1, num_classes=3, tuning='lora', prompts=None)
    for name, seed in (('a', 1), ('b', 2)):
        Image.fromarray(noise(48, 80, seed)).save(folder / f'{name}.png')
    (folder / 'text.png').write_text('no picture')
    Image.fromarray(noise(16, 32)).resize((5000, 2000)).save(folder / 'large.png')
    return folder


@pytest.fixture(scope='module')
def segmenter(folder):
    segmenter = TaskSegmenter.load(
        folder / 'streets.task.safetensors', folder / 'trunk.safetensors', max_pixels=demo.MAX_PIXELS
    )
    segmenter.add_task('fashion', folder / 'fashion.task.safetensors')
    return segmenter


@pytest.fixture(scope='module')
def address(segmenter):
    page = demo.build_demo(segmenter)
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, show_error=True, server_port=None, ssr_mode=False)
    yield url
    page.close()


@pytest.fixture
def client(address):
    return client_module.Client(address, verbose=False)


def send(folder, *names):
    return [client_module.handle_file(str(folder / name)) for name in names]


def test_it_listens_on_this_machine_only(address):
    assert address.startswith('http://127.0.0.1:')


def test_programs_get_the_masks_of_the_segmenter(client, segmenter, folder):
    gallery, masks, classes, _ = client.predict(send(folder, 'a.png', 'b.png'), 'fashion', 0.5, api_name='/segment')
    assert len(gallery) == len(masks) == 2
    for name, mask in zip('ab', masks):
        expected = segmenter(folder / f'{name}.png', task='fashion')
        assert np.array_equal(np.asarray(Image.open(mask)), expected.mask)
    assert {choice[0] for choice in classes['choices']} <= set(segmenter.tasks['fashion'].classes)


def test_opacity_and_attention_go_on_with_the_last_images(client, segmenter, folder):
    client.predict(send(folder, 'a.png'), 'streets', 0.5, api_name='/segment')
    gallery = client.predict(0.0, api_name='/overlay')
    drawn = np.asarray(Image.open(gallery[0]['image']).convert('RGB'))
    assert np.array_equal(drawn[:48, :80], noise(48, 80, 1))
    heat = np.asarray(Image.open(client.predict('class 1', api_name='/attention')).convert('RGB'))
    assert heat.shape == (48, 80, 3)


@pytest.mark.parametrize(
    'names, task, message',
    [
        (['text.png'], 'streets', 'cannot be read as an image'),
        (['large.png'], 'streets', 'pixels'),
        ([], 'streets', 'Drop an image first'),
        (['a.png'] * 17, 'streets', 'at most 16'),
    ],
)
def test_bad_input_is_said(names, task, message, client, folder):
    with pytest.raises(Exception, match=message):
        client.predict(send(folder, *names), task, 0.5, api_name='/segment')


def test_a_task_without_guided_prompts_has_no_attention(client, folder):
    client.predict(send(folder, 'a.png'), 'fashion', 0.5, api_name='/segment')
    with pytest.raises(Exception, match='only classes in blocks none have prompts'):
        client.predict('class 0', api_name='/attention')


def test_few_masks_stay_on_the_disk(segmenter, folder, monkeypatch):
    monkeypatch.setattr(demo, '_KEPT_MASKS', 3)
    service = demo._Service(segmenter)
    for _ in range(5):
        service.segment([str(folder / 'a.png')], 'streets')
    assert len(list(demo.Path(service._folder.name).rglob('*.png'))) == 3


def test_a_login_needs_both_parts():
    assert demo.check_auth('me:secret:word') == ('me', 'secret:word')
    assert demo.check_auth(None) is None
    with pytest.raises(ValueError, match='expected USER:PASSWORD') as caught:
        demo.check_auth('secret')
    assert 'secret' not in str(caught.value)


def test_a_demo_without_tasks_is_refused(folder):
    with pytest.raises(ValueError, match='the demo needs a task'):
        demo.build_demo(TaskSegmenter(folder / 'trunk.safetensors'))


@pytest.mark.skipif(CHROMIUM is None, reason='no chromium')
def test_the_page_is_shown_in_a_browser(address, tmp_path):
    command = [
        CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--virtual-time-budget=20000',
        '--window-size=1300,900', f'--user-data-dir={tmp_path / "profile"}',
    ]  # fmt: skip

    def browse(option):
        return subprocess.run([*command, option, address], check=True, capture_output=True, text=True, timeout=120)

    browse(f'--screenshot={tmp_path / "page.png"}')
    page = np.asarray(Image.open(tmp_path / 'page.png').convert('L'))
    assert len(np.unique(page)) > 20  # not blank
    dom = browse('--dump-dom').stdout
    for words in ('Segment images', 'Task', 'Opacity of the classes', 'Index masks'):
        assert words in dom
