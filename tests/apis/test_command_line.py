"""``--cfg-options``: what a value becomes."""

from argparse import ArgumentParser

import pytest
from conftest import ROOT
from mmengine.config import DictAction as MmengineAction

from mmseg_davpt.apis.command_line import DictAction


def parse(*arguments, action=DictAction):
    parser = ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=action)
    return parser.parse_args(['--cfg-options', *arguments]).cfg_options


@pytest.mark.parametrize(
    ('value', 'expected'),
    [
        ('/path with spaces/x', '/path with spaces/x'),
        ('"/a b"', '/a b'),
        ("'a b'", 'a b'),
        ('[a b, c d]', ['a b', 'c d']),
        ("['a b', 'c']", ['a b', 'c']),
        ('( a b , [ 1, 2 ] )', ('a b', [1, 2])),
        ('/data (1)/x', '/data (1)/x'),
        ('a  b', 'a  b'),
        (' 5 ', 5),
    ],
)
def test_spaces_survive(value, expected):
    assert parse(f'k={value}') == dict(k=expected)


@pytest.mark.parametrize(
    'value',
    ['1', '-2.5', '1e-3', 'True', 'false', 'None', 'abc', '', 'a,b', '1,2', '[1,2]', '(1,)', '[(1,2),(3,4)]', '"a"',
     'x=y', '[(1, 2), (3, 4)]', '(1, 2)', '[]', 'f(x)', '[a,[b,c]]', '[[1],[2]]', 'nan'],
)  # fmt: skip
def test_everything_else_is_as_in_mmengine(value):
    ours, theirs = parse(f'a.b={value}'), parse(f'a.b={value}', action=MmengineAction)
    assert str(ours) == str(theirs)


@pytest.mark.parametrize('arguments', [['k'], ['=3'], ['data_root=/a', 'b'], ['a b=3'], ['a..b=3'], ['k=[1,2']])
def test_what_is_no_option_ends_with_a_message(arguments, capsys):
    with pytest.raises(SystemExit):
        parse(*arguments)
    assert repr(arguments[-1]) in capsys.readouterr().err


def test_every_command_line_uses_it():
    texts = [path.read_text() for path in (ROOT / 'tools').glob('*.py')]
    users = [text for text in texts if '--cfg-options' in text]
    assert len(users) >= 6
    assert all('from mmseg_davpt.apis.command_line import DictAction' in text for text in users)
