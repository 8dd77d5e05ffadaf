"Folders that leave the house: complete, readable by others, and without anybody's id."
import json, shutil, sys
from dataclasses import replace
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
from conftest import gansynth, snapshot
from PIL import Image

from gansynth.cli import main
from gansynth.core import UserError, load_json
from gansynth.data import load, split
from gansynth.gan_training import train_gan
from gansynth.gans import load_gan, save_gan
from gansynth.regimes import make_arm
from gansynth.sharing import GENERATOR, disjoint, fetch, look_through, open_generator, open_sets, push, reunite, set_folders, share, share_gan, withhold
from gansynth.synthesis import export_set, load_set, synthesise

PASS = dict(verdict='PASS', words='No memorisation detected at this power.', pairs=[dict(synthetic=1, train=3)], checks=[])
HEAD = dict(license='cc-by-4.0')


@pytest.fixture(scope='module')
def parts(): return split(load('phantom:n_patients=60', size=32))


@pytest.fixture(scope='module')
def gan(parts): return train_gan(parts.train.positives, 4, bs=8, precision='float32', split_hash=parts.manifest['hash'])


@pytest.fixture(scope='module')
def home(gan, parts, tmp_path_factory):
    "Two exported sets side by side, as they lie in the house."
    folder, pool = tmp_path_factory.mktemp('home'), synthesise(gan, 5, seed=3)
    export_set(replace(pool, scores={'realism': np.arange(5.)}), folder/'pneumonia', PASS, {'KID': .01}, parts.manifest['source'] | dict(notes=['P0001 was ill']))
    export_set(replace(synthesise(gan, 3, seed=4), class_name='not ill'), folder/'not ill', PASS, data=parts.manifest['source'])
    return folder


def text_of(folder): return b''.join(snapshot(folder).values()).decode('latin-1')


def named(parts, folder):
    "Ids and patients of the data that stand in any file of the folder, or in its names."
    said = text_of(folder)+' '.join(snapshot(folder))
    return [i for i in {*parts.table.id, *parts.table.patient} if i in said]


def head_of(folder): return huggingface_hub.RepoCard.load(folder/'README.md').data.to_dict()


# --- whose images they were ---------------------------------------------------------------------------------------------
def test_no_id_of_anybody_leaves_the_house(parts, gan, home, tmp_path):
    share(home, tmp_path/'two'); share(home/'pneumonia', tmp_path/'one'); share_gan(gan, tmp_path/'gan', PASS)
    assert named(parts, home) and not named(parts, tmp_path)
    share_gan(gan, tmp_path/'open', PASS, with_ids=True); share(home, tmp_path/'both', with_ids=True)
    assert set(gan.lineage['trained_on']) <= {*named(parts, tmp_path/'open')} & {*named(parts, tmp_path/'both')}
    assert [i for i in gan.lineage['trained_on'] if i in (tmp_path/'both'/'pneumonia'/'README.md').read_text()] == []
    for c in ('one/card.json', 'two/pneumonia/card.json'):
        card = load_json(tmp_path/c)
        assert set(card['audit']) == {'verdict', 'words'} and set(card['made_from']) == {'kind', 'name', 'images', 'split'} and card['made_from']['images'] == len(gan.lineage['trained_on'])


def test_the_check_for_leaks_closes_and_opens_again(parts, gan, home, tmp_path):
    share(home/'pneumonia', tmp_path/'set')
    s = load_set(tmp_path/'set')
    with pytest.raises(UserError, match=r'see README\.md'): make_arm('gan_aug', parts.train, [s])
    assert make_arm('gan_aug', parts.train, [disjoint(s)]).saw == frozenset(parts.train.ids)
    back = reunite(s, parts.train.positives)
    assert back.trained_on == tuple(parts.train.positives.ids) and make_arm('gan_aug', parts.train, [back]).saw >= set(back.trained_on)
    other = split(load('phantom:n_patients=60', size=32), 1)
    if not set(back.trained_on) <= set(other.train.ids):
        with pytest.raises(UserError, match='outside this training part'): make_arm('gan_aug', other.train, [back])
    order = np.arange(len(parts.train.positives))[::-1]
    for wrong in (other.train.positives, parts.valid.positives, parts.train.positives.take(order), parts.train.positives.take([0])):
        with pytest.raises(UserError, match='these are not the'): reunite(s, wrong)


