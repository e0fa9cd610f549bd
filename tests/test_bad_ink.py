"""Bad ink, made by hand and by mutation: each is refused by name with a reason and a cure, or read to something sane; and the good files beside it are still read."""
import functools, io, os, tarfile, zipfile

import numpy as np
import pytest

from mask_match import sources
from mask_match.latex import canonical
from mask_match.inkml import Ink, InkError, Node, Symbol, parse_ink, read_inks, with_roles, write_ink

TREE = Node('msup', children=(Node('mi', 'x', 0), Node('mn', '2', 1)))
TRACES = tuple(np.array(t, np.float32) for t in ([[0, 4], [4, 8]], [[4, 4], [0, 8]], [[5, 0], [7, 1], [5, 3], [7, 3]]))
GOOD = Ink('good', TRACES, with_roles([Symbol('x', (0, 1)), Symbol('2', (2,))], TREE), '$x^2$', TREE, 'me', 'set')
DATA = write_ink(GOOD)
T = '<trace id="0">0 0, 1 1</trace>'

def laughs(depth=9):
    lines = ''.join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, depth))
    return f'<?xml version="1.0"?><!DOCTYPE ink [<!ENTITY l0 "ha">{lines}]><ink><annotation type="truth">&l{depth - 1};</annotation>{T}</ink>'

def ink(inside): return f'<ink>{inside}</ink>'
def trace(text): return ink(f'<trace id="0">{text}</trace>')
def old(a, b): return DATA.replace(a, b)

