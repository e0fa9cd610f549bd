"""Say whether the tree is as the notebooks make it: cleaned, exported, README current. `python tests/check.py [readme]`.

Works on a fresh clone and on a tree with changes of your own: what counts is that the steps leave every file as it was, those git does not know included."""
import hashlib, json, re, subprocess, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent

def tree(root=ROOT) -> dict[str, str]:
    "Every file that git tracks or would track, with the hash of its content."
    listed = subprocess.run(['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'], cwd=root, capture_output=True)
    if listed.returncode == 0: names = sorted(set(listed.stdout.decode().split('\0')) - {''})
    else: names = sorted(str(p.relative_to(root)) for p in root.rglob('*') if p.is_file() and not {'.venv', '.git', 'runs', '__pycache__'} & set(p.relative_to(root).parts))
    return {n: hashlib.sha256((root/n).read_bytes()).hexdigest() for n in names if (root/n).is_file()}

def differences(before: dict, after: dict) -> list[str]:
    "What changed between two trees, one line a file."
    what = {n: 'new' if n not in before else 'removed' if n not in after else 'changed' for n in sorted({*before, *after}) if before.get(n) != after.get(n)}
    return [f'{kind:8}{name}' for name, kind in what.items()]

def readme(root=ROOT) -> str:
    "The text of README.md, made from nbs/index.ipynb and its stored outputs; pictures are written into figures/."
    import nbformat
    from nbconvert import MarkdownExporter
    nb = nbformat.read(root/'nbs'/'index.ipynb', 4)
    kept = []
    for cell in nb.cells:
        if re.match(r'#\|\s*(hide|default_exp|include: *false)\s*$', cell.source.split('\n')[0]): continue
        silent = re.search(r'^#\|\s*echo: *false', cell.source, re.M)
        cell.source = '' if silent else re.sub(r'^#\|.*\n?', '', cell.source, flags=re.M) if cell.cell_type == 'code' else cell.source
        if cell.cell_type == 'markdown': cell.source = re.sub(r'\]\((\w+\.ipynb)', r'](nbs/\1', cell.source.replace('](../', '](').replace('src="../', 'src="'))
        kept.append(cell)
    nb.cells = kept
    exporter = MarkdownExporter()
    text, extra = exporter.from_notebook_node(nb, resources={'output_files_dir': 'figures', 'unique_key': 'readme'})
    for name, data in sorted(extra.get('outputs', {}).items()):
        (root/name).write_bytes(data)
        (root/name).with_suffix('.json').write_text(json.dumps(dict(figure=Path(name).name, made_by='nbs/index.ipynb')) + '\n')
    text = re.sub(r'```(?:python)?\n\s*\n```\n', '', text)
    text = re.sub(r'[ \t]+\n', '\n', text)
    return '<!-- made from nbs/index.ipynb by `make check`: change it there -->\n\n' + re.sub(r'\n{3,}', '\n\n', text).strip() + '\n'

def steps(root=ROOT):
    "Clean the notebooks, export the modules, write README.md."
    for command in (['nbdev_clean'], ['nbdev_export']):
        done = subprocess.run([str(BIN/command[0])], cwd=root, capture_output=True, text=True)
        if done.returncode: sys.exit(f'{command[0]} failed:\n{done.stdout}{done.stderr}')
    if (root/'nbs'/'index.ipynb').exists(): (root/'README.md').write_text(readme(root), encoding='utf-8')

def main():
    if sys.argv[1:] == ['readme']: return (ROOT/'README.md').write_text(readme(), encoding='utf-8')
    before = tree()
    steps()
    found = differences(before, tree())
    if found: sys.exit('\n'.join(['These files were not as the notebooks make them; they are now, commit them:', *found]))
    print(f'check: {len(before)} files, all as the notebooks make them')

if __name__ == '__main__': main()