def test_withholding_twice_is_withholding_once(parts, gan):
    once = withhold(gan)
    assert withhold(once).lineage == once.lineage and reunite(withhold(once), parts.train.positives).hash == gan.hash
    assert set(once.lineage['trained_on']).isdisjoint(gan.lineage['trained_on']) and len(set(once.lineage['trained_on'])) == len(gan.lineage['trained_on'])


# --- a generator ---------------------------------------------------------------------------------------------------------
def test_a_generator_comes_back_as_it_was(parts, gan, tmp_path):
    folder = share_gan(gan, tmp_path/'gan', PASS, dict(name='phantom', patients=7), **HEAD)
    assert sorted(snapshot(folder)) == ['README.md', GENERATOR, f'{GENERATOR}.json']
    back = open_generator(folder)
    assert (synthesise(back, 3, 5).images == synthesise(gan, 3, 5).images).all() and back.discriminator is None
    assert reunite(back, parts.train.positives).hash == gan.hash
    head, said = head_of(folder), (folder/'README.md').read_text()
    assert head['library_name'] == 'gansynth' and head['pipeline_tag'] == 'unconditional-image-generation' and head['license'] == 'cc-by-4.0' and 'dcgan' in head['tags']
    for words in (f"{len(parts.train.positives)} images of 7 patients in phantom", parts.manifest['hash'][:10], PASS['words'], '## Intended use', '## Limits', 'open_generator', 'nor for diagnosis'): assert words in said
    assert 'Warning' not in said


@pytest.mark.parametrize('audit', [None, dict(verdict='FAIL', words='3 near copies.'), dict(verdict='not auditable')])
def test_a_failed_audit_stops_the_generator(gan, tmp_path, audit):
    with pytest.raises(UserError, match='this generator is not written.*--allow-failed-audit'): share_gan(gan, tmp_path/'gan', audit)
    assert not (tmp_path/'gan').exists()
    said = (share_gan(gan, tmp_path/'gan', audit, allow_failed_audit=True)/'README.md').read_text().split('\n---\n')[1]
    assert said.split('\n')[2].startswith('> **Warning: the privacy audit says:') and 'None was named' in said


@pytest.mark.parametrize('found', ['FAIL', 'PASS', 'described'])
def test_the_discriminator_never_leaves(gan, tmp_path, monkeypatch, found):
    "What the audit says of it closes nothing, since it is left out of the folder and of what is sent."
    assert gan.discriminator is not None
    audit = dict(verdict='PASS', words='Looked at.', weights=dict(verdict=found, words='it knows them'))
    save_gan(gan, tmp_path/'gan.safetensors', discriminator=True)
    both = load_gan(tmp_path/'gan.safetensors')
    folder = share_gan(both, tmp_path/'out', audit)
    assert both.discriminator is not None and open_generator(folder).discriminator is None
    assert 'without the discriminator' in (folder/'README.md').read_text() and 'Warning' not in (folder/'README.md').read_text()
    hub = Hub(monkeypatch)
    push(folder, 'me/it')
    sent = len(hub.calls)
    for f in ('', '.json'): shutil.copy(f"{tmp_path/'gan.safetensors'}{f}", f'{folder/GENERATOR}{f}')
    with pytest.raises(UserError, match='holds the discriminator too'): push(folder, 'me/it', with_ids=True)
    assert len(hub.calls) == sent


def test_a_failed_audit_stops_the_sets_and_nothing_is_half_written(home, gan, tmp_path):
    shutil.copytree(home/'pneumonia', tmp_path/'home'/'pneumonia')
    export_set(replace(synthesise(gan, 3, seed=4), class_name='zoster'), tmp_path/'home'/'zoster', dict(verdict='FAIL', words='2 copies.'), allow_failed_audit=True)
    with pytest.raises(UserError, match="the images of 'zoster' are not written"): share(tmp_path/'home', tmp_path/'out')
    assert not (tmp_path/'out').exists()
    share(tmp_path/'home', tmp_path/'out', allow_failed_audit=True)
    assert 'Warning: the privacy audit says: FAIL' in (tmp_path/'out'/'README.md').read_text() and '2 copies.' in (tmp_path/'out'/'zoster'/'README.md').read_text()


def test_nothing_is_overwritten(home, gan, tmp_path):
    (tmp_path/'mine').mkdir(); (tmp_path/'mine'/'thesis.txt').write_text('mine')
    before = snapshot(tmp_path)
    for f in (lambda: share(home, tmp_path/'mine'), lambda: share_gan(gan, tmp_path/'mine', PASS)):
        with pytest.raises(UserError, match='not empty'): f()
    assert snapshot(tmp_path) == before