# name: (bytes or text, part of the reason)
REFUSED = {
    'zero': (b'', 'empty'), 'blank': (b' \n\t ', 'empty'), 'nul': (b'\0' * 100, 'empty'),
    'text': ('hello', 'not InkML'), 'csv': ('1,2\n3,4', 'not InkML'), 'html': ('<html><body/></html>', 'not InkML'), 'svg': ('<svg><path d="M0 0"/></svg>', 'not InkML'),
    'png': (b'\x89PNG\r\n\x1a\n' + bytes(range(256)), 'not InkML'), 'zip': (b'PK\3\4' + b'x' * 99, 'not InkML'), 'gzip': (b'\x1f\x8b\x08' + b'x' * 99, 'not InkML'),
    'noise': (np.random.default_rng(0).bytes(3000), 'not InkML'), 'open_only': ('<ink>', 'cut off'), 'bracket': ('<', 'not InkML'), 'close_only': ('</ink>', 'not InkML'),
    'no_trace': (ink(''), 'no <trace>'), 'self_closed': ('<ink/>', 'no <trace>'), 'truth_only': (ink('<annotation type="truth">x</annotation>'), 'no <trace>'),
    'math_only': (ink('<annotationXML><math><mi>x</mi></math></annotationXML>'), 'no <trace>'), 'wrong_case': (ink('<Trace>0 0, 1 1</Trace>'), 'no <trace>'),
    'pen_up_only': (ink('<trace type="penUp">0 0, 1 1</trace>'), 'no <trace>'),
    'empty_trace': (trace(''), 'no trace has a point'), 'blank_trace': (trace('\n \t'), 'no trace has a point'), 'commas': (trace(',,,'), 'no trace has a point'),
    'one_point': (trace('5 5'), 'zero size'), 'same_points': (trace('5 5, 5 5, 5 5'), 'zero size'), 'same_dots': (ink('<trace>5 5</trace><trace>5 5</trace>'), 'zero size'),
    'nan': (trace('0 0, NaN 1'), 'NaN'), 'nan_lower': (trace('nan nan, 1 1'), 'NaN'), 'inf': (trace('0 0, inf 1'), 'NaN'), 'minus_inf': (trace('0 0, 1 -Infinity'), 'NaN'),
    'huge_number': (trace('0 0, 1e300 1'), 'large'), 'overflow': (trace('0 0, 1e999 1'), 'large'), 'many_digits': (trace('0 0, ' + '9' * 400 + ' 1'), 'large'),
    'word': (trace('0 0, one 1'), 'not numeric'), 'hex': (trace('0 0, #FF 1'), 'not numeric'), 'differences': (trace("0 0, '1 '1"), 'not numeric'), 'wildcard': (trace('0 0, * 1'), 'not numeric'),
    'two_dots': (trace('0 0, 1.2.3 1'), 'not numeric'), 'minus_minus': (trace('0 0, --1 1'), 'not numeric'), 'inner_minus': (trace('0 0, 1-2 1'), 'not numeric'),
    'only_minus': (trace('0 0, - 1'), 'not numeric'), 'only_dot': (trace('0 0, . 1'), 'not numeric'), 'semicolon': (trace('0 0; 1 1, 2 2'), 'not numeric'), 'letters': (trace('a b, c d'), 'not numeric'),
    'comma_decimals': (trace('0,5 1,5, 2,5 3,5'), 'numbers it needs'), 'one_number': (trace('0 0, 1'), 'numbers it needs'), 'odd_sum': (trace('1 2, 3, 4 5 6'), 'numbers it needs'),
    'no_commas': (trace(' '.join(map(str, range(99)))), 'comma'), 'one_channel': (trace('1, 2, 3'), 'numbers it needs'),
    'far_columns': ('<ink><traceFormat><channel name="F"/><channel name="T"/><channel name="X"/><channel name="Y"/></traceFormat>' + T + '</ink>', 'numbers it needs'),
    'bad_second_trace': (ink(T + '<trace id="bad one">0 0, x 1</trace>'), 'bad one'), 'replaced_char': (trace('0 0, 1\ufffd 1'), 'not numeric'),
    'laughs': (laughs(), 'document type'), 'deep_laughs': (laughs(40), 'document type'), 'doctype': ('<!DOCTYPE ink>' + ink(T), 'document type'),
    'external_dtd': ('<!DOCTYPE ink SYSTEM "http://example.org/ink.dtd">' + ink(T), 'document type'), 'laughs_utf16': (laughs().encode('utf-16'), 'document type'),
    'external_file': ('<!DOCTYPE ink [<!ENTITY f SYSTEM "file:///etc/passwd">]>' + ink('<annotation type="truth">&f;</annotation>' + T), 'document type'),
    'parameter_entity': ('<!DOCTYPE ink [<!ENTITY % p SYSTEM "file:///etc/passwd"> %p;]>' + ink(T), 'document type'), 'late_entity': (ink('<!ENTITY a "b">' + T), 'document type'),
    'quadratic': ('<!DOCTYPE ink [<!ENTITY a "' + 'a' * 50_000 + '">]>' + ink('<annotation>' + '&a;' * 1000 + '</annotation>' + T), 'document type'),
    'cut_in_trace': (DATA[:DATA.index(b'</trace>') - 3], 'cut off'), 'cut_in_group': (DATA[:-90], 'cut off'), 'cut_in_end': (DATA[:-3], 'cut off'), 'cut_in_math': (DATA[:DATA.index(b'</math>')], 'cut off'),
    'twice_wrapped': ('<root>' + ink(T) + '</root>', 'not InkML'), 'escaped': ('&lt;ink&gt;' + T, 'not InkML'), 'mathml': ('<math><mi>x</mi></math>', 'not InkML'),
    'open_trace': (ink(T.replace('</trace>', '') + '<trace id="2">7 7, 9 9</trace>'), 'never closed'), 'ink_behind': (ink(T) + T, 'behind its end'),
    'tag_in_truth': (ink('<annotation type="truth">$a <b$</annotation>' + T), 'begins nothing'),
    'huge_text': ('<ink><trace>0 0, 1 1' + ', 2 2' * 2_100_000 + '</trace></ink>', 'too large'),
}

