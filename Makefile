# gansynth: the first call of any target makes .venv, later ones reuse it while the requirements in settings.ini are unchanged.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYDEVD_DISABLE_FILE_VALIDATION := 1
export JUPYTER_PREFER_ENV_PATH := 1
CHAPTERS := $(filter-out nbs/index.ipynb,$(wildcard nbs/*.ipynb nbs/studies/*.ipynb))
STUDIES := nih_pneumonia covid_ct bone_fracture lung_optimizers pneumonia_transfer
DATA ?= ../shared/data
SEEDS ?= 0 1 2
QUIET := GANSYNTH_PROGRESS=off PYTHONWARNINGS=ignore
EXECUTE := $(QUIET) jupyter nbconvert --log-level=ERROR --execute --ExecutePreprocessor.timeout=600 --ExecutePreprocessor.extra_arguments=--log-level=40

.PHONY: help report test test-slow test-browser lab export render readme site bench results gpu
help:      ## this list
	@grep -E '^[a-z-]+: .*##' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 14

report: .venv/ready  ## run the study at profile quick and write report/index.html; PRECISION=float32 chooses the arithmetic
	@gansynth run nih_pneumonia $(if $(PRECISION),-p precision=$(PRECISION))
	gansynth report

test: .venv/ready    ## the quick part: chapters, front page and all tests that are not marked slow
	@OMP_NUM_THREADS=1 $(QUIET) nbdev_test --n_workers 2 --do_print
	OMP_NUM_THREADS=1 python -m pytest -q -n 2 --dist loadfile -m 'not slow' tests

test-slow: .venv/ready ## the rest: simulations, kills, whole studies, other engines, the site, the browser
	@OMP_NUM_THREADS=1 python -m pytest -q -n 2 --dist loadfile -m slow tests

test-browser: .venv/ready ## JupyterLab and the widgets in Chromium, skipped where there is none
	@OMP_NUM_THREADS=1 python -m pytest -q tests/browser

lab: .venv/ready     ## JupyterLab on the front page
	@jupyter lab index.ipynb

export: .venv/ready  ## notebooks -> gansynth/*.py, and clean the notebooks
	@nbdev_export
	nbdev_clean

render: .venv/ready  ## run every notebook at smoke size and keep its outputs, then export and readme
	@for nb in $(CHAPTERS) index.ipynb; do echo $$nb; $(EXECUTE) --to notebook --inplace $$nb; done
	$(MAKE) --no-print-directory export readme

readme: .venv/ready  ## index.ipynb -> README.md, run first so that it shows what results/ holds now
	@$(EXECUTE) --to notebook --stdout index.ipynb | jupyter nbconvert --log-level=ERROR --stdin --to markdown --output README \
	  --TagRemovePreprocessor.enabled=True --TagRemovePreprocessor.remove_cell_tags=hide --TagRemovePreprocessor.remove_input_tags=hide_input

site: .venv/ready    ## the documentation, to be read without a network: _site/index.html
	@$(QUIET) python site/build.py
	echo _site/index.html

bench: .venv/ready   ## speed of the training loops, as ratios measured side by side
	@python tests/bench_gan.py
	python tests/bench_classifiers.py
	python tests/bench_data.py
	python tests/bench_workers.py

results: .venv/ready ## the committed results again, from the public sets in DATA (hours)
	@for s in $(SEEDS); do
	  gansynth run nih_pneumonia --data kermany:$(DATA)/kermany_cxr_224 --seed $$s
	  gansynth run covid_ct --data covid_ct:$(DATA)/covid_ct -p official_split=true -p networks=covid_cnn,vgg16,resnet50 -p arms=raw,classic_aug,gan_aug,conditional_aug,gan_classic,synth_only,leak_drill -p n_conditional=2000 --seed $$s
	  gansynth run bone_fracture --data kermany:$(DATA)/kermany_cxr_224 --seed $$s
	  gansynth run lung_optimizers --data medmnist:$(DATA)/pneumoniamnist --seed $$s
	  gansynth run pneumonia_transfer --data medmnist:$(DATA)/pneumoniamnist -p domain_data=nih:$(DATA)/nih_chestxray14 -p 'domain_positive=No Finding' --seed $$s
	done
	for study in $(STUDIES); do gansynth collect $$study --to results/$$study; done
	gansynth study pneumoniamnist --data medmnist:$(DATA)/pneumoniamnist
	gansynth collect $$(ls -td runs/study/pneumoniamnist-* | head -1) --to results/pneumoniamnist

gpu: .venv/ready     ## on a GPU: the captured step against the eager one, speed, the published sizes of all five studies, the full grid on three sets
	@python -m pytest -q tests/test_gan.py -k cuda
	python tests/bench_gan.py
	for study in $(STUDIES); do
	  gansynth run $$study --profile paper -p device=cuda
	  gansynth report $$study
	done
	gansynth study full_protocol --data medmnist:$(DATA)/pneumoniamnist --size 28 --device cuda
	gansynth study full_protocol --data kermany:$(DATA)/kermany_cxr_224 --device cuda
	gansynth study full_protocol --data covid_ct:$(DATA)/covid_ct --fractions 0.2,0.5,1 --device cuda

.venv/ready: settings.ini setup.py .ci/setup .ci/constraints.txt
	@.ci/setup