# --- sets, read by others ------------------------------------------------------------------------------------------------
@pytest.fixture
def datasets(monkeypatch, tmp_path):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1'); monkeypatch.setenv('HF_DATASETS_OFFLINE', '1')
    return pytest.importorskip('datasets')


def labels_of(ds): return [ds.features['label'].int2str(i) for i in ds['label']]


@pytest.mark.parametrize('kind', ['exported', 'shared'])
def test_datasets_and_torchvision_open_them(home, tmp_path, datasets, kind):
    from torchvision.datasets import ImageFolder
    two, one = home, home/'pneumonia'
    if kind == 'shared': two, one = share(home, tmp_path/'two'), share(home/'pneumonia', tmp_path/'one')
    want = ['not ill']*3+['pneumonia']*5
    def opened(*a, **k): return datasets.load_dataset(*a, cache_dir=str(tmp_path/'cache'), **k)
    def same(x): return sorted(np.asarray(i.convert('L')).tobytes() for i in x) == sorted(x.tobytes() for f in set_folders(two) for x in load_set(f).images)
    ds = opened('imagefolder', data_dir=str(two))
    assert list(ds) == ['train'] and labels_of(ds['train']) == want and same(ds['train']['image'])
    assert labels_of(opened('imagefolder', data_dir=str(one), drop_labels=False)['train']) == want[3:]
    assert labels_of(opened(str(one))['train']) == want[3:]
    if kind == 'shared': assert labels_of(opened(str(two))['train']) == want
    f = ImageFolder(two)
    assert [f.classes[i] for i in f.targets] == want and same(x for x, _ in f)
    assert (ImageFolder(one).classes, len(ImageFolder(one))) == (['pneumonia'], 5)


def test_the_head_of_a_dataset(home, tmp_path):
    for folder, words in ((share(home, tmp_path/'two', **HEAD), 'not ill and pneumonia'), (share(home/'pneumonia', tmp_path/'one', **HEAD), 'pneumonia')):
        head = head_of(folder)
        assert head['license'] == 'cc-by-4.0' and head['size_categories'] == ['n<1K'] and 'synthetic' in head['tags'] and head['task_categories'] == ['image-classification'] and head['pretty_name'] == f'Synthetic images: {words}'
        assert head['configs'][0]['data_files'][0]['split'] == 'train'      # they may join no other part
    assert 'license' not in head_of(home/'pneumonia')


def test_a_shared_folder_is_never_taken_for_real(home, tmp_path):
    for folder in (share(home, tmp_path/'two'), share(home/'pneumonia', tmp_path/'one')):
        with pytest.raises(UserError, match='never a validation or test part'): split(load(str(folder), 32))


def test_sets_without_a_card_above_them_are_named(home):
    with pytest.raises(UserError, match='below it are not ill, pneumonia: name one of them'): load(str(home), 32)


def test_sets_come_back_as_they_were(home, tmp_path):
    back = open_sets(share(home, tmp_path/'two'))
    assert [s.class_name for s in back] == ['not ill', 'pneumonia']
    a, b = load_set(home/'pneumonia'), back[1]
    assert (a.images == b.images).all() and a.ids.tolist() == b.ids.tolist() and (a.generator, a.seed, a.rule, a.split_hash) == (b.generator, b.seed, b.rule, b.split_hash) and b.scores['realism'].tolist() == [0, 1, 2, 3, 4]


# --- to the Hub and back --------------------------------------------------------------------------------------------------
class Hub:
    "Stands for huggingface_hub.HfApi and remembers what it was asked."
    def __init__(self, monkeypatch, public=False, error=None):
        self.calls, self.public, self.error = [], public, error
        monkeypatch.setattr(huggingface_hub, 'HfApi', lambda: self)
    def create_repo(self, name, **k):
        self.calls.append(('create', name, k)); self.private = k['private'] and not self.public
        if self.error: raise self.error
        return f"https://huggingface.co/{name}"
    def repo_info(self, name, **k): return SimpleNamespace(private=self.private)
    def upload_folder(self, **k): self.calls.append(('upload', k['repo_id'], k))