SANE = {  # read all the same
    'as_written': DATA, 'no_declaration': DATA.partition(b'?>')[2], 'bom': b'\xef\xbb\xbf' + DATA, 'crlf': old(b'\n', b'\r\n'), 'no_namespace': old(b' xmlns="http://www.w3.org/2003/InkML"', b''),
    'leading_space': b'\n\n ' + DATA.partition(b'?>')[2], 'comment_before': b'<!-- pen -->' + DATA.partition(b'?>')[2], 'comment_inside': old(b', ', b', <!-- pen --> '),
    'cdata': old(b'$x^2$', b'<![CDATA[$x^2$]]>'), 'stylesheet': DATA.replace(b'?>', b'?><?xml-stylesheet href="http://example.org/x.xsl"?>', 1), 'junk_behind': DATA + b'junk', 'nul_behind': DATA + b'\0\0',
    'bad_id': old(b'"s0"', b'"(_1"').replace(b'#s0', b'(_1'), 'colon_id': old(b'"s0"', b'"0:1:"').replace(b'#s0', b'0:1:'), 'unquoted': old(b'<mn xml:id="s1"', b'<mn xml:id = "s1" '),
    'undeclared_prefix': DATA.replace(b'<mi', b'<m:mi').replace(b'</mi', b'</m:mi'), 'more_rows': old(b'<mi', b'<mrow><mrow><mi').replace(b'</mi>', b'</mi></mrow></mrow>'),
    'decimals': old(b'4 8', b'4.0 8.000'), 'plus': old(b'4 8', b'+4 8'), 'exponent': old(b'4 8', b'4e0 8'), 'trailing_comma': old(b'</trace>', b', </trace>'), 'repeated': old(b'4 8', b'4 8, 4 8, 4 8'),
    'unknown_elements': old(b'<trace ', b'<foo a="b"><bar/></foo><trace '), 'bad_view': old(b'</traceGroup>\n<', b'<traceView traceDataRef="#nowhere"/></traceGroup>\n<'),
    'lone_ampersand': old(b'<annotation type="UI">', b'<annotation type="note">a & b &nope; </annotation><annotation type="UI">'),
    'unclosed_note': old(b'<annotation type="UI">good</annotation>', b'<annotation type="UI">good</annotation><annotation type="age"/>'),
    'no_ui': old(b'<annotation type="UI">good</annotation>', b''), 'xinclude': old(b'<trace ', b'<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="file:///etc/passwd"/><trace '),
    'second_truth': old(b'</ink>', b'<annotation type="truth">other</annotation></ink>'), 'empty_trace_too': old(b'<traceGroup xml:id="g">', b'<trace xml:id="t9"/><traceGroup xml:id="g">'),
}

def data_of(x): return x.encode() if isinstance(x, str) else x

@pytest.mark.parametrize('name', REFUSED)
def test_refused_with_name_reason_and_cure(name):
    data, reason = REFUSED[name]
    with pytest.raises(InkError) as caught: parse_ink(data_of(data), f'{name}.inkml')
    assert caught.value.name == f'{name}.inkml' and str(caught.value).startswith(f'{name}.inkml: ')
    assert reason in caught.value.reason and len(caught.value.cure) > 5 and len(str(caught.value)) < 300

@pytest.mark.parametrize('name', SANE)
def test_sane(name): assert parse_ink(SANE[name], 'good') == GOOD

@pytest.mark.parametrize('written', ['$a < b$', '$a &lt; b$', '<![CDATA[$a < b$]]>'])
def test_a_truth_keeps_its_relation(written):
    assert canonical(parse_ink(ink(f'<annotation type="truth">{written}</annotation>' + T).encode(), 'less').truth) == ['a', '<', 'b']

def test_folders_behind_links_are_read_once(tmp_path):
    (tmp_path/'far').mkdir(); (tmp_path/'ink').mkdir()
    (tmp_path/'far'/'a.inkml').write_bytes(DATA)
    (tmp_path/'ink'/'one').symlink_to(tmp_path/'far'); (tmp_path/'ink'/'two').symlink_to(tmp_path/'far'); (tmp_path/'ink'/'round').symlink_to(tmp_path/'ink')
    inks, report = read_inks(tmp_path/'ink')
    assert len(inks) == report.n_in == 1

def test_a_folder_that_may_not_be_opened_is_told(tmp_path, monkeypatch):
    (tmp_path/'shut').mkdir(); (tmp_path/'a.inkml').write_bytes(DATA)
    real = os.scandir
    def scandir(path):
        if str(path).endswith('shut'): raise PermissionError(13, 'Permission denied', str(path))
        return real(path)
    monkeypatch.setattr(os, 'scandir', scandir)
    inks, report = read_inks(tmp_path, keep=lambda name: True)
    assert len(inks) == 1 and report.n_rejected == 1 and 'shut' in report.rejected[0].name and 'permissions' in report.rejected[0].reason

def test_deep_nesting_is_no_crash():
    for wrapper in ('mrow', 'msqrt', 'mi'):
        deep = ink(f'<annotationXML><math>{f"<{wrapper}>" * 3000}x{f"</{wrapper}>" * 3000}</math></annotationXML>' + T)
        try: assert parse_ink(deep.encode(), 'deep').traces
        except InkError as e: assert e.name == 'deep'
    groups = ink(T + '<traceGroup>' * 3000 + '</traceGroup>' * 3000)
    try: parse_ink(groups.encode(), 'deep')
    except InkError as e: assert e.name == 'deep'

