"What a user installs: a wheel that works alone, pins that agree, an import that does nothing."
import configparser, json, os, re, shutil, subprocess, sys, sysconfig, warnings, zipfile
from pathlib import Path
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
DEV_ONLY = ('nbdev', 'papermill', 'jupyterlab', 'ipykernel', 'IPython', 'hypothesis', 'pytest', 'onnx', 'onnxruntime', 'onnxscript')

def settings():
    parser = configparser.ConfigParser(delimiters='=')
    parser.read(ROOT/'settings.ini', encoding='utf-8')
    return parser['DEFAULT']

def asked() -> list[str]: return [r for kind in ('requirements', 'onnx_requirements', 'dev_requirements') for r in settings()[kind].split()]

def locked() -> dict[str, str]:
    found = re.findall(r'^([\w.-]+)==([^\s;]+)', (ROOT/'requirements.lock').read_text(), re.M)
    return {canonicalize_name(n): v for n, v in found}

# --- pins ---

def test_environment_file_has_the_same_pins():
    lines = [m[1] for m in re.finditer(r'^ {6}- (\S+)$', (ROOT/'environment.yml').read_text(), re.M)]
    assert sorted(lines) == sorted(asked()), 'the pip list of environment.yml is settings.ini requirements + onnx_requirements + dev_requirements'
    assert f"python>={settings()['min_python']}" in (ROOT/'environment.yml').read_text()

def test_lock_covers_every_requirement():
    versions = locked()
    for r in map(Requirement, asked()):
        assert canonicalize_name(r.name) in versions, f'{r.name} is not locked: run `make lock`'
        assert r.specifier.contains(versions[canonicalize_name(r.name)], prereleases=True), f'{r} is locked to {versions[canonicalize_name(r.name)]}: run `make lock`'

def test_lock_serves_cpu_and_gpu_and_tells_nothing_of_its_maker():
    text = (ROOT/'requirements.lock').read_text()
    assert not re.search(r'^(nvidia-|cuda-|triton)', text, re.M), 'torch brings its own CUDA packages where it wants them'
    assert not re.search(r'://|--(?:extra-)?index-url|--find-links|^\s*-e|\+cpu|(?:^|\s)/\w+', text, re.M)
    assert (Version(locked()['torch']).minor - 11, Version(locked()['torchvision']).minor - 26) in [(i, i) for i in range(3)], 'torch 2.11 pairs with torchvision 0.26, and so on'

def test_readme_is_made_from_the_index_page():
    sys.path.insert(0, str(ROOT/'tests'))
    from check import readme
    assert (ROOT/'README.md').is_file() and (ROOT/'README.md').read_text(encoding='utf-8') == readme(ROOT), 'run `make check` and commit README.md'

def test_licence_is_complete():
    text = (ROOT/'LICENSE').read_text()
    assert 'Apache License' in text and 'END OF TERMS AND CONDITIONS' in text and len(text.splitlines()) > 170

# --- the check step itself ---

def test_differences_tell_new_changed_and_removed(tmp_path):
    from check import differences, tree
    subprocess.run(['git', 'init', '-q', str(tmp_path)], check=True)
    (tmp_path/'.gitignore').write_text('hidden\n'); (tmp_path/'a').write_text('1'); (tmp_path/'b').write_text('1'); (tmp_path/'hidden').write_text('1')
    before = tree(tmp_path)
    (tmp_path/'a').write_text('2'); (tmp_path/'b').unlink(); (tmp_path/'c').write_text('untracked'); (tmp_path/'hidden').write_text('2')
    assert differences(before, tree(tmp_path)) == ['changed a', 'removed b', 'new     c']

