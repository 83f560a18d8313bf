"""The report of a real run: what is read, what the page holds, and how a browser shows it."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from mmseg_davpt.apis import load_config
from mmseg_davpt.engine import QuietRunner
from mmseg_davpt.reports.report_page import make_page
from mmseg_davpt.reports.run_report import ReportError, RunReport, paired_differences, read_run, read_scalars

SECTIONS = ('run', 'curves', 'classes', 'confusion', 'images', 'attention', 'parameters', 'repeat')
VOID = {'meta', 'link', 'br', 'img', 'input', 'hr'}


@pytest.fixture(scope='module')
def folder(tiny_config, tmp_path_factory):
    """Work folder of 4 iterations with 2 validations."""
    path = tmp_path_factory.mktemp('run') / 'guided <b>run</b>'
    options = {'train_cfg.max_iters': 4, 'train_cfg.val_interval': 2, 'param_scheduler.0.end': 4}
    QuietRunner.from_cfg(load_config(tiny_config, options, str(path))).train()
    return path


@pytest.fixture(scope='module')
def page(folder):
    return make_page([read_run(folder)])


@pytest.fixture
def second(folder, tmp_path):
    """A copy of the run, as of another method that came out 1.5 better."""
    path = tmp_path / 'unguided'
    shutil.copytree(folder, path)
    record = json.loads((path / 'run_record.json').read_text())
    record['trunk']['guided'] = []
    record['validations'][-1]['metrics']['mIoU'] += 1.5
    (path / 'run_record.json').write_text(json.dumps(record))
    return path


class Reader(HTMLParser):
    """Collects tags, and checks that they are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], ''
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def of(self, name):
        return [attrs for tag, attrs in self.tags if tag == name]


class TestPage:
    def test_everything_is_in_the_file(self, page):
        for tag, attrs in Reader(page).tags:
            for name, value in attrs.items():
                if name.split(':')[-1] in ('src', 'href', 'srcset', 'action', 'data'):
                    assert value.startswith(('data:', '#')), (tag, name, value[:80])
        assert not re.search(r'@import|url\(\s*["\']?(?!#)', page)

    def test_all_sections_and_figures(self, page):
        reader = Reader(page)
        assert tuple(section['id'] for section in reader.of('section')) == SECTIONS
        assert {link['href'] for link in reader.of('a')} == {f'#{name}' for name in SECTIONS}
        assert len(reader.of('svg')) >= 8  # six curves, classes, confusion, attention
        for caption in ('Loss', 'mIoU of the validations', 'Guidance terms', 'Own-prompt attention share'):
            assert caption in reader.text
        assert re.search(r'mIoU \S+ % after 4 iterations \(best \S+ % after [24]\), with 94,800 trainable', reader.text)

    def test_names_are_escaped(self, page):
        assert '<b>run' not in page
        assert 'guided <b>run</b>' in Reader(page).text

    def test_images_have_three_views_and_a_slider(self, page):
        reader = Reader(page)
        sliders = [attrs for attrs in reader.of('input') if attrs['type'] == 'range']
        assert sliders
        assert len(reader.of('img')) == 3 * len(sliders)
        assert {label['for'] for label in reader.of('label')} == {slider['id'] for slider in sliders}
        assert all(image['alt'] for image in reader.of('img'))

    def test_the_same_run_gives_the_same_page(self, folder, page):
        assert make_page([read_run(folder)]) == page

    def test_several_runs_stand_side_by_side(self, folder, second):
        page = make_page([read_run(folder), read_run(second)])
        reader = Reader(page)
        assert 'residual_prompts − residual_prompts guided' in reader.text
        assert '+1.50' in reader.text
        assert len(reader.of('section')) == len(SECTIONS)
        ids = [slider['id'] for slider in reader.of('input')]
        assert len(set(ids)) == len(ids)

    def test_a_run_without_validation_or_images(self, folder, tmp_path):
        record = json.loads((folder / 'run_record.json').read_text())
        for key in ('validations', 'confusion', 'images', 'shown', 'attention', 'assignments'):
            record.pop(key)
        page = make_page([RunReport(tmp_path, record)])
        assert 'no validation yet' in page
        assert tuple(section['id'] for section in Reader(page).of('section')) == SECTIONS

    def test_images_that_are_gone_are_said(self, folder, tmp_path):
        shutil.copy(folder / 'run_record.json', tmp_path)
        assert 'The picture is not in the work folder.' in make_page([read_run(tmp_path)])