def check(made):
    "Whatever was read is usable."
    assert made.traces and all(t.dtype == np.float32 and t.ndim == 2 and t.shape[1] == 2 and len(t) and np.isfinite(t).all() for t in made.traces)
    points = np.concatenate(made.traces)
    assert (points.min(0) < points.max(0)).any()
    assert all(s.traces and all(0 <= t < len(made.traces) for t in s.traces) for s in made.symbols)

MUTATIONS = 40

def mutate(seed):
    "DATA with a few random bytes changed, cut out, doubled or swapped."
    rng = np.random.default_rng(seed)
    data = bytearray(DATA)
    for _ in range(rng.integers(1, 6)):
        i, n = int(rng.integers(len(data))), int(rng.integers(1, 30))
        kind = rng.integers(5)
        if kind == 0: data[i] = int(rng.integers(256))
        elif kind == 1: del data[i:i + n]
        elif kind == 2: data[i:i] = data[i:i + n]
        elif kind == 3: data[i:i + 1] = [b'<', b'>', b'&', b'"', b'\0', b'-', b',', b'1e9'][rng.integers(8)]
        else: data[i:i + n] = bytes(data[i:i + n])[::-1]
    return bytes(data)

@pytest.mark.parametrize('seed', range(MUTATIONS))
def test_mutations_are_refused_by_name_or_sane(seed):
    for s in range(seed * 25, seed * 25 + 25):
        try: check(parse_ink(mutate(s), f'mutant{s}'))
        except InkError as e: assert e.name == f'mutant{s}' and e.reason and e.cure

@pytest.mark.parametrize('processes', [1, 2])
def test_the_books_balance_with_all_of_them_in_one_folder(tmp_path, processes):
    corpus = {f'bad_{k}': data_of(v) for k, (v, _) in REFUSED.items() if k != 'huge_text'} | {f'sane_{k}': v for k, v in SANE.items()}
    for name, data in corpus.items(): (tmp_path/f'{name}.inkml').write_bytes(data)
    for i in range(5): (tmp_path/f'good_{i}.inkml').write_bytes(DATA)
    (tmp_path/'list.txt').write_text('not ink')
    inks, report = read_inks(tmp_path, processes=processes)
    assert report.n_in == len(corpus) + 5 and report.n_in == report.n_out + report.n_rejected and len(inks) == report.n_out
    assert {r.name.rpartition('/')[2] for r in report.rejected} == {f'{n}.inkml' for n in corpus if n.startswith('bad')}
    assert all(r.reason for r in report.rejected) and sum(i.name.startswith('good_') for i in inks) == 5

def test_an_unforeseen_error_is_a_rejection_too(tmp_path, monkeypatch):
    (tmp_path/'a.inkml').write_bytes(DATA)
    monkeypatch.setattr('mask_match.inkml._symbols', lambda *a: 1 / 0)
    _, report = read_inks(tmp_path)
    assert (report.n_in, report.n_out) == (1, 0) and 'ZeroDivisionError' in report.rejected[0].reason

# ---- files and archives ----
def test_paths_that_are_none(tmp_path):
    (tmp_path/'empty').mkdir()
    (tmp_path/'lists').mkdir()
    (tmp_path/'lists'/'a.txt').write_text('1')
    (tmp_path/'good.inkml').write_bytes(DATA)
    inks, report = read_inks([tmp_path/'wrong', tmp_path/'empty', tmp_path/'lists', tmp_path/'lists'/'a.txt', tmp_path/'good.inkml'])
    assert (report.n_in, report.n_out) == (5, 1) and ['no such', 'no ink', 'no ink', 'not InkML'] == [next(w for w in ('no such', 'no ink', 'not InkML') if w in r.reason) for r in report.rejected]

def test_links_pipes_hidden_files_and_folders_called_ink(tmp_path):
    (tmp_path/'away.inkml').symlink_to(tmp_path/'nowhere')
    (tmp_path/'round').symlink_to(tmp_path)
    os.mkfifo(tmp_path/'pipe.inkml')
    (tmp_path/'._a.inkml').write_bytes(b'\0\5\x16\7')
    (tmp_path/'folder.inkml').mkdir()
    (tmp_path/'folder.inkml'/'a.inkml').write_bytes(DATA)
    inks, report = read_inks(tmp_path)
    assert (report.n_in, report.n_out) == (2, 1) and 'away.inkml' in report.rejected[0].name