def test_push(home, gan, tmp_path, monkeypatch):
    hub = Hub(monkeypatch)
    for folder, kind in ((share_gan(gan, tmp_path/'gan', PASS), 'model'), (share(home, tmp_path/'two'), 'dataset')):
        (folder/'.DS_Store').write_text('x')
        assert push(folder, 'me/it') == 'https://huggingface.co/me/it'
        (_, _, made), (_, name, sent) = hub.calls[-2:]
        assert (made['private'], made['repo_type'], sent['repo_type'], name, sent['folder_path']) == (True, kind, kind, 'me/it', folder)
        from huggingface_hub.utils import filter_repo_objects
        left = [*filter_repo_objects(snapshot(folder), ignore_patterns=sent['ignore_patterns'])]
        assert set(left) == {*snapshot(folder)}-{'.DS_Store'}
    push(tmp_path/'gan', 'me/it', private=False)
    assert hub.calls[-2][2]['private'] is False


def test_an_open_repository_gets_nothing(gan, tmp_path, monkeypatch):
    hub = Hub(monkeypatch, public=True)
    with pytest.raises(UserError, match='open to everybody'): push(share_gan(gan, tmp_path/'gan', PASS), 'me/it')
    assert [c[0] for c in hub.calls] == ['create']


@pytest.mark.parametrize('harm, says', [('stray', 'scan.png does not belong there'), ('lost card', 'README.md is missing'), ('changed', 'images were changed'), ('ids', 'lists the ids'), ('nothing', 'holds neither'), ('ids of a generator', 'lists the ids'), ('run', 'does not belong there')])
def test_what_is_not_sent(home, gan, tmp_path, monkeypatch, harm, says):
    hub, folder = Hub(monkeypatch), share(home, tmp_path/'two')
    if harm == 'stray': Image.new('L', (8, 8)).save(folder/'pneumonia'/'pneumonia'/'scan.png')
    if harm == 'lost card': (folder/'pneumonia'/'README.md').unlink()
    if harm == 'changed': Image.new('L', (32, 32)).save(next((folder/'pneumonia').rglob('*.png')))
    if harm == 'ids': folder = share(home, tmp_path/'open', with_ids=True)
    if harm == 'nothing': folder = tmp_path/'empty'; folder.mkdir()
    if harm == 'ids of a generator': folder = share_gan(gan, tmp_path/'open', PASS, with_ids=True)
    if harm == 'run': folder = share_gan(gan, tmp_path/'run', PASS); (folder/'predictions.csv').write_text('patient_id')
    with pytest.raises(UserError, match=says): push(folder, 'me/it')
    assert not hub.calls
    if harm.startswith('ids'): assert push(folder, 'me/it', with_ids=True) and len(hub.calls) == 2


@pytest.mark.parametrize('error', [huggingface_hub.errors.LocalTokenNotFoundError('Token is required'), ConnectionError('no route'), RuntimeError('')])
def test_a_failed_upload_says_that_the_folder_is_complete(gan, tmp_path, monkeypatch, error):
    Hub(monkeypatch, error=error)
    folder = share_gan(gan, tmp_path/'gan', PASS)
    before = snapshot(folder)
    with pytest.raises(UserError, match=f'is complete, but it was not sent .{type(error).__name__}.*hf auth login.*HF_TOKEN.*gansynth share .* --push me/it'): push(folder, 'me/it')
    assert snapshot(folder) == before


@pytest.mark.parametrize('env', [dict(HF_HUB_OFFLINE='1'), dict(HF_ENDPOINT='http://127.0.0.1:9', HF_TOKEN='hf_nobody')], ids=['offline', 'unreachable'])
def test_the_real_library_without_a_network(gan, home, tmp_path, env):
    env |= dict(HF_HOME=str(tmp_path/'hf'))
    done = gansynth('share', home, '--to', tmp_path/'two', '--push', 'me/it', **env)
    assert done.returncode == 1 and 'is complete, but it was not sent' in done.stderr and 'hf auth login' in done.stderr and 'Traceback' not in done.stderr and done.stdout.strip() == str(tmp_path/'two')
    assert look_through(tmp_path/'two') == 'dataset'