class TestReading:
    def test_no_record(self, tmp_path):
        with pytest.raises(ReportError, match=r"has no run_record.json: .*dict\(type='RunRecordHook'\)"):
            read_run(tmp_path)

    @pytest.mark.parametrize('content', ['{"version": 1', '[]', '{"version": 2}'])
    def test_a_record_that_is_damaged_or_of_another_version(self, content, tmp_path):
        (tmp_path / 'run_record.json').write_text(content)
        with pytest.raises(ReportError, match=r'run_record.json'):
            read_run(tmp_path)

    def test_a_resumed_part_replaces_what_it_did_again(self, tmp_path):
        parts = {
            '1': '{"loss": 3.0, "step": 1}\n{"loss": 2.0, "step": 2}\n{"loss": 1.5, "step": 3}\n{"loss": 1.',
            '2': '{"loss": 1.0, "step": 2, "name": "x"}\n{"loss": NaN, "step": 3}\n',
        }
        for name, text in parts.items():
            (tmp_path / name / 'vis_data').mkdir(parents=True)
            (tmp_path / name / 'vis_data/scalars.json').write_text(text)
        assert read_scalars(tmp_path) == {'loss': [(1, 3.0), (2, 1.0)]}

    def test_differences_are_paired_by_seed(self, tmp_path):
        def run(method, seed, score):
            record = dict(
                config='c.py',
                seed=seed,
                trunk=dict(methods=[method], guided=[]),
                validations=[dict(iteration=9, metrics=dict(mIoU=score), classes={})],
            )
            return RunReport(tmp_path, record)

        runs = [run('a', 0, 40.0), run('a', 1, 42.0), run('b', 0, 41.0), run('b', 1, 44.0), run('b', 2, 90.0)]
        (pair,) = paired_differences(runs)
        assert (pair.first, pair.second, pair.seeds, pair.differences) == ('a', 'b', [0, 1], [1.0, 2.0])
        assert pair.mean == 1.5
        assert pair.error == pytest.approx(0.5)
        assert paired_differences([run('a', 0, 1.0), run('b', 1, 2.0)]) == []
        other = run('b', 0, 41.0)
        other.record['classes'] = ['sky', 'road']  # of another dataset
        assert paired_differences([runs[0], other]) == []
        half = run('b', 0, 41.0)
        half.record.update(done=5, iterations=9)
        assert paired_differences([runs[0], half]) == paired_differences([half]) == []


CHROMIUM = shutil.which('chromium') or shutil.which('google-chrome')


@pytest.mark.skipif(CHROMIUM is None, reason='no headless browser')
class TestBrowser:
    """In Chromium, without a network."""

    def browse(self, path, *options):
        command = [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--enable-logging=stderr', *options]
        command += [f'--user-data-dir={path.parent}/profile', '--virtual-time-budget=2000', path.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert ':CONSOLE' not in done.stderr, done.stderr[-2000:]
        return done.stdout

    def test_figures_are_shown_and_sliders_follow_the_keyboard(self, page, tmp_path):
        """A script at the end of the page reports what a reader would see."""
        probe = """
<script>
const slide = document.querySelector('.slide'), range = slide.querySelector('input'), seen = [];
const views = [...slide.querySelectorAll('img')];
const shown = () => views.filter((view) => view.offsetHeight > 0).map((view) => view.dataset.kind).join();
range.focus();
seen.push(document.activeElement === range && range.tabIndex >= 0, shown());
for (let step = 0; step < 2; step++) {
  range.stepDown();
  range.dispatchEvent(new Event('input'));
  seen.push(shown());
}
const figures = [...document.querySelectorAll('figure svg')].filter((svg) => svg.getBoundingClientRect().height < 100);
const loaded = [...document.images].filter((image) => !image.naturalWidth);
seen.push(figures.length, loaded.length, document.documentElement.scrollWidth <= window.innerWidth);
document.body.setAttribute('data-seen', seen.join(' '));
</script></body>"""
        path = tmp_path / 'report.html'
        path.write_text(page.replace('</body>', probe))
        dom = self.browse(path, '--dump-dom', '--window-size=1200,900')
        assert 'data-seen="true prediction truth image 0 0 true"' in dom, re.findall('data-seen="[^"]*"', dom)

    def test_it_prints(self, page, tmp_path):
        path = tmp_path / 'report.html'
        path.write_text(page)
        self.browse(path, f'--print-to-pdf={tmp_path}/report.pdf')
        pdf = (tmp_path / 'report.pdf').read_bytes()
        assert pdf.startswith(b'%PDF')
        assert len(re.findall(rb'/Type\s*/Page\b', pdf)) >= 3
        assert pdf.count(b'/Subtype /Image') >= 3  # all views of an image, side by side
