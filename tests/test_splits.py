"Splits are kept apart, nothing is dropped in silence, and damaged files say so."
import zipfile
import pytest, torch
from mask_match.config import smoke, override
from mask_match.data import load_packed, pack
from mask_match.evaluate import evaluate
from mask_match.finetune import load_model, make_model, save_model
from mask_match.inkml import read_inks, write_ink
from mask_match.latex import Vocabulary
from mask_match.prepare import homeless, pack_source, packed_split, read_captions
from mask_match.runs import RunError, load_tensors, save_tensors
from mask_match.splits import make_splits, pack_all, read_split
from mask_match.synth import synthesise

CROHME = override(smoke(), {'data.source': 'crohme'})
FOLDERS = {'train': 'TrainINKML', 'validation': 'TestINKMLGT', 'test': 'TestEM2014GT'}

def write(folder, split, n=4):
    "Ink of the synthesiser in the folder that CROHME 2016 has for a split."
    (folder/FOLDERS[split]).mkdir(parents=True)
    for ink in synthesise(n, 1, 'small', split): (folder/FOLDERS[split]/f'{ink.name}.inkml').write_bytes(write_ink(ink))

@pytest.mark.parametrize('there', [['train'], ['train', 'test'], ['test']])
def test_a_missing_split_is_not_filled_with_other_ink(there, tmp_path):
    for split in there: write(tmp_path/'ink', split)
    gone = [name for name, split in (('train', 'train'), ('validation', 'validation'), ('test2014', 'test')) if split not in there]
    with pytest.raises(RunError) as e: make_splits(CROHME, tmp_path/'packed', tmp_path/'ink')
    assert all(name in str(e.value) for name in (*gone, str(tmp_path/'ink'), 'whole package'))
    assert not list((tmp_path/'packed').glob('*.safetensors'))

def test_splits_share_no_ink(tmp_path):
    for split in FOLDERS: write(tmp_path/'ink', split)
    made = make_splits(CROHME, tmp_path/'packed', tmp_path/'ink')
    names = [set(load_packed(tmp_path/'packed', split).names) for split in ('train', 'validation', 'test2014')]
    assert list(map(len, names)) == [4, 4, 4] and not names[0] & names[1] and not names[0] & names[2] and not names[1] & names[2]
    assert all(m['n_in'] == m['n_out'] + len(m['rejected']) for m in made.values())

def test_ink_of_no_split_is_found(tmp_path):
    write(tmp_path/'ink', 'train')
    (tmp_path/'ink'/'extra').mkdir()
    (tmp_path/'ink'/'extra'/'a.inkml').write_bytes(write_ink(next(iter(synthesise(1, 3, 'small', 'test')))))
    assert [n.rpartition('/')[2] for n in homeless([tmp_path/'ink'], ['train'])] == ['a.inkml']
    assert homeless([tmp_path/'ink'/'extra'], ['train']) == []  # no folder says anything: all of it is the split asked for

def test_ink_of_another_split_is_not_taken_for_the_one_asked(tmp_path):
    for folder, split in (('train', 'train'), ('mine', 'test')):
        (tmp_path/folder).mkdir()
        for ink in synthesise(2, 1, 'small', split): (tmp_path/folder/f'{ink.name}.inkml').write_bytes(write_ink(ink))
    (tmp_path/'train'/'broken.inkml').write_bytes(b'')
    inks, report = read_split(tmp_path, 'validation')
    assert len(inks) == report.n_in == 2 and all(ink.name.startswith('test') for ink in inks)
    assert pack_source([tmp_path], ['validation'], tmp_path, cutouts=False)['validation']['n_in'] == 2
    assert len(homeless([tmp_path], ['validation'])) == 3
    assert read_split(tmp_path/'train', 'test2016')[1].n_in == 3  # nothing else is there: whoever asks so means it

def test_a_split_in_shards_is_read_whole(tmp_path):
    pack_all(synthesise(5, 1, 'small', 'test'), tmp_path, 'test', most=2)
    made = evaluate(packed_split(tmp_path, 'test', None, tmp_path), 'test', model(tmp_path/'weights.safetensors'), beam=1)
    assert len(list(tmp_path.glob('test-*.safetensors'))) == 3 and made['n'] == 5

def model(path):
    torch.manual_seed(0)
    vocabulary = Vocabulary.field()
    save_model(path, make_model(smoke(), vocabulary), smoke(), vocabulary, {})
    return path

def test_rejected_files_of_one_name_are_counted_one_by_one(tmp_path):
    for folder in 'abc':
        (tmp_path/folder/'ink').mkdir(parents=True)
        (tmp_path/folder/'ink'/'bad.inkml').write_bytes(b'')
    (tmp_path/'a'/'ink'/'good.inkml').write_bytes(write_ink(next(iter(synthesise(1, 3, 'small', 'test')))))
    inks, report = read_inks([tmp_path/f/'ink' for f in 'abc'])
    manifest = pack(inks, tmp_path/'test.safetensors', 'test', report.rejected)
    assert len({name for name, _ in manifest['rejected']}) == 3 and manifest['n_in'] == 4
    made = evaluate(tmp_path, 'test', model(tmp_path/'model.safetensors'), beam=1)
    assert (made['n'], made['n_rejected']) == (4, 3)

@pytest.mark.parametrize('header', [[], {'config': 3, 'words': 4}, {'config': {'nonsense': 1}, 'words': []}, {'config': {}, 'words': [1, 2]}])
def test_weights_with_a_damaged_header_name_the_file(header, tmp_path):
    tensors, _ = load_tensors(model(tmp_path/'model.safetensors'))
    save_tensors(tmp_path/'broken.safetensors', tensors, header)
    with pytest.raises(RunError, match='broken.safetensors'): load_model(tmp_path/'broken.safetensors')

def test_packed_ink_with_damaged_text_names_the_file(tmp_path):
    pack(synthesise(3, 3, 'small', 'test'), tmp_path/'test.safetensors', 'test')
    tensors, meta = load_tensors(tmp_path/'test.safetensors')
    tensors['text'][:4] = 0
    save_tensors(tmp_path/'test.safetensors', tensors, meta)
    with pytest.raises(RunError, match='test.safetensors.*damaged'): load_packed(tmp_path, 'test')

def test_an_archive_inside_an_archive_is_not_one_wrong_expression(tmp_path):
    with zipfile.ZipFile(tmp_path/'ink.zip', 'w') as z:
        for ink in synthesise(2, 1, 'small', 'test'): z.writestr(f'TestEM2014GT/{ink.name}.inkml', write_ink(ink))
        z.writestr('TrainINKML.zip', b'PK\5\6' + bytes(18))
    with pytest.raises(RunError, match='archive inside'): read_split(tmp_path/'ink.zip', 'test2014')

def test_captions_with_a_mark_of_their_encoding(tmp_path):
    (tmp_path/'captions.txt').write_text('a\tx + 1\n', encoding='utf-8-sig')
    assert read_captions(tmp_path/'captions.txt') == {'a': 'x + 1'}
