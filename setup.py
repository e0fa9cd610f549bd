"Package the library. Every fact stands in settings.ini, the one place where versions and requirements are kept."
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

here = Path(__file__).parent
parser = ConfigParser(delimiters='=')
parser.read(here/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']
readme = here/'README.md'

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'], license='Apache-2.0',
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else cfg['description'], long_description_content_type='text/markdown',
    packages=[cfg['lib_path']], package_data={cfg['lib_path']: ['sample_ink/*.inkml', 'weights/*']}, include_package_data=False, zip_safe=False,
    python_requires=f">={cfg['min_python']}", install_requires=cfg['requirements'].split(), extras_require={'onnx': cfg['onnx_requirements'].split(), 'dev': f"{cfg['onnx_requirements']} {cfg['dev_requirements']}".split()},
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"]},
    classifiers=['Intended Audience :: Science/Research', 'Programming Language :: Python :: 3', 'Topic :: Scientific/Engineering :: Artificial Intelligence'])