def test_installer_keeps_the_torch_at_hand(tmp_path, monkeypatch):
    "With a CPU wheel in a folder, that very version is asked for; with none, the lock decides."
    sys.path.insert(0, str(ROOT/'.ci'))
    import install
    monkeypatch.setattr(install.metadata, 'version', lambda name: (_ for _ in ()).throw(install.metadata.PackageNotFoundError(name)))
    python = f'cp{sys.version_info.major}{sys.version_info.minor}'
    assert install.torch_at_hand([str(tmp_path)]) is None
    for v in ('2.9.0+cpu', '2.11.0+cpu'): (tmp_path/f'torch-{v}-{python}-{python}-linux_x86_64.whl').touch()
    assert install.torch_at_hand([f'file://{tmp_path}']) == '2.11.0+cpu'
    assert install.fits('2.11.0+cpu') and not install.fits('2.9.0+cpu') and not install.fits('2.14.0')
    assert install.wanted(None, tmp_path)[0] == install.wanted(f"{locked()['torch']}+cpu", tmp_path)[0] == '-r'
    assert install.wanted('2.11.0+cpu', tmp_path)[0] == '-c'
    text = (tmp_path/'constraints.txt').read_text()
    assert 'torch==2.11.0+cpu' in text and not re.search(r'^torchvision==', text, re.M) and 'numpy==' in text

# --- the wheel ---

@pytest.fixture(scope='session')
def wheel(tmp_path_factory) -> Path:
    "A wheel built from a copy of the sources, so that the tree stays clean."
    source, out = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('wheel')
    for name in ('setup.py', 'settings.ini', 'README.md', 'LICENSE'):
        if (ROOT/name).exists(): shutil.copy(ROOT/name, source)
    shutil.copytree(ROOT/'mask_match', source/'mask_match', ignore=shutil.ignore_patterns('__pycache__'))
    done = subprocess.run([sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', str(out), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(out.glob('*.whl'))

@pytest.fixture(scope='session')
def clean(wheel, tmp_path_factory) -> Path:
    """The Python of a virtual environment with the wheel and its runtime requirements only. Where they can't be installed within a minute,
    the packages of this environment are lent to it and the development tools are blocked."""
    place = tmp_path_factory.mktemp('clean')/'venv'
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', str(place)], check=True)
    python = place/('Scripts' if os.name == 'nt' else 'bin')/'python'
    env = {**os.environ, 'UV_FIND_LINKS': ','.join(os.environ.get('PIP_FIND_LINKS', '').split())}
    uv = [sys.executable, '-m', 'uv', 'pip', 'install', '-q', '--python', str(python)]
    try: real = subprocess.run([*uv, '-c', str(ROOT/'requirements.lock'), str(wheel)], env=env, capture_output=True, timeout=60).returncode == 0
    except (subprocess.TimeoutExpired, OSError): real = False
    if not real:
        warnings.warn('the requirements could not be installed within a minute: this environment lends its own, without the development tools')
        site = Path(subprocess.run([str(python), '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))'], capture_output=True, text=True, check=True).stdout.strip())
        with zipfile.ZipFile(wheel) as z: z.extractall(site)
        (site/'lent.pth').write_text(f"{sysconfig.get_path('purelib')}\nimport sys; sys.modules.update(dict.fromkeys({DEV_ONLY!r}))\n")
    return python

def run(python, script, cwd):
    env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'PYTHONHOME')}
    return subprocess.run([str(python), '-c', script], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)

