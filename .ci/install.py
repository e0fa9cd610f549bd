"""Fill the virtual environment whose Python runs this. Locked versions, uv where it works and pip where it does not.

A torch that is at hand is never replaced: where the environment already holds one, or a wheel folder (PIP_FIND_LINKS or pip's own
setting) offers one, that very version is installed and torchvision follows it; everything else comes from requirements.lock."""
import configparser, glob, os, re, subprocess, sys, tempfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PIP = [sys.executable, '-m', 'pip']

def call(command, **env):
    "Run a command, show it, tell whether it worked."
    print('+', ' '.join(Path(c).name if i == 0 else c for i, c in enumerate(command)), flush=True)
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **env}).returncode == 0

def find_links() -> list[str]:
    "Wheel folders this machine offers: the environment variable and pip's configuration."
    asked = os.environ.get('PIP_FIND_LINKS')
    if asked is None:
        done = subprocess.run([*PIP, 'config', 'get', 'global.find-links'], capture_output=True, text=True)
        asked = done.stdout if done.returncode == 0 else ''
    return asked.split()

def torch_at_hand(folders) -> str | None:
    "The version of torch to keep: the one installed, else the newest fitting wheel in a local folder; None where there is neither."
    try: return metadata.version('torch')
    except metadata.PackageNotFoundError: pass
    python = f'cp{sys.version_info.major}{sys.version_info.minor}'
    wheels = [Path(p).name for f in folders for p in glob.glob(os.path.join(f.removeprefix('file://'), f'torch-*-{python}-*.whl'))]
    versions = sorted((w.split('-')[1] for w in wheels), key=lambda v: [int(n) for n in re.findall(r'\d+', v.split('+')[0])])
    return versions[-1] if versions else None

def fits(version: str) -> bool:
    "Whether settings.ini allows this version of torch (it is written torch>=A.B,<C.D)."
    parser = configparser.ConfigParser(delimiters='=')
    parser.read(ROOT/'settings.ini')
    low, high = re.search(r'torch>=(\S+?),<(\S+)', parser['DEFAULT']['requirements']).groups()
    number = lambda v: tuple(int(n) for n in re.findall(r'\d+', v.split('+')[0]))
    return number(low) <= number(version) < number(high)

def wanted(torch: str | None, folder: Path) -> list[str]:
    "Arguments that say what to install: the lock as it is, or as constraints with torch's version exchanged."
    lock = ROOT/'requirements.lock'
    locked = re.search(r'^torch==(\S+)', lock.read_text(), re.M)[1]
    if torch is None or torch.split('+')[0] == locked: return ['-r', str(lock)]
    kept = [line for line in lock.read_text().splitlines() if not re.match(r'(torch|torchvision)==', line)]
    (folder/'constraints.txt').write_text('\n'.join([*kept, f'torch=={torch}']) + '\n')
    return ['-c', str(folder/'constraints.txt'), '.[dev]']

def main():
    folders = find_links()
    torch = torch_at_hand(folders)
    if torch and not fits(torch):
        print(f'torch {torch} is at hand but settings.ini does not allow it: it is passed over'); torch = None
    print(f"torch: {torch + ' is at hand and stays' if torch else 'from the package index'}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        what = wanted(torch, Path(folder))
        uv = [sys.executable, '-m', 'uv', 'pip', 'install', '--python', sys.executable]
        with_uv = call([*PIP, 'install', '-q', '--disable-pip-version-check', 'uv']) and call([*uv, *what], UV_FIND_LINKS=','.join(folders))
        if not with_uv and not call([*PIP, 'install', '-q', '--disable-pip-version-check', *what]):
            sys.exit('The installation failed with uv and with pip; their messages above say why. Is the package index reachable?')
    local = ['--no-deps', '--no-build-isolation', '-e', '.']
    if not (with_uv and call([*uv, *local])) and not call([*PIP, 'install', '-q', '--disable-pip-version-check', *local]): sys.exit('mask_match itself could not be installed.')
    got = metadata.version('torch')
    if torch and got.split('+') != torch.split('+'): sys.exit(f'torch {torch} was at hand, but {got} got installed: delete .venv and report this.')

if __name__ == '__main__': main()