def test_too_large_before_it_is_parsed(tmp_path, monkeypatch):
    for module in ('mask_match.sources', 'mask_match.inkml'): monkeypatch.setattr(f'{module}.MAX_BYTES', 10_000)
    (tmp_path/'big.inkml').write_bytes(DATA + b' ' * 10_000)
    (tmp_path/'good.inkml').write_bytes(DATA)
    with zipfile.ZipFile(tmp_path/'bomb.zip', 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('bomb.inkml', DATA + b' ' * 50_000_000)
    inks, report = read_inks(tmp_path)
    assert (report.n_in, report.n_out) == (3, 1) and all('MB' in r.reason for r in report.rejected)
    with pytest.raises(InkError, match='MB'): parse_ink(DATA + b' ' * 10_000, 'big')

def tar_of(path, members, mode='w:gz'):
    with tarfile.open(path, mode) as t:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    return path

@pytest.mark.parametrize('kind', ['zip', 'tar.gz'])
def test_archive_bombs_are_left(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(sources, 'MAX_ARCHIVE', 50_000)
    members = {'a.inkml': DATA} | {f'b{i}.inkml': DATA + b' ' * 20_000 for i in range(5)}
    if kind == 'zip':
        with zipfile.ZipFile(tmp_path/'bomb.zip', 'w', zipfile.ZIP_DEFLATED) as z:
            for name, data in members.items(): z.writestr(name, data)
    else: tar_of(tmp_path/'bomb.tar.gz', members)
    inks, report = read_inks(tmp_path/f'bomb.{kind}')
    assert 1 <= report.n_out < 6 and 'unpacked' in report.rejected[-1].reason + report.rejected[0].reason and report.n_in == report.n_out + report.n_rejected

@pytest.mark.parametrize('share', [0., .1, .5, .9, .99])
@pytest.mark.parametrize('kind', ['zip', 'tar.gz', 'tar.bz2', 'tar.xz', 'tar'])
def test_cut_archives(tmp_path, share, kind):
    rng = np.random.default_rng(0)
    members = {f'{i:02}.inkml': DATA.replace(b'good', rng.bytes(300).hex().encode()) for i in range(30)}
    path = tmp_path/f'a.{kind}'
    if kind == 'zip':
        with zipfile.ZipFile(path, 'w') as z:
            for name, data in members.items(): z.writestr(name, data)
    else: tar_of(path, members, 'w:' + kind[4:])
    path.write_bytes(path.read_bytes()[:int(path.stat().st_size * share)])
    (tmp_path/'good.inkml').write_bytes(DATA)
    inks, report = read_inks([path, tmp_path/'good.inkml'])
    assert report.n_in == report.n_out + report.n_rejected and (report.n_out == 31 or any('a.' + kind in r.name for r in report.rejected))
    assert inks[-1] == GOOD

def test_damage_inside_a_zip_costs_one_member(tmp_path):
    path = tmp_path/'a.zip'
    with zipfile.ZipFile(path, 'w') as z:
        for i in range(5): z.writestr(f'{i}.inkml', DATA)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(bytes(data))
    _, report = read_inks(path)
    assert (report.n_in, report.n_out) == (5, 4) and 'cannot be read' in report.rejected[0].reason

def test_archives_in_archives_strange_names_and_members_that_are_no_files(tmp_path):
    inner = tar_of(tmp_path/'inner.tar.gz', {'a.inkml': DATA}).read_bytes()
    with tarfile.open(tmp_path/'outer.tar', 'w') as t:
        for name, data in {'../../up.inkml': DATA, 'caf\udce9.inkml': DATA, 'inner.tar.gz': inner, '__MACOSX/._a.inkml': b'\0\5\x16\7', '/etc/root.inkml': DATA}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
        for name, kind in {'dev.inkml': tarfile.CHRTYPE, 'soft.inkml': tarfile.SYMTYPE, 'pipe.inkml': tarfile.FIFOTYPE, 'dir.inkml': tarfile.DIRTYPE}.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, '/etc/passwd'
            t.addfile(info)
    inks, report = read_inks(tmp_path/'outer.tar')
    assert (report.n_in, report.n_out) == (4, 3) and 'inside an archive' in report.rejected[0].reason
    for made in inks: made.name.encode()
    assert sorted(os.listdir(tmp_path)) == ['inner.tar.gz', 'outer.tar']

def test_there_are_enough_of_them(): assert len(REFUSED) >= 60 and len(SANE) >= 25