def test_wheel_holds_library_and_data(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    have = {str(p.relative_to(ROOT)) for p in (ROOT/'mask_match').rglob('*') if p.suffix in ('.py', '.inkml', '.safetensors', '.json')}
    assert have <= set(names)
    assert not [n for n in names if n.split('/')[0] not in ('mask_match', f"mask_match-{settings()['version']}.dist-info")], 'nothing else goes to site-packages'
    meta = zipfile.ZipFile(wheel).read(next(n for n in names if n.endswith('METADATA'))).decode()
    assert f"Requires-Python: >={settings()['min_python']}" in meta and 'papermill==2.7.0; extra == "dev"' in meta
    assert 'mask-match = mask_match.cli:main' in zipfile.ZipFile(wheel).read(next(n for n in names if n.endswith('entry_points.txt'))).decode()

@pytest.mark.slow
def test_every_room_imports_without_the_development_tools(clean, tmp_path):
    rooms = sorted(p.stem for p in (ROOT/'mask_match').glob('*.py') if not p.stem.startswith('_') and p.stem != 'show')
    script = f'''
import importlib, sys
wrong = []
for room in {rooms!r}:
    try: importlib.import_module('mask_match.' + room)
    except Exception as e: wrong.append(f'{{room}}: {{type(e).__name__}}: {{e}}')
import mask_match
assert 'site-packages' in mask_match.__file__, mask_match.__file__
sys.exit('\\n'.join(wrong) or 0)'''
    done = run(clean, script, tmp_path)
    assert done.returncode == 0, done.stderr

@pytest.mark.slow
def test_the_command_starts_and_explains_itself(clean, tmp_path):
    if not (ROOT/'mask_match'/'cli.py').exists(): pytest.fail('mask_match/cli.py does not exist, but settings.ini promises the command mask-match')
    done = run(clean, "import sys; sys.argv = ['mask-match', '--help']; from mask_match.cli import main; sys.exit(main())", tmp_path)
    assert done.returncode == 0 and 'reproduce' in done.stdout, done.stderr

def test_importing_the_package_does_nothing_else():
    "Less than three seconds, no thread, no network, no process, no file written."
    script = '''
import sys, threading, time
seen = []
def listen(event, args):
    if event.startswith(('socket.', 'subprocess.', 'os.system', 'os.exec', 'os.fork', 'urllib.')): seen.append(event)
    if event == 'open' and isinstance(args[1], str) and set(args[1]) & set('wax+'): seen.append(f'{event} {args[0]}')
    if event in ('os.mkdir', 'os.rename', 'os.remove'): seen.append(event)
sys.dont_write_bytecode = True
sys.addaudithook(listen)
start = time.perf_counter()
import mask_match
seconds = time.perf_counter() - start
assert seconds < 3, seconds
assert threading.active_count() == 1 and not seen, seen
assert 'torch' not in sys.modules
'''
    done = run(sys.executable, f'import sys; sys.path.insert(0, {str(ROOT)!r})\n{script}', ROOT/'tests')
    assert done.returncode == 0, done.stderr

@pytest.mark.slow
def test_importing_the_rooms_opens_no_connection_and_starts_no_process():
    rooms = sorted(p.stem for p in (ROOT/'mask_match').glob('*.py') if not p.stem.startswith('_'))
    script = f'''
import sys, importlib, threading
import torch, numpy, matplotlib, seaborn, lxml.etree, editdistance, lightning_fabric
seen, threads = [], threading.active_count()
sys.addaudithook(lambda event, args: seen.append((event, str(args)[:100])) if event.startswith(('socket.', 'subprocess.', 'os.system', 'os.fork', 'urllib.')) else None)
sys.path.insert(0, {str(ROOT)!r})
for room in {rooms!r}: importlib.import_module('mask_match.' + room)
assert not seen, seen
assert threading.active_count() == threads'''
    done = run(sys.executable, script, ROOT/'tests')
    assert done.returncode == 0, done.stderr

def test_the_data_manifest_is_of_this_ink(crohme):
    "The fingerprints that results refer to are those of the CROHME ink at hand."
    from mask_match.splits import fingerprint
    wanted = json.loads((ROOT/'data'/'manifest.json').read_text())['crohme2016']
    found = fingerprint(crohme)
    same = [split for split in wanted if found.get(split, {}).get('files') == wanted[split]['files']]
    if not same: pytest.skip(f'this is another CROHME package than that of data/manifest.json: {found}')
    assert {split: found[split] for split in same} == {split: wanted[split] for split in same}

@pytest.mark.parametrize('room', ['prepare', 'evaluate', 'recognize'])
def test_reading_loads_no_trainer(room):
    "Lightning takes as long to load as PyTorch itself; who only reads does not wait for it."
    code = f"import sys, mask_match.{room}; sys.exit('lightning_fabric' in sys.modules or 'torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT, timeout=120).returncode == 0