def test_fetch(home, gan, tmp_path, monkeypatch):
    asked, places = [], dict(model=share_gan(gan, tmp_path/'gan', PASS), dataset=share(home, tmp_path/'two'))
    def snapshot_download(name, repo_type, revision): asked.append((name, repo_type, revision)); return str(places[repo_type])
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot_download)
    assert open_generator('hf://me/gan@v1').lineage == withhold(gan).lineage and len(open_sets('hf://datasets/me/set')) == len(open_sets('hf://me/set')) == 2
    assert asked == [('me/gan', 'model', 'v1'), ('me/set', 'dataset', None), ('me/set', 'dataset', None)] and fetch(tmp_path, 'model') == tmp_path
    def fails(*a, **k): raise ConnectionError('no route')
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', fails)
    with pytest.raises(UserError, match='cannot fetch hf://me/gan as a model .ConnectionError.*HF_TOKEN'): open_generator('hf://me/gan')
    for place in ('hf://gan', 'hf://a/b/c', 'hf://'):
        with pytest.raises(UserError, match='owner/name'): open_generator(place)
    with pytest.raises(UserError, match='holds no synthetic set'): open_sets(tmp_path/'nowhere')


def test_without_huggingface_hub_there_is_a_sentence(gan, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(UserError, match='pip install "huggingface_hub'): fetch('hf://me/gan', 'model')


# --- by the command line --------------------------------------------------------------------------------------------------
def said(capsys, *args):
    code = main([*map(str, args)])
    return code, *capsys.readouterr()


def a_run(gan, folder, verdict='PASS', hash=None):
    save_gan(gan, folder/GENERATOR)
    (folder/'done.json').write_text(json.dumps(dict(generator=hash or gan.hash, audit=dict(verdict=verdict, words='Looked at.'))))
    (folder/'run.json').write_text(json.dumps(dict(data=dict(source=dict(name='phantom', notes=['P0001']), counts=dict(train=dict(pneumonia=dict(images=9, patients=6)))))))
    return folder


def test_share_of_a_run_a_file_and_sets(gan, home, parts, tmp_path, capsys):
    code, out, err = said(capsys, 'share', a_run(gan, tmp_path/'run'), '--to', tmp_path/'a', '--license', 'mit')
    assert (code, out.strip(), err) == (0, str(tmp_path/'a'), '') and 'of 6 patients in phantom' in (tmp_path/'a'/'README.md').read_text() and 'Looked at.' in (tmp_path/'a'/'README.md').read_text() and not named(parts, tmp_path/'a')
    code, _, err = said(capsys, 'share', a_run(gan, tmp_path/'bad', 'FAIL'), '--to', tmp_path/'b')
    assert code == 1 and "'FAIL'" in err and not (tmp_path/'b').exists()
    code, _, err = said(capsys, 'share', a_run(gan, tmp_path/'other', hash='0'*64), '--to', tmp_path/'b')
    assert code == 1 and 'is not the generator that this run audited' in err
    save_gan(gan, tmp_path/'gan.safetensors')
    assert "'not audited'" in said(capsys, 'share', tmp_path/'gan.safetensors', '--to', tmp_path/'b')[2]
    assert said(capsys, 'share', tmp_path/'gan.safetensors', '--to', tmp_path/'b', '--allow-failed-audit')[0] == 0 and open_generator(tmp_path/'b').discriminator is None
    assert said(capsys, 'share', home, '--to', tmp_path/'c')[0] == 0 and len(open_sets(tmp_path/'c')) == 2


def test_push_from_the_command_line(home, tmp_path, capsys, monkeypatch):
    hub = Hub(monkeypatch)
    code, out, _ = said(capsys, 'share', home, '--to', tmp_path/'two', '--push', 'me/set')
    assert code == 0 and out.split('\n')[:2] == [str(tmp_path/'two'), 'https://huggingface.co/me/set'] and hub.calls[0][2]['private'] is True
    assert said(capsys, 'share', tmp_path/'two', '--push', 'me/set')[0] == 0 and len(hub.calls) == 4       # what an interrupted push needs
    code, _, err = said(capsys, 'share', home, '--push', 'me/set')                                         # as it lies in the house
    assert code == 1 and len(hub.calls) == 4 and 'is missing: push only what' in err


@pytest.mark.parametrize('args, says', [(('{home}',), '--to FOLDER'), (('nowhere', '--to', '{tmp}/x'), 'holds no exported set'), (('nowhere.safetensors', '--to', '{tmp}/x'), 'no such file'), (('{home}', '--to', '{tmp}/x', '--push', 'name'), 'owner/name'), (('{tmp}', '--push', 'me/x'), 'holds neither')])
def test_wrong_input_is_one_sentence_and_writes_nothing(home, tmp_path, capsys, args, says):
    code, out, err = said(capsys, 'share', *(a.format(home=home, tmp=tmp_path) for a in args))
    assert (code, out) == (1, '') and says in err and err.startswith('gansynth: ') and err.count('\n') == 1 and not list(tmp_path.iterdir())
