"Everything that pip needs, read from settings.ini. The study notebooks and the designs travel with the package."
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

config = ConfigParser(delimiters=['='], interpolation=None)
config.read(Path(__file__).with_name('settings.ini'), encoding='utf-8')
cfg = config['DEFAULT']

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], license='Apache-2.0',
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'], keywords=cfg['keywords'],
    long_description=Path('README.md').read_text(encoding='utf-8') if Path('README.md').exists() else '',
    long_description_content_type='text/markdown', python_requires=f">={cfg['min_python']}",
    packages=['gansynth', 'gansynth.notebooks'], package_dir={'gansynth.notebooks': 'nbs/studies'},
    package_data={'gansynth.notebooks': ['*.ipynb', 'designs/*.yaml']}, install_requires=cfg['requirements'].split(),
    extras_require={'dev': cfg['dev_requirements'].split()} | {k.removeprefix('extra_'): v.split() for k, v in cfg.items() if k.startswith('extra_')},
    entry_points={'console_scripts': cfg['console_scripts'].split()},
)
